"""Loads a dataset of the Hugging Face hub, by `datasets`."""

import os
import threading
import urllib.error
import urllib.request

from bnn_exp.data.formats.arrow_table import HubSplit
from bnn_exp.data.formats.parquet import rows_of
from bnn_exp.data.undecoded import Rows, Source
from bnn_exp.errors import UserError

PROBE_SECONDS = 2.5  # how long the hub may take to answer at all; `datasets` itself gives up only after 25 s


def load(name: str, hub: str, label: str | None) -> dict[str, Rows]:
    """Returns the rows of each split of OWNER/NAME, or OWNER/NAME:CONFIGURATION.

    Raises:
        UserError: the hub can't be reached and no earlier download is there, or its cache can't be written.
    """
    where = f"dataset={name} ({hub})"
    offline = not _answers()
    import datasets
    from huggingface_hub import constants

    datasets.disable_progress_bars()
    if offline:
        datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    repository, _, configuration = hub.partition(":")
    try:
        splits = datasets.load_dataset(repository, configuration or None)
    except Exception as error:  # whatever a missing network makes a deep stack of libraries raise
        if isinstance(error, PermissionError) or (isinstance(error, OSError) and error.errno in (28, 30)):  # full, read-only
            folder = error.filename or datasets.config.HF_DATASETS_CACHE
            raise UserError(
                f"{where}: the cache of downloads {folder} can't be written ({error.strerror})\n"
                "allowed: a writable folder with space, named by the variable HF_HOME"
            ) from error
        raise UserError(
            f"{where}: the Hugging Face hub can't be reached and holds no downloaded copy on this machine\n"
            f"two ways out: dataset.path=FOLDER with the files of {hub}, or dataset=digits, which is in the package"
        ) from error
    return {split: rows_of(HubSplit(rows), where, label) for split, rows in splits.items()}


def source(name: str, hub: str, label: str | None) -> Source:
    """Returns the dataset of the hub as a source without files of its own."""
    from pathlib import Path

    return Source(f"dataset={name} ({hub})", Path(), [], lambda _: load(name, hub, label))


def _answers() -> bool:
    """Returns whether the hub answers within PROBE_SECONDS, by whatever proxy the environment names; name look-up included."""
    answer = threading.Event()

    def probe() -> None:
        request = urllib.request.Request(os.environ.get("HF_ENDPOINT", "https://huggingface.co"), method="HEAD")
        try:
            urllib.request.urlopen(request, timeout=PROBE_SECONDS).close()
            answer.set()
        except urllib.error.HTTPError:
            answer.set()
        except (OSError, ValueError):
            pass
        finally:
            done.set()

    done = threading.Event()
    threading.Thread(target=probe, daemon=True).start()
    done.wait(PROBE_SECONDS)
    return answer.is_set()
