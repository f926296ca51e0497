"""Comparisons of runs: rows, seeds, the choice of the best row, and users' texts that stay literal in Markdown."""

import csv
import io
import json
import shlex
import statistics
import warnings
from pathlib import Path

import pytest
from helpers import Page, other_data, write_dataset
from markdown_it import MarkdownIt
from PIL import Image

from bnn_exp.records.formatting import drawn, printable
from bnn_exp.records.html import sweep_page
from bnn_exp.records.runs import Record
from bnn_exp.records.sweeps import plot
from bnn_exp.records.sweeps.comparison import Comparison, compare
from bnn_exp.records.sweeps.varied_settings import shortened

SMOKE = ("trainer=smoke", "trainer.epochs=1", "model.hidden_size=8")
ODD = [
    "a|b",
    "*x* `y` **z**",
    "_u_ a_b",
    "<b>",
    "[m4](x)",
    "[/b]",
    "$x_$",
    "\\|",
    "caf\udce9",
    "😀",
    "a\nb",
    "~~s~~",
    "&amp;",
    "x" * 300,
]


def run(seed=0, test=50.0, validation=None, data="k", overrides=(), **config) -> Record:
    facts = {"status": "completed", "test_accuracy": test, "train_seconds": 2.0, "epochs": 4, "overrides": list(overrides)}
    facts |= {"dataset": data} | ({} if validation is None else {"best_validation_accuracy": validation})
    return Record(Path(f"r{seed}"), config | {"seed": seed}, facts, [])


def table(result: Comparison) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(result.csv())))


def markdown_rows(text: str) -> list[list[str]]:
    """Returns the cells of the first Markdown table as a reader sees them. Another program parses the Markdown."""
    rows = []
    for token in MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text):
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline" and rows and token.level > 2:
            shown = [t for t in token.children if t.type not in ("strong_open", "strong_close")]
            assert all(t.type == "text" for t in shown), [t.type for t in shown]
            rows[-1].append("".join(t.content for t in shown))
    return rows


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("dataset.path", ("/data/d1", "/data/d2")),
        ("engine.threads", (1, 2)),
        ("device", ("cpu", "cuda")),
        ("dataset.limit", (10, None)),
    ],
)
def test_only_the_seed_is_folded(key, values):
    runs = []
    for value, seeds in zip(values, ((50.0, 54.0), (70.0, 80.0)), strict=True):
        group, _, name = key.partition(".")
        config = {group: {name: value}} if name else {group: value}
        runs += [run(seed, test, **config) for seed, test in enumerate(seeds)]
    result = compare(runs)
    assert result.varied == [key]
    assert [(row.mean, len(row.runs), row.seeds) for row in result.rows] == [(52.0, 2, 2), (75.0, 2, 2)]
    assert result.rows[1].std == pytest.approx(statistics.stdev((70.0, 80.0)))


def test_what_can_not_change_a_result_is_folded():
    result = compare([run(seed, logger={"name": name}, resume=name) for seed, name in enumerate(("none", "wandb"))])
    assert result.varied == [] and [row.seeds for row in result.rows] == [2]


def test_other_files_under_the_same_path_are_another_row():
    result = compare(
        [run(seed, 50 + seed, data=key, dataset={"path": "/d"}) for seed, key in enumerate(("a1" * 32, "b2" * 32))]
    )
    assert result.varied == ["dataset.content"]
    assert [row.settings["dataset.content"] for row in result.rows] == ["a1a1a1a1", "b2b2b2b2"]


def test_runs_of_one_seed_are_repeats_and_give_no_deviation():
    result = compare(
        [run(0, 50.0, delta=1), run(0, 60.0, delta=1), run(0, 70.0, delta=2), run(1, 80.0, delta=2), run(1, 84.0, delta=2)]
    )
    first, second = result.rows
    assert (first.mean, first.std, first.seeds) == (55.0, None, 1)
    assert (second.mean, second.std, second.seeds) == (76.0, pytest.approx(statistics.stdev((70.0, 82.0))), 2)
    assert [(row["runs"], row["seeds"]) for row in table(result)] == [("2", "1"), ("3", "2")]
    head, rows = result.cells()
    assert rows[0][head.index("seeds")] == "1" and any("repeats" in note for note in result.notes)
    assert "seeds" not in compare([run(0, delta=1), run(1, delta=1)]).cells()[0]


