"""The system runs out under a running daemon: descriptors, threads, memory; or the worker is stuck."""

from __future__ import annotations

import json
import os
import resource
import socket
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support_mqtt import wait_until
from support_shim import Kind
from support_site import PROMPT_S, WATCHDOG_S, Load, Site, site

from gruard.daemon.edges.broker import Publisher

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.broker, pytest.mark.slow, pytest.mark.alone]

STUCK_S = 15.0
#: Room above what the daemon uses at a steady pace.
MEMORY_ROOM = 1.2


#: Controller -> the file with the limit and the file with what is used, in version 1 and in version 2.
LIMIT = {"memory": ("memory.limit_in_bytes", "memory.max"), "pids": ("pids.max", "pids.max")}
USED = {"memory": ("memory.usage_in_bytes", "memory.current"), "pids": ("pids.current", "pids.current")}


class Group:
    """A control group for one limit, of either version of the interface."""

    def __init__(self, controller: str) -> None:
        root = Path("/sys/fs/cgroup")
        first = (root / controller).is_dir()
        self._folder = (root / controller if first else root) / f"gruard-test-{os.getpid()}"
        self._limit = self._folder / LIMIT[controller][not first]
        self._used = self._folder / USED[controller][not first]
        try:
            if not first:
                (root / "cgroup.subtree_control").write_text(f"+{controller}")
            self._folder.mkdir()
        except OSError as error:
            pytest.skip(f"needs the right to make a control group for {controller}: {error}")
        if not self._limit.exists():
            self._folder.rmdir()
            pytest.skip(f"control groups here have no {controller} controller")

    def add(self, pid: int) -> None:
        (self._folder / "cgroup.procs").write_text(str(pid))

    @property
    def used(self) -> int:
        return int(self._used.read_text())

    def limit(self, most: int | None) -> None:
        unlimited = "max" if self._limit.name.endswith(".max") else "-1"
        self._limit.write_text(unlimited if most is None else str(most))

    def close(self) -> None:
        with suppress(OSError):
            self.limit(None)
        wait_until(self._removed, 10)

    def _removed(self) -> bool:
        with suppress(OSError):
            self._folder.rmdir()
        return not self._folder.exists()


@contextmanager
def group(controller: str) -> Iterator[Group]:
    """A control group that goes away after the daemon in it: enter it first."""
    made = Group(controller)
    try:
        yield made
    finally:
        made.close()


def scored(here: Site) -> float:
    return here.daemon.metric('gruard_readings_total{result="scored"}')


def visited(port: int, visitors: list[socket.socket], most: int) -> None:
    """Keep up to so many connections open that ask for nothing."""
    for gone in [visitor for visitor in visitors if is_closed(visitor)]:
        gone.close()
        visitors.remove(gone)
    while len(visitors) < most:
        visitor = socket.socket()
        visitor.setblocking(False)
        visitor.connect_ex(("127.0.0.1", port))
        visitors.append(visitor)


def close_all(visitors: list[socket.socket]) -> None:
    while visitors:
        visitors.pop().close()


