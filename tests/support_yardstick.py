"""Another implementation of the measures, where it lies beside the checkout: what ours must agree with."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

SHARED = Path(__file__).parent.parent.parent / "shared"
YARDSTICK = SHARED / "eval"


def yardstick(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module `metrics` of the yardstick; the test is skipped where there is none."""
    if not (YARDSTICK / "metrics.py").exists():
        pytest.skip("the yardstick (../shared/eval/metrics.py) is not beside the checkout")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # the folder is not ours
    package = _loaded("yardstick", YARDSTICK / "__init__.py", [str(YARDSTICK)])
    monkeypatch.setitem(sys.modules, "yardstick", package)
    monkeypatch.setitem(sys.modules, "yardstick.data", _loaded("yardstick.data", YARDSTICK / "data.py"))
    return _loaded("yardstick.metrics", YARDSTICK / "metrics.py")


def valve_recordings() -> Iterator[tuple[NDArray[np.float32], NDArray[np.uint8]]]:
    """Readings (T, 8) and labels (T,) of a water rig's valve recordings; skipped where there are none."""
    if not (SHARED / "data" / "skab.npz").exists():
        pytest.skip("the labelled recordings (../shared/data) are not beside the checkout")
    with np.load(SHARED / "data" / "skab.npz") as archive:
        for key in archive.files:
            if key.startswith("valve1") and key.endswith("|x"):
                yield archive[key], archive[key.removesuffix("x") + "y"]


def scored_series(seed: int, rows: int = 600) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Labels (T,) with at least one event, at the ends too, and scores (T,) that know something of them.

    Every third seed rounds the scores, so that many of them tie.
    """
    random = np.random.default_rng(seed)
    labels = np.zeros(rows, np.bool_)
    for first in random.integers(-5, rows - 1, random.integers(1, 8)):
        labels[max(first, 0) : first + random.integers(6, 40)] = True
    scores = random.standard_normal(rows) + random.uniform(0, 2) * labels
    return labels, np.round(scores) if seed % 3 == 0 else scores


def _loaded(name: str, path: Path, search: list[str] | None = None) -> Any:
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=search)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their own module up by name while they are being made.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[name]
    return module
