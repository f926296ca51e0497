"""Bad input gives exit code 2 and a message of one or two lines with the key, its value and the allowed values. No file is
written. Experiments compose to the settings of their sources."""

from pathlib import Path

import pytest

BAD = {
    "delta=1.5": ("delta=1.5", "a number ≥ 0 and ≤ 1"),
    "optimizer.delta=-1": ("optimizer.delta=-1", "a number ≥ 0"),
    "delta=true": ("delta=true", "a number"),
    "delta=nan": ("delta=nan", "a number"),
    "dleta=0.1": ("dleta", "did you mean delta?"),
    "model.hiddensize=3": ("model.hiddensize", "did you mean model.hidden_size?"),
    "+epochs=3": ("epochs", "did you mean trainer.epochs?"),
    "dataset.path=/x": ("dataset.path", "with dataset=cifar10, cifar100, fashion_mnist, food101, local, mnist, svhn"),
    "trainer.epochs=abc": ("trainer.epochs=abc", "a whole number ≥ 1"),
    "trainer.epochs=2.5": ("trainer.epochs=2.5", "a whole number ≥ 1"),
    "trainer.batch_size=1": ("trainer.batch_size=1", "a whole number ≥ 2"),
    "real_optimizer.lr=0": ("real_optimizer.lr=0", "a number > 0"),
    "model.window=-1": ("model.window=-1", "a number > 0 or null"),
    "model.encoding=ternary": ("model.encoding=ternary", "boolean, bipolar"),
    "optimizer.mask=best": ("optimizer.mask=best", "random, top, ewm, wpm"),
    "model=mpl": ("model=mpl", "mlp"),
    "experiment=none_such": ("experiment=none_such", "reference_mlp"),
    "model=null": ("string", ""),
    "~model": ("model", ""),
    "dataset.name=foo": ("dataset.name=foo", "digits"),
    "dataset=local": ("dataset.path=null", "train/CLASS"),
    "dataset.validation=0.6": ("dataset.validation=0.6", "a number ≥ 0 and ≤ 0.5"),
    "dataset.validation=0.001": ("dataset.validation=0.001", "two rows"),
    "dataset.augment=strong": ("dataset.augment=strong", "none, standard"),
    "dataset.shift=-1": ("dataset.shift=-1", "a whole number ≥ 0 or null"),
    "device=tpu": ("device=tpu", "auto, cpu, cuda or cuda:N"),
    "device=cuda:99": ("device=cuda:99", "auto, cpu"),
    "delta=[": ("delta=[", "KEY=VALUE"),
    "resume=/nowhere": ("resume=/nowhere", "no such folder"),
    "engine.devices=0": ("engine.devices=0", "a whole number ≥ 1"),
    "engine.all_reduce=sign": ("engine.all_reduce=sign", "optimizer=counter", "allowed: fp32, int8"),
    "engine.all_reduce=fp16": ("engine.all_reduce=fp16", "fp32, int8, sign"),
    "hydra.run.dir=/dev/null/x": ("/dev/null", "hydra.run.dir=FOLDER"),
}


@pytest.mark.parametrize("argument", BAD)
def test_bad_input_is_answered_in_two_lines_and_leaves_nothing(bnn_train, argument, tmp_path):
    done = bnn_train(argument)
    assert done.code == 2
    assert 1 <= len(done.err.splitlines()) <= 2 and "Traceback" not in done.err
    assert all(part in done.err for part in BAD[argument])
    assert list(tmp_path.iterdir()) == []


