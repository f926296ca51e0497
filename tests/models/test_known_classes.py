"""Tests that only exact built-in classes are packed, trained packed and exported, and that files name the class."""

import copy
import hashlib
import json
from pathlib import Path

import pytest
import torch
from helpers import plain_config, settings_of, trainer_of
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from bnn_exp.bits import deployed_state
from bnn_exp.deploy import export_onnx, export_torch, load_packed, pack_network
from bnn_exp.errors import UserError
from bnn_exp.models import mlp
from bnn_exp.models.bncvl import BNCVLNet
from bnn_exp.models.mlp import MLP
from bnn_exp.models.vgg import VGG
from bnn_exp.nn import BinaryLinear, binarize
from bnn_exp.nn.known_classes import home
from bnn_exp.records import probe_logits
from bnn_exp.records.model import load_model, save_model
from bnn_exp.training import engine

SMALL = ("model.hidden_size=64", "trainer.epochs=1", "trainer.batch_size=128", "optimizer=hypermask", "optimizer.mask=random")
SHAPE, CLASSES = (1, 8, 8), tuple("0123456789")


class ResMLP(MLP):
    """An MLP in which each layer also adds its input to its activations."""

    def forward(self, x):
        h = x.flatten(1)
        for i, (layer, norm) in enumerate(zip(self.layers[:-1], self.norms[:-1], strict=True)):
            y = binarize(norm(layer(h)), self.encoding, self.window)
            h = y if i == 0 else h + y
        return self.norms[-1](self.layers[-1](h))


class Renamed(MLP):
    """A subclass that computes what MLP computes."""


class OtherLinear(BinaryLinear):
    def forward(self, x):
        return -super().forward(x)


def network(kind=MLP, **settings):
    torch.manual_seed(0)
    return kind(64, 10, 64, 4, **settings).eval()


def with_other_layer():
    made = network()
    made.layers[1] = OtherLinear(64, 64, "bipolar", True)
    return made


def with_own_forward():
    made = network()
    made.forward = lambda x: MLP.forward(made, x).neg()
    return made


def with_hook(where):
    def make():
        made = network()
        made.get_submodule(where).register_forward_hook(lambda _m, _x, y: -y)
        return made

    return make


def with_pre_hook():
    made = network()
    made.layers[0].register_forward_pre_hook(lambda _m, x: (255 - x[0],))
    return made


def with_parametrization():
    made = network()
    nn.utils.parametrize.register_parametrization(made.layers[1], "weight", Inverted())
    return made


class Inverted(nn.Module):
    def forward(self, w):
        return 1 - w


