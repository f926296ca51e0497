"""Checks that the pages name things that exist: links, paths, imports, settings, versions."""

import importlib
import pkgutil
import re
from pathlib import Path

import pytest
from helpers import ROOT

from bnn_exp import __version__
from bnn_exp.config.settings import known_keys

PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted((ROOT / "docs").glob("*.md"))
CURRENT = [page for page in PAGES if page.name != "CHANGELOG.md"]  # the changelog also names what is gone
FOLDERS = ("bnn_exp", "conf", "docs", "examples", "scripts", "tests")
OWN_SETTINGS = {"optimizer.patience", "model.width", "model.blocks"}  # of the plugins that the pages show
GROUPS = {key.name.split(".")[0] for key in known_keys() if "." in key.name}


def anchors(page: Path) -> set[str]:
    """Returns the anchors that GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_somewhere(page):
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("page", CURRENT, ids=lambda page: page.name)
def test_every_path_exists(page):
    for path in re.findall(rf"(?<![\w/.])(?:{'|'.join(FOLDERS)})/[\w./-]*", page.read_text()):
        placeholder = re.search("[A-Z]{4}", path)  # conf/GROUP/NAME.yaml
        assert placeholder or (ROOT / path.rstrip(".")).exists(), path


@pytest.mark.parametrize("page", CURRENT, ids=lambda page: page.name)
def test_every_module_and_name_can_be_imported(page):
    text = page.read_text()
    for module, names in re.findall(r"from (bnn_exp[\w.]*) import ([\w, ]+)", text):
        for name in names.split(","):
            assert hasattr(importlib.import_module(module), name.strip()), f"{module}: {name}"
    for dotted in re.findall(r"(?<![\w/.\"-])bnn_exp(?:\.\w+)+", text):
        pkgutil.resolve_name(dotted)  # raises if neither a module nor a name in one


@pytest.mark.parametrize("page", CURRENT, ids=lambda page: page.name)
def test_every_setting_exists(page):
    known = {key.name for key in known_keys()} | OWN_SETTINGS
    for key in re.findall(rf"(?<![\w.-])((?:{'|'.join(GROUPS)})\.[\w.]+)=", page.read_text()):
        assert key in known, key


def test_the_version_is_the_same_everywhere():
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^version: (.*)$", citation, re.MULTILINE)[1] == __version__
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("file", ["README.md", "CONTRIBUTING.md", ".ci/run", ".github/workflows/ci.yml"])
def test_all_install_and_test_alike(file):
    text = (ROOT / file).read_text()
    assert re.search(r"pip install (-q |-e )?'\.\[test\]'", text) and re.search(r"\bpytest\b", text)
