"""What the cleaning of training rows finds when 5 % of them are faulty, what not, and what that is worth.

    python bench/bench_cleaning.py [--recordings FOLDER] [--quick] [--out FOLDER]

Faults of seven kinds (`models.plants.faults`), 20 to 60 rows each and 5 % of all rows, from hard to clear,
are put into healthy histories: four devices of each simulated plant as one group, and normal stretches of the
labelled recordings (FOLDER, beside the checkout unless named), each a device of its own. Then

1. `cleaning.abnormal_rows` judges them. By kind: faults found (half of their rows flagged), share of faulty
   rows flagged; by source: share of the flagged rows that were faulty (precision; the 30 rows behind a fault,
   its way back, count neither way) and share of the untouched history that is flagged.
2. A whitened ridge forecaster with a threshold at the 99.9 % quantile of its training rows is taught four
   times on each plant: on the healthy rows, on the contaminated ones, without the rows that cleaning flagged,
   and without all faulty rows. Then it meets faults in rows it has not seen.

Kept in cleaning.json; what it says is told in bench/results/networks.md. Bounded: about ten minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when numpy is imported

import numpy as np
from keeping import RESULTS, keep, rounded
from plant_task import ridge_scores

from gruard.models.history import History
from gruard.models.plants import faults
from gruard.models.plants.plants import PLANTS, simulate
from gruard.models.quality.episodes import Outcome, judge, pooled
from gruard.models.quality.ranking import segments, vus_pr
from gruard.models.training.cleaning import abnormal_rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Flags = NDArray[np.bool_]

SHARE, SHORTEST, LONGEST = 0.05, 20, 60
ROWS, DEVICES = 3000, 4
#: Rows behind a fault that count neither way: the level is on its way back.
WAY_BACK = 30
#: Archives of recordings, and the most stretches taken from each.
ARCHIVES, STRETCHES, SHORTEST_STRETCH = ("skab", "smd", "msl", "nab"), 6, 1500
RECORDINGS = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
#: Rows behind the training rows in which faults are to be detected, the share of them that is faulty, and the
#: quantile of the training scores that is the threshold.
TEST_ROWS, TEST_SHARE, QUANTILE = 3000, 0.2, 0.999


class Contaminated(NamedTuple):
    """One device before and after, and where."""

    healthy: Floats  # (T, F)
    values: Floats  # (T, F)
    labels: Flags  # (T,)
    placed: list[faults.Placed]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recordings", type=Path, default=RECORDINGS)
    parser.add_argument("--quick", action="store_true", help="one device of one plant, no recordings")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    began = time.monotonic()
    plants = ("thermostat",) if options.quick else tuple(PLANTS)
    archives = () if options.quick else ARCHIVES
    sources: dict[str, list[tuple[Contaminated, Flags, Flags]]] = {}
    worth: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for plant in plants:
        numbers = range(1 if options.quick else DEVICES)
        devices = {str(d): contaminated(simulate(plant, ROWS, 1, d).values, plant, d) for d in numbers}
        sources[plant] = cleaned(devices)
        for device, (one, flags, _) in enumerate(sources[plant]):
            for name, outcome in detection(plant, device, one, flags).items():
                worth[name].append(outcome)
        print(f"{plant}: {by_source(sources[plant])}", flush=True)
    for archive in archives:
        found = []
        for number, stretch in enumerate(stretches(options.recordings, archive)):
            found += cleaned({"one": contaminated(stretch, archive, number)})
        if found:
            sources[archive] = found
            print(f"{archive}: {by_source(found)}", flush=True)
    both = {
        "plants": [one for name in plants for one in sources[name]],
        "recordings": [one for name in archives for one in sources.get(name, [])],
    }
    figures = {
        "seeds": "plants 1; faults: name of plant or archive, number of device or stretch",
        "share_of_rows_faulty": SHARE,
        "by_kind": {name: by_kind(found) for name, found in both.items()},
        "by_size_third": {name: by_size(found) for name, found in both.items()},
        "by_source": {name: by_source(found) for name, found in sources.items()},
        "detection_after_training_on": {name: summary(found) for name, found in worth.items()},
        "minutes": rounded((time.monotonic() - began) / 60, 2),
    }
    print(json.dumps(figures, indent=1))
    keep(options.out / "cleaning.json", figures)


def contaminated(values: Floats, source: str, number: int) -> Contaminated:
    """The history with faults of all kinds in 5 % of its rows."""
    random = np.random.default_rng([number, *source.encode()])
    plan = faults.schedule(len(values), random, share=SHARE, shortest=SHORTEST, longest=LONGEST)
    return Contaminated(np.asarray(values, np.float64), *faults.inject_all(values, plan, random))


def cleaned(devices: Mapping[str, Contaminated]) -> list[tuple[Contaminated, Flags, Flags]]:
    """Flags of a group's devices: of the contaminated histories, and of the healthy ones."""
    dirty, healthy = (
        abnormal_rows({name: history(getattr(one, which)) for name, one in devices.items()})
        for which in ("values", "healthy")
    )
    return [(one, dirty[name], healthy[name]) for name, one in devices.items()]


def history(values: Floats) -> History:
    return History(1e9 + 10.0 * np.arange(len(values)), values, np.ones(len(values), np.bool_))


