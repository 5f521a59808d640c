"""A training round from inside: what it lets teach."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from support_engine import plant_rows

from gruard.daemon import training_round
from gruard.daemon.edges.trainer import TrainRequest
from gruard.daemon.round_conduct import Conduct
from gruard.models.calibration import Budget
from gruard.models.errors import ModelError
from gruard.models.history import History

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import pytest

WILD = slice(300, 340)


def contaminated() -> History:
    """A plant's readings, wild for a while, in which no alarm was raised."""
    rows = plant_rows(600)
    rows[WILD] += np.random.default_rng(0).normal(0, 12.0, rows[WILD].shape)
    return History(np.arange(600.0), rows, np.ones(600, bool))


def test_run_round_rows_abnormal_in_hindsight_do_not_teach(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What no alarm had marked is left out all the same, and the rest teaches."""
    taught: list[Mapping[str, History]] = []

    def train(histories: Mapping[str, History], *_: object, **__: object) -> None:
        taught.append(histories)
        raise ModelError("far enough")

    monkeypatch.setattr(training_round, "_histories", lambda *_: {"pump": contaminated()})
    monkeypatch.setattr(training_round, "train", train)
    request = TrainRequest(
        directory=str(tmp_path),
        group="plant-1",
        source="plant",
        fields=("a", "b", "c"),
        devices=("pump",),
        max_rows=5000,
        before_s=None,
        parent=None,
        anchor=None,
        cell="gru",
        hidden=8,
        layers=1,
        dropout=0.0,
        seed=0,
        budget=Budget(),
        max_seconds=60.0,
        nice=0,
        now_s=0.0,
    )
    assert training_round.run_round(request, Conduct()).result == "rejected"
    normal = taught[0]["pump"].normal
    assert normal[WILD].mean() < 0.2
    assert np.delete(normal, np.r_[WILD]).mean() > 0.95
