"""Loads damaged, foreign and forged `model.safetensors` files: each gives one clear line, and no code runs."""

import hashlib
import io
import json
import pickle
import random
import struct
from pathlib import Path

import pytest
import torch
from helpers import plain_config

from bnn_exp.deploy import load_packed
from bnn_exp.errors import UserError
from bnn_exp.models.bncvl import BNCVLNet
from bnn_exp.models.mlp import MLP
from bnn_exp.models.vgg import VGG
from bnn_exp.records.model import load_model, save_model

NASTY = (None, True, -1, 1.5, 2**31, 10**30, "x" * 5000, [], {}, [2**40] * 3, ["0"] * 40)
KINDS = ("mlp", "cnn", "codes", "vgg")
NO_INTEGERS = ("the network standardises pixels by numbers", "convolutions.", "norms.", "dense.", "mean_over_image:")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, bytes]:
    """Returns the bytes of a good file for each kind of network."""
    folder = tmp_path_factory.mktemp("models")
    shape, mean = ["model.channels=[2]", "model.convolutions=1"], {"mean": [0.3], "std": [0.25]}
    for name, network, overrides in (
        ("mlp", MLP(16, 3, 9, 3), ["model.hidden_size=9", "model.num_layers=3"]),
        ("cnn", BNCVLNet((1, 4, 4), 3, (2,), 1, dense=(3,), **mean), ["model=bncvl", *shape, "model.dense=[3]"]),
        (
            "codes",
            BNCVLNet((1, 4, 4), 3, (2,), 1, dense=(3,), activation_bits=8, **mean),
            ["model=bncvl", *shape, "model.dense=[3]", "model.activation_bits=8"],
        ),
        ("vgg", VGG((1, 4, 4), 3, (2,), 1, **mean), ["model=vgg", *shape]),
    ):
        save_model(folder / name, network, plain_config(*overrides), (1, 4, 4), ("a", "b", "c"))
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def split(data: bytes) -> tuple[dict, bytes]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header: dict, body: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def signed(header: dict, body: bytes) -> bytes:
    """Returns a forged file: any content, with the right fingerprint."""
    about = header["__metadata__"] | {"sha256": fingerprint(header, body)}
    identity = "\n".join(str(about.get(key)) for key in ("class", "probe", "sha256"))
    return joined(header | {"__metadata__": about | {"identity_sha256": hashlib.sha256(identity.encode()).hexdigest()}}, body)


def fingerprint(header: dict, body: bytes) -> str:
    about, digest = header["__metadata__"], hashlib.sha256()
    for key in ("config", "image_shape", "classes"):
        digest.update(f"{key} {about.get(key)}\n".encode())
    names = {"U8": "torch.uint8", "F32": "torch.float32", "I64": "torch.int64"}
    for name, tensor in sorted((name, tensor) for name, tensor in header.items() if name != "__metadata__"):
        begin, end = tensor["data_offsets"]
        digest.update(f"{name} {names.get(tensor['dtype'])} {tensor['shape']}\n".encode() + body[begin:end])
    return digest.hexdigest()


def answer(file: Path, data: bytes, load) -> torch.nn.Module | None:
    """Returns the network that `load` finds in a file of these bytes; None if `load` refuses them with the right error."""
    file.write_bytes(data)
    try:
        return load(file)[0]
    except UserError as error:
        lines = str(error).splitlines()
        known = ("not a readable model (", "its network is of the class", "the network gives", *NO_INTEGERS)
        assert len(lines) <= 2 and lines[0].startswith(tuple(f"{file}: {text}" for text in known)) and len(lines[0]) < 1000
        return None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("load", [load_model, load_packed])
def test_damage_anywhere_is_found(files, kind, load, tmp_path):
    check_damage(files, kind, load, tmp_path, 500)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_much_damage_anywhere_is_found(files, kind, tmp_path):
    check_damage(files, kind, load_packed, tmp_path, 5000)


def check_damage(files, kind, load, tmp_path, changes):
    good, file, rng = files[kind], tmp_path / "model.safetensors", random.Random(kind)
    whole = answer(file, good, load).state_dict()
    header = 8 + int.from_bytes(good[:8], "little")
    damaged = [good[:length] for length in (*range(0, 64), *rng.sample(range(len(good)), 100))]
    for _ in range(changes):  # changes a bit of the header, a bit of any byte, or a whole byte
        data = bytearray(good)
        for _ in range(rng.choice((1, 1, 2, 5))):
            at = rng.randrange(header if rng.random() < 0.7 else len(good))
            data[at] = rng.randrange(256) if rng.random() < 0.2 else data[at] ^ (1 << rng.randrange(8))
        damaged.append(bytes(data))
    damaged += [good + b"\0", good * 2, good[:header] + good[header + 1 :], good[8:], bytes(len(good))]
    found = 0
    for data in damaged:
        network = answer(file, data, load)
        if network is None:
            found += 1
        else:  # a change without a meaning: white space, or the case of a number (1e5, 1E5)
            state = network.state_dict()
            assert state.keys() == whole.keys() and all(torch.equal(state[name], whole[name]) for name in whole)
    assert found > 0.99 * len(damaged)


