"""Measures one part, and writes its rows to FOLDER/PART.json, again after each row."""

import argparse
import json
from pathlib import Path

from gpu_parts import card, checks, cnn, inference, training
from gpu_parts.cases import Machine

PARTS = {
    "machine": card.of_machine,
    "tests": checks.of_tests,
    "epochs": training.of_epochs,
    "runs": training.of_runs,
    "engines": training.of_engines,
    "inference": inference.of_inference,
    "cnn": cnn.of_cnn,
    "accuracy": training.of_accuracy,
    "kernels": training.of_kernels,
    "counts": training.of_counts,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="gpu_parts", description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--data")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    rows = []
    for row in PARTS[given.part](Machine(given.device, given.data, given.out)):
        rows.append(row)
        (given.out / f"{given.part}.json").write_text(json.dumps(rows))
        print(row, flush=True)


if __name__ == "__main__":
    main()
