"""What the command line starts: `gruard demo` and `gruard simulate`. The clocks of both are read here."""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, current_thread, main_thread
from typing import TYPE_CHECKING

from gruard.daemon.demo.feeds import publish_fleet
from gruard.daemon.demo.fleet import Fleet, planned_faults
from gruard.daemon.edges.broker import Publisher
from gruard.daemon.errors import GruardError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

_FLUSH_S = 10.0


def run_demo(
    *,
    seconds: float = 160.0,
    seed: int = 1,
    pumps: int = 12,
    speed: float = 10.0,
    keep_dir: Path | None = None,
    plain: bool | None = None,
) -> int:
    """Play the whole demo and print its summary; 0 when it ended well, 1 otherwise.

    `keep_dir` keeps configuration, log and state of the daemon; else they are removed. `plain` asks for
    lines (True) or the live table (False) instead of what fits the terminal.

    Raises:
        GruardError: the packages of the `demo` extra are missing.
    """
    try:
        from gruard.daemon.demo.screen import Board, open_screen  # noqa: PLC0415 (only the demo needs rich)
        from gruard.daemon.demo.session import Session, make_plan  # noqa: PLC0415 (only the demo needs iotcore)
    except ModuleNotFoundError as error:
        raise GruardError(f"the demo needs {error.name}: pip install 'gruard[demo]'") from error

    plan = make_plan(seconds, speed, pumps, seed)
    board = Board(plan.total_s)
    with tempfile.TemporaryDirectory(prefix="gruard-demo-") as scratch, _ended_like_ctrl_c():
        directory = scratch if keep_dir is None else keep_dir
        Path(directory).mkdir(parents=True, exist_ok=True)
        screen = open_screen(board, sys.stdout, plain=plain)
        try:
            session = Session(plan, Path(directory), board, screen, clock=time.monotonic, wall=time.time)
            summary = session.run()
        finally:
            screen.close()
    sys.stdout.write("\n".join([*summary.lines(), ""]))
    sys.stdout.flush()
    return 0 if summary.good else 1


def simulate(
    host: str,
    port: int,
    pumps: int,
    speed: float,
    duration_s: float,
    faults: bool,  # noqa: FBT001 (the command line's own flag)
    seed: int,
) -> int:
    """Publish a simulated fleet to a broker for `duration_s` real seconds; the number of readings sent.

    Event times end at the present. With `faults`, one of each kind is spread over the second half and its
    interval printed. Ctrl-C ends it early.

    Raises:
        BrokerError: the broker cannot be reached.
    """
    simulated_s = duration_s * speed
    first_s, gap_s, length_s = 0.45 * simulated_s, 0.12 * simulated_s, 0.15 * simulated_s
    planned = planned_faults(pumps, first_s, gap_s, length_s) if faults else ()
    fleet = Fleet(pumps, seed, planned)
    start_time_s = time.time() - duration_s * max(speed - 1.0, 0.0)
    for fault in planned:
        begin, end = (_utc(start_time_s + t) for t in (fault.start_s, fault.end_s))
        sys.stdout.write(f"{fault.kind} on {fault.device} from {begin} to {end}\n")
    sys.stdout.flush()
    sent = 0

    with Publisher(host, port, f"gruard-simulate-{seed}") as publisher, suppress(KeyboardInterrupt):
        sent = publish_fleet(
            lambda topic, payload: publisher.publish(topic, payload, qos=1),
            fleet,
            speed=speed,
            duration_s=duration_s,
            start_time_s=start_time_s,
            clock=time.monotonic,
            pause=Event().wait,
        )
        publisher.wait_all(_FLUSH_S)
    return sent


def _utc(time_s: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time_s))


@contextmanager
def _ended_like_ctrl_c() -> Iterator[None]:
    """Let a request to end the process clean up as Ctrl-C does; signals belong to the main thread."""

    def end(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if current_thread() is not main_thread():
        yield
        return
    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, action in before.items():
            signal.signal(number, action)
