"""The faults, one function each: what is done to the daemon `count` times, and what must hold all the same.

Every function takes an empty folder of its own, a seed and a count, and gives a Report. Choices follow from
the seed; the exact moment at which a fault meets the daemon does not: a failing seed may need several tries.
"""

from __future__ import annotations

import random
import re
import signal
import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from support_mqtt import wait_until
from torture.checker import Verdict
from torture.netns import Namespace, why_not
from torture.rig import READY_S, Rig
from torture.truth import FOR_EVER, MODES

from gruard.daemon.edges.failpoints import NAMES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torture.truth import Mode

#: A failpoint that is not reached in this time is not on the way of anything.
REACH_S: Final = 30.0
#: Of each group of failpoints, how often they are passed before the daemon dies there.
_PASSES: Final = {"checkpoint": 2, "prune": 2, "publish": 4, "outbox": 4, "recover": 1, "stop": 1, "model": 1}
_OFTEN: Final = 40
#: More readings a second than the daemon can score.
_CATCHES_UP: Final = 10_000
_WAITING: Final = "gruard_inbox_readings"
#: Keepalive of the rig's daemon; a dead link is noticed within twice that.
_KEEPALIVE_S: Final = 5.0
_NOTICE_S, _RETURN_S = 2 * _KEEPALIVE_S + 1.0, 5.0
#: Resident memory may grow by this much over a soak, and to so many times its size under overload.
_SOAK_BYTES, _OVERLOAD_TIMES = 8e6, 1.5


@dataclass(slots=True)
class Report:
    """One line of the table."""

    fault: str
    seed: int
    count: int
    verdict: Verdict
    seconds: float
    facts: dict[str, float] = field(default_factory=dict)  # what else was measured

    @property
    def broken(self) -> list[str]:
        """Every promise that was broken."""
        return [str(finding) for finding in self.verdict.findings]


class UnavailableError(Exception):
    """This machine cannot do the fault; the text says what is missing."""


def kill_at_random(
    folder: Path, seed: int, count: int, *, modes: tuple[Mode, ...] = MODES, trained: bool = False
) -> Report:
    """F1: SIGKILL at a random moment while 1,000 readings a second come in."""
    rng, began_s, slowest_s = random.Random(seed), time.monotonic(), 0.0
    with Rig(folder, seed, modes=modes, trained=trained) as rig:
        for _ in range(count):
            time.sleep(rng.uniform(0.05, 1.5))
            rig.daemon.kill()
            # One in four dies again before anybody knows whether it is up.
            slowest_s = max(slowest_s, _restart(rig, wait=rng.random() < 0.75))
        verdict = rig.finish()
    if slowest_s > READY_S:
        verdict.add("P8", "all", f"was ready only after {slowest_s:.1f} s")
    return Report("F1", seed, count, verdict, time.monotonic() - began_s, {"ready_s": slowest_s})


def die_at_failpoints(
    folder: Path,
    seed: int,
    count: int,
    names: Sequence[str] = NAMES,
    *,
    rate: float = 1000.0,
    chained: bool = False,
) -> Report:
    """F2: SIGKILL at each named failpoint, `count` times.

    `chained`: the restart after a death is already armed with the next one.
    """
    rng, began_s = random.Random(seed), time.monotonic()
    switching = [name for name in names if name.startswith("model.")]
    others = [name for name in names if name not in switching for _ in range(count)]
    rng.shuffle(others)
    verdict = _die_in_turn(folder, seed, rng, others, rate, chained=chained) if others else Verdict()
    for turn in range(count if switching else 0):
        here = folder / f"switch-{turn}"
        here.mkdir()
        _add(verdict, _die_while_switching(here, seed + turn, switching))
    return Report("F2", seed, count * len(names), verdict, time.monotonic() - began_s)


def _die_in_turn(
    folder: Path, seed: int, rng: random.Random, names: Sequence[str], rate: float, *, chained: bool
) -> Verdict:
    with Rig(folder, seed, modes=MODES, rate=rate) as rig:
        for turn, name in enumerate(names):
            if turn == 0 or not chained:
                time.sleep(rng.uniform(0.1, 0.4))  # so that a recovery has something to replay
                rig.daemon.kill()
            passes = rng.randint(1, _PASSES.get(name.split(".", maxsplit=1)[0], _OFTEN))
            _die_at(rig, f"{name}:{passes}")
            if not chained:
                _restart(rig)
        if chained:
            _restart(rig)
        return rig.finish()


