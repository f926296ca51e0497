"""Writes a packed MLP as C99 source and header. The C code computes in integers, from pixels to scores."""

import string
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bnn_exp.bits import from_tiles, pack
from bnn_exp.deploy.mlp import DeployedMLP, LastLayer
from bnn_exp.errors import UserError
from bnn_exp.records.formatting import in_a_line

_PLAIN = (string.ascii_letters + string.digits + " _-.").encode()  # characters that need no escape in a C string

_HEADER = """\
/* A binary network; see network.c. Made by bnn_exp. */
#ifndef NETWORK_H
#define NETWORK_H

#include <stdint.h>

#define NETWORK_PIXELS {pixels} /* uint8: {shape} */
#define NETWORK_CLASSES {classes}

#ifdef __cplusplus
extern "C" {{
#endif

extern const char *const network_classes[NETWORK_CLASSES];

/* Returns the class of an image: the first one with the highest score. */
int network_classify(const uint8_t *pixels, int64_t *scores);

#ifdef __cplusplus
}}
#endif
#endif
"""

_TOP = """\
/* A binary network in C99: integers from the pixels to the scores, no dependencies, no allocation. Made by bnn_exp.
 *
 *     cc -std=c99 -O2 -DNETWORK_MAIN network.c -o network && ./network pixels.raw
 *
 * prints the class of each image in a file of raw pixels, NETWORK_PIXELS bytes an image (channels, rows, columns).
 *
 * A neuron sums x * w over its inputs x, bits or pixels; its weight w is 1 for a bit 1 and ZERO for a bit 0.
 */
#include "network.h"

#define ZERO ({zero})
#define SUM(with_ones, all) ((1 - ZERO) * (with_ones) + ZERO * (all))
#define WORDS {words} /* of 32 bits; a plane has a bit for each pixel */

const char *const network_classes[NETWORK_CLASSES] = {{{names}}};
"""

_BITS = """
static int32_t ones(uint32_t x) {
    x = x - ((x >> 1) & 0x55555555u);
    x = (x & 0x33333333u) + ((x >> 2) & 0x33333333u);
    return (int32_t)((((x + (x >> 4)) & 0x0F0F0F0Fu) * 0x01010101u & 0xFFFFFFFFu) >> 24);
}

/* Returns the number of bits that are 1 in both x and w. */
static int32_t common(const uint32_t *x, const uint32_t *w, int32_t words) {
    int32_t total = 0;
    for (int32_t i = 0; i < words; i++) total += ones(x[i] & w[i]);
    return total;
}

static void set_bit(uint32_t *bits, int32_t i, uint32_t bit) {
    bits[i / 32] = (i % 32 ? bits[i / 32] : 0) | bit << (i % 32);
}

/* Writes bit p of each pixel to planes[p], for p = 0 ... 7. */
static void take_planes(const uint8_t *pixels, uint32_t planes[8][WORDS]) {
    for (int p = 0; p < 8; p++)
        for (int32_t i = 0; i < NETWORK_PIXELS; i++) set_bit(planes[p], i, (uint32_t)pixels[i] >> p & 1u);
}

/* Returns the sum of the pixels whose bit in w is 1. */
static int32_t pixel_common(uint32_t planes[8][WORDS], const uint32_t *w) {
    int32_t total = 0;
    for (int p = 0; p < 8; p++) total += common(planes[p], w, WORDS) * (1 << p);
    return total;
}

static int32_t pixel_total(const uint8_t *pixels) {
    int32_t total = 0;
    for (int32_t i = 0; i < NETWORK_PIXELS; i++) total += pixels[i];
    return total;
}
"""

_STEP = """
/* Returns 1 if the sum of neuron i reaches its threshold. An inverted threshold gives 1 below it. */
static uint32_t step(int32_t i, int32_t sum, const int32_t *thresholds, const uint32_t *inverted) {
    return (uint32_t)(sum >= thresholds[i]) ^ (inverted[i / 32] >> (i % 32) & 1u);
}
"""

_MAIN = """
#ifdef NETWORK_MAIN
#include <stdio.h>

int main(int count, char **arguments) {
    static uint8_t pixels[NETWORK_PIXELS];
    int64_t scores[NETWORK_CLASSES];
    size_t got;
    FILE *file = count == 2 ? fopen(arguments[1], "rb") : NULL;
    if (!file) {
        fprintf(stderr, "usage: network FILE (raw images of %ld bytes each)\\n", (long)NETWORK_PIXELS);
        return 2;
    }
    while ((got = fread(pixels, 1, NETWORK_PIXELS, file)) == NETWORK_PIXELS) {
        const int best = network_classify(pixels, scores);
        printf("%d %s\\n", best, network_classes[best]);
    }
    fclose(file);
    if (got) fprintf(stderr, "the last %ld bytes are less than an image\\n", (long)got);
    return got ? 1 : 0;
}
#endif
"""


