"""What a device is judged by in its first minutes: with what its group lends it, and without.

    python bench/bench_cold_start.py [FOLDER] [--seeds 3] [--only thermostat] [--first-seed 20] [--keep]

A group's model is trained on TAUGHT devices with ROWS readings each. NEW other devices of the same kind then
begin. A fault of each kind is put into SPAN of their readings, and these very readings are scored twice: by
somebody who has known the device for EARLY readings, and who has known it for LATE. So the two differ in
nothing but what is known of the device. Each system, one that lends and one that does not, does both; the
rest of them is the same, and readings in alarm teach nothing, as live.

    fleet: ...   simulated plants (gruard.models.plants), faults of gruard.models.plants.faults
    smd          three servers of the tuning recordings, each in turn new to the other two: their normal
                 halves, with the same faults. FOLDER holds the recordings; without it this one is left out

    VUS-PR       of the score, in the SPAN readings around a fault; mean over devices and kinds
    recall       share of the faults in which an alarm opens at the default budget; one that was open before
                 tells of nothing
    of later     VUS-PR early / late of the same system; the bar is 0.90
    false        alarms in the first 500 readings of healthy devices, per 10,000 readings
    first, ready readings until the first score, and until the model is in charge; None: it never was

`--keep` writes results/cold_start.json and .md.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when numpy is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from keeping import RESULTS, keep, rounded
from quality.suites import RecordingsError, check

from gruard.models.calibration import Budget
from gruard.models.forecaster import Forecaster
from gruard.models.group import GroupScorer, Phase
from gruard.models.history import History
from gruard.models.loan import loan_of
from gruard.models.plants.faults import KINDS, UnfitError, inject
from gruard.models.plants.plants import PLANTS, simulate
from gruard.models.quality.episodes import judge, openings
from gruard.models.quality.ranking import vus_pr
from gruard.models.training.candidate import TrainingOptions, train
from gruard.models.training.fit import FitConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from gruard.models.training.candidate import Candidate

    Floats = NDArray[np.float64]

TAUGHT, NEW, ROWS = 8, 4, 1600
#: A fault begins so many readings into SPAN and lasts so many.
EARLY, LATE, SPAN = 50, 3000, 250
BEGINS, LASTS = (10, 40), (30, 120)
HEALTHY, HEALTHY_ROWS = 24, 500
#: Rows of the soft edges of a label: no fault is shorter.
SHOULDER = 20
BAR, MOST_READINGS = 0.90, 1000  # what enrolment is given of a history, as in the engine
SYSTEMS = ("without", "lent")


@dataclass(frozen=True, slots=True, eq=False)
class Fleet:
    """Devices of one kind: those that are trained on, those that begin, and others that stay healthy."""

    taught: list[History]
    new: list[History]  # LATE + SPAN readings each
    healthy: list[History]  # HEALTHY_ROWS each


@dataclass(frozen=True, slots=True, eq=False)
class Fault:
    """A new device's recording of LATE + SPAN readings, and which of the last SPAN are faulty."""

    history: History
    labels: NDArray[np.bool_]
    device: int = 0  # number among the new ones


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    root = Path(__file__).resolve().parent.parent
    parser.add_argument("folder", nargs="?", type=Path, default=root.parent / "shared" / "data")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=20, help="what was tuned on began at 0")
    parser.add_argument("--only", action="append", metavar="KIND")
    parser.add_argument("--keep", action="store_true")
    options = parser.parse_args()
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    kinds = options.only or [*PLANTS, "smd"]
    found: dict[str, dict[str, Any]] = {}
    for kind in kinds:
        try:
            groups = [(fleet, seed) for seed in seeds for fleet in fleets(kind, seed, options.folder)]
        except RecordingsError as error:
            print(f"{kind} is left out: {error}", file=sys.stderr)
            continue
        runs = [run for fleet, seed in groups for run in measured(fleet, seed)]
        found[kind] = {system: summary([r for name, r in runs if name == system]) for system in SYSTEMS}
        tell(kind, found[kind])
    every = {system: overall([kind[system] for kind in found.values()]) for system in SYSTEMS}
    tell("all", every)
    if options.keep:
        figures = {"seeds": list(seeds), "bar": BAR, "kinds": found, "all": every}
        keep(RESULTS / "cold_start.json", figures)
        (RESULTS / "cold_start.md").write_text(markdown(found | {"all": every}, seeds), "utf-8")
    return 0


def fleets(kind: str, seed: int, folder: Path) -> list[Fleet]:
    """The groups of one kind that one seed gives."""
    if kind == "smd":
        return servers(folder, seed)
    devices = iter(range(1000 * seed, 1000 * seed + 1000))  # other machines at every seed
    taught = [simulated(kind, ROWS, seed, next(devices)) for _ in range(TAUGHT)]
    new = [simulated(kind, LATE + SPAN, seed, next(devices)) for _ in range(NEW)]
    healthy = [simulated(kind, HEALTHY_ROWS, seed, next(devices)) for _ in range(HEALTHY)]
    return [Fleet(taught, new, healthy)]


