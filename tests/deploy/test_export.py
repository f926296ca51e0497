import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from typing import get_args

import pytest
import torch
from cnns import random_bncvl
from helpers import plain_config, random_mlp

from bnn_exp.commands.export import FORMATS, check_format
from bnn_exp.config.registry import fields_of
from bnn_exp.config.request import Export
from bnn_exp.data import sources
from bnn_exp.deploy import export_c, export_onnx, export_qonnx, export_torch, pack_network
from bnn_exp.deploy.check import FORMS, check_equal, predictions
from bnn_exp.deploy.exports.to_c import classify, compile_c
from bnn_exp.deploy.exports.to_onnx import session
from bnn_exp.deploy.exports.to_torch import write_torch
from bnn_exp.deploy.load import load_deployed
from bnn_exp.errors import UserError
from bnn_exp.models.bncvl import BNCVLNet
from bnn_exp.models.mlp import MLP
from bnn_exp.models.vgg import VGG
from bnn_exp.nn import BinaryLinear
from bnn_exp.records.model import save_model

TEN = tuple("0123456789")
STRICT = ["-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", "-pedantic"]


def trained_like(network: torch.nn.Module, x: torch.Tensor) -> torch.nn.Module:
    """Returns the network in evaluation mode, with the running statistics of x."""
    network.train()(x)
    return network.eval()


def test_every_export_format_has_a_writer():
    assert set(get_args(fields_of(Export)["format"].type)) == {*FORMATS, "torch"}


def test_every_packed_form_has_an_onnx_graph():
    pytest.importorskip("onnx")
    from bnn_exp.deploy.exports.graphs.models import BUILDERS

    assert {kind.__name__ for kind in BUILDERS} == set(FORMS)


@pytest.mark.parametrize("compiler", ["gcc", "clang", "cc"])
@pytest.mark.parametrize("seed", range(4))
def test_the_c_program_is_clean_and_classifies_as_the_float_network(compiler, seed, tmp_path, monkeypatch):
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}")
    monkeypatch.setenv("CC", compiler)
    network, x = random_mlp(seed)
    names = (*TEN[:8], 'ü"\\', "a b?")
    export_c(pack_network(network), tmp_path, x, names)
    for options in ([], ["-DNETWORK_MAIN"]):
        output = ["-o", "again"] if options else ["-c", "-o", "again.o"]
        subprocess.run([compiler, *STRICT, *options, "network.c", *output], cwd=tmp_path, check=True)
    assert torch.equal(classify(tmp_path / "again", x), predictions(network, x))
    (tmp_path / "raw").write_bytes(x[:3].numpy().tobytes() + b"\0" * (x[0].numel() > 1))
    done = subprocess.run([tmp_path / "again", tmp_path / "raw"], capture_output=True, text=True)
    assert [line.split(" ", 1)[1] for line in done.stdout.splitlines()] == [names[i] for i in predictions(network, x[:3])]
    assert (done.returncode, "less than an image" in done.stderr) == ((1, True) if x[0].numel() > 1 else (0, False))
    assert subprocess.run([tmp_path / "again"], capture_output=True).returncode == 2


@pytest.mark.parametrize("kind", ["c", "onnx"])
def test_any_name_of_a_class_can_be_exported(kind, tmp_path):
    """Each class name takes one line of the output, whatever characters are in the name."""
    if kind == "c" and shutil.which("cc") is None:
        pytest.skip("no C compiler")
    odd = ("a\nb", "caf\udce9", '*/ "%s"', "\x1b[31m", "??/", "[/b]", "é", "x" * 300, "", "\0")
    shown = ["a b", "caf\\udce9", '*/ "%s"', "\\x1b[31m", "??/", "[/b]", "é", "x" * 300, "", "\\x00"]
    network, x = random_mlp(1)
    if kind == "c":
        export_c(pack_network(network), tmp_path, x, odd)
        compile_c(tmp_path)
        (tmp_path / "raw").write_bytes(x.numpy().tobytes())
        out = subprocess.run([tmp_path / "network", tmp_path / "raw"], capture_output=True, text=True, encoding="utf-8").stdout
        answers = predictions(network, x)
        assert [line.split(" ", 1)[1] for line in out.splitlines()] == [shown[i] for i in answers] and len(set(answers)) > 3
    else:
        onnx = pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")
        export_onnx(pack_network(network), tmp_path, x, odd)
        (names,) = (prop.value for prop in onnx.load(tmp_path / "network.onnx").metadata_props if prop.key == "classes")
        assert names.split("\n") == shown


