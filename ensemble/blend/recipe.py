"""Recipes: how members are combined into one prediction, stored in ``blend.json`` so that it can be applied again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from ensemble.arrays import Floats
from ensemble.blend.compact_json import one_line_each
from ensemble.blend.decision_rules import (
    AxisRule,
    MacroF1Rule,
    Rule,
    ThresholdRule,
    require_rule_fits,
    rule_from_json,
    rule_to_json,
)
from ensemble.blend.other_than_recipe import refuse_other
from ensemble.blend.pooling import LINEAR, Pool, normalize, normalize_by_class, parse_pool
from ensemble.blend.recipe_fields import require_bias, require_fields
from ensemble.blend.smoothing import Smoothing
from ensemble.card import Activation
from ensemble.errors import EnsError, FileError, PredictionError, enumerate_some
from ensemble.labels import LabelSpace
from ensemble.predictions.dataset import Predictions
from ensemble.predictions.members import common_views, members_by_name
from ensemble.text.json_text import parse_json, read_utf8, require_no_flags
from ensemble.text.plain_numbers import to_float
from ensemble.text.text_table import render_columns

SCHEMA = 1
_THRESHOLD = 0.5
_OTHERS = "*"
"""In weights per class: all classes that have no own weight."""
_MAX_SCALE = 1e12
"""Limit of a sharpness or temperature: far beyond meaningful values, far below overflow."""


@dataclass(frozen=True, slots=True)
class Group:
    """Members that are averaged before the group is weighted: the folds of one model, or a single model.

    ``members`` maps each name to the SHA-256 of the predictions that the recipe was made from. ``views`` are the
    group's own view weights, if they differ from the recipe's. Logits are divided by ``temperature`` before pooling.
    ``class_weights`` are weights per class or label, in place of the one ``weight``.
    """

    weight: float
    members: Mapping[str, str]
    views: Mapping[str, float] | None = None
    temperature: float | None = None
    class_weights: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe: views are averaged within members by ``views``, members within groups, and groups by their weights.

    The pooled probabilities become ``p proportional to pooled ** sharpness * exp(bias)``, with one bias per class in
    the order of ``labels``; then ``rule`` decides. ``learned`` documents how a learned recipe was selected. With
    ``transductive`` the macro-F1 rule is fitted to the probabilities it decides about: no labels are needed, but the
    class of one image then depends on the other images. With ``smoothing`` the probabilities are smoothed over the
    rows of each file before the rule decides. A pool of ranks has neither sharpness nor bias. ``positive`` is
    the one of two classes that its metric is about, or whose probability its sample asked for, where that is known.

    Weights are stored as given; only their proportions matter. Views, groups and members are sorted by name, so that
    equal recipes compute the same sums in the same order.

    Raises:
        PredictionError: E508 when weights are negative, not finite or all 0, E518 when the rule, the sharpness or the
            bias is invalid, a group is empty, a member is in two groups, or a rule other than macro-F1 is transductive.
    """

    pool: Pool
    views: Mapping[str, float]
    groups: Mapping[str, Group]
    labels: LabelSpace
    rule: Rule = "argmax"
    sharpness: float = 1.0
    bias: tuple[float, ...] | None = None
    learned: Mapping[str, Any] | None = None
    transductive: bool = False
    activation: Activation = "softmax"
    smoothing: Smoothing | None = None
    positive: str | None = None

    def __post_init__(self) -> None:
        require_rule_fits(self.rule, len(self.labels))
        if self.activation not in get_args(Activation):
            raise PredictionError("E518", f"the activation {self.activation!r} is not known")
        if self.activation == "sigmoid" and self.rule != "argmax" and not isinstance(self.rule, ThresholdRule):
            raise PredictionError("E518", "this rule decides for one class, and several labels may apply to an image")
        if self.activation == "softmax" and isinstance(self.rule, ThresholdRule):
            raise PredictionError("E518", "classes are exclusive: no thresholds", hint="leave out the thresholds")
        if self.pool.ranks and (self.sharpness != 1 or self.bias is not None):
            raise PredictionError("E518", "a pool of ranks has neither sharpness nor bias")
        if self.transductive and not isinstance(self.rule, MacroF1Rule):
            raise PredictionError("E518", "only the macro-F1 rule can be transductive")
        if not 0 <= self.sharpness <= _MAX_SCALE:  # NaN is not
            raise PredictionError("E518", f"the sharpness must be from 0 to {_MAX_SCALE:g}, got {self.sharpness}")
        require_bias(self.bias, len(self.labels))
        if self.positive is not None and (len(self.labels) != 2 or self.positive not in self.labels.names):
            raise PredictionError("E518", f"the positive class {self.positive!r} is none of two classes")
        if not isinstance(self.learned, Mapping | None):
            raise PredictionError("E518", "learned must be a JSON object")
        names = [member for group in self.groups.values() for member in group.members]
        if len(set(names)) != len(names) or not all(group.members for group in self.groups.values()):
            raise PredictionError("E518", "every group needs members, and every member belongs to one group")
        normalize(self.views)
        normalize({name: group.weight for name, group in self.groups.items()})
        for name, group in self.groups.items():
            normalize(self.views_of(group))
            if group.temperature is not None and not 1 / _MAX_SCALE <= group.temperature <= _MAX_SCALE:
                limits = f"from {1 / _MAX_SCALE:g} to {_MAX_SCALE:g}"
                raise PredictionError("E518", f"the temperature of {name} must be {limits}, got {group.temperature}")
            if group.class_weights is not None and len(group.class_weights) != len(self.labels):
                count = f"{len(group.class_weights)} weights per class, expected {len(self.labels)}"
                raise PredictionError("E518", f"{name} has {count}")
        if self.class_weights is not None:
            normalize_by_class(self.class_weights)
        object.__setattr__(self, "views", _in_order(self.views))
        object.__setattr__(self, "groups", {name: _tidy(group) for name, group in sorted(self.groups.items())})

    def views_of(self, group: Group) -> Mapping[str, float]:
        """Return the view weights that apply to a group."""
        return self.views if group.views is None else group.views

    @property
    def class_weights(self) -> Floats | None:
        """The weights per class ``(groups, C)``, or None where each group has one weight."""
        groups = self.groups.values()
        if all(group.class_weights is None for group in groups):
            return None
        return np.array([group.class_weights or (group.weight,) * len(self.labels) for group in groups], np.float64)

    @property
    def inputs(self) -> dict[str, str]:
        """The SHA-256 of the predictions that the recipe was made from, by member name."""
        return {name: sha256 for group in self.groups.values() for name, sha256 in group.members.items()}

    def to_json(self) -> str:
        """Return the recipe as indented JSON; equal recipes give equal text."""
        value = {
            "schema": SCHEMA,
            "pool": self.pool.name,
            "rule": rule_to_json(self.rule),
            "views": self.views,
            "groups": {name: _without_none(asdict(group)) for name, group in self.groups.items()},
            "labels": self.labels.to_dict(),
            "sharpness": None if self.sharpness == 1 else self.sharpness,
            "bias": self.bias,
            "learned": self.learned,
            "transductive": self.transductive or None,
            "activation": None if self.activation == "softmax" else self.activation,
            "smoothing": None if self.smoothing is None else self.smoothing.to_json(),
            "positive": self.positive,
        }
        if self.class_weights is not None or isinstance(self.rule, ThresholdRule):
            return one_line_each(_without_none(value))
        return json.dumps(_without_none(value), ensure_ascii=False, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Parse the JSON of a recipe.

        Raises:
            PredictionError: E518 when the text is not a recipe, or has another schema version.
        """
        try:
            value = parse_json(text)
            require_no_flags(value, besides=("learned", "transductive"))
            schema = value.pop("schema") if isinstance(value, dict) and "schema" in value else None
            if schema is not None and schema != SCHEMA:
                raise PredictionError("E518", f"it has schema {schema!r}; this version of ens reads {SCHEMA}")
            require_fields(value if schema is None else {"schema": schema, **value})
            labels = LabelSpace.from_dict(value.pop("labels"))
            smoothing = value.pop("smoothing", None)
            return cls(
                pool=parse_pool(value.pop("pool")),
                views=value.pop("views"),
                groups={name: _read_group(name, group, labels) for name, group in value.pop("groups").items()},
                labels=labels,
                smoothing=None if smoothing is None else Smoothing.from_json(smoothing),
                rule=rule_from_json(value.pop("rule")),
                bias=tuple(value.pop("bias")) if value.get("bias") is not None else value.pop("bias", None),
                **_without_none(value),
            )
        except EnsError as err:
            raise PredictionError("E518", f"not a recipe: {err.message}") from err
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as err:
            raise PredictionError("E518", f"not a recipe: {err}") from err


def make_recipe(
    members: Sequence[Predictions],
    *,
    pool: Pool = LINEAR,
    weights: Mapping[str, float] | None = None,
    view_weights: Mapping[str, float] | None = None,
    per_axis: bool = False,
    class_weights: Mapping[str, Mapping[str, float]] | None = None,
    thresholds: float | Mapping[str, float] | None = None,
    smoothing: Smoothing | None = None,
) -> Recipe:
    """Return the recipe for soft voting with given weights, by default equal ones.

    ``weights`` has every group by name; a group of a single member can also be given by that member's name. Without
    ``view_weights`` all views have equal weights. ``per_axis`` decides each axis separately. The classes are in the
    order of the first member by name. ``class_weights`` has weights by group and class name, for some or all of them;
    ``thresholds`` are those of labels, one for all or by name (0.5 for the others).

    Raises:
        PredictionError: E508 when weights or thresholds do not match the groups or classes, E515 when a member name is
            repeated, E516 when the members' views differ.
    """
    by_name = members_by_name(members)
    labels = next(iter(by_name.values())).labels
    groups: dict[str, list[str]] = {}
    for name, member in by_name.items():
        groups.setdefault(member.group, []).append(name)
    weight_of = dict.fromkeys(groups, 1.0) if weights is None else _weights_of_groups(groups, weights)
    by_class = _by_class(class_weights or {}, weight_of, labels)
    rule: Rule = AxisRule(labels.shape) if per_axis else "argmax"
    if thresholds is not None:
        rule = ThresholdRule(_thresholds(thresholds, labels))
    return Recipe(
        pool=pool,
        views=dict.fromkeys(common_views(list(by_name.values())), 1.0) if view_weights is None else view_weights,
        groups={
            group: Group(
                weight_of[group], {name: by_name[name].sha256 for name in names}, class_weights=by_class.get(group)
            )
            for group, names in groups.items()
        },
        labels=labels,
        rule=rule,
        smoothing=smoothing,
        activation=next(iter(by_name.values())).activation,
    )


def _by_class(
    given: Mapping[str, Mapping[str, float]], weight_of: Mapping[str, float], labels: LabelSpace
) -> dict[str, tuple[float, ...]]:
    unknown = sorted(given.keys() - weight_of.keys())
    unknown += sorted({name for of_class in given.values() for name in of_class} - {*labels.names, _OTHERS})
    if unknown:
        raise PredictionError(
            "E508",
            f"weights per class for unknown groups or classes: {enumerate_some(unknown)}; "
            f"groups: {enumerate_some(sorted(weight_of), limit=20)}",
        )
    return {
        group: tuple(of_class.get(name, of_class.get(_OTHERS, weight_of[group])) for name in labels.names)
        for group, of_class in given.items()
    }


def _thresholds(given: float | Mapping[str, float], labels: LabelSpace) -> Floats:
    if not isinstance(given, Mapping):
        return np.full(len(labels), given)
    unknown = sorted(given.keys() - set(labels.names))
    if unknown:
        raise PredictionError("E508", f"thresholds for unknown labels: {enumerate_some(unknown)}")
    return np.array([given.get(name, _THRESHOLD) for name in labels.names])


def read_recipe(path: Path) -> Recipe:
    """Read ``blend.json``.

    Raises:
        FileError: E707 when the file cannot be read.
        PredictionError: E518 when it is not a recipe.
    """
    refuse_other(path)
    try:
        text = read_utf8(path)
    except OSError as err:
        raise FileError("E707", f"{path} cannot be read: {err.strerror}", path=path) from err
    except ValueError as err:
        text_fault = f"{path.name}: not a text file" if isinstance(err, UnicodeDecodeError) else str(err)
        raise PredictionError("E518", text_fault, path=path) from err
    try:
        return Recipe.from_json(text)
    except PredictionError as err:
        raise PredictionError("E518", f"{path.name}: {err.message}", path=path) from err


def parse_weights(text: str) -> dict[str, float]:
    """Parse ``a=2,b=1`` into weights by name; a name without a number has weight 1.

    Raises:
        PredictionError: E508 when the text has another form or repeats a name.
    """
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, equals, number = (piece.strip() for piece in part.rpartition("="))
        if not equals or (":" in name and not _is_number(number)):
            # a name alone, which may be that of a view that exchanges labels: hflip:left=right
            name, number = part.strip(), "1"
        try:
            weight = to_float("" if "=" in name and ":" not in name else number)
        except ValueError as err:
            raise PredictionError("E508", f"{part.strip()!r} is not a weight of the form name=number") from err
        if not name or name in weights:
            raise PredictionError("E508", f"{text!r} must give every weight a name, and each name once")
        weights[name] = weight
    return weights


def _is_number(text: str) -> bool:
    try:
        to_float(text)
    except ValueError:
        return False
    return True


def render_recipe(recipe: Recipe) -> str:
    """Render the groups with normalized weights and members, and with views and temperatures if these differ."""
    shares = normalize({name: group.weight for name, group in recipe.groups.items()})
    head = f"pool {recipe.pool.name}"
    header = ["group", "weight", "members"]
    rows = [[name, f"{shares[name]:.4f}", ", ".join(group.members)] for name, group in recipe.groups.items()]
    if all(group.views is None for group in recipe.groups.values()):
        head += f"; views {_render_shares(recipe.views)}"
    else:
        header.append("views")
        for row, group in zip(rows, recipe.groups.values(), strict=True):
            row.append(_render_shares(recipe.views_of(group)))
    if any(group.temperature is not None for group in recipe.groups.values()):
        header.append("temperature")
        for row, group in zip(rows, recipe.groups.values(), strict=True):
            row.append(f"{group.temperature or 1:.3g}")
    if recipe.sharpness != 1:
        head += f"; sharpness {recipe.sharpness:.3g}"
    if recipe.bias is not None:
        head += "; bias per class"
    if recipe.class_weights is not None:
        head += "; weights per class"
    if recipe.smoothing is not None:
        head += f"; smoothed over {len(recipe.smoothing.kernel)} rows"
    rule = rule_to_json(recipe.rule)
    if isinstance(rule, dict):
        head += f"; rule {rule['name']}"
    return f"{head}\n" + render_columns(header, rows)


def _render_shares(weights: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {share:.3g}" for name, share in normalize(weights).items())


def _weights_of_groups(groups: Mapping[str, Sequence[str]], weights: Mapping[str, float]) -> dict[str, float]:
    group_of = {names[0]: group for group, names in groups.items() if len(names) == 1} | {g: g for g in groups}
    known = f"known: {enumerate_some(sorted(groups), limit=20)}"
    unknown = sorted(weights.keys() - group_of.keys())
    if unknown:
        raise PredictionError("E508", f"weights for unknown groups: {enumerate_some(unknown)}; {known}")
    found = {group_of[name]: weight for name, weight in weights.items()}
    if len(found) != len(weights):
        raise PredictionError("E508", f"weights name both a group and its only member; {known}")
    missing = sorted(groups.keys() - found.keys())
    if missing:
        raise PredictionError(
            "E508", f"weights must name {len(groups)} groups, got {len(found)}; missing: {enumerate_some(missing)}"
        )
    return found


def _read_group(name: str, value: Mapping[str, Any], labels: LabelSpace) -> Group:
    """Return the group of a JSON value; its weights per class are a list, or an object that may leave classes out."""
    found = value.get("class_weights")
    if found is None:
        return Group(**value)
    if isinstance(found, Mapping):
        unknown = sorted(found.keys() - set(labels.names))
        if unknown:
            raise PredictionError("E518", f"{name} has weights for unknown classes: {enumerate_some(unknown)}")
        found = [found.get(label, value["weight"]) for label in labels.names]
    return Group(**{**value, "class_weights": tuple(float(weight) for weight in found)})


def _in_order(weights: Mapping[str, float]) -> dict[str, float]:
    return dict(sorted(weights.items()))


def _tidy(group: Group) -> Group:
    members = dict(sorted(group.members.items()))
    return replace(group, members=members, views=None if group.views is None else _in_order(group.views))


def _without_none(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that are set; the others are not written."""
    return {key: part for key, part in value.items() if part is not None}
