"""Where the recurrent memory matters, and where it does not: the same detector with it and without it.

    python bench/bench_recurrent.py [FOLDER] [--only "fleet: batch"] [--seeds 3] [--quick] [--out FOLDER]

"Without" is the whole system with the gate of the correction closed; all else is the same, fault for fault.
A system is trained on the leading rows of a setting and scores what follows, as `train_inline` would.

    fleet: ...     five simulated devices of one plant share one network; 4,000 normal rows each, then 2,400
    normal: ...    normal rows of real recordings, one network each; faults are injected into what follows
    labelled: ...  the tuning recordings as bench/quality cuts them, with the labels they came with

Injected faults: every device goes on once for each kind of `gruard.models.plants.faults`, with a fifth of
the rows faulty, 20 to 300 rows each; a kind that a recording cannot carry is left out. FOLDER holds the
labelled recordings, which are not part of gruard: without them only the fleets can run. Figures:

    VUS-PR           of the score, warm-up rows 0; mean over all continuations
    false episodes   at equal recall: the highest threshold, one for the whole setting, that finds a share of
                     its events; mean over the shares .3 to .9

A setting is kept as soon as it is done, in recurrent.json and recurrent.md; --only replaces the settings
that it names and leaves the others as they are. All of it takes some hours on one slow core.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when numpy is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from keeping import RESULTS, keep, rounded
from quality.suites import RecordingsError, check
from recurrent_settings import SETTINGS, WHOLE_FAMILY, shortened
from recurrent_table import LIVE, LONG, WITHOUT, markdown

from gruard.models.detector import DetectorConfig
from gruard.models.enrolment import fitted_devices
from gruard.models.group import GroupScorer
from gruard.models.quality.episodes import judge
from gruard.models.quality.ranking import period, segments, vus_pr
from gruard.models.training.candidate import TrainingOptions, forecaster_for, train
from gruard.models.training.fit import FitConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray
    from recurrent_settings import Group

    Floats = NDArray[np.float64]
    Labels = NDArray[np.bool_]

    #: System -> its training by the rows of the longest history; None: what it learned is not listened to.
    Systems = dict[str, Callable[[int], FitConfig] | None]

#: A history of at least so many rows is worth a longer training, and a memory that starts open.
LONG_HISTORY = 2000
LONGER: dict[str, Any] = {"steps": 300, "streams": 32, "patience": 300, "check_every": 30}
LONGEST_MEMORY = {"longest_memory": 199}
GATED = ("gru", "lstm")
#: Shares of the events between which false episodes are averaged.
RECALLS = (0.3, 0.9)
#: Where no one listens to the network, and for --quick, a few steps are enough.
FEW_STEPS = {"steps": 5, "check_every": 5}
#: Training was chosen on seeds 0 to 2, and on other draws of the same faults.
FIRST_SEED = 10
BAD_CONFIG = 78  # sysexits.h: EX_CONFIG


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """What a group scored under one network."""

    scores: list[Floats]  # (T,) of each case; warm-up rows 0
    fit_cpu_s: float
    left: float  # held-back loss of the network, that of no correction is 1


def main(arguments: Sequence[str] | None = None) -> int:
    options = parsed(arguments)
    chosen = options.only or list(SETTINGS)
    try:
        if any(not name.startswith("fleet") for name in chosen):
            check(options.folder)
    except RecordingsError as error:
        print(f"bench_recurrent: {error}", file=sys.stderr)
        return BAD_CONFIG
    path = options.out / "recurrent.json"
    kept = json.loads(path.read_text("utf-8"))["settings"] if path.exists() else {}
    for name in chosen:
        kept[name] = compared(
            name, options.folder, range(FIRST_SEED, FIRST_SEED + options.seeds), quick=options.quick
        )
        ordered = {known: kept[known] for known in SETTINGS if known in kept}
        keep(path, {"seeds": options.seeds, "first_seed": FIRST_SEED, "settings": ordered})
        path.with_suffix(".md").write_text(markdown(json.loads(path.read_text("utf-8"))), "utf-8")
    return 0


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    root = Path(__file__).resolve().parent.parent
    parser.add_argument("folder", nargs="?", type=Path, default=root.parent / "shared" / "data")
    parser.add_argument("--only", action="append", choices=list(SETTINGS), metavar="SETTING")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="hardly any training: the figures mean nothing")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error("--seeds must be at least 1")
    return options


def as_shipped(_rows: int) -> FitConfig:
    """What the product trains with on short histories."""
    return FitConfig()


def by_length(cell: str, rows: int) -> FitConfig:
    """The longer training where the history is long enough for it."""
    if rows < LONG_HISTORY:
        return FitConfig(cell)
    return FitConfig(cell, **LONGER, **(LONGEST_MEMORY if cell in GATED else {}))


def systems_in(setting: str) -> Systems:
    """What is compared there."""
    systems: Systems = {WITHOUT: None, LIVE: as_shipped, LONG: partial(by_length, "gru")}
    if setting in WHOLE_FAMILY:
        systems |= {cell: partial(by_length, cell) for cell in ("lstm", "rnn", "mlp")}
    return systems


@patch("gruard.models.training.candidate.LONG_ROWS", 10**9)  # every training exactly as it is named here
def compared(name: str, folder: Path, seeds: Sequence[int], *, quick: bool) -> dict[str, Any]:
    """Figures of every system in one setting: a list by seed each."""
    systems = systems_in(name)
    figures: dict[str, Any] = {system: defaultdict(list) for system in systems}
    about: dict[str, Any] = {"date": datetime.now(UTC).date().isoformat(), "events": [], "rows": []}
    for seed in seeds:
        groups = SETTINGS[name](folder, seed)
        if quick:
            groups = [shortened(groups[0])]
        told = [(group.warmup, case.labels) for group in groups for d in group.devices for case in d.cases]
        about["events"].append(sum(len(segments(labels)) for _, labels in told))
        about["rows"].append(sum(len(labels) - warmup for warmup, labels in told))
        done: dict[tuple[int, FitConfig], Scored] = {}
        for system, training in systems.items():
            scored = []
            for n, group in enumerate(groups):
                few = FEW_STEPS if quick or training is None else {}
                config = replace((training or as_shipped)(group.warmup), seed=seed, **few)
                if training is None:
                    with closed_gate():
                        scored.append(scored_cases(group, config))
                    continue
                if (n, config) not in done:
                    done[n, config] = scored_cases(group, config)
                scored.append(done[n, config])
            found = judged(groups, scored)
            for figure, value in found.items():
                figures[system][figure].append(value)
            print(f"{name}, seed {seed}, {system}: {found}", flush=True)
    return about | {"systems": figures}


@contextmanager
def closed_gate() -> Iterator[None]:
    """Train candidates whose recurrent correction is not listened to: nothing else of them changes."""

    def closed(correction: Any, _residual: Any, _seen: Any) -> Any:
        return np.zeros((correction.shape[0], correction.shape[3]), np.float32)

    with patch("gruard.models.training.candidate._gate", closed):
        yield


def judged(groups: Sequence[Group], scored: Sequence[Scored]) -> dict[str, Any]:
    """One system's figures in a setting."""
    by_kind: dict[str, list[float]] = defaultdict(list)
    series: list[tuple[Labels, Floats, int]] = []
    for group, one in zip(groups, scored, strict=True):
        told = [(device, case) for device in group.devices for case in device.cases]
        for (device, case), values in zip(told, one.scores, strict=True):
            by_kind[case.kind].append(vus_pr(case.labels, values, period(device.values[:, 0])))
            series.append((case.labels, values, group.warmup))
    return {
        "vus_pr": rounded(float(np.mean([volume for kind in by_kind.values() for volume in kind]))),
        "false_episodes": rounded(mean_between(false_episodes(series))),
        "by_kind": {kind: rounded(float(np.mean(found)), 3) for kind, found in by_kind.items()},
        "left": rounded(float(np.mean([one.left for one in scored])), 3),
        "fit_cpu_s": rounded(float(np.mean([one.fit_cpu_s for one in scored])), 2),
    }


