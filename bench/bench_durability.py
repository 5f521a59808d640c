"""What durability costs, and how long a start takes that has to replay the journal.

    python bench/bench_durability.py [--devices 1000] [--seconds 20] [--replay 120000] [--keep]

Throughput: JSON messages of 8 fields through decoding, scoring and a commit every 512 readings, beside the
very same without the database; turns are taken, and the ratio of the medians is told. Latency: 1,000
readings a second, from arrival to durable, beside arrival to scored. Recovery: a fresh process opens a state
directory of so many devices with so many readings behind the checkpoints, imports included.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when numpy is imported

import numpy as np
from keeping import RESULTS, keep, rounded

from gruard.daemon.core.deliveries import Deliveries
from gruard.daemon.core.engine import Engine, EngineOptions
from gruard.daemon.core.sources import Sources
from gruard.daemon.edges.database import open_database
from gruard.daemon.edges.metrics import Metrics
from gruard.daemon.intake import Intake
from gruard.daemon.pending import Pending
from gruard.daemon.pipeline import Pipeline, TrainingSettings
from gruard.daemon.records import Message, SourceOptions
from gruard.models.calibration import Budget

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from contextlib import AbstractContextManager

    from gruard.daemon.edges.database import Database

FIELDS, COMMIT, RATE = 8, 512, 1000
#: Readings of each device before anything is measured: past enrolment.
WARMUP = 64
SOURCE = SourceOptions("plant", "plant/{device}", time="ts")


class Unwritten(Pending):
    """The same group of facts, which nobody writes."""

    def write(self) -> None:
        """Nothing."""

    def commit(self, backlog: Collection[int] = ()) -> None:  # noqa: ARG002 -- the base class's signature
        """Forget."""
        self._facts.clear()
        self._deliveries.clear()


class Plant:
    """A pipeline with devices past enrolment, and messages for it."""

    def __init__(self, database: Database, folder: Path, devices: int) -> None:
        self.devices = devices
        self.pipeline = Pipeline(
            Engine(EngineOptions((SOURCE,), Budget(), most_devices=10 * devices)),
            database,
            folder,
            TrainingSettings(every_s=None),
            base="gruard",
            wall=time.time,
            monotonic=time.monotonic,
        )
        self.intake = Intake(Sources([SOURCE]), Deliveries(), self.pipeline, Metrics(version="bench"))
        self._messages = self._endless()
        for _ in range(WARMUP * devices // COMMIT + 1):
            self.turn(COMMIT)
        self.pipeline.checkpoint()

    def _endless(self) -> Iterator[Message]:
        rng = np.random.default_rng(0)
        packet_id, t = 0, 0
        while True:
            t += 1
            for device in range(self.devices):
                packet_id = packet_id % 65_535 + 1
                values = np.sin(t / 8 + np.arange(FIELDS)) + 0.1 * rng.standard_normal(FIELDS)
                body = {f"f{k}": round(v, 4) for k, v in enumerate(values.tolist())} | {"ts": 1.7e9 + t}
                payload = json.dumps(body).encode()
                yield Message(f"plant/d{device:05}", payload, 1.7e9 + t, qos=1, packet_id=packet_id)

    def take(self, count: int) -> list[Message]:
        """The next messages."""
        return [next(self._messages) for _ in range(count)]

    def score(self, messages: list[Message]) -> None:
        """Everything but the commit."""
        waiting = deque(messages)
        while waiting:
            self.intake.take(waiting, crowded=False)
            while self.pipeline.backlog:
                self.pipeline.advance()
                self.pipeline.settle()

    def turn(self, count: int) -> float:
        """Score and commit so many; seconds taken, without making the messages."""
        messages = self.take(count)
        began = time.perf_counter()
        self.score(messages)
        self.pipeline.commit()
        return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    parser.add_argument("--recovery-devices", type=int, default=10_000)
    parser.add_argument("--replay", type=int, default=120_000)
    parser.add_argument("--keep", action="store_true", help="write bench/results/durability.json")
    parser.add_argument("--recover", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.recover:
        recover(options.recover, options.recovery_devices)
        return
    figures = {}
    with tempfile.TemporaryDirectory(prefix="gruard-bench-", dir=Path.cwd()) as name:
        folder = Path(name)
        with opened(folder / "with") as one, opened(folder / "without") as two:
            durable, bare = (
                Plant(one, folder / "with", options.devices),
                Plant(two, folder / "without", options.devices),
            )
            bare.pipeline.pending = Unwritten(two)
            figures |= throughput(durable, bare, options.seconds)
            figures |= latency(durable, bare, options.seconds)
        figures |= recovery(folder / "recovery", options.recovery_devices, options.replay)
    for figure, value in figures.items():
        print(f"{figure:32} {value:>12.4g}")
    if options.keep:
        keep(RESULTS / "durability.json", {"figures": {k: rounded(v) for k, v in figures.items()}})


def opened(folder: Path) -> AbstractContextManager[Database]:
    folder.mkdir()
    return open_database(folder, now_s=time.time())


def throughput(durable: Plant, bare: Plant, seconds: float) -> dict[str, float]:
    """Readings a second with and without the database."""
    spent: dict[Plant, list[float]] = {durable: [], bare: []}
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for plant, turns in spent.items():
            turns.append(plant.turn(COMMIT))
    with_s, without_s = (statistics.median(turns) for turns in spent.values())
    return {
        "readings/s durable": COMMIT / with_s,
        "readings/s without": COMMIT / without_s,
        "throughput ratio": without_s / with_s,
    }


def latency(durable: Plant, bare: Plant, seconds: float) -> dict[str, float]:
    """Seconds from arrival to durable and to scored, at RATE readings a second."""
    found = {}
    for name, plant, commits in (("durable", durable, True), ("without", bare, False)):
        waits = paced(plant, seconds / 2, commits=commits)
        found |= {f"{name} p{q} ms": 1000 * float(np.percentile(waits, q)) for q in (50, 99)}
    return found | {"added p99 ms": found["durable p99 ms"] - found["without p99 ms"]}


def paced(plant: Plant, seconds: float, *, commits: bool) -> list[float]:
    """As the service does it: take what has arrived, score, commit after 10 ms or 100 readings."""
    messages = plant.take(int(seconds * RATE))
    began, done, unacked, due = time.perf_counter(), 0, [], 0.0
    waits = []
    while done < len(messages) or unacked:
        now = time.perf_counter()
        ready = min(int((now - began) * RATE), len(messages))
        if ready > done:
            if not unacked:
                due = now + 0.010
            plant.score(messages[done:ready])
            unacked += [began + n / RATE for n in range(done, ready)]
            done = ready
        else:
            time.sleep(0.0005)
        if unacked and (not commits or len(unacked) >= 100 or time.perf_counter() >= due):
            plant.pipeline.commit()
            ended = time.perf_counter()
            waits += [ended - arrived for arrived in unacked]
            unacked = []
    return waits


def recovery(folder: Path, devices: int, replay: int) -> dict[str, float]:
    """Seconds until a fresh process is where the journal ends."""
    with opened(folder) as database:
        plant = Plant(database, folder, devices)
        plant.pipeline.checkpoint()  # both generations
        for _ in range(replay // COMMIT):
            plant.turn(COMMIT)
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, __file__, "--recover", str(folder), "--recovery-devices", str(devices)],
        check=True,
        capture_output=True,
        text=True,
    )
    told = json.loads(done.stdout)
    return {
        "recovery s": time.perf_counter() - began,
        "replayed": told["replayed"],
        "recover() s": told["seconds"],
    }


def recover(folder: Path, devices: int) -> None:
    """The child: recover and tell."""
    with open_database(folder, now_s=time.time()) as database:
        began = time.perf_counter()
        pipeline = Pipeline(
            Engine(EngineOptions((SOURCE,), Budget(), most_devices=10 * devices)),
            database,
            folder,
            TrainingSettings(every_s=None),
            base="gruard",
            wall=time.time,
            monotonic=time.monotonic,
        )
        replayed = pipeline.recover()
    print(json.dumps({"replayed": replayed, "seconds": time.perf_counter() - began}))


if __name__ == "__main__":
    main()
