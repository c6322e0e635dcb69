"""The page in Chromium: answers of photographs, sentences for what cannot be read, keyboard, layout, no request.

It is skipped where there is no Chromium, or where ENS_PAGE_RUNTIME does not name the npm package onnxruntime-web (its
file from `npm pack`, or its folder): tests fetch nothing.
"""

from __future__ import annotations

import json
import os
import struct
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from ensemble.images.decode import read_image
from ensemble.labels import MASK18, LabelSpace
from ensemble.page.facts import read_fused
from ensemble.page.runtime import WebRuntime, read_runtime
from ensemble.page.server import address_of, open_server
from ensemble.page.site import write_site
from tests.images.test_deep_color import png
from tests.images.test_sample_bits import with_sbit
from tests.support.chromium import CHROMIUM, Browser, browser
from tests.support.fused import fused_proto

RUNTIME = os.environ.get("ENS_PAGE_RUNTIME")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium"),
    pytest.mark.skipif(RUNTIME is None, reason="ENS_PAGE_RUNTIME does not name the package onnxruntime-web"),
]
READY = "document.body.dataset.state === 'ready'"
ANSWERED = "document.body.dataset.state === 'answered'"
PROBLEM = "!document.getElementById('problem').hidden"
HOSTILE = LabelSpace.flat(["<img src=x onerror=alert(1)>", "a & b"])


@dataclass(frozen=True)
class Opened:
    """A page in a browser, with the address of its folder and the model that it runs."""

    tab: Browser
    address: str
    session: onnxruntime.InferenceSession

    def expected(self, path: Path) -> dict[str, NDArray[np.generic]]:
        """The outputs of onnxruntime for the pixels that the program decodes."""
        names = [output.name for output in self.session.get_outputs()]
        return dict(zip(names, self.session.run(None, {"images": read_image(path).pixels[None]}), strict=True))

    def texts_of(self, selector: str) -> list[str]:
        """The texts of all elements of a selector."""
        found: list[str] = self.tab.evaluate(
            f"[...document.querySelectorAll({json.dumps(selector)})].map((element) => element.textContent)"
        )
        return found

    def text_of(self, selector: str) -> str:
        """The text of the first element of a selector."""
        return self.texts_of(selector)[0]

    def show(self, path: Path) -> None:
        """Choose a photograph, and wait for its answer."""
        self.tab.evaluate("document.body.dataset.state = 'before'")
        self.tab.give_files("#file", path)
        self.tab.wait_for(ANSWERED)


@pytest.fixture(scope="module")
def web() -> WebRuntime:
    return read_runtime(Path(RUNTIME or ""))


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    camera = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
    with browser(tmp_path_factory.mktemp("profile"), *camera) as found:
        found.show_as(width=1200)
        yield found


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="module")
def host(root: Path) -> Iterator[str]:
    """A server of a folder that has pages in folders below it."""
    # without an icon of its own, Chromium would ask for /favicon.ico, and report the 404 in whatever test comes next
    (root / "index.html").write_text('<!doctype html><link rel="icon" href="data:,">')
    (root / "facts.json").write_text("{}")
    with open_server(root) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield address_of(server)
        server.shutdown()
        thread.join()


