"""How a mistake in the configuration is told: where it is, what would be right, what was meant. Pure.

The schema comes as plain JSON Schema. No message made here repeats a string that stands in a value: it may
be a secret at the wrong place.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gruard.daemon.config_toml import KeyPath, quoted_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

#: Longest piece of a foreign key that a message repeats.
SHOWN_KEY_CHARACTERS = 60

#: Numbers above it are not repeated in messages: nobody reads them.
_LARGEST_SHOWN = 10**15

_NUMBERS = ("integer", "number")
_KINDS = {
    bool: "a boolean",
    int: "a number",
    float: "a number",
    str: "a string",
    list: "an array",
    dict: "a table",
}


class FaultsError(ValueError):
    """Mistakes that a check of a whole table found, each at a path below that table."""

    def __init__(self, faults: Sequence[tuple[KeyPath, str]]) -> None:
        super().__init__("; ".join(sentence for _, sentence in faults))
        self.faults = tuple(faults)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value was given: "gruard.toml:12", "GRUARD_MQTT__PORT", "credential mqtt_password"."""

    label: str
    line: float = math.inf  # infinity: not in the file

    @property
    def in_file(self) -> bool:
        """Whether TOML was read there, with its types; the environment has only text."""
        return math.isfinite(self.line)


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake, as one line of text."""

    place: Place
    path: KeyPath  # empty: the whole place is at fault
    sentence: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.place.label, dotted(self.path), self.sentence) if part)


def render(problems: Iterable[Problem]) -> str:
    """One line per problem: in the order of the file, then what is not in the file by name."""
    ordered = sorted(problems, key=lambda problem: (problem.place.line, str(problem)))
    return "\n".join(dict.fromkeys(map(str, ordered)))


def dotted(path: KeyPath) -> str:
    """A key path as a person writes it, always on one line: `sources[0].rename."a b"`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            shown = quoted_key(shortened(part))
            text += f".{shown}" if text else shown
    return text


def shortened(key: str) -> str:
    """A foreign key or name, cut where it would fill the screen."""
    return key if len(key) <= SHOWN_KEY_CHARACTERS else key[:SHOWN_KEY_CHARACTERS] + "..."


def closest(word: str, known: Iterable[str]) -> str | None:
    """The known word that `word` was probably meant to be, or None."""
    folded = {name.lower(): name for name in known}
    found = difflib.get_close_matches(word.lower().replace("-", "_"), folded, n=1, cutoff=0.6)
    return folded[found[0]] if found else None


def choice_of(known: Iterable[str], word: str | None = None) -> str:
    """The allowed names, to be put behind "must be", and which of them `word` was probably meant to be."""
    known = list(known)
    guess = closest(word, known) if word else None
    names = ", ".join(f'"{name}"' for name in known)
    return f"one of {names}" + (f', did you mean "{guess}"?' if guess else "")