def _die_at(rig: Rig, failpoint: str) -> None:
    """Start the daemon armed, and let it die there."""
    rig.daemon.launch(failpoint)
    if failpoint.startswith("stop."):
        assert rig.daemon.ready(), rig.daemon.why()
        rig.daemon.signal(signal.SIGTERM)
    _died_at(rig, failpoint)


def _died_at(rig: Rig, failpoint: str) -> None:
    status = rig.daemon.died(REACH_S)
    if status != -signal.SIGKILL:
        rig.verdict.add("F2", "all", f"{failpoint} was not reached: status {status}")
        rig.daemon.kill()


def _die_while_switching(folder: Path, seed: int, names: Sequence[str]) -> Verdict:
    """Deaths while the first model takes charge; after each of them another round brings one."""
    armed = [f"{name}:1" for name in names]
    with Rig(folder, seed, places=4, rate=300.0, every="999h", life=FOR_EVER, armed=armed[0]) as rig:
        _died_at(rig, armed[0])
        for failpoint in armed[1:]:
            _die_at(rig, failpoint)
        _restart(rig)
        promoted = 'gruard_retrain_total{result="promoted"}'
        if not wait_until(lambda: rig.daemon.metric(promoted) == 1, 2 * REACH_S):
            rig.verdict.add("P8", "all", f"no model took charge after deaths at {', '.join(names)}")
        time.sleep(0.5)
        return rig.finish()


def kill_while_recovering(folder: Path, seed: int, count: int, *, rate: float = 1000.0) -> Report:
    """F3: up to five deaths in a row during the recovery from the one before."""
    rng, began_s, deaths = random.Random(seed), time.monotonic(), 0
    checkpoint_s = 3
    with Rig(folder, seed, modes=MODES, rate=rate, checkpoint=f"{checkpoint_s}s") as rig:
        for _ in range(count):
            time.sleep(rng.uniform(0.3, 2.0))
            rig.daemon.kill()
            for _ in range(rng.randint(1, 5)):
                where = rng.choice(["recover.before", "recover.replayed", "recover.after", ""])
                rig.daemon.launch(where)
                if not where or rig.daemon.died(3.0) is None:  # nothing behind the checkpoint to replay
                    time.sleep(rng.uniform(0.05, 0.7))
                    rig.daemon.kill()
                deaths += 1
            _restart(rig)
        replayed = [int(n) for n in re.findall(r"(\d+) readings replayed", rig.daemon.log())]
        verdict = rig.finish()
    # What is replayed is what a daemon that catches up can score between two checkpoints, and no more,
    # however often a start was cut short.
    if max(replayed) > 2 * checkpoint_s * _CATCHES_UP:
        verdict.add("P7", "all", f"{max(replayed)} readings were replayed: checkpoints do not bound it")
    facts = {"deaths": float(deaths), "replayed": float(max(replayed))}
    return Report("F3", seed, count, verdict, time.monotonic() - began_s, facts)


def restart_broker(folder: Path, seed: int, count: int) -> Report:
    """F9: the broker ends the clean way and comes back while the daemon has work waiting."""
    rng, began_s, busy = random.Random(seed), time.monotonic(), 0
    with Rig(folder, seed, modes=MODES) as rig:
        for _ in range(count):
            time.sleep(rng.uniform(0.3, 1.0))
            rig.sender.rate = 8000.0
            time.sleep(0.3)
            if rng.random() < 0.5:
                # Nothing of the publisher's is in doubt then, so dumb sensors are judged strictly too.
                assert rig.sender.drain()
            busy += rig.counted() < rig.truth.total
            rig.broker.stop()
            rig.sender.rate = 1000.0
            time.sleep(rng.uniform(0.0, 1.0))
            rig.broker.start()
            rig.sender.resume()
        verdict = rig.finish()
    return Report("F9", seed, count, verdict, time.monotonic() - began_s, {"busy": float(busy)})