def is_closed(visitor: socket.socket) -> bool:
    try:
        return visitor.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def processor_s(pid: int) -> float:
    """Time on the processor so far."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_worker_stuck_watchdog_goes_quiet_and_health_says_so(tmp_path: Path) -> None:
    """A write that never returns is no sign of life: the service manager and /healthz learn of it."""
    with site(tmp_path, tmp_path / "state") as here, Load(here.broker.port) as load:
        here.rests(2.0)
        assert here.daemon.get("/healthz")[0] == 200
        here.shim.block(Kind.WRITE | Kind.SYNC)
        here.rests(1.0)
        here.manager.begin()
        here.rests(WATCHDOG_S)
        assert here.manager.quiet_s >= WATCHDOG_S
        assert here.waits(lambda: here.daemon.get("/healthz")[0] == 503, STUCK_S - WATCHDOG_S)
        here.shim.release()
        assert here.waits(lambda: here.daemon.get("/healthz")[0] == 200)
        here.manager.begin()
        here.rests(WATCHDOG_S / 2)
        assert here.manager.quiet_s < WATCHDOG_S / 2
        assert here.has_all_of(load)


def test_descriptors_exhausted_by_visitors_scoring_goes_on(tmp_path: Path) -> None:
    """Visitors who take every descriptor get no answer; readings are scored and the watchdog is fed."""
    with site(tmp_path, tmp_path / "state") as here, ExitStack() as parting, Load(here.broker.port) as load:
        here.rests(2.0)
        visitors: list[socket.socket] = []
        parting.callback(close_all, visitors)
        pid, before = here.daemon.pid, scored(here)
        _, most = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (descriptors(pid) + 4, most))
        here.manager.begin()
        began_s, busy_s, sent = time.monotonic(), processor_s(pid), load.total
        while time.monotonic() - began_s < WATCHDOG_S + 2:
            visited(here.daemon.http_port, visitors, 40)
            here.rests(0.1)
        busy_s = (processor_s(pid) - busy_s) / (time.monotonic() - began_s)
        sent = load.total - sent
        close_all(visitors)
        # Those who left are still in the queue: with four descriptors to spare it is worked off in fours.
        assert here.waits(lambda: here.daemon.get("/metrics")[0] == 200, 30), here.daemon.log()[-5000:]
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, most))
        assert scored(here) - before >= 0.8 * sent
        assert here.manager.longest_gap_s < WATCHDOG_S
        assert busy_s < 0.8
        assert here.has_all_of(load)
        assert here.waits(here.ready)
        assert here.daemon.pid == pid


def test_descriptors_exhausted_while_the_broker_is_away_is_told_and_passes(tmp_path: Path) -> None:
    """Without a descriptor there is no connection: that is the reason told, and it is over with its cause."""
    with site(tmp_path, tmp_path / "state") as here, ExitStack() as parting:
        visitors: list[socket.socket] = []
        parting.callback(close_all, visitors)
        pid = here.daemon.pid
        _, most = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        here.broker.stop()
        assert here.waits(here.reasons)
        # Room for the visitor who asks why, and for nobody else.
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (descriptors(pid) + 1, most))
        visited(here.daemon.http_port, visitors, 1)
        here.broker.start()
        here.rests(3.0)
        assert here.daemon.alive
        visitors.pop().close()
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, most))
        assert here.waits(here.ready, 2 * PROMPT_S), here.reasons()
        with Load(here.broker.port) as load:
            here.rests(1.0)
            assert here.has_all_of(load)


def test_threads_exhausted_scoring_goes_on_and_answers_come_back(tmp_path: Path) -> None:
    """Where no thread can be had nobody is answered, and readings are scored all the same."""
    with (
        group("pids") as limited,
        site(tmp_path, tmp_path / "state") as here,
        Load(here.broker.port) as load,
    ):
        here.rests(2.0)
        limited.add(here.daemon.pid)
        before, sent = scored(here), load.total
        here.rests(1.0)
        limited.limit(limited.used)
        here.manager.begin()
        for _ in range(20):
            here.daemon.get("/metrics")
            here.rests(0.1)
        here.rests(2.0)
        limited.limit(None)
        assert here.waits(lambda: here.daemon.get("/metrics")[0] == 200), here.daemon.log()[-5000:]
        assert scored(here) - before >= 0.8 * (load.total - sent - 50)
        assert here.manager.longest_gap_s < WATCHDOG_S
        assert here.waits(here.ready)
        assert here.has_all_of(load)


@pytest.mark.parametrize(("count", "size"), [(40_000, 100), (600, 250_000)], ids=["quick", "large"])
def test_memory_limited_to_what_the_settings_allow_flood_is_borne(
    tmp_path: Path, count: int, size: int
) -> None:
    """At 1.2 times its steady memory 40,000 readings at once are borne; for large ones there is a bound too.

    It is that of the messages without an acknowledgement: 200 of them, held twice at most, and as much as
    once more for the pages of the database and whatever else the kernel charges.
    """
    payload = json.dumps({"ts": time.time(), "f0": 20.0, "text": "x" * size}).encode()
    with (
        group("memory") as limited,
        site(tmp_path, tmp_path / "state") as here,
        Load(here.broker.port) as load,
    ):
        pid = here.daemon.pid
        limited.add(pid)  # charges what it uses from now on
        here.rests(5.0)
        steady = resident_bytes(pid)
        room = max(round(steady * (MEMORY_ROOM - 1.0)), 3 * 200 * size)
        limited.limit(limited.used + room)
        with Publisher("127.0.0.1", here.broker.port, "flood") as flood:
            for n in range(count):
                flood.publish(f"plant/flood-{n % 10}", payload, qos=1)
                if n % 100 == 0:
                    here.manager.listen()
            flood.wait_all(60)
        assert here.daemon.alive, "killed for want of memory"
        assert here.has_all_of(load)
        assert here.waits(here.ready)
        assert here.daemon.pid == pid
        assert here.manager.longest_gap_s < WATCHDOG_S


def resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
