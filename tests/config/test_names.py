"""Names and paths on the command line: Hydra reads each of them as the text that the user types."""

import json
import shutil
from pathlib import Path

import pytest
from helpers import pictures
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from bnn_exp.cli import CONF
from bnn_exp.config import quoting

SMALL = ("trainer=smoke", "trainer.epochs=1", "model.hidden_size=8")
NUMBERS = ("0", "2024", "007", "1e3", "1_000", "-5", ".5", "true", "False", "nan", "inf")
AWKWARD = (
    "a=b",
    "a(b",
    "ph (1)",
    "a#b",
    "o'neil",
    'say "hi"',
    "a!b",
    "a b",
    "a$b",
    "a%b",
    "a{b",
    "{a}",
    "[a",
    "b]",
    "ä ö",
    "a&b;c",
)


def read(override: str):
    return OverridesParser.create().parse_override(override).value()


@pytest.mark.parametrize("text", NUMBERS + AWKWARD)
def test_hydra_reads_a_name_as_it_is_typed(text):
    keys = ("from", "resume", "hydra.run.dir", "experiment", "++dataset.path", "dataset.label")
    overrides = quoting.as_typed([f"{key}={text}" for key in keys], CONF, sweep=False)
    assert [read(override) for override in overrides] == [text] * len(keys)
    assert [override.partition("=")[0] for override in overrides] == list(keys)


@pytest.mark.parametrize("text", NUMBERS)
def test_names_of_a_list_and_of_a_sweep_are_taken_alike(text):
    (listed,) = quoting.as_typed([f"from=[{text},b]"], CONF, sweep=False)
    assert read(listed) == [text, "b"]
    (swept,) = quoting.as_typed([f"dataset.path={text},{text}"], CONF, sweep=True)
    jobs = OverridesParser.create().parse_override(swept).sweep_string_iterator()
    assert [read(f"dataset.path={job}") for job in jobs] == [text, text]


@pytest.mark.parametrize("override", ["delta=0.1", "seed=1,2", "dataset.validation=0.1", "model.channels=[16,32]", "~delta"])
def test_what_is_no_name_stays_as_it_is(override):
    assert quoting.as_typed([override], CONF, sweep=True) == [override]


@pytest.mark.parametrize("value", ["null", "", "${seed}", '"a,b"', "choice(a,b)", "glob(*)", "range(1,3)", r"a\,b", "a,b"])
def test_hydras_own_forms_stay_what_they_are(value):
    assert quoting.as_typed([f"from={value}"], CONF, sweep=True) == [f"from={value}"]


def test_every_path_and_name_of_the_configuration_is_known():
    known = quoting.keys_of_text(CONF)
    paths = {
        "dataset.path",
        "resume",
        "init_from",
        "config",
        "from",
        "input",
        "export.dir",
        "sweep.resume",
        "benchmark.reference_program",
    }
    assert paths | {"dataset.label", "dataset.hub", "logger.experiment", "experiment", "model", "hydra.sweep.dir"} <= known
    assert not known & {"task", "which", "delta", "seed", "trainer.loss", "model.encoding", "report", "export.format"}


