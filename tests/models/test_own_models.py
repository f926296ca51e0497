"""Tests of the models, datasets and losses of plugins: those of docs/add_a_model.md, and faulty ones."""

import json
import sys
from pathlib import Path
from textwrap import indent

import numpy as np
import pytest
import torch
from helpers import code_of, following
from torch import nn

from bnn_exp import BinaryLinear, load_model, load_packed, pack_network, verify_binary, with_packed_layers
from bnn_exp.data import sources
from bnn_exp.errors import UserError
from bnn_exp.models import stages
from bnn_exp.nn import binary_layers
from bnn_exp.records import probe_logits

MODEL, ONNX, DATA = code_of("add_a_model.md")
SMALL = ("model=resmlp", "model.width=16", "trainer=smoke", "engine.threads=1")


def refused(done, *words, lines=2):
    assert done.code == 2 and len(done.err.splitlines()) == lines and "Traceback" not in done.err, done.err
    for word in words:
        assert word in done.err, done.err


@pytest.fixture
def resmlp(tmp_path, forget):
    """Writes the plugins of the page to files, the model with its method `onnx`. Returns the setting that loads them."""
    method = "\n" + indent(ONNX, "    ")
    (tmp_path / "resmlp.py").write_text(MODEL.replace("\n\n\nregister_model", f"\n{method}\n\nregister_model"))
    (tmp_path / "rings.py").write_text(DATA)
    return "plugins=[resmlp.py,rings.py]"


@pytest.mark.slow
def test_the_page_about_a_model(bnn_train, resmlp, forget, summary):
    """The model of the page learns. Later commands pack, evaluate, export and resume it without naming the plugin."""
    done = bnn_train(resmlp, "model=resmlp", "model.width=64", "trainer.epochs=12", "hydra.run.dir=run")
    result = summary("run")
    assert done.code == 0 and result["binary_verified"] and result["test_accuracy"] > 85, done.err
    assert result["binary_parameters"] == 64 * 64 + 3 * 64 * 64 + 64 * 10
    assert result["real_parameters"] == 2 * (4 * 64 + 10)
    assert [layer["kind"] for layer in result["layers"]].count("BinaryLinear") == 5
    assert {"curves.png", "kernels.png", "samples.png"} <= {file.name for file in Path("run").iterdir()}
    forget()
    done = bnn_train("task=evaluate", "from=run")
    evaluation = json.loads(Path("run/evaluation.json").read_text())
    assert done.code == 0 and evaluation["different_predictions"] == 0, done.err
    assert evaluation["accuracy_packed"] == pytest.approx(result["test_accuracy"])
    forget()
    images = torch.from_numpy(sources.read("digits").test_images)
    expected = load_model("run")[0](images)
    packed = load_packed("run")[0]
    torch.testing.assert_close(packed(images), expected)
    assert all(layer.weight.dtype == torch.uint8 for _, layer in binary_layers(packed))
    assert following(done.err) == ["task=export", "from=run"]  # the default format is onnx, and the page defines onnx()
    for format, file in (("torch", "network.pt2"), ("onnx", "network.onnx")):
        pytest.importorskip("onnxruntime")
        forget()
        done = bnn_train("task=export", "from=run", f"export.format={format}")
        assert done.code == 0 and Path("run/export", file).is_file(), done.err
    program = torch.export.load("run/export/network.pt2").module()
    torch.testing.assert_close(program(images), expected)
    forget()
    refused(bnn_train("task=export", "from=run", "export.format=c"), "resmlp:ResMLP has no method c()", "docs/add_a_model.md")
    assert bnn_train("init_from=run", "freeze=2", "fresh=1", "trainer.epochs=1", "hydra.run.dir=tuned").code == 0
    assert summary("tuned")["beginning"]["frozen"] == ["layers.0", "layers.1"]


@pytest.mark.parametrize("weights", ["latent", "bits"])
def test_a_dataset_and_a_loss(bnn_train, resmlp, forget, summary, weights):
    rule = {"latent": "latent_adam", "bits": "counter"}[weights]
    arguments = (resmlp, *SMALL, "dataset=rings", "dataset.rows=90", "trainer.loss=smooth", f"optimizer={rule}")
    done = bnn_train(*arguments, "dataset.limit=80", "dataset.augment=standard", "trainer.epochs=1", "hydra.run.dir=run")
    assert done.code == 0 and "80 train, 90 test rows" in done.out, done.err
    assert summary("run")["classes"] == ["ring", "disc", "none"]
    forget()
    assert bnn_train("task=evaluate", "from=run").code == 0
    forget()
    assert bnn_train("config=run", "seed=1", "hydra.run.dir=anew").code == 0
    assert summary("anew")["dataset"] == summary("run")["dataset"]
    forget()
    other = bnn_train("task=evaluate", "from=run", "dataset.rows=91")
    assert other.code == 0 and "not the run's own" in other.out