def opened(tab: Browser, host: str, folder: Path, web: WebRuntime, model: onnx.ModelProto) -> Opened:
    """Write a page, open it, and wait until it is ready."""
    data = model.SerializeToString()
    write_site(read_fused(data, Path("ensemble.onnx")), folder, web)
    tab.events.clear()
    address = f"{host}{quote(folder.name)}/"
    tab.open(address)
    tab.wait_for(READY)
    return Opened(tab, address, onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"]))


@pytest.fixture(scope="module")
def site(tab: Browser, host: str, root: Path, web: WebRuntime) -> Opened:
    return opened(tab, host, root / "mask page", web, fused_proto())


@pytest.fixture
def page(site: Opened) -> Opened:
    """The page of two members with maps, freshly loaded."""
    site.tab.events.clear()
    site.tab.open(site.address)
    site.tab.wait_for(READY)
    return site


def photograph() -> Image.Image:
    """A picture that has no symmetry and many colors."""
    y, x = np.mgrid[0:120, 0:160]
    waves = (x * 1.6 % 256, (x + 2 * y) % 256, y * 2.1 % 256)
    return Image.fromarray(np.stack(waves, axis=-1).astype(np.uint8))


def photographs(folder: Path) -> list[Path]:
    """One picture in many forms: orientations in EXIF and XMP, a foreign color profile, transparency, one channel."""
    image, paths = photograph(), []

    def save(name: str, picture: Image.Image = image, **options: object) -> None:
        picture.save(folder / name, **options)  # type: ignore[arg-type]
        paths.append(folder / name)

    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        save(f"orientation{orientation}.jpg", exif=exif, quality=92)
    save("orientation.png", exif=exif)
    save("orientation.webp", exif=exif, lossless=True)
    save("xmp.jpg", xmp=b'<x tiff:Orientation="6"/>')
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = profile.replace(b"rXYZ", b"----").replace(b"bXYZ", b"rXYZ").replace(b"----", b"bXYZ")
    for kind in ("jpg", "png", "webp"):
        save(f"profile.{kind}", icc_profile=swapped)
    clear = image.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(image.size))
    save("clear.png", clear)
    save("clear.webp", clear, lossless=True)
    save("palette.png", image.quantize(32), transparency=3)
    save("grey.jpg", image.convert("L"))
    save("ink.jpg", image.convert("CMYK"))
    save("deep.png", Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257))
    path = folder / "scaled.png"
    path.write_bytes(with_sbit(png(np.asarray(image.convert("RGB")).astype(np.uint16) * np.uint16(256)), 12, 3))
    paths.append(path)
    save("halved.jpg", subsampling=2, progressive=True)
    save("x.gif", image.quantize(64))
    save("x.bmp")
    return paths


def test_the_pixels_are_those_of_the_program(page: Opened, tmp_path: Path) -> None:
    """For every format, orientation, profile and transparency, the page decodes as `ensemble.images.decode` does."""
    page.tab.evaluate("document.body.insertAdjacentHTML('beforeend', '<input type=file id=probe>')")
    script = """(async () => {
        const { decode } = await import("./decode.js");
        const bytes = new Uint8Array(await document.getElementById("probe").files[0].arrayBuffer());
        const { width, height, pixels } = await decode(bytes, 64e6);
        return [height, width, Array.from(pixels)];
    })()"""
    for path in photographs(tmp_path):
        page.tab.give_files("#probe", path)
        height, width, values = page.tab.evaluate(script)
        found = np.array(values, np.int16).reshape(height, width, 3)
        expected = read_image(path).pixels.astype(np.int16)
        assert found.shape == expected.shape, path.name
        assert np.abs(found - expected).max() <= 2, path.name
        assert np.abs(found - expected).mean() < 0.05, path.name


def test_the_answers_are_those_of_onnxruntime(page: Opened, tmp_path: Path) -> None:
    """The answer, its share, the bars and each member's say are those of the model's outputs, by name and in order."""
    for path in [path for path in photographs(tmp_path) if path.name in {"orientation6.jpg", "clear.png", "x.gif"}]:
        page.show(path)
        outputs = page.expected(path)
        chosen = int(outputs["class"][0])
        shares = np.asarray(outputs["probabilities"][0], np.float64)
        words = page.texts_of("#answer .word span")
        assert " / ".join(words) == MASK18.names[chosen]
        assert page.text_of("#share").startswith(f"{shares[chosen]:.1%}"[:-1])
        cube = shares.reshape(MASK18.shape)
        place = np.unravel_index(chosen, MASK18.shape)
        marginals = [cube.take(place[axis], axis=axis).sum() for axis in range(3)]
        assert page.texts_of("#answer .word span + small") == [f"{100 * value:.1f} %" for value in marginals]
        bars = page.texts_of("#vote .label")
        assert bars == [MASK18.names[i] for i in np.argsort(-shares, kind="stable")[:6]]
        firsts = page.texts_of(".member .bar:first-child .label")
        assert firsts == [MASK18.names[int(np.argmax(row))] for row in outputs["members"][0]]