def simulated(kind: str, rows: int, seed: int, device: int) -> History:
    recorded = simulate(kind, rows, seed, device)
    return History(recorded.time_s, recorded.values, np.ones(rows, bool))


def servers(folder: Path, seed: int) -> list[Fleet]:
    """Each server as one that is new to the others; the seed says where in its recording it begins."""
    check(folder)
    with np.load(folder / "smd.npz") as arrays:
        names = sorted(name.removesuffix("|x") for name in arrays.files if name.endswith("|x"))
        values = {}
        for name in names:
            quiet = np.flatnonzero(arrays[f"{name}|y"])
            values[name] = arrays[f"{name}|x"][: quiet[0]].astype(np.float64)  # before its first event
    rng = np.random.default_rng(seed)
    found = []
    for name in names:
        others = [cut(values[other], 3 * ROWS, rng) for other in names if other != name]
        new = [cut(values[name], LATE + SPAN, rng) for _ in range(NEW)]
        healthy = [cut(values[name], HEALTHY_ROWS, rng) for _ in range(HEALTHY)]
        found.append(Fleet(others, new, healthy))
    return found


def cut(values: Floats, rows: int, rng: np.random.Generator) -> History:
    start = int(rng.integers(len(values) - rows + 1))
    return History(60.0 * np.arange(rows), values[start : start + rows], np.ones(rows, bool))


def measured(fleet: Fleet, seed: int) -> list[tuple[str, dict[str, Any]]]:
    """What both systems made of a fleet."""
    named = {f"{n:03d}": history for n, history in enumerate(fleet.taught)}
    candidate = train(named, TrainingOptions(FitConfig(seed=seed), Budget()))
    rng = np.random.default_rng(seed)
    faults = drawn(fleet, rng)
    return [(system, run(candidate, fleet, faults, lent=system == "lent")) for system in SYSTEMS]


def drawn(fleet: Fleet, rng: np.random.Generator) -> list[Fault]:
    """A fault of every kind in every new device."""
    return [
        replace(fault, device=n)
        for n, history in enumerate(fleet.new)
        for kind in KINDS
        if (fault := faulty(history, kind, rng)) is not None
    ]


def faulty(history: History, kind: Any, rng: np.random.Generator) -> Fault | None:
    """A device's recording with a fault in its last SPAN rows; None where it cannot carry this kind."""
    first = LATE + int(rng.integers(*BEGINS))
    last = first + int(rng.integers(*LASTS))
    try:
        values, labels = inject(history.values, kind, first, last, rng)
    except UnfitError:
        return None
    return Fault(replace(history, values=values), labels[LATE:])


def run(candidate: Candidate, fleet: Fleet, faults: list[Fault], *, lent: bool) -> dict[str, Any]:
    """One system: what its scores and alarms were worth."""
    begun, known, healthy = (Driver(candidate, lent=lent) for _ in range(3))
    scores, alarms = begun.play([newest(fault.history, EARLY + SPAN) for fault in faults], EARLY + SPAN)
    found: dict[str, Any] = {"early": judged(scores[:, EARLY:], alarms[:, EARLY:], faults)}
    known.play(fleet.new, LATE)
    known.copy([fault.device for fault in faults])
    scores, alarms = known.play([fault.history for fault in faults], LATE + SPAN)
    found["late"] = judged(scores[:, LATE:], alarms[:, LATE:], faults)
    _, alarms = healthy.play(fleet.healthy, HEALTHY_ROWS)
    quiet = [judge(np.zeros(HEALTHY_ROWS, bool), alarm, start=0) for alarm in alarms]
    found["false"] = sum(one.false_episodes for one in quiet), sum(one.quiet_rows for one in quiet)
    found["first"], found["ready"] = healthy.first.tolist(), healthy.ready.tolist()
    return found


def newest(history: History, rows: int) -> History:
    return History(history.time_s[-rows:], history.values[-rows:], history.normal[-rows:])


def judged(scores: Floats, alarms: NDArray[np.bool_], faults: list[Fault]) -> list[tuple[float, bool, int]]:
    """VUS-PR, whether an alarm opened in it, and false episodes, of every fault."""
    found = []
    for score, alarm, fault in zip(scores, alarms, faults, strict=True):
        begins = openings(alarm)
        told = bool(np.isin(begins, np.flatnonzero(fault.labels)).any())
        false = judge(fault.labels, alarm, start=0).false_episodes
        found.append((vus_pr(fault.labels, score, SHOULDER), told, false))
    return found