@pytest.mark.skipif(shutil.which("cc") is None, reason="no cc")
def test_what_a_c_program_takes_of_a_device(tmp_path):
    network = trained_like(MLP(64, 10, 128, 4), torch.from_numpy(sources.read("digits").train_images[:500]))
    images = torch.from_numpy(sources.read("digits").test_images)
    made = export_c(pack_network(network), tmp_path, images, TEN)
    weights, neurons = 64 * 128 + 2 * 128 * 128 + 128 * 10, 3 * 128
    real = neurons * 4 + 10 * 16  # thresholds, and a scale and a shift of 8 bytes for each score
    assert weights // 8 + real < made["flash_bytes"] < weights // 8 + real + 512  # inversions, names and the layers' structs
    assert 2 * 128 // 8 < made["ram_bytes"] < 2 * 128 // 8 + 3400  # two buffers of bits, and the tables and sums of a layer
    text = (tmp_path / "network.c").read_text()
    assert not any(word in text for word in ("float", "double", "malloc"))
    assert set(re.findall("#include (.*)", text)) == {"<string.h>", "<stdio.h>", '"network.h"'}


@pytest.mark.parametrize("seed", range(8))
def test_onnxruntime_predicts_as_the_float_network(seed, tmp_path):
    pytest.importorskip("onnxruntime")
    network, x = random_mlp(seed)
    export_onnx(pack_network(network), tmp_path, x, TEN)
    from bnn_exp.deploy.exports.to_onnx import session

    run = session((tmp_path / "network.onnx").read_bytes())
    expected = network(x)
    assert torch.equal(run(x).argmax(1), expected.argmax(1))
    torch.testing.assert_close(run(x), expected, equal_nan=True, rtol=1e-6, atol=1e-6 * expected.abs().max().item())
    assert torch.equal(run(x[:1]), run(x)[:1])


@pytest.mark.parametrize("normalization", ["sample", "batch", "channel"])
def test_a_cnn_as_onnx_and_as_a_torch_program(normalization, tmp_path):
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    x = torch.randint(0, 256, (60, 3, 15, 14), dtype=torch.uint8)
    network = trained_like(
        BNCVLNet((3, 15, 14), 10, (8, 12), 2, normalization=normalization, mean=(0.5,) * 3, std=(0.2,) * 3), x
    )
    packed = pack_network(network)
    for made in (export_onnx(packed, tmp_path, x, TEN), export_torch(packed, tmp_path, x)):
        assert made["bytes"] == made["file"].stat().st_size
    with pytest.raises(UserError, match="model=mlp"):
        export_c(packed, tmp_path, x, TEN)


def test_onnx_takes_a_bit_for_a_weight(tmp_path):
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    x = torch.randint(0, 256, (100, 1, 28, 28), dtype=torch.uint8)
    made = export_onnx(pack_network(trained_like(MLP(784, 10, 1024, 4), x)), tmp_path, x, TEN)
    weights, neurons = 784 * 1024 + 2 * 1024**2 + 10 * 1024, 3 * 1024
    assert made["bytes"] < weights / 8 + neurons * 5 + 8000


ALONE = """
import sys
import torch
network = torch.export.load(sys.argv[1]).module()
x, expected = torch.load(sys.argv[2])
assert "bnn_exp" not in sys.modules
assert torch.equal(network(x), expected) and torch.equal(network(x[:1]), expected[:1])
"""


