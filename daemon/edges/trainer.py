"""The trainer's outside: one child process a round, at low priority, with a deadline. It may crash or hang.

The request goes in as JSON on standard input, the outcome comes back as the last line of standard
output; weights travel as files. The child is `gruard.daemon.training_round`.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from typing import IO, TYPE_CHECKING, Literal

import msgspec

from gruard.models.calibration import Budget  # noqa: TC001 -- msgspec reads the annotation

if TYPE_CHECKING:
    from pathlib import Path

#: Environment of the child: one thread, whatever the numerical libraries would like.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
#: How long a child that was asked to end may take.
_GRACE_S = 2.0
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
        self._output: IO[bytes] | None = None
        self._request: TrainRequest | None = None
        self._began = 0.0

    @property
    def group(self) -> str | None:
        """The group of the round that runs, if one does."""
        return None if self._request is None else self._request.group

    def start(self, request: TrainRequest, now: float) -> None:
        """Start a round. `now` is monotonic seconds."""
        if self._child is not None:
            raise ValueError(f"a round for {self.group} is running")
        self._output = self._log.open("w+b")
        child = subprocess.Popen(
            [sys.executable, "-m", "gruard.daemon.training_round"],
            stdin=subprocess.PIPE,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            env=_environment() | _ONE_THREAD,
            start_new_session=True,  # a Ctrl-C at the terminal is for the daemon to handle
        )
        self._child, self._request, self._began = child, request, now
        if child.stdin is not None:
            # A child that died at once is found by poll; its pipe is of no interest.
            with contextlib.suppress(BrokenPipeError):
                child.stdin.write(msgspec.json.encode(request))
                child.stdin.close()

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
        lines = self._log.read_bytes().splitlines() or [b""]
        if code == 0:
            with contextlib.suppress(msgspec.DecodeError):
                return msgspec.json.decode(lines[-1], type=TrainOutcome)
        last = lines[-1].decode(errors="replace")[:300]
        return TrainOutcome(group, "failed", f"the training process ended with {code}: {last}")

    def _end(self) -> None:
        if self._child is None:
            return
        self._child.terminate()
        try:
            self._child.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    def _close(self, outcome: TrainOutcome) -> TrainOutcome:
        if self._output is not None:
            self._output.close()
        self._child = self._request = self._output = None
        return outcome


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(_NOT_FOR_THE_CHILD)}
