"""What a change of weights does to readings that go on arriving: no alert, none lost, hardly later.

    python bench/bench_swap.py [--seconds 60] [--swaps 50] [--keep]

Fifty promotions, evenly spread, through the real pipeline in this process, with a database, at 2,000 readings
a second by the clock; and the same readings without a promotion, the control. The models are the group's own
with noise of 0.0001 and more on the weights: the swap is measured, not the models.

  alerts_caused    opened with swaps beyond those of the control. The bar is 0
  lost             readings that were fed and do not stand in the journal. The bar is 0
  scoring_p99_ms   of one batch, with and without. The bar is 20 % more
  arrival_p99_ms   from the moment a reading is due to its commit, with and without; the worst is told too.
                   Scoring waits while all devices are re-warmed: `swap_ms` is how long, of the middle swap.
                   This misses the bar by far, and grows with the devices. Half of the time goes into the
                   baseline's calibration, which a change of weights would not need
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when numpy is imported

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import numpy as np
from keeping import RESULTS, keep, rounded
from support_engine import plant_rows, readings_of
from support_pipeline import QUICK, UNTRAINED, finish_round, opened, play
from support_swaps import like

from gruard.daemon.core.events import Alert
from gruard.daemon.edges.trainer import MODELS
from gruard.models import weights

if TYPE_CHECKING:
    from gruard.daemon.records import Reading
    from gruard.models.weights import ModelPackage

DEVICES, RATE = 50, 2000
#: Readings of each device before anything is measured.
WARM = 1000
COMMIT_S = 0.01
BAR = 1.2


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=int, default=60, help="of each of the two runs")
    parser.add_argument("--swaps", type=int, default=50)
    parser.add_argument("--keep", action="store_true", help="keep the figures in results/swap.json")
    asked = parser.parse_args()
    rows = WARM + asked.seconds * RATE // DEVICES
    fleet = [readings_of(f"d{n:02}", plant_rows(rows, fields=2, seed=n)) for n in range(DEVICES)]
    readings = [device[row] for row in range(rows) for device in fleet]
    with tempfile.TemporaryDirectory() as folder:
        model = trained(Path(folder) / "trained", readings)
        control = run(Path(folder) / "control", readings, model, [])
        others = [like(model, 1e-4 * (n + 1)) for n in range(asked.swaps)]
        swapped = run(Path(folder) / "swapped", readings, model, others)
    figures = {
        "readings": len(readings) - WARM * DEVICES,
        "devices": DEVICES,
        "swaps": asked.swaps,
        "alerts_control": control["alerts"],
        "alerts_swapped": swapped["alerts"],
        "alerts_caused": max(0, swapped["alerts"] - control["alerts"]),
        "lost": control["lost"] + swapped["lost"],
        "swap_ms": swapped["swap_ms"],
    }
    for name in ("scoring_p50_ms", "scoring_p99_ms", "arrival_p50_ms", "arrival_p99_ms", "arrival_worst_ms"):
        figures[name] = {"without": control[name], "with": swapped[name]}
    for name, value in figures.items():
        print(f"{name:18} {value}")
    met = figures["alerts_caused"] == figures["lost"] == 0
    print("alerts and readings:", "met" if met else "missed")
    for name in ("scoring_p99_ms", "arrival_p99_ms"):
        ratio = swapped[name] / control[name]
        figures[name]["ratio"] = rounded(ratio, 3)
        print(f"{name}: {ratio:.2f} times the control's:", "met" if ratio <= BAR else "missed")
    if asked.keep:
        keep(RESULTS / "swap.json", figures)


def trained(folder: Path, readings: list[Reading]) -> ModelPackage:
    """The group's first model, by a training round on what the devices show first."""
    with opened(folder, QUICK) as pipeline:
        play(pipeline, readings[: 400 * DEVICES])
        while not pipeline.models:
            if not pipeline.rounds.trainer.runs():
                pipeline.rounds.begin_now(None)
            finish_round(pipeline)
        (note,) = pipeline.models.values()
        return weights.read(folder / MODELS, note.id)


def run(
    folder: Path, readings: list[Reading], model: ModelPackage, others: list[ModelPackage]
) -> dict[str, Any]:
    """Play the readings by the clock, promoting the others on the way."""
    warm, timed = readings[: WARM * DEVICES], readings[WARM * DEVICES :]
    with opened(folder, UNTRAINED) as pipeline:
        play(pipeline, warm[: len(warm) // 2])
        (folder / MODELS).mkdir()
        for package in (model, *others):
            weights.write(folder / MODELS, package)
        pipeline.adopt(model, "first")
        play(pipeline, warm[len(warm) // 2 :])
        scoring: list[float] = []
        late: list[float] = []
        swaps: list[float] = []
        alerts, fed = 0, 0
        every = len(timed) // (len(others) + 1)
        began = time.perf_counter()
        while fed < len(timed):
            now = time.perf_counter() - began
            due = min(int(now * RATE), len(timed))
            if due == fed:
                time.sleep(COMMIT_S / 4)
                continue
            due = min(due, fed + 512)
            pipeline.feed(timed[fed:due])
            while pipeline.backlog:
                start = time.perf_counter()
                events = pipeline.advance()
                scoring.append(time.perf_counter() - start)
                alerts += sum(isinstance(event, Alert) and event.state == "opened" for event in events)
            pipeline.commit()
            committed = time.perf_counter() - began
            late += [committed - n / RATE for n in range(fed, due)]
            fed = due
            if len(swaps) < len(others) and fed >= (len(swaps) + 1) * every:
                start = time.perf_counter()
                pipeline.adopt(others[len(swaps)], "swap")
                swaps.append(time.perf_counter() - start)
            time.sleep(max(0.0, COMMIT_S - (time.perf_counter() - began - now)))
        stored = sum(row.readings for row in pipeline.database.devices())
        ready = pipeline.engine.phase_counts()["ready"]
    print(f"{len(others)} swaps: {ready} of {DEVICES} devices by the model, {len(swaps)} done")
    return {
        "alerts": alerts,
        "lost": len(readings) - stored,
        "swap_ms": rounded(1e3 * float(np.median(swaps)), 3) if swaps else None,
        "scoring_p50_ms": milliseconds(scoring, 50),
        "scoring_p99_ms": milliseconds(scoring, 99),
        "arrival_p50_ms": milliseconds(late, 50),
        "arrival_p99_ms": milliseconds(late, 99),
        "arrival_worst_ms": milliseconds(late, 100),
    }


def milliseconds(seconds: list[float], percentile: float) -> float:
    return round(1e3 * float(np.percentile(seconds, percentile)), 3)


if __name__ == "__main__":
    main()
