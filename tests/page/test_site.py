"""The folder of a page: what is in it, what is refused, the pinned runtime, and the server."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from http.server import ThreadingHTTPServer
from pathlib import Path

import onnx
import pytest

from ensemble.__main__ import run
from ensemble.analysis.html import PALETTE
from ensemble.blend.pooling import LINEAR
from ensemble.blend.recipe import Group, Recipe
from ensemble.card import FaceCrop
from ensemble.errors import EnsError
from ensemble.events import Recorder
from ensemble.labels import MASK18, LabelSpace
from ensemble.page import runtime
from ensemble.page import site as site_module
from ensemble.page.facts import read_fused
from ensemble.page.runtime import BINARY, SCRIPT, WebRuntime, read_runtime
from ensemble.page.server import address_of, open_server
from ensemble.page.site import Site, write_site
from tests.support import toys
from tests.support.fused import fused_proto

WEB = WebRuntime(b"export const env = {};", b"\0asm" + bytes(1000))


def site_of(model: onnx.ModelProto, folder: Path, title: str = "Which mask?") -> Site:
    """Write a page with a runtime of a few bytes."""
    return write_site(read_fused(model.SerializeToString(), Path("ensemble.onnx")), folder, WEB, title=title)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "ensemble.onnx"
    path.write_bytes(fused_proto().SerializeToString())
    return path


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the runtime's two files, whose hashes are the pinned ones."""
    files = {SCRIPT: WEB.script, BINARY: WEB.binary}
    folder = tmp_path / "onnxruntime-web" / "dist"
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    monkeypatch.setattr(runtime, "SHA256", hashes)
    return folder.parent


