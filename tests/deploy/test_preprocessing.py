"""The pixels of every export are those of training: in C for any frame, in Python for any image."""

import base64
import ctypes
import hashlib
import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import random_mlp
from PIL import Image

import bnn_exp
from bnn_exp.data.images import Pixels, read_image
from bnn_exp.deploy import export_c, export_onnx, export_torch, pack_network
from bnn_exp.deploy.exports.c import prepare
from bnn_exp.deploy.exports.frames import columns_first
from bnn_exp.deploy.exports.preprocessing import Preprocessing
from bnn_exp.errors import UserError
from bnn_exp.models.mlp import MLP
from bnn_exp.records import probe_logits

sys.path.append(str(Path(__file__).parents[2] / "scripts/mcu"))
import frames as on_a_device
import measure

STRICT = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic"]
NEEDS_FRAME = 3  # NETWORK_NEEDS_FRAME
FRAMES = [(1, 1), (1, 2), (2, 1), (640, 480), (1, 640), (640, 1), (3, 640), (640, 3), (11, 200), (31, 7)]
needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


def facts_of(shape, fit="squash", background="#c0ffee"):
    return Preprocessing(shape, ("a", "b"), Pixels(fit, background))


def sources(folder, facts):
    """Writes network.h, without a network, and network_prepare.c to the folder."""
    folder.mkdir(exist_ok=True)
    text = "#include <stdint.h>\n#define NETWORK_PIXELS (NETWORK_CHANNELS * NETWORK_HEIGHT * NETWORK_WIDTH)\n"
    (folder / "network.h").write_text(text + prepare.header(facts))
    (folder / "network_prepare.c").write_text(facts.c_source())


def compiled(folder, facts, *options):
    """Returns network_prepare as a Python function: frame, uint8 [height, width, channels] → pixels, or the error."""
    sources(folder, facts)
    command = ["cc", *STRICT, *options, "-fPIC", "-shared", "network_prepare.c", "-o", "library.so"]
    subprocess.run(command, cwd=folder, check=True)
    library = ctypes.CDLL(str(folder / "library.so"))

    def prepare(frame, by_lines=False):
        pixels, (height, width, channels) = np.full(facts.shape, 77, np.uint8), frame.shape
        places = [ctypes.c_void_p(array.ctypes.data) for array in (frame, pixels)]
        if not by_lines:
            return library.network_prepare(places[0], width, height, channels, places[1]) or pixels
        if error := library.network_prepare_begin(width, height, channels):
            return error
        for row in frame:
            library.network_prepare_line(ctypes.c_void_p(row.ctypes.data))
        return library.network_prepare_end(places[1]) or pixels

    return prepare


def frames(seed, count, longest):
    """Yields frames of random pixels: of all values, or black and white, which the filter overshoots."""
    random = np.random.default_rng(seed)
    sizes = [*FRAMES, *((int(w), int(h)) for w, h in np.exp(random.uniform(0, np.log(longest), (count, 2))).astype(int))]
    for number, (width, height) in enumerate(sizes):
        channels = (1, 3)[(number + seed) % 2]
        frame = random.integers(0, 256, (height, width, channels), dtype=np.uint8)
        yield frame if number % 3 else np.where(frame > 127, np.uint8(255), np.uint8(0))


def check_frames(prepare, facts, many):
    for frame in many:
        expected, by_lines = facts.prepare(frame), prepare(frame, by_lines=True)
        np.testing.assert_array_equal(prepare(frame), expected, str(frame.shape))
        if isinstance(by_lines, int):
            (height, width, _), (_, high, wide) = frame.shape, facts.shape
            assert by_lines == NEEDS_FRAME and (facts.pixels.fit == "pad" or height - high > 2 * (width - wide))
        else:
            np.testing.assert_array_equal(by_lines, expected, str(frame.shape))


