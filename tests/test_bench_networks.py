"""The benchmarks of the networks still run and keep what they say they keep."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parent.parent / "bench"
LARGEST_PLOT_BYTES = 150_000

pytestmark = pytest.mark.slow


def quick(script: str, out: Path, *options: str) -> dict[str, Any]:
    """Figures kept by a run that does a little of everything."""
    done = subprocess.run(
        [sys.executable, str(BENCH / script), "--quick", "--out", str(out), *options],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (path,) = out.glob("*.json")
    figures: dict[str, Any] = json.loads(path.read_text("utf-8"))
    assert {"date", "machine", "versions", "seeds"} <= figures.keys()
    assert {"python", "gruard", "numpy", "torch"} <= figures["versions"].keys()
    return figures


def test_long_memory_benchmark_keeps_figures_and_a_small_plot(tmp_path: Path) -> None:
    """A gradient for every lag of every recurrent start, a recall for every lag of every network, one PNG."""
    figures = quick("bench_long_memory.py", tmp_path, "--seeds", "1")
    before, after = (curves for name, curves in figures["gradient_norm"].items() if name != "lags")
    assert {"rnn", "lstm", "gru", "gru, open gates"} <= before.keys() == after.keys()
    assert {len(norms) for norms in before.values()} == {len(figures["gradient_norm"]["lags"])}
    recalled = dict(figures["recall_accuracy"])
    lags = recalled.pop("lags")
    assert before.keys() < recalled.keys()
    assert all(len(curve) == len(lags) for curve in recalled.values())
    plot = (tmp_path / "long_memory.png").read_bytes()
    assert plot.startswith(b"\x89PNG")
    assert len(plot) < LARGEST_PLOT_BYTES


def test_family_benchmark_sets_every_kind_beside_gru(tmp_path: Path) -> None:
    """Cost, state and quality for all five, and what a reading costs the transformer."""
    figures = quick("bench_family.py", tmp_path, "--seconds", "1")
    rows = figures["rows"]
    for cell in ("gru", "lstm", "rnn", "mlp", "transformer"):
        assert {"us, B=1", "us, B=512", "state bytes", "weights", "left", "VUS-PR"} <= rows[cell].keys()
    assert rows["gru"]["state bytes"] < rows["lstm"]["state bytes"] < rows["transformer"]["state bytes"]
    ratio = figures["transformer_cost_per_reading_of_gru"]["B=1"]["live gru"]
    assert ratio == pytest.approx(rows["transformer"]["us, B=1"] / rows["gru"]["us, B=1"], rel=1e-2)


def test_cleaning_benchmark_tells_what_was_found_by_kind(tmp_path: Path) -> None:
    """Every kind of fault has its line, and a detector is judged after each way of training."""
    figures = quick("bench_cleaning.py", tmp_path)
    kinds = figures["by_kind"]["plants"]
    assert {"shift", "departure", "stuck", "noise", "period", "cycle", "link"} == kinds.keys()
    assert sum(kind["faults"] for kind in kinds.values()) > 0
    assert all(kind.get("found", 0) <= kind["faults"] for kind in kinds.values())
    taught = figures["detection_after_training_on"]
    assert list(taught) == ["healthy", "contaminated", "cleaned", "without all faulty rows"]
    assert taught["healthy"]["threshold_of_healthy"] == 1.0
