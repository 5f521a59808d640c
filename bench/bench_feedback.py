"""What one `expected` does: the recurrences of a harmless event are silent, and everything else is heard.

    python bench/bench_feedback.py [RECORDINGS] [--seeds 3] [--keep]

Simulated plants, four devices of each and one model for them, and where the folder of the labelled
recordings is given, servers of it. After the warm-up faults of all kinds are put into every device (clear
ones, .7 to 1.5 times the largest size of `gruard.models.plants.faults`), and a harmless event into the first
one: ten times, its length and size varying by 20 and 15 %. Three kinds of event take turns:

    cleaning   one field leaves and comes back, a second one follows in the middle
    load       one field swings at a pace of its own
    drain      two fields leave slowly together and return at once

Each fleet is scored twice: without a word, and with one `expected` when the first alert on an event ends. The
seeds are others than those that the rule was made with.

    recurrences   events behind the first alert on one that raise an alert; the fall has a bar of 80 %
    recall        faults of the first device behind it during which an alert is open; may fall by 2 points
    precision     alerts of the first device behind it that lie on a fault
    others        the other devices' alarms, row by row: the same in both runs
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when numpy is imported

import numpy as np
from keeping import RESULTS, keep, rounded
from quality import suites

from gruard.models import scaling
from gruard.models.detector import DetectorConfig, train_inline
from gruard.models.group import GroupScorer
from gruard.models.history import History
from gruard.models.patterns import pattern_of
from gruard.models.plants import faults
from gruard.models.plants.plants import PLANTS, simulate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.random import Generator
    from numpy.typing import NDArray

DEVICES, ROWS, WARM, EVENTS = 4, 14_000, 2000, 10
#: Rows of the first event at the earliest: the baseline is over and done with by then.
FIRST = 2 * WARM
#: Rows behind an event or a fault in which an alert on it may still open.
GRACE = 20
EVENT_ROWS, EVENT_SIZE = 60, 10.0
#: Seeds that the rule was not made with.
SEEDS_FROM = 100
BAR_FALL, BAR_RECALL = 0.8, 0.02

Rows = list[tuple[int, int]]


@dataclass(slots=True)
class Fleet:
    """Devices of one group, with faults in all and an event in the first."""

    name: str
    time_s: NDArray[np.float64]  # (T,)
    values: NDArray[np.float64]  # (N, T, F)
    faults: Rows = field(default_factory=list)  # first and last row, of the first device
    events: Rows = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recordings", type=Path, nargs="?", help="folder of the labelled recordings")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--keep", action="store_true", help="keep the figures in results/feedback.json")
    options = parser.parse_args()
    lines: dict[str, dict[str, Any]] = {}
    for fleet in fleets(options.recordings, options.seeds):
        began = time.monotonic()
        lines[fleet.name] = line = compared(fleet)
        print(f"{fleet.name:18} {line} {time.monotonic() - began:.0f} s", flush=True)
    figures = summed([line for line in lines.values() if line])
    for name, figure in figures.items():
        print(f"{name:28} {figure}")
    if options.keep:
        keep(RESULTS / "feedback.json", figures | {"fleets": lines})
    lost = figures["recall_before"] - figures["recall_after"]
    if figures["fall"] < BAR_FALL or lost > BAR_RECALL or not figures["others_same"]:
        sys.exit(1)


# --- what is scored --------------------------------------------------------------------------------------


def fleets(recordings: Path | None, seeds: int) -> Iterator[Fleet]:
    for name in PLANTS:
        for seed in range(SEEDS_FROM, SEEDS_FROM + seeds):
            values = np.stack([simulate(name, ROWS, seed, device).values for device in range(DEVICES)])
            time_s = simulate(name, ROWS, seed).time_s
            yield spoiled(Fleet(f"{name} {seed}", time_s, values), seed)
    for seed, stream in enumerate(suites.load(recordings, "smd") if recordings else []):
        values = stream.values[None, :ROWS].astype(np.float64)
        if values.shape[1] >= FIRST + 2000:
            yield spoiled(Fleet(stream.name, stream.time_s[: values.shape[1]], values), seed)


def spoiled(fleet: Fleet, seed: int) -> Fleet:
    """Put in what happens to a fleet."""
    random = np.random.default_rng([seed, 7])
    rows, fields = fleet.values.shape[1:]
    busy = np.zeros(rows, bool)
    spreads = scaling.fit(fleet.values[0, :WARM])[1]
    for device, values in enumerate(fleet.values):
        plan = faults.schedule(rows - FIRST, random, share=0.09, margin=150, shortest=40, longest=200)
        for kind, first, last in plan:
            put_in = fault(values, kind, FIRST + first, FIRST + last, random)
            if put_in is not None and device == 0:
                fleet.faults.append(put_in)
                busy[put_in[0] - 150 : put_in[1] + 150] = True
    one, other = random.choice(fields, 2, replace=False)
    ways = random.choice([-1.0, 1.0], 2)
    for number in range(EVENTS):
        first = FIRST + 100 + number * (rows - FIRST) // EVENTS + int(random.integers(100))
        length = round(EVENT_ROWS * random.uniform(0.8, 1.2))
        while busy[first : first + length].any():
            first += 10
        if first + length + 50 > rows:
            break
        busy[first - 150 : first + length + 150] = True
        size = EVENT_SIZE * random.uniform(0.85, 1.15)
        moves = shape(seed % 3, length, random)  # (length, 2)
        fleet.values[0, first : first + length, [one, other]] += (
            moves * ways * size * spreads[[one, other]]
        ).T
        fleet.events.append((first, first + length - 1))
    return fleet


def fault(
    values: NDArray[np.float64], kind: faults.Kind, first: int, last: int, random: Generator
) -> tuple[int, int] | None:
    """Put a clear fault in, of this kind or else a shift."""
    for fitting in (kind, faults.KINDS[0]):
        size = faults.SIZES[fitting][1] * random.uniform(0.7, 1.5)
        try:
            changed, _ = faults.inject(values, fitting, first, last, random, size=size)
        except faults.UnfitError:
            continue
        values[first : last + 1] = changed[first : last + 1]
        return first, last
    return None


def shape(kind: int, length: int, random: Generator) -> NDArray[np.float64]:
    """What an event does to its two fields, -1 to 1: (length, 2)."""
    t = np.linspace(0.0, 1.0, length)
    if kind == 0:  # cleaning
        return np.stack([np.minimum(t / 0.25, 1) * np.minimum((1 - t) / 0.15, 1), (t > 0.3) & (t < 0.8)], 1)
    if kind == 1:  # load
        swing = np.sin(2 * np.pi * (np.arange(length) / 7.0 + random.uniform()))
        return np.stack([swing, np.zeros(length)], 1)
    return np.stack([t, 0.6 * t], 1)  # drain


# --- how it is scored ------------------------------------------------------------------------------------


def compared(fleet: Fleet) -> dict[str, Any]:
    """Both runs of a fleet side by side; nothing where no event raised an alert."""
    silent, said_at = play(fleet, speak=False)
    spoken, _ = play(fleet, speak=True)
    if said_at is None:
        return {}
    counts: dict[str, Any] = {
        "events": sum(first > said_at for first, _ in fleet.events),
        "faults": sum(first > said_at for first, _ in fleet.faults),
    }
    for name, alarms in (("before", silent), ("after", spoken)):
        alerts = [one for one in episodes(alarms[:, 0]) if one[0] > said_at]
        counts[f"recurrences_{name}"] = sum(is_hit(one, alerts) for one in fleet.events if one[0] > said_at)
        counts[f"found_{name}"] = sum(is_hit(one, alerts) for one in fleet.faults if one[0] > said_at)
        counts[f"alerts_{name}"] = len(alerts)
        counts[f"right_{name}"] = sum(any(is_hit(one, [alert]) for one in fleet.faults) for alert in alerts)
    return counts | {"others_same": bool((silent[:, 1:] == spoken[:, 1:]).all())}


def play(fleet: Fleet, *, speak: bool) -> tuple[NDArray[np.bool_], int | None]:
    """Alarms (T, N), and the row at which the first alert on an event was over."""
    devices, rows, fields = fleet.values.shape
    config = DetectorConfig(hidden=16)
    scorer = GroupScorer(fields, config.budget)
    slots = np.array([scorer.add(WARM, fleet.time_s[WARM - 1]) for _ in range(devices)])
    past = [History(fleet.time_s[:WARM], v[:WARM], np.ones(WARM, bool)) for v in fleet.values]
    train_inline(scorer, slots, past, config)
    alarms, opened, said_at = np.zeros((rows, devices), bool), 0, None
    for row in range(WARM, rows):
        alarms[row] = scorer.score(slots, np.full(devices, fleet.time_s[row]), fleet.values[:, row]).alarm
        if said_at is not None:
            continue
        if alarms[row, 0] and not alarms[row - 1, 0]:
            opened = row
        elif alarms[row - 1, 0] and not alarms[row, 0] and is_on_event(opened, fleet):
            said_at = row
            if speak:
                history = History(fleet.time_s[: row + 1], fleet.values[0, : row + 1], np.ones(row + 1, bool))
                span = float(fleet.time_s[opened]), float(fleet.time_s[row - 1])
                slot, names = int(slots[0]), tuple(str(f) for f in range(fields))
                pattern, _ = pattern_of(scorer, slot, history, *span, word=1, fields=names)
                scorer.patterns.keep(slot, [] if pattern is None else [pattern])
                scorer.forgive(slot)
    return alarms, said_at


def is_on_event(row: int, fleet: Fleet) -> bool:
    return any(first <= row <= last + GRACE for first, last in fleet.events)


def episodes(alarm: NDArray[np.bool_]) -> Rows:
    """First and last row of each alert."""
    edges = np.diff(np.concatenate([[0], alarm.astype(np.int8), [0]]))
    return list(
        zip(np.flatnonzero(edges > 0).tolist(), (np.flatnonzero(edges < 0) - 1).tolist(), strict=True)
    )


def is_hit(rows: tuple[int, int], alerts: Rows) -> bool:
    """Whether an alert is open in these rows or shortly behind."""
    return any(first <= rows[1] + GRACE and last >= rows[0] for first, last in alerts)


def summed(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """All fleets as one."""
    total = {name: sum(line[name] for line in lines) for name in lines[0] if name != "others_same"}
    ratios = {
        "fall": 1.0 - total["recurrences_after"] / max(total["recurrences_before"], 1),
        "recall_before": total["found_before"] / total["faults"],
        "recall_after": total["found_after"] / total["faults"],
        "precision_before": total["right_before"] / max(total["alerts_before"], 1),
        "precision_after": total["right_after"] / max(total["alerts_after"], 1),
    }
    others = all(line["others_same"] for line in lines)
    return total | {name: rounded(value, 3) for name, value in ratios.items()} | {"others_same": others}


if __name__ == "__main__":
    main()
