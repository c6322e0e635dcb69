"""Images that cannot be read: what becomes of them is said, shown everywhere, and can be decided anew for nothing."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from ensemble.analysis.evaluate import evaluate
from ensemble.analysis.report import report
from ensemble.blend.blend import blend
from ensemble.blend.pooling import parse_pool
from ensemble.blend.recipe import Group, Recipe, make_recipe
from ensemble.cli import ens
from ensemble.errors import DataError, OptionError, PredictionError
from ensemble.events import Recorder
from ensemble.images.views import parse_views
from ensemble.labels import MASK18
from ensemble.predict.bad_images import OnBadImage, log_prior
from ensemble.predict.options import RunOptions
from ensemble.predict.predict import RUN, predict
from ensemble.predict.result import Predicted
from ensemble.predictions.dataset import COMPLETE, FILLED, hash_ids, part_path, read_part, read_predictions
from ensemble.predictions.members import CommonImages, common_images
from ensemble.predictions.out_of_fold import gather_folds
from ensemble.predictions.truth import Truth, read_truth
from ensemble.submission.sheet import AnswerSheet
from ensemble.submit.destination import Destination
from ensemble.submit.submit import EarlyExit, submit
from tests.support import toys
from tests.support.members import draw_logits, make_member
from tests.support.runs import run_submit

predict_module = importlib.import_module("ensemble.predict.predict")

pytestmark = pytest.mark.usefixtures("small_parts")

NAMES = [f"{i:02d}.jpg" for i in range(21)]
BAD = ("03.jpg", "17.jpg")
GOOD = tuple(name for name in NAMES if name not in BAD)
COUNTS = tuple(range(18))
RECIPE = Recipe(
    pool=parse_pool("linear"),
    views={"identity": 2.0, "hflip": 1.0},
    groups={"a": Group(3.0, {"a": ""}), "b": Group(1.0, {"b": ""})},
    labels=MASK18,
)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Twenty-one pictures, of which two cannot be read: one in the first part, one in the last."""
    toys.write_pictures(tmp_path / "images", NAMES)
    for name in BAD:
        (tmp_path / "images" / name).write_bytes(toys.encode(toys.picture(0))[:300])
    return tmp_path / "images"


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    """Two models; the card of the first knows the mix of classes in its training data."""
    cards = [replace(toys.card("a"), class_counts=COUNTS), toys.card("b", size=(20, 24))]
    return [toys.write_model(tmp_path / "models", card, seed=seed) for seed, card in enumerate(cards)]


