"""The command line as people type it: words in any order work, and a mistyped word is answered in one to three lines."""

import json

import pytest

from bnn_exp.cli import CONF
from bnn_exp.config import experiments
from bnn_exp.config.argv import arguments
from bnn_exp.errors import UserError

SMALL = ("trainer=smoke", "trainer.epochs=1", "model.hidden_size=8")


def test_flags_may_stand_anywhere(bnn_train):
    done = bnn_train("model.hidden_size=8", "trainer=smoke", "-m", "seed=0,1", "trainer.epochs=1")
    assert done.code == 0 and [run.name for run in done.runs] == ["0", "1"]


@pytest.mark.parametrize(
    "given",
    [
        ["a=1", "-m", "b=1,2", "--config-dir", "x", "c=3"],
        ["-m", "a=1", "--config-dir", "x", "b=1,2", "c=3"],
        ["a=1", "b=1,2", "c=3", "--config-dir=x", "--multirun"],
    ],
)
def test_overrides_come_first_in_their_order(given):
    found = arguments(given, CONF)
    assert found[:3] == ["a=1", "b=1,2", "c=3"] and sorted(found) == sorted(given)


def test_home_in_the_value_of_a_flag(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert arguments(["--config-dir=~/a", "a=1"], CONF) == ["a=1", "--config-dir=/home/me/a"]
    assert arguments(["a=1", "-cd", "~/a"], CONF) == ["a=1", "-cd", "/home/me/a"]


ODD = ("", "=", "==", "~", "-", "--", "'", '"', "[", "/", "**", "\x00", "from=\x00", "ä", "a" * 300, "from=" + "a" * 300)
ODD += ("a=1", "-m", "from=[")


@pytest.mark.parametrize("first", ODD)
def test_whatever_is_typed_is_taken_or_refused_in_words(first):
    for second in ("", "=", "a=1", "-m", "~"):
        try:
            found = arguments([first, second], CONF)
        except UserError as error:
            assert 1 <= len(str(error).splitlines()) <= 3
        else:
            assert len(found) == 2 or "--" in (first, second)


@pytest.mark.parametrize("name", ["/", ".", "..", "", "a" * 300, "\x00", "a/b/c", "null"])
def test_an_experiment_of_any_name_is_refused_or_left_to_hydra(name):
    try:
        experiments.check([f"experiment={name}"], CONF)
    except UserError as error:
        assert len(str(error).splitlines()) == 2


ANSWERS = {
    "delta 0.1": "did you mean delta=0.1?",
    "delta = 0.1": "did you mean delta=0.1?",
    "delta= 0.1": "did you mean delta=0.1?",
    "delta =0.1": "did you mean delta=0.1?",
    "delta:0.1": "did you mean delta=0.1?",
    "--delta=0.1": "bnn-train delta=0.1",
    "--delta 0.1": "bnn-train delta=0.1",
    "-delta 0.1": "bnn-train delta=0.1",
    "-model=mlp": "bnn-train model=mlp",
    "--hlep": "did you mean --help?",
    "--mutirun seed=0": "did you mean --multirun?",
    "- m seed=0": "did you mean -m?",
    "—m seed=0,1": "did you mean -m?",
    "–multirun seed=0,1": "did you mean --multirun?",
    "help": "did you mean --help?",
    "evaluate": "did you mean task=evaluate?",
    "vgg": "did you mean model=vgg?",
    "dataset=local dataset.path=my photos": "did you mean 'dataset.path=my photos'?",
    "xyz": "allowed: KEY=VALUE, such as delta=0.1",
    "=3": "allowed: KEY=VALUE, such as delta=0.1",
    "-1": "allowed: KEY=VALUE, such as delta=0.1",
    "-m=1": "ignored explicit argument '1'",
    "from=0": "from=0: a training does not read it",
    "--config-dir": "expected one argument",
    "--cfg foo": "invalid choice: 'foo'",
    "model=MLP": "did you mean model=mlp?",
    "model=mpl": "did you mean model=mlp?",
    "optimizer=conter": "did you mean optimizer=counter?",
    "experiment=reference-mlp": "did you mean experiment=reference_mlp?",
    "--epochs 3": "bnn-train trainer.epochs=3",
    "--epochs=3": "bnn-train trainer.epochs=3",
    "--lr 0.1": "bnn-train optimizer.lr=0.1 or bnn-train real_optimizer.lr=0.1",
    "lr=0.1": "latent_adam, latent_sgd), real_optimizer.lr or delta (the strength",
    "learning_rate=0.1": "real_optimizer.lr or delta",
    "schedule=linear": "did you mean optimizer.schedule or real_optimizer.schedule?",
    "dataset.batch_size=64": "did you mean trainer.batch_size?",
    "optimizer=adam": "did you mean optimizer=latent_adam, optimizer=latent_adam_mlp or real_optimizer=adam?",
    "model=counter": "did you mean optimizer=counter?",
    "trainer=fast": "allowed: default, smoke; or",
    "experiment=mine": "--config-dir FOLDER with FOLDER/experiment/mine.yaml",
    "seed=0,1 delta=0.1": "bnn-train -m seed=0,1 delta=0.1",
    "seed=range(0,3)": "bnn-train -m 'seed=range(0,3)'",
    "model=mlp,vgg": "bnn-train -m model=mlp,vgg",
    "task=report from=a,b": "'from=[a,b]' for a list",
    "hydra.run.dir=a,b": "'hydra.run.dir=\"a,b\"' for one name",
    "seed=a=b": "'seed=\"a=b\"'",
    "seed=(1": "'seed=\"(1\"'",
    "~delta": "allowed: delta=VALUE",
    "~foo": "foo: no such setting",
    "+foo=1": "foo: no such setting",
    "dataset.background=#ff0000": "allowed: with dataset=",
    "dataset=mnist dataset.background=#zz0000": 'allowed: white, grey, black or "#rrggbb"',
}


@pytest.mark.parametrize("line", ANSWERS)
def test_what_is_mistyped_is_answered_in_a_line_with_what_to_type(bnn_train, tmp_path, line):
    done = bnn_train(*line.split())
    assert done.code == 2 and ANSWERS[line] in done.err and done.out == ""
    assert 1 <= len(done.err.strip().splitlines()) <= 3 and "usage" not in done.err
    assert list(tmp_path.iterdir()) == []


def experiment(folder, text: str, name: str = "mine.yaml"):
    (folder / "experiment").mkdir(parents=True, exist_ok=True)
    (folder / "experiment" / name).write_text(text)


FIRST = "# @package _global_\n"
FILES = {
    "no first line": ("model:\n  hidden_size: 8\n", "allowed: `# @package _global_` as the first line"),
    "below a comment": (f"# mine\n{FIRST}seed: 1\n", "allowed: `# @package _global_` as the first line"),
    "misspelt": ("# @package _global\nseed: 1\n", "allowed: `# @package _global_` as the first line"),
    "empty": ("", "allowed: `# @package _global_` as the first line"),
    "no override": (f"{FIRST}defaults:\n  - /model: vgg\n", "allowed: `- override /model: vgg` in `defaults:`"),
    "no slash": (f"{FIRST}defaults:\n  - override model: vgg\n", "allowed: `- override /model: vgg` in `defaults:`"),
    "neither": (f"{FIRST}defaults:\n  - model: vgg\n", "allowed: `- override /model: vgg` in `defaults:`"),
    "as a setting": (f"{FIRST}model: vgg\n", "allowed: `- override /model: vgg` in `defaults:`"),
    "outside of defaults": (f"{FIRST}override /model: vgg\n", "allowed: `- override /model: vgg` in `defaults:`"),
    "a tab": (f"{FIRST}model:\n\thidden_size: 8\n", "line 3: found character"),
    "a list": (f"{FIRST}- seed\n", "allowed: KEY: VALUE"),
    "a brace": (f"{FIRST}model: {{hidden_size: 8\n", "expected"),
}


@pytest.mark.parametrize("sweep", [False, True])
@pytest.mark.parametrize("kind", FILES)
def test_a_mistake_in_an_experiment_is_named_with_its_file(bnn_train, tmp_path, kind, sweep):
    text, said = FILES[kind]
    experiment(tmp_path / "my", text)
    done = bnn_train("--config-dir", "my", "experiment=mine", *(["-m", "seed=0,1"] if sweep else []))
    assert done.code == 2 and "my/experiment/mine.yaml" in done.err and said in done.err
    assert len(done.err.strip().splitlines()) <= 3 and [path.name for path in tmp_path.iterdir()] == ["my"]


def test_an_experiment_is_found_by_its_name_alone(bnn_train, tmp_path):
    experiment(tmp_path / "my", f"{FIRST}seed: 1\n", "mine.yml")
    experiment(tmp_path / "my", f"{FIRST}seed: 1\n", "other.yaml")
    assert "allowed: the name mine.yaml" in bnn_train("--config-dir", "my", "experiment=mine").err
    said = bnn_train("experiment=my/experiment/other.yaml").err
    assert "allowed: --config-dir my experiment=other" in said


@pytest.mark.parametrize("where", ["--config-dir=my", "hydra.searchpath=[my]", "hydra.searchpath=[file://my]"])
def test_experiments_of_the_user_run_from_each_place(bnn_train, tmp_path, summary, where):
    experiment(
        tmp_path / "my", f"{FIRST}defaults:\n  - override /trainer: smoke\nseed: 7\nmodel:\n  hidden_size: 8\n", "2024.yaml"
    )
    experiment(tmp_path / "my", "seed: 7\n", "1.yaml")
    assert "my/experiment/1.yaml" in bnn_train(where, "experiment=1").err
    done = bnn_train(where, "experiment=2024", "trainer.epochs=1")
    assert done.code == 0 and summary(done.runs[0])["seed"] == 7


PLACES = {
    "task=evaluate sweep/0": "did you mean from=sweep/0?",
    "task=predict from=sweep/0 pictures": "did you mean input=pictures?",
    "task=report sweep": "did you mean from=sweep?",
    "sweep/0": "did you mean task=evaluate from=sweep/0, resume=sweep/0, init_from=sweep/0 or config=sweep/0?",
    "sweep": "did you mean sweep.resume=sweep or task=report from=sweep?",
    "mine.py": "did you mean 'plugins=[mine.py]'?",
    "model=mlp own/experiment/mine.yaml": "did you mean --config-dir own experiment=mine?",
    "pictures": "did you mean dataset=local dataset.path=pictures?",
    "dataset=local dataset.path=my pictures": "did you mean 'dataset.path=my pictures'?",
    "--config-dir own model=thin": "allowed: optimizer=NAME trainer=NAME beside it",
}


@pytest.mark.parametrize("line", PLACES)
def test_a_path_without_its_key_is_answered_with_it(bnn_train, tmp_path, line):
    for folder in ("sweep/0", "own/experiment", "own/model", "pictures", "my pictures"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("sweep/multirun.yaml", "sweep/0/config.yaml", "mine.py", "own/experiment/mine.yaml"):
        (tmp_path / file).write_text("")
    (tmp_path / "own/model/thin.yaml").write_text("defaults: [mlp]\n")
    done = bnn_train(*line.split())
    assert done.code == 2 and PLACES[line] in done.err and len(done.err.strip().splitlines()) <= 3, done.err


def test_a_model_of_a_folder_trains_as_the_answer_says(bnn_train, tmp_path):
    (tmp_path / "own/model").mkdir(parents=True)
    (tmp_path / "own/model/thin.yaml").write_text("defaults: [mlp]\nhidden_size: 8\n")
    said = ("optimizer=counter", "trainer=default")
    assert bnn_train("--config-dir", "own", "model=thin", *said, "--cfg", "job").code == 0
    for group in ("optimizer", "trainer"):
        (tmp_path / "own" / group).mkdir()
        (tmp_path / f"own/{group}/of_thin.yaml").write_text(f"defaults: [{dict(item.split('=') for item in said)[group]}]\n")
    done = bnn_train("--config-dir", "own", "model=thin", "--cfg", "job")
    assert done.code == 0 and "hidden_size: 8" in done.out


@pytest.mark.parametrize("key", ["task=evaluate from", "task=export from", "init_from", "config"])
def test_a_sweep_where_a_run_is_needed_is_answered_with_its_best_run(bnn_train, tmp_path, key):
    for name, accuracy in (("0", 90.0), ("1", 95.0)):
        (tmp_path / "s" / name).mkdir(parents=True)
        ended = {"status": "completed", "test_accuracy": accuracy, "train_seconds": 1, "epochs": 1}
        (tmp_path / "s" / name / "summary.json").write_text(json.dumps(ended))
        (tmp_path / "s" / name / "config.yaml").write_text(f"model: {{name: mlp, width: {name}}}\n")
    (tmp_path / "s/multirun.yaml").write_text("")
    done, name = bnn_train(*f"{key}=s".split()), key.split()[-1]
    assert done.code == 2 and f"{name}=s: a sweep of 2 runs, and no run" in done.err, done.err
    assert f"allowed: {name}=s/1, the best; or s/0" in done.err
