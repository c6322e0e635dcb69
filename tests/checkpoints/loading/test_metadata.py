"""What a checkpoint says beside its weights is read by its name, whatever it is in."""

from __future__ import annotations

import argparse
import json
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from checkpoints.loading.metadata import Found, Metadata, read_metadata
from checkpoints.loading.pickle_objects import InertObject


def value_of(found: Found[Any] | None) -> Any:
    return None if found is None else found.value


def namespace(**values: object) -> InertObject:
    """An argparse.Namespace as the reader of pickles gives it."""
    return InertObject("argparse.Namespace", attributes=vars(argparse.Namespace(**values)).items())


def test_timms_arguments_are_read() -> None:
    """The arguments of timm's train.py give architecture, pooling, epsilon, size, crop, interpolation, mean and std."""
    found = read_metadata(
        {
            "arch": "resnet18",
            "args": namespace(
                model="resnet18", gp="avgmax", bn_eps=1e-3, img_size=None, input_size=[3, 160, 192], crop_pct=0.9,
                interpolation="bicubic", mean=[0.5, 0.5, 0.5], std=(0.2, 0.2, 0.2), num_classes=7, bn_momentum=0.1,
                model_kwargs={"aa_layer": "blurpc", "drop_rate": 0.2},
            ),
        }
    )  # fmt: skip
    assert [(one.value, one.place) for one in found.archs] == [("resnet18", "args.model"), ("resnet18", "arch")]
    assert {name: one.value for name, one in found.arch_options.items()} == {
        "global_pool": "avgmax",
        "bn_eps": 1e-3,
        "aa_layer": "blurpc",
    }
    assert value_of(found.size) == (160, 192)
    assert value_of(found.crop_pct) == 0.9
    assert value_of(found.interpolation) == "bicubic"
    assert value_of(found.mean) == (0.5, 0.5, 0.5)
    assert value_of(found.std) == (0.2, 0.2, 0.2)
    assert value_of(found.class_count) == 7


def test_what_is_not_set_is_not_found() -> None:
    """None, flags and values that do not have the form of their name are no settings."""
    found = read_metadata({"args": namespace(model=None, gp=None, img_size=True, mean="imagenet", classes=3)})
    assert found == Metadata()


def test_values_without_sense_are_kept_to_be_named() -> None:
    """A negative size and a crop of 87 are no settings, and are listed so that they can be said."""
    found = read_metadata({"hyper_parameters": {"image_size": -3, "crop_pct": 87}, "args": namespace(img_size=None)})
    assert (found.size, found.crop_pct) == (None, None)
    assert [(one.place, one.value) for one in found.unused] == [
        ("hyper_parameters.image_size", -3),
        ("hyper_parameters.crop_pct", 87),
    ]


@pytest.mark.parametrize(
    ("content", "size"),
    [
        ({"hyper_parameters": {"image_size": 224}}, (224, 224)),
        ({"config": {"data": {"img_size": [256, 192]}}}, (256, 192)),
        ({"cfg": json.dumps({"TRAIN": {"IMG-SIZE": 128}})}, (128, 128)),
        ({"hparams": SimpleNamespace(a=1).__dict__ | {"resolution": "160"}}, (160, 160)),
        ({"preprocessor_config.json": {"size": {"height": 96, "width": 64}}}, (96, 64)),
        ({"preprocessor_config.json": {"size": {"shortest_edge": 240}}}, (240, 240)),
        ({"pretrained_cfg": {"input_size": [3, 288, 288]}}, (288, 288)),
        ({"meta": {"size": np.array([64, 80])}}, (64, 80)),
        ({"config": {"image_size": 100_000}}, None),
        ({"config": {"image_size": -1}}, None),
    ],
)
def test_sizes_of_many_forms(content: object, size: tuple[int, int] | None) -> None:
    """A size is a side, two sides, or channels and two sides, as numbers, text, JSON, arrays or transformers' names."""
    assert value_of(read_metadata(content).size) == size


@pytest.mark.parametrize(
    "content",
    [
        {"class_to_idx": {"dog": 1, "cat": 0, "eel": 2}},
        {"classes": ["cat", "dog", "eel"]},
        {"hyper_parameters": {"class_names": ("cat", "dog", "eel")}},
        {"config.json": {"id2label": {"0": "cat", "1": "dog", "2": "eel"}}},
        {"idx_to_class": {0: "cat", 1: "dog", 2: "eel"}},
        {"meta": {"dataset_meta": {"classes": ("cat", "dog", "eel")}}},
        {"dls": {"vocab": np.array(["cat", "dog", "eel"])}},
        {"names": {0: "cat", 1: "dog", 2: "eel"}},
        {"label_encoder": InertObject("sklearn.LabelEncoder", attributes=[("classes_", ["cat", "dog", "eel"])])},
        {"label2id": {"cat": 0, "dog": 1, "eel": 2}, "labels": [0, 1, 1, 2]},
    ],
)
def test_class_names_of_many_forms(content: object) -> None:
    """Lists, arrays and both directions of a dictionary give the names in the order of their numbers."""
    assert value_of(read_metadata(content).classes) == ("cat", "dog", "eel")


@pytest.mark.parametrize(
    "content",
    [{"class_to_idx": {"a": 0, "b": 2}}, {"classes": ["a", "a"]}, {"classes": 5}, {"id2label": {"x": "a", "y": "b"}}],
)
def test_names_without_an_order_are_no_class_names(content: object) -> None:
    """Numbers with a gap, repeated names and other values are left alone."""
    assert read_metadata(content).classes is None


def test_values_for_0_to_255_are_scaled() -> None:
    """A mean above 1.5 is one of channels in 0..255."""
    found = read_metadata({"cfg": {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}})
    assert value_of(found.mean) == pytest.approx((0.485, 0.456, 0.406))
    assert value_of(found.std) == pytest.approx((0.229, 0.224, 0.225))