def scored_cases(group: Group, config: FitConfig) -> Scored:
    """Train one network on the devices of a group, and score how each of them goes on."""
    warmup = group.warmup
    heads = [device.head(warmup) for device in group.devices]
    names = [f"{n:06d}" for n in range(len(heads))]
    budget = DetectorConfig().budget
    began = time.process_time()
    candidate = train(dict(zip(names, heads, strict=True)), TrainingOptions(config, budget))
    seconds = time.process_time() - began
    scorer = GroupScorer(heads[0].values.shape[1], budget)
    scorer.adopt(forecaster_for(candidate, heads[0], None), "bench")
    fitted = fitted_devices(candidate.devices, candidate.tensors)
    known = np.array([scorer.add(warmup, head.time_s[-1]) for head in heads])
    scorer.enrol(known, heads, [fitted.get(name) for name in names])
    told = [(device, case) for device in group.devices for case in device.cases]
    slots = []
    for slot, device in zip(known.tolist(), group.devices, strict=True):
        slots += [scorer.add() for _ in device.cases]
        for copy in slots[-len(device.cases) :]:
            scorer.load(copy, scorer.dump(slot))
    scores = [np.zeros(len(case.labels)) for _, case in told]
    for row in range(warmup, max(len(values) for values in scores)):
        here = [n for n, values in enumerate(scores) if row < len(values)]
        time_s = np.array([told[n][0].time_s[row] for n in here])
        readings = np.array([told[n][1].values[row] for n in here])
        step = scorer.score(np.array([slots[n] for n in here]), time_s, readings)
        for n, value in zip(here, step.score.tolist(), strict=True):
            scores[n][row] = value
    left = float(candidate.report["held_back_loss"]) / max(float(candidate.report["zero_loss"]), 1e-9)
    return Scored(scores, seconds, left)


def false_episodes(series: Sequence[tuple[Labels, Floats, int]]) -> Floats:
    """By event j = 1, 2, ..: false episodes at the highest threshold that finds j events, (events,).

    Series of labels (T,), scores (T,) and the first row that counts, pooled under one threshold.
    """
    peaks = [s[a : b + 1].max() for y, s, start in series for a, b in segments(y) if b >= start]
    counts = {
        threshold: sum(judge(y, s >= threshold, start=start).false_episodes for y, s, start in series)
        for threshold in set(peaks)
    }
    return np.array([counts[threshold] for threshold in sorted(peaks, reverse=True)], np.float64)


def mean_between(counts: Floats) -> float:
    """Mean of what was counted at the shares of events in RECALLS: counts (events,)."""
    low, high = RECALLS
    events = len(counts)
    return float(counts[int(low * events) : max(int(np.ceil(high * events)), 1)].mean())


if __name__ == "__main__":
    sys.exit(main())
