"""Lists the dotted keys of the configuration, and describes in words which values each key takes. Imports no torch."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

TYPES = {"null": "null", "boolean": "true or false", "integer": "a whole number", "number": "a number"}
LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


@dataclass(frozen=True)
class Key:
    """A dotted key of the configuration, such as `model.hidden_size`."""

    name: str
    allowed: str  # the values that the key takes, in words
    choices: tuple[str, ...]  # the choices of the key's group (such as model) that have the key
    text: bool = False  # True if the value is free text: a name, a path, …


def keys_of(
    root: dict[str, Any], node: dict[str, Any] | None = None, path: tuple[str, ...] = (), choices: tuple[str, ...] = ()
) -> Iterator[Key]:
    """Yields the keys of a JSON schema. A key that several choices of a group have comes once for each choice.

    Args:
        root: the whole schema, which holds the definitions.
        node: the part of the schema under the key `path`; None: the whole schema.
        path: the parts of the dotted key that leads to `node`.
        choices: the choices of the group that have the part `node`.
    """
    node = root if node is None else node
    if "$ref" in node:
        node = root["$defs"][node["$ref"].rsplit("/", 1)[-1]]
    if "oneOf" in node:
        for choice in node["oneOf"]:
            yield from keys_of(root, choice, path, choices)
    elif "properties" in node:
        name = node["properties"].get("name", {})
        choices = tuple(name.get("enum", [name["const"]] if "const" in name else choices))
        for key, child in node["properties"].items():
            yield from keys_of(root, child, (*path, key), choices)
    else:
        yield Key(".".join(path), _in_words(node), choices, _is_text(node))


def _is_text(node: dict[str, Any]) -> bool:
    """Returns True if a JSON schema takes free text, alone or in a list."""
    parts = node.get("anyOf") or ([node["items"]] if "items" in node else [])
    return any(map(_is_text, parts)) or (node.get("type") == "string" and not {"enum", "const"} & node.keys())


def _in_words(node: dict[str, Any]) -> str:
    """Returns, in words, the values that a JSON schema without properties takes, such as "a number ≥ 0 and ≤ 1"."""
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
    ranges = [f"{sign} {node[limit]:g}" for limit, sign in LIMITS.items() if limit in node]
    return f"{TYPES.get(node.get('type', ''), 'text')} {' and '.join(ranges)}".strip()
