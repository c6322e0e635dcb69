"""Maps are Grad-CAM's, wherever the head is linear, and pictures show them over what the model sees."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image, ImageColor

from checkpoints.loading.open import build_model
from ensemble.__main__ import run
from ensemble.analysis.cam import Classifier, find_classifier
from ensemble.analysis.explain import Explained, Explanations, explain, find_class, list_given
from ensemble.analysis.html import PALETTE
from ensemble.analysis.overlay import COLUMNS, color_heat, draw_pair, draw_sheet
from ensemble.card import METADATA_KEY, Activation, FaceCrop, ModelCard, Precision, Preprocess
from ensemble.errors import DataError, ModelError, OptionError
from ensemble.events import Recorder
from ensemble.images.face_boxes import Box, Boxes, Face, write_boxes
from ensemble.labels import MASK18, Axis, LabelSpace
from ensemble.runtime.model_file import FEATURES, read_model
from ensemble.runtime.session import start_session
from exporters.export import ExportOptions, export
from tests.support import toys
from tests.support.networks import make_checkpoint
from tests.test_light import ens

pytestmark = pytest.mark.slow

PAPER = ImageColor.getrgb("#fbfaf7")
COLORS = LabelSpace.flat(["red", "green", "blue"])
SIZE = (32, 24)


class Network(NamedTuple):
    """A network of timm's, and the file it was exported to."""

    model: Any
    path: Path


@pytest.fixture(scope="module", params=["test_resnet", "test_efficientnet"])
def network(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Network:
    checkpoint = make_checkpoint(request.param, name=f"{request.param}.pth")
    options = ExportOptions(labels=MASK18, size=(64, 64), features=True)
    done = export(checkpoint, tmp_path_factory.mktemp("models"), options=options)
    return Network(build_model(checkpoint).eval(), done.path)


def pictures(count: int = 3, size: tuple[int, int] = (64, 64)) -> NDArray[np.uint8]:
    return np.stack([toys.picture(seed, size=size) for seed in range(count)])


def grad_cam(model: Any, card: ModelCard, pixels: NDArray[np.uint8], classes: list[int]) -> torch.Tensor:
    """Selvaraju et al. 2017, equations 1 and 2, before the ReLU: gradients by autograd, averaged over each map."""
    planes = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (card.mean, card.std))
    features = model.forward_features((planes - mean) / std)
    logits = model.forward_head(features)
    chosen = logits[torch.arange(len(classes)), classes].sum()
    (gradient,) = torch.autograd.grad(chosen, features)
    maps: torch.Tensor = (gradient.mean(dim=(2, 3), keepdim=True) * features).sum(dim=1)
    return maps.detach()


def our_maps(path: Path, pixels: NDArray[np.uint8], classes: list[int]) -> NDArray[np.float64]:
    classifier, session = find_classifier(read_model(path)), start_session(read_model(path))
    features = session.run(pixels, output=FEATURES)
    classifier.require_explains(features, session.run(pixels))
    return classifier.maps(features, np.array(classes))


def test_a_map_is_grad_cam_up_to_one_positive_factor(network: Network) -> None:
    """onnxruntime's map is torch's Grad-CAM times the number of a map's cells, with the ReLU and without it."""
    pixels, classes = pictures(18), list(range(18))
    expected = grad_cam(network.model, read_model(network.path).card, pixels, classes).numpy()
    found = our_maps(network.path, pixels, classes)
    cells = found.shape[1] * found.shape[2]
    assert cells >= 4
    assert (expected < 0).any()
    assert (expected > 0).any()
    limit = 1e-4 * np.abs(found).max()
    np.testing.assert_allclose(found, expected * cells, rtol=1e-4, atol=limit)
    np.testing.assert_allclose(np.maximum(found, 0), np.maximum(expected, 0) * cells, rtol=1e-4, atol=limit)


def test_the_mean_of_a_map_is_the_logit_less_the_bias(network: Network) -> None:
    """What the cells of a map show is averaged to the class's logit, but for the constant bias."""
    pixels, classes = pictures(), [3, 3, 4]
    bias = find_classifier(read_model(network.path)).bias
    logits = start_session(read_model(network.path)).run(pixels)
    means = our_maps(network.path, pixels, classes).mean(axis=(1, 2))
    np.testing.assert_allclose(means + bias[classes], logits[np.arange(3), classes], rtol=1e-3, atol=1e-4)


