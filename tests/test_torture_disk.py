"""The disk refuses, fills up, stalls or goes away under a running daemon: nothing lost or twice, no silence.

GRUARD_TORTURE_EVERY=1 fails every single operation instead of a sample, and repeats each story ten times.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest
from support_mqtt import Subscriber
from support_shim import EVERY, NEVER, Kind, Shim, fill, remount, small_disk
from support_site import PROMPT_S, WATCHDOG_S, Load, Site, journalled, site

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


STEPS = Path(__file__).with_name("faults") / "steps.py"


@pytest.fixture(params=range(10 if EVERY else 1))
def _turn() -> None:
    """Tells a story once, or ten times."""


repeated = pytest.mark.usefixtures("_turn")


def test_every_disk_operation_may_fail_and_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    """Failing any one write, sync, rename, truncation, creation or removal ends in a retry or a clean end.

    Whatever was acknowledged is there once, no group is there by half, and in the end memories, scores and
    alerts are those of a run without faults. faults/steps.py tells the story.
    """
    # In memory where that is to be had: the faults are the shim's, and a real disk only makes it slow.
    memory = Path("/dev/shm")  # noqa: S108 - a folder of its own is made there
    with TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as made:
        folder = Path(made)
        with Shim(tmp_path, folder / "state") as shim:
            done = subprocess.run(
                [sys.executable, str(STEPS), str(folder), "1", "1" if EVERY else "7"],
                env={**os.environ, **shim.environ, "OPENBLAS_NUM_THREADS": "1"},
                capture_output=True,
                text=True,
                check=False,
            )
    assert done.returncode == 0, done.stderr
    head, *runs = [json.loads(line) for line in done.stdout.splitlines()]
    assert head["steps"] > 200
    assert head["alerts"] > 0
    assert len(runs) == (4 * head["steps"] if EVERY else -(-head["steps"] // 7))
    assert sum(bool(run["failed"]) for run in runs) > len(runs) / 2
    assert [run for run in runs if run["wrong"]] == []


PROBE = """
import errno, os, sys, time
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
told = []
for call in (lambda: os.write(file, b"12345678"), lambda: os.fsync(file), lambda: os.unlink(sys.argv[1])):
    began = time.monotonic()
    try:
        answer = call()
    except OSError as error:
        answer = errno.errorcode[error.errno]
    told.append((answer, round(time.monotonic() - began, 1)))
