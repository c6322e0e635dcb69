"""Deciding classes from probabilities."""

from __future__ import annotations

import numpy as np

from ensemble.blend.decision_rules import MacroF1Rule, PriorRule, decide


def test_the_most_probable_class_wins() -> None:
    """Each row gets the class with its highest probability."""
    probabilities = np.random.default_rng(0).dirichlet(np.ones(18), size=200)
    assert [row.tolist().index(max(row)) for row in probabilities] == decide(probabilities).tolist()


def test_of_equal_probabilities_the_first_wins() -> None:
    """A tie goes to the class with the lowest index."""
    assert decide(np.array([[0.2, 0.4, 0.4], [1 / 3, 1 / 3, 1 / 3], [0.0, 0.0, 1.0]])).tolist() == [1, 0, 2]


def test_a_rule_decides_by_its_formula() -> None:
    """With a rule each row gets the class with the highest score by the rule's formula."""
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(4), size=200)
    f1, share = rng.random(4), rng.dirichlet(np.ones(4))
    plug_in = [max(range(4), key=lambda c: (2 * p[c] - f1[c]) / share[c]) for p in probabilities]
    tau = [max(range(4), key=lambda c: p[c] / share[c] ** 0.5) for p in probabilities]
    assert decide(probabilities, MacroF1Rule(f1, share)).tolist() == plug_in
    assert decide(probabilities, PriorRule(0.5, share)).tolist() == tau
    assert decide(probabilities).tolist() not in (plug_in, tau)
