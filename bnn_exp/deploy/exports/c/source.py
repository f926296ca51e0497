"""Writes a packed MLP or CNN as C99 source and header. The C code computes in integers, from the pixels to the scores.

The functions of the C code are files in the folder `text`. This module chooses the functions, writes the constants of the
layers and the calls, and replaces each mark @word@ in the files.
"""

import math
import re
import string
from importlib import resources
from typing import Any, NamedTuple

import numpy as np

from bnn_exp.deploy.cnn import DeployedCNN
from bnn_exp.deploy.exports.c.constants import BLOCK
from bnn_exp.deploy.exports.c.layers import ZEROS, Written, written
from bnn_exp.deploy.mlp import DeployedMLP
from bnn_exp.records.formatting import in_a_line

_PLAIN = (string.ascii_letters + string.digits + " _-.").encode()  # characters that need no escape in a C string
_FOLDER = resources.files("bnn_exp.deploy.exports.c") / "text"
_ALWAYS = {"top", "lookup", "read_codes"}
_IN_ORDER = (
    *("top", "lookup", "read_codes", "read_bits", "multiply", "channels_last"),
    *("code", "write_codes", "average", "write_bits", "invert", "write_scores", "write_steps"),
)
_STRUCT = 48  # bytes of a `struct layer` on a processor of 32 bits
_SHARED = 4 * BLOCK + 8 * 12 + 32 * 8 + 16 * 8 * 8 + 24 * (BLOCK + 1)  # bytes of the variables in top.c and lookup.c


class Source(NamedTuple):
    """The C code of a network, and the bytes of its constants (flash) and of its variables (RAM)."""

    source: str
    header: str
    flash: int
    ram: int


def write_c(network: DeployedMLP | DeployedCNN, shape: tuple[int, ...], classes: tuple[str, ...]) -> Source:
    """Returns the text of network.c and of network.h, and the sizes in memory.

    Args:
        shape: (channels, height, width) of the images.
        classes: the names of the classes.

    Raises:
        UserError: see `written`.
    """
    cnn = isinstance(network, DeployedCNN)
    shapes = network.shapes() if cnn else [(1, 1, layer.inputs) for layer in network.layers]
    steps = getattr(network, "binarize_logits", False)
    layers = [written(layer, picture, steps) for layer, picture in zip(network.layers, shapes, strict=True)]
    turned = cnn and shape[0] > 1  # pixels come with channels first, layers read channels last
    results = [layer.result for layer in layers[:-1]]
    buffers = {"a": max(results[::2], default=0), "b": max([*results[1::2], math.prod(shape) * turned])}
    zeros = max((_position(layer) for layer in layers if layer.fields.get("padding") == ZEROS), default=0)
    row = max((layer.fields["words"] for layer in layers if layer.call == "multiply"), default=0)
    names = [_quoted(in_a_line(name)) for name in classes]
    parts = set.union(_ALWAYS, *(layer.parts for layer in layers), {"channels_last"} if turned else set())
    words = {
        "pixels": math.prod(shape),
        "shape": " x ".join(map(str, shape)),
        "classes": len(classes),
        "zero": network.layers[0].zero,
        "names": ", ".join(names),
        "block": BLOCK,
        "row": row,
        "flash": sum(len(in_a_line(name).encode()) + 5 for name in classes) + zeros + sum(map(_flash, layers)),
        "ram": _SHARED + sum(buffers.values()) + 4 * row,
    }
    text = [_part(f"{name}.c", words) for name in _IN_ORDER if name in parts]
    text += [f"\nstatic const uint8_t {ZEROS}[{zeros}] = {{0}};\n"] if zeros else []
    text += [_layer(n, layer) for n, layer in enumerate(layers, 1)]
    text += [f"\nstatic uint8_t {name}[{size}];" for name, size in buffers.items() if size]
    text += [_classify(layers, turned), _part("main.c", words)]
    return Source("".join(text), _part("network.h", words), words["flash"], words["ram"])


def _classify(layers: list[Written], turned: bool) -> str:
    """Returns the C function that calls the layers. Their results alternate between the buffers a and b."""
    body, x = [], "pixels"
    if turned:
        body, x = ["channels_last(&layer_1, pixels, b);"], "b"
    for n, layer in enumerate(layers, 1):
        result = "(uint8_t *)scores" if n == len(layers) else "ba"[n % 2]
        body += [f"{layer.call}(&layer_{n}, {x}, {result});"]
        body += [f"invert(&layer_{n}, {result});"] if "invert" in layer.parts else []
        x = result
    calls = "".join(f"    {line}\n" for line in body)
    return (
        "\n\nint network_classify(const uint8_t *pixels, int64_t *scores) {\n"
        f"    int best = 0;\n{calls}"
        "    for (int i = 1; i < NETWORK_CLASSES; i++)\n"
        "        if (scores[i] > scores[best]) best = i;\n"
        "    return best;\n}\n"
    )


def _layer(n: int, layer: Written) -> str:
    """Returns the constants of layer number n, and its struct."""
    names = {field: f"{field.split('.')[-1]}_{n}" for field in layer.arrays}
    arrays = "".join(_array(names[field], numbers) for field, numbers in layer.arrays.items())
    lines = (f"    .{field} = {value}" for field, value in (layer.fields | names).items())
    return f"{arrays}\nstatic const struct layer layer_{n} = {{\n" + ",\n".join(lines) + "};\n"


def _array(name: str, numbers: np.ndarray) -> str:
    kind, form, a_line = {
        "uint32": ("uint32_t", "0x{:08X}u", 8),
        "int32": ("int32_t", "{}", 12),
        "uint8": ("uint8_t", "{}", 24),
        "int64": ("int64_t", "INT64_C({})", 4),
    }[numbers.dtype.name]
    items = [form.format(number) for number in numbers.ravel().tolist()]
    lines = (", ".join(items[i : i + a_line]) for i in range(0, len(items), a_line))
    return f"\nstatic const {kind} {name}[{len(items)}] = {{\n    " + ",\n    ".join(lines) + "};\n"


def _position(layer: Written) -> int:
    """Returns the bytes of a position of the pictures that a convolution reads."""
    channels = layer.fields["channels"]
    return channels if layer.fields["inputs"] == "&codes" else -(-channels // 8)


def _flash(layer: Written) -> int:
    return _STRUCT + sum(numbers.nbytes for numbers in layer.arrays.values())


def _part(file: str, words: dict[str, Any]) -> str:
    """Returns the text of a file of the folder `text`, with each @word@ replaced."""
    return re.sub(r"@(\w+)@", lambda mark: str(words[mark[1]]), (_FOLDER / file).read_text(encoding="utf-8"))


def _quoted(name: str) -> str:
    """Returns a C string literal. All bytes outside of _PLAIN are octal escapes."""
    return '"' + "".join(chr(c) if c in _PLAIN else f"\\{c:03o}" for c in name.encode()) + '"'