def kill_broker(folder: Path, seed: int, count: int) -> Report:
    """F10: SIGKILL for the broker. What it never delivered is its loss; what we acknowledged is ours."""
    rng, began_s = random.Random(seed), time.monotonic()
    with Rig(folder, seed, modes=("ts", "seq"), tapped=True) as rig:
        for _ in range(count):
            time.sleep(rng.uniform(0.8, 2.5))
            rig.broker.kill()
            time.sleep(rng.uniform(0.0, 1.0))
            rig.broker.start()
        time.sleep(1.0)
        verdict = rig.finish()
    facts = {"lost_by_broker": float(verdict.broker_lost)}
    return Report("F10", seed, count, verdict, time.monotonic() - began_s, facts)


def cut_link(folder: Path, seed: int, count: int) -> Report:
    """F12: the link goes dead without a word, both ways or in one direction only, and comes back."""
    reason = why_not()
    if reason:
        raise UnavailableError(reason)
    rng, began_s = random.Random(seed), time.monotonic()
    noticed_s, back_s = [0.0], [0.0]
    namespace = Namespace().make()
    try:
        with Rig(folder, seed, modes=MODES, namespace=namespace) as rig:
            for turn in range(count):
                time.sleep(rng.uniform(0.5, 1.5))
                _cut_once(rig, namespace, noticed_s, back_s, rng.uniform(0.0, 4.0), half_open=turn % 2 == 1)
            verdict = rig.finish()
    finally:
        namespace.remove()
    if max(noticed_s) > _NOTICE_S:
        verdict.add("P7", "all", f"a dead link was noticed after {max(noticed_s):.1f} s")
    if max(back_s) > _RETURN_S:
        verdict.add("P7", "all", f"was back only {max(back_s):.1f} s after the link")
    facts = {"noticed_s": max(noticed_s), "back_s": max(back_s)}
    return Report("F12", seed, count, verdict, time.monotonic() - began_s, facts)


def _cut_once(
    rig: Rig,
    namespace: Namespace,
    noticed_s: list[float],
    back_s: list[float],
    stay_s: float,
    *,
    half_open: bool,
) -> None:
    (namespace.deafen if half_open else namespace.pull)()
    noticed_s.append(_seconds_until(lambda: rig.daemon.metric("gruard_mqtt_connected") == 0, 3 * _NOTICE_S))
    time.sleep(stay_s)
    (namespace.undeafen if half_open else namespace.plug)()
    back_s.append(_seconds_until(lambda: rig.daemon.metric("gruard_mqtt_connected") == 1, 8 * _RETURN_S))


def stop_under_load(folder: Path, seed: int, count: int) -> Report:
    """F21: SIGTERM under load; the stop is quick, and nothing is lost by it."""
    rng, began_s, slowest_s = random.Random(seed), time.monotonic(), 0.0
    with Rig(folder, seed, modes=MODES) as rig:
        for _ in range(count):
            rig.sender.rate = rng.choice([1000.0, 4000.0])
            time.sleep(rng.uniform(0.2, 1.2))
            stopped_s = time.monotonic()
            rig.stop()
            rig.sender.rate = 1000.0
            slowest_s = max(slowest_s, time.monotonic() - stopped_s)
            _restart(rig)
        verdict = rig.finish()
    return Report("F21", seed, count, verdict, time.monotonic() - began_s, {"stop_s": slowest_s})


def overload(folder: Path, seed: int, count: int) -> Report:
    """F20: ten times as many readings as usual, for `count` seconds."""
    began_s = time.monotonic()
    with Rig(folder, seed, modes=MODES) as rig:
        time.sleep(5.0)
        usual = rig.daemon.resident_bytes()
        peak, sent = usual, rig.truth.total
        rig.sender.rate *= 10
        for _ in range(4 * count):
            time.sleep(0.25)
            peak = max(peak, rig.daemon.resident_bytes())
        sent = rig.truth.total - sent
        rig.sender.rate /= 10
        assert rig.sender.drain()
        drained_s = _seconds_until(lambda: rig.counted() >= rig.truth.total, 600.0)
        peak = max(peak, rig.daemon.resident_bytes())
        wait_until(lambda: not rig.daemon.metric(_WAITING))  # shown once a second
        lag = rig.daemon.metric(_WAITING)
        verdict = rig.finish()
    if peak > _OVERLOAD_TIMES * usual:
        verdict.add("P7", "all", f"memory rose from {usual / 1e6:.0f} to {peak / 1e6:.0f} MB under overload")
    if lag:
        verdict.add("P7", "all", f"{lag:.0f} readings still wait after the overload")
    facts = {"rate": sent / count, "drained_s": drained_s, "usual_mb": usual / 1e6, "peak_mb": peak / 1e6}
    return Report("F20", seed, count, verdict, time.monotonic() - began_s, facts)


