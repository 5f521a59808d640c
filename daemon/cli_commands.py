"""Commands for the daemon that runs: left as files in its state directory, see `edges/command_files.py`."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import msgspec

from gruard.daemon.core.commands import Command, Pause, Resume, TrainNow, encode
from gruard.daemon.errors import GruardError

if TYPE_CHECKING:
    import argparse

    from gruard.daemon.settings import Settings

TEXT = "Begin a training round now, or pause and resume training."

#: How long an answer is waited for, and how often it is looked for.
ANSWER_S, LOOK_S = 10.0, 0.1
#: A round may begin late and take its deadline; this much longer is waited for it.
ROUND_GRACE_S = 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `gruard train` takes."""
    parser.add_argument("group", nargs="?", metavar="GROUP", help="the group, or how its name begins")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--wait", action="store_true", help="wait for the round's end and print its outcome")
    what.add_argument("--pause", action="store_true", help="let no round begin by itself, over restarts too")
    what.add_argument("--resume", action="store_true", help="let rounds begin again")


def train(arguments: argparse.Namespace) -> int:
    """Run `gruard train`; returns the exit status."""
    from gruard.daemon.settings import load  # noqa: PLC0415 - `--help` is instant

    if (arguments.pause or arguments.resume) and arguments.group is not None:
        raise GruardError("training is paused and resumed for all groups: leave the group out")
    settings = load(arguments.config, os.environ)
    if arguments.pause:
        return tell(settings, Pause())
    if arguments.resume:
        return tell(settings, Resume())
    return tell(settings, TrainNow(arguments.group), outcome=arguments.wait)


def tell(settings: Settings, command: Command, *, outcome: bool = False) -> int:
    """Leave a command, wait for the answer and print it; `outcome`: and for what the round came to.

    Raises:
        GruardError: the command cannot be left, or the daemon refuses it.
    """
    from gruard.daemon.edges import command_files  # noqa: PLC0415 - `--help` is instant

    state = settings.state.directory
    name = command_files.put(state, encode(command), time.time())
    answer = _reply(settings, name, command_files.ANSWER, ANSWER_S)
    if answer is None:
        print(
            f"No daemon has answered: the command waits in {state / command_files.FOLDER} for its next start."
        )
        return 0
    print(answer)
    if outcome:
        ended = _reply(settings, name, command_files.OUTCOME, settings.train.max_duration_s + ROUND_GRACE_S)
        print(
            ended if ended is not None else "The round has not ended in its time, or the daemon was stopped."
        )
    return 0


def _reply(settings: Settings, name: str, suffix: str, patience_s: float) -> str | None:
    from gruard.daemon.edges import command_files  # noqa: PLC0415 - `--help` is instant

    until_s = time.monotonic() + patience_s
    while time.monotonic() < until_s:
        text = command_files.reply(settings.state.directory, name, suffix)
        if text is not None:
            found = msgspec.json.decode(text, type=dict[str, str])
            if suffix == command_files.ANSWER and found["result"] != "done":
                raise GruardError(f"{found['result']}: {found['answer']}")
            return (
                found["answer"] if suffix == command_files.ANSWER else f"{found['result']}: {found['answer']}"
            )
        time.sleep(LOOK_S)
    return None