def code_of(*arguments: object, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that fails, and return the code of its error."""
    assert run([*map(str, arguments), "--json"]) != 0
    found: str = json.loads(capsys.readouterr().out)["error"]["code"]
    return found


def test_the_folder_holds_the_model_the_runtime_and_the_page(tmp_path: Path) -> None:
    """The model is byte for byte the given one, the runtime unpacks to the given one, and nothing else is written."""
    proto = fused_proto()
    site = site_of(proto, tmp_path / "site")
    found = {path.name: path.read_bytes() for path in (tmp_path / "site").iterdir()}
    assert {name: len(data) for name, data in found.items()} == dict(site.files)
    assert found["ensemble.onnx"] == proto.SerializeToString()
    assert found["ort.js"] == WEB.script
    assert gzip.decompress(found["ort.wasm.gz"]) == WEB.binary
    assert found["page.css"].startswith(PALETTE.encode())
    assert site.size == sum(map(len, found.values()))


def test_the_facts_are_those_of_the_card(tmp_path: Path) -> None:
    """facts.json has the labels, the members with their shares, the rule's name, and the files' sizes and hashes."""
    site = site_of(fused_proto(LabelSpace.flat(["cat", "dog"]), shares=(0.9, 0.1), bias=(0, 1)), tmp_path)
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert facts["labels"] == ["cat", "dog"]
    assert [(member["name"], member["share"]) for member in facts["members"]] == [("toy0", 0.9), ("toy1", 0.1)]
    assert facts["rule"] == "prior"
    assert facts["maps"]["member"] == "toy0"
    assert facts["files"]["model"]["bytes"] == site.files["ensemble.onnx"]
    assert facts["files"]["model"]["sha256"] == hashlib.sha256((tmp_path / "ensemble.onnx").read_bytes()).hexdigest()
    assert facts["runtime"]["integrity"] == runtime.INTEGRITY


def test_without_maps_in_the_graph_the_page_says_nothing_of_them(tmp_path: Path) -> None:
    """A card may speak of maps, but only an output of that name counts."""
    site_of(fused_proto(maps=False), tmp_path)
    assert json.loads((tmp_path / "facts.json").read_text())["maps"] is None


def test_a_large_page_is_said_to_be_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """W830 names the size; a page below the limit has no notice."""
    fused, heard = read_fused(fused_proto().SerializeToString(), Path("e.onnx")), Recorder()
    write_site(fused, tmp_path / "small", WEB, listener=heard)
    assert heard.notices == []
    monkeypatch.setattr(site_module, "_LARGE", 10_000)
    write_site(fused, tmp_path / "large", WEB, listener=heard)
    assert [notice.code for notice in heard.notices] == ["W830"]


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    """Neither time nor folder is in the files, and a page may be written over an older one."""
    site_of(fused_proto(seed=5), tmp_path / "a")
    for folder in ("a", "b"):
        site_of(fused_proto(), tmp_path / folder)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "b").iterdir())
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_a_title_cannot_break_out_of_the_page(tmp_path: Path) -> None:
    """Markup and template marks in a title are text."""
    site_of(fused_proto(), tmp_path, title='<script>alert(1)</script> "$kind" & more')
    page = (tmp_path / "index.html").read_text()
    assert page.count("<script") == 1
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &quot;$kind&quot; &amp; more" in page


def test_the_page_asks_for_no_other_host(tmp_path: Path) -> None:
    """No file of the page itself names an address; the policy permits its own server only."""
    site = site_of(fused_proto(), tmp_path)
    for name in site.files.keys() - {"ensemble.onnx", "ort.js", "ort.wasm.gz"}:
        text = (tmp_path / name).read_text()
        # decode.js compares with the name of XMP's namespace, which is no address to open
        assert "//" not in text.replace("// ", "").replace("http://ns.adobe.com/xap", ""), name
    page = (tmp_path / "index.html").read_text()
    assert "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'" in page


@pytest.mark.parametrize(
    ("proto", "code"),
    [(fused_proto(boxes=True), "E830"), (fused_proto(members=False), "E830"), (onnx.ModelProto(), "E807")],
    ids=["boxes", "no members", "not fused"],
)
def test_models_that_a_page_cannot_run_are_refused(tmp_path: Path, proto: onnx.ModelProto, code: str) -> None:
    """A model of face crops, one without its members' probabilities, and one that is not fused leave no file."""
    with pytest.raises(EnsError) as caught:
        site_of(proto, tmp_path / "site")
    assert caught.value.code == code
    assert not (tmp_path / "site").exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    """E833 names a file that is in the way, and nothing is written."""
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(EnsError, match=r"thesis\.tex") as caught:
        site_of(fused_proto(), tmp_path)
    assert caught.value.code == "E833"
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("place", [".", "dist"])
def test_the_runtime_is_read_from_a_folder(package: Path, place: str) -> None:
    """The package's folder and the one that holds the files are both taken."""
    found = read_runtime(package / place)
    assert (found.script, found.binary) == (WEB.script, WEB.binary)


def test_a_changed_runtime_is_refused(package: Path) -> None:
    """One other byte in the WebAssembly is E832, which names the file."""
    (package / "dist" / BINARY).write_bytes(WEB.binary + b"\0")
    with pytest.raises(EnsError, match=BINARY) as caught:
        read_runtime(package)
    assert caught.value.code == "E832"


def test_a_folder_without_the_runtime_is_refused(tmp_path: Path) -> None:
    """E832 says which files are expected."""
    with pytest.raises(EnsError, match=SCRIPT) as caught:
        read_runtime(tmp_path)
    assert caught.value.code == "E832"


def packed(package: Path) -> bytes:
    """The package as `npm pack` writes it: a gzipped tar file with everything below `package`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for path in sorted((package / "dist").iterdir()):
            archive.add(path, f"package/dist/{path.name}")
    return buffer.getvalue()


def test_a_package_is_verified_by_its_integrity(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file of npm pack is read if its SHA-512 is the pinned one, and refused otherwise."""
    file = tmp_path / "onnxruntime-web.tgz"
    file.write_bytes(packed(package))
    with pytest.raises(EnsError, match="sha512-") as caught:
        read_runtime(file)
    assert caught.value.code == "E832"
    found = str(caught.value).partition("its integrity is ")[2].partition(",")[0]
    monkeypatch.setattr(runtime, "INTEGRITY", found)
    assert read_runtime(file).binary == WEB.binary


def program(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a program of the name npm first on the path."""
    folder.mkdir()
    (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_npm_is_asked_for_the_pinned_version(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """npm pack is run with name and version, and its file is verified."""
    (tmp_path / "made.tgz").write_bytes(packed(package))
    monkeypatch.setattr(runtime, "INTEGRITY", "sha512-of another")
    program(tmp_path / "bin", f'echo "$@" > {tmp_path}/asked\ncp {tmp_path}/made.tgz x.tgz', monkeypatch)
    with pytest.raises(EnsError) as caught:
        read_runtime(None)
    assert caught.value.code == "E832"
    assert (tmp_path / "asked").read_text().startswith(f"pack onnxruntime-web@{runtime.VERSION} ")


def test_a_failure_of_npm_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """E831 has the lines that npm wrote, and how to do without it."""
    program(tmp_path / "bin", "echo 'npm error code ENOTFOUND' >&2\nexit 1", monkeypatch)
    with pytest.raises(EnsError) as caught:
        read_runtime(None)
    assert caught.value.code == "E831"
    assert caught.value.details == ("npm error code ENOTFOUND",)
    assert "--runtime" in caught.value.hint


def test_without_npm_the_option_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """E831 says how the package gets here without npm."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnsError) as caught:
        read_runtime(None)
    assert caught.value.code == "E831"
    assert "--runtime" in caught.value.hint


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    site_of(fused_proto(), tmp_path / "site")
    with open_server(tmp_path / "site") as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield address_of(server)
        server.shutdown()
        thread.join()


def test_the_server_sends_the_types_that_browsers_require(address: str, tmp_path: Path) -> None:
    """Scripts are JavaScript and styles CSS, whatever the machine's tables of types say; only the folder is served."""
    types = {"": "text/html", "page.js": "text/javascript", "page.css": "text/css", "facts.json": "application/json"}
    for name, wanted in types.items():
        with urllib.request.urlopen(address + name) as answer:
            assert answer.headers.get_content_type() == wanted, name
    (tmp_path / "secret").write_text("x")
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(address + "../secret")


def test_a_folder_without_a_page_is_not_served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--open serves what this command wrote, and no other folder."""
    assert code_of("page", tmp_path, "--open", capsys=capsys) == "E707"


def test_a_port_in_use_is_an_error_of_the_option(
    address: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message names --port, and nothing is written before."""
    port = address.rstrip("/").rpartition(":")[2]
    with pytest.raises(EnsError, match="--port") as caught:
        open_server(tmp_path / "site", int(port))
    assert caught.value.code == "E204"
    assert code_of("page", model, "-o", tmp_path / "new", "--open", "--port", port, capsys=capsys) == "E204"
    assert not (tmp_path / "new").exists()


def test_open_prints_one_json_value(
    model: Path, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --open, the facts of the page and its address are one value, and Ctrl-C is no failure."""
    asked: list[str] = []

    def stop(_: ThreadingHTTPServer) -> None:
        raise KeyboardInterrupt(2)

    monkeypatch.setattr("webbrowser.open", asked.append)
    monkeypatch.setattr(ThreadingHTTPServer, "serve_forever", stop)
    arguments = ["page", model, "-o", tmp_path / "site", "--runtime", package, "--open", "--json"]
    assert run([*map(str, arguments)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["address"] == asked[0]
    assert found["members"] == ["toy0", "toy1"]


def test_the_command_writes_the_page(
    model: Path, package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`ens page` prints the folder, its size and the members; the title is on the page."""
    folder = tmp_path / "site"
    arguments = ["page", model, "-o", folder, "--runtime", package, "--title", "Mask & age"]
    assert run([*map(str, arguments), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["bytes"] == sum(path.stat().st_size for path in folder.iterdir())
    assert found["members"] == ["toy0", "toy1"]
    assert "<h1>Mask &amp; age</h1>" in (folder / "index.html").read_text()


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe of two models in the folder models beside it."""
    for number in range(2):
        toys.write_model(tmp_path / "models", toys.card(f"m{number}"), seed=number)
    groups = {f"m{number}": Group(3.0 - number, {f"m{number}": "0" * 64}) for number in range(2)}
    path = tmp_path / "blend.json"
    path.write_text(Recipe(pool=LINEAR, views={"identity": 1.0, "hflip": 1.0}, groups=groups, labels=MASK18).to_json())
    return path


def test_the_command_fuses_a_recipe(
    recipe: Path, package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page runs the recipe's members by their weights, says what it was compared on, and names the license."""
    arguments = ["page", recipe, "--models", tmp_path / "models", "-o", tmp_path / "site", "--runtime", package]
    assert run([*map(str, arguments), "--license", "CC-BY-4.0", "--json"]) == 0
    printed = capsys.readouterr()
    assert "W802" in printed.err
    assert "no map of evidence: m0: m0.onnx has no output 'features'" in printed.err
    assert json.loads(printed.out)["members"] == ["m0", "m1"]
    facts = json.loads((tmp_path / "site" / "facts.json").read_text())
    assert [member["share"] for member in facts["members"]] == pytest.approx([0.6, 0.4])
    assert "License of the models: CC-BY-4.0." in (tmp_path / "site" / "index.html").read_text()


def test_what_contradicts_a_recipe_is_refused(
    recipe: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A recipe without models, with too few, or of face crops; options of a recipe for a fused file or a folder."""
    site = ("-o", tmp_path / "site")
    assert code_of("page", recipe, *site, capsys=capsys) == "E204"
    assert code_of("page", model, "--models", tmp_path, *site, capsys=capsys) == "E204"
    assert code_of("page", tmp_path, "--open", "--title", "x", capsys=capsys) == "E204"
    (tmp_path / "models" / "m1.onnx").rename(tmp_path / "m1.onnx")
    assert code_of("page", recipe, "--models", tmp_path / "models", *site, capsys=capsys) == "E530"
    card = toys.card("m1")
    toys.write_model(tmp_path / "models", replace(card, preprocess=replace(card.preprocess, face=FaceCrop(0.3))))
    assert code_of("page", recipe, "--models", tmp_path / "models", *site, capsys=capsys) == "E830"
    assert not (tmp_path / "site").exists()


def test_bad_input_is_refused_before_npm_is_asked(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A missing model, a file that is no model, a missing -o and a folder of other files cost no download."""
    monkeypatch.setenv("PATH", str(tmp_path))  # without npm, asking for it is E831
    (tmp_path / "other.txt").write_text("x")
    assert code_of("page", tmp_path / "none.onnx", "-o", tmp_path / "site", capsys=capsys) == "E707"
    assert code_of("page", tmp_path / "other.txt", "-o", tmp_path / "site", capsys=capsys) == "E807"
    assert code_of("page", model, capsys=capsys) == "E204"
    assert code_of("page", model, "-o", tmp_path, capsys=capsys) == "E833"
    assert code_of("page", tmp_path, "-o", tmp_path / "site", capsys=capsys) == "E204"
    assert code_of("page", model, "-o", tmp_path / "site", capsys=capsys) == "E831"