def run(tmp_path: Path, policy: OnBadImage, *, to: str = "out", listener: Recorder | None = None) -> Predicted:
    """Predict the pictures with both models."""
    models = sorted((tmp_path / "models").glob("*.onnx"))
    return predict(
        models,
        tmp_path / "images",
        tmp_path / to,
        views=parse_views("hflip"),
        options=RunOptions(device="cpu", on_bad_image=policy, listener=listener or Recorder()),
    )


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but for records of what ran, and locks."""
    kept = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in {RUN, ".lock"}]
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept}


def mend(images: Path) -> None:
    """Write the pictures that were damaged."""
    for name in BAD:
        (images / name).write_bytes(toys.encode(toys.picture(NAMES.index(name))))


def test_skip_leaves_the_rows_out_and_says_so(tmp_path: Path, images: Path, models: list[Path]) -> None:
    """The predictions are finished with all other rows; notice, summary, JSON and record name what is missing."""
    recorder = Recorder()
    done = run(tmp_path, "skip", listener=recorder)
    assert (done.filled, done.missing) == ((), BAD)
    assert "2 images missing: 03.jpg, 17.jpg" in done.render()
    assert done.as_dict()["missing"] == BAD
    assert [(notice.code, "left out" in notice.message) for notice in recorder.notices] == [("W326", True)]
    for member in ("a", "b"):
        found = read_predictions(tmp_path / "out" / member)
        assert (found.ids, found.missing, found.filled) == (GOOD, BAD, ())
        record = json.loads((tmp_path / "out" / member / RUN).read_text())
        assert (record["missing"], record["notices"][0]["code"]) == (list(BAD), "W326")
    assert [line[:11] for line in (tmp_path / "out/errors.csv").read_text().splitlines()[1:]] == [
        "03.jpg,E301",
        "17.jpg,E301",
    ]


def test_fill_gives_the_class_prior_and_flags_it(tmp_path: Path, images: Path, models: list[Path]) -> None:
    """Filled rows are the log of the mix of classes where the card knows it, each class counted once more, else of a
    uniform one; which it is is said. All other rows are those of a run that skips.
    """
    recorder = Recorder()
    done = run(tmp_path, "fill", listener=recorder)
    assert (done.filled, done.missing) == (BAD, ())
    (notice,) = recorder.notices
    assert notice.code == "W326"
    assert "the mix of classes in training (a); uniform, as the card knows no mix of classes (b)" in notice.message
    run(tmp_path, "skip", to="skipped")
    for member, prior in (("a", (np.array(COUNTS) + 1) / (sum(COUNTS) + 18)), ("b", np.full(18, 1 / 18))):
        found, skipped = (read_predictions(tmp_path / folder / member) for folder in ("out", "skipped"))
        assert (found.filled, found.missing) == (BAD, ())
        assert sorted(found.ids) == NAMES
        for view in ("identity", "hflip"):
            row = dict(zip(found.ids, found.logits[view], strict=True))
            assert all(np.allclose(np.exp(row[name]), prior, atol=1e-6) for name in BAD)
            assert np.array_equal([row[name] for name in GOOD], skipped.logits[view])


def test_parquet_readers_see_the_flag(tmp_path: Path, images: Path, models: list[Path]) -> None:
    """The whole folder, opened as it is, has the column: true for filled rows, and nothing for the others."""
    run(tmp_path, "fill")
    table = pq.read_table(tmp_path / "out" / "a")
    assert set(table.column_names) == {"id", "identity", "hflip", "filled"}
    flags = dict(zip(table.column("id").to_pylist(), table.column("filled").to_pylist(), strict=True))
    assert {name: bool(flag) for name, flag in flags.items()} == {name: name in BAD for name in NAMES}
    run(tmp_path, "skip")
    assert pq.read_table(tmp_path / "out" / "a").column_names == ["id", "identity", "hflip"]


@pytest.mark.slow
def test_the_policy_changes_without_computing(
    tmp_path: Path, images: Path, models: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From fail to skip, fill and back no model starts; each ends with the files that it leaves from the start; and
    mended, only the parts concerned are done again, to the files of images that were good from the start.
    """
    policies: tuple[OnBadImage, ...] = ("skip", "fill", "fill", "skip")
    for policy in policies[:2]:
        run(tmp_path, policy, to=policy)
    with pytest.raises(DataError, match=r"E326.*2 of 21"):
        run(tmp_path, "fail", to="fail")
    with pytest.raises(DataError):
        run(tmp_path, "fail")
    with monkeypatch.context() as patch:
        patch.setattr(predict_module, "start_sessions", None)
        for policy in policies:
            assert {member.computed for member in run(tmp_path, policy).members} == {0}
            assert contents(tmp_path / "out") == contents(tmp_path / policy)
        with pytest.raises(DataError, match=r"E326.*2 of 21"):
            run(tmp_path, "fail")
        assert contents(tmp_path / "out") == contents(tmp_path / "fail")
        assert not list((tmp_path / "out").rglob(COMPLETE))
        run(tmp_path, "fill")
    mend(images)
    assert {member.computed for member in run(tmp_path, "fill").members} == {13}
    run(tmp_path, "fail", to="good")
    assert contents(tmp_path / "out") == contents(tmp_path / "good")


def test_a_part_without_any_image_that_can_be_read_is_not_tried_for_ever(
    tmp_path: Path, images: Path, models: list[Path]
) -> None:
    """It is there, and empty, so that a finished run is finished; Parquet readers open it."""
    for name in NAMES[16:]:
        (images / name).write_bytes(b"")
    done = run(tmp_path, "skip")
    assert done.missing == ("03.jpg", *NAMES[16:])
    part = read_part(part_path(tmp_path / "out" / "a", 2))
    assert (part.ids, part.logits["hflip"].shape) == ((), (0, 18))
    assert {member.computed for member in run(tmp_path, "skip").members} == {0}
    assert pq.read_table(tmp_path / "out" / "a").num_rows == 15


@pytest.mark.parametrize("policy", ["fill", "skip"])
def test_where_nothing_can_be_read_no_policy_helps(
    tmp_path: Path, images: Path, models: list[Path], policy: OnBadImage
) -> None:
    """A folder of broken images is E326 whatever was asked for: a prior alone is no prediction."""
    for name in NAMES:
        (images / name).write_bytes(b"")
    with pytest.raises(DataError, match=r"E326.*21 of 21"):
        run(tmp_path, policy)
    with pytest.raises(DataError, match=r"E326.*21 of 21"):
        submit(
            RECIPE,
            images,
            models,
            Destination(tmp_path / "x.csv", tmp_path),
            early_exit=EarlyExit(),
            options=RunOptions(on_bad_image=policy),
        )