def test_runs_of_an_earlier_version_lack_new_keys():
    older = [run(seed, 50.0, trainer={"name": "t", "epochs": 3}) for seed in (0, 1)]
    newer = [run(seed, 60.0, trainer={"name": "t", "epochs": 3, "new": False}) for seed in (2, 3)]
    assert [row.seeds for row in compare([*older, *newer]).rows] == [4]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["/x/y/d1", "/x/y/d2"], ["d1", "d2"]),
        (["/a/mnist", "/b/mnist", None], ["a/mnist", "b/mnist", None]),
        (["/a", "/a/b"], ["a", "a/b"]),
        (["/a/b", "/a/b"], ["/a/b", "/a/b"]),
        (["top", "random", 3], ["top", "random", 3]),
    ],
)
def test_paths_are_shown_by_the_part_that_differs(values, expected):
    assert shortened(values) == expected


def test_the_best_is_chosen_by_validation_where_every_run_kept_rows_back():
    runs = [
        run(0, 90.0, 70.0, delta=1, overrides=["delta=1"]),
        run(0, 80.0, 75.0, delta=2, overrides=["delta=2", "sweep.trials=3"]),
    ]
    result = compare(runs)
    assert [row.best for row in result.rows] == [False, True] and result.by == "best_validation_accuracy"
    for text in (result.markdown(), sweep_page(result, Path())):
        assert "best in validation" in text and "75.00" in text and "80.00" in text and "chosen by best_validation" in text
        assert "bnn-train delta=2" in text and "sweep.trials" not in text
    assert [row["best_validation_accuracy_mean"] for row in table(result)] == ["70.0", "75.0"]
    said = compare(runs, "test_accuracy")
    assert [row.best for row in said.rows] == [True, False] and "optimistic" in said.markdown()
    mixed = compare([*runs, run(0, 95.0, delta=3)])
    assert [row.best for row in mixed.rows] == [False, False, True] and not mixed.validated
    for text in (mixed.markdown(), sweep_page(mixed, Path())):
        assert "chosen on the test rows themselves" in text


def test_texts_of_users_mark_nothing_up_in_markdown_and_csv():
    result = compare([run(0, 50 + i, x=text, overrides=[f"x={text}"]) for i, text in enumerate(ODD)])
    shown = [" ".join(text.split()) for text in ODD]
    rows = markdown_rows(result.markdown())
    assert [row[0] for row in rows[1:]] == shown and all(len(row) == len(rows[0]) for row in rows)
    assert [row["x"] for row in table(result)] == ODD
    page = Page(sweep_page(result, Path()))
    assert not page.all("s") and {e[1].get("class") for e in page.all("b")} == {"mark"}
    code = next(token for token in MarkdownIt().parse(result.markdown()) if "The best: " in token.content).children[1]
    assert shlex.split(code.content)[1] == f"x={shown[-1]}"


def classes_named(folder: Path, *names: str) -> Path:
    """Writes images of 8×8 pixels in class folders of these names, and returns the folder."""
    for i, name in enumerate(names):
        for split in ("train", "test"):
            place = folder / split / name
            place.mkdir(parents=True)
            for j in range(4):
                Image.new("L", (8, 8), 40 * i + j).save(place / f"{j}.png")
    return folder


def test_two_folders_of_data_are_two_rows(bnn_train, tmp_path):
    for seed in (1, 2):
        other_data(tmp_path / f"d{seed}", seed)
    done = bnn_train("-m", *SMOKE, "dataset=local", "dataset.path=d1,d2", "hydra.sweep.dir=s")
    rows = list(csv.DictReader((tmp_path / "s/sweep.csv").open()))
    assert done.code == 0 and [(row["dataset.path"], row["runs"]) for row in rows] == [
        (str(tmp_path / d), "1") for d in ("d1", "d2")
    ]
    assert [row[0] for row in markdown_rows((tmp_path / "s/sweep.md").read_text())[1:]] == ["d1", "d2"]


