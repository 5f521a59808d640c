"""Commands as files: `gruard models activate` puts one into the state directory, the worker takes it.

    <state>/commands/<19 digits>-<8 hex>.json      a command; its name says when it was given
    ....json.answer, ....json.outcome              what came of it; of a training round, what that came to
    <state>/commands/refused/                      what somebody else put there, set aside

A command is written under another name first, so a file is whole when it is seen. The folder belongs to one
user; whoever can write there can also write the database.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
from typing import TYPE_CHECKING, Final

from gruard.daemon.errors import StateError

if TYPE_CHECKING:
    from pathlib import Path

FOLDER: Final = "commands"
REFUSED: Final = "refused"
ANSWER, OUTCOME = ".answer", ".outcome"
#: Commands that may wait, and answers and refused files that are kept.
MOST_WAITING, MOST_KEPT = 100, 50
_NAME: Final = re.compile(r"[0-9]{19}-[0-9a-f]{8}\.json")
_REPLY: Final = re.compile(_NAME.pattern + r"\.(answer|outcome)")


def put(state: Path, payload: bytes, now_s: float) -> str:
    """Leave a command for the daemon; returns its name. Raises StateError."""
    folder = state / FOLDER
    name = f"{int(now_s * 1e9):019d}-{secrets.token_hex(4)}.json"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        waiting = sum(_NAME.fullmatch(other) is not None for other in _names(folder))
        if waiting >= MOST_WAITING:
            raise StateError(f"{waiting} commands wait in {folder}: start the daemon, or remove them.")
        _write(folder, name, payload)
    except OSError as error:
        raise StateError(f"No command can be left in {folder}: {error.strerror}.") from error
    return name


def reply(state: Path, name: str, suffix: str = ANSWER) -> bytes | None:
    """The daemon's answer to a command, taken away; None while there is none."""
    path = state / FOLDER / (name + suffix)
    try:
        text = path.read_bytes()
    except OSError:
        return None
    with contextlib.suppress(OSError):
        path.unlink()
    return text


class CommandFiles:
    """The worker's side. Nothing that lies in the folder, and no fault of the disk, raises."""

    def __init__(self, state: Path) -> None:
        self._folder = state / FOLDER
        self._skipped: set[str] = set()  # foreign, and they cannot be moved
        with contextlib.suppress(OSError):
            self._folder.mkdir(mode=0o700, exist_ok=True)

    def waiting(self, most_bytes: int) -> tuple[list[tuple[str, bytes]], int]:
        """Names and contents of the commands that wait, oldest first, and how many files were set aside."""
        try:
            names = sorted(_names(self._folder))
        except OSError:
            return [], 0
        found: list[tuple[str, bytes]] = []
        refused = 0
        for name in names:
            if name.startswith(".") or name == REFUSED or _REPLY.fullmatch(name) or name in self._skipped:
                continue
            payload = self._read(name, most_bytes) if _NAME.fullmatch(name) else None
            if payload is None:
                refused += 1
                self._set_aside(name)
            elif len(found) < MOST_WAITING:
                found.append((name, payload))
        replies = [name for name in names if _REPLY.fullmatch(name)]
        for name in replies[: max(0, len(replies) - MOST_KEPT)]:
            self._unlink(name)
        return found, refused

    def answer(self, name: str, text: str, suffix: str = ANSWER) -> None:
        """Say what came of a command."""
        with contextlib.suppress(OSError):
            _write(self._folder, name + suffix, text.encode())

    def done(self, name: str) -> None:
        """Remove a command that was dealt with."""
        self._unlink(name)

    def _read(self, name: str, most_bytes: int) -> bytes | None:
        """What a regular file of a bounded size holds; None for anything else."""
        try:
            # Without NONBLOCK a named pipe would hold the worker for ever.
            descriptor = os.open(self._folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return None
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return None
            payload = os.read(descriptor, most_bytes + 1)
        except OSError:
            return None
        finally:
            os.close(descriptor)
        return payload if len(payload) <= most_bytes else None

    def _set_aside(self, name: str) -> None:
        refused = self._folder / REFUSED
        try:
            refused.mkdir(mode=0o700, exist_ok=True)
            if len(_names(refused)) < MOST_KEPT:
                (self._folder / name).rename(refused / name)
                return
        except OSError:
            pass
        # It stays where it is, and is not looked at again.
        if len(self._skipped) < MOST_WAITING:
            self._skipped.add(name)
        else:
            self._unlink(name)

    def _unlink(self, name: str) -> None:
        try:
            (self._folder / name).unlink(missing_ok=True)
        except OSError:
            self._skipped.add(name)


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def _write(folder: Path, name: str, content: bytes) -> None:
    """Write a file whole or not at all. The folder keeps others out, so the daemon's user may read it."""
    temporary = folder / f".{name}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        temporary.rename(folder / name)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