class Shape:
    """The schema, asked by key path. `schema` is JSON Schema with `$defs`."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._schema = schema

    def node(self, path: KeyPath) -> Mapping[str, Any]:
        """The schema of one key without its `null`; empty for a path that is not known."""
        node = self._resolved(self._schema)
        for part in path:
            inner = node.get("items") if isinstance(part, int) else node.get("properties", {}).get(part)
            if inner is None and isinstance(node.get("additionalProperties"), dict):
                inner = node["additionalProperties"]
            node = self._resolved(inner or {})
        return node

    def tables(self, path: KeyPath = ()) -> Iterator[KeyPath]:
        """Paths of all tables, the root first; of an array of tables the path of its element 0."""
        yield path
        for key in self.node(path)["properties"]:
            for below in ((*path, key), (*path, key, 0)):
                if "properties" in self.node(below):
                    yield from self.tables(below)

    def leaves(self) -> Iterator[KeyPath]:
        """Paths of all keys outside arrays that hold a value or an array."""
        for table in self.tables():
            for key in self.node(table)["properties"]:
                if "properties" not in self.node((*table, key)) and 0 not in table:
                    yield (*table, key)

    def is_secret(self, path: KeyPath) -> bool:
        """Whether the value must never be shown."""
        return self.node(path).get("format") == "password"

    def expected(self, path: KeyPath) -> str:
        """What a key wants, to be put behind "must be"."""
        node = self.node(path)
        if "enum" in node:
            return choice_of(node["enum"])
        if "minimum" in node:
            return f"{node['minimum']}..{node['maximum']}"
        if node.get("type") == "array":
            return "an array of tables" if "properties" in self.node((*path, 0)) else "an array of strings"
        names = {"boolean": "true or false", "integer": "a whole number", "object": "a table"}
        return names.get(node.get("type", ""), "a string")

    def _resolved(self, node: Mapping[str, Any]) -> Mapping[str, Any]:
        for choice in node.get("anyOf", ()):
            if choice.get("type") != "null":
                node = choice
        return self._schema["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node


def told(
    errors: Iterable[Mapping[str, Any]],
    shape: Shape,
    value_at: Callable[[KeyPath], object],
    place_of: Callable[[KeyPath], Place],
) -> Iterator[Problem]:
    """One problem for each mistake in the validation errors (pydantic's `errors()`)."""
    for error in errors:
        path = tuple(error["loc"])
        reason = error.get("ctx", {}).get("error")
        if error["type"] == "default_factory_not_called":
            continue  # follows from another error
        if isinstance(reason, FaultsError):
            for below, sentence in reason.faults:
                yield Problem(place_of(path + below), path + below, sentence)
            continue
        place = place_of(path)
        if error["type"] == "extra_forbidden":
            sentence = _unknown(path, shape)
        elif error["type"] == "missing":
            sentence = "is required"
        elif isinstance(reason, ValueError):
            sentence = str(reason)
        else:
            sentence = _mismatch(path, shape, value_at(path), in_file=place.in_file)
        yield Problem(place, path, sentence)


def _unknown(path: KeyPath, shape: Shape) -> str:
    word = str(path[-1]).replace("-", "_")
    homes = [table for table in shape.tables() if word in shape.node(table)["properties"]]
    home = path[:-1]
    same_table = [table for table in homes if _without_places(table) == _without_places(home)]
    if homes and not same_table:
        return "unknown key here, it belongs " + " or ".join(map(_header, homes))
    guess = closest(word, shape.node(home).get("properties", ()))
    return f'unknown key, did you mean "{guess}"?' if guess else "unknown key"


def _without_places(path: KeyPath) -> KeyPath:
    return tuple(part for part in path if isinstance(part, str))


def _header(table: KeyPath) -> str:
    if not table:
        return "at the top, above the first [table]"
    name = ".".join(map(str, _without_places(table)))
    return f"into [[{name}]]" if 0 in table else f"into [{name}]"


def _mismatch(path: KeyPath, shape: Shape, value: object, *, in_file: bool) -> str:
    node = shape.node(path)
    if isinstance(value, str) and "enum" in node:
        return f"must be {choice_of(node['enum'], value)}"
    if isinstance(value, float) and node.get("type") == "integer":
        return f"must be a whole number {shape.expected(path)}, not {value}"
    return f"must be {shape.expected(path)}{_instead(path, node, value, in_file=in_file)}"


def _instead(path: KeyPath, node: Mapping[str, Any], value: object, *, in_file: bool) -> str:
    """What was given instead, and what to do about the usual slips; empty where it says nothing new."""
    wanted = node.get("type")
    if isinstance(value, str):
        if not in_file:
            return ""  # the environment has nothing but strings
        return ", not a string" + (" (write it without quotes)" if wanted in {*_NUMBERS, "boolean"} else "")
    if wanted in _NUMBERS and type(value) in {int, float}:
        return "" if isinstance(value, int) and abs(value) > _LARGEST_SHOWN else f", not {value}"
    hint = " (write [[sources]])" if path == ("sources",) and isinstance(value, dict) else ""
    return f", not {_KINDS.get(type(value), 'a date or time')}{hint}"
