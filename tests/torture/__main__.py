"""`python -m torture` in tests/: fault after fault, one line of a table each; exit 1 on a broken promise."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import traceback
from pathlib import Path

from torture.checker import Verdict
from torture.faults import FAULTS, Report, UnavailableError, kill_at_random

_COLUMNS = (
    *(("fault", 9), ("count", 6), ("seed", 7), ("readings", 10), ("lost", 6), ("double", 7)),
    *(("worst", 9), ("alerts", 8), ("differ", 7), ("s", 7)),
)


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(prog="torture", description=__doc__)
    parser.add_argument(
        "--fault", action="append", choices=[*FAULTS, "F1-model"], help="only this (again for more)"
    )
    parser.add_argument("--count", type=int, help="how often, instead of a release's count (F20: seconds)")
    parser.add_argument("--minutes", type=int, help="length of the soak F22 (default: 30)")
    parser.add_argument("--seed", type=int, default=1, help="of every choice (default: %(default)s)")
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="put what a fault leaves behind here, and keep it"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="append each report to this file, one line each"
    )
    arguments = parser.parse_args()
    broken = 0
    _say("".join(f"{name:>{width}}" for name, width in _COLUMNS))
    for name in arguments.fault or [*FAULTS, "F1-model"]:
        count = arguments.minutes if name == "F22" else arguments.count
        report = _run(name, count, arguments.seed, arguments.keep)
        broken += report is None or bool(report.broken)
        if report is not None and arguments.json is not None:
            with arguments.json.open("a", encoding="utf-8") as out:
                out.write(f"{_as_json(name, report)}\n")
    _say(f"{broken} faults broke a promise" if broken else "every promise held")
    return int(broken > 0)


def _run(name: str, count: int | None, seed: int, keep: Path | None) -> Report | None:
    """One fault; None where it could not be judged."""
    folder = Path(tempfile.mkdtemp(prefix=f"torture-{name}-", dir=keep))
    sound = False
    try:
        if name == "F1-model":
            report = kill_at_random(folder, seed, count or FAULTS["F1"][1], trained=True)
        else:
            fault, usual = FAULTS[name]
            report = fault(folder, seed, count or usual)
    except UnavailableError as reason:
        _say(f"{name:>9}  left out: {reason}")
        return Report(name, seed, 0, Verdict(), 0.0)
    except Exception:  # noqa: BLE001 - the other faults are still worth their time
        _say(f"{name:>9}  seed {seed} could not be judged; what it left: {folder}\n{traceback.format_exc()}")
        return None
    else:
        _print(name, report, folder)
        sound = not report.broken
        return report
    finally:
        if sound and keep is None:
            shutil.rmtree(folder)


def _print(name: str, report: Report, folder: Path) -> None:
    v = report.verdict
    cells = (
        *(name, report.count, report.seed, v.readings, v.lost, v.double),
        *(f"{v.worst:.1e}", v.alerts, v.alert_differences, f"{report.seconds:.0f}"),
    )
    line = "".join(f"{cell:>{width}}" for cell, (_, width) in zip(cells, _COLUMNS, strict=True))
    _say(f"{line}  {', '.join(f'{key} {value:g}' for key, value in report.facts.items())}")
    for finding in report.broken[:20]:
        _say(f"    broken: {finding}")
    if report.broken:
        _say(f"    {len(report.broken)} findings; what it left: {folder}")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _as_json(name: str, report: Report) -> str:
    v = report.verdict
    return json.dumps(
        {
            "fault": name,
            "count": report.count,
            "seed": report.seed,
            "readings": v.readings,
            "lost": v.lost,
            "double": v.double,
            "inverted": v.inverted,
            "worst": v.worst,
            "alerts": v.alerts,
            "alert_differences": v.alert_differences,
            "seconds": round(report.seconds, 1),
            "facts": report.facts,
            "broken": report.broken,
        }
    )


if __name__ == "__main__":
    sys.exit(main())
