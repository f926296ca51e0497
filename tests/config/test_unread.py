"""An override that nothing reads is refused by its key. `delta` sets the strength of every rule that has a setting `delta`."""

import subprocess
import sys

import pytest
from helpers import ROOT, plain_config, settings_of

from bnn_exp.config import unread
from bnn_exp.config.rules import RULES
from bnn_exp.errors import UserError

FLOAT = ("optimizer=latent_adam", "model.weights=float")
CNN = ("model=bncvl", "model.channels=[4,6]")
NOT_BY_TRAINING = [  # nothing reads the last override of each
    ("optimizer=bop", "delta=0.1"),
    ("optimizer=bop2", "delta=0.1"),
    ("optimizer=cema", "delta=0.1"),
    ("optimizer=bold", "delta=0.1"),
    ("optimizer=latent_adam", "delta=0.1"),
    ("optimizer=latent_sgd_mlp", "++delta=0.1"),
    ("optimizer=hypermask_ewm", "delta=0.1"),
    ("optimizer=hypermask", "optimizer.mask=wpm", "optimizer.delta=0.1"),
    ("optimizer.delta=0.2", "delta=0.1"),
    ("optimizer=hypermask", "optimizer.mask=random", "optimizer.scale=factored"),
    ("optimizer=hypermask", "optimizer.mask=ewm", "optimizer.scale=neuron"),
    ("optimizer=hypermask", "optimizer.mask=random", "optimizer.lr=1.0"),
    ("optimizer=hypermask", "optimizer.mask=top", "optimizer.temperature=const"),
    ("model.batch_norm.affine=false", "real_optimizer.lr=0.1"),
    ("model.batch_norm.affine=false", "real_optimizer=sgd"),
    (*CNN, "model.normalization=sample", "real_optimizer=sgd"),
    ("dataset.shift=2",),
    ("dataset.flip=true",),
    ("dataset.cutout=3",),
    ("dataset=mnist", "dataset.path=x", "dataset.hub=a/b"),
    ("fresh=1",),
    ("model.num_layers=1", "model.hidden_size=32"),
    ("model.num_layers=1", "model.window=2.0"),
    ("model=bncvl", *FLOAT, "model.encoding=boolean"),
    ("model=bncvl", "model.channels=[4]", "model.pool=3"),
    (*CNN, "optimizer=counter", "model.latent_std=one"),
    (*CNN, *FLOAT, "model.latent_std=one"),
    ("trainer.epochs=1", "trainer.final_batch_size=600"),
    ("engine.sync_batch_norm=false",),
    ("engine.all_reduce=int8",),
    (*CNN, "model.normalization=channel", "engine.devices=2", "engine.sync_batch_norm=false"),
]
NOT_BY_THE_COMMAND = [
    ("input=x.png",),
    ("export.dir=out",),
    ("export.format=c",),
    ("benchmark=training",),
    ("report.y=train_loss",),
    ("sweep.trials=3",),
    ("sweep.search=optuna",),
    ("sweeper=optuna",),
    ("launcher=slurm",),
    ("from=RUN",),
    ("-m", "seed=0,1", "sweep.trials=3"),
    ("-m", "seed=0,1", "input=x.png"),
    ("task=report", "from=x", "seed=1"),
    ("task=report", "from=x", "dataset=mnist"),
    ("task=evaluate", "from=x", "model.hidden_size=3"),
    ("task=evaluate", "from=x", "dataset.limit=10"),
    ("task=evaluate", "from=x", "trainer.eval_batch_size=10"),
    ("task=export", "from=x", "device=cuda"),
    ("task=predict", "from=x", "input=y", "export.format=c"),
    ("task=predict", "from=x", "input=y", "dataset=mnist"),
    ("task=predict", "from=x", "input=y", "+dataset.size=3"),
    ("task=predict", "from=x", "input=y", "++dataset.fit=crop"),
    ("task=predict", "from=x", "input=y", "dataset.limit=3"),
    ("task=export", "from=x", "optimizer=counter"),
    ("task=benchmark", "from=x", "model=vgg"),
    ("task=benchmark", "from=x", "trainer.batch_size=8"),
]


@pytest.mark.parametrize("overrides", NOT_BY_TRAINING, ids=" ".join)
def test_what_a_training_does_not_read_is_refused_by_its_name(overrides):
    with pytest.raises(UserError) as refused:
        unread.check_training(settings_of(*overrides), overrides)
    first, second = str(refused.value).splitlines()
    assert first.startswith(f"{overrides[-1].lstrip('+')}: ") and second.startswith("allowed: ")


@pytest.mark.parametrize("arguments", [*NOT_BY_THE_COMMAND, NOT_BY_TRAINING[0], NOT_BY_TRAINING[5]], ids=" ".join)
def test_the_command_refuses_it_and_leaves_nothing(bnn_train, tmp_path, arguments):
    done = bnn_train(*arguments)
    assert done.code == 2 and done.err.startswith(f"bnn-train: {arguments[-1].lstrip('+')}: "), done.err
    assert len(done.err.splitlines()) == 2 and "\nallowed: " in done.err and list(tmp_path.iterdir()) == []


