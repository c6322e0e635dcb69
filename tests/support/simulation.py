"""Simulated contests whose truth is known: people, photographs of them, and members that see the same faces badly.

A person has a gender and an age group, in the proportions of the mask contest, and seven photographs: five with the
mask worn, one with it worn wrongly, one without. What a photograph shows of gender and age is a number each, blurred
once for the person (all members share that blur, as all networks are fooled by the same face) and once more by each
member. A member's probabilities are the exact posterior of its own view, then spoiled by a temperature and a bias for
every class.

- ``A``: eight members of somewhat unequal quality, trained on the classes as they are;
- ``B``: the same, very unequal;
- ``C``: as A, but trained with a partly balanced loss: 0.2 to 0.8 of the prior is gone from their answers.

`Contest.draw_folds` has every member trained on several folds: the folds share half of the variance of the member's
blur, and each has a bias of its own. Out of fold a photograph has one fold's answer; a test photograph has all of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ensemble.arrays import Floats
from ensemble.labels import MASK18
from ensemble.predictions.dataset import Predictions
from ensemble.predictions.truth import Truth
from tests.support.members import make_member

Scenario = Literal["A", "B", "C"]
Counts: TypeAlias = NDArray[np.integer[Any]]

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
        return self._draw(people, np.random.default_rng(seed), PEOPLE, folds=0)

    def draw_folds(
        self, people: int, *, seed: int, folds: int, mix: Counts = PEOPLE
    ) -> tuple[list[Predictions], Truth]:
        """Every fold's predictions of fresh people, drawn with the proportions of ``mix`` ``(2, 3)``, and the truth."""
        return self._draw(people, np.random.default_rng(seed), mix, folds=folds)

    def draw_out_of_fold(
        self, people: int, *, seed: int, folds: int, mix: Counts = PEOPLE
    ) -> tuple[list[Predictions], Truth]:
        """As `draw_folds`, with each person predicted by one fold of every member alone, as out-of-fold files are."""
        members, truth = self._draw(people, np.random.default_rng(seed), mix, folds=folds)
        fold_of = np.random.default_rng(seed + 1).integers(folds, size=people)[np.arange(len(truth.ids)) // len(_MASKS)]
        return [take_rows(one, np.flatnonzero(fold_of == one.fold)) for one in members], truth

    def _draw(
        self, people: int, rng: np.random.Generator, mix: Counts, *, folds: int
    ) -> tuple[list[Predictions], Truth]:
        group = rng.choice(6, size=people, p=mix.ravel() / mix.sum())
        person = np.repeat(np.arange(people), len(_MASKS))
        mask = np.tile(_MASKS, people)
        gender, age = group[person] // 3, group[person] % 3
        shown_gender = _GENDER[gender] + _SHARED * rng.normal(size=people)[person]
        shown_age = _AGE[age] + _SHARED * rng.normal(size=people)[person]
        ids = tuple(f"{i:06d}.jpg" for i in range(len(person)))
        made = []
        for number, member in enumerate(self.members):
            seen_mask = np.eye(3)[mask] + _MASK_BLUR * rng.normal(size=(len(person), 3))
            blur_gender, blur_age = (member.blur * rng.normal(size=len(person)) for _ in range(2))
            if not folds:
                logits = _posterior(seen_mask, shown_gender + blur_gender, shown_age + blur_age, member)
                made.append(make_member(f"m{number}", logits, ids=ids, labels=MASK18))
            for fold in range(folds):
                own = replace(member, bias=member.bias + np.random.default_rng((number, fold)).normal(size=18) * 0.15)
                of_fold = [member.blur * rng.normal(size=len(person)) for _ in range(2)]
                seen_gender = shown_gender + math.sqrt(0.5) * (blur_gender + of_fold[0])
                seen_age = shown_age + math.sqrt(0.5) * (blur_age + of_fold[1])
                logits = _posterior(seen_mask, seen_gender, seen_age, own)
                one = make_member(f"m{number}_f{fold}", logits, ids=ids, labels=MASK18, group=f"m{number}")
                made.append(replace(one, fold=fold))
        classes = np.asarray(mask * 6 + group[person], dtype=np.intp)
        return made, Truth(ids, classes, tuple(f"p{i}" for i in person), MASK18)


def take_rows(member: Predictions, rows: NDArray[np.intp]) -> Predictions:
    """The predictions of some images of a member."""
    return replace(
        member,
        ids=tuple(member.ids[row] for row in rows),
        logits={view: values[rows] for view, values in member.logits.items()},
    )


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