def test_the_loss_is_the_one_that_is_named(bnn_train, resmlp, tmp_path):
    """The epoch has one batch, so it measures the loss of the initial network: twice the cross-entropy is twice that loss."""
    losses = "from bnn_exp import register_loss\nfrom torch.nn.functional import cross_entropy\n"
    (tmp_path / "twice.py").write_text(
        f"{losses}register_loss('twice', lambda logits, labels: 2 * cross_entropy(logits, labels))\n"
    )
    found = []
    (tmp_path / "module.py").write_text(f"{losses}from torch import nn\nregister_loss('module', nn.CrossEntropyLoss())\n")
    for loss in ("cross_entropy", "twice", "module"):
        run = (f"hydra.run.dir={loss}", f"trainer.loss={loss}", "trainer.epochs=1", "trainer.limit_batches=1")
        assert bnn_train("plugins=[resmlp.py,twice.py,module.py]", *SMALL, *run).code == 0
        found.append(json.loads(Path(loss, "metrics.jsonl").read_text())["train_loss"])
    assert found[1] == pytest.approx(2 * found[0]) and found[2] == found[0]


def with_method(tmp_path, text):
    """Writes the plugin of the page with some text replaced. Returns the setting that loads it."""
    for old, new in text.items():
        assert old in MODEL
        (tmp_path / "resmlp.py").write_text(MODEL.replace(old, new))
    return "plugins=[resmlp.py]"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("        return last[1](last[0](binarize(h)))", "        return h", ["[2, 256]", "logits [rows, 10]"]),
        ("        return last[1](last[0](binarize(h)))", "        return h @ x", ["RuntimeError", "resmlp.py, line"]),
        ("BinaryLinear(i, o, \"bipolar\", n > 0, weights)", "nn.Linear(i, o)", ["no binary weights"]),
        ("class ResMLP(nn.Module):", "class ResMLP:", ["resmlp:ResMLP"]),
        ("    weights: Weights\n", "", ["weights"]),
        ("values={\"width\": 256, ", "values={", ["model.width: missing"]),
    ],
    ids=["shape", "error", "no bits", "no module", "unknown setting", "no value"],
)  # fmt: skip
def test_a_network_that_can_not_be_trained(bnn_train, forget, tmp_path, old, new, words):
    plugin = with_method(tmp_path, {old: new})
    done = (
        bnn_train(plugin, "model=resmlp")
        if "weights: W" not in old
        else bnn_train(plugin, "model=resmlp", "model.weights=bits")
    )
    assert done.code == 2 and "Traceback" not in done.err and len(done.err.splitlines()) <= 2, done.err
    for word in words:
        assert word in done.err, done.err
    assert [file.name for file in tmp_path.iterdir()] == ["resmlp.py"]


def test_the_next_command_exports_a_network_in_a_format_that_it_has(bnn_train, forget, tmp_path):
    (tmp_path / "resmlp.py").write_text(MODEL)
    assert bnn_train("plugins=[resmlp.py]", *SMALL, "hydra.run.dir=run").code == 0
    exported = following(bnn_train("task=evaluate", "from=run").err)
    assert exported == ["task=export", "from=run", "export.format=torch"] and bnn_train(*exported).code == 0


@pytest.mark.slow
def test_the_next_command_after_a_benchmark_is_in_such_a_format_too(bnn_train, forget, tmp_path):
    (tmp_path / "resmlp.py").write_text(MODEL)
    assert bnn_train("plugins=[resmlp.py]", *SMALL, "hydra.run.dir=run").code == 0
    assert following(bnn_train("task=benchmark", "from=run").err)[-1] == "export.format=torch"


