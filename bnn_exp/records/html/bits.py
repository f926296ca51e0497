"""Charts of the binary weights of a run: heat maps of each tensor's flips and ones over the epochs."""

from typing import Any

import numpy as np

from bnn_exp.records.html import data_uris
from bnn_exp.records.html.charts import Chart, Series, heat, lines, number

# Metrics without a general chart: the first two have special charts, which the ratios would repeat.
DRAWN = {"flips", "ones", "flip_ratio", "ones_ratio"}
EMPTY_FLIPS, EMPTY_ONES = "Logarithmic colours; no colour means no flip.", "No colour means that half of the bits are 1."


def bits_charts(epochs: list[dict[str, Any]], weights: dict[str, int]) -> list[Chart]:
    """Returns charts over the epochs of flips, of ones (bits that are 1), and of all other metrics per tensor.

    Args:
        epochs: lines of metrics.jsonl.
        weights: the number of binary weights of each tensor, if known.
    """
    tensors = list(epochs[-1]["flips"])
    if not tensors:
        return []
    x = [m["epoch"] for m in epochs]
    sizes = np.array([weights.get(name, 0) for name in tensors], np.float64)[:, None]
    flips, ones = (np.array([[m[key].get(name, 0) for m in epochs] for name in tensors]) for key in ("flips", "ones"))
    total = Series("flips", flips.sum(0).tolist(), "c1")
    charts = [lines("Flips of all bits", x, [total], note="Per epoch, all layers together.")]
    if flips.any():
        charts.append(_flips(tensors, x, flips, sizes))
    if sizes.all():
        charts.append(_ones(tensors, x, ones, sizes))
    others = [key for key, value in epochs[-1].items() if isinstance(value, dict) and value and key not in DRAWN]
    return charts + [_figures(key, x, epochs) for key in others]


def _flips(tensors: list[str], x: list[int], flips: np.ndarray, sizes: np.ndarray) -> Chart:
    rates = flips / sizes if sizes.all() else flips.astype(np.float64)
    high = rates.max()
    low = max(rates[rates > 0].min(), high / 1000)
    parts = np.log(np.maximum(rates, low) / low) / max(np.log(high / low), 1e-9)
    picture = data_uris.shades(np.where(rates > 0, parts, np.nan))
    ramp = (data_uris.RAMP, f"≤ {low:.2g}", f"{high:.2g} per {'weight and ' * bool(sizes.all())}epoch")
    return heat("Flips per layer", tensors, x, picture, _values(flips, sizes, "flips"), EMPTY_FLIPS, ramp, _labels(tensors))


def _ones(tensors: list[str], x: list[int], ones: np.ndarray, sizes: np.ndarray) -> Chart:
    shares = ones / sizes
    far = max(np.abs(shares - 0.5).max(), 0.005)
    picture = data_uris.leanings((shares - 0.5) / far)
    ramp = (data_uris.LEANING, f"{50 - 100 * far:.3g}%", f"{50 + 100 * far:.3g}% of the bits are 1")
    return heat("Ones per layer", tensors, x, picture, _values(ones, sizes, "ones"), EMPTY_ONES, ramp, _labels(tensors))


def _figures(key: str, x: list[int], epochs: list[dict[str, Any]]) -> Chart:
    """Returns a heat map of the metric `key`, which has a number per tensor or layer, over the epochs `x`. Its colours span the
    least to the greatest number."""
    names = list(epochs[-1][key])
    cells = np.array([[m.get(key, {}).get(name) for m in epochs] for name in names], np.float64)  # np.array makes NaN of None
    known = cells[np.isfinite(cells)] if np.isfinite(cells).any() else np.zeros(1)
    low, high = float(known.min()), float(known.max())
    values = _values(cells, np.zeros(len(names)), "")
    ramp = (data_uris.RAMP, f"{low:.3g}", f"{high:.3g}")
    picture = data_uris.shades((cells - low) / ((high - low) or 1))
    return heat(key.replace("_", " ").capitalize(), names, x, picture, values, ramp=ramp, labels=_labels(names))


def _labels(tensors: list[str]) -> list[str]:
    return [name.removesuffix(".weight") for name in tensors]


def _values(cells: np.ndarray, sizes: np.ndarray, unit: str) -> dict[str, Any]:
    numbers = [[number(value) for value in row] for row in cells.tolist()]
    return {"kind": "cells", "column": "epoch", "unit": unit, "of": sizes.ravel().astype(int).tolist(), "cells": numbers}
