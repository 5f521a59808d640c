"""Fifty training rounds on readings that somebody poisons, a little more in each.

    shift     one field of every device is moved by a share of its spread in each round, for good
    loud      a tenth of the readings carry faults, other ones in each round, and larger ones
    one       one device of the group is turned into noise, more in each round

Every round is the trainer's own. After each that brings a model, the share of injected faults that it finds
is measured on the same readings without the loud part of the poison. Told are the least of it against the
first model's, what was refused and why, and the round in which the drift was noticed.

    python bench/bench_slow_poison.py [--rounds 50] [--seeds 3] [--suite NAME] [--keep]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np

from gruard.daemon import training_round
from gruard.daemon.edges.trainer import MODELS, TrainRequest
from gruard.daemon.round_conduct import Conduct
from gruard.models import weights
from gruard.models.calibration import Budget
from gruard.models.enrolment import fitted_devices
from gruard.models.forecaster import Forecaster
from gruard.models.history import History
from gruard.models.plants import faults
from gruard.models.plants.plants import simulate
from gruard.models.training.trial import Model, Trial

sys.path.insert(0, str(Path(__file__).parent))
from keeping import RESULTS, keep, rounded

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

SUITES = ("shift", "loud", "one")
#: The plant, its devices, the rows that a round sees, and how many are new in each.
PLANT, DEVICES, ROWS, FRESH = "thermostat", 4, 2000, 200
#: What a round moves a field by, as a share of its spread; the share of loud readings; a round's more noise.
STEP, LOUD, NOISE = 0.05, 0.1, 0.05


def main() -> None:
    """Run the suites asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=50, help="(default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--suite", choices=SUITES, action="append", help="only this one")
    parser.add_argument("--keep", action="store_true", help="keep the figures")
    options = parser.parse_args()
    figures: dict[str, list[dict[str, Any]]] = {}
    for suite in options.suite or SUITES:
        figures[suite] = []
        for seed in range(options.seeds):
            figures[suite].append(poisoned(suite, seed, options.rounds))
            print(suite, seed, figures[suite][-1], flush=True)
    if options.keep:
        keep(RESULTS / "slow_poison.json", {"rounds": options.rounds, "suites": figures})


def poisoned(suite: str, seed: int, rounds: int) -> dict[str, Any]:
    """Fifty rounds of one suite: what became of the recall, and what was noticed."""
    rng = np.random.default_rng(seed)
    total = ROWS + rounds * FRESH
    plants = {f"d{n}": simulate(PLANT, total, seed, n) for n in range(DEVICES)}
    times = {name: plant.time_s for name, plant in plants.items()}
    clean = {name: np.asarray(plant.values, np.float64).copy() for name, plant in plants.items()}
    if suite == "shift":
        for rows in clean.values():
            step = np.maximum(np.arange(total) - ROWS, 0) / FRESH  # (T,) rounds since the first
            rows[:, 0] += STEP * step * np.nanstd(rows[:ROWS, 0])
    seen = {name: rows.copy() for name, rows in clean.items()}
    if suite == "one":
        growing = np.maximum(np.arange(total) - ROWS, 0)[:, None] / FRESH
        spread = np.nanstd(seen["d0"][:ROWS], axis=0)
        seen["d0"] += NOISE * growing * spread * rng.normal(size=seen["d0"].shape)
    if suite == "loud":
        for name, rows in seen.items():
            plan = faults.schedule(total - ROWS, rng, share=LOUD, longest=60)
            seen[name] = np.concatenate((rows[:ROWS], faults.inject_all(rows[ROWS:], plan, rng)[0]))
    recalls, refusals, noticed = [], Counter[str](), None
    parent = anchor = None
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            rows = slice(number * FRESH, number * FRESH + ROWS)
            shown = {name: _history(times[name][rows], seen[name][rows]) for name in seen}
            request = _request(folder, shown, parent, anchor, seed)
            with patch.object(training_round, "_histories", lambda _, shown=shown: shown):
                outcome = training_round.run_round(request, Quiet())
            if outcome.drifts and noticed is None:
                noticed = number
            if outcome.result == "promoted":
                parent = outcome.model
                anchor = anchor or parent
                healthy = {name: _history(times[name][rows], clean[name][rows]) for name in clean}
                recalls.append(_recall(Path(folder), str(parent), healthy, seed))
            else:
                refusals[_kind(outcome.reason)] += 1
    return {
        "first_recall": rounded(recalls[0]),
        "least_recall": rounded(min(recalls)),
        "last_recall": rounded(recalls[-1]),
        "promoted": len(recalls),
        "refused": dict(refusals),
        "drift_noticed_in_round": noticed,
    }


def _history(time_s: NDArray[np.float64], values: NDArray[np.float64]) -> History:
    return History(time_s, values, np.ones(len(time_s), bool))


def _kind(reason: str) -> str:
    return next(
        (word for word in ("anchor", "model in charge", "held-back", "alerts") if word in reason), reason
    )


def _recall(folder: Path, model: str, healthy: dict[str, History], seed: int) -> float:
    package = weights.read(folder / MODELS, model)
    manifest = package.manifest
    forecaster = Forecaster(weights.check_network(package), package.tensors)
    found = Model(forecaster, fitted_devices(manifest.devices, package.tensors), manifest.rows)
    return Trial(healthy, Budget(), seed + 1000).judge(found, None).recall


def _request(
    folder: str, shown: dict[str, History], parent: str | None, anchor: str | None, seed: int
) -> TrainRequest:
    fields = tuple(f"f{n}" for n in range(next(iter(shown.values())).values.shape[1]))
    return TrainRequest(
        directory=folder,
        group="plant",
        source="plant",
        fields=fields,
        devices=tuple(shown),
        max_rows=ROWS,
        before_s=None,
        parent=parent,
        anchor=anchor,
        cell="gru",
        hidden=16,
        layers=1,
        dropout=0.0,
        seed=seed,
        budget=Budget(),
        max_seconds=600.0,
        nice=19,
        now_s=0.0,
        first_days_s=1.0,
    )


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