@pytest.mark.slow
def test_a_network_without_methods_trains_and_is_exported(bnn_train, forget, tmp_path, summary):
    body = MODEL[MODEL.index("    def stages") : MODEL.index("\n\nregister_model")]
    (tmp_path / "resmlp.py").write_text(MODEL.replace(body, ""))
    assert bnn_train("plugins=[resmlp.py]", *SMALL, "hydra.run.dir=run").code == 0
    done = bnn_train("task=evaluate", "from=run")
    assert done.code == 0 and "no method pack()" in " ".join(done.out.split())
    assert bnn_train("task=export", "from=run", "export.format=torch").code == 0
    refused(bnn_train("task=export", "from=run"), "export.format=onnx: resmlp:ResMLP has no method onnx()")
    refused(bnn_train("task=benchmark", "from=run"), "resmlp:ResMLP can't be packed: it has no method pack()")
    assert bnn_train("init_from=run", "trainer=smoke", "trainer.epochs=1", "hydra.run.dir=tuned").code == 0
    for key in ("freeze=1", "fresh=1"):
        refused(bnn_train("init_from=run", key), f"{key}: model=resmlp does not say what its layers are", "stages()")
    refused(bnn_train("plugins=[resmlp.py]", *SMALL, "engine=packed"), "model=resmlp, only mlp")
    assert summary("tuned")["beginning"]["anew"] == []


def module():
    sys.path.insert(0, str(Path.cwd()))
    import resmlp

    return resmlp


def test_packing_is_compared_with_the_network(bnn_train, resmlp, monkeypatch):
    """A pack() with other results, a pack() inherited beside another forward, and hooks are refused."""
    bnn_train(resmlp, *SMALL, "trainer.epochs=1", "hydra.run.dir=run")
    own, shape = module().ResMLP, (1, 8, 8)
    network = own(shape, 10, 16).eval()
    torch.testing.assert_close(pack_network(network, shape)(probe_logits.pixels(shape)), network(probe_logits.pixels(shape)))
    with pytest.raises(UserError, match="image_shape"):
        pack_network(network)

    class Other(own):
        def forward(self, x):
            return -super().forward(x)

    with pytest.raises(UserError, match=r"Other can't be packed: its forward is not that of resmlp:ResMLP"):
        pack_network(Other(shape, 10, 16).eval(), shape)
    hooked = own(shape, 10, 16).eval()
    hooked.norms[0].register_forward_hook(lambda _m, _x, y: -y)
    with pytest.raises(UserError, match=r"norms\.0: it has hooks"):
        pack_network(hooked, shape)
    with pytest.raises(UserError, match=r"model\.weights=float"):
        pack_network(own(shape, 10, 16, weights="float").eval(), shape)
    monkeypatch.setattr(own, "pack", lambda self, state: with_packed_layers(self, {n: inverted(t) for n, t in state.items()}))
    for pack in (lambda: pack_network(network, shape), lambda: load_packed("run")):
        with pytest.raises(UserError, match="other logits"):
            pack()
    monkeypatch.setattr(own, "pack", lambda self, state: self)
    with pytest.raises(UserError, match="returns no packed network"):
        load_packed("run")


def inverted(tensor):
    return 255 - tensor if tensor.dtype == torch.uint8 else tensor


AROUND = """
from math import prod
from typing import Literal

from torch import nn

from bnn_exp import MLP, register_model
from bnn_exp.config.schema import Count, schema


@schema
class Settings:
    name: Literal["around"]
    hidden_size: Count


class Around(nn.Module):
    def __init__(self, image_shape, num_classes, hidden_size):
        super().__init__()
        self.inner = MLP(prod(image_shape), num_classes, hidden_size, 2)

    def forward(self, x):
        return self.inner(x)

    def pack(self, state):
        from bnn_exp.deploy.mlp import DeployedMLP

        return FORM(DeployedMLP(self.inner, {name.removeprefix("inner."): tensor for name, tensor in state.items()}))


class Wrapped(nn.Module):
    def __init__(self, packed):
        super().__init__()
        self.packed = packed

    def forward(self, x):
        return self.packed(x)

    def c(self, shape, classes):
        from bnn_exp.deploy.exports.c.source import write_c

        return write_c(self.packed, shape, classes)[:2]


register_model(Settings, Around, values={"hidden_size": 16})
"""


