"""Recognises a dataset by the key that version 0.1.0 wrote into checkpoints. Newer keys depend on the content alone."""

import hashlib
import json
from pathlib import Path
from typing import Any

from bnn_exp.config.datasets import DATASETS
from bnn_exp.data.sources import DIGITS
from bnn_exp.records.files import file_sha256

FORMAT = b"2"
DATA_FILES = {".parquet", ".arrow", ".json", ".jsonl", ".csv", ".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tar", ".zip"}


def are_same(saved: str, key: str, dataset: Any) -> bool:
    """Returns True if `saved`, the key of a dataset in a checkpoint, stands for the present data.

    Args:
        key: the key of the present data, which were read with the settings `dataset`.
    """
    return saved == key or (dataset.name not in DATASETS and saved == old_key(dataset))


def old_key(dataset: Any) -> str:
    """Returns the key that version 0.1.0 computed from a dataset's settings: from the bytes of a folder's files, or from the
    hub name."""
    if dataset.name == "digits":
        return _key(DIGITS.read_bytes())
    where = _digests(Path(dataset.path)) if dataset.path else [f"hub {dataset.hub}".encode()]
    return _key(*where, json.dumps([dataset.label, dataset.size]).encode())


def _key(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join([FORMAT, *parts])).hexdigest()


def _digests(folder: Path) -> list[bytes]:
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in DATA_FILES and file.is_file())
    return [f"{file.relative_to(folder)} {file_sha256(file)}".encode() for file in files]
