"""The page of a sweep: its table, its links, and charts whose marks have the right positions."""

import re
import statistics

import pytest
from helpers import Page, study_run

from bnn_exp.records.html import sweep_page
from bnn_exp.records.runs import Record
from bnn_exp.records.sweeps.comparison import compare

ACCURACIES = {(64, "top"): (90.0, 94.0), (256, "top"): (95.0, 96.0), (64, "random"): (70.0, 78.0), (256, "random"): (80.0,)}


@pytest.fixture
def runs(tmp_path):
    """Returns runs of two sizes and two masks in folders with awkward names. The first run of each configuration has a page."""
    records = []
    for (size, mask), accuracies in ACCURACIES.items():
        for seed, accuracy in enumerate(accuracies):
            directory = tmp_path / f"size={size},mask={mask} #{seed}?"
            directory.mkdir()
            settings = {"model": {"hidden_size": size}, "optimizer": {"mask": mask}}
            records.append(study_run(directory, seed, accuracy, **settings))
            if seed == 0:
                (directory / "report.html").write_text("")
    bad = {"status": "failed", "error": "<b>too</b> large\nallowed: less", "overrides": ["model.hidden_size=<i>"]}
    return [*records, Record(tmp_path / "bad", {}, bad, [])]


def test_the_table_has_a_row_a_configuration_and_marks_the_best(runs, tmp_path):
    page = Page(sweep_page(compare(runs), tmp_path))
    expected = {}
    for (size, mask), numbers in ACCURACIES.items():
        std = f" ± {statistics.stdev(numbers):.2f}" if len(numbers) > 1 else ""
        expected[str(size), mask] = f"{statistics.mean(numbers):.2f}{std}"
    rows = page.rows()[1 : 1 + len(ACCURACIES)]
    assert {(row[0], row[1]): row[2].removeprefix("best ") for row in rows} == expected
    assert all(row[3] == "0.75" for row in rows)
    assert [row[:2] for row in rows if row[2].startswith("best ")] == [["256", "top"]]
    assert len(page.all("h1")) == 1 and "of 7 runs" in page.all("h1")[0][2]


def test_links_lead_to_the_runs_that_have_a_page(runs, tmp_path):
    from urllib.parse import unquote, urlsplit

    elsewhere = tmp_path / "studies" / "one"
    page = Page(sweep_page(compare(runs), elsewhere))
    targets = {(elsewhere / unquote(urlsplit(e[1]["href"]).path)).resolve() for e in page.all("a")}
    assert targets == {record.directory / "report.html" for record in runs if record.setting("seed") == 0}
    assert all(not urlsplit(e[1]["href"]).scheme for e in page.all("a"))


def test_what_did_not_complete_stands_with_its_reason_as_text(runs, tmp_path):
    page = Page(sweep_page(compare(runs), tmp_path))
    (row,) = [e[2] for e in page.all("tr") if "failed" in e[2]]
    assert "model.hidden_size=<i>" in row and "<b>too</b> large; allowed: less" in row
    assert page.all("i") == [] and len(page.all("b")) == 1


def test_marks_stand_where_the_grid_says(runs, tmp_path):
    """Reads the heights of means and error bars with the numbers beside the grid lines."""
    comparison = compare(runs)
    page = Page(sweep_page(comparison, tmp_path))
    text = next(part for part in page.text.split("<figure") if "Test accuracy over hidden_size" in part)
    lines = re.findall(r'class="grid"[^>]* y1="([\d.]+)"[^>]*/><text[^>]*>([\d.]+)<', text)
    (y0, v0), (y1, v1) = ((float(y), float(v)) for y, v in (lines[0], lines[-1]))

    def value(y):
        return v0 + (float(y) - y0) * (v1 - v0) / (y1 - y0)

    points = page.charts()["Test accuracy over hidden_size"]["points"]
    assert sorted(value(point[1]) for point in points) == pytest.approx(sorted(row.mean for row in comparison.rows), abs=0.1)
    bars = [(value(a), value(b)) for a, b in re.findall(r"M[\d.]+ ([\d.]+)V([\d.]+)M", text)]
    expected = [(row.mean + row.std, row.mean - row.std) for row in comparison.rows if row.std]
    assert sorted(bars) == [pytest.approx(ends, abs=0.1) for ends in sorted(expected)]
    assert len({point[3] for point in points}) == 2, "a colour a mask"


def test_the_curves_are_those_of_every_run(runs, tmp_path):
    curves = Page(sweep_page(compare(runs), tmp_path)).charts()["Test accuracy of each run"]
    drawn = sorted(values for _, _, values in curves["series"])
    expected = sorted([line["test_accuracy"] for line in record.epochs] for record in runs if record.epochs)
    assert drawn == [pytest.approx(values, rel=1e-5) for values in expected]


def test_a_hundred_runs_are_a_small_page(tmp_path):
    runs = [
        study_run(tmp_path / f"{i}", i % 5, 50 + i / 10, 200, model={"name": "mlp"}, delta=i // 5 / 100) for i in range(120)
    ]
    assert len(sweep_page(compare(runs), tmp_path).encode()) < 1_000_000


def test_a_page_of_no_run_of_one_run_and_of_words_alone(tmp_path):
    assert "0 runs" in sweep_page(compare([]), tmp_path)
    single = study_run(tmp_path, 0, 50.0, model={"name": "mlp"})
    assert "50.00" in sweep_page(compare([single]), tmp_path)
    words = [
        study_run(tmp_path, 0, 50.0 + i, real_optimizer={"lr": v}, optimizer={"lr": v})
        for i, v in enumerate((None, "<u>", [1]))
    ]
    page = Page(sweep_page(compare(words), tmp_path))
    assert page.all("u") == [] and any(title.startswith("Test accuracy over") for title in page.charts())
