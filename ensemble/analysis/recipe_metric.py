"""The contest metric that a recipe is scored by: the one it was learned for, where it names one that can be used."""

from __future__ import annotations

from ensemble.blend.recipe import Recipe
from ensemble.events import SILENT, Listener, Notice
from ensemble.learn.objective import METRICS

_ALWAYS_SHOWN = {
    "softmax": "macro F1, accuracy, NLL and ECE",
    "sigmoid": "macro, micro and sample F1, mean average precision and mean ROC AUC",
}
_SHOWN = {"softmax": {"macro-f1", "accuracy", "nll"}, "sigmoid": {"macro-f1"}}
_OF_AXES = ("accuracy:",)


def metrics_of(recipe: Recipe, named: tuple[str, ...], *, listener: Listener = SILENT) -> tuple[str, ...]:
    """Return the metrics to score by: those that are named, or else the one that the recipe was learned for.

    I594 says which it is, and why it is not the recipe's own: its weights were given, it is of one axis, or it is a
    function of a user, which is run only where it is named.
    """
    learned = (recipe.learned or {}).get("metric")
    metrics, message = _choose(learned, named, recipe.activation)
    listener.notice(Notice("I594", message))
    return metrics


def _choose(learned: str | None, named: tuple[str, ...], activation: str) -> tuple[tuple[str, ...], str]:
    always = f"the scores are {_ALWAYS_SHOWN[activation]}, which are always shown; --metric names others"
    if named:
        own = "names no metric" if learned is None else f"was learned for {learned}"
        return named, f"scored by {', '.join(named)}, which --metric names; the recipe {own}"
    if learned is None:
        return (), f"the recipe names no metric, as none was learned for: {always}"
    if ".py" in learned:
        reason = "a function of yours, which is run only if --metric names it"
        return (), f"the recipe was learned for {learned}, {reason}: {always}"
    if learned in _SHOWN[activation] or (activation == "softmax" and learned.startswith(_OF_AXES)):
        return (), f"scored by {learned}, which the recipe was learned for and which is always shown"
    if ":" in learned and learned.partition(":")[0] in METRICS:
        return (), f"the recipe was learned for {learned}, a metric of one axis, which is not scored here: {always}"
    return (learned,), f"scored by {learned}, which the recipe was learned for"
