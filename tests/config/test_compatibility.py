"""The table of settings that exclude each other: its conditions, and its messages with key, value and allowed values."""

from dataclasses import replace

import pytest
from helpers import plain_config, settings_of

from bnn_exp.config import compatibility
from bnn_exp.config.settings import load_request
from bnn_exp.errors import UserError

EXCLUDED = {  # overrides that exclude each other: the device, and the first line of the message
    ("engine=packed", "model=vgg"): ("cpu", "engine=packed: not with model=vgg, only mlp"),
    ("engine=packed", "engine.compile=true"): ("cpu", "engine=packed: not with engine.compile=true"),
    ("engine.gradient_bits=8", "engine.precision=bf16"): ("cpu", "engine.gradient_bits=8: not with engine.precision=bf16"),
    ("engine.gradient_bits=4", "engine=dense"): ("cpu", "engine.gradient_bits=4: not with engine=dense"),
    ("engine.gradient_bits=8",): ("cuda:0", "engine.gradient_bits=8: not with device=cuda:0 and engine.gradient_bits=8"),
    ("engine.graphs=true",): ("cpu", "engine.graphs=true: not with device=cpu"),
    ("engine.memory=lean", "optimizer=latent_sgd"): (
        "cpu",
        "engine.memory=lean: not with optimizer=latent_sgd, whose step needs all gradients",
    ),
    ("engine.memory=lean", "engine.devices=3"): (
        "cpu",
        "engine.memory=lean: not with engine.devices=3, which send all gradients",
    ),
}


@pytest.mark.parametrize("overrides", EXCLUDED, ids=" ".join)
def test_settings_that_exclude_each_other_are_named_with_what_is_allowed(overrides, monkeypatch):
    monkeypatch.setattr(compatibility, "has_triton", lambda: True)  # as if triton were installed
    device, first = EXCLUDED[overrides]
    with pytest.raises(UserError) as refused:
        compatibility.check(settings_of(*overrides), device)
    lines = str(refused.value).splitlines()
    assert lines[0] == first and len(lines) == 2 and lines[1].startswith("allowed: ")


@pytest.mark.parametrize(
    "overrides", [(), ("engine=packed",), ("engine.memory=lean",), ("engine.gradient_bits=4",), ("model=bncvl",)], ids=str
)
def test_settings_that_go_together_are_taken(overrides):
    compatibility.check(settings_of(*overrides), "cpu")


def test_integers_of_8_bits_hold_the_sum_of_127_devices_at_most():
    settings = settings_of("engine.devices=127", "engine.all_reduce=int8")
    compatibility.check_exchange(settings)
    with pytest.raises(UserError, match="the sum of 128 devices has no room in 8 bits"):
        compatibility.check_exchange(replace(settings, engine=replace(settings.engine, devices=128)))


@pytest.mark.parametrize("override", ["init_from=RUN", "resume=RUN", "freeze=1", "engine.devices=2"])
def test_a_benchmark_of_training_measures_a_training_that_begins(override):
    request = load_request(plain_config("benchmark=training"))
    compatibility.check_measured(settings_of(), request)
    with pytest.raises(UserError, match=f"^{override}: not with benchmark=training\nallowed: {override.split('=')[0]}="):
        compatibility.check_measured(settings_of(override), request)
