"""The trainer's outside: one child process a round, at low priority, within budgets. It may crash or hang.

The request goes in as JSON on standard input, progress and outcome come back as lines of standard output, the
outcome last; weights travel as files. The child is `gruard.daemon.training_round`.

A pause is by agreement: SIGTSTP asks the child to wait at a moment when it holds nothing that others need,
SIGCONT lets it go on. Before it is ready to be asked, the request is lost, and made again at the next call.
"""

from __future__ import annotations

import contextlib
import math
import os
import resource
import signal
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
#: How often the output is looked at for progress.
LOOK_S = 1.0
#: Between the child's own end for want of processor time, which tells the reason, and the system's.
CPU_GRACE_S = 5
#: What a process that ran out of memory writes last: Python, PyTorch, OpenBLAS, the loader of libraries.
_OUT_OF_MEMORY = (
    *(b"MemoryError", b"allocate memory", b"Memory allocation", b"bad_alloc"),
    b"cannot map zero-fill pages",
)
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
    before_lsn: int | None = None  # only readings before this place in the journal
    is_timed: bool = True  # readings carry the time at which they were taken
    max_cpu_s: float | None = None
    max_memory_bytes: int | None = None


class TrainProgress(msgspec.Struct, frozen=True, tag="progress"):
    """How far a round has come, as the child tells it, a line each time."""

    stage: str
    done: float  # share of the whole round, 0..1, roughly


class TrainOutcome(msgspec.Struct, frozen=True):
    """How a round ended."""

    group: str
    result: Literal["promoted", "rejected", "failed", "timeout"]
    reason: str
    model: str | None = None
    seconds: float = 0.0  # by the clock, pauses left out
    cpu_s: float = 0.0
    peak_bytes: int = 0  # most resident memory, but at least what its parent had when it began


