"""`curves.png`: a run at a glance."""

from pathlib import Path

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
    for name, color in (("train", "#9aa7b8"), ("test", "#d1495b")):
        accuracy.plot(x, [m[f"{name}_accuracy"] for m in epochs], label=name, color=color, marker=marker)
    accuracy.set(title="accuracy, %", xlabel="epoch")
    accuracy.legend()
    for name in epochs[0]["flips"]:
        flips.plot(x, [m["flips"][name] for m in epochs], label=name, marker=marker)
    flips.set(title="flips per epoch", xlabel="epoch", yscale="symlog")
    flips.legend(fontsize="small")
    for axes in (loss, accuracy, flips):
        axes.grid(alpha=0.25)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.suptitle(title)
    with replacing(file) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)