def test_names_of_classes_and_runs_are_shown_as_they_are(bnn_train, tmp_path):
    names = ("bolt [m4]", "[bold]x", "$x_$", "<b>|", ":smile:", "nut [m6]", "a" * 200)
    classes_named(tmp_path / "brk", *names)
    done = bnn_train(*SMOKE, "dataset=local", "dataset.path=brk", "hydra.run.dir='[m4] $x_$ <b>'")
    run = tmp_path / "[m4] $x_$ <b>"
    assert done.code == 0, done.err
    log, page = (run / "train.log").read_text(), Page((run / "report.html").read_text())
    for name in names[:-1]:
        assert name in done.out and name in log and name in {e[2] for e in page.all("th", scope="row")}
    assert page.all("b") == [] and "[m4] $x_$ <b>: report.html" in done.out
    evaluated = bnn_train("task=evaluate", "from='[m4] $x_$ <b>'")
    assert evaluated.code == 0 and all(name in evaluated.out for name in names[:-1]), evaluated.err


def test_a_class_that_closes_a_tag_costs_no_run(bnn_train, tmp_path):
    images = [Image.new("L", (6, 5), i) for i in range(12)]
    write_dataset(tmp_path / "d", images[:8], images[8:], ("a[/b]", "caf\x1b[31m\nx"))
    done = bnn_train(*SMOKE, "dataset=local", "dataset.path=d", "hydra.run.dir=r", "trainer.batch_size=4")
    assert done.code == 0 and "a[/b]" in done.out and "\x1b" not in done.out
    assert json.loads((tmp_path / "r/summary.json").read_text())["classes"] == ["a[/b]", "caf\x1b[31m\nx"]


def test_a_report_goes_where_it_is_wanted_and_leaves_the_sweeps_own_alone(bnn_train, tmp_path):
    sweep = ["-m", *SMOKE, "model.hidden_size=8,16", "hydra.sweep.dir=s", "report.y=train_loss"]
    assert bnn_train(*sweep).code == 0
    before = {file: file.read_bytes() for file in (tmp_path / "s").glob("*.*")}
    assert {file.name for file in before} >= {"sweep.csv", "sweep.md", "sweep.png", "report.html"}

    def report(*arguments):
        done = bnn_train("task=report", "from=s", *arguments)
        return done.code, sorted(str(f.parent.relative_to(tmp_path)) for f in tmp_path.rglob("sweep.csv")), done.err

    (tmp_path / "s/sweep.csv").unlink()
    assert report()[:2] == (0, ["s"]), "its own report, by its own axes"
    assert before == {file: file.read_bytes() for file in before}
    code, places, _ = report("report.y=test_accuracy", "hydra.run.dir=there")
    assert (code, places) == (0, ["s", "there"])
    code, places, _ = report("report.y=test_accuracy")
    assert code == 0 and len(places) == 3 and "report" in places[0]
    code, _, error = report("report.y=test_accuracy", "hydra.run.dir=s")
    assert code == 2 and "another folder" in error
    assert before == {file: file.read_bytes() for file in before}


@pytest.mark.parametrize("numeric", [False, True])
def test_odd_names_in_the_plot_of_a_sweep(tmp_path, numeric):
    """Draws a plot for odd texts as settings and as names of lines. matplotlib gives no warning of an omitted name."""
    texts = [*ODD, "_leading", "$", "$$x$$", "\\$"]
    result = compare([run(0, 50 + i, x=text, n=i % 2 if numeric else 0) for i, text in enumerate(texts)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="Glyph|constrained_layout")
        plot.draw(tmp_path / "sweep.png", result)
    assert Image.open(tmp_path / "sweep.png").size[0] > 500


@pytest.mark.parametrize("text", [*ODD, "$", "$$", "a$b", "\\$", "$a$ $b$"])
def test_matplotlib_draws_texts_as_they_are(text):
    from matplotlib.figure import Figure

    shown, is_math = Figure().text(0, 0, drawn(text))._preprocess_math(drawn(text))
    assert is_math is False
    assert shown == printable(text) or (len(text) > 48 and "…" in shown) or shown == f" {printable(text)}"
