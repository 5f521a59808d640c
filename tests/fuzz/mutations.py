"""Inputs from a seed, drawn fast and blindly: bytes, damaged bytes, JSON from a grammar."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

#: What parsers of text trip over, put in as it is.
TOKENS = [
    *(b"NaN", b"Infinity", b"-Infinity", b"1e400", b"-1e400", b"1e308", b"5e-324", b"-0", b"-0.0", b"1e15"),
    *(b"true", b"false", b"null", b"{}", b"[]", b"[[", b"]]", b"{", b"}", b'"', b'""', b":", b",", b"\\"),
    *(
        b"\\ud800",
        b"\\udc00",
        b"\\u0000",
        b"\xed\xa0\x80",
        b"\xc0\x80",
        b"\xef\xbb\xbf",
        b"\xff\xfe",
        b"\x00",
    ),
    *(b"9" * 20, b"9" * 400, b"0" * 20, b"1700000000", b"9007199254740993", b"253402300800", b"-1", b"."),
    *(b"2023-11-14T22:13:20Z", b"2023-02-30T00:00:00Z", b"\n", b"\r\n", b"\x1b[31m", "\u202e".encode()),
    *(b"#", b"+", b"/", b"..", b"%s", b"{0}", b"=", b"[[sources]]\n", b"'''", b'"""', b"# ", b"e", b"E"),
]

_KEYS = ["a", "b", "k", "ts", "value", "a.b", "0", "", "temperature", "é", "\ud800", "x" * 129, "\u202e"]
_ODD_NUMBERS = [
    *("0", "-0", "-0.0", "1e15", "1e16", "-1e308", "1e400", "5e-324", "NaN", "Infinity", "01", "+1", ".5"),
    *("1.", "1e", "9" * 19, "9" * 400, "1700000000", "1750000300", "1750000301", "1e11", "1e20", "0x1"),
]
_LITERALS = ["true", "false", "null", "True", "None", "nul"]


def random_bytes(rng: random.Random, most: int = 200) -> bytes:
    return rng.randbytes(rng.randrange(most + 1))


def damaged(rng: random.Random, seeds: Sequence[bytes], tokens: Sequence[bytes] = TOKENS) -> bytes:
    """One of the seeds with one to six changes."""
    content = bytearray(rng.choice(seeds))
    for _ in range(rng.randrange(1, 7)):
        rng.choice(_CHANGES)(rng, content, seeds, tokens)
    return bytes(content)


def _flip(rng: random.Random, content: bytearray, *_: object) -> None:
    if content:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def _replace(rng: random.Random, content: bytearray, *_: object) -> None:
    if content:
        content[rng.randrange(len(content))] = rng.randrange(256)


def _cut(rng: random.Random, content: bytearray, *_: object) -> None:
    at, length = _span(rng, content)
    del content[at : at + length]


def _end(rng: random.Random, content: bytearray, *_: object) -> None:
    del content[rng.randrange(len(content) + 1) :]


def _repeat(rng: random.Random, content: bytearray, *_: object) -> None:
    at, length = _span(rng, content)
    content[at:at] = content[at : at + length] * rng.choice((1, 1, 2, 30))


def _zero(rng: random.Random, content: bytearray, *_: object) -> None:
    at, length = _span(rng, content)
    content[at : at + length] = bytes(len(content[at : at + length]))


def _insert(rng: random.Random, content: bytearray, _: Sequence[bytes], tokens: Sequence[bytes]) -> None:
    at = rng.randrange(len(content) + 1)
    content[at:at] = rng.choice(tokens)


def _overwrite(rng: random.Random, content: bytearray, _: Sequence[bytes], tokens: Sequence[bytes]) -> None:
    token = rng.choice(tokens)
    at = rng.randrange(len(content) + 1)
    content[at : at + len(token)] = token


def _splice(rng: random.Random, content: bytearray, seeds: Sequence[bytes], _: Sequence[bytes]) -> None:
    other = rng.choice(seeds)
    at, length = _span(rng, other)
    place = rng.randrange(len(content) + 1)
    content[place:place] = other[at : at + length]


def _span(rng: random.Random, content: bytes | bytearray) -> tuple[int, int]:
    at = rng.randrange(len(content) + 1)
    return at, rng.choice((1, 2, 4, 8, rng.randrange(len(content) + 1)))


_CHANGES: list[Callable[[random.Random, bytearray, Sequence[bytes], Sequence[bytes]], None]] = [
    *(_flip, _replace, _cut, _end, _repeat, _zero, _insert, _insert, _overwrite, _splice)
]


def grammatical(rng: random.Random) -> bytes:
    """A JSON text by the grammar, or nearly: one in some dozens of its parts breaks a rule."""
    text = rng.choice((_object, _object, _object, _array, _value))(rng, rng.randrange(1, 6))
    return text.encode("utf-8", "surrogatepass")


def _value(rng: random.Random, depth: int) -> str:
    kind = rng.randrange(12)
    if kind < 2 and depth:
        return _object(rng, depth - 1)
    if kind == 2 and depth:
        return _array(rng, depth - 1)
    if kind < 8:
        return repr(rng.choice((rng.uniform(-100, 100), rng.randrange(-1000, 1000), rng.gauss(0, 1e12))))
    if kind == 8:
        return rng.choice(_ODD_NUMBERS)
    if kind == 9:
        return rng.choice(_LITERALS[:3] if rng.random() < 0.9 else _LITERALS)
    return json.dumps(rng.choice(_KEYS), ensure_ascii=rng.random() < 0.9)


def _object(rng: random.Random, depth: int) -> str:
    members = (
        f"{json.dumps(rng.choice(_KEYS))}{_mark(rng, ':')}{_value(rng, depth)}"
        for _ in range(rng.randrange(6))
    )
    return f"{{{_mark(rng, ',').join(members)}{_mark(rng, '}')}"


def _array(rng: random.Random, depth: int) -> str:
    if rng.random() < 0.1:
        return f"[{','.join(['1.5'] * rng.choice((64, 65, 300)))}]"
    items = [_value(rng, depth) for _ in range(rng.randrange(5))]
    return f"[{_mark(rng, ',').join(items)}{_mark(rng, ']')}"


def _mark(rng: random.Random, mark: str) -> str:
    return mark if rng.random() < 0.99 else rng.choice(("", mark * 2, ";", " ", "\n" + mark))