@pytest.mark.parametrize("form", ["", "Wrapped"])
def test_a_packed_form_brings_its_exports(bnn_train, forget, tmp_path, form):
    """A DeployedMLP has every export. Another class has the exports that it defines methods for."""
    (tmp_path / "around.py").write_text(AROUND.replace("FORM", form))
    made = bnn_train("plugins=[around.py]", "model=around", "trainer=smoke", "trainer.epochs=1", "hydra.run.dir=run")
    assert made.code == 0, made.err
    done = bnn_train("task=export", "from=run", "export.format=c")
    assert done.code == 0 and Path("run/export/network.c").is_file(), done.err
    done = bnn_train("task=export", "from=run", "export.format=onnx")
    assert done.code == (2 if form else 0), done.err
    assert not form or "around:Wrapped has no method onnx()" in done.err


CONVOLUTION = """
from typing import Literal

from helpers import following
from torch import nn

from bnn_exp import BinaryLinear, register_model, with_packed_layers
from bnn_exp.models.pixels import OfPixels
from bnn_exp.nn import BinaryConv2d
from bnn_exp.config.schema import Count, schema


@schema
class Settings:
    name: Literal["small"]
    channels: Count


class Small(OfPixels):
    def __init__(self, image_shape, num_classes, channels, mean, std):
        super().__init__()
        self.convolution, self.norm = BinaryConv2d(image_shape[0], channels), nn.BatchNorm2d(channels)
        self.last = BinaryLinear(channels, num_classes)
        self.keep_statistics(image_shape[0], mean, std)
        assert len(mean) == len(std) == image_shape[0]

    def forward(self, x):
        return self.last(self.norm(self.convolution(self.standardized(x))).relu().mean((2, 3)))

    def pack(self, state):
        return with_packed_layers(self, state)


register_model(Settings, Small, values={"channels": 8}, optimizer="counter")
"""


def test_a_network_gets_the_statistics_of_the_train_pixels(bnn_train, forget, tmp_path):
    """Buffers keep the statistics as whole pixels, and the file holds buffers.

    `channels` is a number here; in built-in models it is a list.
    """
    (tmp_path / "small.py").write_text(CONVOLUTION)
    assert bnn_train("plugins=[small.py]", "model=small", "trainer=smoke", "trainer.epochs=1", "hydra.run.dir=run").code == 0
    forget()
    network, digits = load_model("run")[0], sources.read("digits")
    assert float(network.mean) == pytest.approx(digits.train_images.mean() / 255, abs=0.51 / 255)  # a whole number of pixels
    images = torch.from_numpy(digits.test_images)
    torch.testing.assert_close(load_packed("run")[0](images), network(images))
    assert bnn_train("task=export", "from=run", "export.format=torch").code == 0


def test_layers_of_ones_own_are_packed_too():
    """Layers with biases of bits give the same logits packed and unpacked."""
    from bnn_exp import BNCVL

    torch.manual_seed(0)
    for weights in ("bits", "latent"):
        network = nn.Sequential(
            BNCVL(1, 4, 3, encoding="bipolar", weights=weights), nn.Flatten(), BinaryLinear(256, 3, weights=weights)
        )
        x = torch.rand(2, 1, 8, 8)
        expected = network.eval()(x)
        from bnn_exp.bits import deployed_state

        packed = with_packed_layers(network, deployed_state(network))
        torch.testing.assert_close(packed(x), expected)
        assert all(layer.weight.dtype == torch.uint8 for _, layer in binary_layers(packed))


def test_a_network_without_stages_is_one_layer():
    network = nn.Sequential(BinaryLinear(4, 3), nn.BatchNorm1d(3), nn.ReLU())
    assert stages(network) == [[network[0], network[1]]]
    assert sum(verify_binary(network).values()) <= 12