def write_c(network: DeployedMLP, shape: tuple[int, ...], classes: tuple[str, ...]) -> tuple[str, str, int, int]:
    """Returns the text of network.c, the text of network.h, and the sizes of constants (flash) and variables (RAM) in bytes.

    Args:
        shape: (channels, height, width) of the images.
        classes: the names of the classes.

    Raises:
        UserError: a scale or a shift of the last BatchNorm is not finite.
    """
    layers, classes = list(network.layers), tuple(map(in_a_line, classes))
    hidden = layers[:-1]
    widest = max((_words(layer.outputs) for layer in hidden), default=0)
    names = ", ".join(_quoted(name) for name in classes)
    text = [_TOP.format(zero=layers[0].zero, names=names, words=_words(layers[0].inputs)), _BITS]
    text += [_STEP] if hidden or network.binarize_logits else []
    body = ["int network_classify(const uint8_t *pixels, int64_t *scores) {", "    uint32_t planes[8][WORDS];"]
    body += [f"    uint32_t {name}[{widest}] = {{0}};" for name, _ in zip("ab", hidden, strict=False)]
    body += ["    const uint32_t *w;", "    int32_t all;", "    int best = 0;", "    take_planes(pixels, planes);"]
    flash = sum(len(name.encode()) + 1 for name in classes)
    for n, layer in enumerate(layers, 1):
        arrays, result = _layer(n, layer, network.binarize_logits)
        flash += sum(array.nbytes for _, _, array in arrays)
        text += [_array(*array) for array in arrays]
        source, target, words = "ab"[n % 2], "ba"[n % 2], _words(layer.inputs)
        total = "pixel_total(pixels)" if n == 1 else f"common({source}, {source}, {words})"
        with_ones = "pixel_common(planes, w)" if n == 1 else f"common({source}, w, {words})"
        result = result.replace("@", f"SUM({with_ones}, all)")
        body += [f"    all = {total};", f"    w = weights_{n};"]
        body += [f"    for (int32_t i = 0; i < {layer.outputs}; i++, w += {words})"]
        body += [f"        set_bit({target}, i, {result});" if layer in hidden else f"        scores[i] = {result};"]
    body += ["    for (int i = 1; i < NETWORK_CLASSES; i++)", "        if (scores[i] > scores[best]) best = i;"]
    body += ["    return best;", "}", ""]
    ram = 4 * (8 * _words(layers[0].inputs) + min(len(hidden), 2) * widest) + 8 * len(classes)
    header = _HEADER.format(pixels=layers[0].inputs, shape=" x ".join(map(str, shape)), classes=len(classes))
    return "".join(text) + "\n" + "\n".join(body) + _MAIN, header, flash, ram


def _layer(n: int, layer: Any, binarize_logits: bool) -> tuple[list, str]:
    """Returns the constants of layer number n, each as (C type, name, numbers), and a C expression for the output of neuron i.

    The expression has @ in the place of the neuron's sum.
    """
    constants: list[tuple[str, str, Any]] = [("uint32_t", f"weights_{n}", _to_words(from_tiles(layer.tiles, layer.outputs)))]
    if isinstance(layer, LastLayer) and not binarize_logits:
        scale, shift = integer_scores(layer)
        constants += [("int64_t", f"scale_{n}", scale), ("int64_t", f"shift_{n}", shift)]
        return constants, f"scale_{n}[i] * @ + shift_{n}[i]"
    if isinstance(layer, LastLayer):
        thresholds, rows = layer.folded(layer.norm)
        inverted = pack(rows)
    else:
        thresholds, inverted = layer.thresholds, layer.inverted[None]
    constants += [
        ("int32_t", f"thresholds_{n}", thresholds[: layer.outputs].numpy().astype(np.int32)),
        ("uint32_t", f"inverted_{n}", _to_words(inverted)[:, : _words(layer.outputs)]),
    ]
    return constants, f"step(i, @, thresholds_{n}, inverted_{n})"


def integer_scores(layer: LastLayer) -> tuple[np.ndarray, np.ndarray]:
    """Returns integers a and b, int64 [outputs]: for the sum u of an output, a·u + b ≈ 2ᵏ · logit, with one k for all outputs.

    k is as large as 62 bits allow, so a·u + b is nearer to the exact number than float32.

    Raises:
        UserError: a scale or a shift of the last BatchNorm is not finite.
    """
    norm = layer.norm
    if not (norm.weight.isfinite().all() and norm.bias.isfinite().all()):
        raise UserError("export.format=c: the last BatchNorm has scales or shifts that are not finite numbers")
    scales, shifts = ([Fraction(x) for x in tensor.tolist()] for tensor in (norm.weight, norm.bias))
    a = [s * layer.scale / Fraction(layer.divisor) for s in scales]
    b = [s * o / Fraction(layer.divisor) + t for s, o, t in zip(scales, layer.offset.tolist(), shifts, strict=True)]
    reach = torch.maximum(layer.low.abs(), layer.high.abs()).tolist()
    peak = max(abs(x) * u + abs(y) + 1 for x, y, u in zip(a, b, reach, strict=True))
    unit = Fraction(2) ** (61 - (peak.numerator // peak.denominator).bit_length())
    return np.array([round(x * unit) for x in a], np.int64), np.array([round(x * unit) for x in b], np.int64)


def _words(bits: int) -> int:
    return -(-bits // 32)


def _to_words(packed: Tensor) -> np.ndarray:
    """Returns packed rows, uint8 [rows, bytes], as uint32 [rows, ⌈bytes/4⌉]: bit j is bit j mod 32 of word j div 32."""
    return np.ascontiguousarray(torch.nn.functional.pad(packed, (0, -packed.shape[1] % 4)).numpy()).view("<u4")


def _array(kind: str, name: str, numbers: np.ndarray) -> str:
    form = {"uint32_t": "0x{:08X}u", "int32_t": "{}", "int64_t": "INT64_C({})"}[kind]
    items = [form.format(number) for number in numbers.ravel().tolist()]
    lines = (", ".join(items[i : i + 8]) for i in range(0, len(items), 8))
    return f"\nstatic const {kind} {name}[{len(items)}] = {{\n    " + ",\n    ".join(lines) + "};\n"


def _quoted(name: str) -> str:
    """Returns a C string literal. All bytes outside of _PLAIN are octal escapes."""
    return '"' + "".join(chr(c) if c in _PLAIN else f"\\{c:03o}" for c in name.encode()) + '"'
