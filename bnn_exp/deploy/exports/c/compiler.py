"""Compiles exported C code with the compiler of this machine, and runs it."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

from bnn_exp.errors import UserError


def build(folder: Path, *arguments: str) -> None:
    """Runs the C compiler, $CC or cc, in `folder` with `arguments`.

    Raises:
        UserError: there is no such compiler, or it fails.
    """
    compiler = shlex.split(os.environ.get("CC", "cc"))
    if not compiler or shutil.which(compiler[0]) is None:
        raise UserError(
            f"export.format=c: there is no C compiler {os.environ.get('CC', 'cc')!r} to check the export with\n"
            "allowed: one named by the environment variable CC, or cc"
        )
    command = [*compiler, "-std=c99", "-O2", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, encoding="utf-8", errors="replace")
    if done.returncode:
        said = (done.stderr.splitlines() or [f"exit code {done.returncode}"])[0]
        raise UserError(
            f"export.format=c: {shlex.join(command)} failed: {said}\n"
            "allowed: a compiler of C99, named by the environment variable CC"
        )


def output(program: Path, *arguments: str | Path) -> str:
    """Returns the text that a compiled program prints.

    Raises:
        UserError: the program fails.
    """
    done = subprocess.run([program, *arguments], capture_output=True, text=True, encoding="utf-8", errors="replace")
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise UserError(f"export.format=c: the compiled program ended with exit code {done.returncode}: {(said or [''])[0]}")
    return done.stdout