def stretches(folder: Path, archive: str) -> Iterator[Floats]:
    """Normal rows of an archive's recordings: from the longest run without a label, ROWS at a time."""
    path = folder / f"{archive}.npz"
    if not path.exists():
        print(f"{archive}: no recordings here")
        return
    with np.load(path) as recordings:
        names = [key.removesuffix("|x") for key in recordings.files if key.endswith("|x")]
        pieces = []
        for name in names:
            first, last = max(segments(recordings[f"{name}|y"] == 0), key=lambda run: run[1] - run[0])
            starts = range(first, last + 2 - SHORTEST_STRETCH, ROWS)
            pieces += [(turn, name, start, min(start + ROWS, last + 1)) for turn, start in enumerate(starts)]
        # Every recording once before any is taken again.
        for _, name, start, end in sorted(pieces, key=lambda piece: piece[0])[:STRETCHES]:
            yield recordings[f"{name}|x"][start:end].astype(np.float64)


def by_kind(found: list[tuple[Contaminated, Flags, Flags]]) -> dict[str, Any]:
    """For each kind: faults, those found, and the share of their rows that is flagged."""
    rows = fault_rows(found)
    return {kind: recalled([share for k, _, share in rows if k == kind]) for kind in faults.KINDS}


def by_size(found: list[tuple[Contaminated, Flags, Flags]]) -> dict[str, Any]:
    """The same for the smallest, middle and largest third of the sizes that are drawn, all kinds together."""
    rows = fault_rows(found)
    names = ("hard", "middle", "clear")
    return {name: recalled([share for _, third, share in rows if third == k]) for k, name in enumerate(names)}


def fault_rows(found: list[tuple[Contaminated, Flags, Flags]]) -> list[tuple[str, int, float]]:
    """Every fault: its kind, the third of its size on a log scale, and the share of its rows flagged."""
    rows = []
    for one, flags, _ in found:
        for kind, first, last, size in one.placed:
            hard, clear = np.log(faults.SIZES[kind])
            third = min(int(3 * (np.log(size) - hard) / (clear - hard)), 2)
            rows.append((kind, third, float(flags[first : last + 1].mean())))
    return rows


def recalled(shares: list[float]) -> dict[str, Any]:
    if not shares:
        return {"faults": 0}
    return {
        "faults": len(shares),
        "found": sum(share >= 0.5 for share in shares),
        "rows_flagged": rounded(float(np.mean(shares)), 2),
    }


def by_source(found: list[tuple[Contaminated, Flags, Flags]]) -> dict[str, Any]:
    """Share of faulty rows flagged, of flagged rows faulty, and of the healthy history flagged."""
    faulty = flagged = right = healthy = rows = 0
    for one, flags, untouched in found:
        back = np.zeros(len(flags), np.bool_)
        for _, last in segments(one.labels):
            back[last + 1 : last + 1 + WAY_BACK] = True
        faulty += int(one.labels.sum())
        right += int((flags & one.labels).sum())
        flagged += int((flags & (one.labels | ~back)).sum())
        healthy += int(untouched.sum())
        rows += len(flags)
    return {
        "histories": len(found),
        "recall": rounded(right / faulty, 2) if faulty else None,
        "precision": rounded(right / flagged, 2) if flagged else None,
        "healthy_rows_flagged": rounded(healthy / rows, 2),
    }


def detection(plant: str, device: int, one: Contaminated, flags: Flags) -> dict[str, dict[str, Any]]:
    """Events met in rows behind the training rows, by what the detector was taught on."""
    random = np.random.default_rng([1000 + device, *plant.encode()])
    whole = simulate(plant, ROWS + TEST_ROWS, 1, device).values
    plan = faults.schedule(len(whole), random, start=ROWS + 100, share=TEST_SHARE)
    tested, labels, _ = faults.inject_all(whole, plan, random)
    every = np.ones(ROWS, np.bool_)
    taught = {
        "healthy": (one.healthy, every),
        "contaminated": (one.values, every),
        "cleaned": (one.values, ~flags),
        "without all faulty rows": (one.values, ~one.labels),
    }
    found = {}
    for name, (values, teaches) in taught.items():
        scores, usual = ridge_scores(np.concatenate([values, tested[ROWS:]]), teaches)
        threshold = np.quantile(usual, QUANTILE)
        met, said = labels[ROWS:], scores[ROWS:]
        found[name] = {
            "threshold": float(threshold),
            "outcome": judge(met, said > threshold, start=0),
            "vus_pr": vus_pr(met, said, 100),
        }
    for figures in found.values():
        figures["threshold"] /= found["healthy"]["threshold"]
    return found


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    outcomes: list[Outcome] = [one["outcome"] for one in found]
    every = pooled(outcomes)
    return {
        "events": every.events,
        "recall": rounded(every.recall, 3),
        "false_episodes_per_10k": rounded(every.false_per_10k, 3),
        "vus_pr": rounded(float(np.mean([one["vus_pr"] for one in found])), 3),
        "threshold_of_healthy": rounded(float(np.median([one["threshold"] for one in found])), 3),
    }


if __name__ == "__main__":
    main()
