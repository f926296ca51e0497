"""Console output: users' texts stay literal, and the best epoch is named with the rows that chose it."""

import io
import itertools
import re
import shlex
from pathlib import Path

import pytest
from helpers import settings_of
from rich.table import Table

import bnn_exp
from bnn_exp.records import chance, html, terminal
from bnn_exp.records.report import by_class
from bnn_exp.records.terminal import Plain, progress

SMOKE = ("trainer=smoke", "trainer.epochs=1", "model.hidden_size=8")
ODD = ["bolt [m4]", "a[/b]", "[bold]", ":smile:", "caf\udce9", "\x1b[31mred", "\x07", "😀", "δ", "$x_$", "x" * 300]


def shown(what, encoding: str = "utf-8", width: int = 400) -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    Plain(file=stream, width=width).print(what)
    stream.flush()
    return stream.buffer.getvalue().decode(encoding)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1", "cp1252"])
def test_any_text_is_shown_as_it_is_wherever_it_stands(encoding):
    for text in ODD:
        expected = text.replace("\x1b", "\\x1b").replace("\x07", "\\x07").encode(encoding, "backslashreplace").decode(encoding)
        table = Table(text, title=text)
        table.add_row(text)
        assert shown(text, encoding).rstrip("\n") == expected
        assert shown(table, encoding).count(expected) == 3


def test_names_of_classes_are_shown_as_they_are():
    text = shown(by_class([[3, 1], [0, 2]], ["a[/b]", "[m4]"]))
    assert "a[/b]" in text and "[m4] (1×)" in text


def test_there_is_one_kind_of_console():
    """A console of rich itself would read the cells of a table as markup."""
    root = Path(bnn_exp.__file__).parent
    made = [f.name for f in root.rglob("*.py") if re.search(r"\bConsole\(|rich\.print|from rich import", f.read_text())]
    assert made == []


def test_pages_escape_all_that_is_not_made_of_escaped_parts():
    root = Path(html.__file__).parent
    for file in root.rglob("*.html"):
        assert not re.search(r"\|\s*safe|autoescape|Markup", file.read_text()), file
    for file in root.glob("*.py"):
        for call in re.findall(r"Markup\(([^)]*)", file.read_text()):
            assert call.startswith(("'", '"')) or not call.strip(), f"{file}: {call}"


def test_progress_is_a_line_every_ten_seconds_where_there_is_no_terminal(monkeypatch, capsys):
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(terminal, "monotonic", lambda: next(clock))
    with progress("pictures [x]", 1000) as done:
        for _ in range(10):
            done(100)
    lines = capsys.readouterr().out.splitlines()
    assert lines and all(re.fullmatch(r"pictures \[x\]: [\d,]+ of 1,000", line) for line in lines)
    assert 2 <= len(lines) <= 6


@pytest.mark.parametrize(
    ("accuracy", "counts", "expected"),
    [
        (38.0, [33, 33, 33], "near chance: the most common class alone gives 33.33%"),  # chance plus 3σ is 47.5%
        (47.0, [33, 33, 33], "near chance"),
        (48.0, [33, 33, 33], None),
        (90.0, [90, 10], "no better than the most common class alone (90.00%)"),
        (98.9, [90, 10], "near chance"),
        (99.5, [900, 100], None),
        (100.0, [2, 2], "measured on 4 rows, too few to tell it from chance (50.00%)"),
        (11.0, [1000] * 10, None),
        (10.5, [1000] * 10, "near chance"),
        (100.0, [9, 0], "measured on rows of a single class, and so says nothing"),
        (0.0, [], "no better"),
    ],
)
def test_an_accuracy_beside_chance(accuracy, counts, expected):
    """The margins are three standard deviations of a binomial share, sqrt(p(1 - p)/n)."""
    found = chance.remark("test", accuracy, counts)
    assert found is None if expected is None else expected in found


def test_a_run_near_chance_says_so_and_what_to_try(bnn_train, summary):
    done = bnn_train(*SMOKE, "trainer.limit_batches=1", "optimizer=hypermask", "delta=0.5")
    result, page = summary(done.runs[0]), (done.runs[0] / "report.html").read_text()
    log = (done.runs[0] / "train.log").read_text()
    assert len(result["warnings"]) == 3 and result["warnings"][1].startswith("test accuracy")
    for text in result["warnings"]:
        assert text in done.out and text in log and text in page
    assert (
        "next: what to try: " in done.out
        and "(a sweep)" not in done.out
        and "optimizer=counter" in done.out
        and "hidden_size=128" not in done.out
    )


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (("delta=0",), "a larger optimizer.delta than 0; "),
        (("delta=1e-9",), "a larger optimizer.delta than 1e-09; "),
        (("optimizer=counter", "delta=0"), "a larger optimizer.delta than 0; "),
        (("optimizer=bop", "optimizer.gamma=0"), "a larger optimizer.gamma than 0; "),
    ],
)
def test_a_rule_that_flips_nothing_is_to_be_stronger(bnn_train, rule, text):
    done = bnn_train(*SMOKE, "trainer.limit_batches=1", *rule)
    (line,) = (line for line in done.out.splitlines() if line.startswith("next: "))
    assert text in line and "no binary weight is trained" in line and "smaller" not in line and "epochs" not in line


