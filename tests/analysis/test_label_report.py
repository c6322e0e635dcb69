"""The report about members of several labels: its facts are scikit-learn's, its page is whole, safe and repeatable."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import bernoulli
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score, roc_auc_score

from ensemble.__main__ import run
from ensemble.analysis.label_html import render_label_page
from ensemble.analysis.label_report import LabelReport, label_report_of, summary_of_labels
from ensemble.analysis.report import report
from ensemble.analysis.report_inputs import gather_inputs
from ensemble.errors import EnsError, PredictionError
from ensemble.labels import LabelSpace
from ensemble.predictions.dataset import Part, part_path, write_complete, write_part
from tests.analysis.test_report import Page
from tests.support import toys

pytestmark = pytest.mark.slow

NAMES = ("<b>cat</b>", "dog & $x$", "owl", "never")
LABELS = LabelSpace.flat(NAMES)
IMAGES, PERSONS = 120, 30


def draw(seed: int) -> tuple[NDArray[np.bool_], dict[str, NDArray[np.float32]]]:
    """Return which labels apply ``(N, C)``, and the log-odds of a strong and a weak member."""
    rng = np.random.default_rng(seed)
    applies = rng.random((IMAGES, len(NAMES))) < [0.3, 0.2, 0.5, 0.0]
    odds = {
        name: (strength * (2.0 * applies - 1) + rng.normal(size=applies.shape) - 0.7).astype(np.float32)
        for name, strength in (("strong", 1.5), ("weak", 0.4))
    }
    return applies, odds


def ids_of(part: str) -> list[str]:
    return [f"{part}<i>{row:03d}.jpg" for row in range(IMAGES)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Test and out-of-fold predictions of two members, two folds each, truths with persons, images and a recipe."""
    root = tmp_path_factory.mktemp("label-report")
    for part, seed in (("oof", 1), ("test", 2)):
        applies, odds = draw(seed)
        with (root / f"{part}.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["id", *NAMES, "person"])
            for row, name in enumerate(ids_of(part)):
                rows.writerow([name, *applies[row].astype(int), f"p{row * PERSONS // IMAGES}"])
        for member, logits in odds.items():
            for fold in range(2):
                every = np.arange(IMAGES)
                chosen = every if part == "test" else every[(every // 4) % 2 == fold]
                card = replace(
                    toys.card(f"{member}_f{fold}", labels=LABELS), group=member, fold=fold, activation="sigmoid"
                )
                path = part_path(root / part / card.member, 0)
                path.parent.mkdir(parents=True)
                ids = tuple(ids_of(part)[row] for row in chosen)
                write_part(path, Part(ids, {"identity": logits[chosen]}, "test", card))
                write_complete(path.parent, [path], len(ids))
    toys.write_pictures(root / "images", ids_of("test"))
    learning = ["--oof", root / "oof", "--truth", root / "oof.csv", "--method", "mean+thresholds"]
    words = ["blend", root / "test", *learning, "--save", root / "blend.json", "-o", root / "x.csv"]
    assert run([*map(str, words), "--like", str(write_sample(root))]) == 0
    return root


def write_sample(root: Path) -> Path:
    path = root / "sample.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", *NAMES])
        rows.writerows([name, *[0.5] * len(NAMES)] for name in ids_of("test"))
    return path


@pytest.fixture(scope="module")
def full(files: Path) -> LabelReport:
    """The facts when everything is given."""
    inputs = gather_inputs([files / "test"], recipe=files / "blend.json", truth=files / "oof.csv", oof=[files / "oof"])
    return label_report_of(inputs, images=files / "images", commands=["ens report <all>"])


def test_each_label_is_scored_as_scikit_learn_does(files: Path) -> None:
    """Average precision, ROC AUC, F1, precision and recall of each label, inside their intervals; means beside them."""
    inputs = gather_inputs([files / "test"], truth=files / "test.csv")
    found = label_report_of(inputs, images=None, commands=())
    applies, odds = draw(2)
    p = np.mean([expit(one.astype(np.float64)) for one in odds.values()], axis=0)
    assert found.quality is not None
    for label, one in enumerate(found.quality.labels):
        true, decided = applies[:, label], p[:, label] >= 0.5
        assert one.images == true.sum()
        assert one.threshold == 0.5
        assert one.f1.value == pytest.approx(f1_score(true, decided, zero_division=0))
        assert one.precision == pytest.approx(precision_score(true, decided, zero_division=0))
        assert one.recall == pytest.approx(recall_score(true, decided, zero_division=0))
        assert one.best_f1 == pytest.approx(f1_score(true, p[:, label] >= one.best, zero_division=0))
        assert one.best_f1 >= one.f1.value
        if not true.any():
            assert one.average_precision is None
            assert one.auc is None
            continue
        assert one.average_precision is not None
        assert one.auc is not None
        assert one.average_precision.value == pytest.approx(average_precision_score(true, p[:, label]), abs=1e-9)
        assert one.auc.value == pytest.approx(roc_auc_score(true, p[:, label]), abs=1e-9)
        for estimate in (one.average_precision, one.auc, one.f1):
            assert estimate.low < estimate.value < estimate.high
    mean = found.quality.scores["present-ap"].estimate
    assert mean is not None
    assert mean.value == pytest.approx(average_precision_score(applies[:, :3], p[:, :3], average="macro"))
    assert found.quality.persons == PERSONS
    assert [len(member.scores) > 0 for member in found.members] == [True] * 4


def test_common_labels_and_what_is_predicted_instead_are_counted(full: LabelReport) -> None:
    """Both matrices equal a count image by image, with the thresholds of the recipe."""
    applies, odds = draw(1)
    assert full.quality is not None
    thresholds = [one.threshold for one in full.quality.labels]
    p = np.mean([expit(one.astype(np.float64)) for one in odds.values()], axis=0)
    decided = p >= thresholds
    for first in range(4):
        for second in range(4):
            both = sum(row[first] and row[second] for row in applies.tolist())
            assert full.quality.together[first, second] == both
            instead = [
                t[first] and not d[first] and d[second] and not t[second]
                for t, d in zip(applies.tolist(), decided.tolist(), strict=True)
            ]
            assert full.quality.instead[first, second] == sum(instead)
    assert thresholds[:3] != [0.5] * 3
    _, test_odds = draw(2)
    p_test = np.mean([expit(one.astype(np.float64)) for one in test_odds.values()], axis=0)
    assert full.predicted.tolist() == (p_test >= thresholds).sum(axis=0).tolist()


def test_disputes_have_the_highest_mutual_information(full: LabelReport) -> None:
    """Each label is a choice between two: SciPy's entropies, summed; contested labels come with their voters."""
    _, odds = draw(2)
    p = {f"{name}_f{fold}": expit(one.astype(np.float64)) for name, one in odds.items() for fold in range(2)}
    each = bernoulli(np.mean(list(p.values()), axis=0)).entropy() - np.mean(
        [bernoulli(one).entropy() for one in p.values()], axis=0
    )
    top = np.argsort(-each.sum(axis=1))[:12]
    assert [one.image for one in full.disputes] == [ids_of("test")[row] for row in top]
    assert [one.information for one in full.disputes] == pytest.approx(each.sum(axis=1)[top].tolist())
    for one, row in zip(full.disputes, top, strict=True):
        first = one.contested[0]
        label = NAMES.index(first.name)
        assert label == each[row].argmax()
        assert first.members == tuple(name for name in sorted(p) if p[name][row, label] >= 0.5)
        assert (one.thumbnail or b"")[:2] == b"\xff\xd8"


def test_agreement_is_of_the_labels_that_either_predicts(full: LabelReport) -> None:
    """Two folds with equal logits agree fully; a strong and a weak member share the common labels of both."""
    _, odds = draw(2)
    strong, weak = (odds[name] >= 0 for name in ("strong", "weak"))
    assert full.agreement is not None
    assert full.agreement.shares[0, 1] == 1
    assert full.agreement.shares[0, 2] == pytest.approx((strong & weak).sum() / (strong | weak).sum())


def test_the_page_of_labels_is_whole_safe_and_offline(full: LabelReport) -> None:
    """Every section is there; tags close in order; names are escaped; nothing is fetched; no id comes twice."""
    text = render_label_page(full)
    page = Page(text)
    assert page.open == []
    assert page.headings == [
        "Runs",
        "Members",
        "Candidates",
        "Labels",
        "Thresholds",
        "Labels that occur together",
        "Calibration",
        "Agreement between members",
        "Label distribution",
        "Largest disagreements",
        "Reproduce",
    ]
    assert "script" not in page.tags
    assert len(set(page.ids)) == len(page.ids)
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert "&lt;b&gt;cat&lt;/b&gt;" in text
    assert "<b>cat" not in text
    assert "Macro F1" in text
    assert "is optimistic" in text
    assert len(text.encode()) < 1_000_000
    assert summary_of_labels(full).startswith("mean+thresholds: macro F1 0.")


def test_the_command_writes_the_page_of_labels(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Twice the same bytes; without truth, a recipe and images the page says what would add them."""
    command = ["report", f"{files / 'test'}", "--truth", f"{files / 'test.csv'}", "-o", f"{files / 'report.html'}"]
    pages = []
    for _ in range(2):
        assert run(command) == 0
        pages.append((files / "report.html").read_bytes())
    assert pages[0] == pages[1]
    assert "Macro F1 0." in capsys.readouterr().out
    inputs = gather_inputs([files / "test/weak_f0"])
    alone = label_report_of(inputs, images=None, commands=())
    headings = Page(render_label_page(alone)).headings
    assert headings == ["Members", "Labels that occur together", "Not in this report"]
    remedies = " ".join(one.remedy for one in alone.missing)
    assert all(word in remedies for word in ("--truth", "--oof", "--recipe", "--images", "two or more members"))
    assert summary_of_labels(alone) == "1 member of 4 labels, 120 images, no ground truth"


def test_what_does_not_fit_several_labels_is_refused(files: Path) -> None:
    """A truth of other images, or the facts about classes: errors with their codes."""
    inputs = gather_inputs([files / "test"], truth=files / "oof.csv")
    with pytest.raises(EnsError) as other:
        label_report_of(inputs, images=None, commands=())
    assert other.value.code == "E330"
    with pytest.raises(PredictionError) as classes:
        report([files / "test"])
    assert classes.value.code == "E548"