def test_a_member_that_is_added_knows_what_the_others_know(tmp_path: Path, images: Path, models: list[Path]) -> None:
    """Predicted later beside a finished member, it lacks the same images, and the first is not computed again."""
    predict(
        models[:1],
        images,
        tmp_path / "out",
        views=parse_views("hflip"),
        options=RunOptions(device="cpu", on_bad_image="skip"),
    )
    assert [member.computed for member in run(tmp_path, "skip").members] == [0, len(GOOD)]
    run(tmp_path, "skip", to="together")
    assert contents(tmp_path / "out") == contents(tmp_path / "together")


def command(*arguments: object) -> Result:
    return CliRunner().invoke(ens, [str(argument) for argument in arguments])


def sample(tmp_path: Path) -> Path:
    """A sample submission, in an order of its own."""
    path = tmp_path / "info.csv"
    path.write_text("ImageID,ans\n" + "".join(f"{name},0\n" for name in reversed(NAMES)))
    return path


def test_a_submission_lacks_rows_only_where_that_is_allowed(tmp_path: Path, images: Path, models: list[Path]) -> None:
    """`ens blend` refuses with E534; with --allow-missing it names the images in a warning, and gives them no class.
    `ens check` calls them a fault, or names them in a warning likewise.
    """
    common = ["predict", tmp_path / "models", "--images", images, "--device", "cpu", "-o", tmp_path / "out"]
    assert isinstance(command(*common).exception, DataError)
    shown = command(*common, "--on-bad-image", "skip", "--json")
    assert (shown.exit_code, json.loads(shown.stdout)["missing"]) == (0, list(BAD))
    info, output = sample(tmp_path), tmp_path / "out.csv"
    for like in ([], ["--like", info]):
        blending = ["blend", tmp_path / "out", "-o", output, *like]
        refused = command(*blending)
        assert isinstance(refused.exception, PredictionError)
        assert "E534" in str(refused.exception)
        assert not output.exists()
        allowed = command(*blending, "--allow-missing")
        assert allowed.exit_code == 0, allowed.output
        assert "warning[W534] 2 images have no row in the submission: 03.jpg, 17.jpg" in allowed.stderr
        assert "2 images missing: 03.jpg, 17.jpg" in allowed.stdout
        rows = [line.partition(",")[0] for line in output.read_text().splitlines()[1:]]
        assert rows == (list(reversed(GOOD)) if like else list(GOOD))
        if not like:
            output.unlink()
    fault = command("check", output, "--like", info)
    assert isinstance(fault.exception, PredictionError)
    assert "missing" in fault.stdout
    passed = command("check", output, "--like", info, "--allow-missing")
    assert (passed.exit_code, "W534" in passed.stderr, "19 rows" in passed.stdout) == (0, True, True)


def test_check_allows_missing_rows_and_nothing_else(tmp_path: Path) -> None:
    """With --allow-missing a class out of range is still a fault, and so is a submission of other images."""
    info, wrong = sample(tmp_path), tmp_path / "wrong.csv"
    for text in ("ImageID,ans\n20.jpg,18\n", "ImageID,ans\nother.jpg,1\n"):
        wrong.write_text(text)
        assert isinstance(command("check", wrong, "--like", info, "--allow-missing").exception, PredictionError)


def test_members_that_lack_other_images_share_the_rest() -> None:
    """What one member lacks is left out of all of them, filled rows included."""
    a = replace(make_member("a", draw_logits(0, 4)), filled=("001.jpg",))
    b = make_member("b", draw_logits(1, 3), ids=("000.jpg", "002.jpg", "003.jpg"))
    common = common_images([a, replace(b, missing=("001.jpg",))], allow_missing=True)
    first, second = common.members
    assert common.missing == ("001.jpg",)
    assert first.ids == second.ids == b.ids
    assert first.filled == ()
    assert np.array_equal(first.logits["identity"], a.logits["identity"][[0, 2, 3]])
    assert common_images([a, b], allow_missing=False) == CommonImages((a, b), ())