class Trainer:
    """At most one round at a time."""

    def __init__(self, directory: Path) -> None:
        self._log = directory / LOG_NAME
        self._child: subprocess.Popen[bytes] | None = None
        self._request: TrainRequest | None = None
        self._began = 0.0
        self._paused_s: float | None = None  # since when the round is paused
        self._read_to = 0  # bytes of the output that were looked at for progress
        self._looked_s = 0.0
        self._usage: resource.struct_rusage | None = None  # of the round that has ended
        self.progress: TrainProgress | None = None  # of the round that runs, once it has told some

    @property
    def group(self) -> str | None:
        """The group of the round that runs, if one does."""
        return None if self._request is None else self._request.group

    @property
    def paused(self) -> bool:
        """Whether the round that runs waits."""
        return self._paused_s is not None

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
        self._read_to, self._looked_s, self._usage = 0, now, None
        for what, limits in _limits(request).items():
            with contextlib.suppress(OSError):  # it has ended already
                resource.prlimit(child.pid, what, limits)

    def poll(self, now: float) -> TrainOutcome | None:
        """The outcome, once the round has ended or is past its deadline."""
        if self._child is None or self._request is None:
            return None
        if self._has_ended(self._child):
            return self._close(self._read())
        if now - self._looked_s >= LOOK_S:
            self._looked_s = now
            self._look()
            if self.paused:
                os.kill(self._child.pid, signal.SIGTSTP)  # if it was not ready to be asked before
        seconds = (now if self._paused_s is None else self._paused_s) - self._began
        if seconds < self._request.max_seconds:
            return None
        self._end()
        late = f"not done after {seconds:.0f} s"
        return self._close(TrainOutcome(self._request.group, "timeout", late, seconds=seconds))

    def pause(self, now: float) -> None:
        """Let a running round wait: its deadline moves on as long."""
        if self._child is not None and self._paused_s is None:
            self._paused_s = now
            os.kill(self._child.pid, signal.SIGTSTP)

    def go_on(self, now: float) -> None:
        """End a pause."""
        if self._child is not None and self._paused_s is not None:
            self._began += now - self._paused_s
            self._paused_s = None
            os.kill(self._child.pid, signal.SIGCONT)

    def stop(self) -> None:
        """End a running round; it changes nothing."""
        if self._child is not None and self._request is not None:
            self._end()
            self._close(TrainOutcome(self._request.group, "failed", "stopped"))

    def _has_ended(self, child: subprocess.Popen[bytes]) -> bool:
        """Whether it has; what it used is then known. Popen's poll, and its kill, would throw that away."""
        if child.returncode is None:
            pid, status, usage = os.wait4(child.pid, os.WNOHANG)
            if pid == 0:
                return False
            child.returncode, self._usage = os.waitstatus_to_exitcode(status), usage
        return True

    def _look(self) -> None:
        """Note the newest progress that the child has told."""
        with contextlib.suppress(OSError), self._log.open("rb") as log:
            log.seek(max(self._read_to, os.fstat(log.fileno()).st_size - LONGEST_LINE_BYTES))
            found = log.read(LONGEST_LINE_BYTES)
            whole = found.rfind(b"\n") + 1
            self._read_to = log.tell() - len(found) + whole
            for line in found[:whole].splitlines():
                with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
                    self.progress = msgspec.json.decode(line, type=TrainProgress)

    def _read(self) -> TrainOutcome:
        group, request = "" if self._request is None else self._request.group, self._request
        code = None if self._child is None else self._child.returncode
        line = self._last_line()
        if code == 0:
            with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
                return msgspec.structs.replace(msgspec.json.decode(line, type=TrainOutcome), group=group)
        last = line.decode(errors="replace")[-300:]
        allowed_s = None if request is None else request.max_cpu_s
        # The system counts for its limit a little otherwise than for what it tells was used.
        if code == -signal.SIGXCPU or (allowed_s is not None and self._cpu_s() >= allowed_s):
            return TrainOutcome(group, "timeout", f"not done after {self._cpu_s():.0f} s of processor time")
        why = "ran out of memory and " if any(text in line for text in _OUT_OF_MEMORY) else ""
        return TrainOutcome(group, "failed", f"the training process {why}ended with {code}: {last}")

    def _cpu_s(self) -> float:
        return 0.0 if self._usage is None else self._usage.ru_utime + self._usage.ru_stime

    def _last_line(self) -> bytes:
        try:
            with self._log.open("rb") as log:
                log.seek(max(0, os.fstat(log.fileno()).st_size - LONGEST_LINE_BYTES))
                return (log.read().splitlines() or [b""])[-1]
        except OSError as error:
            return str(error).encode()

    def _end(self) -> None:
        # At once: it writes weights whole or not at all, so there is nothing to tidy up for it.
        if self._child is not None and not self._has_ended(self._child):
            os.kill(self._child.pid, signal.SIGKILL)
            _, status, self._usage = os.wait4(self._child.pid, 0)
            self._child.returncode = os.waitstatus_to_exitcode(status)

    def _close(self, outcome: TrainOutcome) -> TrainOutcome:
        self._child = self._request = self._paused_s = self.progress = None
        peak = 0 if self._usage is None else self._usage.ru_maxrss * 1024
        return msgspec.structs.replace(outcome, cpu_s=self._cpu_s(), peak_bytes=peak)


def _limits(request: TrainRequest) -> dict[int, tuple[int, int]]:
    """What the system holds the child to: (soft, hard) of each resource."""
    limits = {resource.RLIMIT_FSIZE: (LARGEST_FILE_BYTES, LARGEST_FILE_BYTES)}
    if request.max_cpu_s is not None:
        soft = math.ceil(request.max_cpu_s)
        limits[resource.RLIMIT_CPU] = soft, soft + CPU_GRACE_S
    if request.max_memory_bytes is not None:
        # Memory that it may write to, and not all that it maps: PyTorch maps far more than it uses.
        limits[resource.RLIMIT_DATA] = request.max_memory_bytes, request.max_memory_bytes
    return limits


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(_NOT_FOR_THE_CHILD)}