@pytest.mark.parametrize(
    ("resize", "share", "expected"),
    [
        ("squash", 1.0, (0, 0, 1, 1)),
        ("squash", 0.5, (0.25, 0.25, 0.5, 0.5)),
        ("center", 1.0, (0.25, 0, 0.5, 1)),
        ("center", 0.5, (0.375, 0.25, 0.25, 0.5)),
        ("pad", 1.0, (0, -0.5, 1, 2)),
    ],
)
def test_the_map_lies_over_what_the_member_saw(
    page: Opened, resize: str, share: float, expected: tuple[float, ...]
) -> None:
    """For a picture twice as wide as high: left, top, width and height of the map as shares of the picture."""
    preprocess = json.dumps({"size": [100, 100], "resize": resize, "crop_pct": share})
    script = f"import('./map.js').then((map) => map.positionOfMap({preprocess}, 400, 200))"
    found = page.tab.evaluate(script)
    assert [found[side] for side in ("left", "top", "width", "height")] == pytest.approx(expected)


def test_nothing_is_requested_once_the_models_are_loaded(page: Opened, tmp_path: Path) -> None:
    """Loading asks the page's own folder only; photographs cause no request, no error of the console, no exception."""
    loading = page.tab.requests()
    # the worker's own requests are not reported here: the policy that it inherits is in the next test
    assert set(loading) == {page.address + name for name in ("", "page.css", "page.js", "map.js", "facts.json")}
    for path in photographs(tmp_path)[:3]:
        page.show(path)
    page.tab.click("#evidence")
    assert page.tab.requests() == loading
    assert page.tab.complaints() == []


def test_the_policy_forbids_other_hosts(page: Opened) -> None:
    """Neither the page nor a worker that is started as its own is can reach this server under another name."""
    other = page.address.replace("127.0.0.1", "localhost") + "facts.json"
    asked = f"fetch({json.dumps(other)}, {{ mode: 'no-cors' }}).then(() => 'reached', () => 'refused')"
    assert page.tab.evaluate(asked) == "refused"
    script = f"""new Promise((resolve) => {{
        globalThis.probe = new Worker(URL.createObjectURL(new Blob([{json.dumps(f"{asked}.then(postMessage)")}])));
        probe.onmessage = (event) => resolve(event.data);
    }})"""
    assert page.tab.evaluate(script) == "refused"
    page.tab.open(page.address.removesuffix("mask%20page/"))  # a page without the policy
    assert page.tab.evaluate(asked) == "reached", "without the policy the server is reached"