def test_advice_reads_the_strength_of_the_rule():
    """The advice does not name δ for a rule that does not read δ."""
    assert "optimizer.delta" in chance.advice(settings_of("optimizer=hypermask_top"), 1, flips=9)
    assert "optimizer.delta" not in chance.advice(settings_of("optimizer=hypermask_ewm"), 1, flips=9)
    assert "model=bncvl" in chance.advice(settings_of(), 3, flips=9)
    assert "optimizer=counter" not in chance.advice(settings_of(), 3, flips=9)
    assert "a smaller trainer.batch_size than 128" in chance.advice(settings_of("trainer.batch_size=128"), 3, flips=9)
    assert "trainer.batch_size" not in chance.advice(settings_of("trainer.batch_size=16"), 3, flips=9)
    assert "model=bncvl" not in chance.advice(settings_of("init_from=RUN"), 3, flips=9)


def test_a_run_that_has_learned_says_nothing_of_chance(bnn_train, summary):
    done = bnn_train("model.hidden_size=32", "trainer.epochs=3", "trainer.batch_size=64")
    assert summary(done.runs[0])["warnings"] == [] and "warning" not in done.out
    assert "what to try" not in done.out and "next (a sweep): bnn-train -m trainer.epochs=3 trainer.batch_size=64" in done.out


def test_the_next_line_names_keys_that_the_model_has(bnn_train):
    small = ("model=bncvl", "model.channels=[8]", "model.dense=[]", "trainer.epochs=2", "trainer.batch_size=64")
    done = bnn_train(*small, "seed=5")
    (line,) = (line for line in done.out.splitlines() if line.startswith("next"))
    assert shlex.split(line.partition(": ")[2])[1:4] == [*small[:3]] and "hidden" not in line


def test_the_best_is_said_with_what_chose_it(bnn_train, summary):
    for overrides, by in (((), "test"), (("dataset.validation=0.2",), "validation")):
        done = bnn_train(*SMOKE, *overrides, f"hydra.run.dir={by}")
        result = summary(by)
        assert result["best_chosen_by"] == by
        if by == "validation":
            said = f"best {result['best_validation_accuracy']:.2f}% in validation (epoch 1; test there "
            said += f"{result['best_test_accuracy']:.2f}%)"
            assert "best in validation" in (Path(by) / "report.html").read_text()
        else:
            said = f"best {result['best_test_accuracy']:.2f}% (epoch 1; chosen on the test rows: optimistic)"
            assert "chosen on the test rows" in (Path(by) / "report.html").read_text()
        assert f"completed: test {result['test_accuracy']:.2f}%, {said}" in done.out


@pytest.mark.slow
def test_what_takes_long_shows_how_far_it_is(bnn_train, copy_of_run, tmp_path, monkeypatch):
    """Every loop prints its progress, if each step takes ten seconds: tests in training, benchmarks, exports."""
    monkeypatch.setattr(terminal, "EVERY", 0.0)
    small = ("trainer=smoke", "trainer.epochs=1", "model.hidden_size=8")
    assert "rows evaluated: 360 of 360" in bnn_train(*small, "hydra.run.dir=run").out
    assert "images on bits: 360 of 360" in bnn_train("task=evaluate", "from=run").out
    assert "test rows checked: 360 of 360" in bnn_train("task=export", "from=run", "export.format=torch").out
    monkeypatch.setattr("bnn_exp.commands.benchmark.training_memory.measure", lambda name, values, device, done: done(3))
    found = bnn_train("task=benchmark", "benchmark=training", "benchmark.rounds=3", "model.hidden_size=8").out
    assert re.search(r"rounds of training, of each way: (\d+) of \1$", found, re.MULTILINE)
    assert re.search(r"processes whose memory is measured: (\d+) of \1$", found, re.MULTILINE)


def test_a_bar_appears_on_a_terminal_only_where_it_takes_a_second(monkeypatch):
    for seconds, shown in ((0.0, False), (2.0, True)):
        screen, clock = io.StringIO(), itertools.count(0.0, seconds)
        monkeypatch.setattr(terminal, "monotonic", lambda clock=clock: next(clock))
        monkeypatch.setattr(terminal, "console", lambda screen=screen: Plain(file=screen, force_terminal=True, width=80))
        with progress("rows [x]", 2) as done:
            done(1), done(1)
        assert ("rows [x]" in screen.getvalue()) is shown