print(told, os.fstat(file).st_size, round(time.time() / 3600))
"""


@pytest.mark.parametrize(
    ("kinds", "number", "fault", "partly", "said"),
    [
        (Kind.ANY, 0, 0, False, "[(8, 0.0), (None, 0.5), (None, 0.0)] 8"),
        (Kind.WRITE, 1, errno.ENOSPC, False, "[('ENOSPC', 0.0), (None, 0.5), (None, 0.0)] 0"),
        (Kind.WRITE, 1, errno.EIO, True, "[('EIO', 0.0), (None, 0.5), (None, 0.0)] 4"),
        (Kind.ANY, 2, 0, False, "[(4, 0.0), (None, 0.5), (None, 0.0)] 4"),
        (Kind.ANY, 3, errno.EIO, False, "[(8, 0.0), ('EIO', 0.5), (None, 0.0)] 8"),
        (Kind.UNLINK, 1, errno.EROFS, False, "[(8, 0.0), (None, 0.5), ('EROFS', 0.0)] 8"),
    ],
    ids=["nothing", "full", "half", "short", "sync", "unlink"],
)
def test_shim_fails_the_operation_it_is_armed_for(
    tmp_path: Path, kinds: Kind, number: int, fault: int, said: str, *, partly: bool
) -> None:
    """What is armed happens to files below the directory, nothing else does, and the clock moves."""
    with Shim(tmp_path, tmp_path / "state") as shim:
        (tmp_path / "state").mkdir()
        shim.sync_delay_s, shim.clock_offset_s = 0.5, 36_000.0
        shim.arm(kinds, number, number, fault, partly=partly)
        told = {}
        for where in ("state", "."):
            done = subprocess.run(
                [sys.executable, "-c", PROBE, str(tmp_path / where / "file")],
                env={**os.environ, **shim.environ},
                capture_output=True,
                text=True,
                check=True,
            )
            told[where], hour = done.stdout.rsplit(" ", 1)
            assert abs(int(hour) - (time.time() + 36_000) / 3600) < 1
            assert shim.failed == (1 if number else 0)
    assert told["state"] == said
    assert told["."] == "[(8, 0.0), (None, 0.0), (None, 0.0)] 8"


def health_told(lines: list[str]) -> list[list[str]]:
    """The reasons in each message on the health topic."""
    return [json.loads(line)["reasons"] for line in lines]


def endures(
    here: Site, break_: Callable[[], object], mend: Callable[[], object], lasting_s: float = 5.0
) -> str:
    """Break something under load and mend it: trouble shows, nothing is taken meanwhile, all is well after.

    Returns what /readyz gave as the reason.
    """
    pid = here.daemon.pid
    with (
        Subscriber(here.broker.port, "gruard/health", "%p") as health,
        Load(here.broker.port) as load,
    ):
        here.rests(1.5)
        break_()
        assert here.waits(here.reasons, PROMPT_S), here.daemon.log()[-5000:]
        reason = here.reasons()
        assert here.waits(lambda: any(health_told(health.lines)), PROMPT_S), health.lines
        scored = here.daemon.metric('gruard_readings_total{result="scored"}')
        here.rests(lasting_s)
        # What fits in the window of the broker and one batch, and no more: the rest waits there.
        assert here.daemon.metric('gruard_readings_total{result="scored"}') - scored < 1000
        assert here.reasons(), here.daemon.log()[-5000:]
        mend()
        assert here.waits(here.ready, PROMPT_S), here.reasons() + here.daemon.log()[-5000:]
        assert here.waits(lambda: not health_told(health.lines)[-1], PROMPT_S), health.lines
        assert here.has_all_of(load)
    assert here.daemon.pid == pid
    assert here.daemon.alive
    assert here.manager.longest_gap_s < WATCHDOG_S
    assert here.daemon.metric("gruard_mqtt_reconnects_total") == 0
    assert "Traceback" not in here.daemon.log()
    return reason


@repeated
@pytest.mark.parametrize("megabytes", [4, 12] if EVERY else [4])
@pytest.mark.broker
@pytest.mark.slow
def test_disk_full_daemon_waits_and_goes_on_once_there_is_room(tmp_path: Path, megabytes: int) -> None:
    """A full disk is told, not suffered in silence, and costs no reading."""
    with small_disk(tmp_path / "disk", megabytes) as disk, site(tmp_path, disk / "state") as here:
        ballast = disk / "ballast"
        reason = endures(here, lambda: fill(ballast), ballast.unlink)
    assert "full" in reason


@repeated
@pytest.mark.broker
@pytest.mark.slow
def test_disk_full_killed_meanwhile_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    """What a daemon took while the disk was full is either on it or comes again from the broker."""
    with (
        small_disk(tmp_path / "disk", 8) as disk,
        site(tmp_path, disk / "state") as here,
        Load(here.broker.port) as load,
    ):
        here.rests(1.5)
        fill(disk / "ballast")
        assert here.waits(here.reasons), here.daemon.log()[-5000:]
        here.rests(1.0)
        here.daemon.stop(signal.SIGKILL)
        (disk / "ballast").unlink()
        here.daemon.start(environ=here.shim.environ | here.manager.environ)
        assert here.has_all_of(load)


@repeated
@pytest.mark.parametrize("fault", [errno.EROFS, errno.EIO] if EVERY else [errno.EROFS])
@pytest.mark.broker
@pytest.mark.slow
def test_disk_refuses_every_change_daemon_waits_and_goes_on_after(tmp_path: Path, fault: int) -> None:
    """A file system that turned read-only, as Linux does after an error, is told and costs no reading."""
    with site(tmp_path, tmp_path / "state") as here:
        endures(here, lambda: here.shim.arm(Kind.ANY, 1, NEVER, fault), here.shim.disarm)


@repeated
@pytest.mark.broker
@pytest.mark.slow
def test_state_directory_renamed_away_is_noticed_and_taken_up_again(tmp_path: Path) -> None:
    """Nothing goes on being acknowledged into a directory that the next start would not find."""
    state, away = tmp_path / "state", tmp_path / "away"
    with site(tmp_path, state) as here:
        counts = []

        def mend() -> None:
            counts.append(sum(map(len, journalled(away, [f"pump-{n}" for n in range(4)]).values())))
            here.rests(1.0)
            counts.append(sum(map(len, journalled(away, [f"pump-{n}" for n in range(4)]).values())))
            away.rename(state)

        reason = endures(here, lambda: state.rename(away), mend)
    assert str(state) in reason
    assert counts[0] == counts[1]
    assert not away.exists()


@repeated
@pytest.mark.broker
@pytest.mark.slow
def test_log_of_the_database_deleted_costs_nothing(tmp_path: Path) -> None:
    """Somebody tidies the write-ahead log away: nothing goes on into a file without a name."""
    with site(tmp_path, tmp_path / "state") as here, Load(here.broker.port) as load:
        here.rests(2.0)
        (here.daemon.state / "gruard.db-wal").unlink()
        assert here.waits(lambda: not here.daemon.alive or here.reasons()), "nobody noticed"
        here.daemon.stop(signal.SIGKILL)
        here.daemon.start(environ=here.shim.environ | here.manager.environ)
        assert here.has_all_of(load)


@pytest.mark.parametrize("delay_s", [0.01, 0.2, 2.0])
@pytest.mark.broker
@pytest.mark.slow
def test_disk_slow_holds_the_broker_back_and_loses_nothing(tmp_path: Path, delay_s: float) -> None:
    """Each sync takes longer for a while: the connection stands, the watchdog is fed, nothing is lost."""
    with site(tmp_path, tmp_path / "state") as here, Load(here.broker.port) as load:
        here.rests(1.0)
        here.shim.sync_delay_s = delay_s
        here.rests(20.0 if EVERY else 8.0)
        here.shim.sync_delay_s = 0.0
        assert here.has_all_of(load)
        assert here.daemon.metric("gruard_mqtt_reconnects_total") == 0
        assert here.daemon.metric('gruard_readings_total{result="shed"}') == 0
        assert here.manager.longest_gap_s < WATCHDOG_S
        assert here.waits(here.ready)


@repeated
@pytest.mark.broker
@pytest.mark.slow
def test_disk_fails_now_and_then_nothing_is_lost_or_taken_twice(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Again and again one to twenty operations fail, through checkpoints, pruning and a training round."""
    seed = request.node.name
    random = Random(seed)
    with site(tmp_path, tmp_path / "state", train="10s") as here, Load(here.broker.port) as load:
        failed = 0
        for _ in range(60 if EVERY else 30):
            first, fault = random.randint(1, 60), random.choice([errno.EIO, errno.ENOSPC, 0])
            here.shim.arm(Kind.ANY, first, first + random.randint(0, 19), fault, partly=random.random() < 0.5)
            here.rests(0.5)
            failed += here.shim.failed
        here.shim.disarm()
        assert failed > 10, seed
        assert here.waits(here.ready, 2 * PROMPT_S), here.reasons()
        assert here.has_all_of(load), seed
        assert here.daemon.alive, here.daemon.log()[-5000:]
        assert here.manager.longest_gap_s < WATCHDOG_S
        assert here.daemon.metric("gruard_mqtt_reconnects_total") == 0
        assert here.daemon.stop() == 0
        assert "Traceback" not in here.daemon.log()


