"""The library's front door: one device, trained inline."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from support_engine import plant_rows
from support_models import BUDGET

from gruard.models import Detector, DetectorConfig, Score
from gruard.models.errors import ModelError
from gruard.models.group import GroupScorer


def run(detector: Detector, rows: np.ndarray) -> list[Score]:
    return [detector.update(float(t), row.astype(np.float32)) for t, row in enumerate(rows)]


def test_update_is_not_ready_while_warming_and_ready_after() -> None:
    """The first `warmup` readings are not ready; from the next one on the model is live."""
    scores = run(Detector(fields=3, warmup=150), plant_rows(160))
    assert not any(s.ready for s in scores[:150])
    assert all(s.ready for s in scores[150:])
    assert all(np.isfinite(s.value) for s in scores)


@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
def test_update_every_cell_finds_a_lasting_fault(cell: str) -> None:
    """Each recurrent cell trains inline, stays quiet on normal rows and alarms inside a fault."""
    rows = plant_rows(700)
    rows[550:620, 1] += 12.0
    scores = run(Detector(fields=3, warmup=400, config=DetectorConfig(cell=cell, hidden=8)), rows)
    assert not any(s.alarm for s in scores[400:550])
    inside = scores[552:620]
    assert np.mean([s.alarm for s in inside]) > 0.9
    assert inside[0].share.argmax() == 1
    assert inside[0].expected[1] == pytest.approx(20, abs=8)


def test_update_score_ranks_fault_above_normal() -> None:
    """The score of fault rows lies above that of nearly all normal rows."""
    rows = plant_rows(700)
    rows[550:600, 0] += 8.0
    values = np.array([s.value for s in run(Detector(fields=3, warmup=400), rows)])
    assert np.median(values[552:600]) > np.quantile(values[400:550], 0.99)


def test_update_missing_values_are_native() -> None:
    """NaN in any field at any time is scored without it."""
    rows = plant_rows(500)
    rows[::7, 1] = np.nan
    rows[450] = np.nan
    scores = run(Detector(fields=3, warmup=300), rows)
    assert all(np.isfinite(s.value) for s in scores)
    assert sum(s.alarm for s in scores[300:]) == 0


def test_update_same_seed_same_scores() -> None:
    """Training and scoring are reproducible."""
    rows = plant_rows(260)
    first = [s.value for s in run(Detector(fields=3, warmup=200), rows)]
    assert first == [s.value for s in run(Detector(fields=3, warmup=200), rows)]


def test_update_input_is_not_changed() -> None:
    """The caller's array stays as it was."""
    row = np.array([1.0, np.nan, 3.0], np.float32)
    before = row.copy()
    Detector(fields=3).update(0.0, row)
    np.testing.assert_array_equal(row, before)


@pytest.mark.parametrize("values", [np.zeros(2), np.zeros((1, 3)), np.array([1.0, np.inf, 0.0])])
def test_update_wrong_input_is_refused_with_a_sentence(values: np.ndarray) -> None:
    """Wrong shapes and infinities are the caller's mistake and change nothing."""
    detector = Detector(fields=3)
    with pytest.raises(ValueError, match="3 finite numbers"):
        detector.update(0.0, values)


def test_detector_without_fields_is_refused() -> None:
    """A device has at least one field."""
    with pytest.raises(ValueError, match="at least 1"):
        Detector(fields=0)


def test_update_equals_the_daemons_group_scorer_before_training() -> None:
    """One device by hand scores exactly as the daemon's batched scorer does."""
    rows = plant_rows(190)
    by_hand = [s.value for s in run(Detector(fields=3, warmup=400), rows)]
    group = GroupScorer(3, BUDGET)
    slots = np.array([group.add()])
    detector = Detector(fields=3, warmup=400)
    run(detector, rows)
    again = []
    for t, row in enumerate(rows):
        result = group.score(slots, np.array([float(t)]), row.astype(np.float32)[None])
        again.append(float(np.nan_to_num(result.score[0])))
        if len(group.due(slots)):
            history = detector._history()
            cut = type(history)(history.time_s[: t + 1], history.values[: t + 1], history.normal[: t + 1])
            group.enrol(slots, [cut])
    np.testing.assert_allclose(again, by_hand, atol=1e-5)


def test_import_does_not_import_torch() -> None:
    """Importing the library costs no torch; only training inline does."""
    code = "import sys, gruard.models; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_detector_short_warm_up_puts_the_model_in_charge_or_is_refused() -> None:
    """Sixty readings are enough to train on; fewer are refused at once, not at the sixty-first."""
    with pytest.raises(ValueError, match="at least 60"):
        Detector(fields=3, warmup=40)
    detector = Detector(fields=3, warmup=120)
    scores = run(detector, plant_rows(140))
    assert scores[-1].ready
    assert detector._group.phases(detector._slots)[0] == 3


def test_detector_two_sided_network_is_refused() -> None:
    """Live readings have no future: a network that needs it says so when it should take charge."""
    detector = Detector(fields=3, warmup=60, config=DetectorConfig(cell="bigru", hidden=4))
    rows = plant_rows(61)
    run(detector, rows[:60])
    with pytest.raises(ModelError, match="needs the readings that follow"):
        detector.update(60.0, rows[60])
