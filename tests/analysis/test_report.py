"""The report: its facts are those of the other commands, its page is whole, safe, offline and always the same."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import entropy
from sklearn.metrics import confusion_matrix, f1_score

import ensemble.analysis
from ensemble.__main__ import run
from ensemble.analysis.report import Report, report, summary_of
from ensemble.analysis.report_facts import MemberAgreement
from ensemble.analysis.report_html import render_page
from ensemble.errors import EnsError
from ensemble.install import install_command
from ensemble.labels import Axis, LabelSpace
from ensemble.predictions.dataset import Predictions
from ensemble.predictions.truth import Truth
from tests.learn.test_learn import contest
from tests.learn.test_learned_recipe import write_member, write_truth
from tests.support import toys
from tests.support.chromium import CHROMIUM
from tests.support.limits import HANG

pytestmark = pytest.mark.slow

LABELS = LabelSpace((Axis("hat", ("<script>alert(1)</script>", "$x_1$ & y")), Axis("age", ('"old"', "young"))))


def members_of(seed: int) -> tuple[list[Predictions], Truth]:
    """Three members with two views, whose classes and images have names that would break a careless page."""
    members, truth = contest(seed=seed, classes=4, members=3, quality=1.2)
    ids = tuple(f"<img onerror=alert(1)>{name}" for name in truth.ids)
    return [replace(m, labels=LABELS, ids=ids) for m in members], replace(truth, labels=LABELS, ids=ids)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Test predictions with a record of one run, out-of-fold predictions in two folds, truths, images and a recipe."""
    root = tmp_path_factory.mktemp("report")
    for part, seed in (("oof", 1), ("test", 2)):
        members, truth = members_of(seed)
        write_truth(root / f"{part}.csv", truth)
        every = np.arange(len(truth.ids))
        for member in members:
            for fold in range(2):
                rows = every if part == "test" else every[(every // 4) % 2 == fold]
                jitter = 0 if part == "oof" else np.random.default_rng(fold).normal(size=(len(every), 4)) * 0.3
                moved = {view: (logits + jitter).astype(np.float32) for view, logits in member.logits.items()}
                write_member(root / part, replace(member, logits=moved), group=member.member, fold=fold, rows=rows)
    toys.write_pictures(root / "images", truth.ids)
    record = {
        "member": "a_f0",
        "device": "cpu",
        "images": 240,
        "views": ["identity", "hflip"],
        "batch": 16,
        "workers": 2,
        "computed": 240,
        "seconds": {"own": 12.0, "wall": 30.0},
        "notices": [{"code": "W601", "message": "no CUDA device <b>could</b> be used"}],
    }
    (root / "test/a_f0/_run.json").write_text(json.dumps(record))
    learn = ["--oof", f"{root / 'oof'}", "--truth", f"{root / 'oof.csv'}", "--method", "linear"]
    assert (
        run(["blend", f"{root / 'test'}", *learn, "--save", f"{root / 'blend.json'}", "-o", f"{root / 'x.csv'}"]) == 0
    )
    return root


@pytest.fixture(scope="module")
def full(files: Path) -> Report:
    """The facts when everything is given."""
    return report(
        [files / "test"],
        recipe=files / "blend.json",
        truth=files / "oof.csv",
        oof=[files / "oof"],
        images=files / "images",
        commands=["ens report <all>"],
    )


def p_of(member: Predictions) -> np.ndarray:
    return np.asarray(np.mean([softmax(v.astype(np.float64), axis=-1) for v in member.logits.values()], axis=0))


class Page(HTMLParser):
    """Tags in and out, and every address."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.headings: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not [key for key, _ in attrs if key.startswith("on")]
        self.addresses += [value or "" for key, value in attrs if key in {"src", "href", "xlink:href"}]
        self.ids += [value or "" for key, value in attrs if key == "id"]
        if tag not in {"meta", "link", "img"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def test_scores_of_out_of_fold_predictions_are_those_of_scikit_learn(files: Path) -> None:
    """With equal weights the blend's macro F1 and confusion, and each group's F1, are scikit-learn's."""
    members, truth = members_of(1)
    found = report([files / "test"], truth=files / "oof.csv", oof=[files / "oof"])
    assert found.quality is not None
    answered = np.mean([p_of(m) for m in members], axis=0).argmax(axis=1)
    assert found.quality.scores.macro_f1.value == pytest.approx(f1_score(truth.classes, answered, average="macro"))
    assert found.quality.confusion.tolist() == confusion_matrix(truth.classes, answered).tolist()
    assert found.quality.axes["age"].tolist() == confusion_matrix(truth.classes % 2, answered % 2).tolist()
    for member, shown in zip(members, found.members, strict=True):
        expected = f1_score(truth.classes, p_of(member).argmax(axis=1), average="macro")
        assert shown.scores is not None
        assert shown.name == member.member
        assert shown.weight == pytest.approx(1 / 3)
        assert shown.scores.macro_f1.value == pytest.approx(expected)
    assert found.quality.reliability.images.sum() == len(truth.ids)
    assert found.quality.reliability.right.sum() == (answered == truth.classes).sum()


def test_without_out_of_fold_predictions_the_truth_is_that_of_the_test(files: Path) -> None:
    """Then members are the folds themselves, disagreements have a true class, and both distributions are of one set."""
    found = report([files / "test"], truth=files / "test.csv")
    _, truth = members_of(2)
    assert [member.name for member in found.members] == ["a_f0", "a_f1", "b_f0", "b_f1", "c_f0", "c_f1"]
    assert found.distribution is not None
    assert found.distribution.truth == tuple(np.bincount(truth.classes, minlength=4))
    assert sum(found.distribution.predicted) == len(truth.ids)
    true = dict(zip(truth.ids, truth.classes.tolist(), strict=True))
    assert all(one.truth == LABELS.names[true[one.image]] for one in found.disagreements)
    assert [view.view for view in found.views.gains] == ["hflip"]


def test_agreement_and_disagreements_match_scipy(full: Report) -> None:
    """Agreement is the share of equal predictions; disagreements are sorted by SciPy's mutual information."""
    members, _ = members_of(2)
    jitter = [np.random.default_rng(fold).normal(size=(240, 4)) * 0.3 for fold in range(2)]
    p = [
        np.mean([softmax((v + j).astype(np.float32).astype(np.float64), axis=-1) for v in m.logits.values()], axis=0)
        for m in members
        for j in jitter
    ]
    assert full.agreement is not None
    expected = [[(a.argmax(1) == b.argmax(1)).mean() for a in p] for b in p]
    np.testing.assert_allclose(full.agreement.shares, expected)
    information = entropy(np.mean(p, axis=0), axis=1) - np.mean([entropy(one, axis=1) for one in p], axis=0)
    top = np.argsort(-information)[:12]
    assert [one.image for one in full.disagreements] == [members[0].ids[row] for row in top]
    assert [one.information for one in full.disagreements] == pytest.approx(information[top].tolist())
    for one, row in zip(full.disagreements, top, strict=True):
        votes = {vote.class_name: vote.members for vote in one.votes}
        assert sum(len(members_of_vote) for members_of_vote in votes.values()) == 6
        assert "b_f1" in votes[LABELS.names[p[3][row].argmax()]]
        assert (one.thumbnail or b"")[:2] == b"\xff\xd8"


def test_a_learned_recipe_brings_its_table_and_its_views(full: Report, files: Path) -> None:
    """Candidates and views are the recipe's own numbers; the summary gives the nested score, not the in-sample one.

    The score of the page is of single folds, the in-sample one of their simulated mean: they are near each other only.
    """
    learned = json.loads((files / "blend.json").read_text())["learned"]
    assert full.choice is not None
    assert [row.nested for row in full.choice.table] == [row["nested"] for row in learned["table"]]
    assert full.views.gains[0].gain == learned["views"][0]["gain"]
    row = learned["table"][1]
    assert summary_of(full).startswith(f"linear: macro F1 {row['nested']:.4f} (95 % CI {row['low']:.3f} to ")
    assert f"{row['gain']:+.4f} ± {row['error']:.4f}" in summary_of(full)
    assert full.quality is not None
    assert full.quality.scores.macro_f1.value == pytest.approx(row["in_sample"], abs=0.02)


def test_the_page_is_whole_safe_and_offline(full: Report) -> None:
    """Every section is there; tags close in order; names are escaped; nothing is fetched; no id comes twice."""
    text = render_page(full)
    page = Page(text)
    assert page.open == []
    assert page.headings == [
        "Runs",
        "Members",
        "Candidates",
        "Confusion matrix",
        "F1 per class",
        "Calibration",
        "Agreement between members",
        "Test-time augmentation",
        "Class distribution",
        "Largest disagreements",
        "Reproduce",
        "Not in this report",
    ]
    assert [one.section for one in full.missing] == ["Evidence maps of the disagreements"]
    assert "script" not in page.tags
    assert page.tags.count("img") == 12
    assert page.tags.count("svg") == 5
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert len(set(page.ids)) == len(page.ids)
    assert {a[1:] for a in page.addresses if a.startswith("#")} <= set(page.ids)
    assert "&lt;script&gt;alert(1)" in text
    assert "$x_1$ &amp; y" in text
    assert "no CUDA device &lt;b&gt;could&lt;/b&gt; be used" in text
    assert not re.search(r"#0102|url\((?!#)|@import|https?://(?!www\.w3\.org/)", text)
    assert len(text.encode()) < 1_000_000


def test_the_page_says_what_would_add_what_it_lacks(files: Path) -> None:
    """From predictions alone only what they tell is shown, and each missing input is named."""
    found = report([files / "test/a_f0"])
    page = Page(render_page(found))
    assert page.headings == ["Runs", "Members", "Not in this report"]
    remedies = " ".join(one.remedy for one in found.missing)
    assert all(word in remedies for word in ("--truth", "--oof", "--recipe", "--images", "two or more members"))
    assert summary_of(found) == "1 member, 240 images, no ground truth"


def test_many_classes_and_members_do_not_make_it_too_large(tmp_path: Path) -> None:
    """With 300 classes and 100 members the page is below 1 MB, and says which of them it shows."""
    (member, *_), truth = contest(classes=300, members=1)
    write_truth(tmp_path / "truth.csv", truth)
    write_member(tmp_path, member, group="a", fold=None, rows=np.arange(len(truth.ids)))
    found = report([tmp_path / "a"], truth=tmp_path / "truth.csv")
    shares = np.random.default_rng(0).random((100, 100))
    text = render_page(replace(found, agreement=MemberAgreement(tuple(f"m{i}" for i in range(100)), shares)))
    assert len(text.encode()) < 1_000_000
    assert "the 24 of 100 members that agree least" in text
    assert "The 40 of 300 classes with the lowest F1." in text
    assert "the 40 of 300 classes that differ most" in text
    least = int(shares.mean(axis=1).argmin())
    assert f">m{least}<" in text


def test_the_command_writes_the_same_bytes_again(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Twice the same command, twice the same page, which shows that command; --json names it with its size."""
    command = ["report", f"{files / 'test'}", "--truth", f"{files / 'test.csv'}", "-o", f"{files / 'report.html'}"]
    pages = []
    for _ in range(2):
        assert run([*command, "--json"]) == 0
        pages.append((files / "report.html").read_bytes())
    assert pages[0] == pages[1]
    summary = json.loads(capsys.readouterr().out.rpartition("\n{")[2].join(["{", ""]))
    assert summary["bytes"] == len(pages[0])
    assert " ".join(["ens", *command]) in pages[0].decode()


def test_inputs_that_do_not_fit_are_refused(files: Path, tmp_path: Path) -> None:
    """Out-of-fold without a truth, a recipe of other groups or with damaged reasons, a damaged record: errors."""

    def code_of(
        predictions: Path, recipe: Path | None = None, oof: Path | None = None, truth: Path | None = None
    ) -> str:
        with pytest.raises(EnsError) as caught:
            report([predictions], recipe=recipe, oof=[] if oof is None else [oof], truth=truth)
        return caught.value.code

    assert code_of(files / "test", oof=files / "oof") == "E204"
    assert code_of(files / "test", files / "blend.json", files / "oof/a_f0", files / "oof.csv") == "E330"
    assert code_of(files / "test/a_f0", files / "blend.json") == "E517"
    for damaged in ({}, {"gain": "0.1"}, {"weights": [1.0]}):
        value = json.loads((files / "blend.json").read_text())
        del value["learned"]["table"][0]["gain"]
        value["learned"]["table"][0] |= damaged
        (tmp_path / "blend.json").write_text(json.dumps(value))
        assert code_of(files / "test", tmp_path / "blend.json") == "E518"
    shutil.copytree(files / "test/a_f0", tmp_path / "a_f0")
    record = json.loads((files / "test/a_f0/_run.json").read_text())
    for other in ({"member": "a"}, record | {"member": 3}, record | {"images": "240"}, record | {"views": "identity"}):
        (tmp_path / "a_f0/_run.json").write_text(json.dumps(other))
        assert code_of(tmp_path / "a_f0") == "E514"


def test_without_matplotlib_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error is E205, and its hint installs the extra `report`."""
    for module in ("plots", "report_sections", "report_html"):
        monkeypatch.delitem(sys.modules, f"ensemble.analysis.{module}", raising=False)
        monkeypatch.delattr(ensemble.analysis, module, raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run(["report", "preds", "-o", "report.html"]) == 2
    assert "[E205] ens report needs matplotlib" in (said := capsys.readouterr().err)
    assert install_command(extra="report") in said


def browse(folder: Path, text: str) -> tuple[str, str]:
    """Open a page at 400 and 1,400 px; its widths, inner and scrolled, with what it fetched, and the browser's log."""
    assert CHROMIUM is not None
    folder.mkdir()
    (folder / "report.html").write_text(text, encoding="utf-8")
    frames = "".join(f'<iframe src="report.html" style="width:{w}px;height:900px"></iframe>' for w in (400, 1400))
    found = """[...document.querySelectorAll('iframe')].map(f => [
        f.contentDocument.documentElement.clientWidth, f.contentDocument.documentElement.scrollWidth,
        f.contentWindow.performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:')).length])"""
    frame = folder / "frame.html"
    frame.write_text(f"{frames}<script>onload = () => document.title = {found}</script>")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--dump-dom"]
    options += [
        "--disable-background-networking",
        "--disable-component-update",
        "--host-resolver-rules=MAP * ~NOTFOUND",
    ]
    options += ["--enable-logging=stderr", "--allow-file-access-from-files", f"--user-data-dir={folder / 'profile'}"]
    done = subprocess.run(
        [CHROMIUM, *options, frame.as_uri()], capture_output=True, text=True, timeout=HANG, check=True
    )
    return done.stdout.partition("<title>")[2].partition("</title>")[0], done.stderr


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")
def test_a_browser_opens_it_without_a_word(full: Report, tmp_path: Path) -> None:
    """Chromium reports nothing on its console, fetches nothing, and need not scroll sideways at 400 or 1,400 px; a page
    that asks for a picture from elsewhere is told on.
    """
    text = render_page(full)
    found, said = browse(tmp_path / "page", text)
    assert found == "400,400,0,1400,1400,0"
    assert "CONSOLE" not in said
    assert (
        "CONSOLE" in browse(tmp_path / "bad", text.replace("<h1>", '<h1><img src="https://example.invalid/a.png">'))[1]
    )