@needs_cc
@pytest.mark.parametrize(
    ("shape", "fit"), [((1, 28, 28), "squash"), ((3, 32, 32), "crop"), ((1, 9, 20), "pad"), ((3, 30, 12), "pad")]
)
def test_the_c_code_makes_the_pixels_of_training(shape, fit, tmp_path):
    facts = facts_of(shape, fit)
    check_frames(compiled(tmp_path, facts, "-O1"), facts, frames(shape[0] // 2, 6, 200))


@needs_cc
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_the_c_code_makes_the_pixels_of_training_for_any_size(seed, tmp_path):
    random = np.random.default_rng(seed)
    height, width = np.exp(random.uniform(0, np.log(80), 2)).round().astype(int).tolist()
    for fit in ("squash", "crop", "pad"):
        facts = facts_of((int(random.choice([1, 3])), height, width), fit)
        check_frames(compiled(tmp_path / fit, facts, "-O2"), facts, frames(seed, 30, 640))


@pytest.mark.parametrize("compiler", ["gcc", "clang", "arm-none-eabi-gcc"])
def test_the_c_code_is_clean_and_takes_the_memory_that_it_says(compiler, tmp_path):
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}")
    for shape, fit in (((1, 9, 20), "squash"), ((3, 8, 700), "crop"), ((3, 30, 12), "pad")):
        facts = facts_of(shape, fit)
        sources(tmp_path, facts)
        subprocess.run([compiler, *STRICT, "-O2", "-c", "network_prepare.c", "-o", "it.o"], cwd=tmp_path, check=True)
        if shutil.which("size"):
            done = subprocess.run(["size", tmp_path / "it.o"], capture_output=True, text=True, check=True)
            _, data, bss = map(int, done.stdout.splitlines()[1].split()[:3])
            assert 0 <= facts.c_memory() - (data + bss) <= 128


@pytest.mark.slow
@pytest.mark.skipif(bool(measure.missing_tools()), reason=f"not installed: {measure.missing_tools()}")
@pytest.mark.parametrize("device", measure.DEVICES, ids=lambda device: device.processor)
@pytest.mark.parametrize(("shape", "fit"), [((1, 28, 28), "pad"), ((3, 32, 20), "crop"), ((3, 20, 32), "squash")])
def test_a_microcontroller_without_a_float_unit_makes_the_pixels_of_training(shape, fit, device, tmp_path):
    given = [np.random.default_rng(i).integers(0, 256, size, np.uint8) for i, size in enumerate(((60, 90, 3), (41, 77, 1)) * 2)]
    text = f"#include <stdint.h>\n#define NETWORK_PIXELS {np.prod(shape)}\n#define NETWORK_CLASSES 2\n"
    sizes, _ = on_a_device.prepare(device, text, facts_of(shape, fit), given, tmp_path)
    fixed, per_side = prepare.memory(shape)
    assert fixed + per_side * 320 - 128 <= int(sizes[".bss"]) <= fixed + per_side * 320


@needs_cc
def test_frames_that_can_not_be_taken(tmp_path):
    prepare = compiled(tmp_path, facts_of((1, 8, 8)), "-O1", "-DNETWORK_FRAME_MOST=50")
    for shape, error in (((51, 8, 1), 1), ((8, 51, 1), 1), ((0, 8, 1), 1), ((8, 0, 3), 1), ((8, 8, 2), 2), ((8, 8, 4), 2)):
        assert prepare(np.zeros(shape, np.uint8)) == prepare(np.zeros(shape, np.uint8), by_lines=True) == error
    assert (prepare(np.full((50, 50, 3), 9, np.uint8)) == 9).all()


def exported(seed):
    """Returns a packed network, random images and complete facts about the network."""
    network, images = random_mlp(seed)
    network = pack_network(network)
    facts = Preprocessing(tuple(images.shape[1:]), tuple("abcdefghij"), Pixels("pad", "black"), "local", {"sha256": "0123"})
    return network, images, facts.with_vectors(network, images)


@needs_cc
def test_a_c_export_brings_the_preparation_and_a_test(tmp_path):
    network, images, facts = exported(0)
    made = export_c(network, tmp_path, images, facts.classes, facts)
    assert [file.name for file in made["files"]] == ["network.c", "network.h", "network_prepare.c", "network_test.c"]
    header = (tmp_path / "network.h").read_text()
    assert (
        f"#define NETWORK_WIDTH {facts.shape[2]} " in header.replace("\n", " \n") and '#define NETWORK_SHA256 "0123"' in header
    )
    command = ["cc", *STRICT, "network_test.c", "network.c", "network_prepare.c", "-o", "it"]
    subprocess.run(command, cwd=tmp_path, check=True)
    done = subprocess.run([tmp_path / "it"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "4 of 4 test vectors are equal\n")
    source = tmp_path / "network_prepare.c"
    source.write_text(source.read_text().replace("ONE / 2", "ONE / 3"))
    subprocess.run(command, cwd=tmp_path, check=True)
    assert subprocess.run([tmp_path / "it"], capture_output=True).returncode == 1


@needs_cc
def test_an_export_whose_preparation_differs_writes_nothing(tmp_path, monkeypatch):
    network, images = pack_network(MLP(64, 10, 16, 2).eval()), probe_logits.pixels((1, 8, 8))
    facts = Preprocessing((1, 8, 8), tuple("0123456789"), Pixels()).with_vectors(network, images)
    monkeypatch.setattr(prepare, "columns_first", lambda: 0 if columns_first() == 2 else 2)
    with pytest.raises(UserError, match="vector 2: other pixels"):
        export_c(network, tmp_path, images, facts.classes, facts)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", [export_onnx, pytest.param(export_torch, marks=pytest.mark.slow), None])
def test_an_export_can_prepare_images(form, tmp_path):
    """Files, arrays and Pillow images; with an orientation, transparency and more than 8 bits."""
    network, images, facts = exported(3)
    if form is None:  # beside a C export
        (tmp_path / "preprocessing.json").write_text(facts.json(arrays=True))
        file = tmp_path
    else:
        pytest.importorskip("onnxruntime")
        file = partial(form, preprocessing=facts)(network, tmp_path, images)["file"]
    found = bnn_exp.read_preprocessing(file)
    assert (found.shape, found.classes, found.network, found.dataset) == (
        facts.shape,
        facts.classes,
        {"sha256": "0123"},
        "local",
    )
    random = np.random.default_rng(0)
    colours = Image.fromarray(random.integers(0, 256, (30, 20, 3), dtype=np.uint8))
    turned = colours.getexif()
    turned[0x112] = 6
    colours.save(tmp_path / "turned.jpg", exif=turned)
    Image.fromarray(random.integers(0, 256, (9, 11, 4), dtype=np.uint8)).save(tmp_path / "clear.png")
    Image.fromarray(random.integers(0, 65536, (9, 11), dtype=np.uint16)).save(tmp_path / "deep.png")
    for name in ("turned.jpg", "clear.png", "deep.png"):
        expected = read_image(tmp_path / name, facts.shape, Pixels("pad", "black", reduced=False))
        for image in (tmp_path / name, str(tmp_path / name), (tmp_path / name).read_bytes(), Image.open(tmp_path / name)):
            np.testing.assert_array_equal(found.prepare(image), expected)


def test_the_test_vectors_are_of_the_network(tmp_path):
    network, _, facts = exported(1)
    for vector, small in zip(json.loads(facts.json(arrays=True))["vectors"], json.loads(facts.json())["vectors"], strict=True):
        frame, pixels = (base64.b64decode(vector[f"{name}_base64"]) for name in ("frame", "pixels"))
        given = np.frombuffer(frame, np.uint8).reshape(vector["height"], vector["width"], vector["channels"])
        made = facts.prepare(given)
        assert (
            made.tobytes() == pixels and hashlib.sha256(pixels).hexdigest() == vector["pixels_sha256"] == small["pixels_sha256"]
        )
        scores = network(torch.from_numpy(made.copy())[None])[0]
        torch.testing.assert_close(scores, torch.tensor(vector["scores"]), rtol=0, atol=0, equal_nan=True)
        assert vector["class"] == int(scores.argmax()) and "frame_base64" not in small


@pytest.mark.slow
def test_an_export_says_what_is_unknown(tmp_path):
    """A network from memory has a shape and classes. Nothing names the fit of its images."""
    network = pack_network(MLP(64, 10, 16, 2).eval())
    found = bnn_exp.read_preprocessing(export_torch(network, tmp_path)["file"])
    assert (found.shape, found.classes, found.pixels) == ((1, 8, 8), tuple("0123456789"), None)
    with pytest.raises(UserError, match="does not say how an image becomes pixels"):
        found.prepare(np.zeros((8, 8), np.uint8))
    if shutil.which("cc"):
        assert len(export_c(network, tmp_path)["files"]) == 2 and "Unknown: how" in (tmp_path / "network.h").read_text()
    for text in ("{}", '{"format": "another"}', "[]", "no JSON"):
        (tmp_path / "other.json").write_text(text)
        with pytest.raises(UserError, match="does not say how images become pixels"):
            bnn_exp.read_preprocessing(tmp_path / "other.json")
    (tmp_path / "damaged.onnx").write_text("no ONNX")
    with pytest.raises(UserError, match=r"damaged\.onnx: it does not say how images become pixels"):
        bnn_exp.read_preprocessing(tmp_path / "damaged.onnx")
    with pytest.raises(UserError, match=r"missing\.onnx: no such file"):
        bnn_exp.read_preprocessing(tmp_path / "missing.onnx")