@pytest.mark.slow
def test_the_torch_program_runs_where_we_are_not_installed(tmp_path):
    network, x = random_mlp(1)
    made = export_torch(pack_network(network), tmp_path, x)
    torch.save((x, network(x).detach()), tmp_path / "expected.pt")
    command = [sys.executable, "-W", "ignore", "-c", ALONE, str(made["file"]), str(tmp_path / "expected.pt")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_an_export_that_predicts_otherwise_fails_and_leaves_nothing(tmp_path, monkeypatch):
    torch.manual_seed(0)
    x = torch.randint(0, 256, (50, 1, 8, 8), dtype=torch.uint8)
    packed = pack_network(trained_like(MLP(64, 10, 32, 3), x))
    with pytest.raises(UserError, match=r"2 of 4 predictions .* the first is image 1: class 3 in place of 1$"):
        check_equal("it", torch.tensor([0, 3, 2, 0]), torch.tensor([0, 1, 2, 3]))
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(UserError, match="no C compiler 'no-such-compiler'"):
        export_c(packed, tmp_path, x, TEN)
    monkeypatch.setenv("CC", "cc")
    if shutil.which("cc"):
        other = pack_network(trained_like(MLP(64, 10, 32, 3), x))
        with monkeypatch.context() as patch:
            patch.setattr("bnn_exp.deploy.exports.to_c.predictions", lambda _network, images: predictions(other, images))
            with pytest.raises(UserError, match=r"the compiled C: .* not those of the packed network"):
                export_c(packed, tmp_path, x, TEN)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mlp", "bncvl", "vgg"])
def test_no_prediction_of_mnist_differs_in_any_export(model, mnist_folder, tmp_path):
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    arrays = sources.read("mnist", "ylecun/mnist", str(mnist_folder))
    made = {
        "mlp": lambda: MLP(784, 10, 1024, 4),
        "bncvl": lambda: BNCVLNet((1, 28, 28), 10, activation_bits=8, mean=arrays.mean, std=arrays.std),
        "vgg": lambda: VGG((1, 28, 28), 10, (16, 32), mean=arrays.mean, std=arrays.std),
    }
    network = trained_like(made[model](), torch.from_numpy(arrays.train_images[:1000]))
    packed, images = pack_network(network), torch.from_numpy(arrays.test_images)
    assert len(images) == 10000 and torch.equal(predictions(packed, images), predictions(network, images))
    export_c(packed, tmp_path, images, TEN)
    export_onnx(packed, tmp_path, images, TEN)
    export_torch(packed, tmp_path, images)
    if find_spec("qonnx"):
        export_qonnx(packed, tmp_path, images, TEN)


@pytest.mark.parametrize("form", [export_onnx, export_torch, export_c])
def test_a_trained_network_is_exported_in_a_line(form, tmp_path, monkeypatch):
    """A network of the user's training loop, for grey and for colour images. The default folder is the current one."""
    if form is export_onnx:
        pytest.importorskip("onnxruntime")
    if form is export_c and shutil.which("cc") is None:
        pytest.skip("no C compiler")
    monkeypatch.chdir(tmp_path)
    for inputs, shape, folder in ((64, (1, 8, 8), "."), (75, (3, 5, 5), "made/for it")):
        x = torch.randint(0, 256, (64, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        network = trained_like(MLP(inputs, 10, 16, 3), x)
        form(network) if folder == "." else form(network.train(), folder)
        if form is export_onnx:
            found = session((tmp_path / folder / "network.onnx").read_bytes())(x)
            assert torch.equal(found.argmax(1), network.eval()(x).argmax(1))
        assert any((tmp_path / folder).glob("network.*"))


@pytest.mark.parametrize("form", [export_onnx, export_torch, export_c])
def test_an_export_says_what_it_needs(form, tmp_path):
    if form is export_onnx:
        pytest.importorskip("onnxruntime")
    small = MLP(7, 10, 16, 3).eval()
    with pytest.raises(UserError, match="the size of the images is unknown\nallowed: images"):
        form(small, tmp_path)
    for wrong in (torch.zeros(2, 1, 1, 7), torch.zeros(2, 7, dtype=torch.uint8), torch.zeros(0, 1, 1, 7, dtype=torch.uint8)):
        with pytest.raises(UserError, match=r"images are torch\.\S+ \["):
            form(small, tmp_path, wrong)
    if form is not export_torch:
        with pytest.raises(UserError, match="3 class names\nallowed: 10, one for each class"):
            form(small, tmp_path, torch.zeros(2, 1, 1, 7, dtype=torch.uint8), ("a", "b", "c"))
    for other in (torch.nn.Sequential(BinaryLinear(4, 4)), torch.nn.Linear(4, 4)):
        with pytest.raises(UserError, match=r"export\.format="):
            form(other, tmp_path)
    assert not list(tmp_path.iterdir())


class NamedOtherwise(torch.nn.Module):
    """A network whose argument is not called `x`."""

    def __init__(self, network: torch.nn.Module):
        super().__init__()
        self.network = network

    def forward(self, digits):
        return self.network(digits)


def test_the_argument_of_an_exported_network_may_have_any_name(tmp_path):
    network, images = random_mlp(0)
    named = NamedOtherwise(network)
    found = write_torch(named, named, tmp_path, images)
    program = torch.export.load(found["file"]).module()
    assert torch.equal(program(images[:3]).argmax(1), network(images[:3]).argmax(1))


@pytest.mark.parametrize("form", [export_onnx, export_torch, export_c])
def test_images_have_the_size_of_the_network(form, tmp_path):
    """The border and the mean over the image are those of one size."""
    if form is export_onnx:
        pytest.importorskip("onnxruntime")
    network = random_bncvl(1, image_shape=(1, 8, 8))
    for given in (network, pack_network(network)):
        with pytest.raises(UserError, match=r"export\.format=\w+: .*\b(12, 9|1, 12, 9)\b"):
            form(given, tmp_path, torch.zeros(3, 1, 12, 9, dtype=torch.uint8))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", ["c", "onnx", "qonnx"])
def test_an_export_says_why_a_network_has_no_form_in_integers(format, tmp_path):
    """Earlier versions standardised pixels by numbers that are not whole."""
    network = VGG((1, 4, 4), 3, (2,), 1).eval()
    network.mean.fill_(0.3)
    settings = ["model=vgg", "model.channels=[2]", "model.convolutions=1"]
    save_model(tmp_path / "file", network, plain_config(*settings), (1, 4, 4), ("a", "b", "c"))
    with pytest.raises(UserError, match=rf"export\.format={format}: .*numbers that are not whole.*\nallowed: a network that"):
        check_format(format, load_deployed(tmp_path / "file")[0], tmp_path / "file")
    check_format("torch", load_deployed(tmp_path / "file")[0], tmp_path / "file")
