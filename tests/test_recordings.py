"""Real recordings, where they lie beside the checkout: a fault is found, a healthy hour stays quiet."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from gruard.daemon.core.engine import EngineOptions
from gruard.daemon.pipeline import TrainingSettings
from gruard.daemon.recording import open_recording
from gruard.daemon.records import SourceOptions
from gruard.daemon.replay import Replay
from gruard.models.calibration import Budget

if TYPE_CHECKING:
    from numpy.typing import NDArray

pytestmark = [pytest.mark.recordings, pytest.mark.slow]

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
WEEKLY = Budget(1 / 604_800)
START_S = 1_600_000_000.0


def stream(name: str) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Readings (T, 8), one a second, and labels (T,) of a water-circulation rig."""
    if not (DATA / "skab.npz").exists():
        pytest.skip("the labelled recordings are not beside the checkout")
    with np.load(DATA / "skab.npz") as archive:
        return archive[f"{name}|x"], archive[f"{name}|y"]


def names() -> list[str]:
    if not (DATA / "skab.npz").exists():
        return []
    with np.load(DATA / "skab.npz") as archive:
        return sorted(key.split("|")[0] for key in archive.files if key.endswith("|x"))


def played(folder: Path, rows: NDArray[np.float32]) -> list[dict[str, Any]]:
    """Alert events of a replay."""
    path = folder / "rig.csv"
    table = np.column_stack([START_S + np.arange(len(rows)), rows.astype(float)])
    header = ",".join(["ts", *(f"sensor_{k}" for k in range(rows.shape[1]))])
    np.savetxt(
        path, table, delimiter=",", header=header, comments="", fmt=["%.3f"] + ["%.9g"] * rows.shape[1]
    )
    recording = open_recording(path, SourceOptions("rig", "rig/{device}", time="ts"), None)
    events: list[dict[str, Any]] = []
    options = EngineOptions((recording.source,), WEEKLY)
    player = Replay(
        options, TrainingSettings(), base="gruard", tell=lambda body: events.append(json.loads(body))
    )
    summary = player.run(recording)
    assert summary.scored == len(rows)
    return events


def test_replay_rig_faults_are_found_during_the_fault(tmp_path: Path) -> None:
    """On four recordings of a closing valve, alerts open inside the labelled stretch of at least three."""
    found = 0
    faulty = [name for name in names() if "anomaly-free" not in name][:4]
    if not faulty:
        pytest.skip("the labelled recordings are not beside the checkout")
    for name in faulty:
        rows, labels = stream(name)
        inside = np.flatnonzero(labels)
        events = played(tmp_path, rows)
        opened = [e for e in events if e["state"] == "opened"]
        times = [datetime.fromisoformat(e["time"]).timestamp() - START_S for e in opened]
        found += any(inside[0] <= t <= inside[-1] for t in times)
    assert found >= 3


def test_replay_healthy_rig_is_nearly_quiet(tmp_path: Path) -> None:
    """Over half an hour of the rig's fault-free recording at most two alerts open."""
    rows, labels = stream("anomaly-free/anomaly-free")
    assert not labels.any()
    opened = [e for e in played(tmp_path, rows[:2200]) if e["state"] == "opened"]
    assert len(opened) <= 2
