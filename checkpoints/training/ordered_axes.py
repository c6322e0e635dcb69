"""Axes of the label space whose values are in order: ages, grades, severities."""

from __future__ import annotations

from dataclasses import replace

from checkpoints.training.label_distribution import parse_spread, require_valid_spreads
from checkpoints.training.settings import TrainSettings
from ensemble.card import Activation
from ensemble.events import Listener, Notice
from ensemble.labels import LabelSpace
from ensemble.ordinal import describe_order, require_ordinal


def require_valid_ordinal(settings: TrainSettings) -> None:
    """Check that the ordinal axes are axes of the classes with three values or more, and have a head of their own.

    Raises:
        OptionError: E204 when they are not.
    """
    require_ordinal(settings.labels, settings.ordinal, head=settings.head, activation=settings.activation)


def fit_classes(
    settings: TrainSettings, labels: LabelSpace, activation: Activation, *, listener: Listener
) -> TrainSettings:
    """Return the settings with the classes, and say the order of the values of each ordered axis (I472).

    Raises:
        OptionError: E204 as `require_valid_ordinal` and `require_valid_spreads`.
    """
    settings = replace(settings, labels=labels, activation=activation)
    require_valid_ordinal(settings)
    require_valid_spreads(settings)
    ordered = {*settings.ordinal, *(parse_spread(text).axis for text in settings.label_distribution)}
    for axis in settings.labels.axes:
        if axis.name in ordered:
            order = describe_order(axis)
            listener.notice(Notice("I472", f"the values of {axis.name} are in the order of the classes: {order}"))
    return settings
