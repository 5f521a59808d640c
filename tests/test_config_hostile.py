"""Configurations nobody would write: each is taken or refused in plain words, and no secret is repeated."""

from __future__ import annotations

import contextlib
import io
from typing import TYPE_CHECKING

import pytest

from gruard.daemon import cli
from gruard.daemon.errors import ConfigError
from gruard.daemon.settings import _SHAPE, _VARIABLES, Source, effective, load_traced

if TYPE_CHECKING:
    from pathlib import Path

CANARY = "canary-5f1c"
BAD_CONFIG = 78

#: The secret as a TOML value of every type, and in the little languages that values have.
VALUES = [
    f'"{CANARY}"',
    f'["{CANARY}"]',
    f'"{CANARY}/+/#"',
    f'"{CANARY}:99999"',
    f'"{CANARY} per device per week"',
    f'"\\u0000{CANARY}"',
    f'"\\u202e{CANARY}"',
    f'"""\n{CANARY}\n"""',
    f'"{"x" * 300}{CANARY}"',
    f'[["{CANARY}"]]',
    f'[{{ a = "{CANARY}" }}]',
    f'{{ a = "{CANARY}" }}',
    f'{{ a = {{ b = "{CANARY}" }} }}',
]

#: What an environment can hold that no file does: bytes that are no UTF-8, and JSON where a list belongs.
VARIABLES = [
    CANARY,
    f"\udcff{CANARY}",
    f"\n{CANARY}",
    f"\x1b[31m{CANARY}",
    f"\u202e{CANARY}",
    f'"{CANARY}"',
    f'["{CANARY}"]',
    f'[{{"topic":"{CANARY}"}}]',
    f'[{{"topic":"a/{{device}}","decoder":"{CANARY}"}}]',
    f'[{{"topic":"a/{{device}}","name":"\\ud800{CANARY}"}}]',
    f'[{{"topic":"a/{{device}}","rename":{{"a":"\\u202e{CANARY}"}}}}]',
    "{" * 5000,
    "[" * 100_000,
    "9" * 5000,
    "1e400",
    "nan",
    "x" * 100_000,
]


def written(key: tuple[str | int, ...], value: str) -> str:
    """A configuration with one value in it."""
    if key == ("sources",):
        return f"version = 1\nsources = {value}\n"
    if key[0] == "sources":
        topic = "" if key[-1] == "topic" else 'topic = "a/{device}"\n'
        return f"version = 1\n[[sources]]\n{topic}{key[-1]} = {value}\n"
    if len(key) == 1:
        return f"{key[0]} = {value}\n" + ("" if key == ("version",) else "version = 1\n")
    return f"version = 1\n[{'.'.join(map(str, key[:-1]))}]\n{key[-1]} = {value}\n"


def not_repeated(path: Path | None, environ: dict[str, str]) -> bool:
    """Whether the configuration is refused: in words without the secret. What is taken can be printed."""
    try:
        told, refused = effective(*load_traced(path, environ)), False
    except ConfigError as error:
        told, refused = str(error), True
    told.encode()
    assert not refused or (CANARY not in told and all(line.isprintable() for line in told.split("\n")))
    return refused


KEYS = [*_SHAPE.leaves(), *(("sources", 0, name) for name in Source.model_fields)]


@pytest.mark.parametrize("key", KEYS, ids=lambda key: ".".join(map(str, key)))
def test_a_secret_in_the_wrong_place_is_not_repeated(tmp_path: Path, key: tuple[str | int, ...]) -> None:
    """Whatever key a secret was pasted into, what is refused is refused without a word of it."""
    path = tmp_path / "gruard.toml"
    refused = 0
    for value in VALUES:
        path.write_text(written(key, value))
        refused += not_repeated(path, {})
    assert refused >= 4, "hardly a value was refused"


@pytest.mark.parametrize("name", sorted(_VARIABLES))
def test_a_variable_of_any_content_is_taken_or_refused(name: str) -> None:
    """Each variable, whatever bytes it holds, gives a configuration that can be printed or a refusal."""
    for value in VARIABLES:
        not_repeated(None, {name: value})


@pytest.mark.parametrize("command", ["run", "check-config", "devices"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"version = 2\n",
        b"version = 1\n[mqtt]\npassword = 5\n",
        b"version = 1\nversion = 1\n",
        b"version = 1\nx = " + b"[" * 50_000,
        b"version = 1\nx = " + b"9" * 5000,
        b"version = 1\n[mqtt]\nport = 70000\n",
    ],
    ids=["empty", "no UTF-8", "version", "type", "twice", "deep", "digits", "range"],
)
def test_a_bad_file_ends_every_command_with_78_and_no_traceback(
    tmp_path: Path, command: str, content: bytes
) -> None:
    """The exit status says bad configuration, and the message is what a person can use."""
    path = tmp_path / "gruard.toml"
    path.write_bytes(content)
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        status = cli.main([command, *(["list"] if command == "devices" else []), "-c", str(path)])
    assert status == BAD_CONFIG
    assert str(path) in errors.getvalue()
    assert "Traceback" not in errors.getvalue()
