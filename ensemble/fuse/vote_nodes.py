"""Nodes that blend as `ensemble.blend.blend` does: pools, temperatures, sharpness, bias and decision rules, in float64.

A tensor of log-probabilities is ``(N, C)``; of labels that are independent of each other, each a choice of its own, it
is ``(N, C, 2)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from ensemble.arrays import Floats
from ensemble.blend.decision_rules import AxisRule, MacroF1Rule, OrdinalRule, PriorRule, Rule, ThresholdRule
from ensemble.blend.pooling import TIE_BREAK, Pool, normalize, normalize_by_class
from ensemble.blend.recipe import Group, Recipe
from ensemble.fuse.node_list import NodeList, Tensor

_NO_EVIDENCE = -1e30  # the logarithm of a weight of zero, which stays finite in sums


@dataclass(frozen=True, slots=True)
class FusedVote:
    """The tensors of an answer: ``probabilities`` ``(N, C)`` float64, ``classes`` ``(N,)``, and which labels apply."""

    probabilities: Tensor
    classes: Tensor
    applies: Tensor | None


def logits_nodes(
    nodes: NodeList, logits: Tensor, columns: Sequence[int], *, temperature: float | None, independent: bool
) -> Tensor:
    """Add what makes log-probabilities of one view's float32 logits ``(N, C)``, whose ``columns`` are put in order."""
    if list(columns) != list(range(len(columns))):
        logits = nodes.add("Gather", logits, nodes.constant(np.array(columns, np.int64)), axis=1)
    values = nodes.double(logits)
    if temperature is not None:
        values = nodes.add("Div", values, nodes.constant(np.array(temperature)))
    if independent:
        values = nodes.add("Unsqueeze", values, nodes.constant([2]))
        values = nodes.add("Concat", nodes.add("Sub", values, values), values, axis=2)
    return nodes.add("LogSoftmax", values, axis=-1)


def pool_nodes(nodes: NodeList, tensors: Sequence[Tensor], weights: Sequence[float], kind: Pool) -> Tensor:
    """Add the pool of log-probabilities by their weights, see `ensemble.blend.pooling.pool`."""
    shares = normalize(dict(enumerate(weights))).values()
    kept = [(tensor, share) for tensor, share in zip(tensors, shares, strict=True) if share > 0]
    terms = []
    for tensor, share in kept:
        vote = _hard_vote(nodes, tensor) if kind.votes else tensor
        if kind.order == 0:
            terms.append(nodes.add("Mul", vote, nodes.constant(np.array(share))))
        else:
            raised = vote if kind.order == 1 else nodes.add("Mul", vote, nodes.constant(np.array(kind.order)))
            terms.append(nodes.add("Add", raised, nodes.constant(np.array(math.log(share)))))
    return _sum_terms(nodes, terms, kind)


def pool_by_class_nodes(
    nodes: NodeList, tensors: Sequence[Tensor], weights: Floats, kind: Pool, *, independent: bool
) -> Tensor:
    """Add the pool with weights ``(M, C)`` per class, see `ensemble.blend.pooling.pool_by_class`."""
    terms = []
    for tensor, share in zip(tensors, normalize_by_class(weights), strict=True):
        vote = _hard_vote(nodes, tensor) if kind.votes else tensor
        of_class = share[:, np.newaxis] if independent else share
        if kind.order == 0:
            terms.append(nodes.add("Mul", vote, nodes.constant(of_class)))
        else:
            raised = vote if kind.order == 1 else nodes.add("Mul", vote, nodes.constant(np.array(kind.order)))
            logs = np.log(of_class, out=np.full_like(of_class, _NO_EVIDENCE), where=of_class > 0)
            terms.append(nodes.add("Add", raised, nodes.constant(logs)))
    return _sum_terms(nodes, terms, kind)


def _sum_terms(nodes: NodeList, terms: Sequence[Tensor], kind: Pool) -> Tensor:
    if kind.order == 0:
        total = terms[0]
        for term in terms[1:]:
            total = nodes.add("Add", total, term)
        return nodes.add("LogSoftmax", total, axis=-1)
    first = nodes.constant([0])
    stacked = nodes.add("Concat", *(nodes.add("Unsqueeze", term, first) for term in terms), axis=0)
    total = nodes.add("ReduceLogSumExp", stacked, first, keepdims=0)
    if kind.order != 1:
        total = nodes.add("Div", total, nodes.constant(np.array(kind.order)))
    return nodes.add("LogSoftmax", total, axis=-1)


def _hard_vote(nodes: NodeList, log_p: Tensor) -> Tensor:
    best = nodes.add("ArgMax", log_p, axis=-1, keepdims=1)
    count = nodes.add("Gather", nodes.add("Shape", log_p), nodes.constant(np.array(-1)))
    classes = nodes.add("Range", nodes.constant(np.array(0)), count, nodes.constant(np.array(1)))
    chosen = nodes.double(nodes.add("Equal", classes, best))
    vote = nodes.add("Mul", chosen, nodes.constant(np.array(1 - TIE_BREAK)))
    rest = nodes.add("Mul", nodes.add("Exp", log_p), nodes.constant(np.array(TIE_BREAK)))
    # a probability that underflows would be no logarithm
    mixed = nodes.add("Max", nodes.add("Add", vote, rest), nodes.constant(np.array(np.finfo(np.float64).tiny)))
    return nodes.add("Log", mixed)


