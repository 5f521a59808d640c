"""The trainer's outside: one child process a round, at low priority, with a deadline. It may crash or hang.

The request goes in as JSON on standard input, the outcome comes back as the last line of standard
output; weights travel as files. The child is `gruard.daemon.training_round`.
"""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
from typing import TYPE_CHECKING, Literal

import msgspec

from gruard.models.calibration import Budget  # noqa: TC001 -- msgspec reads the annotation

if TYPE_CHECKING:
    from pathlib import Path

#: Environment of the child: one thread, whatever the numerical libraries would like.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
#: The child.
COMMAND = (sys.executable, "-m", "gruard.daemon.training_round")
#: The largest file that a round may write, its log included: weights are a few megabytes.
LARGEST_FILE_BYTES = 300_000_000
#: An outcome takes some hundred bytes.
LONGEST_LINE_BYTES = 65_536
LOG_NAME = "training.log"
#: Where weights lie below the state directory.
MODELS = "models"
#: What the child must not see: settings with their secrets, and whatever speaks to the service manager.
_NOT_FOR_THE_CHILD = ("GRUARD_", "CREDENTIALS_DIRECTORY", "NOTIFY_SOCKET", "WATCHDOG_")


class TrainRequest(msgspec.Struct, frozen=True):
    """What a round works on."""

    directory: str  # the state directory
    group: str
    source: str
    fields: tuple[str, ...]
    devices: tuple[str, ...]
    max_rows: int  # newest rows of each device
    before_s: float | None  # only readings before this event time
    parent: str | None  # id of the live model, which a candidate has to equal
    cell: str
    hidden: int
    layers: int
    dropout: float
    seed: int
    budget: Budget
    max_seconds: float
    nice: int
    now_s: float


class TrainOutcome(msgspec.Struct, frozen=True):
    """How a round ended."""

    group: str
    result: Literal["promoted", "rejected", "failed", "timeout"]
    reason: str
    model: str | None = None
    seconds: float = 0.0


class Trainer:
    """At most one round at a time."""

    def __init__(self, directory: Path) -> None:
        self._log = directory / LOG_NAME
        self._child: subprocess.Popen[bytes] | None = None
        self._request: TrainRequest | None = None
        self._began = 0.0

    @property
    def group(self) -> str | None:
        """The group of the round that runs, if one does."""
        return None if self._request is None else self._request.group

    def runs(self) -> bool:
        """Whether there is a round."""
        return self._request is not None

    def start(self, request: TrainRequest, now: float) -> None:
        """Start a round. `now` is monotonic seconds."""
        if self._child is not None:
            raise ValueError(f"a round for {self.group} is running")
        # In memory and not through a pipe: a child that hangs before it reads must not hang us.
        with os.fdopen(os.memfd_create("request"), "w+b") as asked, self._log.open("wb") as output:
            asked.write(msgspec.json.encode(request))
            asked.seek(0)
            child = subprocess.Popen(  # noqa: S603 - a constant of ours
                COMMAND,
                stdin=asked,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_environment() | _ONE_THREAD,
                start_new_session=True,  # a Ctrl-C at the terminal is for the daemon to handle
            )
        self._child, self._request, self._began = child, request, now
        with contextlib.suppress(OSError):  # it has ended already
            resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (LARGEST_FILE_BYTES, LARGEST_FILE_BYTES))

    def poll(self, now: float) -> TrainOutcome | None:
        """The outcome, once the round has ended or is past its deadline."""
        if self._child is None or self._request is None:
            return None
        seconds = now - self._began
        if self._child.poll() is None:
            if seconds < self._request.max_seconds:
                return None
            self._end()
            late = f"not done after {seconds:.0f} s"
            return self._close(TrainOutcome(self._request.group, "timeout", late, seconds=seconds))
        return self._close(self._read())

    def stop(self) -> None:
        """End a running round; it changes nothing."""
        if self._child is not None and self._request is not None:
            self._end()
            self._close(TrainOutcome(self._request.group, "failed", "stopped"))

    def _read(self) -> TrainOutcome:
        group = "" if self._request is None else self._request.group
        code = None if self._child is None else self._child.returncode
        line = self._last_line()
        if code == 0:
            with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
                return msgspec.structs.replace(msgspec.json.decode(line, type=TrainOutcome), group=group)
        last = line.decode(errors="replace")[:300]
        return TrainOutcome(group, "failed", f"the training process ended with {code}: {last}")

    def _last_line(self) -> bytes:
        try:
            with self._log.open("rb") as log:
                log.seek(max(0, os.fstat(log.fileno()).st_size - LONGEST_LINE_BYTES))
                return (log.read().splitlines() or [b""])[-1]
        except OSError as error:
            return str(error).encode()

    def _end(self) -> None:
        # At once: it writes weights whole or not at all, so there is nothing to tidy up for it.
        if self._child is not None:
            self._child.kill()
            self._child.wait()

    def _close(self, outcome: TrainOutcome) -> TrainOutcome:
        self._child = self._request = None
        return outcome


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(_NOT_FOR_THE_CHILD)}
