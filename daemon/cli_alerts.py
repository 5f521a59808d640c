"""`gruard alerts`: what was told, and what people say of it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from gruard.daemon.cli_commands import tell
from gruard.daemon.cli_tables import print_rows
from gruard.daemon.core.commands import Expected, Fault, Missed, Mute, Undo
from gruard.daemon.errors import GruardError

if TYPE_CHECKING:
    import argparse

    from gruard.daemon.core.commands import Said

TEXT = "List alerts, newest first; or say what one was: `feedback expected|fault ALERT`, and more."

_VERDICTS = ("expected", "fault", "missed", "mute")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `gruard alerts` takes."""
    parser.add_argument("action", choices=["list", "feedback"], help="list alerts, or say what one was")
    parser.add_argument(
        "verdict", nargs="?", choices=_VERDICTS, help="the alert was expected, or a fault; missed; mute"
    )
    parser.add_argument(
        "subject", nargs="?", metavar="ID", help="id of the alert; of missed and mute: device"
    )
    parser.add_argument("--from", dest="from_", metavar="TIME", help="when a missed fault began")
    parser.add_argument("--to", metavar="TIME", help="when it ended")
    parser.add_argument("--for", dest="for_", metavar="DURATION", help='how long to mute, such as "2h"')
    parser.add_argument("--undo", type=int, metavar="N", help="take feedback number N back")
    parser.add_argument("--list", action="store_true", help="list the feedback, newest first")
    parser.add_argument("--json", action="store_true", help="one JSON array")


def alerts(arguments: argparse.Namespace) -> int:
    """Run `gruard alerts`; returns the exit status."""
    from gruard.daemon import inspection  # noqa: PLC0415 - `--help` is instant
    from gruard.daemon.settings import load  # noqa: PLC0415 - likewise

    settings = load(arguments.config, os.environ)
    if arguments.action == "feedback" and not arguments.list:
        return tell(settings, _said(arguments))
    if arguments.verdict is not None:
        raise GruardError("a list takes no verdict: see `gruard alerts feedback --help`")
    rows = inspection.feedback(settings) if arguments.action == "feedback" else inspection.alerts(settings)
    print_rows(rows, as_json=arguments.json)
    return 0


def _said(arguments: argparse.Namespace) -> Said:
    """The feedback that is meant. Raises GruardError."""
    if arguments.undo is not None:
        return Undo(word=arguments.undo)
    verdict, subject = arguments.verdict, arguments.subject
    if verdict is None or subject is None:
        raise GruardError("feedback is expected|fault ALERT, missed|mute DEVICE, --undo N, or --list")
    needed: dict[str, tuple[tuple[str, Any], ...]] = {
        "missed": (("--from", arguments.from_), ("--to", arguments.to)),
        "mute": (("--for", arguments.for_),),
    }
    lacking = [name for name, value in needed.get(verdict, ()) if value is None]
    if lacking:
        raise GruardError(f"{verdict} needs {' and '.join(lacking)}")
    match verdict:
        case "missed":
            return Missed(device=subject, from_=_time(arguments.from_), to=_time(arguments.to))
        case "mute":
            return Mute(device=subject, for_=arguments.for_)
        case "fault":
            return Fault(alert=subject)
        case _:
            return Expected(alert=subject)


def _time(text: str) -> str | float:
    """Unix seconds where it is a number, else as it stands."""
    try:
        return float(text)
    except ValueError:
        return text