SETTINGS = "dataset=rings", "trainer.loss=smooth"
WRONG = {
    "images.astype": ("(np.uint8)", "(np.float32)", ["train images float32 [500, 8, 8]", "uint8 [rows, channels"]),
    "labels out of range": ("labels[:rows])", "labels[:rows] + 1)", ["no class for train row", "numbers from 0 to 2"]),
    "too few labels": ("labels[:rows])", "labels[:9])", ["train labels of shape [9]", "500 labels"]),
    "no test": ('        "test": (images[rows:], labels[rows:]),\n', "", ['"test": (images, labels)']),
    "twice": ('["ring", "disc", "none"]', '["ring", "ring", "none"]', ["the classes"]),
    "error": ("np.stack(", "np.stuck(", ["rings:rings failed: AttributeError"]),
    "loss of rows": ("label_smoothing=0.1", 'reduction="none"', ["trainer.loss=smooth: it returns a tensor [2]", "a scalar"]),
    "loss without gradient": ("F.cross_entropy(logits,", "F.cross_entropy(logits.detach(),", ["without a gradient"]),
    "loss fails": ("label_smoothing=0.1", "weight=3", ["trainer.loss=smooth: rings:smooth: TypeError"]),
    "no settings": ("class Rings(Rows):", "class Rings:", ["TypeError", "derive from bnn_exp.Rows"]),
    "taken": ('Literal["rings"]', 'Literal["mnist"]', ["dataset=mnist: a choice of that name exists already"]),
    "loss taken": (
        '"smooth"',
        '"squared_hinge"',
        ["trainer.loss=squared_hinge: bnn_exp.training.losses:squared_hinge has this name"],
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_data_and_losses_that_can_not_be_trained_with(bnn_train, resmlp, tmp_path, what):
    old, new, words = WRONG[what]
    assert old in DATA
    (tmp_path / "rings.py").write_text(DATA.replace(old, new))
    before = {file.name for file in tmp_path.iterdir()}
    refused(bnn_train(resmlp, *SMALL, *SETTINGS), *words)
    assert {file.name for file in tmp_path.iterdir()} == before


def test_labels_by_name_and_a_validation_split(tmp_path, forget, monkeypatch):
    from bnn_exp.config import plugins

    text = DATA.replace('"classes": ["ring", "disc", "none"]', '"validation": (images[:7], labels[:7])')
    text = text.replace("labels = rng", "labels = np.array(['b', 'a', 'c'])[rng").replace("2 * rows)\n", "2 * rows)]\n", 1)
    text = text.replace("shapes[labels]", "shapes[(labels == 'a') + 0]")
    (tmp_path / "rings.py").write_text(text)
    plugins.load([str(tmp_path / "rings.py")])
    arrays = sources.read("rings", rows=30)
    assert arrays.classes == ("a", "b", "c") and len(arrays.validation_labels) == 7
    assert arrays.train_images.shape == (30, 1, 8, 8) and arrays.train_labels.dtype == np.int64
    bright = arrays.train_images.mean((1, 2, 3))
    assert len(set(np.sign(bright - bright.mean())[arrays.train_labels == 0])) == 1  # all samples of class a have one shape


@pytest.mark.parametrize("cached", [True, False])
def test_rows_are_made_anew_when_a_file_changes(tmp_path, forget, monkeypatch, cached):
    """Samples come from the cache until one of the named files changes. Without named files they are made each time."""
    from bnn_exp.config import plugins

    (tmp_path / "level").write_text("100")
    code = DATA.replace("rows: Count", "path: str").replace("rings(rows)", "rings(path)")
    code = code.replace(
        "    rng, (y", "    global calls\n    calls += 1\n    rows, level = 9, int(open(path).read())\n    rng, (y"
    )
    code = code.replace("150 * shapes", "level * shapes").replace('values={"rows": 500}, ', "")
    code = code.replace("files=lambda rows: ()", "files=lambda path: [path]" if cached else "").replace(
        "def smooth", "calls = 0\n\n\ndef smooth"
    )
    (tmp_path / "rings.py").write_text(code)
    plugins.load([str(tmp_path / "rings.py")])
    path = str(tmp_path / "level")
    first, again = sources.read("rings", path=path), sources.read("rings", path=path)
    assert first.key == again.key and sys.modules["rings"].calls == (1 if cached else 2)
    (tmp_path / "level").write_text("120")
    changed = sources.read("rings", path=path)
    assert changed.key != first.key and changed.train_images.max() > first.train_images.max()


def test_settings_that_have_the_names_of_ours(bnn_train, forget, tmp_path):
    """Settings without effect are refused only for built-in models and datasets, whatever the names of a plugin's settings."""
    (tmp_path / "resmlp.py").write_text(MODEL.replace("width", "pool").replace("blocks", "window"))
    data = DATA.replace("    rng, (y", "    rows = fit\n    rng, (y")
    for old in ("rows: Count", "rings(rows)", '"rows": 500', "lambda rows"):
        data = data.replace(old, old.replace("rows", "fit"))
    (tmp_path / "rings.py").write_text(data)
    own = ("model.pool=8", "model.window=1", "dataset.fit=50")
    done = bnn_train("plugins=[resmlp.py,rings.py]", "model=resmlp", "dataset=rings", *own, "trainer=smoke", "trainer.epochs=1")
    assert done.code == 0 and "50 train" in done.out, done.err
