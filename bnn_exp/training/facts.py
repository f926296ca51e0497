"""The facts about a run that `summary.json` holds beside its status and its versions."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from bnn_exp.bits import bits_sha256
from bnn_exp.config import plugins
from bnn_exp.nn import NotBinary, binary_layers, verify_binary

if TYPE_CHECKING:
    from bnn_exp.training.run import Run
    from bnn_exp.training.trainer import Trainer


def facts(run: "Run", error: str | None) -> dict[str, Any]:
    """Returns plain values by the keys of summary.json.

    Args:
        error: the reason why the run failed; None if it did not fail.
    """
    trainer, data, layers = run.trainer, run.data, run.layers
    progress, verified = trainer.progress, is_binary(run.network)
    validated = data.validation and progress.best_epoch
    return {
        "error": error,
        "overrides": run.plan.overrides,
        "plugins": plugins.facts(run.config.get("plugins")),
        **({"beginning": trainer.beginning} if trainer.beginning else {}),
        "epochs": len(run.epochs),
        "test_accuracy": run.evaluation and run.evaluation["test_accuracy"],
        "best_test_accuracy": progress.best_test_accuracy if progress.best_epoch else None,
        **({"best_validation_accuracy": progress.best_accuracy} if validated else {}),
        "best_epoch": progress.best_epoch or None,
        "best_chosen_by": "validation" if data.validation else "test",
        "warnings": run.warnings,
        "binary_parameters": sum(layer.binary for layer in layers),
        "real_parameters": sum(layer.real for layer in layers),
        "bytes_as_bits": sum(layer.bytes_as_bits for layer in layers),
        "state_bytes": trainer.binary.state_bytes,
        "state_bytes_per_weight": trainer.binary.state_bytes / sum(layer.count for _, layer in binary_layers(run.network)),
        "memory": memory(trainer),
        "binary_verified": verified,
        "bits_sha256": bits_sha256(run.network) if verified else None,
        "train_seconds": sum(epoch["train_seconds"] for epoch in run.epochs),
        "seconds": run.seconds(),
        "seed": run.settings.seed,
        "device": str(trainer.device),
        "threads": torch.get_num_threads(),
        "precision": trainer.settings.engine.precision,
        "dataset": data.key,
        "classes": list(data.classes),
        "confusion": run.confusion.tolist() if run.confusion is not None else None,
        "layers": [asdict(layer) for layer in layers],
    }


def memory(trainer: "Trainer") -> dict[str, dict[str, int]] | None:
    """Returns the bytes of a step by use, for this run and for Adam with latent weights; None before the first step."""
    footprint = trainer.step.footprint
    if not footprint.rows:
        return None
    own = footprint.bytes(trainer.binary, *(real.optimizer for real in trainer.real))
    return {"run": asdict(own), "adam": asdict(footprint.under_adam(trainer.engine == "dense"))}


def is_binary(network: nn.Module) -> bool:
    """Returns True if all binary weights of the network are 0 or 1."""
    try:
        verify_binary(network)
    except NotBinary:
        return False
    return True