OTHERS = {
    "subclass": lambda: network(ResMLP),
    "subclass that computes the same": lambda: network(Renamed),
    "layer": with_other_layer,
    "own forward": with_own_forward,
    "hook": with_hook(""),
    "hook of a layer": with_hook("norms.1"),
    "hook before": with_pre_hook,
    "parametrization": with_parametrization,
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_not_exactly_a_known_class_is_neither_packed_nor_trained_packed(kind):
    other = OTHERS[kind]()
    with pytest.raises(UserError, match="can't be packed"):
        pack_network(other)
    assert engine.choose(settings_of(*SMALL), "cpu", other) == "dense"
    with pytest.raises(UserError, match=r"engine=packed: not with"):
        engine.choose(settings_of(*SMALL, "engine=packed"), "cpu", other)


def test_another_forward_of_the_class_itself_is_seen(monkeypatch):
    monkeypatch.setattr(MLP, "forward", ResMLP.forward)
    with pytest.raises(UserError, match=r"models.mlp:MLP\.forward"):
        pack_network(network())


@pytest.mark.parametrize("memory", ["fast", "lean"])
def test_a_replaced_class_trains_dense_as_what_it_is(monkeypatch, memory):
    plain = trainer_of(*SMALL, "engine=dense").epoch()
    monkeypatch.setattr(mlp, "MLP", ResMLP)
    expected = trainer_of(*SMALL, "engine=dense")
    chosen = trainer_of(*SMALL, f"engine.memory={memory}")
    assert chosen.engine == "dense" and type(chosen.network) is ResMLP
    losses = [trainer.epoch()["train_loss"] for trainer in (expected, chosen)]
    assert losses[0] == losses[1] != plain["train_loss"]


def test_a_hook_that_the_class_registers_trains_dense_with_lean_memory_too(monkeypatch):
    original = MLP.__init__

    def begin(self, *arguments, **settings):
        original(self, *arguments, **settings)
        self.norms[0].register_forward_hook(lambda _m, _x, y: -y)

    monkeypatch.setattr(MLP, "__init__", begin)
    trainer = trainer_of(*SMALL, "engine.memory=lean")
    assert trainer.engine == "dense" and trainer.epoch()["train_loss"] > 0


def test_the_command_refuses_to_train_it_packed(bnn_train, monkeypatch, tmp_path):
    monkeypatch.setattr(mlp, "MLP", ResMLP)
    done = bnn_train(*SMALL, "engine=packed")
    assert done.code == 2 and "engine=packed" in done.err and "ResMLP" in done.err
    assert len(done.err.splitlines()) == 2 and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_ranks_train_one_class_of_network(bnn_train, monkeypatch, summary):
    monkeypatch.setattr(mlp, "MLP", ResMLP)
    done = bnn_train(*SMALL, "engine.devices=2", "device=cpu", "hydra.run.dir=run")
    assert done.code == 2 and home(ResMLP) in done.err and home(MLP) in done.err and len(done.err.splitlines()) == 2, done.err


def test_a_run_of_a_replaced_class_is_evaluated_as_it_or_not_at_all(bnn_train, monkeypatch, summary):
    with monkeypatch.context() as patch:
        patch.setattr(mlp, "MLP", ResMLP)
        assert bnn_train(*SMALL, "hydra.run.dir=run").code == 0
        done = bnn_train("task=evaluate", "from=run")
        assert done.code == 0 and "ResMLP" in done.out
        assert f"{summary('run')['test_accuracy']:.2f}" in done.out
        refused = bnn_train("task=export", "from=run")
        assert refused.code == 2 and "ResMLP" in refused.err and len(refused.err.splitlines()) <= 2
    Path("run/summary.json").unlink()  # like a run that was killed
    for arguments in ("task=evaluate from=run", "task=predict from=run input=run/samples.png", "task=export from=run",
                      "init_from=run", "resume=run"):  # fmt: skip
        refused = bnn_train(*arguments.split())
        assert refused.code == 2 and home(ResMLP) in refused.err and home(MLP) in refused.err, refused.err
        assert len(refused.err.splitlines()) == 2


@pytest.mark.parametrize("make", [network, lambda: BNCVLNet(SHAPE, 10, (4, 6), 1, dense=(8,)).eval()], ids=["mlp", "cnn"])
def test_packing_compares_logits_and_leaves_the_network_as_it_is(make, monkeypatch):
    given = make()
    given.train().norms[0].eval() if isinstance(given, MLP) else given.train()
    modes, state = [m.training for m in given.modules()], copy.deepcopy(given.state_dict())
    pack_network(given)
    assert modes == [m.training for m in given.modules()]
    assert all(torch.equal(state[name], tensor) for name, tensor in given.state_dict().items())
    wrong = {name: 255 - t if t.dtype == torch.uint8 else t for name, t in deployed_state(make()).items()}
    monkeypatch.setattr("bnn_exp.deploy.load.deployed_state", lambda _: wrong)
    with pytest.raises(UserError, match="other logits on 8 of 8"):
        pack_network(given)


def saved(tmp_path, kind=MLP):
    file = tmp_path / "model.safetensors"
    made = network(kind)
    made.train()(torch.randint(0, 256, (100, *SHAPE), dtype=torch.uint8))
    save_model(file, made, plain_config("model.hidden_size=64"), SHAPE, CLASSES)
    return file, made.eval()


def rewritten(file, **changes):
    """Changes metadata of a file and corrects its fingerprints. The value None removes a key."""
    with safe_open(file, framework="pt") as opened:
        about = opened.metadata() | changes
    about = {key: value for key, value in about.items() if value is not None}
    if "class" in about:
        identity = "\n".join(about[key] for key in ("class", "probe", "sha256"))
        about["identity_sha256"] = hashlib.sha256(identity.encode()).hexdigest()
    save_file(load_file(file), file, about)


def altered(kind, change):
    made = network() if kind is MLP else BNCVLNet(SHAPE, 10, (4, 6), 1, dense=(8,)).eval()
    change(made)
    return made


ALTERED = {
    "no norm": (MLP, lambda n: n.norms.__setitem__(0, nn.Identity())),
    "norm of images": (MLP, lambda n: n.norms.__setitem__(0, nn.BatchNorm2d(64))),
    "tied layers": (MLP, lambda n: n.layers.__setitem__(2, n.layers[1])),
    "a layer too many": (MLP, lambda n: n.layers.append(nn.ReLU())),
    "a norm too many": (MLP, lambda n: n.norms.append(nn.BatchNorm1d(10))),
    "no layer": (MLP, lambda n: setattr(n, "layers", nn.ModuleList())),
    "a layer of another size": (MLP, lambda n: n.layers.__setitem__(1, BinaryLinear(64, 65, "bipolar", True))),
    "no layers at all": (MLP, lambda n: setattr(n, "layers", None)),
    "double": (MLP, lambda n: n.double()),
    "half": (MLP, lambda n: n.half()),
    "double norms": (MLP, lambda n: n.norms.double()),
    "nowhere": (MLP, lambda n: n.to("meta")),
    "cnn, a dense layer too many": (BNCVLNet, lambda n: n.dense.append(nn.ReLU())),
    "cnn, a convolution too many": (BNCVLNet, lambda n: n.convolutions.append(nn.ReLU())),
    "cnn, tied": (BNCVLNet, lambda n: n.dense.insert(1, n.dense[0])),
    "cnn, none": (BNCVLNet, lambda n: setattr(n, "convolutions", nn.ModuleList())),
    "cnn, double": (BNCVLNet, lambda n: n.double()),
}


@pytest.mark.parametrize("kind", ALTERED)
def test_an_altered_network_is_refused_in_words(kind):
    with pytest.raises(UserError, match=r"can't be packed: .*\nallowed: "):
        pack_network(altered(*ALTERED[kind]))


@pytest.mark.parametrize("load", [load_model, load_packed])
def test_the_file_says_which_class_and_which_logits(load, tmp_path):
    file, made = saved(tmp_path)
    images = probe_logits.pixels(SHAPE)
    with torch.no_grad():
        expected = made(images)
        torch.testing.assert_close(load(file)[0](images), expected, rtol=1e-5, atol=1e-5)
    with safe_open(file, framework="pt") as opened:
        about = opened.metadata()
    assert json.loads(about["class"]) == "bnn_exp.models.mlp:MLP"
    torch.testing.assert_close(torch.tensor(json.loads(about["probe"])), expected, rtol=1e-5, atol=1e-5)
    assert (images.min(), images.max()) == (0, 255)


@pytest.mark.parametrize("name", ["dense", "packed"])
def test_saving_changes_nothing_of_a_network_in_training(name, tmp_path):
    trainer = trainer_of(*SMALL, f"engine={name}")
    trainer.network.train()
    before = copy.deepcopy(trainer.network.state_dict())
    save_model(tmp_path / "model.safetensors", trainer.network, plain_config(*SMALL), SHAPE, CLASSES, trainer.step.answer)
    assert all(module.training for module in trainer.network.modules())
    assert all(torch.equal(before[key], tensor) for key, tensor in trainer.network.state_dict().items())
    for load in (load_model, load_packed):
        load(tmp_path)


@pytest.mark.parametrize("load", [load_model, load_packed])
def test_another_class_and_other_logits_are_refused(load, tmp_path):
    file, made = saved(tmp_path)
    few = made(probe_logits.pixels(SHAPE)).tolist()
    few[0], few[3] = few[1], [-x for x in few[3]]  # rounding on another processor may, rarely, change a few rows
    rewritten(file, probe=json.dumps(few))
    load(file)
    rewritten(file, probe=json.dumps([[-x for x in row] for row in few]))
    with pytest.raises(UserError, match="other logits on 7 of 8"):
        load(file)
    rewritten(file, **{"class": json.dumps(home(ResMLP))})
    with pytest.raises(UserError, match=r"ResMLP.* here is bnn_exp\.models\.mlp:MLP"):
        load(file)


@pytest.mark.parametrize("load", [load_model, load_packed])
def test_a_file_of_an_earlier_version_is_read(load, tmp_path):
    file, made = saved(tmp_path)
    rewritten(file, **{"class": None, "probe": None, "identity_sha256": None})
    images = probe_logits.pixels(SHAPE)
    with torch.no_grad():
        torch.testing.assert_close(load(file)[0](images), made(images), rtol=1e-5, atol=1e-5)
    with safe_open(file, framework="pt") as opened:
        earlier = hashlib.sha256()
        for key in ("config", "image_shape", "classes"):
            earlier.update(f"{key} {opened.metadata()[key]}\n".encode())
        for name in sorted(opened.keys()):
            tensor = opened.get_tensor(name)
            earlier.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode() + tensor.numpy().tobytes())
        assert opened.metadata()["sha256"] == earlier.hexdigest()  # an earlier version checks this fingerprint


def test_a_half_identity_is_damage(tmp_path):
    for gone in ("class", "probe", "identity_sha256"):
        file, _ = saved(tmp_path)
        with safe_open(file, framework="pt") as opened:
            about = {key: value for key, value in opened.metadata().items() if key != gone}
        save_file(load_file(file), file, about)
        with pytest.raises(UserError, match="not a readable model"):
            load_model(file)


def test_exports_refuse_what_can_not_be_packed(tmp_path):
    images = probe_logits.pixels(SHAPE)
    pytest.importorskip("onnxruntime")

    class Other(BNCVLNet):
        pass

    class OtherVGG(VGG):
        pass

    for given in (Other(SHAPE, 10, (4,), 1, dense=(8,)).eval(), OtherVGG(SHAPE, 10, (4,)).eval()):
        with pytest.raises(UserError, match=r"export\.format=torch"):
            export_torch(given, tmp_path, images)
        with pytest.raises(UserError, match=r"export\.format=onnx"):
            export_onnx(given, tmp_path, images, CLASSES)
    assert not list(tmp_path.iterdir())
