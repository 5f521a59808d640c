"""Does learning while it runs help where the world drifts, and do no harm where it does not?

Four worlds are made of real recordings, per seed another machine: nothing changes; gains, offsets and noise
grow slowly; a regime changes at once; and a tenth of what is learned from is faulty. In each the same
readings go through the whole pipeline three times:

    never    one model is trained and kept
    always   every round's candidate takes charge, whatever its trial says
    gruard   as it is

Faults of known place are put into the last part of every world. Told are the alerts that were false, per
10,000 readings, how well the score ranks the faulty readings (VUS-PR), and the share of faults found.

    python bench/bench_worlds.py FOLDER [--seeds 3] [--world NAME] [--keep]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np

from gruard.daemon import training_round
from gruard.daemon.core.engine import Engine, EngineOptions
from gruard.daemon.core.events import Alert, Scored
from gruard.daemon.edges.database import open_database
from gruard.daemon.pipeline import Pipeline, TrainingSettings
from gruard.daemon.records import Reading, SourceOptions
from gruard.daemon.round_conduct import Conduct
from gruard.models.calibration import Budget
from gruard.models.plants import faults
from gruard.models.quality.episodes import judge, pooled
from gruard.models.quality.ranking import period, vus_pr

sys.path.insert(0, str(Path(__file__).parent))
from keeping import RESULTS, keep, rounded
from quality.suites import load

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from gruard.daemon.edges.trainer import TrainOutcome, TrainRequest
    from gruard.models.quality.episodes import Outcome

    Floats = NDArray[np.float64]

WORLDS = ("still", "gradual", "abrupt", "contaminated")
WAYS = ("never", "always", "gruard")
#: Rows of a world, the first model's warm-up, rows between two rounds; where change begins and is complete,
#: and from where on alerts and scores are judged.
ROWS, WARMUP, EVERY = 9000, 1200, 1400
CHANGE, CHANGED, JUDGED = 3000, 5000, 5800
#: Fields of a machine that are used: those that move most.
FIELDS = 8
#: A recording's reading is this long after the one before.
STEP_S = 60.0
#: Shares of the rows: faults to judge by, of these kinds, and what contaminates.
JUDGED_SHARE, CONTAMINATION = 0.25, 0.1


def main() -> None:
    """Run the worlds asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("folder", type=Path, help="the labelled recordings")
    parser.add_argument("--seeds", type=int, default=3, help="worlds of each kind (default: %(default)s)")
    parser.add_argument("--world", choices=WORLDS, action="append", help="only this one")
    parser.add_argument("--keep", action="store_true", help="keep the figures")
    options = parser.parse_args()
    streams = load(options.folder, "smd")
    figures: dict[str, Any] = {}
    for world in options.world or WORLDS:
        runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
        for seed in range(options.seeds):
            stream = streams[seed % len(streams)]
            values, labels = made(world, stream.values, seed)
            labels |= stream.labels[: len(labels)]
            for way in WAYS:
                runs[way].append(lived(values, labels, way, seed))
                told = _pooled(runs[way][-1:])
                print(world, seed, way, told, *runs[way][-1]["told"], sep="\n  ", flush=True)
        figures[world] = {way: _pooled(found) for way, found in runs.items()}
        for way, row in figures[world].items():
            print(f"{world:12} {way:7} {row}", flush=True)
    if options.keep:
        keep(RESULTS / "worlds.json", {"seeds": options.seeds, "worlds": figures})


def made(world: str, recorded: NDArray[Any], seed: int) -> tuple[Floats, NDArray[np.bool_]]:
    """A world of one device: readings (ROWS, FIELDS), and which rows are faulty where it is judged."""
    rng = np.random.default_rng(seed)
    x = np.asarray(recorded[:ROWS], np.float64)
    x = x[:, np.sort(np.argsort(-x.std(axis=0))[:FIELDS])]
    spread = x.std(axis=0) + 1e-3
    part = np.clip((np.arange(len(x)) - CHANGE) / (CHANGED - CHANGE), 0.0, 1.0)[:, None]  # (T, 1)
    signs = rng.choice([-1.0, 1.0], FIELDS)
    if world == "gradual":
        x = x * (1.0 + 0.3 * part * rng.uniform(0.5, 1.0, FIELDS)) + part * signs * 1.5 * spread
        x += part * 0.5 * spread * rng.normal(size=x.shape)
    elif world == "abrupt":
        moved = rng.random(FIELDS) < 0.6
        after = (np.arange(len(x)) >= CHANGE)[:, None]
        x = np.where(after & moved, 0.7 * x + 3.0 * signs * spread, x)
    elif world == "contaminated":
        head, _, _ = faults.inject_all(
            x[:JUDGED], faults.schedule(JUDGED, rng, share=CONTAMINATION, start=200), rng
        )
        x = np.concatenate((head, x[JUDGED:]))
    plan = faults.schedule(
        len(x) - JUDGED, rng, share=JUDGED_SHARE, kinds=("shift", "departure", "noise", "stuck")
    )
    labels = np.zeros(len(x), bool)
    tail = x[JUDGED:].copy()
    for kind, first, last in plan:
        size = faults.SIZES[kind][1] * rng.uniform(1.0, 2.0)
        try:
            faulty, where = faults.inject(x[JUDGED:], kind, first, last, rng, size=size)
        except faults.UnfitError:
            continue
        tail[where] = faulty[where]
        labels[JUDGED:] |= where
    return np.concatenate((x[:JUDGED], tail)), labels


