"""The page of a run: its content, that it loads nothing else, and that data can't become markup."""

import json
import math
import re
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from helpers import EVIL, SMALL, Page, epochs, record_of
from PIL import Image

from bnn_exp.records import html, plots
from bnn_exp.records.html.axes import Axis, spread
from bnn_exp.records.runs import Record, read


def page_of(record: Record) -> Page:
    return Page(html.run_page(record))


def test_the_page_of_a_run_has_its_numbers_and_its_pictures_and_needs_nothing_else(bnn_train):
    run = bnn_train(*SMALL, "dataset.validation=0.2").runs[0]
    page, lines = page_of(read(run)), epochs(run)
    assert (run / "report.html").read_text() == page.text
    assert len(page.all("h1")) == 1 and page.all("h1")[0][2].startswith("mlp on digits")
    charts = page.charts()
    for name in ("train", "validation", "test"):
        drawn = next(values for series, _, values in charts["Accuracy, %"]["series"] if series == name)
        assert drawn == pytest.approx([line[f"{name}_accuracy"] for line in lines], rel=1e-5)
    for chart, key in (("Flips per layer", "flips"), ("Ones per layer", "ones")):
        assert charts[chart]["cells"] == [[line[key][name] for line in lines] for name in lines[0][key]]
        assert charts[chart]["of"] == [64 * 32, 32 * 32, 32 * 32, 32 * 10]
    pictures = page.all("img")
    assert len(pictures) == 2 and all(e[1]["src"].startswith("data:image/") and e[1]["alt"] for e in pictures)
    assert all(e[1].get("aria-label") for e in page.all("svg", role="img"))
    assert page.all("link") == [] and all("src" not in e[1] for e in page.all("script"))
    assert "default-src 'none'" in page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0][1]["content"]
    assert all((run / e[1]["href"]).is_file() for e in page.all("a")) and len(page.all("a")) == 10


def test_a_long_run_stays_a_small_page():
    assert len(html.run_page(record_of(200, 10, [f"class {i}" for i in range(10)])).encode()) < 300_000
    assert len(html.run_page(record_of(2000, 60, [f"class {i}" for i in range(101)])).encode()) < 1_000_000


def test_many_epochs_are_thinned_and_the_last_is_there():
    values = page_of(record_of(1000, 2, ["a", "b"])).charts()["Training loss"]
    assert len(values["x"]) <= 300 and values["x"][-1] == 1000 and len(set(np.diff(values["x"]))) == 1


def test_what_comes_from_data_is_text():
    record = record_of(3, 2, EVIL, status="failed", error="</pre><script>alert(2)</script>", command=["a=<b>"])
    page = page_of(Record(Path("</title><i>"), {"dataset": {"path": "<u>"}}, record.summary, record.epochs))
    scripts = [e for e in page.all("script") if e[1].get("type") != "application/json"]
    assert len(scripts) == 1 and "alert" not in scripts[0][2]
    assert page.all("b") == page.all("u") == [] and all("style" in e[1] for e in page.all("i"))
    names = {e[2] for e in page.all("th", scope="row")}
    assert set(EVIL) <= names
    assert page.all("section", role="alert")[0][2].strip().endswith("</pre><script>alert(2)</script>")


def test_many_classes_are_a_picture_with_their_counts():
    record = record_of(2, 2, [f"{i} <b>" for i in range(40)])
    values = page_of(record).charts()["Answers by class"]
    assert values["cells"] == record.summary["confusion"] and values["rows"][3] == "3 <b>"
    assert values["of"] == [sum(row) for row in record.summary["confusion"]]


def test_a_run_that_failed_says_why_and_one_that_was_killed_shows_its_epochs(bnn_train):
    failed = bnn_train(*SMALL, "real_optimizer=sgd", "real_optimizer.lr=1e38").runs[0]
    text = (failed / "report.html").read_text()
    assert "Why it ended" in text and "the loss is" in text and ">failed<" in text
    (failed / "summary.json").unlink()
    (failed / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in record_of(3, 2, []).epochs))
    page = page_of(read(failed))
    assert ">unfinished<" in page.text and len(page.charts()["Accuracy, %"]["x"]) == 3


def test_figures_of_layers_beyond_flips_and_ones_are_heat_maps_too():
    record = record_of(4, 2, ["a", "b"])
    for i, line in enumerate(record.epochs):
        line |= {"delta": None, "dead_outputs": {"layers.0": i, "layers.1": 0}}
        line["gradient_snr"] = {"layers.0.weight": None, "layers.1.weight": i / 3}
    charts = page_of(record).charts()
    assert charts["Dead outputs"]["cells"] == [[0, 1, 2, 3], [0, 0, 0, 0]]
    assert charts["Gradient snr"]["cells"] == [[None] * 4, pytest.approx([0, 1 / 3, 2 / 3, 1], rel=1e-5)]
    assert "delta" not in charts


