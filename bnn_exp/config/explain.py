"""Mistakes in a configuration, in words: which key, what it was given, what it may be, which one was meant."""

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bnn_exp.config.migrate import MOVED

STRENGTH = "delta"  # the key that sets optimizer.delta
SYNONYMS = {"learning_rate": "lr", "batchsize": "batch_size", "bs": "batch_size"}  # of other tools


@dataclass(frozen=True)
class Key:
    """A dotted key of the configuration, the values it takes, and the choices of its group that have it.

    `text` tells whether its value is a name, a path or another text of the user's own.
    """

    name: str
    allowed: str
    choices: tuple[str, ...]
    text: bool = False


def keys(root: dict, node: dict | None = None, path: tuple[str, ...] = (), choices: tuple[str, ...] = ()) -> Iterator[Key]:
    """The keys of a JSON schema. One that several choices of a group have comes once for each."""
    node = root if node is None else node
    if "$ref" in node:
        node = root["$defs"][node["$ref"].rsplit("/", 1)[-1]]
    if "oneOf" in node:
        for choice in node["oneOf"]:
            yield from keys(root, choice, path, choices)
    elif "properties" in node:
        name = node["properties"].get("name", {})
        choices = tuple(name.get("enum", [name["const"]] if "const" in name else choices))
        for key, child in node["properties"].items():
            yield from keys(root, child, (*path, key), choices)
    else:
        yield Key(".".join(path), _in_words(node), choices, _is_text(node))


def mistake(error: Mapping[str, Any], raw: dict, known: list[Key]) -> str:
    """One line for one of pydantic's errors about the unresolved configuration `raw`."""
    path = [part for part in error["loc"] if isinstance(part, str)]  # a mistake in a list is one of its key
    if len(path) > 1 and path[1] == _lookup(raw, [path[0], "name"]):
        del path[1]  # pydantic puts the choice of a group in the path
    names = {key.name for key in known}
    path = next((path[:n] for n in range(1, len(path)) if ".".join(path[:n]) in names), path)  # without the kind of a value
    if error["type"].startswith("union_tag"):
        path.append("name")
    key = ".".join(path)
    if error["type"] == "unexpected_keyword_argument":
        return unknown_key(key, known)
    choice = _lookup(raw, [path[0], "name"])
    here = [k for k in known if k.name == key and (choice in k.choices or path[-1] == "name" or not k.choices)]
    allowed = " or ".join(dict.fromkeys(k.allowed for k in here)) or "the settings of one of its choices"
    if error["type"].startswith("missing"):
        return f"{key}: missing from the configuration\nallowed: {allowed}"
    value = _lookup(raw, path)
    if isinstance(value, str) and (own := re.fullmatch(r"\$\{strength:(.*)\}", value)):
        key, value = (key, own[1]) if raw.get("delta") is None else ("delta", raw["delta"])
    return f"{key}={_shown(value)} is not allowed\nallowed: {allowed}"


def unknown_key(name: str, known: list[Key]) -> str:
    """One or two lines for a key that the configuration does not have, or does not have with these choices."""
    if new := MOVED.get(name):
        return f"{name}: has moved\nallowed: {new}=…"
    elsewhere = sorted({choice for key in known if key.name == name for choice in key.choices})
    if elsewhere:
        return f"{name}: not a setting here\nallowed: with {name.split('.')[0]}={', '.join(elsewhere)}"
    if above := next((key for key in known if name.startswith(f"{key.name}.")), None):
        return f"{name}: no such setting\nallowed: {above.name}={above.allowed}"
    found = meant(name, known)
    found = [_with_choices(one, known) for one in found] if len(found) > 1 else found
    if any(one.startswith("optimizer.lr") for one in found):
        found.append(f"{STRENGTH} (the strength of most rules for bits)")
    return f"{name}: no such setting\n" + (f"did you mean {in_a_row(found)}?" if found else "`bnn-train --help` lists them all")


def meant(name: str, known: list[Key]) -> list[str]:
    """Returns the keys that an unknown one may stand for: all that end like it, else the nearest."""
    end = SYNONYMS.get(last := name.split(".")[-1], last)
    by_end: dict[str, dict[str, None]] = {}
    for key in known:
        by_end.setdefault(key.name.split(".")[-1], {})[key.name] = None
    if end != "name" and end in by_end:
        return sorted(by_end[end], key=lambda one: (one.count("."), one))
    if close := difflib.get_close_matches(name, [key.name for key in known], 1):
        return close
    return [one for near in difflib.get_close_matches(end, by_end, 1) for one in list(by_end[near])[:1]]


def in_a_row(words: list[str]) -> str:
    """["a", "b", "c"] → "a, b or c"."""
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _with_choices(name: str, known: list[Key]) -> str:
    """Returns a key, and the choices of its group that have it, where others do not."""
    group = name.split(".")[0]
    own = {choice for key in known if key.name == name for choice in key.choices}
    every = {choice for key in known if key.name.startswith(f"{group}.") for choice in key.choices}
    return f"{name} (with {group}={', '.join(sorted(own))})" if own != every else name


def _lookup(raw: Any, path: list[str]) -> Any:
    for part in path:
        raw = raw.get(part) if isinstance(raw, dict) else None
    return raw


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value) if value == "" else str(value)


def _is_text(node: dict) -> bool:
    """Whether a JSON schema takes texts that it does not list, alone or in a list."""
    parts = node.get("anyOf") or ([node["items"]] if "items" in node else [])
    return any(map(_is_text, parts)) or (node.get("type") == "string" and not {"enum", "const"} & node.keys())


def _in_words(node: dict) -> str:
    """The values of a JSON schema without properties: "a number ≥ 0 and ≤ 1"."""
    if "description" in node:
        return node["description"]
    if "anyOf" in node:
        return " or ".join(_in_words(choice) for choice in node["anyOf"])
    if "enum" in node:
        return ", ".join(map(str, node["enum"]))
    if "const" in node:
        return str(node["const"])
    if node.get("type") == "array":
        return f"a list of values, each {_in_words(node['items'])}"
    kinds = {"null": "null", "boolean": "true or false", "integer": "a whole number", "number": "a number"}
    limits = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    ranges = [f"{sign} {node[limit]:g}" for limit, sign in limits.items() if limit in node]
    return f"{kinds.get(node.get('type', ''), 'text')} {' and '.join(ranges)}".strip()
