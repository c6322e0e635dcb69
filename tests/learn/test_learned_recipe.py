"""From learning to a submission: the recipe applies the learned candidate, through files and to other images."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import f1_score

from ensemble.__main__ import run
from ensemble.blend.blend import blend
from ensemble.blend.pooling import log_softmax
from ensemble.blend.recipe import Recipe, make_recipe, render_recipe
from ensemble.card import Activation
from ensemble.errors import PredictionError
from ensemble.events import Recorder
from ensemble.labels import MASK18
from ensemble.learn.choose_recipe import LearnFrom, choose_recipe
from ensemble.learn.learn import learn
from ensemble.learn.learned_recipe import learned_recipe
from ensemble.predictions.dataset import Part, Predictions, part_path, write_complete, write_part
from ensemble.predictions.members import select_images
from ensemble.predictions.truth import Truth
from tests.learn.test_learn import contest
from tests.support import toys
from tests.support.members import make_member
from tests.support.simulation import make_contest

METHODS = ["mean", "logit", "linear", "scaled", "log-linear", "greedy", "pool", "calibrated+f1", "pool+tau"]


@pytest.mark.parametrize("method", METHODS)
def test_the_recipe_applies_the_learned_candidate(method: str) -> None:
    """Blending by the recipe read from its file gives the probabilities and classes of the fitted candidate."""
    members, truth = contest()
    learned = learn(members, truth, method=method, repeats=1)
    recipe = Recipe.from_json(learned_recipe(learned, members).to_json())
    log_p = learned.fitted.apply(
        np.stack([log_softmax(m.logits[v.view]) for v in learned.member_views for m in members if m.member == v.member])
    )
    blended = blend(members, recipe, ids=truth.ids)
    np.testing.assert_allclose(blended.probabilities, np.exp(log_p), rtol=1e-9, atol=1e-300)
    assert blended.classes.tolist() == learned.fitted.decide(log_p).tolist()
    assert recipe.to_json() == learned_recipe(learned, members[::-1]).to_json()


def test_the_mean_is_the_plain_recipe() -> None:
    """A kept mean equals equal weights, and is written without sharpness, bias or group views."""
    members, truth = contest()
    recipe = learned_recipe(learn(members, truth, method="mean", repeats=1), members)
    plain = blend(members, make_recipe(members)).probabilities
    np.testing.assert_allclose(blend(members, recipe).probabilities, plain, rtol=1e-12)
    value = json.loads(recipe.to_json())
    assert list(value) == ["schema", "pool", "rule", "views", "groups", "labels", "learned"]
    assert [set(group) for group in value["groups"].values()] == [{"weight", "members"}] * 4
    assert value["learned"]["why"].startswith("mean was requested")


def test_folds_of_a_learned_group_have_equal_weight() -> None:
    """If two folds predict the new images, their mean replaces the out-of-fold member."""
    members, truth = contest()
    learned = learn(members, truth, method="linear", repeats=1)
    first, *others = members
    twins = [replace(first, member=f"a{i}", group="a") for i in range(2)]
    one = blend(members, learned_recipe(learned, members))
    two = blend([*twins, *others], learned_recipe(learned, [*twins, *others]))
    np.testing.assert_allclose(two.probabilities, one.probabilities, rtol=1e-12)


def test_a_group_without_weight_needs_no_view_of_the_others() -> None:
    """A useless member that was predicted without flips is blended with weight 0."""
    members, truth = contest()
    liar = make_member("liar", -3 * np.eye(3)[truth.classes], labels=truth.labels)
    learned = learn([*members, liar], truth, method="log-linear", repeats=1)
    recipe = learned_recipe(learned, [*members, liar])
    assert recipe.groups["liar"].weight == 0
    blended = blend([*members, liar], recipe)
    noise = replace(liar, logits={"identity": -liar.logits["identity"]})
    assert blend([*members, noise], recipe).probabilities.tobytes() == blended.probabilities.tobytes()


def test_members_must_be_of_the_learned_groups() -> None:
    """A member without out-of-fold predictions, and a missing one, are E517 and named."""
    members, truth = contest()
    learned = learn(members, truth, method="mean", repeats=1)
    with pytest.raises(PredictionError) as caught:
        learned_recipe(learned, [*members[:3], replace(members[3], member="z", group="z")])
    assert caught.value.code == "E517"
    assert "without predictions: d; without out-of-fold predictions: z" in caught.value.message


def test_views_that_only_the_new_predictions_have_are_named_and_left_out(tmp_path: Path) -> None:
    """Out-of-fold predictions without mirrored images: W566 names the view, and the recipe is of the others."""
    members, truth = contest()
    write_truth(tmp_path / "truth.csv", truth)
    oof = [replace(one, logits={"identity": one.logits["identity"]}) for one in members]
    new = [replace(one, logits={**oof[i].logits, "hflip": oof[i].logits["identity"]}) for i, one in enumerate(members)]
    heard = Recorder()
    chosen = choose_recipe(new, LearnFrom(oof, tmp_path / "truth.csv", method="mean"), listener=heard)
    said = [notice.message for notice in heard.notices if notice.code == "W566"]
    assert len(said) == 1
    assert "lack the view hflip, which a, b, c" in said[0]
    assert "--views hflip" in said[0]
    assert set(chosen.recipe.views) == {"identity"}


def test_images_that_are_learned_from_are_no_new_images(tmp_path: Path) -> None:
    """Of all training images by all folds nothing is averaged (W528); among new ones they do not change a recipe.

    Images of other content under the same names count as new.
    """
    scenario = make_contest("B", seed=0, members=2)
    members, truth = scenario.draw(40, seed=1)
    others, _ = scenario.draw(40, seed=2)
    write_truth(tmp_path / "truth.csv", truth)
    fold = (np.arange(len(truth.ids)) // 7) % 2
    rng = np.random.default_rng(0)

    def folds_of(one: Predictions) -> list[Predictions]:
        found = []
        for number in (0, 1):
            noise = rng.normal(0, 1, one.logits["identity"].shape)
            noise[fold == number] *= 0.5  # images that the other fold was trained on
            logits = {view: (values + noise).astype(np.float32) for view, values in one.logits.items()}
            found.append(replace(one, member=f"{one.member}_f{number}", group=one.member, fold=number, logits=logits))
        return found

    seen = [part for one in members for part in folds_of(one)]
    new = [part for one in others for part in folds_of(one)]
    oof = [select_images(one, [truth.ids[i] for i in np.flatnonzero(fold == one.fold)]) for one in seen]
    named = [replace(one, ids=tuple(f"new {name}" for name in one.ids)) for one in new]
    joined = [
        replace(
            one,
            ids=one.ids + other.ids,
            logits={view: np.concatenate([values, other.logits[view]]) for view, values in one.logits.items()},
        )
        for one, other in zip(seen, named, strict=True)
    ]

    def learn_for(given: list[Predictions]) -> tuple[list[str], object]:
        heard = Recorder()
        chosen = choose_recipe(given, LearnFrom(oof, tmp_path / "truth.csv", method="mean"), listener=heard)
        assert chosen.learned is not None
        return [one.code for one in heard.notices if one.code in {"I526", "W528"}], chosen.learned.table_as_dicts()

    assert learn_for(seen)[0] == ["W528"]
    rounded = [
        replace(one, logits={view: values * np.float32(1 + 1e-6) for view, values in one.logits.items()})
        for one in seen
    ]
    assert learn_for(rounded)[0] == ["W528"], "of another batch size or processor"
    (codes, table), plain = learn_for(joined), learn_for(named)
    assert (codes, plain[0]) == (["W528", "I526"], ["I526"])
    assert table == plain[1]
    assert learn_for(new)[0] == ["I526"]


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_a_view_that_only_the_out_of_fold_predictions_have_is_refused_before_learning(
    activation: Activation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E516 names the member, the view and the option, for one or several labels per image."""
    members, truth = contest()
    write_truth(tmp_path / "truth.csv", truth)
    new = [replace(one, activation=activation, logits={"identity": one.logits["identity"]}) for one in members]
    oof = [replace(one, logits={**one.logits, "hflip": one.logits["identity"]}) for one in new]
    for name in ("learn", "learn_labels"):
        monkeypatch.setattr(f"ensemble.learn.learned_recipe.{name}", None)
    with pytest.raises(PredictionError) as caught:
        choose_recipe(new, LearnFrom(oof, tmp_path / "truth.csv"))
    assert caught.value.code == "E516"
    assert "a has no view hflip, which its out-of-fold predictions have" in caught.value.message
    assert "--views hflip" in str(caught.value.hint)


