"""Memory: what there is, what an image needs, and that a run keeps to it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from onnx import helper

from ensemble.errors import DeviceError, OptionError
from ensemble.images.listing import list_images
from ensemble.predict.memory_budget import Need, fit_chunks, fit_memory, layers_of, need_of, parse_memory
from ensemble.runtime.device import CPU, Device
from ensemble.runtime.machine import available_memory
from ensemble.runtime.model_file import read_model
from tests.support import toys

MB = 2**20


@pytest.mark.parametrize(
    ("text", "size"), [("4G", 4 * 2**30), ("512M", 512 * MB), ("1.5g", 3 * 2**29), ("64MiB", 64 * MB)]
)
def test_amounts_are_of_1024(text: str, size: int) -> None:
    """4G are 4 times 1024 cubed bytes."""
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "4", "0G", "-1G", "4 apples", "1e3M"])
def test_other_amounts_are_refused(text: str) -> None:
    """An amount without a unit, or of nothing, is E204."""
    with pytest.raises(OptionError, match="E204"):
        parse_memory(text)


def machine(root: Path, files: Mapping[str, str]) -> Path:
    """A file system with 8 GB available and these files beside."""
    for name, text in ({"proc/meminfo": f"MemTotal: 1 kB\nMemAvailable:  {8 * 2**20} kB\n"} | dict(files)).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


STAT = "anon 5\ninactive_file 1048576\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8 * 2**30),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"}, 8 * 2**30),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/memory.max": f"{600 * MB}\n",
                "sys/fs/cgroup/a/memory.current": f"{200 * MB}\n",
                "sys/fs/cgroup/a/memory.stat": STAT,
                "sys/fs/cgroup/a/b/memory.max": "max\n",
            },
            401 * MB,
        ),
        (
            {
                "proc/self/cgroup": "10:memory:/x\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{300 * MB}",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{400 * MB}",
                "sys/fs/cgroup/memory/memory.stat": STAT,
            },
            0,
        ),
    ],
)
def test_a_containers_limit_counts(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    """What is available is what the system has, or less where this group or one above it has a limit."""
    assert available_memory(machine(tmp_path, files)) == expected


def test_this_machine_has_memory() -> None:
    """Whatever it runs on, more than the interpreter's own size is available."""
    assert available_memory() > 10 * MB


def test_the_layers_of_a_network_are_counted_while_they_are_held() -> None:
    """Of image (uint8), float, scaled, flat, logits, two float copies of 16 x 12 x 3 are held at once; and a residual
    block holds three layers of 24 channels.
    """
    pixels = 16 * 12 * 3
    assert layers_of(toys.model_proto().SerializeToString()) == 2 * 4 * pixels
    assert layers_of(toys.convolutional_proto().SerializeToString()) == 3 * 4 * 24 * 16 * 12


def test_a_layer_of_unknown_size_counts_as_what_it_reads() -> None:
    """An operator that shape inference does not know does not hide its memory."""
    model = toys.model_proto()
    model.graph.node.insert(3, helper.make_node("Odd", ["flat"], ["odd"], domain="com.microsoft"))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model.graph.node[4].input[0] = "odd"
    assert layers_of(model.SerializeToString()) == 2 * 4 * 16 * 12 * 3


def test_the_need_of_a_run(tmp_path: Path) -> None:
    """Photographs count with the pixels of the largest, prepared sizes once each, layers for the largest member; for
    OpenVINO, which shares nothing, layers for every member.
    """
    toys.write_pictures(tmp_path / "images", ["a.jpg", "b.jpg"])
    toys.write_pictures(tmp_path / "images", ["c.jpg"], size=(80, 60))
    cards = [toys.card("a"), toys.card("b"), toys.card("c", size=(20, 24))]
    models = [read_model(toys.write_model(tmp_path, card)) for card in cards]
    listing = list_images(tmp_path / "images")
    need = need_of(models, listing, CPU)
    small, large = 16 * 12 * 3, 20 * 24 * 3
    assert need.pixels == small + large + large
    assert need.layers == int(2.25 * 8 * large)
    assert need_of(models, listing, Device("openvino")).layers == int(2.25 * (8 * small + 8 * small + 8 * large))
    assert need.photo == 8 * 80 * 60 + listing.sizes[2]


NEED = Need(fixed=100, photo=10, pixels=2, layers=20)


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("memory", [132, 140, 200, 300, 1000, 10_000])
def test_a_run_keeps_to_its_memory(memory: int, on_gpu: bool) -> None:
    """However little there is, what may be under way at once needs no more, and something may be."""
    found = fit_memory(NEED, memory, workers=8, batch=32, on_gpu=on_gpu)
    assert 1 <= found.workers <= 8
    assert 1 <= found.batch <= 32
    image = NEED.pixels if on_gpu else NEED.pixels + NEED.layers
    batches = found.ahead + 1 if on_gpu else found.workers
    assert NEED.fixed + found.workers * NEED.photo + batches * found.batch * image <= memory
    assert found.ahead >= 2


def test_much_memory_changes_nothing() -> None:
    """What was asked for is had where there is room."""
    cpu, gpu = (fit_memory(NEED, 10**6, workers=8, batch=32, on_gpu=on_gpu) for on_gpu in (False, True))
    assert (cpu.workers, cpu.batch) == (gpu.workers, gpu.batch) == (8, 32)
    assert (cpu.ahead, gpu.ahead) == (32, 10)


@pytest.mark.parametrize(("on_gpu", "least"), [(False, 132), (True, 116)])
def test_too_little_for_one_image_is_an_error(on_gpu: bool, least: int) -> None:
    """One byte less than a single image needs is E603."""
    fit_memory(NEED, least, workers=8, batch=32, on_gpu=on_gpu)
    with pytest.raises(DeviceError, match="E603"):
        fit_memory(NEED, least - 1, workers=8, batch=32, on_gpu=on_gpu)


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("memory", [300, 500, 1000, 10_000])
def test_a_run_by_chunks_keeps_to_its_memory(memory: int, on_gpu: bool) -> None:
    """The pixels of every chunk that may be under way are counted, and on the CPU a batch's layers in each worker."""
    found = fit_chunks(NEED, memory, rows=30, workers=8, batch=16, on_gpu=on_gpu)
    assert 1 <= found.workers <= 8
    if on_gpu:
        assert found.batch == 16
        need = found.workers * NEED.photo + (found.ahead + 1) * 30 * NEED.pixels
    else:
        assert 1 <= found.batch <= 16
        need = found.workers * (NEED.photo + 30 * NEED.pixels + found.batch * (NEED.pixels + NEED.layers))
    assert NEED.fixed + need <= memory


def test_too_little_for_one_chunk_is_an_error() -> None:
    """E603 says what a chunk needs."""
    with pytest.raises(DeviceError, match=r"E603.*a chunk of 30 images needs"):
        fit_chunks(NEED, 191, rows=30, workers=8, batch=16, on_gpu=False)
    assert fit_chunks(NEED, 192, rows=30, workers=8, batch=16, on_gpu=False).batch == 1
