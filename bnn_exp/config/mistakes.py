"""Describes mistakes in a configuration: the key, its value, the allowed values, the key that was meant. Imports no torch."""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from bnn_exp.config.keys import Key
from bnn_exp.config.migrate import MOVED

STRENGTH = "delta"  # the key that sets optimizer.delta
SYNONYMS = {"learning_rate": "lr", "batchsize": "batch_size", "bs": "batch_size"}  # names in other tools: our names


def mistake(error: Mapping[str, Any], raw: dict[str, Any], known: Sequence[Key]) -> str:
    """Returns the message, one or two lines, for one of pydantic's errors.

    Args:
        error: an entry of `ValidationError.errors()`.
        raw: the configuration in which `${…}` is not yet replaced.
        known: every key of the configuration.
    """
    path = [part for part in error["loc"] if isinstance(part, str)]  # drops the index in a list: the message names the list
    if len(path) > 1 and path[1] == _lookup(raw, [path[0], "name"]):
        del path[1]  # pydantic adds the choice of a group, which is no part of the key
    names = {key.name for key in known}
    # Drops the type of a union, which pydantic adds behind the key.
    path = next((path[:n] for n in range(1, len(path)) if ".".join(path[:n]) in names), path)
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
    if isinstance(value, str) and (default := re.fullmatch(r"\$\{strength:(.*)\}", value)):
        key, value = (key, default[1]) if raw.get("delta") is None else ("delta", raw["delta"])
    return f"{key}={_shown(value)} is not allowed\nallowed: {allowed}"


def unknown_key(name: str, known: Sequence[Key]) -> str:
    """Returns the message, two lines, for a key `name` that does not exist, or only with other choices of its group."""
    if new := MOVED.get(name):
        return f"{name}: has moved\nallowed: {new}=…"
    elsewhere = sorted({choice for key in known if key.name == name for choice in key.choices})
    if elsewhere:
        group = name.split(".")[0]
        return f"{name}: not a setting of the chosen {group}\nallowed: with {group}={', '.join(elsewhere)}"
    if above := next((key for key in known if name.startswith(f"{key.name}.")), None):
        return f"{name}: no such setting\nallowed: {above.name}={above.allowed}"
    found = meant(name, known)
    found = [_with_choices(one, known) for one in found] if len(found) > 1 else found
    if any(one.startswith("optimizer.lr") for one in found):
        found.append(f"{STRENGTH} (the strength of most rules for bits)")
    return f"{name}: no such setting\n" + (f"did you mean {in_a_row(found)}?" if found else "`bnn-train --help` lists them all")


def meant(name: str, known: Sequence[Key]) -> list[str]:
    """Returns the keys that the user may mean by an unknown key: all keys with the same last part, else a similar key."""
    end = SYNONYMS.get(last := name.split(".")[-1], last)
    by_end: dict[str, dict[str, None]] = {}
    for key in known:
        by_end.setdefault(key.name.split(".")[-1], {})[key.name] = None
    if end != "name" and end in by_end:
        return sorted(by_end[end], key=lambda one: (one.count("."), one))
    if close := difflib.get_close_matches(name, [key.name for key in known], 1):
        return close
    return [one for near in difflib.get_close_matches(end, by_end, 1) for one in list(by_end[near])[:1]]


def in_a_row(words: Sequence[str]) -> str:
    """Returns `words` as one phrase, such as "a, b or c" for ["a", "b", "c"]."""
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _with_choices(name: str, known: Sequence[Key]) -> str:
    """Returns the key `name`, followed by the choices of its group that have the key, unless every choice has the key."""
    group = name.split(".")[0]
    having = {choice for key in known if key.name == name for choice in key.choices}
    every = {choice for key in known if key.name.startswith(f"{group}.") for choice in key.choices}
    return f"{name} (with {group}={', '.join(sorted(having))})" if having != every else name


def _lookup(raw: Any, path: list[str]) -> Any:
    for part in path:
        raw = raw.get(part) if isinstance(raw, dict) else None
    return raw


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value) if value == "" else str(value)