def test_home_is_expanded_wherever_a_path_is_taken(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    given = [
        "from=[~/a,'~/b']",
        "dataset.path=~/c d",
        'hydra.run.dir="~/e"',
        "config=~",
        "init_from=a~",
        "resume=~nobody-here/x",
    ]
    found = [read(override) for override in quoting.as_typed(given, CONF, sweep=False)]
    assert found == [["/home/me/a", "/home/me/b"], "/home/me/c d", "/home/me/e", "/home/me", "a~", "~nobody-here/x"]


def test_what_exists_under_the_whole_text_is_meant(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a,b", "[x]", "f(1)", "null,", "{a: 1}"):
        (tmp_path / name).mkdir()
        assert read(*quoting.as_typed([f"dataset.path={name}"], CONF, sweep=False)) == name
    (tmp_path / "a${b}").mkdir()
    assert read(*quoting.as_typed(["dataset.path=a${b}"], CONF, sweep=False)) == r"a\${b}"  # OmegaConf reads this as a${b}
    assert quoting.as_typed(["dataset.path=a,b"], CONF, sweep=True) == ["dataset.path=a,b"]  # commas separate values


@pytest.mark.slow
def test_runs_and_folders_that_look_like_numbers(bnn_train, copy_of_run, tmp_path, summary):
    run = copy_of_run(tmp_path / "0", *SMALL)
    shutil.copytree(run, tmp_path / "1e3")
    assert bnn_train("task=evaluate", "from=0").code == 0 and (run / "evaluation.json").is_file()
    assert "0 is finished" in bnn_train("resume=0").out + bnn_train("resume=0").err
    assert bnn_train("task=report", "from=[0,1e3]", "hydra.run.dir=2024").code == 0
    assert (tmp_path / "2024" / "report.html").is_file()
    assert bnn_train(*SMALL, "init_from=1e3", "hydra.run.dir=007").code == 0
    assert summary(tmp_path / "007")["beginning"]["run"] == "1e3"
    assert bnn_train("config=0", "seed=1", "hydra.run.dir=true").code == 0 and (tmp_path / "true" / "summary.json").is_file()


def test_data_in_folders_with_names_of_all_kinds(bnn_train, tmp_path, summary, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    folders = ["2023", "1e3", "a=b (1)"]
    for folder in folders:
        pictures(tmp_path / folder, ["007", "08"])
    done = bnn_train(*SMALL, "dataset=local", "-m", "dataset.path=2023,1e3,~/a=b (1)", "hydra.sweep.dir=5")
    assert done.code == 0 and len(done.runs) == 3
    paths = [OmegaConf.load(run / "config.yaml").dataset.path for run in done.runs]
    assert paths == [f"{tmp_path}/{folder}" for folder in folders]
    assert summary(done.runs[0])["classes"] == ["007", "08"]


def test_pictures_are_predicted_by_names_that_look_like_numbers(bnn_train, copy_of_run, tmp_path):
    copy_of_run(tmp_path / "0", *SMALL)
    pictures(tmp_path / "2024", ["a"], n=1, splits=("",))
    assert bnn_train("task=predict", "from=0", "input=2024", "hydra.run.dir=p").code == 0
    (found,) = json.loads((tmp_path / "p" / "predictions.json").read_text())["predictions"]
    assert Path(found["file"]) == Path("2024/a/0.png")


def test_home_in_an_experiment_is_expanded_too(bnn_train, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    (tmp_path / "my" / "experiment").mkdir(parents=True)
    text = "# @package _global_\nhydra:\n  run:\n    dir: ~/run\n  sweep:\n    dir: ~/sweep\n"
    (tmp_path / "my" / "experiment" / "home.yaml").write_text(text)
    assert bnn_train(*SMALL, "--config-dir=my", "experiment=home").code == 0
    done = bnn_train(*SMALL, "--config-dir", "my", "experiment=home", "-m", "seed=0")
    assert done.code == 0 and done.runs == [tmp_path / "me" / "run", tmp_path / "me" / "sweep" / "0"]


def test_a_run_in_a_folder_of_awkward_letters_goes_on_and_is_evaluated(bnn_train, tmp_path):
    place = "we!rd #1 {x} 'q' \"p\" $HOME % ä=b,c (2) [3]"
    (tmp_path / place).mkdir()
    done = bnn_train(*SMALL, f"hydra.run.dir={place}")
    assert done.code == 0 and done.runs == [tmp_path / place], done.err
    assert "is finished" in bnn_train(f"resume={place}").err
    assert bnn_train("task=evaluate", f"from={place}").code == 0
    assert bnn_train(f"config={place}", "hydra.run.dir=b").code == 0
