"""Simulated contests whose truth is known: people, photographs of them, and members that see the same faces badly.

A person has a gender and an age group, in the proportions of the mask contest, and seven photographs: five with the
mask worn, one with it worn wrongly, one without. What a photograph shows of gender and age is a number each, blurred
once for the person (all members share that blur, as all networks are fooled by the same face) and once more by each
member. A member's probabilities are the exact posterior of its own view, then spoiled by a temperature and a bias for
every class.

- ``A``: eight members of somewhat unequal quality, trained on the classes as they are;
- ``B``: the same, very unequal;
- ``C``: as A, but trained with a partly balanced loss: 0.2 to 0.8 of the prior is gone from their answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ensemble.arrays import Floats
from ensemble.labels import MASK18
from ensemble.predictions.dataset import Predictions
from ensemble.predictions.truth import Truth
from tests.support.members import make_member

Scenario = Literal["A", "B", "C"]

PEOPLE = np.array([[549, 410, 83], [732, 817, 109]])
"""How many people there are of each gender and age group; the contest's class counts are these times 5, 1 and 1."""

_MASKS = np.array([0, 0, 0, 0, 0, 1, 2])
_GENDER = np.array([-1.0, 1.0])
_AGE = np.array([-1.0, 0.6, 1.8])
_SHARED = 0.55
_MASK_BLUR = 0.30


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """How one member sees: blur of gender and age, temperature, bias ``(18,)``, share of the prior it unlearned."""

    blur: float
    temperature: float
    bias: Floats
    tau: float


@dataclass(frozen=True, slots=True, eq=False)
class Contest:
    """Members of one scenario, to be asked about as many fresh people as a test likes."""

    members: tuple[Member, ...]

    def draw(self, people: int, *, seed: int) -> tuple[list[Predictions], Truth]:
        """The members' predictions of seven photographs each of fresh people, and the truth."""
        rng = np.random.default_rng(seed)
        group = rng.choice(6, size=people, p=PEOPLE.ravel() / PEOPLE.sum())
        person = np.repeat(np.arange(people), len(_MASKS))
        mask = np.tile(_MASKS, people)
        gender, age = group[person] // 3, group[person] % 3
        shown_gender = _GENDER[gender] + _SHARED * rng.normal(size=people)[person]
        shown_age = _AGE[age] + _SHARED * rng.normal(size=people)[person]
        ids = tuple(f"{i:06d}.jpg" for i in range(len(person)))
        made = []
        for number, member in enumerate(self.members):
            seen_mask = np.eye(3)[mask] + _MASK_BLUR * rng.normal(size=(len(person), 3))
            seen_gender = shown_gender + member.blur * rng.normal(size=len(person))
            seen_age = shown_age + member.blur * rng.normal(size=len(person))
            logits = _posterior(seen_mask, seen_gender, seen_age, member)
            made.append(make_member(f"m{number}", logits, ids=ids, labels=MASK18))
        classes = np.asarray(mask * 6 + group[person], dtype=np.intp)
        return made, Truth(ids, classes, tuple(f"p{i}" for i in person), MASK18)


def make_contest(scenario: Scenario, *, seed: int, members: int = 8) -> Contest:
    """Draw the members of a scenario."""
    rng = np.random.default_rng(seed)
    low, high = (0.2, 1.6) if scenario == "B" else (0.35, 0.9)
    return Contest(
        tuple(
            Member(
                blur=float(rng.uniform(low, high)),
                temperature=float(np.exp(rng.normal() * 0.3)),
                bias=rng.normal(size=18) * 0.15,
                tau=float(rng.uniform(0.2, 0.8)) if scenario == "C" else 0.0,
            )
            for _ in range(members)
        )
    )


def _posterior(mask: Floats, gender: Floats, age: Floats, member: Member) -> Floats:
    """The logits ``(N, 18)`` of one member: log prior plus log likelihood, spoiled."""
    variance = _SHARED**2 + member.blur**2
    of_mask = -((mask[:, np.newaxis] - np.eye(3)) ** 2).sum(axis=-1) / (2 * _MASK_BLUR**2)
    of_gender = -((gender[:, np.newaxis] - _GENDER) ** 2) / (2 * variance)
    of_age = -((age[:, np.newaxis] - _AGE) ** 2) / (2 * variance)
    likelihood = of_mask[:, :, np.newaxis, np.newaxis] + of_gender[:, np.newaxis, :, np.newaxis]
    likelihood = (likelihood + of_age[:, np.newaxis, np.newaxis, :]).reshape(-1, 18)
    counts = np.outer([5, 1, 1], PEOPLE).ravel()
    prior = np.log(counts / counts.sum())
    return np.asarray((likelihood + (1 - member.tau) * prior + member.bias) / member.temperature)
