"""Writes the C code that turns a camera's frame into the pixels of a network, and checks this code with test vectors."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from bnn_exp.deploy.exports.c.compiler import build, output
from bnn_exp.deploy.exports.frames import SIDE, columns_first
from bnn_exp.records.formatting import in_a_line

if TYPE_CHECKING:
    from bnn_exp.deploy.exports.preprocessing import Preprocessing

SOURCE = Path(__file__).parent / "text/network_prepare.c"
TEST = Path(__file__).parent / "text/network_test.c"

_FACTS = """
/* The pixels that the network takes: uint8, 0 to 255 as they are, one plane for each channel, row by row from the top.
{comment}
 */
#define NETWORK_CHANNELS {channels} /* {colours} */
#define NETWORK_HEIGHT {height}
#define NETWORK_WIDTH {width}
{hashes}"""

_PREPARE = """
/* How network_prepare fits a frame to the size of the network. */
#define NETWORK_SQUASH 1 /* changes the proportions */
#define NETWORK_CROP 2 /* cuts the longer side */
#define NETWORK_PAD 3 /* adds the background */
#define NETWORK_FIT NETWORK_{fit}
#define NETWORK_BACKGROUND {{{background}}} /* a value for each channel */
#define NETWORK_COLUMNS_FIRST {columns_first} /* 2: in frames that lose more than twice as many lines as columns (Pillow 13) */
#ifndef NETWORK_FRAME_MOST
#define NETWORK_FRAME_MOST {most} /* the longest side of a frame, in pixels; the option -D of the compiler changes it */
#endif
/* The static memory of network_prepare in bytes, at most: {bytes} for frames of up to {most} pixels a side. */
#define NETWORK_PREPARE_BYTES ({fixed} + {per_side} * NETWORK_FRAME_MOST)

#define NETWORK_WRONG_SIZE 1
#define NETWORK_WRONG_CHANNELS 2
#define NETWORK_NEEDS_FRAME 3

#ifdef __cplusplus
extern "C" {{
#endif

/* Turns a frame into the pixels of the network. network_prepare.c has the definition.
 *
 * frame: height x width x channels bytes, row by row from the top; 1 channel is grey, 3 are red, green and blue.
 * pixels: NETWORK_PIXELS bytes. Returns 0, or NETWORK_WRONG_SIZE or NETWORK_WRONG_CHANNELS. */
int network_prepare(const uint8_t *frame, int width, int height, int channels, uint8_t *pixels);

/* The same in parts, for a camera whose frame does not fit in memory: begin, then each line from the top, then end.
 *
 * network_prepare_begin returns NETWORK_NEEDS_FRAME if the columns come first (NETWORK_COLUMNS_FIRST). */
int network_prepare_begin(int width, int height, int channels);
void network_prepare_line(const uint8_t *line);
int network_prepare_end(uint8_t *pixels);

#ifdef __cplusplus
}}
#endif
"""


def header(facts: "Preprocessing") -> str:
    """Returns the text for network.h: comments, defines and, if the facts are complete, the declaration of the function."""
    channels, height, width = facts.shape
    hashes = "".join(f'#define NETWORK_{name.upper()} "{digest}"\n' for name, digest in facts.network.items())
    colours = {1: "grey", 3: "red, green, blue"}.get(channels, "in the order of the training data")
    comment = "\n".join(f" * {line}".rstrip() for line in _comment(facts))
    text = _FACTS.format(comment=comment, channels=channels, height=height, width=width, colours=colours, hashes=hashes)
    if facts.pixels is None or not facts.complete:
        return text
    fixed, per_side = memory(facts.shape)
    return text + _PREPARE.format(
        fit=facts.pixels.fit.upper(),
        background=", ".join(map(str, _background(facts))),
        columns_first=columns_first(),
        most=frame_most(facts.shape),
        bytes=f"{facts.c_memory():,}",
        fixed=fixed,
        per_side=per_side,
    )


def with_facts(header_file: str, facts: "Preprocessing") -> str:
    """Returns the text of network.h with the text of `header` before the last #endif, which ends its include guard."""
    before, end, after = header_file.rpartition("#endif")
    return before + header(facts) + "\n" + end + after if end else header_file + header(facts)


