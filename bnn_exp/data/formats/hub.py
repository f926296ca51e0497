"""Loads a dataset from the Hugging Face hub with the library `datasets`."""

import os
import threading
import urllib.error
import urllib.request
from errno import ENOSPC, EROFS

from bnn_exp.data.formats.arrow_table import HubSplit
from bnn_exp.data.formats.parquet import rows_of
from bnn_exp.data.undecoded import Rows, Source
from bnn_exp.errors import UserError

PROBE_SECONDS = 2.5  # time limit for the first answer of the hub; `datasets` itself gives up only after 25 s


def load(name: str, hub: str, label: str | None) -> dict[str, Rows]:
    """Returns the rows of each split of a dataset on the hub.

    Args:
        name: the name of the dataset in the configuration.
        hub: OWNER/NAME or OWNER/NAME:CONFIGURATION on the hub.
        label: the column of the classes; None to find the column.

    Raises:
        UserError: the hub can't be reached and no copy was downloaded before, or the download folder can't be written.
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
    except Exception as error:  # without a network, the libraries below `datasets` raise exceptions of many types
        if isinstance(error, PermissionError) or (isinstance(error, OSError) and error.errno in (ENOSPC, EROFS)):
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
    """Returns a dataset of the hub as a `Source`, with the arguments of `load`. Its list of files is empty, because the library
    `datasets` manages the download."""
    from pathlib import Path

    return Source(f"dataset={name} ({hub})", Path(), [], lambda _: load(name, hub, label))


def _answers() -> bool:
    """Returns True if the hub answers within PROBE_SECONDS, including the name look-up. The request uses the proxy of the
    environment."""
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