def test_a_forged_file_is_a_network_or_a_line(files, tmp_path):
    """Replaces every value of the header and of the configuration by a nasty one, with the right fingerprint."""
    file, tried, loaded = tmp_path / "model.safetensors", 0, 0
    for kind in files:
        header, body = split(files[kind])
        config = json.loads(header["__metadata__"]["config"])
        forged = []
        for key in config["model"]:
            forged += [("config", config | {"model": config["model"] | {key: value}}) for value in NASTY]
        forged += [(key, value) for key in ("config", "image_shape", "classes", "class", "probe") for value in NASTY]
        forged += [("config", {name: value for name, value in config.items() if name != gone}) for gone in config]
        for key, value in forged:
            about = header["__metadata__"] | {key: json.dumps(value)}
            data, tried = signed(header | {"__metadata__": about}, body), tried + 1
            loaded += answer(file, data, load_packed) is not None
        for name in [name for name in header if name != "__metadata__"]:
            for field in ("shape", "dtype", "data_offsets"):
                for value in (*NASTY[::3], [0], [1, 1], [9, 3], [2**62, 2**62], [0, 10**18], "F64", "BOOL", "I64"):
                    changed = header | {name: header[name] | {field: value}}
                    answer(file, joined(changed, body), load_packed)
                    tried += 1
            without = {key: tensor for key, tensor in header.items() if key != name}
            assert answer(file, joined(without, body), load_packed) is None
    assert tried > 500 and loaded < tried / 10


@pytest.mark.parametrize("kind", ["cnn", "codes", "vgg"])
def test_forged_real_numbers_are_a_network_or_a_line(files, kind, tmp_path):
    header, body = split(files[kind])
    header["__metadata__"] = {key: value for key, value in header["__metadata__"].items() if key not in ("class", "probe")}
    del header["__metadata__"]["identity_sha256"]
    refused, tensors = 0, [tensor for tensor in header.values() if tensor.get("dtype") == "F32"]
    for tensor in tensors:
        begin, end = tensor["data_offsets"]
        for number in (float("nan"), float("inf"), -float("inf"), 0.0, -1.0, 1e30, 1e-40):
            forged = body[:begin] + struct.pack("<f", number) * ((end - begin) // 4) + body[end:]
            about = header["__metadata__"] | {"sha256": fingerprint(header, forged)}
            refused += (
                answer(tmp_path / "model.safetensors", joined(header | {"__metadata__": about}, forged), load_packed) is None
            )
    assert refused >= (0 if kind == "cnn" else 10)  # the statistics of the pixels; in a network of codes much more


def test_layers_without_end_cost_nothing(files, tmp_path):
    for kind, key, value in (("mlp", "num_layers", 10**9), ("cnn", "convolutions", 10**9), ("mlp", "hidden_size", 10**12)):
        header, body = split(files[kind])
        config = json.loads(header["__metadata__"]["config"])
        about = header["__metadata__"] | {"config": json.dumps(config | {"model": config["model"] | {key: value}})}
        assert answer(tmp_path / "model.safetensors", signed(header | {"__metadata__": about}, body), load_packed) is None


class Payload:
    """An object that leaves a file behind when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("load", [load_model, load_packed])
def test_other_files_are_refused_and_no_code_runs(files, load, tmp_path):
    mark, file = tmp_path / "it ran", tmp_path / "model.safetensors"
    zipped = io.BytesIO()
    torch.save({"network": Payload(mark)}, zipped)
    pickled = pickle.dumps(Payload(mark))
    header, body = split(files["mlp"])
    foreign = joined(header | {"__metadata__": {"format": "pt"}}, body)
    earlier = joined(header | {"__metadata__": header["__metadata__"] | {"format": "bnn_exp model 1"}}, body)
    nested = json.dumps(header["__metadata__"] | {"config": "[" * 100_000}).encode()
    deep = joined(header | {"__metadata__": json.loads(nested)}, body)
    others = (
        b"",
        pickled,
        zipped.getvalue(),
        foreign,
        earlier,
        deep,
        b"\x89PNG\r\n\x1a\n" + bytes(99),
        len(pickled).to_bytes(8, "little") + pickled,
    )
    for data in (*others, b"\xff" * 8 + b"{}", (2**40).to_bytes(8, "little") + b"{}", b"{" * 10_000):
        assert answer(file, data, load) is None
    assert not mark.exists()
    with pytest.raises(UserError, match="no such file"):
        load(tmp_path / "none.safetensors")