def test_filled_rows_are_counted_by_blend(tmp_path: Path, images: Path, models: list[Path]) -> None:
    """The summary, its JSON and a warning tell how many rows are filled and where; all of them have a class."""
    run(tmp_path, "fill")
    done = command("blend", tmp_path / "out", "-o", tmp_path / "out.csv", "--like", sample(tmp_path))
    assert done.exit_code == 0
    assert "warning[W535] 2 images are filled with the class prior in a, b: 03.jpg, 17.jpg" in done.stderr
    assert "2 images filled with the class prior" in done.stdout
    shown = command("blend", tmp_path / "out", "-o", tmp_path / "out.csv", "--like", sample(tmp_path), "--json")
    assert json.loads(shown.stdout)["filled"] == list(BAD)
    assert command("check", tmp_path / "out.csv", "--like", sample(tmp_path), "--json").exit_code == 0


def test_filled_rows_make_no_member_constant_or_a_copy() -> None:
    """Members that agree in nothing but 28 filled rows of 30 are neither constant nor copies; one that says the same of
    every image that it has seen is constant, whatever its filled rows are.
    """
    filled = tuple(f"{i:03d}.jpg" for i in range(28))
    logits = [draw_logits(seed) for seed in range(2)]
    for values in logits:
        values[:28] = 0
    a, b = (replace(make_member(name, values), filled=filled) for name, values in zip("ab", logits, strict=True))
    recorder = Recorder()
    assert blend([a, b], make_recipe([a, b]), listener=recorder).filled == filled
    assert [notice.code for notice in recorder.notices] == ["W535"]
    same = np.tile(draw_logits(5, 1), (30, 1))
    same[0] = 0
    constant = replace(make_member("c", same), filled=filled[:1])
    blend([constant], make_recipe([constant]), listener=(recorder := Recorder()))
    assert [notice.code for notice in recorder.notices] == ["W535", "W506"]


@pytest.mark.slow
@pytest.mark.parametrize("early_exit", [None, EarlyExit()])
def test_submit_fills_as_predict_and_blend_do(
    tmp_path: Path, images: Path, models: list[Path], early_exit: EarlyExit | None
) -> None:
    """With and without early exit the file is that of the two commands; the result names what was filled, whose passes
    are not counted; run again, nothing is computed; mended, it is the file of good images.
    """
    run(tmp_path, "fill")
    members = [read_predictions(tmp_path / "out" / name) for name in "ab"]
    blended = blend(members, RECIPE)
    expected = "".join(f"{i},{k}\n" for i, k in zip(blended.ids, blended.classes, strict=True))
    options: dict[str, Any] = {"work": tmp_path / "work", "device": "cpu", "workers": 2, "early_exit": early_exit}

    def again(**more: Any) -> Any:
        return run_submit(RECIPE, images, models, tmp_path / "out.csv", **options | more)

    with pytest.raises(DataError, match="E326"):
        again()
    assert not (tmp_path / "out.csv").exists()
    recorder = Recorder()
    done = again(on_bad_image="fill", listener=recorder)
    assert (tmp_path / "out.csv").read_text() == "ImageID,ans\n" + expected
    assert (done.filled, done.missing, done.rows, done.whole) == (BAD, (), 21, 19 * 4)
    assert "2 images filled with the class prior: 03.jpg, 17.jpg" in done.render()
    assert "W326" in {notice.code for notice in recorder.notices}
    assert json.loads((tmp_path / "work" / RUN).read_text())["filled"] == list(BAD)
    with pytest.MonkeyPatch.context() as patch:
        for module in ("ensemble.predict.predict", "ensemble.submit.chunks"):
            patch.setattr(importlib.import_module(module), "start_sessions", None)
        assert again(on_bad_image="fill").cells == done.cells
        with pytest.raises(PredictionError, match="E534"):
            again(on_bad_image="skip")
        done = again(on_bad_image="skip", allow_missing=True, listener=(recorder := Recorder()))
    assert (done.filled, done.missing, done.rows) == ((), BAD, 19)
    assert {"W326", "W534"} <= {notice.code for notice in recorder.notices}
    kept = [line for line in expected.splitlines() if line.partition(",")[0] not in BAD]
    assert (tmp_path / "out.csv").read_text().splitlines()[1:] == kept
    mend(images)
    again()
    run(tmp_path, "fail", to="good")
    good = blend([read_predictions(tmp_path / "good" / name) for name in "ab"], RECIPE)
    rows = [f"{i},{k}" for i, k in zip(good.ids, good.classes, strict=True)]
    assert (tmp_path / "out.csv").read_text().splitlines()[1:] == rows