def test_a_missing_or_foreign_folder_leaves_nothing(bnn_train, tmp_path):
    for folder in ("/nowhere", "elsewhere"):
        done = bnn_train("dataset=mnist", f"dataset.path={folder}")
        assert done.code == 2 and f"dataset.path={folder}" in done.err and len(done.err.splitlines()) == 2
        Path("elsewhere").mkdir(exist_ok=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["elsewhere"]


def test_every_mistake_is_named_at_once(bnn_train):
    done = bnn_train("delta=2", "trainer.epochs=0", "model.num_layers=0")
    assert done.code == 2
    assert all(key in done.err for key in ("delta=2", "trainer.epochs=0", "model.num_layers=0"))
    assert done.err.count("delta=2") == 1  # optimizer.delta is wrong too, but is not named again


def test_hydra_full_error_shows_the_traceback(bnn_train, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(Exception, match="dleta"):
        bnn_train("dleta=0.1")


def test_every_experiment_and_group_composes(bnn_train):
    for choice in (
        "experiment=reference_mlp",
        "experiment=binsfo_mlp",
        "experiment=mnist_best",
        "experiment=mnist_1bit",
        *(f"dataset={name}" for name in ("fashion_mnist", "cifar10", "cifar100", "svhn", "food101", "local")),
        "real_optimizer=sgd",
        "trainer=smoke",
    ):
        done = bnn_train(choice, "--cfg", "job", "--resolve")
        assert done.code == 0 and "model:" in done.out


def test_the_experiment_of_the_reference_program_has_its_settings(bnn_train):
    from omegaconf import OmegaConf

    config = OmegaConf.create(bnn_train("experiment=reference_mlp", "--cfg", "job", "--resolve").out)
    assert (config.model.hidden_size, config.model.num_layers, config.model.encoding) == (1024, 4, "boolean")
    assert config.model.window is None and config.model.binarize_logits
    assert (config.optimizer.mask, config.optimizer.delta, config.optimizer.schedule) == ("random", 0.1, "constant")
    assert (config.real_optimizer.name, config.real_optimizer.lr, config.real_optimizer.momentum) == ("sgd", 0.01, 0)
    assert (config.trainer.epochs, config.trainer.batch_size, config.dataset.name) == (200, 16384, "mnist")


def test_binsfos_experiment_is_its_program(bnn_train):
    from omegaconf import OmegaConf

    config = OmegaConf.create(bnn_train("experiment=binsfo_mlp", "--cfg", "job", "--resolve").out)
    assert (config.model.encoding, config.model.window, config.model.batch_norm.affine) == ("bipolar", 1, False)
    assert (config.optimizer.mask, config.optimizer.lr, config.optimizer.schedule) == ("ewm", 10, "constant")
    assert (config.trainer.epochs, config.trainer.batch_size, config.dataset.name) == (150, 512, "mnist")


def test_one_delta_feeds_the_optimizer(bnn_train):
    out = bnn_train("delta=0.03", "--cfg", "job", "--resolve").out
    assert out.count("delta: 0.03") == 2


def test_a_model_has_a_default_optimizer_and_trainer(bnn_train):
    from omegaconf import OmegaConf

    def composed(*arguments):
        return OmegaConf.create(bnn_train(*arguments, "--cfg", "job", "--resolve").out)

    for model in ("bncvl", "bncvl_paper"):
        config = composed(f"model={model}")
        assert (config.optimizer.name, config.trainer.batch_size) == ("latent_adam", 32)
    assert composed().optimizer.name == "counter"
    config = composed("model=bncvl", "model.weights=bits", "optimizer=hypermask", "trainer=smoke")
    assert (config.optimizer.name, config.trainer.epochs) == ("hypermask", 2)


def test_the_experiment_of_the_reference_convolution_has_its_settings(bnn_train):
    from omegaconf import OmegaConf

    config = OmegaConf.create(bnn_train("experiment=reference_bncvl", "--cfg", "job").out)
    assert (config.model.encoding, config.model.normalization, config.model.weights) == ("boolean", "sample", "latent")
    assert (config.optimizer.name, config.optimizer.lr, config.optimizer.schedule) == ("latent_adam", 0.001, "constant")
    assert (config.trainer.epochs, config.trainer.batch_size, config.dataset.name) == (20, 128, "mnist")


@pytest.mark.parametrize("name", ["mlp", "bncvl"])
def test_the_former_name_of_an_experiment_is_an_alias(bnn_train, name):
    former, present = (bnn_train(f"experiment={prefix}_{name}", "--cfg", "job").out for prefix in ("seed", "reference"))
    assert former == present != ""


@pytest.mark.parametrize("name", ["any_dataset", "image_dataset"])
def test_the_settings_that_datasets_share_are_no_choice(bnn_train, name):
    assert name not in bnn_train("--help").out
    done = bnn_train(f"dataset={name}")
    assert done.code == 2 and "allowed: cifar10, cifar100, digits, fashion_mnist, food101, local, mnist, svhn;" in done.err


def test_the_papers_network(bnn_train):
    from omegaconf import OmegaConf

    config = OmegaConf.create(bnn_train("model=bncvl_paper", "--cfg", "job").out)
    assert config.model.channels == [32, 64, 64, 128, 256] and config.model.convolutions == 2
    assert config.model.dense == [256, 256] and config.model.normalization == "sample"


@pytest.mark.slow
def test_the_leaderboard_is_a_sweep_over_rules(bnn_train):
    from omegaconf import OmegaConf

    few = ("dataset=digits", "trainer=smoke", "trainer.epochs=1", "model.hidden_size=16", "hydra.sweeper.params.seed=7")
    done = bnn_train("experiment=leaderboard", "hydra.sweeper.params.optimizer='counter_4bit,latent_adam'", *few)
    assert done.code == 0 and len(done.runs) == 2, done.err
    configs = [OmegaConf.load(run / "config.yaml") for run in done.runs]
    assert [(c.optimizer.name, c.model.weights, c.seed) for c in configs] == [
        ("counter", "bits", 7),
        ("latent_adam", "latent", 7),
    ]


def test_every_rule_of_the_leaderboard_can_be_chosen(bnn_train):
    from helpers import ROOT
    from omegaconf import OmegaConf

    for choice in OmegaConf.load(ROOT / "conf/experiment/leaderboard.yaml").hydra.sweeper.params.optimizer.split(","):
        done = bnn_train(f"optimizer={choice}", "trainer.epochs=0")  # an invalid value ends the command early
        assert done.code == 2 and done.err.splitlines()[0].endswith("trainer.epochs=0 is not allowed")
