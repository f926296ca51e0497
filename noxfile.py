"""Runs the tests with each set of versions of docs/versions.md: `nox -s lowest`, or `nox -l` for a list (`pip install nox`).

Each set has its own environment. An environment with torch from PyPI takes 5 GB on Linux, since it includes CUDA.
Arguments after `--` go to pytest: `nox -s lowest -- -m slow`.
"""

import nox
from packaging.requirements import Requirement

nox.options.sessions = ["lowest", "torch", "newest"]
nox.options.default_venv_backend = "venv"
PROJECT = nox.project.load_toml("pyproject.toml")["project"]


def lowest_of(requirements: list[str]) -> list[str]:
    """Returns each requirement `name>=version` as `name==version`."""
    found = map(Requirement, requirements)
    return [f"{r.name}=={s.version}" for r in found for s in r.specifier if s.operator == ">="]


def suite(session: nox.Session, *versions: str) -> None:
    """Installs the project with the given versions, prints all installed versions, and runs the tests."""
    session.install(*versions, ".[test]")
    session.run("pip", "list", "--format=freeze")
    session.run("pytest", "-q", *session.posargs)


@nox.session(python="3.11")
def lowest(session: nox.Session) -> None:
    """Tests the lowest version of each package that pyproject.toml allows."""
    suite(session, *lowest_of(PROJECT["dependencies"]))


@nox.session
@nox.parametrize(
    ("python", "version"), [("3.12", "2.11.0"), ("3.11", "2.13.0"), ("3.12", "2.14.1")], ids=["2.11", "2.13", "2.14"]
)
def torch(session: nox.Session, version: str) -> None:
    """Tests versions of torch between the lowest and the newest, with the newest version of every other package."""
    suite(session, f"torch=={version}")


@nox.session(python="3.13")
def newest(session: nox.Session) -> None:
    """Tests the newest version of each package, and the newest release candidate of Hydra."""
    session.install("hydra-core>=1.4.0rc1")
    suite(session, "torch")
