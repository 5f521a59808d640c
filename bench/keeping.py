"""Where the figures of a benchmark are kept, and what is told beside them."""

from __future__ import annotations

import json
import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

RESULTS = Path(__file__).parent / "results"


def keep(path: Path, figures: Mapping[str, Any]) -> None:
    """Write figures as JSON, with the day, the machine and the versions that they were measured with."""
    about = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.system()} {platform.machine()}, {processor()}, one thread",
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("gruard", "numpy", "torch")},
        },
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(about | dict(figures), indent=1) + "\n", "utf-8")
    print(f"kept in {path.name}")


def rounded(number: float, digits: int = 4) -> float | None:
    """So many significant digits, for a file that people read; None for what is no number."""
    return float(f"{number:.{digits}g}") if abs(number) < float("inf") else None


def processor() -> str:
    """What /proc/cpuinfo calls it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text("utf-8").splitlines() if cpuinfo.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
