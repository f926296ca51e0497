"""bnn-train: compose, validate, hand over. Until a run begins it imports Hydra alone, so that --help is instant."""

import os
import re
import secrets
import sys
import traceback
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import OverrideParseException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from bnn_exp import __version__, distributed
from bnn_exp.errors import RankLost, UserError

if TYPE_CHECKING:
    from bnn_exp.plan import Plan

PACKAGE = Path(__file__).resolve().parent
CONF = next(folder for folder in (PACKAGE / "conf", PACKAGE.parent / "conf") if folder.is_dir())
FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130  # exit codes

_checked: list["Plan"] = []  # what Preflight made for the one job of this command
_codes: list[int] = []  # exit codes of the jobs that did not end well


def main() -> int:
    """The command. Returns its exit code: 0, or the worst of its jobs': 1 failed, 2 bad input, 130 interrupted."""
    if distributed.torchrun_rank() > 0:
        from bnn_exp.distributed import launch

        return launch.follow_torchrun()
    with distributed.leading():
        return _main()


def _main() -> int:
    if sys.argv[1:] == ["--version"]:
        print(f"bnn-train {__version__}")
        return 0
    _checked.clear()
    _codes.clear()
    OmegaConf.register_new_resolver("run_directory", run_directory, use_cache=True, replace=True)
    OmegaConf.register_new_resolver("sweep_directory", sweep_directory, use_cache=True, replace=True)
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra's errors come here, to be said in a line
    try:
        _job()
    except KeyboardInterrupt:
        _codes or say("interrupted")
        _codes.append(INTERRUPTED)
    except Exception as error:  # Hydra's; a job says itself what is wrong with it
        if before not in (None, "", "0"):
            raise
        say(in_words(error))
        _codes.append(BAD_INPUT)
    finally:
        os.environ.pop("HYDRA_FULL_ERROR") if before is None else os.environ.update(HYDRA_FULL_ERROR=before)
    return max(_codes, default=0)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def _job(composed: DictConfig) -> None:
    """One run: the one of this command, or one of a sweep. What goes wrong with it does not stop a sweep."""
    directory = Path(HydraConfig.get().runtime.output_dir)
    try:
        plan = _checked.pop() if _checked else _plan_in(directory, composed)
        from bnn_exp.distributed.launch import ranks_of  # and torch with it
        from bnn_exp.run import Run

        with ranks_of(plan, directory) as ranks:
            status = Run(plan, directory, ranks).execute()["status"]
    except UserError as error:
        say(str(error))
        _codes.append(BAD_INPUT)
    except RankLost as error:
        say(f"failed: {error}; bnn-train resume={directory} goes on from the last epoch")
        _codes.append(FAILED)
    except Exception as error:
        say(f"failed: {error or type(error).__name__}\n{directory / 'train.log'} says more")
        _codes.append(FAILED)
    else:
        if status == "interrupted":
            _codes.append(INTERRUPTED)
            raise KeyboardInterrupt  # which ends a sweep too


def _plan_in(directory: Path, composed: DictConfig) -> "Plan":
    """The plan of a job of a sweep; one that can't be leaves its reason in its directory."""
    from bnn_exp.plan import make_plan
    from bnn_exp.records import summary

    try:
        return make_plan(composed, HydraConfig.get().overrides.task)
    except UserError as error:
        summary.write(directory, "failed", error=str(error))
        raise


class Preflight(Callback):
    """Checks a run before Hydra makes its directory, so that bad input leaves nothing behind."""

    def on_run_start(self, config: DictConfig, **_) -> None:
        from bnn_exp.plan import make_plan

        task = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
        try:
            plan = make_plan(task, config.hydra.overrides.task)
        except UserError as error:
            _leave(str(error), BAD_INPUT)
        except Exception:  # Hydra would only warn of it
            traceback.print_exc()
            sys.exit(FAILED)
        if plan.finished:
            _leave(plan.finished, 0)
        _checked.append(plan)

    def on_multirun_start(self, config: DictConfig, **_) -> None:
        if distributed.torchrun_size() > 1:
            _leave(
                "-m under torchrun: its processes are for one run, not for a sweep\n"
                "allowed: bnn-train -m … trainer.devices=N without torchrun, or torchrun without -m",
                BAD_INPUT,
            )
        if config.get("resume"):
            _leave(f"resume={config.resume}: can't be swept over\nallowed: bnn-train resume=RUN, without -m", BAD_INPUT)


def _leave(message: str, code: int) -> NoReturn:
    say(message)
    sys.exit(code)


def run_directory(resume: str | None, name: str) -> str:
    """Where a run goes: the directory that it resumes, else one that no other run has."""
    return resume or f"{_now()}-{name}-{secrets.token_hex(2)}"


def sweep_directory() -> str:
    return f"{_now()}-sweep-{secrets.token_hex(2)}"


def _now() -> str:
    return datetime.now().strftime("outputs/%Y-%m-%d/%H-%M-%S.%f")


def say(message: str) -> None:
    print(f"bnn-train: {message}", file=sys.stderr)


def in_words(error: Exception) -> str:
    """A line or two for what Hydra or the file system refuses."""
    text = str(error)
    if match := re.search(r"Could not (?:override|delete from config|append to config|delete).*?'([^']+)'", text):
        from bnn_exp import config, explain

        return explain.unknown_key(match[1].partition("=")[0], config.keys())
    if match := re.search(r"Could not find '([^']+)/([^'/]+)'", text):
        choices = re.findall(r"^\t(\S+)$", text, re.MULTILINE)
        return f"{match[1]}={match[2]}: no such choice\nallowed: {', '.join(choices)}"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: can't be read as KEY=VALUE\n{text.splitlines()[0]}"
    if isinstance(error, OSError):
        return f"{error.filename}: can't be written ({error.strerror})\nallowed: hydra.run.dir=FOLDER where you may write"
    return "\n".join(line.strip() for line in text.splitlines()[:2])
