"""TOML as text: on which line a key stands, and writing a tree of values back. Pure.

The standard library's TOML reader gives values without positions. `key_lines` walks a text that this reader
has accepted, so it may take the grammar for granted and only follows keys, brackets and strings.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: Path of a key from the root; a number is the place in an array: ("sources", 0, "topic").
KeyPath = tuple[str | int, ...]

_TOKEN = re.compile(
    r"""
      (?P<comment> \#[^\n]* )
    | (?P<newline> \n )
    | (?P<string> \"{3}(?:\\.|[^\\])*?\"{3,5} | '{3}.*?'{3,5} | "(?:\\.|[^"\\\n])*" | '[^'\n]*' )
    | (?P<mark> [\[\]{}=,.] )
    | (?P<bare> [^\s\[\]{}=,."'\#]+ )
    """,
    re.VERBOSE | re.DOTALL,
)
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def key_lines(text: str) -> dict[KeyPath, int]:
    """Line (from 1) on which each key, table and array element of a valid TOML text begins."""
    return _Scanner(text).document()


class _Scanner:
    """Follows the statements of a TOML text and notes where each key begins."""

    def __init__(self, text: str) -> None:
        self._tokens: list[tuple[str, str, int]] = []
        line = 1
        for match in _TOKEN.finditer(text):
            if match.lastgroup != "comment":
                self._tokens.append((str(match.lastgroup), match.group(), line))
            line += match.group().count("\n")
        self._tokens.append(("end", "", line))
        self._at = 0
        self._arrays: dict[KeyPath, int] = {}  # array of tables -> index of its newest element
        self._lines: dict[KeyPath, int] = {}

    def document(self) -> dict[KeyPath, int]:
        table: KeyPath = ()
        while self._peek()[0] != "end":
            if self._peek()[0] == "newline":
                self._step()
            elif self._accept("["):
                table = self._header()
            else:
                self._pair(table)
        return self._lines

    def _header(self) -> KeyPath:
        is_array = self._accept("[")
        line = self._peek()[2]
        path = self._key(())
        if is_array:
            whole = self._newest(path[:-1]) + path[-1:]
            self._arrays[whole] = self._arrays.get(whole, -1) + 1
            path = (*whole, self._arrays[whole])
        else:
            path = self._newest(path)
        self._note(path, line)
        while self._accept("]"):
            pass
        return path

    def _pair(self, table: KeyPath) -> None:
        line = self._peek()[2]
        path = self._key(table)
        self._note(path, line)
        self._accept("=")
        self._value(path)

    def _key(self, path: KeyPath) -> KeyPath:
        while self._peek()[0] in {"bare", "string"} or self._peek()[1] == ".":
            group, token, _ = self._peek()
            self._step()
            if group != "mark":
                path += (_unquoted(token),)
        return path

    def _value(self, path: KeyPath) -> None:
        if self._accept("["):
            index = 0
            while not self._closes("]"):
                self._note((*path, index), self._peek()[2])
                self._value((*path, index))
                index += 1
        elif self._accept("{"):
            while not self._closes("}"):
                self._pair(path)
        else:  # a scalar: a string, or bare pieces such as 1.5 and 07:32:00.999
            self._step()  # always one, so that no text at all can hold us here
            while self._peek()[0] in {"bare", "string"} or self._peek()[1] == ".":
                self._step()

    def _closes(self, bracket: str) -> bool:
        while self._peek()[0] == "newline" or self._peek()[1] == ",":
            self._step()
        return self._accept(bracket) or self._peek()[0] == "end"

    def _newest(self, path: KeyPath) -> KeyPath:
        found: KeyPath = ()
        for part in path:
            found += (part,)
            if found in self._arrays:
                found += (self._arrays[found],)
        return found

    def _note(self, path: KeyPath, line: int) -> None:
        for length in range(1, len(path) + 1):
            self._lines.setdefault(path[:length], line)

    def _peek(self) -> tuple[str, str, int]:
        return self._tokens[self._at]

    def _step(self) -> None:
        self._at = min(self._at + 1, len(self._tokens) - 1)

    def _accept(self, mark: str) -> bool:
        if self._peek()[:2] == ("mark", mark):
            self._step()
            return True
        return False


def _unquoted(token: str) -> str:
    return next(iter(tomllib.loads(f"{token} = 0"))) if token[0] in "\"'" else token


def write_toml(tree: Mapping[str, object], comment: Callable[[KeyPath], str] | None = None) -> str:
    """TOML text of a tree, `comment` of each key behind its value; what is None becomes a comment too."""
    lines = _table(tree, (), comment)
    return "\n".join(lines).strip("\n") + "\n"


def quoted_key(key: str) -> str:
    """A key as TOML spells it, always on one line."""
    return key if _BARE_KEY.fullmatch(key) else _literal(key)


def _table(
    table: Mapping[str, object], path: KeyPath, comment: Callable[[KeyPath], str] | None
) -> Iterator[str]:
    for key, value in table.items():
        if value is None:
            yield f"# {quoted_key(key)} is not set"
        elif not _is_block(value, path):
            remark = f"  # {comment((*path, key))}" if comment else ""
            yield f"{quoted_key(key)} = {_literal(value)}{remark}"
    for key, value in table.items():
        if _is_block(value, path):
            yield from _block(key, value, path, comment)


def _is_block(value: object, path: KeyPath) -> bool:
    """Tables and arrays of tables get headers, but inside an element of an array they stay on their line."""
    is_tables = isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)
    return not any(isinstance(part, int) for part in path) and (isinstance(value, Mapping) or is_tables)


def _block(key: str, value: object, path: KeyPath, comment: Callable[[KeyPath], str] | None) -> Iterator[str]:
    header = ".".join(quoted_key(str(part)) for part in (*path, key))
    if isinstance(value, Mapping):
        yield from ("", f"[{header}]", *_table(value, (*path, key), comment))
    elif isinstance(value, list):
        for place, element in enumerate(value):
            yield from ("", f"[[{header}]]", *_table(element, (*path, key, place), comment))


def _literal(value: object) -> str:
    if isinstance(value, Mapping):
        pairs = ", ".join(f"{quoted_key(key)} = {_literal(inner)}" for key, inner in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{', '.join(map(_literal, value))}]"
    # JSON spells strings, numbers and booleans as TOML does, but for one character that TOML wants escaped
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
