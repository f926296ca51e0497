"""Settings of earlier versions: runs with old keys can be read, and a command with an old key gets the new one as answer."""

import pytest
import yaml
from helpers import plain_config

from bnn_exp.config.migrate import MOVED, migrated
from bnn_exp.config.settings import load_settings


def as_written_before(config: dict) -> dict:
    """Returns the configuration as version 0.1.0 wrote it: the settings of `engine` stand in `trainer`."""
    engine = dict(config["engine"])
    old = {"engine": engine.pop("name"), "error_bits": engine.pop("gradient_bits"), **engine}
    return {key: value for key, value in config.items() if key != "engine"} | {"trainer": config["trainer"] | old}


def test_a_configuration_of_an_earlier_version_gives_the_same_settings():
    config = plain_config(
        "engine=packed", "engine.gradient_bits=4", "engine.memory=lean", "engine.threads=3", "trainer.epochs=7"
    )
    config = {key: value for key, value in config.items() if key in load_settings(config).__dataclass_fields__}
    before = as_written_before(config)
    assert before["trainer"]["error_bits"] == 4 and "gradient_bits" not in yaml.dump(before)
    assert migrated(before) == migrated(config) == config
    assert load_settings(before) == load_settings(config)


@pytest.mark.parametrize(("old", "value"), [(old, "4") for old in MOVED])
def test_an_old_name_is_refused_with_the_new_one(bnn_train, old, value, tmp_path):
    done = bnn_train(f"{old}={value}", *(["task=benchmark", "benchmark=training"] if old.startswith("benchmark") else []))
    assert done.code == 2 and done.err.splitlines() == [f"bnn-train: {old}: has moved", f"allowed: {MOVED[old]}=…"]
    assert list(tmp_path.iterdir()) == []