def header_of_png(width: int, height: int) -> bytes:
    """The beginning of a PNG file of this size."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))


def test_what_cannot_be_read_gets_a_sentence(page: Opened, tmp_path: Path) -> None:
    """Cut off, empty, huge, no picture at all: each has a sentence with the file's name, and the next one works."""
    photograph().save(tmp_path / "good.jpg")
    whole = (tmp_path / "good.jpg").read_bytes()
    cases = {
        "cut.jpg": (whole[: len(whole) // 2], "ends before its last pixel"),
        "empty.jpg": (b"", "is empty"),
        "words.jpg": (b"these are words", "cannot read the file"),
        "old.tif": (b"II*\0" + bytes(100), "which is TIFF"),
        "huge.png": (
            header_of_png(20000, 10000),
            "200 million pixels (20000 × 10000), more than the limit",
        ),
        "half.png": (header_of_png(200, 100), "cannot read the file"),
        "camera.png": (png(np.arange(12 * 9, dtype=np.uint16).reshape(12, 9, 1) * 37), "may hold 10 to 14 bits"),
        "named.png": (with_sbit(png(np.full((12, 9, 3), 30000, np.uint16)), 15, 3), "may hold 10 to 14 bits"),
    }
    page.show(tmp_path / "good.jpg")
    for name, (data, sentence) in cases.items():
        (tmp_path / name).write_bytes(data)
        page.tab.evaluate("document.getElementById('problem').hidden = true")
        page.tab.give_files("#file", tmp_path / name)
        page.tab.wait_for(PROBLEM)
        found = page.text_of("#problem")
        assert found.startswith(f"{name}: "), name
        assert sentence in found, found
        assert page.tab.evaluate("document.getElementById('result').hidden"), "the last answer is gone"
    page.show(tmp_path / "good.jpg")
    assert not page.tab.evaluate(PROBLEM)
    assert page.tab.complaints() == []


def test_a_photograph_can_be_dropped(page: Opened, tmp_path: Path) -> None:
    """Of several files the first is shown, and the page says so; a drop beside the zone does not leave the page."""
    for name in ("a.png", "b.png"):
        photograph().save(tmp_path / name)
    page.tab.drop_files("#drop", tmp_path / "a.png", tmp_path / "b.png")
    page.tab.wait_for(ANSWERED)
    assert page.text_of("#name") == "a.png"
    assert "2 files were given" in page.tab.text()
    page.tab.evaluate("document.body.dataset.state = 'before'")
    page.tab.drop_files("h1", tmp_path / "b.png")
    page.tab.wait_for(ANSWERED)
    assert page.text_of("#name") == "b.png"


def test_a_photograph_can_be_taken(page: Opened) -> None:
    """The camera's picture is shown as any other; afterwards, and where it is given up, the camera is off."""
    off = "document.getElementById('video').srcObject === null"
    for button, state in (("#camera-dialog button:last-child", READY), ("#camera-dialog .primary", ANSWERED)):
        page.tab.click("#camera")
        page.tab.wait_for(
            "document.getElementById('camera-dialog').open && document.getElementById('video').videoWidth"
        )
        page.tab.click(button)
        page.tab.wait_for(state)
        page.tab.wait_for(off)
    assert page.text_of("#name") == "from the camera"
    assert page.tab.complaints() == []


def test_the_keyboard_is_enough(page: Opened, tmp_path: Path) -> None:
    """Tab reaches every control in the order of the page; Enter opens the dialog of files, and Space shows the map."""
    photograph().save(tmp_path / "a.png")
    tab = page.tab
    focused = "document.activeElement.id || document.activeElement.parentElement.id"
    tab.call("Page.setInterceptFileChooserDialog", enabled=True)
    tab.press("Tab")
    assert tab.evaluate(focused) == "choose"
    tab.press("Enter")
    tab.evaluate("1")
    chooser = next(event for event in tab.events if event["method"] == "Page.fileChooserOpened")
    tab.call("DOM.setFileInputFiles", files=[str(tmp_path / "a.png")], backendNodeId=chooser["params"]["backendNodeId"])
    tab.call("Page.setInterceptFileChooserDialog", enabled=False)
    tab.wait_for(ANSWERED)
    assert page.text_of("#status").startswith(page.text_of("#vote .label")), "the answer is announced"
    visited = []
    for _ in range(3):
        tab.press("Tab")
        visited.append(tab.evaluate(focused))
    assert visited == ["camera", "evidence", "others-summary"]
    tab.press("Enter")
    assert tab.evaluate("document.getElementById('others').open")
    tab.evaluate("document.getElementById('evidence').focus()")
    tab.press(" ")
    assert tab.evaluate("document.getElementById('evidence').getAttribute('aria-pressed')") == "true"
    assert not tab.evaluate("document.getElementById('heat').hidden")


def test_every_control_has_a_name(page: Opened, tmp_path: Path) -> None:
    """In the accessibility tree, buttons, pictures, progress and regions have names, and headings are in order."""
    photograph().save(tmp_path / "a.png")
    page.show(tmp_path / "a.png")
    nodes = page.tab.call("Accessibility.getFullAXTree")["nodes"]
    seen = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node["ignored"]]
    named = {"button", "image", "img", "progressbar", "region"}
    assert [role for role, name in seen if role in named and not name] == []
    assert [name for role, name in seen if role == "heading"] == ["Classify a photograph", "Answer", "Vote", "Members"]
    assert ("image", "The photograph a.png") in seen or ("img", "The photograph a.png") in seen


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_fits_from_360_to_1600_pixels(page: Opened, tmp_path: Path, dark: bool) -> None:
    """Nothing is wider than the window, before and after an answer, and dark mode has a dark background."""
    photograph().save(tmp_path / "a.png")
    try:
        for width in (360, 768, 1600):
            page.tab.show_as(width=width, dark=dark)
            assert page.tab.evaluate("document.documentElement.scrollWidth") <= width
            page.show(tmp_path / "a.png")
            assert page.tab.evaluate("document.documentElement.scrollWidth") <= width
            clipped = """[...document.querySelectorAll("button, .label, h1, h2")].filter(
                (element) => element.scrollWidth > element.clientWidth + 1).length"""
            assert page.tab.evaluate(clipped) == 0
        shade = page.tab.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]")
        assert (shade < 60) == dark
    finally:
        page.tab.show_as(width=1200)


