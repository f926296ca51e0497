"""Follows docs/deploy.md from its first command to its last, in an empty folder."""

import csv
import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec

import pytest
from helpers import COMMAND, ROOT

PAGE = (ROOT / "docs/deploy.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def run(folder, program: str) -> str:
    """Runs a shell script with the commands of this installation. Returns what it prints."""
    for name, command in (("bnn-train", COMMAND), ("python", [sys.executable])):
        program = re.sub(rf"^{name} ", f"{shlex.join(map(str, command))} ", program, flags=re.MULTILINE)
    done = subprocess.run(["bash", "-euc", program], cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{program}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_from_photos_to_firmware(tmp_path):
    """The C program classifies every photo as `task=predict` does, and each export and each build says that it is right."""
    pytest.importorskip("onnxruntime")
    printed = ""
    for language, text in BLOCKS:
        if "format=qonnx" in text and find_spec("qonnx") is None:
            continue
        if language == "sh":
            printed += run(tmp_path, text.replace("trainer.epochs=15", "trainer.epochs=4"))
        elif language == "python":
            (tmp_path / "program.py").write_text(text)
            printed += run(tmp_path, "python program.py")
        elif text.startswith("/* camera.c */"):
            (tmp_path / "camera.c").write_text(text)
    assert "4 of 4 test vectors are equal" in printed
    with (tmp_path / "answers/predictions.csv").open() as file:
        expected = {row["file"].removesuffix(".png"): row["class"] for row in csv.DictReader(file)}
    answers = dict(re.findall(r"^(\S+)\.ppm (\w+)$", printed, re.MULTILINE))
    assert answers == expected and len(answers) == 30
