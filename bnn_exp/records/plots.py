"""Draws images of a run: `curves.png` (metrics), `samples.png` (train images), `kernels.png` (weights of the first layer)."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from bnn_exp.nn import binary_layers
from bnn_exp.records.files import replacing
from bnn_exp.records.formatting import drawn, in_a_line
from bnn_exp.records.matplotlib_figure import new_figure

BIT_0, BIT_1 = (38, 84, 124), (245, 200, 92)  # colours that the colour-blind can tell apart, on white and on black
GREY = (118, 118, 118)  # a colour of equal contrast on a white and on a dark page
TILE = 96  # largest side of a drawn image in pixels; small images grow by a whole factor, so they stay sharp
IN_A_ROW = 8


def curves(file: Path, epochs: list[dict], title: str) -> None:
    """Draws loss, accuracies and flips per layer over `epochs`, the lines of metrics.jsonl, into the PNG `file`."""
    figure = new_figure(13, 4, dpi=100)
    from matplotlib.ticker import MaxNLocator

    x = [m["epoch"] for m in epochs]
    marker = "o" if len(x) < 3 else None
    loss, accuracy, flips = figure.subplots(1, 3)
    # Margins and positions of labels are fixed, because computing them takes longer than drawing.
    figure.subplots_adjust(left=0.045, right=0.99, bottom=0.12, top=0.84, wspace=0.2)
    loss.plot(x, [m["train_loss"] for m in epochs], color="#0072b2", marker=marker)
    for name, color in (("train", "#8a94a3"), ("validation", "#e69f00"), ("test", "#0072b2")):
        if f"{name}_accuracy" in epochs[0]:
            accuracy.plot(x, [m[f"{name}_accuracy"] for m in epochs], label=name, color=color, marker=marker)
    accuracy.legend(loc="lower right")
    for name in epochs[0]["flips"]:
        flips.plot(x, [m["flips"][name] for m in epochs], label=name, marker=marker)
    flips.set_yscale("symlog")
    flips.yaxis.set_major_formatter("{x:,g}")
    if epochs[0]["flips"]:
        flips.legend(fontsize="small", loc="lower left")
    for axes, name in ((loss, "training loss"), (accuracy, "accuracy, %"), (flips, "flips per epoch")):
        axes.set_title(name, y=1.0)
        axes.set_xlabel("epoch")
        axes.xaxis.set_label_coords(0.5, -0.1)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
    figure.suptitle(drawn(title))
    with replacing(file) as temporary:
        figure.savefig(temporary, format="png")


def samples(file: Path, images: np.ndarray, names: list[str]) -> None:
    """Draws images, eight per row, with their names below, into the PNG `file`, which has a transparent background.

    Args:
        images: uint8 [count, channels, height, width]. Three channels are red, green and blue; the mean of other numbers of
            channels is drawn.
        names: one name per image.
    """
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.truetype(str(_font_file()), 11)
    height, width = images.shape[2:]
    longer = max(height, width)
    scale = TILE // longer if longer <= TILE else TILE / longer
    width, height = max(round(width * scale), 1), max(round(height * scale), 1)
    across, down = max(width, 24) + 8, height + 20
    sheet = Image.new("RGBA", (across * min(len(images), IN_A_ROW), down * -(-len(images) // IN_A_ROW)), (*GREY, 0))
    draw = ImageDraw.Draw(sheet)
    for i, (image, name) in enumerate(zip(images, names, strict=True)):
        left, top = i % IN_A_ROW * across, i // IN_A_ROW * down
        grey = image.mean(0).astype(np.uint8) if len(image) not in (1, 3) else image[0]
        picture = Image.fromarray(image.transpose(1, 2, 0) if len(image) == 3 else grey)
        resampling = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX
        sheet.paste(picture.resize((width, height), resampling), (left + (across - width) // 2, top))
        draw.text((left + across / 2, top + height + 2), _short(name, across, font), (*GREY, 255), font, "ma")
    with replacing(file) as temporary:
        sheet.save(temporary, format="png")


def _font_file() -> Path:
    """Returns the file of the font DejaVu Sans, which matplotlib ships. The import of matplotlib (0.5 s)
    is avoided if possible."""
    spec = importlib.util.find_spec("matplotlib")
    file = Path(spec.origin).with_name("mpl-data") / "fonts/ttf/DejaVuSans.ttf"
    if file.is_file():
        return file
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"


def _short(name: str, width: int, font: Any) -> str:
    """Returns `name` in one line, cut with an ellipsis if it is wider than `width` pixels."""
    name = in_a_line(name)
    if font.getlength(name) <= width:
        return name
    return next((cut for end in range(len(name), 0, -1) if font.getlength(cut := name[:end] + "…") <= width), "…")


def kernels(file: Path, network: nn.Module, image_shape: tuple[int, int, int]) -> None:
    """Draws up to 64 units of the network's first layer into a PNG: bit 1 is yellow, bit 0 is
    blue, and real weights have colours between.

    The weights of a dense layer are drawn in the shape of the images, (channels, height, width). Three channels are drawn as
    red, green and blue; the mean of other numbers of channels is drawn.
    """
    _, layer = next(binary_layers(network))
    weight = layer.bits().get("weight", layer.weight).detach().float().cpu()[:64]
    units = weight if weight.dim() == 4 else weight.reshape(-1, *image_shape)
    pixels = (units if units.shape[1] in (1, 3) else units.mean(1, keepdim=True)).numpy()
    low, high = (0.0, 1.0) if layer.bits() else (float(pixels.min()), float(pixels.max()))
    shades = (pixels - low) / max(high - low, 1e-12)
    if shades.shape[1] == 1:
        ends = np.array((BIT_0, BIT_1), np.float32).reshape(2, 1, 3, 1, 1)
        shades = (ends[0] + shades * (ends[1] - ends[0])) / 255
    samples(file, (shades * 255).round().astype(np.uint8), [str(i) for i in range(len(shades))])
