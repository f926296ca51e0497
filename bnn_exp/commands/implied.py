"""Adds the overrides that a command line implies but does not contain. Imports no torch."""

from contextlib import AbstractContextManager, nullcontext

from bnn_exp.config import command_line, plugins

NAMES_A_RUN = {"config", "init_from", "from", "resume", "sweep.resume"}
NAMES_A_RULE = {"optimizer", "experiment", "config", "init_from"}


def completed(arguments: list[str]) -> list[str]:
    """Returns the words of a command line, without the command, with all implied overrides."""
    return _with_program(_with_the_rule_of_masks(_with_path_of_any_dataset(arguments)))


def inherited(overrides: list[str], folder: str | None) -> AbstractContextManager[list[str]]:
    """Context manager: while its body runs, Hydra composes the settings that the command inherits from an earlier run.

    Loads the plugins first. Yields a list of plugins that the caller must add to the command line. The list is empty unless an
    experiment names a plugin by a path relative to the experiment's file.

    Args:
        overrides: the overrides of the command line.
        folder: the folder that --config-dir names.

    Raises:
        UserError: the run or a plugin can't be read.
    """
    plugins.load_installed()
    given = command_line.keys(overrides).keys()
    if not (NAMES_A_RUN | {"plugins", "experiment"}) & given and not plugins.program():
        return nullcontext([])
    from bnn_exp.records import inherit

    return inherit.inherited(overrides, folder)


def _with_program(arguments: list[str]) -> list[str]:
    """Adds the running program to an override `plugins=…`, if the program registers rules, models or the like."""
    own, given = plugins.program(), [i for i, argument in enumerate(arguments) if argument.startswith("plugins=")]
    if not own or not given:
        return arguments
    named = command_line.values([arguments[given[-1]]], "plugins")
    added = [entry for entry in own if entry not in plugins.entries(named)]
    others = [argument for i, argument in enumerate(arguments) if i not in given]
    return [*others, command_line.override("plugins", [*named, *added])] if added else arguments


def _with_path_of_any_dataset(arguments: list[str]) -> list[str]:
    """Makes Hydra accept `dataset.path` beside `resume=RUN`, although the dataset of the run is not known yet."""
    resumed = any(argument.startswith("resume=") for argument in arguments)
    named = any(argument.startswith("dataset=") for argument in arguments)
    if not resumed or named:
        return arguments
    return ["++" + argument if argument.startswith("dataset.path=") else argument for argument in arguments]


def _with_the_rule_of_masks(arguments: list[str]) -> list[str]:
    """Adds `optimizer=hypermask` before `optimizer.mask=…` if no override chooses a rule. Only HyperMask has masks."""
    given = command_line.keys(arguments)
    if NAMES_A_RULE & given.keys() or "optimizer.mask" not in given:
        return arguments
    beside = next(i for i, argument in enumerate(arguments) if argument.lstrip("+").startswith("optimizer.mask="))
    return [*arguments[:beside], "optimizer=hypermask", *arguments[beside:]]
