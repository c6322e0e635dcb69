"""Stop commands by SIGINT and SIGTERM at random moments, run them again, and compare every byte.

    python -m tests.harness.stops --times 48

Each round starts a command on toy data in a process of its own and sends it a signal at a moment drawn over the whole
of an undisturbed run, start-up included. It must end with 130 or 143 (or, in Python's own imports, as any program does)
within fifteen seconds, two where nothing has to be written, without a traceback. Then no file may stand under a final
name but the one from before or the whole new one, and the same command, run again, must leave the files of an
undisturbed run: the same names, the same bytes, nothing temporary. The commands are those that `kills` does not have.
Signals of `predict`, `submit` and the others are in `tests/test_stop_signals.py`. pytest does not collect this file.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper
from PIL import Image

from ensemble.blend.recipe import make_recipe
from ensemble.labels import LabelSpace
from ensemble.predictions.dataset import Part, hash_ids, part_path, read_predictions, write_complete, write_part
from ensemble.runtime.model_file import FEATURES
from tests.harness.kills import Command, contents, require_whole
from tests.support import toys
from tests.support.children import ROOT

SIGNALS = ("SIGINT", "SIGTERM")
AT_ONCE = 2.0  # seconds of the clock, where nothing is written
LONGEST = 15.0  # seconds of the clock, in which results are written
_LIMIT = 1800  # seconds of the clock that a command may take on a machine that others use too
_NAMES = ("cat", "dog", "owl")
_LABELS = LabelSpace.flat(_NAMES)
_IDS = tuple(f"{name}/{i}.png" for name in _NAMES for i in range(12))


@dataclass(slots=True)
class Stops:
    """For each command the seconds from a signal to its end, and how often it had ended before."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    ended: dict[str, int] = field(default_factory=dict)

    def render(self) -> str:
        """A table with a line a command."""
        lines = [f"{'':10}{'stopped':>9}{'ended before':>14}{'at most':>10}{f'over {AT_ONCE:g} s':>10}"]
        for name, found in self.seconds.items():
            late = sum(one > AT_ONCE for one in found)
            longest = max(found, default=0.0)
            lines.append(f"{name:10}{len(found):9}{self.ended[name]:14}{longest:8.1f} s{late:10}")
        return "\n".join(lines)


def hear(signals: Sequence[str]) -> None:
    """Stop ignoring signals: a shell starts what runs in its background so, and the commands inherit it."""
    for name in signals:
        number = signal.Signals[name]
        if number != signal.SIGKILL and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL)


