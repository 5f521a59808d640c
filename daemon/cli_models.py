"""`gruard models`: what the registry holds, read only; changes of it are left to the daemon as commands."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from gruard.daemon.cli_commands import tell
from gruard.daemon.cli_tables import print_rows
from gruard.daemon.core.commands import Activate, Rollback
from gruard.daemon.errors import GruardError

if TYPE_CHECKING:
    import argparse

TEXT = "List the models that have been in charge, show or compare them, put another one in charge."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("action", choices=["list", "show", "diff", "activate", "rollback"], help="what to do")
    parser.add_argument(
        "model", nargs="?", metavar="ID", help="the model's id, of rollback the group, or how it begins"
    )
    parser.add_argument("other", nargs="?", metavar="ID2", help="of diff: the model to compare it with")
    parser.add_argument("--json", action="store_true", help="JSON: an array, or one object")


def models(arguments: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    from gruard.daemon import inspection  # noqa: PLC0415 - `--help` is instant
    from gruard.daemon.settings import load  # noqa: PLC0415 - likewise

    if (arguments.action == "diff") != (arguments.other is not None):
        raise GruardError("`models diff` takes the ids of two models, all else at most one")
    if arguments.action in {"show", "activate"} and arguments.model is None:
        raise GruardError(f"`models {arguments.action}` takes the id of a model: see `gruard models list`")
    if arguments.action == "list" and arguments.model is not None:
        raise GruardError("`models list` takes no id: see `gruard models show`")
    settings = load(arguments.config, os.environ)
    if arguments.action == "diff":
        return _diff(
            inspection.difference(settings, arguments.model, arguments.other), as_json=arguments.json
        )
    if arguments.action == "activate":
        return tell(settings, Activate(arguments.model))
    if arguments.action == "rollback":
        return tell(settings, Rollback(arguments.model))
    if arguments.action == "list":
        return print_rows(
            inspection.models(settings), as_json=arguments.json, hidden=("activated_at", "parent")
        )
    return _show(inspection.model(settings, arguments.model), as_json=arguments.json)


def _show(facts: dict[str, Any], *, as_json: bool) -> int:
    if as_json:
        print(json.dumps(facts, indent=1, allow_nan=False))
        return 0
    for name, value in facts.items():
        if isinstance(value, dict):
            print(f"{name}:")
            for inner, each in value.items():
                print(f"  {inner:22} {_told(each)}")
        else:
            print(f"{name:24} {_told(value)}")
    return 0


def _diff(found: dict[str, Any], *, as_json: bool) -> int:
    if as_json:
        print(json.dumps(found, indent=1, allow_nan=False))
        return 0
    for name, (first, second) in found["differs"].items():
        print(f"{name:24} {_told(first)} -> {_told(second)}")
    for name in ("devices_come", "devices_gone"):
        if found[name]:
            print(f"{name:24} {_told(found[name])}")
    for row in found["moved"]:
        print(f"{row['what']:10} {row['device']}: {row['first']} -> {row['second']}")
    return 0


def _told(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)