def test_no_epochs_no_bits_and_no_numbers_are_pages_too():
    empty = Record(Path("x"), {}, {}, [])
    assert page_of(empty).all("h1")
    real = record_of(1, 0, ["a", "b"])
    assert "Flips per layer" not in page_of(real).charts()
    still = record_of(3, 1, ["a", "b"])
    for line in still.epochs:
        line["flips"] = {"layers.0.weight": 0}
        line["train_loss"] = math.nan
    assert page_of(still).charts()["Training loss"]["series"][0][2] == [None] * 3


def test_a_page_is_made_without_torch_and_without_matplotlib(bnn_train, tmp_path):
    run = bnn_train(*SMALL, "trainer=smoke").runs[0]
    made = (run / "report.html").read_text()
    (run / "report.html").unlink()
    code = (
        "import sys; from pathlib import Path; from bnn_exp.records.html import write_run_page\n"
        "write_run_page(Path(sys.argv[1])); sys.exit(str({'torch', 'matplotlib'} & set(sys.modules) or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code, run], capture_output=True, text=True, timeout=60)
    assert done.stderr.strip() == "" and (run / "report.html").read_text() == made


@pytest.mark.parametrize("values", [[0.1, 0.2], [3.0], [0.0], [-5.0, 1e6], [99.97, 99.98], [None, math.inf, 2.0]])
def test_an_axis_holds_its_values_and_round_ticks(values):
    low, high = spread(values)
    axis = Axis(low, high, 200, 0)
    assert all(0 <= axis(v) <= 200 for v in values if v is not None and math.isfinite(v))
    ticks = axis.ticks()
    assert 1 <= len(ticks) <= 7 and all(low <= tick <= high for tick in ticks)
    steps = np.diff(ticks)
    assert len(steps) == 0 or steps == pytest.approx(steps[0])
    if len(steps):
        assert f"{steps[0]:.6e}"[0] in "125"


def test_pictures_of_a_sheet_are_where_their_names_are(tmp_path):
    shades = np.arange(12, dtype=np.uint8) * 20
    images = np.broadcast_to(shades[:, None, None, None], (12, 1, 28, 28))
    plots.samples(tmp_path / "sheet.png", images, [f"name {i}" for i in range(11)] + ["a name that is far too long"])
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    across, down = sheet.shape[1] // 8, sheet.shape[0] // 2
    for i, shade in enumerate(shades):
        tile = sheet[i // 8 * down :, i % 8 * across :][:down, :across]
        middle = tile[10:70, 20:-20]
        assert (middle == (shade, shade, shade, 255)).all()
        assert tile[-15:, :, 3].any(), "its name"
    assert (sheet[-down:, 4 * across + 4 :] == (*plots.GREY, 0)).all(), "nothing after the last"


def test_large_pictures_are_drawn_smaller(tmp_path):
    rng = np.random.default_rng(0)
    plots.samples(tmp_path / "sheet.png", rng.integers(0, 255, (9, 3, 300, 200), dtype=np.uint8), ["x"] * 9)
    assert max(Image.open(tmp_path / "sheet.png").size) <= 8 * (plots.TILE + 8)


def test_lines_are_told_apart_by_the_colour_blind_and_from_the_page():
    """WCAG 1.4.11 requires a contrast of 3 : 1 with the background. Colour vision deficiencies follow Machado et al. 2009;
    distances are in CIELAB."""
    style = (Path(html.__file__).parent / "templates" / "style.css").read_text()
    for block in re.findall(r":root \{(.*?)\}", style, re.DOTALL):
        colours = dict(re.findall(r"--(card|c\d): #(\w+)", block))
        lights = {name: linear(colour) for name, colour in colours.items()}
        luminance = {name: light @ (0.2126, 0.7152, 0.0722) + 0.05 for name, light in lights.items()}
        lines = [name for name in colours if name != "card"]
        assert len(lines) == 8
        for name in lines:
            assert max(luminance[name], luminance["card"]) / min(luminance[name], luminance["card"]) >= 3
        for deficiency in DEFICIENCIES.values():
            seen = [lab(deficiency @ lights[name]) for name in lines]
            assert min(np.linalg.norm(a - b) for a, b in combinations(seen, 2)) >= 10  # a distance of 2.3 is just noticeable


DEFICIENCIES = {
    "none": np.eye(3),
    "protanopia": np.array([[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]]),
    "deuteranopia": np.array([[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]]),
    "tritanopia": np.array([[1.2555, -0.0767, -0.1788], [-0.0784, 0.9308, 0.1476], [0.0047, 0.6914, 0.3039]]),
}


def linear(colour: str) -> np.ndarray:
    """Returns the linear sRGB of a CSS colour with three or six hexadecimal digits."""
    digits = colour if len(colour) == 6 else "".join(2 * digit for digit in colour)
    c = np.array([int(digits[i : i + 2], 16) for i in (0, 2, 4)]) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(light: np.ndarray) -> np.ndarray:
    """Returns the CIELAB coordinates of linear sRGB under the illuminant D65."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ np.clip(light, 0, 1) / (0.9505, 1, 1.089)
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])