@pytest.mark.broker
@pytest.mark.slow
def test_stop_while_the_disk_refuses_is_quick_and_costs_nothing(tmp_path: Path) -> None:
    """SIGTERM does not wait for a disk: what was not saved is not acknowledged, and comes again."""
    with site(tmp_path, tmp_path / "state") as here, Load(here.broker.port) as load:
        here.rests(1.5)
        here.shim.arm(Kind.ANY, 1, NEVER, errno.EIO)
        assert here.waits(here.reasons)
        began_s = time.monotonic()
        assert here.daemon.stop() == 0
        assert time.monotonic() - began_s < PROMPT_S
        here.shim.disarm()
        here.daemon.start(environ=here.shim.environ | here.manager.environ)
        assert here.has_all_of(load)
        assert "Traceback" not in here.daemon.log()


@contextmanager
def killed_with_readings(folder: Path, disk: Path) -> Iterator[tuple[Site, Load]]:
    """A daemon that was killed with readings in its log, so that the next start has something to write."""
    with site(folder, disk / "state") as here:
        with Load(here.broker.port) as load:
            here.rests(1.0)
            assert here.has_all_of(load)
        here.daemon.stop(signal.SIGKILL)
        yield here, load


@pytest.mark.broker
@pytest.mark.slow
def test_start_on_a_read_only_disk_says_why_and_harms_nothing(tmp_path: Path) -> None:
    """A start that cannot write ends with the reason, and what is stored is there at the next one."""
    with (
        small_disk(tmp_path / "disk", 8) as disk,
        killed_with_readings(tmp_path, disk) as (here, load),
    ):
        remount(disk, "ro")
        first = here.daemon.run("run")
        remount(disk, "rw")
        assert first.returncode == 70, first.stderr
        assert str(here.daemon.state) in first.stderr
        assert "Traceback" not in first.stderr
        here.daemon.start()
        assert journalled(here.daemon.state, load.sent) == load.sent
        assert not list(here.daemon.state.glob("*damaged*"))


@pytest.mark.broker
@pytest.mark.slow
def test_start_on_a_full_disk_holds_until_there_is_room(tmp_path: Path) -> None:
    """A start finds the disk full: the daemon lives, says so, and takes readings once there is room."""
    with (
        small_disk(tmp_path / "disk", 8) as disk,
        killed_with_readings(tmp_path, disk) as (here, before),
    ):
        fill(disk / "ballast")
        here.daemon.start(ready=False, environ=here.manager.environ)
        here.manager.begin()
        with Load(here.broker.port) as load:
            assert here.waits(lambda: "full" in here.reasons(), 2 * PROMPT_S), here.daemon.log()
            (disk / "ballast").unlink()
            assert here.waits(here.ready)
            load.stop()
            sent = {device: before.sent[device] + load.sent[device] for device in load.sent}
            assert here.waits(lambda: journalled(here.daemon.state, sent) == sent, 60), here.daemon.log()
        assert not list(here.daemon.state.glob("*damaged*"))
