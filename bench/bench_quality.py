"""How well gruard detects, beside its controls, its ablations and other projects' streaming detectors.

    python bench/bench_quality.py [FOLDER] [--only gruard] [--suite skab] [--jobs 2]

FOLDER holds the labelled recordings (skab, nab, msl and smd .npz), which are not part of gruard. A full run
writes bench/results/quality.json and quality.md; one that is narrowed down by --only or --suite prints its
table and keeps nothing. Every scored stream is cached outside the checkout until the code or the settings
behind it change, so a run can be interrupted and resumed. Other projects' detectors take
`pip install -c constraints.txt -e '.[peers]'`. One that cannot be installed beside gruard can be run with
--only in an environment of its own: the cache is shared, and its figures appear in the next full table.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from collections import defaultdict
from concurrent.futures.process import BrokenProcessPool
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when numpy is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from quality import table
from quality.contenders import SPAN, ConfigError, contenders, seeds_of
from quality.figures import figures, smoothed
from quality.run import Runner, Unit
from quality.suites import RANKED, SUITES, RecordingsError, check, load
from quality.trace import version_of

from gruard.models import calibration

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from quality.trace import Contender


def in_sample_only(final: NDArray[Any], _held_back: NDArray[Any] | None = None) -> tuple[Any, Any]:
    """Calibration by the rows that the scoring model was fitted on."""
    return _FIT(final)


_FIT = calibration.fit
#: What is changed of the default detector, one line of the table each: settings of DetectorConfig, or
#: constants of modules below gruard.models. Their first seed is compared with gruard's own.
ABLATIONS: dict[str, dict[str, Any]] = {
    "no recurrent part": {"training.candidate.LUCK": float("inf")},
    "cell lstm": {"cell": "lstm"},
    "cell rnn": {"cell": "rnn"},
    "horizon 1 only": {"forecaster.HORIZONS": (1,)},
    "scale 1 only": {
        "evidence.SCALES": (1,),
        "evidence.ALPHAS": np.ones(1, np.float32),
        "baseline_lines.WEIGHTS": np.full((3, 2), 1 / 3, np.float32),
    },
    "no scale 60": {
        "evidence.SCALES": (1, 4, 16),
        "evidence.ALPHAS": np.array([2 / (k + 1) for k in (1, 4, 16)], np.float32),
        "baseline_lines.WEIGHTS": np.full((9, 2), 1 / 9, np.float32),
    },
    "no held-back calibration": {"calibration.fit": in_sample_only},
    "no afterglow": {"calibration.MOST_GLOW": np.float32(0.0)},
    "low whitening floor": {"evidence.FLOOR": 0.3},
    "no clock": {"training.panel.CLOCK_EARNS": 0.0},
    "baseline never kept": {"enrolment.MAY_LOSE": float("inf")},
    "alarm without budget": {"alarm.GROWTH": 1.0, "alarm.LONGEST": 10**9},
    "alarm without fading": {"alarm.FADED": 0.0},
}
#: Ablations say nothing new there, and it is the longest suite.
NOT_ABLATED = "nab25"

ROOT = Path(__file__).resolve().parent.parent
BAD_CONFIG = 78  # sysexits.h: EX_CONFIG
INTERRUPTED = 130
SHOWN_VERSIONS = ("numpy", "torch", "river", "pysad", "scikit-learn", "deep-river")


def main(arguments: Sequence[str] | None = None) -> int:
    options = parsed(arguments)
    try:
        check(options.folder)
        chosen = narrowed(contenders(ABLATIONS), options.only)
    except (RecordingsError, ConfigError) as error:
        print(f"bench_quality: {error}", file=sys.stderr)
        return BAD_CONFIG
    runner = Runner(options.folder, options.cache, options.cap)
    suites = options.suite or list(SUITES)
    seeds = range(options.seeds)
    units = [
        Unit(c, suite, s)
        for c in chosen
        for suite in suites
        if not (c.kind == "ablation" and suite == NOT_ABLATED)
        for s in seeds_of(c, seeds)
    ]
    try:
        reasons = run_all(runner, units, options.jobs)
        document = documented(runner, chosen, suites, list(seeds), reasons)
    except (KeyboardInterrupt, BrokenProcessPool):
        print("\nstopped: what is done is cached, and the same command goes on from there", file=sys.stderr)
        return INTERRUPTED
    except RecordingsError as error:
        print(f"bench_quality: {error}", file=sys.stderr)
        return BAD_CONFIG
    print("\n" + table.markdown(document))
    if options.only or options.suite:
        print("a narrowed run: nothing written")
    else:
        print(*(f"wrote {path}" for path in table.write(options.out, document)), sep="\n")
    return 0


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    cache_home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument(
        "--only", action="append", help="a line's name, or gruard|ablation|control|floor|peer"
    )
    parser.add_argument("--suite", action="append", choices=list(SUITES))
    parser.add_argument("--seeds", type=int, default=3, help="of gruard and its ablations (default: 3)")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time (default: 1)")
    parser.add_argument("--cap", type=float, default=3600.0, help="most seconds per detector and suite")
    parser.add_argument("--cache", type=Path, default=cache_home / "gruard" / "bench_quality")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    options = parser.parse_args(arguments)
    if options.seeds < 1 or options.jobs < 1:
        parser.error("--seeds and --jobs must be at least 1")
    return options


def narrowed(every: Sequence[Contender], only: Sequence[str] | None) -> list[Contender]:
    """The contenders that are named, or whose kind is.

    Raises:
        ConfigError: a name fits none.
    """
    wanted = set(only or ())
    known = {c.name for c in every} | {c.kind for c in every}
    if wanted - known:
        raise ConfigError(f"--only {', '.join(sorted(wanted - known))}: there are {', '.join(sorted(known))}")
    return [c for c in every if not wanted or {c.name, c.kind} & wanted]


def run_all(runner: Runner, units: Sequence[Unit], jobs: int) -> dict[tuple[str, str, int], str]:
    """Run what is not cached; why a unit has no figures, where it has none."""
    reasons: dict[tuple[str, str, int], str] = {}
    for count, done in enumerate(runner.run(units, jobs), 1):
        unit = done.unit
        told = done.reason or f"{done.fresh} streams, {done.seconds:.0f} s"
        if done.fresh or done.reason:
            print(
                f"{count}/{len(units)} {unit.suite:6} {unit.contender.name}, seed {unit.seed}: {told}",
                flush=True,
            )
        if done.reason:
            reasons[unit.label] = done.reason
    return reasons


def documented(
    runner: Runner,
    chosen: Sequence[Contender],
    suites: Sequence[str],
    seeds: Sequence[int],
    reasons: dict[tuple[str, str, int], str],
) -> dict[str, Any]:
    """Everything that is kept of a run; JSON."""
    lines: list[dict[str, Any]] = []
    left_out: dict[tuple[str, str], list[str]] = defaultdict(list)
    for contender in chosen:
        line = _line(contender, contender.name, derived=False)
        behind_mean = _line(contender, f"{contender.name}, mean of {SPAN}", derived=True)
        for suite in suites:
            if contender.kind == "ablation" and suite == NOT_ABLATED:
                continue
            units = [Unit(contender, suite, seed) for seed in seeds_of(contender, seeds)]
            told = next((reasons[u.label] for u in units if u.label in reasons), "")
            if told:
                left_out[contender.name, told].append(suite)
                continue
            for unit in units:
                _measure(runner, unit, line, behind_mean)
        lines += [x for x in (line, behind_mean) if x["suites"]]
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "code": _code(),
        "seeds": list(seeds),
        "versions": {"python": platform.python_version(), **{p: version_of(p) for p in SHOWN_VERSIONS}},
        "machine": _machine(),
        "suites": {suite: _cut(runner.recordings, suite) for suite in suites},
        "lines": lines,
        "left_out": [{"name": n, "reason": r, "suites": s} for (n, r), s in left_out.items()],
    }


def _line(contender: Contender, name: str, *, derived: bool) -> dict[str, Any]:
    return {
        "name": name,
        "kind": contender.kind,
        "note": "" if derived else contender.note,
        "derived": derived,
        "settings": dict(contender.settings),
        "versions": {},
        "measured": [],  # the first and the last day
        "suites": {},
    }


def _measure(runner: Runner, unit: Unit, line: dict[str, Any], behind_mean: dict[str, Any]) -> None:
    """Add one unit's figures to its line, and a peer's behind a running mean to the other one."""
    pairs = runner.traces(unit)
    if pairs is None:
        raise RecordingsError(f"the cache lost {unit.contender.name} on {unit.suite} while this ran")
    kind = unit.contender.kind
    found = [(line, figures(unit.suite, pairs, floor=kind == "floor"))]
    if kind == "peer" and unit.suite in RANKED:
        found.append((behind_mean, figures(unit.suite, [(s, smoothed(t)) for s, t in pairs])))
    for target, values in found:
        kept = target["suites"].setdefault(unit.suite, {})
        for name, value in values.items():
            kept.setdefault(name, []).append(value)
        dates = [*target["measured"], *(trace.measured for _, trace in pairs)]
        target["measured"] = [min(dates), max(dates)]
        target["versions"] = dict(pairs[0][1].versions)


def _cut(folder: Path, suite: str) -> dict[str, Any]:
    streams = load(folder, suite)
    return {
        "streams": len(streams),
        "rows": sum(s.rows for s in streams),
        "fields": streams[0].values.shape[1],
        "warmups": {s.name: s.warmup for s in streams},
    }


def _code() -> str:
    """The commit that ran, with a mark where files differ from it; 'unknown' outside git."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _machine() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text("utf-8").splitlines() if cpuinfo.exists() else []
    model = next(
        (x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), "unknown processor"
    )
    return f"{platform.system()} {platform.machine()}, {model}, {os.cpu_count()} cores, one thread"


if __name__ == "__main__":
    sys.exit(main())
