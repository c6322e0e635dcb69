"""The files of a repository on the Hugging Face Hub: the model card with its metadata block, and ``config.json``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ensemble.blend.decision_rules import rule_to_json
from ensemble.blend.recipe import Recipe
from ensemble.card import Preprocess
from ensemble.errors import DeployError, OptionError, enumerate_some
from ensemble.events import Listener, Notice
from ensemble.fuse.fuse import Fused
from ensemble.install import install_command
from ensemble.text.input_file import read_input
from ensemble.text.json_text import MAX_BYTES, parse_json

_MOST_LABELS = 200
_MARKS = re.compile(r"[\\`|<\[\]]")
_TAGS = ("onnx", "ensemble", "image-classification", "soft-voting")


@dataclass(frozen=True, slots=True)
class HubFacts:
    """The content of a model card: the fused file, the script that runs it, and scores of ``ens evaluate --json``."""

    fused: Fused
    script: str
    scores: Mapping[str, Any] | None
    title: str


def hub_files(facts: HubFacts, listener: Listener) -> dict[str, str]:
    """Return ``README.md`` and ``config.json`` by name.

    Raises:
        DeployError: E812 when the scores are not those of ``ens evaluate --json``.
    """
    card = facts.fused.card
    if card.license is None:
        listener.notice(Notice("W811", "no license is given: others may not use the model (--license)"))
    if facts.scores is None:
        listener.notice(Notice("W811", "no scores are given: the model card has none (--scores)"))
    names = card.recipe.labels.names
    config = {
        "architectures": sorted({member.card.arch for member in card.members}),
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
        "num_labels": len(names),
        "problem_type": (
            "single_label_classification" if card.recipe.activation == "softmax" else "multi_label_classification"
        ),
    }
    return {"README.md": _model_card(facts), "config.json": json.dumps(config, ensure_ascii=False, indent=2) + "\n"}


def require_scores_of(recipe: Recipe, scores: Mapping[str, Any]) -> None:
    """Check that scores are not those of one of several members.

    Raises:
        DeployError: E812 when they are, or when they are not those of ``ens evaluate --json``.
    """
    _estimates(scores)
    name = scores["scores"][0]["name"]
    if len(recipe.inputs) > 1 and name in recipe.inputs:
        raise DeployError("E812", f"the scores are those of the member {name}, not of the ensemble")


def push(folder: Path, files: Sequence[str], name: str) -> str:
    """Upload a written bundle to the repository ``USER/NAME`` of the Hub, which is created if it does not exist.

    The token and the endpoint are huggingface_hub's own: from ``huggingface-cli login`` or its environment variables.

    Returns:
        The address of the commit.

    Raises:
        OptionError: E204 when the name has another form, E205 when huggingface_hub is not installed.
        DeployError: E813 when the Hub refuses the upload or cannot be reached.
    """
    user, slash, repository = name.partition("/")
    if not slash or not user or not repository or "/" in repository:
        raise OptionError("E204", f"--push takes USER/NAME, got {name!r}")
    try:
        import huggingface_hub
    except ModuleNotFoundError as err:
        raise OptionError("E205", "--push needs huggingface_hub", hint=install_command("huggingface-hub")) from err
    try:
        api = huggingface_hub.HfApi()
        api.create_repo(name, exist_ok=True)
        done = api.upload_folder(
            repo_id=name, folder_path=folder, allow_patterns=list(files), commit_message="Add the ensemble"
        )
    except Exception as err:  # the failures of httpx and of the Hub have no common class
        reason = (str(err).strip().splitlines() or [type(err).__name__])[0]
        raise DeployError("E813", f"the upload to {name} failed: {reason}") from err
    return str(done.commit_url)


def _model_card(facts: HubFacts) -> str:
    card = facts.fused.card
    members = [
        f"| {in_markdown(one.name)} | {in_markdown(one.card.arch)} | {one.card.precision} | {one.share:.1%} "
        f"| {_describe(one.card.preprocess)} |"
        for one in card.members
    ]
    about = (
        f"An ensemble of {len(card.members)} image classifiers in one ONNX file: it takes RGB pixels of any size and "
        f"gives the probabilities of {len(card.recipe.labels)} classes and the class. "
        "Resizing, views, voting and decision are in the graph."
    )
    rule = rule_to_json(card.recipe.rule)
    parts = [
        _metadata(facts),
        f"# {in_markdown(facts.title)}",
        about,
        "## Run it",
        "```bash\npip install onnxruntime pillow\npython run.py photo.jpg\n```",
        f"```python\n{facts.script}```",
        "## Scores",
        _scores(facts.scores),
        "## Members",
        "| member | network | precision | share | its image |\n|---|---|---|---|---|\n" + "\n".join(members),
        f"Pool `{card.recipe.pool.name}`, rule `{rule['name'] if isinstance(rule, dict) else rule}`.",
        "## Labels",
        _labels(card.recipe.labels.names),
    ]
    return "\n\n".join(parts) + "\n"


def _metadata(facts: HubFacts) -> str:
    """Return the YAML block; every text is a JSON string, which is YAML as well."""
    lines = ["---"]
    if facts.fused.card.license is not None:
        lines.append(f"license: {json.dumps(facts.fused.card.license.lower())}")
    lines += ["library_name: onnx", "pipeline_tag: image-classification", "tags:"]
    lines += [f"- {tag}" for tag in _TAGS]
    if facts.scores is not None:
        metrics = _estimates(facts.scores)
        lines += ["model-index:", f"- name: {json.dumps(facts.title)}", "  results:"]
        lines += ["  - task:", "      type: image-classification", "    dataset:"]
        lines += ["      name: evaluation images", "      type: images", "    metrics:"]
        for name, value in metrics.items():
            lines += [f"    - name: {json.dumps(name)}", f"      type: {json.dumps(name.replace(' ', '_'))}"]
            lines += [f"      value: {value['value']:.6g}"]
    return "\n".join([*lines, "---"])


def in_markdown(text: str) -> str:
    """Return a text for a line or cell of a page: no line break, and no sign that begins a cell, a tag or a link."""
    return _MARKS.sub(r"\\\g<0>", " ".join(text.split()))


def _describe(preprocess: Preprocess) -> str:
    height, width = preprocess.size
    face = "face, " if preprocess.face is not None else ""
    return f"{face}{width} x {height} px, {preprocess.resize}, {preprocess.resizer} {preprocess.interpolation}"


def _labels(names: Sequence[str]) -> str:
    rows = [f"| {number} | {in_markdown(name)} |" for number, name in enumerate(names[:_MOST_LABELS])]
    more = len(names) - _MOST_LABELS
    rest = f"\n\n{more:,} more are in `labels.txt`." if more > 0 else ""
    return "| class | label |\n|---|---|\n" + "\n".join(rows) + rest


def _scores(scores: Mapping[str, Any] | None) -> str:
    if scores is None:
        return "Not given."
    rows = [
        f"| {in_markdown(str(name))} | {value['value']:.4f} | {value['low']:.4f} to {value['high']:.4f} |"
        for name, value in _estimates(scores).items()
    ]
    table = "| metric | score | 95 % interval |\n|---|---|---|\n" + "\n".join(rows)
    persons = scores.get("persons")
    basis = f"{scores['images']:,} images" + (f" of {persons:,} persons" if persons is not None else "")
    return f"On {basis}, with bootstrap intervals.\n\n{table}"


def _estimates(scores: Mapping[str, Any]) -> dict[Any, dict[str, float]]:
    """Return the scores with intervals, by name, of the one set of answers that was evaluated: the ensemble's.

    Raises:
        DeployError: E812 when they are not those of ``ens evaluate --json``.
    """
    try:
        names = [str(one["name"]) for one in scores["scores"]]
        if len(names) > 1:
            message = f"the scores are of {len(names)} sets of answers, and not of the ensemble alone"
            raise DeployError("E812", f"{message}: {enumerate_some(names)}")
        (only,) = scores["scores"]
        found = {name.replace("_", " "): value for name, value in only.items()}
        found |= {f"accuracy of {axis}": value for axis, value in only.get("axes", {}).items()}
        found |= {name: value["estimate"] for name, value in only.get("metrics", {}).items()}
        kept = {
            name: {key: float(value[key]) for key in ("value", "low", "high")}
            for name, value in found.items()
            if isinstance(value, Mapping) and {"value", "low", "high"} <= value.keys()
        }
        int(scores["images"])
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as err:
        raise DeployError("E812", f"the scores are not those of ens evaluate --json: {err!r}") from err
    if not kept:
        raise DeployError("E812", "the scores are not those of ens evaluate --json: none has an interval")
    return kept


def read_scores(path: Path) -> Mapping[str, Any]:
    """Read what ``ens evaluate --json`` printed.

    Raises:
        FileError: E707 when the file cannot be read.
        DeployError: E812 when it holds no scores.
    """
    try:
        value = parse_json(read_input(path, limit=MAX_BYTES).decode("utf-8-sig"))
    except ValueError as err:
        raise DeployError("E812", f"{path.name} is not JSON: {err}", path=path) from err
    if not isinstance(value, Mapping):
        raise DeployError("E812", f"{path.name} is not what ens evaluate --json prints", path=path)
    _estimates(value)
    return value