def lived(values: Floats, labels: NDArray[np.bool_], way: str, seed: int) -> dict[str, Any]:
    """Let readings go through the pipeline in one way, and judge what it told."""
    training = TrainingSettings(
        warmup_readings=WARMUP,
        every_s=1e12 if way == "never" else EVERY * STEP_S,
        seed=seed,
        first_days_s=CHANGE * STEP_S,
    )
    clock = Clock()
    with tempfile.TemporaryDirectory() as name, open_database(Path(name), now_s=0.0) as database:
        engine = Engine(EngineOptions((SourceOptions("world", "world/{device}"),), Budget()))
        pipeline = Pipeline(
            engine,
            database,
            Path(name),
            training,
            base="gruard",
            wall=clock,
            monotonic=clock,
            always_hold=True,
        )
        rounds = Inline(way)
        pipeline.rounds.trainer = rounds  # type: ignore[assignment]
        alarm, scores = np.zeros(len(values), bool), np.zeros(len(values))
        kinds: list[str] = []
        for t, reading in enumerate(_readings(values)):
            clock.now_s = reading.time_s
            pipeline.feed([reading])
            while pipeline.backlog:
                for event in pipeline.advance():
                    match event:
                        case Scored():
                            scores[t] = 0.0 if np.isnan(event.score) else event.score
                        case Alert(kind="anomaly", state="opened"):
                            alarm[t] = True
                        case Alert(kind="new_normal" | "drift"):
                            kinds.append(f"{event.kind} {event.state} {t}")
                pipeline.settle()
                pipeline.poll_training()
            if t % 500 == 0:
                pipeline.commit()
        pipeline.commit()
    outcome = judge(labels, alarm, start=JUDGED)
    since = judge(labels, alarm, start=CHANGE)
    ranked = vus_pr(labels[JUDGED:], scores[JUDGED:], period(values[JUDGED:, :1]))
    return {
        "outcome": outcome,
        "since": since,
        "vus_pr": ranked,
        "told": rounds.told + kinds,
        "promoted": rounds.promoted,
        "rounds": rounds.count,
    }


def _readings(values: Floats) -> Iterator[Reading]:
    names = [f"f{n}" for n in range(values.shape[1])]
    for t, row in enumerate(values.tolist()):
        time_s = 1_700_000_000.0 + t * STEP_S
        yield Reading("machine", "world", time_s, time_s, dict(zip(names, row, strict=True)))


class Clock:
    """Time as the readings tell it."""

    now_s = 0.0

    def __call__(self) -> float:
        """Seconds."""
        return self.now_s


class Inline:
    """A trainer whose rounds are over at once, in this process."""

    def __init__(self, way: str) -> None:
        self.group: str | None = None
        self.count = self.promoted = 0
        self.told: list[str] = []
        self._way = way
        self._outcome: TrainOutcome | None = None

    def start(self, request: TrainRequest, _now: float) -> None:
        """Run a round to its end."""
        self.group, self.count = request.group, self.count + 1
        if self._way == "always":
            judged = training_round._judged  # noqa: SLF001 -- what the other way leaves out

            def accepted(*arguments: Any) -> Any:
                return "", judged(*arguments)[1]

            with patch.object(training_round, "_judged", accepted):
                self._outcome = training_round.run_round(request, Quiet())
        else:
            self._outcome = training_round.run_round(request, Quiet())

    def poll(self, _now: float) -> TrainOutcome | None:
        """The outcome of the round, once."""
        outcome, self._outcome, self.group = self._outcome, None, None
        if outcome is not None:
            self.promoted += outcome.result == "promoted"
            self.told.append(f"{outcome.result}: {outcome.reason} {[d.field for d in outcome.drifts]}")
        return outcome

    def stop(self) -> None:
        """Nothing runs."""


def _pooled(runs: list[dict[str, Any]]) -> dict[str, Any]:
    outcome: Outcome = pooled(run["outcome"] for run in runs)
    since: Outcome = pooled(run["since"] for run in runs)
    return {
        "false_per_10k": rounded(outcome.false_per_10k),
        "false_per_10k_since_change": rounded(since.false_per_10k),
        "recall": rounded(outcome.recall),
        "vus_pr": rounded(float(np.mean([run["vus_pr"] for run in runs]))),
        "rounds": sum(run["rounds"] for run in runs),
        "promoted": sum(run["promoted"] for run in runs),
    }


class Quiet(Conduct):
    """A round that tells nobody how far it is."""

    def __init__(self) -> None:
        # This process's signals are left alone.
        self._waited_s = 0.0

    def tell(self, stage: str, done: float) -> None:
        """Say nothing."""

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Nobody asks to wait."""
        yield


if __name__ == "__main__":
    main()