def test_a_normalization_that_changes_nothing_is_one_where_it_was_chosen() -> None:
    """Lists of zeros and ones are what somebody trained with; buffers of them were never set."""
    found = read_metadata({"args": namespace(mean=[0.0, 0.0, 0.0], std=[1.0, 1.0, 1.0])})
    assert (value_of(found.mean), value_of(found.std)) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    unset = read_metadata({"normalize.mean": np.zeros(3), "normalize.std": np.ones(3)})
    assert (unset.mean, unset.std) == (None, None)


def test_the_crop_of_torchvisions_references_is_read() -> None:
    """Their training script keeps the size before the crop and that of the crop, beside the size in training."""
    found = read_metadata({"args": namespace(val_crop_size=224, val_resize_size=232, train_crop_size=176)})
    assert value_of(found.size) == (224, 224)
    assert math.floor(224 / value_of(found.crop_pct)) == 232


def test_transformers_resample_is_pillows_number() -> None:
    """The number 3 is bicubic, as in PIL.Image."""
    assert value_of(read_metadata({"preprocessor_config.json": {"resample": 3}}).interpolation) == "bicubic"


def processor(kind: str, size: object, **more: object) -> dict[str, object]:
    """A file of transformers' image processor beside the network's own configuration."""
    usual = {"do_resize": True, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.4] * 3, "crop_pct": 0.9}
    mine = {"image_processor_type": f"{kind}ImageProcessor", "size": size, **usual, **more}
    return {"config.json": {"image_size": 224}, "preprocessor_config.json": mine}


BOTH, SHORTER = {"height": 256, "width": 256}, {"shortest_edge": 256}
CROP = {"do_center_crop": True, "crop_size": {"height": 224, "width": 224}}


@pytest.mark.parametrize(
    ("content", "size", "resize", "crop_pct"),
    [
        (processor("ViT", {"height": 224, "width": 224}), (224, 224), "squash", 1.0),
        (processor("ViT", 192), (192, 192), "squash", 1.0),
        (processor("ViT", {"height": 96, "width": 160}), (96, 160), "squash", 1.0),
        (processor("DeiT", BOTH, **CROP), (224, 224), "squash", 0.875),
        (processor("DeiT", 256, do_center_crop=True, crop_size=224), (224, 224), "squash", 0.875),
        (processor("Beit", BOTH, do_center_crop=False, crop_size=224), (256, 256), "squash", 1.0),
        (processor("Bit", SHORTER, **CROP), (224, 224), "center", 0.875),
        (processor("Levit", {"shortest_edge": 224}, **CROP), (224, 224), "center", 0.875),
        (processor("ConvNext", {"shortest_edge": 224}), (224, 224), "center", 0.9),
        (processor("ConvNext", {"shortest_edge": 384}), (384, 384), "squash", 1.0),
        (processor("ConvNext", 224, crop_pct=0.875), (224, 224), "center", 0.875),
        (processor("ViT", 192, do_resize=False), (224, 224), None, 0.9),
        ({"config.json": {"image_size": 224, "crop_pct": 0.9}}, (224, 224), None, 0.9),
    ],
)
def test_an_image_processor_says_how_it_resizes(
    content: object, size: tuple[int, int], resize: str | None, crop_pct: float
) -> None:
    """Both sides, the shorter one, or its size before the crop: each class of transformers has its own way."""
    found = read_metadata(content)
    assert (value_of(found.size), value_of(found.resize), value_of(found.crop_pct)) == (size, resize, crop_pct)


@pytest.mark.parametrize(("inner", "outer"), [(289, 346), (224, 256), (380, 434), (299, 342), (600, 681)])
def test_a_crop_of_an_image_processor_is_exact(inner: int, outer: int) -> None:
    """The share of the crop leads back to the size before it, to the pixel."""
    crop = {"do_center_crop": True, "crop_size": {"height": inner, "width": inner}}
    found = read_metadata(processor("EfficientNet", {"height": outer, "width": outer}, **crop))
    assert value_of(found.size) == (inner, inner)
    assert math.floor(inner / value_of(found.crop_pct)) == outer


@pytest.mark.parametrize(
    ("kind", "more", "low", "high"),
    [
        ("ViT", {}, -1.25, 1.25),
        ("ViT", {"do_normalize": False}, 0, 1),
        ("EfficientNet", {}, -1.25 / 0.4, 1.25 / 0.4),
        ("EfficientNet", {"include_top": False}, -1.25, 1.25),
        ("EfficientNet", {"rescale_offset": True, "rescale_factor": 1 / 127.5}, -1.5 / 0.16, 0.5 / 0.16),
        (
            "EfficientNet",
            {"rescale_offset": True, "rescale_factor": 1 / 127.5, "do_normalize": False},
            -1 / 0.4,
            1 / 0.4,
        ),
    ],
)
def test_an_image_processor_says_how_it_normalizes(kind: str, more: dict[str, Any], low: float, high: float) -> None:
    """Black and white become what the class of transformers makes of them: EfficientNet's divides twice."""
    found = read_metadata(processor(kind, 224, **more))
    mean, std = value_of(found.mean)[0], value_of(found.std)[0]
    assert ((0 - mean) / std, (1 - mean) / std) == pytest.approx((low, high))


def test_a_config_of_omegaconf_is_read() -> None:
    """OmegaConf keeps the values of a DictConfig in nodes."""
    node = InertObject("omegaconf.nodes.AnyNode", attributes=[("_val", 192)])
    config = InertObject("omegaconf.dictconfig.DictConfig", attributes=[("_content", {"img_size": node})])
    assert value_of(read_metadata({"config": config}).size) == (192, 192)