def start(command: Command, out: Path) -> subprocess.Popen[str]:
    """Start a command as a user does."""
    arguments = [argument.replace("{out}", f"{out}") for argument in command.arguments]
    return subprocess.Popen(
        [sys.executable, "-m", "ensemble", *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run_whole(command: Command, out: Path) -> float:
    """Run a command to its end; the seconds of the clock that it took.

    Raises:
        AssertionError: when it does not end with 0.
    """
    began = time.monotonic()
    process = start(command, out)
    said = process.communicate(timeout=_LIMIT)[0]
    assert process.returncode == 0, f"{command.name} ended with {process.returncode}: {said}"
    return time.monotonic() - began


def stop(command: Command, out: Path, number: signal.Signals, moment: float) -> float | None:
    """Start a command and send it a signal after so many seconds; those until its end, None if it had ended by then.

    Raises:
        AssertionError: when it ends with another status, too late or with a traceback.
    """
    process = start(command, out)
    with contextlib.suppress(subprocess.TimeoutExpired):
        said = process.communicate(timeout=moment)[0]
        assert process.returncode == 0, f"{command.name} ended with {process.returncode}: {said}"
        return None
    process.send_signal(number)
    began = time.monotonic()
    said = process.communicate(timeout=_LIMIT)[0]
    seconds = time.monotonic() - began
    where = f"{command.name} after {moment:.2f} s and {number.name}"
    if process.returncode == 0:  # it was about to end
        assert seconds < LONGEST + 1, f"{where} went on for {seconds:.1f} s to its usual end: {said}"
        return None
    assert "Traceback" not in said, f"{where}: {said}"
    if process.returncode != -number:  # else it came before the command began
        assert process.returncode == 128 + number, f"{where} ended with {process.returncode}: {said}"
        assert "E801" in said, f"{where}: {said}"
    assert seconds < LONGEST + 1, f"{where} took {seconds:.1f} s to end: {said}"
    return seconds


def stop_often(
    folder: Path,
    *,
    times: int,
    seed: int = 0,
    names: Collection[str] = (),
    signals: Sequence[str] = SIGNALS,
    tell: bool = False,
) -> Stops:
    """Stop commands ``times`` times, work in ``folder``; ``names`` are those of the commands, by default all, and
    ``signals`` those that they get in turn.

    Raises:
        AssertionError: when a command ends in another way than it must, or a file is torn, differs or is left over.
    """
    hear(signals)
    generator = random.Random(seed)
    commands = [MAKERS[name](folder / "data" / name) for name in names or MAKERS]
    expected: dict[str, Mapping[str, bytes]] = {}
    seconds: dict[str, float] = {}
    stops = Stops()
    for number in range(times):
        command = commands[number % len(commands)]
        name = command.name
        if name not in expected:
            command.prepare(quiet := folder / "quiet" / name)
            seconds[name] = run_whole(command, quiet)
            expected[name] = contents(quiet)
            stops.seconds[name], stops.ended[name] = [], 0
        out = folder / "stopped" / name
        command.prepare(out)
        sent = signal.Signals[signals[number // len(commands) % len(signals)]]
        moment = generator.uniform(0, seconds[name])
        took = stop(command, out, sent, moment)
        if took is None:
            stops.ended[name] += 1
        else:
            stops.seconds[name].append(took)
        require_whole(contents(out), expected[name], command.old)
        run_whole(command, out)
        after = contents(out)
        wanted = expected[name]
        differing = sorted(one for one in after.keys() | wanted.keys() if after.get(one) != wanted.get(one))
        assert not differing, f"{name} after {moment:.2f} s and {sent.name}: {differing} differ"
        if tell:
            how = "had ended" if took is None else f"ended in {took:.1f} s"
            text = f"{number + 1:4} {name} {sent.name} after {moment:.2f} of {seconds[name]:.2f} s: {how}"
            print(text, flush=True)  # noqa: T201 - a program for people
    return stops


def make_pictures(folder: Path) -> Path:
    """Drawn pictures of three classes, a folder each."""
    for number, name in enumerate(_IDS):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(toys.picture(number, size=(96, 72))).save(folder / name)
    return folder


def make_members(folder: Path, ids: Sequence[str] = _IDS, *, out_of_fold: bool = True) -> list[Path]:
    """Predictions of two members in two folds: of what each fold held out, or of all ``ids``."""
    found = []
    for group in ("a", "bb"):
        for fold in (0, 1):
            held = tuple(name for i, name in enumerate(_IDS) if i % 2 == fold)
            names = held if out_of_fold else tuple(ids)
            card = replace(
                toys.card(f"{group}_f{fold}", labels=_LABELS), group=group, fold=fold, holdout_sha256=hash_ids(held)
            )
            rng = np.random.default_rng([fold, len(group)])
            wanted = [_NAMES.index(name.partition("/")[0]) for name in names]
            logits = (2 * np.eye(3)[wanted] + rng.normal(0, 1, (len(names), 3))).astype(np.float32)
            path = part_path(folder / card.member, 0)
            write_part(path, Part(names, {"identity": logits}, "toy", card))
            write_complete(folder / card.member, [path], len(names))
            found.append(folder / card.member)
    return found


def make_network(folder: Path) -> Path:
    """A small convolutional network of ens, with a head for three classes and its maps."""
    card = toys.card("net", size=(48, 48), labels=_LABELS)
    proto = toys.convolutional_proto(card)
    (pooling,) = (node for node in proto.graph.node if node.op_type == "GlobalAveragePool")
    proto.graph.node.append(helper.make_node("Identity", [pooling.input[0]], [FEATURES]))
    maps = helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, ["batch", 24, *card.preprocess.size])
    proto.graph.output.append(maps)
    return toys.write_model(folder, card, proto=proto)


def make_adopt(folder: Path) -> Command:
    """`ens adopt` of a network without a card over an older model."""
    model = onnx.load(make_network(folder / "models"))
    del model.metadata_props[:]
    onnx.save(model, path := folder / "net.onnx")
    (folder / "labels.json").write_text(json.dumps(_NAMES))
    images = make_pictures(folder / "images")
    options = ("--labels", f"{folder / 'labels.json'}", "--check-images", f"{images}", "-o", "{out}")
    return Command("adopt", ("adopt", f"{path}", "--output", "logits", *options), {"net.onnx": b"old"})


def make_audit(folder: Path) -> Command:
    """`ens audit` of labels and copies."""
    images = make_pictures(folder / "images")
    make_members(folder / "oof")
    old = {"audit.csv": b"old", "audit.html": b"old", "fixes.csv": b"old"}
    return Command("audit", ("audit", f"{images}", "--oof", f"{folder / 'oof'}", "-j", "1", "-o", "{out}"), old)


def make_blend(folder: Path) -> Command:
    """`ens blend` that learns from out-of-fold predictions."""
    make_members(folder / "oof")
    members = make_members(folder / "preds", out_of_fold=False)
    truth = "".join(f"{name},{_NAMES.index(name.partition('/')[0])}\n" for name in _IDS)
    (folder / "truth.csv").write_text(f"ImageID,ans\n{truth}")
    (folder / "labels.json").write_text(json.dumps(_NAMES))
    given = ("--oof", f"{folder / 'oof'}", "--truth", f"{folder / 'truth.csv'}", "--like", f"{folder / 'truth.csv'}")
    written = ("--save", "{out}/blend.json", "-o", "{out}/submission.csv")
    old = {"submission.csv": b"ImageID,ans\nold.jpg,0\n"}
    return Command("blend", ("blend", *map(str, members), *given, *written), old)


def make_distil(folder: Path) -> Command:
    """`ens distil` of two folds, an epoch each, with the export of the students."""
    images = make_pictures(folder / "images")
    make_members(folder / "oof")
    members = make_members(folder / "preds", out_of_fold=False)
    (folder / "blend.json").write_text(make_recipe([read_predictions(one) for one in members]).to_json())
    given = ("distil", f"{folder / 'blend.json'}", f"{images}", "--oof", f"{folder / 'oof'}")
    network = ("--arch", "test_resnet", "--size", "32", "--epochs", "1", "--augment", "none", "--device", "cpu")
    return Command("distil", (*given, *network, "--member", "small", "-o", "{out}"))


def make_explain(folder: Path) -> Command:
    """`ens explain` of all pictures."""
    model, images = make_network(folder / "models"), make_pictures(folder / "images")
    return Command("explain", ("explain", f"{model}", f"{images}", "--device", "cpu", "-o", "{out}"))


def make_fuse(folder: Path) -> Command:
    """`ens fuse` of two models over an older file."""
    for seed, name in enumerate(("a", "bb")):
        toys.write_model(folder / "models", toys.card(name, labels=_LABELS), seed=seed)
    images = make_pictures(folder / "images")
    predict = ("predict", f"{folder / 'models'}", "--images", f"{images}", "--device", "cpu")
    Command("predict", (*predict, "-o", "{out}")).run(folder / "preds", 256)
    members = [read_predictions(folder / "preds" / name) for name in ("a", "bb")]
    (folder / "blend.json").write_text(make_recipe(members).to_json())
    given = ("fuse", f"{folder / 'blend.json'}", "--models", f"{folder / 'models'}", "--check-images", f"{images}")
    return Command("fuse", (*given, "-o", "{out}/fused.onnx"), {"fused.onnx": b"old"})


def make_probe(folder: Path) -> Command:
    """`ens probe` on the features of a small network."""
    network, images = make_network(folder / "models"), make_pictures(folder / "images")
    return Command(
        "probe", ("probe", f"{images}", "--features", f"{network}", "--folds", "3", "--member", "p", "-o", "{out}")
    )


def make_ray(folder: Path) -> Command:
    """`ens predict` on a cluster that is started for it."""
    model, images = make_network(folder / "models"), make_pictures(folder / "images")
    options = ("--engine", "ray", "--device", "cpu", "-j", "1", "-b", "8", "--tta", "-o", "{out}")
    return Command("ray", ("predict", f"{model}", "--images", f"{images}", *options))


MAKERS: Mapping[str, Callable[[Path], Command]] = {
    "adopt": make_adopt,
    "audit": make_audit,
    "blend": make_blend,
    "distil": make_distil,
    "explain": make_explain,
    "fuse": make_fuse,
    "probe": make_probe,
} | ({"ray": make_ray} if importlib.util.find_spec("ray") is not None else {})


def main(arguments: Sequence[str] | None = None) -> None:
    """Stop so many times and print how long it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", nargs="+", choices=tuple(MAKERS), default=tuple(MAKERS))
    parser.add_argument("--signals", nargs="+", choices=(*SIGNALS, "SIGHUP", "SIGKILL"), default=SIGNALS)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        chosen = {"names": options.commands, "signals": options.signals}
        stops = stop_often(Path(folder), times=options.times, seed=options.seed, tell=True, **chosen)
    print(f"{options.times} stops, and every byte as without them\n{stops.render()}")  # noqa: T201 - as above


if __name__ == "__main__":
    main()
