"""May a group without a model start from its neighbour's: from that of the group with one field more?

    python bench/bench_new_group.py [--seeds 3] [--first-seed 20] [--only batch] [--keep]

Devices of a plant on which a model was trained have all its fields. New ones lack a field, another one at
every seed, so they are a group of their own, which has no model. Their first readings are scored by

    baseline     what gruard does: the adaptive baseline, until a round has trained a model for the group
    neighbour    the model and the loan of the whole group, with the field for ever missing

on the same faults and healthy devices as bench_cold_start has them. Figures as told there; `helps` is the
share of devices whose held-back rows the neighbour's forecasts fit at least as well as the baseline's; 0 for
the baseline itself.

A narrowed model that gives the very forecasts of the masked one is easily derived. It is not built: see the
results, where fewer false alarms are paid with a worse ranking.

`--keep` writes results/new_group.json and .md.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when numpy is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from bench_cold_start import EARLY, HEALTHY_ROWS, SPAN, Driver, Fault, Fleet, drawn, fleets, judged, newest
from keeping import RESULTS, keep, rounded

from gruard.models import baseline_lines, memory
from gruard.models.arena import fresh
from gruard.models.calibration import Budget
from gruard.models.enrolment import held_back_skill, replay, replay_baseline
from gruard.models.forecaster import Forecaster
from gruard.models.history import History, align, blank
from gruard.models.loan import loan_of
from gruard.models.plants.plants import PLANTS
from gruard.models.quality.episodes import judge
from gruard.models.training.candidate import Candidate, TrainingOptions, train
from gruard.models.training.fit import FitConfig

SYSTEMS = ("baseline", "neighbour")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=20, help="what was tuned on began at 0")
    parser.add_argument("--only", action="append", choices=list(PLANTS))
    parser.add_argument("--keep", action="store_true")
    options = parser.parse_args()
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    found: dict[str, dict[str, Any]] = {}
    for kind in options.only or PLANTS:
        runs = [run for seed in seeds for run in measured(kind, seed)]
        found[kind] = {system: summary([run for name, run in runs if name == system]) for system in SYSTEMS}
        tell(kind, found[kind])
    names = found[next(iter(found))][SYSTEMS[0]]
    found["all"] = {
        system: {
            name: rounded(float(np.mean([kind[system][name] for kind in found.values()]))) for name in names
        }
        for system in SYSTEMS
    }
    tell("all", found["all"])
    if options.keep:
        keep(RESULTS / "new_group.json", {"seeds": list(seeds), "kinds": found})
        (RESULTS / "new_group.md").write_text(markdown(found, seeds), "utf-8")
    return 0


def measured(kind: str, seed: int) -> list[tuple[str, dict[str, Any]]]:
    """What both systems made of the first readings of devices that lack a field."""
    (fleet,) = fleets(kind, seed, Path())
    named = {f"{n:03d}": history for n, history in enumerate(fleet.taught)}
    candidate = train(named, TrainingOptions(FitConfig(seed=seed), Budget()))
    lacking = seed % fleet.new[0].values.shape[1]
    kept = Fleet([], *([without(h, lacking) for h in part] for part in (fleet.new, fleet.healthy)))
    faults = drawn(kept, np.random.default_rng(seed))
    return [(system, run(candidate, kept, faults, lacking, system)) for system in SYSTEMS]


def without(history: History, lacking: int) -> History:
    return replace(history, values=np.delete(history.values, lacking, axis=1))


def masked(history: History, lacking: int) -> History:
    """The same with a column of what is missing in its place."""
    return replace(history, values=np.insert(history.values, lacking, np.nan, axis=1))


def run(candidate: Candidate, fleet: Fleet, faults: list[Fault], lacking: int, system: str) -> dict[str, Any]:
    """One system on the first readings of new devices, faulty and healthy ones."""
    begun, healthy = (newest(fault.history, EARLY + SPAN) for fault in faults), fleet.healthy
    if system == "neighbour":
        begun, healthy = ([masked(h, lacking) for h in part] for part in (begun, healthy))
    ill, well = (driver(candidate, system, fleet.new[0].values.shape[1]) for _ in range(2))
    scores, alarms = ill.play(list(begun), EARLY + SPAN)
    _, false = well.play(healthy, HEALTHY_ROWS)
    quiet = [judge(np.zeros(HEALTHY_ROWS, bool), alarm, start=0) for alarm in false]
    return {
        "faults": judged(scores[:, EARLY:], alarms[:, EARLY:], faults),
        "false": sum(one.false_episodes for one in quiet),
        "quiet": sum(one.quiet_rows for one in quiet),
        "helps": helps(candidate, [masked(h, lacking) for h in fleet.healthy])
        if system == "neighbour"
        else [],
    }


def driver(candidate: Candidate, system: str, fields: int) -> Driver:
    return Driver(candidate, lent=True) if system == "neighbour" else Driver(None, lent=False, fields=fields)


def helps(candidate: Candidate, histories: list[History]) -> list[bool]:
    """Whether the neighbour's forecasts of each device's first readings are as good as the baseline's."""
    shown = [History(h.time_s[:EARLY], h.values[:EARLY], h.normal[:EARLY]) for h in histories]
    forecaster, loan = Forecaster(candidate.config, candidate.tensors), loan_of(candidate.tensors)
    readings = align(rows := blank(shown, [loan.scaling(h) if loan else None for h in shown]), shown)
    line = replay(fresh(memory.columns(forecaster), len(shown)), readings, forecaster)[0]
    mix = replay_baseline(fresh(baseline_lines.columns(rows["scale"].shape[1]), len(shown)), readings)
    return [held_back_skill(readings, line[:, n], mix[:, n], h, n) >= 0.0 for n, h in enumerate(shown)]


def summary(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Means over seeds."""
    faults = np.array([fault for run in runs for fault in run["faults"]], float)
    told = [one for run in runs for one in run["helps"]]
    return {
        "VUS-PR": float(faults[:, 0].mean()),
        "recall": float(faults[:, 1].mean()),
        "false beside faults": float(faults[:, 2].sum()),
        "false per 10k": 1e4 * sum(run["false"] for run in runs) / sum(run["quiet"] for run in runs),
        "helps": float(np.mean(told)) if told else 0.0,
    }


def tell(kind: str, rows: dict[str, dict[str, Any]]) -> None:
    for system, row in rows.items():
        print(f"{kind:12} {system:10} " + "  ".join(f"{n} {v:.4g}" for n, v in row.items()), flush=True)


def markdown(rows: dict[str, dict[str, dict[str, Any]]], seeds: range) -> str:
    """The table that people read."""
    heads = list(rows["all"][SYSTEMS[0]])
    lines = [
        "# Does a new group gain by its neighbour's model?",
        "",
        f"`python bench/bench_new_group.py --keep`, seeds {', '.join(map(str, seeds))}; the head of that",
        "file tells what the columns mean.",
        "",
        "| | | " + " | ".join(heads) + " |",
        "| --- | --- |" + " --- |" * len(heads),
    ]
    for kind, systems in rows.items():
        for system, row in systems.items():
            lines.append(f"| {kind} | {system} | " + " | ".join(f"{row[head]:.3g}" for head in heads) + " |")
    alone, near = (rows["all"][system] for system in SYSTEMS)
    lines += [
        "",
        f"Not built: VUS-PR with the neighbour's model is {near['VUS-PR']}, with the baseline",
        f"{alone['VUS-PR']}, and only a share of {near['helps']} of the devices is forecast as well.",
        "There are fewer false alarms, and fewer true ones. A new group starts from the adaptive baseline; a",
        "device whose fields change keeps its own readings.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