def test_the_learned_parts_are_shown() -> None:
    """The rendered recipe shows sharpness, bias, rule, and each group's own views."""
    members, truth = contest()
    lines = render_recipe(learned_recipe(learn(members, truth, method="pool+f1", repeats=1), members)).splitlines()
    assert lines[0].startswith("pool logit; sharpness ")
    assert lines[0].endswith("; bias per class; rule macro-f1")
    assert lines[1].split() == ["group", "weight", "members", "views"]


# --------------------------------------------------------------------------------------------------- the command line
def write_member(folder: Path, member: Predictions, *, group: str, fold: int | None, rows: NDArray[np.intp]) -> None:
    """Write some of a member's rows in the format of `ens predict`."""
    name = group if fold is None else f"{group}_f{fold}"
    card = replace(toys.card(name, labels=member.labels), group=group, fold=fold)
    logits = {view: values[rows] for view, values in member.logits.items()}
    path = part_path(folder / name, 0)
    path.parent.mkdir(parents=True)
    write_part(path, Part(tuple(member.ids[row] for row in rows), logits, "test", card))
    write_complete(folder / name, [path], len(rows))


def write_truth(path: Path, truth: Truth) -> None:
    assert truth.persons is not None
    rows = zip(truth.ids, truth.classes.tolist(), truth.persons, strict=True)
    path.write_text("ImageID,ans,person\n" + "".join(f"{name},{ans},{person}\n" for name, ans, person in rows))


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Out-of-fold predictions of 200 people in two folds, each fold's predictions of 200 others, and both truths."""
    scenario = make_contest("B", seed=0, members=3)
    for part, seed in (("oof", 1), ("test", 2)):
        members, truth = scenario.draw(200, seed=seed)
        write_truth(tmp_path / f"{part}.csv", truth)
        every = np.arange(len(truth.ids))
        for member in members:
            for fold in range(2):
                rows = every if part == "test" else every[(every // 7) % 2 == fold]
                write_member(tmp_path / part, member, group=member.member, fold=fold, rows=rows)
    return tmp_path


def command(files: Path, output: str, *more: str) -> list[str]:
    return ["blend", f"{files / 'test'}", "-o", f"{files / output}", *more]


def learning(files: Path) -> list[str]:
    return ["--oof", f"{files / 'oof'}", "--truth", f"{files / 'oof.csv'}"]


def macro_f1_of(path: Path, truth: Path) -> float:
    def answers(source: Path) -> Mapping[str, str]:
        return dict(line.split(",")[:2] for line in source.read_text().splitlines()[1:])

    expected, got = answers(truth), answers(path)
    assert expected.keys() == got.keys()
    return float(f1_score(list(expected.values()), [got[name] for name in expected], average="macro"))


@pytest.mark.slow
def test_learning_raises_the_score_and_can_be_applied_again(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From folders to a CSV: what is learned scores 5 points more on other people than the mean, and its recipe alone
    gives the same bytes and itself.
    """
    recipe = f"{files / 'blend.json'}"
    assert run(command(files, "mean.csv")) == 0
    capsys.readouterr()
    assert run(command(files, "one.csv", *learning(files), "--save", recipe)) == 0
    said = capsys.readouterr().out
    assert said.startswith("5-fold CV on 1,400 images of 200 persons, 2 repeats; score: macro F1\n")
    assert "compared with the mean of probabilities" in " ".join(said.split())
    assert run(command(files, "two.csv", "--apply", recipe, "--save", f"{files / 'again.json'}")) == 0
    assert (files / "one.csv").read_bytes() == (files / "two.csv").read_bytes()
    assert Path(recipe).read_bytes() == (files / "again.json").read_bytes()
    gain = macro_f1_of(files / "one.csv", files / "test.csv") - macro_f1_of(files / "mean.csv", files / "test.csv")
    assert gain > 0.05


def test_method_metric_and_seed_are_used(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The recipe stores --method, --metric and --seed, and --json prints all of it."""
    wanted = ["--method", "linear", "--metric", "accuracy", "--seed", "7", "--json"]
    assert run(command(files, "x.csv", *learning(files), *wanted)) == 0
    recipe = json.loads(capsys.readouterr().out)["recipe"]
    learned = recipe["learned"]
    assert [learned[key] for key in ("method", "metric", "seed")] == ["linear", "accuracy", 7]
    assert [row["candidate"] for row in learned["table"]] == ["mean", "linear"]
    assert recipe["labels"] == MASK18.to_dict()


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--oof", "oof"], "E204"),
        (["--truth", "oof.csv"], "E204"),
        (["--method", "mean"], "E204"),
        (["--seed", "0"], "E204"),
        (["--oof", "oof", "--truth", "oof.csv", "--pool", "hard"], "E204"),
        (["--oof", "oof", "--truth", "oof.csv", "--apply", "blend.json"], "E204"),
        (["--oof", "oof", "--truth", "oof.csv", "--method", "magic"], "E204"),
        (["--oof", "test", "--truth", "test.csv"], "E511"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    files: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    code: str,
) -> None:
    """Learning needs --oof and --truth, excludes given weights, and refuses predictions that are not out-of-fold."""
    monkeypatch.chdir(files)
    assert run(["blend", "test", "-o", "x.csv", *options]) in {2, 5}
    assert f"error[{code}]" in capsys.readouterr().err
    assert not (files / "x.csv").exists()