def _comment(facts: "Preprocessing") -> Iterable[str]:
    made = ", ".join(f"{name} {version}" for name, version in facts.versions.items())
    yield f"Made by {made}{f'; the dataset of the training: {_plain(facts.dataset)}' if facts.dataset else ''}."
    if facts.pixels is None:
        yield "Unknown: how images become pixels. An export by task=export from=RUN says it."
        return
    pixels = facts.pixels
    yield f"Fit: {pixels.fit}. Filter: bicubic (a = -0.5), antialiased, 8 bits after each direction, as Pillow does."
    yield f"Background, under transparent pixels and around padded images: {pixels.background}."
    if facts.shape[0] == 1:
        yield "Grey: (19595 red + 38470 green + 7471 blue + 32768) >> 16, before the frame is fitted."
    if pixels.range:
        yield "Values of more than 8 bits: {:g} becomes 0, {:g} becomes 255, values between are rounded.".format(*pixels.range)
    yield "Orientation: upright. A camera that stands otherwise has to be turned."
    if pixels.reduced:
        yield "Large JPEG files were decoded at a fraction of their size (Pillow's draft). A frame is no JPEG file."


def _plain(text: str) -> str:
    """Returns a text that can stand in a C comment."""
    return in_a_line(text).encode("ascii", "backslashreplace").decode().replace("*/", "* /").replace("/*", "/ *")


def _background(facts: "Preprocessing") -> list[int]:
    """Returns the background as a value for each channel."""
    colour = Image.new("RGB", (1, 1), facts.pixels.ground if facts.pixels else None)
    return np.asarray(colour.convert("L" if facts.shape[0] == 1 else "RGB")).ravel().tolist()


def frame_most(shape: tuple[int, int, int]) -> int:
    """Returns the default value of NETWORK_FRAME_MOST: the longest side of a frame, in pixels."""
    return max(SIDE, *shape[1:])


def memory(shape: tuple[int, int, int]) -> tuple[int, int]:
    """Returns the static memory of `network_prepare`: fixed bytes, and bytes for each pixel of NETWORK_FRAME_MOST.

    The memory holds two directions, each of 20 bytes, 12 bytes for each pixel, and weights; the sums, two lines, and 128 bytes
    more for single variables and for alignment.
    """
    channels, height, width = shape
    longer = max(height, width)
    sums = 4 * channels * height * width
    return 2 * (20 + 12 * longer + 4 * 5 * longer) + sums + channels * longer + 128, 2 * 4 * 4 + channels


def checked(folder: Path, facts: "Preprocessing") -> dict[str, str]:
    """Compiles the preparation beside network.c and network.h in `folder`, and compares it on the test vectors.

    Returns:
        The texts of network_prepare.c and network_test.c by name. Empty if the facts are not complete, or if network.h, made
            by a class of a plugin, declares no `network_classify`.

    Raises:
        UserError: there is no C compiler, or a pixel or a class differs.
    """
    source = facts.c_source()
    if not source or "network_classify" not in (folder / "network.h").read_text():
        return {}
    (folder / "network_prepare.c").write_text(source)
    build(folder, "-c", "network.c", "network_prepare.c")
    scores = [[0] * len(facts.classes) for _ in facts.vectors]
    for option in ("-DPRINT_SCORES", "-UPRINT_SCORES"):
        (folder / "network_test.c").write_text(_test(facts, scores))
        build(folder, option, "network_test.c", "network.o", "network_prepare.o", "-o", "network_test")
        printed = output(folder / "network_test")
        scores = [list(map(int, line.split())) for line in printed.splitlines()] if option == "-DPRINT_SCORES" else scores
    return {name: (folder / name).read_text() for name in ("network_prepare.c", "network_test.c")}


def _test(facts: "Preprocessing", scores: list[list[int]]) -> str:
    """Returns network_test.c. `scores` are the integer scores of the test vectors, as the C code computes them."""
    arrays, rows = [], []
    for n, (vector, row) in enumerate(zip(facts.vectors, scores, strict=True)):
        height, width, channels = vector.frame.shape
        arrays += [_array("uint8_t", f"frame_{n}", vector.frame), _array("uint8_t", f"pixels_{n}", vector.pixels)]
        arrays += [_array("int64_t", f"scores_{n}", row)]
        rows += [f"    {{frame_{n}, {width}, {height}, {channels}, pixels_{n}, {vector.answer}, scores_{n}}},"]
    table = "static const vector vectors[] = {\n" + "\n".join(rows) + "\n};\n"
    return TEST.read_text().replace("/* The test vectors. */\n", "\n".join([*arrays, table]))


def _array(kind: str, name: str, numbers: Any) -> str:
    form = "INT64_C({})" if kind == "int64_t" else "{}"
    values = [form.format(number) for number in np.ravel(numbers).tolist()]
    lines = [", ".join(values[i : i + 24]) for i in range(0, len(values), 24)]
    return f"static const {kind} {name}[{len(values)}] = {{\n" + ",\n".join(lines) + "};\n"