class Driver:
    """Devices through one group, enrolled when they are due, as the engine and the database do it."""

    def __init__(self, candidate: Candidate | None, *, lent: bool, fields: int = 0) -> None:
        """Without a candidate, the baseline is in charge of devices with so many fields."""
        if candidate is None:
            self.group = GroupScorer(fields, Budget())
        else:
            self.group = GroupScorer(candidate.tensors["precision"].shape[1], Budget())
            forecaster = Forecaster(candidate.config, candidate.tensors)
            self.group.adopt(forecaster, "bench", loan_of(candidate.tensors) if lent else None)
        self.slots, self.row = np.zeros(0, np.int64), 0
        self.alarms = np.zeros((0, 0), bool)
        self.first, self.ready = np.zeros(0, np.int64), np.zeros(0, np.int64)

    def play(self, histories: Sequence[History], until: int) -> tuple[Floats, NDArray[np.bool_]]:
        """Go on to reading `until`: scores and alarms (N, until), 0 where they are of an earlier call."""
        if not len(self.slots):
            self.slots = np.array([self.group.add() for _ in histories])
            self.first = self.ready = np.zeros(len(histories), np.int64)
            self.alarms = np.zeros((len(histories), 0), bool)
        kept = self.alarms
        self.alarms = np.zeros((len(histories), until), bool)
        self.alarms[:, : kept.shape[1]] = kept
        scores = np.zeros((len(histories), until))
        for row in range(self.row, until):
            times = np.array([h.time_s[row] for h in histories])
            told = self.group.score(self.slots, times, np.stack([h.values[row] for h in histories]))
            scores[:, row] = np.nan_to_num(told.score)
            self.alarms[:, row] = told.alarm
            self.first = np.where((self.first == 0) & np.isfinite(told.score), row + 1, self.first)
            self.ready = np.where((self.ready == 0) & (told.phase == Phase.READY), row + 1, self.ready)
            due = set(self.group.due(self.slots).tolist())
            chosen = [n for n, slot in enumerate(self.slots.tolist()) if slot in due]
            if chosen:
                shown = [self._shown(histories[n], n, row + 1) for n in chosen]
                self.group.enrol(self.slots[chosen], shown)
        self.row = until
        return scores, self.alarms

    def _shown(self, history: History, n: int, rows: int) -> History:
        """What enrolment is given of device n after so many rows."""
        of = slice(max(rows - MOST_READINGS, 0), rows)
        return History(history.time_s[of], history.values[of], ~self.alarms[n, of])

    def copy(self, of: list[int]) -> None:
        """Go on with copies of devices."""
        states = [self.group.dump(int(self.slots[n])) for n in of]
        self.slots = np.array([self.group.add() for _ in of])
        for slot, state in zip(self.slots.tolist(), states, strict=True):
            self.group.load(slot, state)
        self.alarms, self.first, self.ready = self.alarms[of], self.first[of], self.ready[of]


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds."""
    found: dict[str, Any] = {}
    for when in ("early", "late"):
        every = np.array([one for run in runs for one in run[when]])
        found[f"{when} VUS-PR"], found[f"{when} recall"] = every[:, 0].mean(), every[:, 1].mean()
        found[f"{when} false"] = int(every[:, 2].sum())
    found["of later"] = found["early VUS-PR"] / found["late VUS-PR"]
    false, quiet = np.sum([run["false"] for run in runs], axis=0)
    found["false per 10k"] = 1e4 * false / quiet
    found["first"] = middle([n for run in runs for n in run["first"]])
    ready = [n for run in runs for n in run["ready"]]
    found["ready"], found["in charge"] = middle(ready), float(np.mean(np.array(ready) > 0))
    return {name: None if n is None else rounded(float(n)) for name, n in found.items()}


def middle(counts: list[int]) -> float | None:
    """The median of those that came to pass."""
    passed = [n for n in counts if n]
    return float(np.median(passed)) if passed else None


def overall(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over kinds."""
    names = rows[0]
    mean = {n: float(np.mean([r[n] for r in rows if r[n] is not None] or [np.nan])) for n in names}
    mean["of later"] = mean["early VUS-PR"] / mean["late VUS-PR"]
    return {name: rounded(n) for name, n in mean.items()}


def tell(kind: str, rows: dict[str, dict[str, Any]]) -> None:
    for system, row in rows.items():
        figures = "  ".join(f"{name} {number}" for name, number in row.items())
        print(f"{kind:12} {system:8} {figures}", flush=True)


def markdown(rows: dict[str, dict[str, dict[str, Any]]], seeds: Sequence[int]) -> str:
    """The table that people read."""
    heads = list(next(iter(rows.values()))["lent"])
    lines = [
        "# Cold start of a new device in a known group",
        "",
        f"`python bench/bench_cold_start.py --keep`, seeds {', '.join(map(str, seeds))}. The head of that",
        "file tells what the columns mean. Both rows of a kind are of the same devices and faults.",
        "",
        "| | | " + " | ".join(heads) + " |",
        "| --- | --- |" + " --- |" * len(heads),
    ]
    for kind, systems in rows.items():
        for system, row in systems.items():
            lines.append(f"| {kind} | {system} | " + " | ".join(str(row[head]) for head in heads) + " |")
    alone, lent = rows["all"]["without"], rows["all"]["lent"]
    first, ranked, told = "false per 10k", "early VUS-PR", "early recall"
    lines += [
        "",
        f"In words: by lending, false alarms per 10,000 readings go from {alone[first]} to",
        f"{lent[first]}, VUS-PR behind reading {EARLY} from {alone[ranked]} to {lent[ranked]},",
        f"which is {lent['of later']} of what the same system reaches later, and recall from",
        f"{alone[told]} to {lent[told]}; later it is {lent['late recall']}. Where so many alarms are",
        "false, a part of the recall is chance.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