def test_a_browser_without_simd_gets_a_sentence(page: Opened) -> None:
    """Where WebAssembly refuses SIMD, the page says so and offers nothing that could not work."""
    found = page.tab.call("Page.addScriptToEvaluateOnNewDocument", source="WebAssembly.validate = () => false")
    try:
        page.tab.open(page.address)
        page.tab.wait_for(PROBLEM)
        assert "has no WebAssembly SIMD" in page.tab.text()
        assert page.tab.evaluate("document.getElementById('choose').disabled")
    finally:
        page.tab.call("Page.removeScriptToEvaluateOnNewDocument", identifier=found["identifier"])


def test_a_missing_model_gets_a_sentence(page: Opened, root: Path) -> None:
    """Where the folder was uploaded in part, the page names the file."""
    model = root / "mask page" / "ensemble.onnx"
    model.rename(model.with_suffix(".away"))
    try:
        page.tab.open(page.address)
        page.tab.wait_for(PROBLEM)
        assert "ensemble.onnx: the server answered 404" in page.tab.text()
    finally:
        model.with_suffix(".away").rename(model)


def test_a_rule_that_overrules_the_vote_is_named(
    tab: Browser, host: str, root: Path, web: WebRuntime, tmp_path: Path
) -> None:
    """Where another class has the largest share, the page names it and the rule; markup in names is text."""
    page = opened(tab, host, root / "rule", web, fused_proto(HOSTILE, bias=(50, 0), shares=(0.2, 0.8)))
    photograph().save(tmp_path / "a.png")
    if np.argmax(page.expected(tmp_path / "a.png")["probabilities"]) == 0:
        page = opened(tab, host, root / "rule", web, fused_proto(HOSTILE, bias=(0, 50), shares=(0.2, 0.8)))
    outputs = page.expected(tmp_path / "a.png")
    chosen, highest = int(outputs["class"][0]), int(np.argmax(outputs["probabilities"]))
    page.show(tmp_path / "a.png")
    assert page.text_of("#answer") == HOSTILE.names[chosen]
    sentence = f"{HOSTILE.names[highest]} has the larger share, but the recipe decides by the rule prior."
    assert page.text_of("#rule") == sentence
    assert page.texts_of(".member-name") == ["toy1", "toy0"], "the strongest member is first"
    assert tab.complaints() == []


def test_several_labels_may_apply(tab: Browser, host: str, root: Path, web: WebRuntime, tmp_path: Path) -> None:
    """With independent labels the answer lists those that apply, which are marked in the vote."""
    labels = LabelSpace.flat(["hat", "glasses", "beard", "scarf"])
    page = opened(tab, host, root / "labels", web, fused_proto(labels, independent=True, maps=False))
    photograph().save(tmp_path / "a.png")
    page.show(tmp_path / "a.png")
    applies = page.expected(tmp_path / "a.png")["applies"][0]
    expected = [name for name, on in zip(labels.names, applies, strict=True) if on]
    words = page.text_of("#answer")
    assert words == (", ".join(expected) or "None of the labels applies")
    chosen = page.texts_of("#vote .chosen .label")
    assert sorted(chosen) == sorted(expected)
    assert tab.evaluate("document.getElementById('evidence').hidden"), "without maps nothing is said of them"
    assert json.dumps(tab.complaints()) == "[]"
