"""`gruard models`: what the registry holds. Read only, whether the daemon runs or not."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from gruard.daemon.cli_tables import print_rows
from gruard.daemon.errors import GruardError

if TYPE_CHECKING:
    import argparse

TEXT = "List the models that have been in charge, or show one of them."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("action", choices=["list", "show"], help="list them, or show one")
    parser.add_argument("model", nargs="?", metavar="ID", help="of show: the model's id, or how it begins")
    parser.add_argument("--json", action="store_true", help="JSON: an array, or one object")


def models(arguments: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    from gruard.daemon import inspection  # noqa: PLC0415 - `--help` is instant
    from gruard.daemon.settings import load  # noqa: PLC0415 - likewise

    if (arguments.action == "show") != (arguments.model is not None):
        raise GruardError(
            "`models show` takes the id of a model, `models list` none: see `gruard models list`"
        )
    settings = load(arguments.config, os.environ)
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


def _told(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)