READ = [
    ("delta=0.2",),
    ("optimizer=counter_4bit", "delta=0.2"),
    ("optimizer=hypermask", "optimizer.mask=ewm", "optimizer.lr=1.0", "optimizer.temperature=const"),
    ("optimizer=counter", "optimizer.scale=neuron"),
    ("optimizer=latent_sgd", "optimizer.lr=1.0", "optimizer.momentum=0.0"),
    ("model=vgg", "model.window=2.0", "real_optimizer.lr=0.1"),
    ("dataset.augment=standard", "dataset.shift=2", "dataset.flip=false", "dataset.cutout=0"),
    ("dataset=mnist", "dataset.hub=a/b"),
    ("init_from=x", "fresh=1"),
    ("fresh=null", "delta=null", "trainer.final_batch_size=null"),
    ("model.num_layers=1", "model.binarize_logits=true", "model.window=null", "model.window=2.0"),
    (*CNN, "model.pool=3", "model.latent_std=one"),
    ("engine.devices=2", "engine.sync_batch_norm=false", "engine.all_reduce=int8"),
    ("trainer.epochs=2", "trainer.final_batch_size=600"),
    (*FLOAT, "model.encoding=boolean"),
]


@pytest.mark.parametrize("overrides", READ, ids=" ".join)
def test_what_is_read_is_not_refused(overrides):
    unread.check_training(settings_of(*overrides), overrides)


def test_every_key_of_the_table_is_a_setting():
    """The table would no longer refuse a key that has been renamed."""
    known = set()

    def note(values, prefix=""):
        for key, value in values.items():
            known.add(prefix + key)
            if isinstance(value, dict):
                note(value, f"{prefix}{key}.")

    for choice in ([], ["optimizer=hypermask"], ["model=vgg"], ["model=bncvl"], ["dataset=mnist"]):
        note(plain_config(*choice))
    named = {key for entry in (*unread.COMMAND, *unread.TRAINING) for key in entry.keys}
    assert named - known == {"sweeper"}


def test_a_job_of_a_sweep_is_refused_alone(bnn_train, summary):
    small = ("trainer=smoke", "trainer.epochs=1", "model.hidden_size=8")
    done = bnn_train("-m", "optimizer=bold,counter,hypermask_top", "delta=0.3", *small, "hydra.sweep.dir=s")
    first, *others = (summary(f"s/{job}") for job in range(3))
    assert done.code == 1 and first["status"] == "failed" and first["error"].startswith("delta=0.3: optimizer=bold")
    assert [other["status"] for other in others] == ["completed"] * 2


@pytest.mark.parametrize("name", [path.stem for path in (ROOT / "conf/optimizer").glob("*.yaml") if "of_" not in path.stem])
def test_delta_is_the_strength_of_every_rule_that_has_one(name):
    own = settings_of(f"optimizer={name}").optimizer
    if own.name not in ("hypermask", "counter"):
        assert not hasattr(own, "delta")
    else:
        presets = {"hypermask": 0.1, "hypermask_ewm": 0.1, "counter_2bit": 0.02, "counter_4bit": 0.05, "counter": 0.02,
                   "hypermask_factored": 0.02}  # fmt: skip
        assert own.delta == presets.get(name, 0.01)
        assert settings_of(f"optimizer={name}", "delta=0.3").optimizer.delta == 0.3
        assert settings_of(f"optimizer={name}", "delta=null").optimizer.delta == own.delta


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["optimizer=counter_4bit", "delta=-1"], "delta=-1 is not allowed\nallowed: a number ≥ 0"),
        (["delta=1.5"], "delta=1.5 is not allowed\nallowed: a number ≥ 0 and ≤ 1 or null"),
        (["optimizer=hypermask", "optimizer.delta=1.5"], "optimizer.delta=1.5 is not allowed\nallowed: a number ≥ 0 and ≤ 1"),
        (["optimizer=hypermask_factored", "delta=x"], "delta=x is not allowed\nallowed: a number ≥ 0 and ≤ 1"),
    ],
)
def test_a_delta_out_of_range_is_named_as_it_was_given(overrides, line):
    with pytest.raises(UserError) as refused:
        settings_of(*overrides)
    assert str(refused.value) == line
    assert settings_of("optimizer=counter", "optimizer.delta=1.5").optimizer.delta == 1.5  # a counter has no upper limit


def test_delta_is_the_strength_of_a_rule_of_a_plugin(tmp_path):
    text = (ROOT / "docs/add_a_rule.md").read_text().split("```python\n")[1].split("```")[0]
    (tmp_path / "patient.py").write_text(text)
    command = [sys.executable, "patient.py", "optimizer=patient", "delta=0.25", "--cfg", "job", "--resolve"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout.count("delta: 0.25") == 2, done.stderr


def test_the_strength_of_each_rule_is_one_of_its_settings():
    assert {name: rule.strength for name, rule in RULES.items() if name != "patient"} == {
        "hypermask": "delta", "counter": "delta", "bop": "gamma", "bop2": "gamma", "cema": "alpha", "bold": "eta",
        "latent_adam": "lr", "latent_sgd": "lr", "latent": "lr",
    }  # fmt: skip
