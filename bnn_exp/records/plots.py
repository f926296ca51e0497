"""`curves.png`, a run at a glance, `samples.png`, what it is trained on, and `kernels.png`, what its first layer looks for."""

from pathlib import Path

import numpy as np

from bnn_exp.nn import binary_layers
from bnn_exp.records.files import replacing


def curves(file: Path, epochs: list[dict], title: str) -> None:
    """Draw loss, accuracies and flips per layer over the epochs of `metrics.jsonl` into a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import MaxNLocator

    x = [m["epoch"] for m in epochs]
    marker = "o" if len(x) < 3 else None
    figure, (loss, accuracy, flips) = plt.subplots(1, 3, figsize=(15, 4.2), layout="constrained")
    loss.plot(x, [m["train_loss"] for m in epochs], color="#5b7db1", marker=marker)
    loss.set(title="training loss", xlabel="epoch")
    for name, color in (("train", "#9aa7b8"), ("validation", "#edae49"), ("test", "#d1495b")):
        if f"{name}_accuracy" in epochs[0]:
            accuracy.plot(x, [m[f"{name}_accuracy"] for m in epochs], label=name, color=color, marker=marker)
    accuracy.set(title="accuracy, %", xlabel="epoch")
    accuracy.legend()
    for name in epochs[0]["flips"]:
        flips.plot(x, [m["flips"][name] for m in epochs], label=name, marker=marker)
    flips.set(title="flips per epoch", xlabel="epoch", yscale="symlog")
    if epochs[0]["flips"]:
        flips.legend(fontsize="small")
    for axes in (loss, accuracy, flips):
        axes.grid(alpha=0.25)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.suptitle(title)
    with replacing(file) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)


def samples(file: Path, images: np.ndarray, names: list[str]) -> None:
    """Draw pictures (uint8 [count, channels, height, width], of 1 or 3 channels), eight in a row, over their names."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    count, _, height, width = images.shape
    rows, gap = -(-count // 8), -(-height // 4)  # the gap holds the name
    sheet = np.full((rows * (height + gap), 8 * (width + gap), 3), 255, np.uint8)  # one image: 64 axes take seconds
    figure, axes = plt.subplots(figsize=(10, 10 * sheet.shape[0] / sheet.shape[1]), layout="constrained")
    for i, (image, name) in enumerate(zip(images, names, strict=True)):
        top, left = i // 8 * (height + gap), i % 8 * (width + gap)
        sheet[top : top + height, left : left + width] = image.transpose(1, 2, 0)
        label = name if len(name) <= 14 else f"{name[:13]}…"
        axes.text(left + width / 2, top + height, label, ha="center", va="top", size=8, parse_math=False)
    axes.imshow(sheet, interpolation="nearest")
    axes.axis("off")
    with replacing(file) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)


def kernels(file: Path, network, image_shape: tuple[int, int, int]) -> None:
    """Draw up to 64 units of the network's first layer, bit 1 white; a layer without bits by its size.

    Those of a dense layer have the shape of the images, (channels, height, width). Channels that are no colours are averaged.
    """
    _, layer = next(binary_layers(network))
    weight = layer.bits().get("weight", layer.weight).detach().float().cpu()[:64]
    units = weight if weight.dim() == 4 else weight.reshape(-1, *image_shape)
    units = units if units.shape[1] in (1, 3) else units.mean(1, keepdim=True)
    low, high = (0.0, 1.0) if layer.bits() else (float(units.min()), float(units.max()))
    shades = ((units - low) / max(high - low, 1e-12) * 255).round().byte()
    samples(file, shades.numpy(), [str(i) for i in range(len(shades))])