def test_submit_leaves_out_rows_of_the_sample(tmp_path: Path, images: Path, models: list[Path]) -> None:
    """In the sample's order, with the ids as the sample writes them."""
    like = AnswerSheet(tuple(reversed(NAMES)))
    for early_exit in (None, EarlyExit()):
        submit(
            RECIPE,
            images,
            models,
            Destination(tmp_path / "out.csv", tmp_path / "work", like, allow_missing=True),
            early_exit=early_exit,
            options=RunOptions(device="cpu", on_bad_image="skip"),
        )
        rows = [line.partition(",")[0] for line in (tmp_path / "out.csv").read_text().splitlines()[1:]]
        assert rows == list(reversed(GOOD))


@pytest.mark.parametrize(("policy", "code"), [("fill", "W535"), ("skip", "W534")])
def test_the_report_shows_what_could_not_be_read(
    tmp_path: Path, images: Path, models: list[Path], policy: OnBadImage, code: str
) -> None:
    """The page names the images; none of them is a disagreement, and the others have thumbnails."""
    pytest.importorskip("matplotlib")
    from ensemble.analysis.report_html import render_page

    run(tmp_path, policy)
    facts = report([tmp_path / "out"], images=images)
    page = render_page(facts)
    assert f"<code>{code}</code> 2 images" in page
    assert "<code>W326</code> 2 of 21 images could not be read" in page
    assert len(facts.disagreements) == 12
    assert not {one.image for one in facts.disagreements} & set(BAD)


def test_what_is_compared_with_a_truth_lacks_none_of_its_images(
    tmp_path: Path, images: Path, models: list[Path]
) -> None:
    """Scores, out-of-fold predictions and the report refuse with E534 and name what is missing; of a truth without
    those images there are scores, and of a fold whose card knows all of them as its holdout.
    """
    models[0].unlink()
    card = replace(toys.card("b"), holdout_sha256=hash_ids(NAMES))
    toys.write_model(tmp_path / "models", card, seed=1)
    run(tmp_path, "skip")
    found = read_predictions(tmp_path / "out" / "b")
    path = tmp_path / "truth.csv"

    def truth_of(names: Sequence[str]) -> Truth:
        path.write_text("ImageID,ans\n" + "".join(f"{name},{i % 18}\n" for i, name in enumerate(names)))
        return read_truth(path, MASK18)

    whole = truth_of(NAMES)
    comparisons: list[Callable[[], object]] = [
        lambda: evaluate(found, whole),
        lambda: gather_folds([found], whole),
        lambda: report([tmp_path / "out"], truth=path),
    ]
    for compare in comparisons:
        with pytest.raises(PredictionError, match="b lacks 2 images of the ground truth") as caught:
            compare()
        assert caught.value.code == "E534"
    rest = truth_of(GOOD)
    assert evaluate(found, rest).images == len(GOOD)
    assert gather_folds([found], rest)[0].ids == GOOD
    assert report([tmp_path / "out"], truth=path).quality is not None


def test_predictions_of_before_are_read(tmp_path: Path, images: Path, models: list[Path]) -> None:
    """A folder without the column and without missing images reads as one in which nothing is filled or missing."""
    mend(images)
    run(tmp_path, "fill")
    assert "filled" not in pq.read_table(tmp_path / "out" / "a").column_names
    assert set(json.loads((tmp_path / "out" / "a" / COMPLETE).read_text())) == {"schema", "rows", "parts"}
    assert not (tmp_path / "out" / "a" / FILLED).exists()
    found = read_predictions(tmp_path / "out" / "a")
    assert (found.filled, found.missing) == ((), ())


def test_a_prior_makes_no_class_impossible() -> None:
    """A class without a training image has a finite logit, and the prior sums to one."""
    prior = np.exp(log_prior(replace(toys.CARD, class_counts=(0,) * 17 + (10**6,))))
    assert (prior > 0).all()
    assert prior.sum() == pytest.approx(1)


@pytest.mark.parametrize("counts", [(1,) * 17, (1,) * 17 + (-1,), (1.5,) * 18])
def test_counts_that_are_none_are_refused(counts: Any) -> None:
    """As many whole numbers of zero or more as there are classes, or E204."""
    with pytest.raises(OptionError, match="class_counts"):
        replace(toys.CARD, class_counts=counts)