def soak(folder: Path, seed: int, count: int, *, every_s: float = 30.0) -> Report:
    """F22: for `count` minutes a random fault every half minute; memory and descriptors stay flat."""
    rng, began_s = random.Random(seed), time.monotonic()
    namespace = None if why_not() else Namespace().make()
    resident: list[int] = []
    descriptors: list[int] = []
    faults = 0
    try:
        with Rig(folder, seed, modes=MODES, life=FOR_EVER, namespace=namespace) as rig:
            ends_s = time.monotonic() + 60.0 * count
            while time.monotonic() < ends_s:
                time.sleep(every_s)
                resident.append(rig.daemon.resident_bytes())
                descriptors.append(rig.daemon.descriptors())
                rng.choice(_soak_faults(namespace))(rig)
                faults += 1
            verdict = rig.finish()
    finally:
        if namespace is not None:
            namespace.remove()
    half = len(resident) // 2
    grown = statistics.median(resident[half:]) - statistics.median(resident[: half or 1])
    if grown > _SOAK_BYTES:
        verdict.add("P7", "all", f"memory grew by {grown / 1e6:.1f} MB over the soak")
    spread = max(descriptors) - min(descriptors)
    if spread > 4:  # one more for a connection that comes or goes, and a reader of the database
        verdict.add(
            "P7", "all", f"open file descriptors ranged from {min(descriptors)} to {max(descriptors)}"
        )
    facts = {"faults": float(faults), "grown_mb": grown / 1e6, "descriptors": float(max(descriptors))}
    return Report("F22", seed, count, verdict, time.monotonic() - began_s, facts)


def _soak_faults(namespace: Namespace | None) -> list[Callable[[Rig], object]]:
    def kill(rig: Rig) -> None:
        rig.daemon.kill()
        _restart(rig)

    def stop(rig: Rig) -> None:
        rig.stop()
        _restart(rig)

    def broker(rig: Rig) -> None:
        assert rig.sender.drain()
        rig.broker.stop()
        rig.broker.start()
        rig.sender.resume()

    def link(rig: Rig) -> None:
        if namespace is not None:
            _cut_once(rig, namespace, [], [], 1.0, half_open=False)

    return [kill, stop, broker, *([link] if namespace is not None else [])]


def _restart(rig: Rig, *, wait: bool = True) -> float:
    """Start the daemon; how long it took until it was ready, 0 where nobody waited."""
    started_s = time.monotonic()
    rig.daemon.launch()
    if not wait:
        return 0.0
    assert rig.daemon.ready(), rig.daemon.why()
    return time.monotonic() - started_s


def _seconds_until(condition: Callable[[], object], most_s: float) -> float:
    began_s = time.monotonic()
    wait_until(condition, most_s)
    return time.monotonic() - began_s


def _add(verdict: Verdict, other: Verdict) -> None:
    """Take another run's counts and findings in."""
    for name in ("readings", "lost", "double", "inverted", "broker_lost", "alerts", "alert_differences"):
        setattr(verdict, name, getattr(verdict, name) + getattr(other, name))
    verdict.worst = max(verdict.worst, other.worst)
    verdict.findings += other.findings


#: Every fault by its name in the matrix, with the count at which a release is tried.
FAULTS: Final[dict[str, tuple[Callable[[Path, int, int], Report], int]]] = {
    "F1": (kill_at_random, 200),
    "F2": (die_at_failpoints, 10),
    "F3": (kill_while_recovering, 20),
    "F9": (restart_broker, 30),
    "F10": (kill_broker, 20),
    "F12": (cut_link, 10),
    "F20": (overload, 30),
    "F21": (stop_under_load, 20),
    "F22": (soak, 30),
}