def pool_group_nodes(nodes: NodeList, members: Sequence[Tensor], recipe: Recipe) -> Tensor:
    """Add the pool of a group's members."""
    return pool_nodes(nodes, members, [1] * len(members), recipe.pool.within)


def pool_views_nodes(nodes: NodeList, views: Sequence[Tensor], group: Group, recipe: Recipe) -> Tensor:
    """Add the pool of a member's views, which are in the order of their names."""
    return pool_nodes(nodes, views, list(recipe.views_of(group).values()), recipe.pool.within)


def vote_nodes(nodes: NodeList, groups: Sequence[Tensor], recipe: Recipe) -> FusedVote:
    """Add what follows the groups: their pool, sharpness, bias and the decision."""
    by_class = recipe.class_weights
    independent = recipe.activation == "sigmoid"
    if by_class is None:
        log_p = pool_nodes(nodes, groups, [group.weight for group in recipe.groups.values()], recipe.pool)
    else:
        log_p = pool_by_class_nodes(nodes, groups, by_class, recipe.pool, independent=independent)
    values = log_odds_nodes(nodes, log_p) if independent else log_p
    if recipe.sharpness != 1:
        values = nodes.add("Mul", values, nodes.constant(np.array(float(recipe.sharpness))))
    if recipe.bias is not None:
        values = nodes.add("Add", values, nodes.constant(np.array(recipe.bias, np.float64)))
    if independent:
        probabilities = nodes.add("Sigmoid", values)
    else:
        plain = recipe.sharpness == 1 and recipe.bias is None
        probabilities = nodes.add("Exp", values if plain else nodes.add("LogSoftmax", values, axis=-1))
    applies = None
    if isinstance(recipe.rule, ThresholdRule):
        applies = nodes.add("GreaterOrEqual", probabilities, nodes.constant(recipe.rule.thresholds))
    return FusedVote(probabilities, _decide(nodes, probabilities, recipe.rule), applies)


def log_odds_nodes(nodes: NodeList, log_p: Tensor) -> Tensor:
    """Add the log-odds ``(N, C)`` of independent labels ``(N, C, 2)``."""
    no, yes = (nodes.add("Gather", log_p, nodes.constant(np.array(which)), axis=2) for which in (0, 1))
    return nodes.add("Sub", yes, no)


def probabilities_nodes(nodes: NodeList, log_p: Tensor, *, independent: bool) -> Tensor:
    """Add the float32 probabilities ``(N, C)`` of one member."""
    found = nodes.add("Sigmoid", log_odds_nodes(nodes, log_p)) if independent else nodes.add("Exp", log_p)
    return nodes.add("Cast", found, to=TensorProto.FLOAT)


def _decide(nodes: NodeList, p: Tensor, rule: Rule) -> Tensor:
    """Add the classes ``(N,)`` int64 of probabilities ``(N, C)``, see `ensemble.blend.decision_rules`."""
    match rule:
        case MacroF1Rule():
            doubled = nodes.add("Mul", p, nodes.constant(np.array(2.0)))
            gain = nodes.add("Sub", doubled, nodes.constant(rule.f1))
            return _largest(nodes, nodes.add("Div", gain, nodes.constant(rule.occurrences)))
        case PriorRule():
            return _largest(nodes, nodes.add("Mul", p, nodes.constant(rule.prior**-rule.tau)))
        case ThresholdRule():
            return _largest(nodes, nodes.add("Sub", p, nodes.constant(rule.thresholds)))
        case OrdinalRule():
            numbers = np.arange(len(rule.cuts) + 1, dtype=np.float64)[:, np.newaxis]
            expected = nodes.add("MatMul", p, nodes.constant(numbers))
            passed = nodes.whole(nodes.add("GreaterOrEqual", expected, nodes.constant(rule.cuts)))
            return nodes.add("ReduceSum", passed, nodes.constant([1]), keepdims=0)
        case AxisRule():
            return _decide_axes(nodes, p, rule)
        case _:
            return _largest(nodes, p)


def _decide_axes(nodes: NodeList, p: Tensor, rule: AxisRule) -> Tensor:
    cube = nodes.add("Reshape", p, nodes.constant([-1, *rule.shape]))
    total: Tensor | None = None
    for axis in range(1, len(rule.shape) + 1):
        others = [k for k in range(1, len(rule.shape) + 1) if k != axis]
        marginal = nodes.add("ReduceSum", cube, nodes.constant(others), keepdims=0) if others else cube
        stride = math.prod(rule.shape[axis:])
        part = nodes.add("Mul", _largest(nodes, marginal), nodes.constant(np.array(stride)))
        total = part if total is None else nodes.add("Add", total, part)
    assert total is not None, "a label space has an axis"
    return total


def _largest(nodes: NodeList, values: Tensor) -> Tensor:
    return nodes.add("ArgMax", values, axis=1, keepdims=0)