def color_model(
    folder: Path,
    *,
    head: str = "gemm",
    labels: LabelSpace = COLORS,
    face: FaceCrop | None = None,
    activation: Activation = "softmax",
) -> Path:
    """A model whose features are the averages of red, green and blue over 4 x 4 px, and whose classes weigh them."""
    precision: Precision = "fp16" if head == "half" else "fp32"
    preprocess = Preprocess(SIZE, face=face)
    card = replace(toys.CARD, member=head, labels=labels, preprocess=preprocess, precision=precision)
    card = replace(card, activation=activation)
    weights = np.eye(3, len(labels), dtype=np.float32) * 8 if labels == COLORS else axis_weights(labels)
    bias = np.linspace(-0.1, 0.1, weights.shape[1], dtype=np.float32)
    stored = {
        "scale": np.array(1 / 255, dtype=np.float32),
        "sides": np.array([2, 3]),
        "flat": np.array([0, 3]),
        "weights": weights.T if head == "transposed" else weights,
        "bias": bias,
        "sizes": np.array([len(axis.values) for axis in labels.axes]),
        "last": np.array([2]),
        "first": np.array([1]),
        "classes": np.array([0, len(labels)]),
        "ones": np.ones(3, dtype=np.float32),
        "half_weights": weights.astype(np.float16),
        "half_bias": bias.astype(np.float16),
    }
    node = helper.make_node
    nodes = [
        node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        node("Mul", ["float", "scale"], ["scaled"]),
        node("Transpose", ["scaled"], ["planes"], perm=[0, 3, 1, 2]),
        node("AveragePool", ["planes"], [FEATURES], kernel_shape=[4, 4], strides=[4, 4]),
        node("ReduceMean", [FEATURES, "sides"], ["mean"], keepdims=1),
        node("Reshape", ["mean", "flat"], ["pooled"]),
    ]
    nodes += {
        "gemm": [node("Gemm", ["pooled", "weights", "bias"], ["logits"])],
        "transposed": [node("Gemm", ["pooled", "weights", "bias"], ["logits"], transB=1)],
        "matmul": [node("MatMul", ["pooled", "weights"], ["product"]), node("Add", ["bias", "product"], ["logits"])],
        "half": [
            node("Cast", ["pooled"], ["half"], to=TensorProto.FLOAT16),
            node("Gemm", ["half", "half_weights", "half_bias"], ["z"]),
            node("Cast", ["z"], ["logits"], to=TensorProto.FLOAT),
        ],
        "normalized": [
            node("LayerNormalization", ["pooled", "ones"], ["normal"], axis=-1),
            node("Gemm", ["normal", "weights", "bias"], ["logits"]),
        ],
        "doubled": [node("Gemm", ["pooled", "weights", "bias"], ["logits"], alpha=2.0)],
        "nonlinear": [node("Gemm", ["pooled", "weights", "bias"], ["z"]), node("Relu", ["z"], ["logits"])],
        "axes": [
            node("Gemm", ["pooled", "weights", "bias"], ["z"]),
            node("Split", ["z", "sizes"], ["z0", "z1"], axis=1),
            node("LogSoftmax", ["z0"], ["l0"], axis=1),
            node("LogSoftmax", ["z1"], ["l1"], axis=1),
            node("Unsqueeze", ["l0", "last"], ["u0"]),
            node("Unsqueeze", ["l1", "first"], ["u1"]),
            node("Add", ["u0", "u1"], ["sum"]),
            node("Reshape", ["sum", "classes"], ["logits"]),
        ],
    }[head]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        head,
        [value("image", TensorProto.UINT8, ["batch", *SIZE, 3])],
        [
            value("logits", TensorProto.FLOAT, ["batch", len(labels)]),
            value(FEATURES, TensorProto.FLOAT, ["batch", 3, SIZE[0] // 4, SIZE[1] // 4]),
        ],
        [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in stored.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {METADATA_KEY: card.to_json()})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{head}.onnx").write_bytes(model.SerializeToString())
    return folder / f"{head}.onnx"


def axis_weights(labels: LabelSpace) -> NDArray[np.float32]:
    shape = (3, sum(labels.shape))
    return np.random.default_rng(0).normal(0, 4, shape).astype(np.float32)


def patch(
    path: Path,
    color: tuple[int, int, int],
    *,
    at: tuple[int, int] = (0, 0),
    around: tuple[int, int, int] = (40, 40, 40),
) -> Path:
    """A grey picture of 64 x 48 px with a patch of 16 x 16 px; ``at`` is its top left corner (x, y)."""
    image = Image.new("RGB", (48, 64), around)
    image.paste(color, (at[0], at[1], at[0] + 16, at[1] + 16))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, "PNG")
    return path


def classifier_of(path: Path) -> Classifier:
    return find_classifier(read_model(path))


def picture_of(found: Explained) -> NDArray[np.uint8]:
    with Image.open(found.path) as image:
        return np.asarray(image)


def explained(folder: Path, *arguments: Path, **options: Any) -> Explanations:
    return explain(arguments[0], arguments[1:], folder, device="cpu", **options)


@pytest.mark.parametrize("head", ["gemm", "transposed", "matmul", "half"])
def test_the_weights_are_found_in_every_form(tmp_path: Path, head: str) -> None:
    """A Gemm, a transposed one, one in fp16, and a MatMul with an addition give the weights that were written."""
    path = color_model(tmp_path, head=head)
    found = classifier_of(path)
    maps = our_maps(path, pictures(3, SIZE), [0, 1, 2])
    expected = start_session(read_model(path)).run(pictures(3, SIZE), output=FEATURES)[np.arange(3), np.arange(3)] * 8
    np.testing.assert_allclose(maps, expected, rtol=1e-6)
    np.testing.assert_array_equal(found.weights, np.eye(3) * 8)
    np.testing.assert_allclose(found.bias, [-0.1, 0, 0.1], atol=1e-4)


def test_with_a_head_for_each_axis_a_class_sums_its_values(tmp_path: Path) -> None:
    """The map of a class is the sum of those of its values, even where axes and classes have as many scores."""
    labels = LabelSpace((Axis("mask", ("yes", "no")), Axis("age", ("young", "old"))))
    path = color_model(tmp_path, head="axes", labels=labels)
    pixels = pictures(4, SIZE)
    found = our_maps(path, pixels, [0, 1, 2, 3])
    features = start_session(read_model(path)).run(pixels, output=FEATURES)
    weights = axis_weights(labels)
    for image, (mask, age) in enumerate([(0, 2), (0, 3), (1, 2), (1, 3)]):
        values = [np.tensordot(weights[:, score], features[image], axes=1) for score in (mask, age)]
        np.testing.assert_allclose(found[image], values[0] + values[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("head", ["normalized", "doubled", "nonlinear"])
def test_another_head_is_refused(tmp_path: Path, head: str) -> None:
    """What lies between features and logits and is not average and linear layer is E432, by its form or its values."""
    path = color_model(tmp_path, head=head)
    image = patch(tmp_path / "a.png", (250, 40, 40))
    with pytest.raises(ModelError, match=r"E432.*averaged features"):
        explained(tmp_path / "out", path, image)
    assert not list((tmp_path / "out").rglob("*.png"))


def test_a_model_without_features_is_refused(tmp_path: Path) -> None:
    """A model that was exported without --features is E431, whose hint names the option."""
    with pytest.raises(ModelError, match="E431") as caught:
        explained(tmp_path / "out", toys.write_model(tmp_path), patch(tmp_path / "a.png", (250, 40, 40)))
    assert "--features" in caught.value.hint


def test_the_warmest_place_is_where_the_class_is(tmp_path: Path) -> None:
    """The picture of a red patch is predicted red, and its lightest place under the heat is the patch."""
    path = color_model(tmp_path)
    image = patch(tmp_path / "images" / "a.png", (255, 40, 40), at=(32, 48))
    (found,) = explained(tmp_path / "out", path, image).images
    assert found.class_name == found.predicted == "red"
    assert found.path == tmp_path / "out" / "a.png.png"
    assert len(picture_of(found)) > 320  # the caption is below
    drawn = picture_of(found)[:320, -240:].astype(float).mean(axis=2)
    y, x = np.unravel_index(drawn.argmax(), drawn.shape)
    assert x > 160
    assert y > 240
    assert drawn[y, x] > 2 * drawn[:160, :120].max()


def test_a_class_that_is_asked_for_is_explained(tmp_path: Path) -> None:
    """--class takes a name or an index, and the answer keeps both that class with its probability and the predicted."""
    path = color_model(tmp_path)
    image = patch(tmp_path / "a.png", (255, 40, 40))
    asked = [explained(tmp_path / name, path, image, target=name).images[0] for name in ("blue", "2")]
    assert {(one.class_name, one.predicted) for one in asked} == {("blue", "red")}
    assert asked[0].path.read_bytes() == asked[1].path.read_bytes()
    assert asked[0].probability < explained(tmp_path / "out", path, image).images[0].probability
    with pytest.raises(OptionError, match="E204") as caught:
        explained(tmp_path / "out", path, image, target="violet")
    assert "0 red, 1 green, 2 blue" in caught.value.hint


def test_every_label_that_applies_has_a_map(tmp_path: Path) -> None:
    """Of independent labels all above 0.5 are drawn, with their own probabilities; one that is asked for alone."""
    path = color_model(tmp_path, activation="sigmoid")
    image = patch(tmp_path / "a.png", (255, 255, 40))
    found = explained(tmp_path / "out", path, image).images
    drawn = [one.class_name for one in found]
    assert {"red", "green"} <= set(drawn)
    assert all(one.probability >= 0.5 for one in found)
    assert len({one.path for one in found}) == len(found)
    assert [one.path.name for one in found][:2] == ["a.png.0-red.png", "a.png.1-green.png"]
    assert all(one.path.is_file() for one in found)
    (only,) = explained(tmp_path / "one", path, image, target="blue").images
    assert (only.class_name, only.path.name) == ("blue", "a.png.png")


def test_names_of_classes_come_before_their_indices() -> None:
    """Where a class is called "0" and is not the first, "0" is that class."""
    assert find_class("0", LabelSpace.flat(["1", "0"])) == 1
    assert find_class("1", LabelSpace.flat(["a", "b"])) == 1
    with pytest.raises(OptionError, match="E204"):
        find_class("2", LabelSpace.flat(["a", "b"]))


def test_the_share_on_the_face_is_that_of_the_box(tmp_path: Path) -> None:
    """All evidence lies in a box around the patch, little in one elsewhere, and without a box there is no share."""
    path = color_model(tmp_path)
    # black beside the patch: nothing else speaks for red
    images = [patch(tmp_path / "images" / f"{i}.png", (255, 0, 0), around=(0, 0, 0)) for i in range(3)]
    boxes = Boxes({"0.png": Box(0, 0, 24, 24), "1.png": Box(24, 32, 48, 64), "2.png": None})
    on, off, none = explained(tmp_path / "out", path, *images, boxes=boxes).images
    assert on.on_face is not None
    assert off.on_face is not None
    assert on.on_face > 0.99
    assert off.on_face < 0.01
    assert (on.face_area, off.face_area) == (24 * 24 / (48 * 64), 0.25)
    assert (none.on_face, none.face_area) == (None, None)


def test_face_crops_need_boxes_and_show_the_crop(tmp_path: Path) -> None:
    """A model of face crops is E206 without boxes; with them the picture shows the crop alone, as the model sees it."""
    path = color_model(tmp_path, face=FaceCrop(0.0))
    image = patch(tmp_path / "images" / "a.png", (255, 40, 40), at=(16, 16))
    with pytest.raises(OptionError, match="E206"):
        explained(tmp_path / "out", path, image)
    (found,) = explained(tmp_path / "out", path, image, boxes=Boxes({"images/a.png": Box(16, 16, 32, 32)})).images
    seen = picture_of(found)[:320, :240].astype(int)
    assert np.abs(seen - (255, 40, 40)).max() <= 1
    assert found.face_area == 1.0


def test_one_bad_image_does_not_end_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Broken and missing files are named with status 3, and all other images are drawn."""
    path = color_model(tmp_path)
    patch(tmp_path / "images" / "a.png", (255, 40, 40))
    (tmp_path / "images" / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    patch(tmp_path / "images" / "c.png", (40, 255, 40))
    names = [f"{tmp_path / 'images'}", f"{tmp_path / 'gone.jpg'}"]
    out = tmp_path / "out"
    assert run(["explain", f"{path}", *names, "-o", f"{out}", "--device", "cpu"]) == 3
    errors = capsys.readouterr().err
    assert "error[E326] 2 of 4" in errors
    assert "gone.jpg" in errors
    assert sorted(p.name for p in out.rglob("*.png")) == ["a.png.png", "c.png.png", "sheet-001.png"]
    assert "images/b.png" in (out / "errors.csv").read_text()


def test_a_second_run_leaves_the_same_bytes_and_no_old_sheets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One image more than a sheet holds begins a second; explaining them again changes nothing, and explaining one
    leaves one sheet.
    """
    monkeypatch.setattr("ensemble.analysis.explain.ROWS", 1)
    path, out = color_model(tmp_path), tmp_path / "out"
    images = [patch(tmp_path / "images" / f"{i:02d}.png", (255, 10 * i, 40)) for i in range(COLUMNS + 1)]
    first = explained(out, path, tmp_path / "images")
    assert [sheet.name for sheet in first.sheets] == ["sheet-001.png", "sheet-002.png"]
    before = {file: file.read_bytes() for file in out.rglob("*.png")}
    explained(out, path, tmp_path / "images")
    assert {file: file.read_bytes() for file in out.rglob("*.png")} == before
    explained(out, path, images[0])
    assert [sheet.name for sheet in sorted(out.glob("sheet-*"))] == ["sheet-001.png"]


def test_any_name_can_be_drawn(tmp_path: Path) -> None:
    """Letters that the font lacks, line breaks and very long names neither stop the run nor widen the picture."""
    labels = LabelSpace.flat(["빨강", "초록 " * 60, "é\n"])
    model = onnx.load(color_model(tmp_path))
    card = replace(toys.CARD, member="kr", labels=labels, preprocess=Preprocess(SIZE))
    helper.set_model_props(model, {METADATA_KEY: card.to_json()})
    onnx.save(model, tmp_path / "kr.onnx")
    images = [patch(tmp_path / "images" / f"김{i}.png", c) for i, c in enumerate([(255, 0, 0), (0, 255, 0)])]
    found = explained(tmp_path / "out", tmp_path / "kr.onnx", *images)
    assert [one.class_name for one in found.images] == ["빨강", "초록 " * 60]
    assert len({picture_of(one).shape for one in found.images}) == 1


def colors_of(image: Image.Image) -> set[tuple[int, ...]]:
    return {tuple(color) for color in np.asarray(image).reshape(-1, 3).tolist()}


def test_sheets_and_pictures_have_a_scale_and_say_which_answers_are_right() -> None:
    """The colors of right and wrong answers are those of the report, and a legend names both; without a truth
    neither is there. Pictures have an axis, sheets a title.
    """
    pixels, heat = np.full((32, 24, 3), 90, np.uint8), np.zeros((8, 6))
    accent, second = ImageColor.getrgb("#0067a5"), ImageColor.getrgb("#b84a00")
    assert f"--accent: #{bytes(accent).hex()}; --second: #{bytes(second).hex()}" in PALETTE
    tiles = [draw_pair(pixels, heat, ["class"], small=True, right=right) for right in (True, False, None)]
    assert [(accent in colors_of(one), second in colors_of(one)) for one in tiles] == [
        (True, False),
        (False, True),
        (False, False),
    ]
    plain, known = draw_sheet(tiles[2:], "net"), draw_sheet(tiles[2:], "net", answers=True)
    assert {accent, second} <= colors_of(known)
    assert not {accent, second} & colors_of(plain)
    scale = {tuple(color) for color in color_heat(np.linspace(0, 1, 160)[None])[0].tolist()}
    large = draw_pair(pixels, heat, ["class"])
    assert scale <= colors_of(plain) & colors_of(large)
    assert not scale <= colors_of(tiles[2])
    title = [np.asarray(draw_sheet(tiles[2:], text))[:26] for text in ("", "net")]
    assert (title[0] == PAPER).all()
    assert (title[1] != PAPER).any()
    axis = np.asarray(large)[320:340]  # below both images, down to the caption
    assert (axis[:, :30] != PAPER).any()
    assert (axis[:, -40:] != PAPER).any()


def test_a_caption_stays_inside_the_picture() -> None:
    """The last pixels of each line of a long caption are paper, and different ends are still told apart."""
    tiles = [
        draw_pair(np.zeros((32, 24, 3), np.uint8), np.zeros((8, 6)), ["x" * 500 + end], small=True) for end in "ab"
    ]
    below = [np.asarray(tile)[160:] for tile in tiles]
    assert (below[0][:, -1] == PAPER).all()
    assert (below[0] != below[1]).any()


def test_warmer_is_lighter() -> None:
    """The colors' luminance (Rec. 709) rises with the heat at every step, so that grey prints can be read."""
    luminance = color_heat(np.linspace(0, 1, 101)[None])[0] @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance) > 0).all()


def test_same_names_in_two_folders_are_two_images(tmp_path: Path) -> None:
    """Files named alike keep as much of their path as tells them apart, and find boxes that are named in full."""
    images = [patch(tmp_path / "train" / person / "mask1.png", (255, 0, 0)) for person in ("1_kim", "2_lee")]
    assert list_given(images).ids == ("1_kim/mask1.png", "2_lee/mask1.png")
    assert list_given([images[0], images[0]]).ids == ("mask1.png",)
    boxes = Boxes({"1_kim/mask1.png": Box(0, 0, 24, 24)})
    (found,) = explained(tmp_path / "out", color_model(tmp_path), images[0], boxes=boxes).images
    assert found.face_area is not None
    with pytest.raises(DataError, match=r"E351.*2_lee"):
        explained(tmp_path / "out", color_model(tmp_path), *images, boxes=boxes)


def test_an_image_is_never_replaced_by_its_picture(tmp_path: Path) -> None:
    """With -o where the images are, one that is named like another's picture is E204 and keeps its bytes."""
    images = [patch(tmp_path / "images" / name, (255, 0, 0)) for name in ("a.png", "a.png.png")]
    before = images[1].read_bytes()
    with pytest.raises(OptionError, match="E204"):
        explained(tmp_path / "images", color_model(tmp_path), tmp_path / "images")
    assert images[1].read_bytes() == before


def test_the_command_explains_without_torch(tmp_path: Path) -> None:
    """Where torch cannot be imported, the command draws, and its JSON has what was asked for."""
    path = color_model(tmp_path)
    patch(tmp_path / "images" / "a.png", (255, 40, 40))
    boxes = write_boxes(tmp_path / "boxes.parquet", [Face("a.png", Box(0, 0, 24, 24), 1.0, 1, "first", 48, 64)])
    out = tmp_path / "out"
    arguments: list[str | Path] = ["explain", path, tmp_path / "images", "-o", out, "--boxes", boxes, "--device", "cpu"]
    assert "of the evidence is on the face" in ens(*arguments).stdout
    done = ens(*arguments, "--class", "red", "--json")
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)["images"]
    assert found["image"] == "a.png"
    assert found["class_name"] == found["predicted"] == "red"
    assert Path(found["path"]).is_file()
    assert 0 < found["face_area"] < found["on_face"] <= 1


def test_the_true_class_stands_below_the_answer(tmp_path: Path) -> None:
    """Ids of the truth may have folders; an image that it lacks is named, and the pictures have one line more."""
    path, out = color_model(tmp_path), tmp_path / "out"
    for name, color in (("a.png", (255, 40, 40)), ("b.png", (40, 255, 40)), ("c.png", (40, 40, 255))):
        patch(tmp_path / "images" / name, color)
    truth = tmp_path / "truth.csv"
    truth.write_text("ImageID,ans\nset/a.png,0\nset/b.png,2\n")
    heard = Recorder()
    done = explain(path, [tmp_path / "images"], out, truth=truth, device="cpu", listener=heard)
    assert {one.image: one.truth for one in done.images} == {"a.png": "red", "b.png": "blue", "c.png": None}
    assert [one.predicted for one in done.images][:2] == ["red", "green"]
    assert [one.code for one in heard.notices] == ["W590"]
    assert "1 of 3 images are not in truth.csv: c.png" in heard.notices[0].message
    plain = explain(path, [tmp_path / "images"], tmp_path / "plain", device="cpu")
    heights = []
    for found in (done, plain):
        with Image.open(found.images[0].path) as picture:
            heights.append(picture.height)
    assert heights[0] == heights[1] + 20
