"""scripts/inference.py prints a row for each batch, and the time of each way over that of `predict`."""

import sys

import pytest
from helpers import ROOT

sys.path.append(str(ROOT / "scripts"))
import inference as script


@pytest.mark.slow
def test_a_row_for_each_batch_with_the_ratio_of_each_way():
    head, _, *rows = script.table("zoo/mnist_vgg", [1, 2], rounds=1).splitlines()
    ways = [cell.strip() for cell in head.split("|")[2:-1]]
    assert ways[:2] == ["predict", "torch fp32"] and "torch int8" in ways
    assert [row.split("|")[1].strip() for row in rows] == ["batch 1", "batch 2"]
    for row in rows:
        found = {way: cell.split() for way, cell in zip(ways, row.split("|")[2:-1], strict=True)}
        ours = float(found["predict"][0])
        assert all(float(cell[2][:-1]) == pytest.approx(float(cell[0]) / ours, rel=0.1, abs=0.1) for cell in found.values())
