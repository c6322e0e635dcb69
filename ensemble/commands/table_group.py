"""The options of `ens data` and `ens train` that say how to read a table of labels."""

from __future__ import annotations

from functools import partial

import click

from checkpoints.data.table_options import NONE, SEPARATORS, TableOptions
from ensemble.commands.option_groups import OptionGroup, field_option
from ensemble.commands.options import PATH

_field = partial(field_option, TableOptions)
TABLE = OptionGroup(
    "Table of labels",
    (
        _field("images", "Folder of the images.  [default: that of the table]", type=PATH),
        _field("id_column", "Column with the image's name or path.  [default: recognized]"),
        _field(
            "label_columns",
            "Column with the label; repeat it for one column of 0 and 1 per label.  [default: recognized]",
            flag="--label-column",
        ),
        _field("group_column", "Column whose values no two folds share, or none.  [default: person, patient, ...]"),
        _field("fold_column", "Column with the fold of each image, or none.  [default: fold, kfold]"),
        _field(
            "separator",
            "Separator of several labels in a cell.  [default: recognized]",
            flag="--label-separator",
            type=click.Choice([*SEPARATORS, NONE]),
        ),
        _field(
            "activation",
            "One class per image (softmax), or any number of labels (sigmoid).  [default: as the table has it]",
            type=click.Choice(["softmax", "sigmoid"]),
        ),
        click.Option(
            ["--labels", "class_names"],  # `labels` is a field of the settings
            help="Classes: mask18, a number, or a file of names (JSON, CSV or one per line).  [default: sorted names]",
        ),
    ),
)
