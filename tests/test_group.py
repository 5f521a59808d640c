"""The group scorer: phases, batches, swaps."""

from __future__ import annotations

import numpy as np
import pytest
from support_engine import plant_rows
from support_models import BUDGET, sealed_model

from gruard.models.enrolment import History, fitted_devices, usual_gap
from gruard.models.errors import ModelError
from gruard.models.forecaster import Forecaster, cell_inputs, input_width
from gruard.models.group import BASELINE_READY, FIRST_SCORE, GroupScorer, Phase
from gruard.models.weights import check_network


class Driver:
    """A group with its histories, fed row by row."""

    def __init__(self, devices: int, fields: int = 3) -> None:
        self.group = GroupScorer(fields, BUDGET)
        self.slots = np.array([self.group.add() for _ in range(devices)])
        self.rows: list[np.ndarray] = []  # (B, F) each
        self.scores: list[np.ndarray] = []

    def feed(self, rows: np.ndarray, *, enrol: bool = True) -> None:
        """Rows (T, B, F), one a second for every device."""
        for row in rows:
            time_s = np.full(len(self.slots), float(len(self.rows)))
            result = self.group.score(self.slots, time_s, row)
            self.rows.append(row)
            self.scores.append(result.score)
            due = self.group.due(self.slots)
            if enrol and len(due):
                where = [int(np.flatnonzero(self.slots == slot)[0]) for slot in due]
                self.group.enrol(due, [self.history(n) for n in where])

    def history(self, n: int, limit: int = 1000) -> History:
        values = np.array([row[n] for row in self.rows[-limit:]])
        times = np.arange(len(self.rows) - len(values), len(self.rows), dtype=float)
        return History(times, values, np.ones(len(values), bool))


def plants(devices: int, n: int) -> np.ndarray:
    return np.stack([plant_rows(n, seed=s) for s in range(devices)], axis=1)  # (T, B, F)


def test_score_phases_follow_the_count_of_readings() -> None:
    """No score while gathering, a warming score next, then the baseline is in charge."""
    driver = Driver(1)
    driver.feed(plants(1, FIRST_SCORE))
    assert np.isnan(driver.scores).all()
    driver.feed(plants(1, 1))
    assert driver.group.phases(driver.slots)[0] == Phase.WARMING
    assert np.isfinite(driver.scores[-1]).all()
    driver.feed(plants(1, BASELINE_READY))
    assert driver.group.phases(driver.slots)[0] == Phase.LEARNING


def test_score_depends_on_the_devices_own_readings_only() -> None:
    """Eight devices in one batch score as each does alone."""
    rows = plants(8, 260)
    together = Driver(8)
    together.feed(rows)
    for n in (0, 3, 7):
        alone = Driver(1)
        alone.feed(rows[:, n : n + 1])
        np.testing.assert_allclose(
            np.array(together.scores)[:, n], np.array(alone.scores)[:, 0], atol=1e-5, equal_nan=True
        )


def test_score_same_reading_twice_gives_same_numbers_in_two_scorers() -> None:
    """Scoring is deterministic."""
    one, two = Driver(2), Driver(2)
    one.feed(plants(2, 120))
    two.feed(plants(2, 120))
    np.testing.assert_array_equal(np.array(one.scores), np.array(two.scores))


def test_score_inputs_are_not_changed() -> None:
    """The caller's arrays stay as they were."""
    driver = Driver(2)
    driver.feed(plants(2, 60))
    values = plants(2, 1)[0].copy()
    values[0, 0] = np.nan
    before = values.copy()
    driver.group.score(driver.slots, np.array([60.0, 60.0]), values)
    np.testing.assert_array_equal(values, before)


def test_score_all_missing_reading_is_finite() -> None:
    """A reading in which every field is missing moves time and nothing breaks."""
    driver = Driver(1)
    driver.feed(plants(1, 80))
    driver.feed(np.full((3, 1, 3), np.nan))
    assert np.isfinite(driver.scores[-1]).all()
    driver.feed(plants(1, 90)[80:])
    assert np.isfinite(driver.scores[-1]).all()


def test_share_sums_to_one_and_names_the_broken_field() -> None:
    """The explanation is a distribution over fields, led by the one that broke."""
    driver = Driver(1)
    driver.feed(plants(1, 300))
    row = plant_rows(301)[300:301].copy()
    row[0, 2] += 30.0
    result = driver.group.score(driver.slots, np.array([300.0]), row)
    assert result.share[0].sum() == pytest.approx(1.0, abs=1e-6)
    assert result.share[0].argmax() == 2
    assert result.score[0] > result.threshold[0] > result.release[0]


def test_remove_slot_is_clean_for_the_next_device() -> None:
    """A new device in a used slot starts from nothing."""
    driver = Driver(1)
    driver.feed(plants(1, 100))
    driver.group.remove(int(driver.slots[0]))
    slot = driver.group.add()
    assert driver.group.phases(np.array([slot]))[0] == Phase.GATHERING
    assert driver.group.counts(np.array([slot]))[0] == 0


@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
def test_adopt_rewarmed_state_equals_having_run_with_the_model(cell: str) -> None:
    """After a swap the hidden state is what it would be had the model been live over those readings."""
    driver = Driver(2)
    driver.feed(plants(2, 300))
    histories = {f"d{n}": driver.history(n) for n in range(2)}
    package = sealed_model("g", histories, cell=cell)
    fitted = fitted_devices(package.manifest.devices, package.tensors)

    def adopted(rows: int) -> GroupScorer:
        group = GroupScorer(3, BUDGET)
        slots = np.array([group.add(rows) for _ in range(2)])
        group.adopt(Forecaster(check_network(package), package.tensors), package.manifest.id)
        cut = [History(h.time_s[:rows], h.values[:rows], h.normal[:rows]) for h in histories.values()]
        group.enrol(slots, cut, [fitted["d0"], fitted["d1"]])
        return group

    early, late = adopted(250), adopted(300)
    slots = np.array([0, 1])
    for t in range(250, 300):
        early.score(slots, np.full(2, float(t)), driver.rows[t])
    assert (late.phases(slots) == Phase.READY).all()
    for name in ("hidden", "lags", "correction"):
        np.testing.assert_allclose(early._arena[name][slots], late._arena[name][slots], atol=1e-5)


def test_adopt_group_without_model_again_is_possible() -> None:
    """Weights can be taken out again: the baseline scores on."""
    driver = Driver(1)
    driver.feed(plants(1, 300))
    package = sealed_model("g", {"d0": driver.history(0)})
    driver.group.adopt(Forecaster(check_network(package), package.tensors), package.manifest.id)
    driver.group.enrol(driver.slots, [driver.history(0, 400)])
    assert driver.group.phases(driver.slots)[0] == Phase.READY
    driver.group.adopt(None, "none")
    driver.group.enrol(driver.slots, [driver.history(0, 400)])
    assert driver.group.phases(driver.slots)[0] == Phase.LEARNING
    assert np.isnan(driver.group.skill(driver.slots))


def test_enrol_model_that_forecasts_badly_does_not_take_charge() -> None:
    """A device for which the shared model is much worse than the baseline stays with the baseline."""
    driver = Driver(1)
    driver.feed(plants(1, 300))
    package = sealed_model("g", {"d0": driver.history(0)})
    tensors = dict(package.tensors)
    tensors["var.weights"] = tensors["var.weights"] + np.float32(3.0)
    driver.group.adopt(Forecaster(check_network(package), tensors), "bad")
    driver.group.enrol(driver.slots, [driver.history(0, 400)])
    assert driver.group.phases(driver.slots)[0] == Phase.LEARNING


def test_enrol_rows_in_alarm_teach_nothing() -> None:
    """A fault inside the history moves neither the scale nor the calibration when it was marked."""
    rows = plant_rows(300)
    spoilt = rows.copy()
    spoilt[200:240] += 500
    normal = np.ones(300, bool)
    normal[200:240] = False
    driver = Driver(2)
    times = np.arange(300.0)
    histories = [History(times, rows, np.ones(300, bool)), History(times, spoilt, normal)]
    driver.group.score(driver.slots, np.zeros(2), rows[:2])
    driver.group.enrol(driver.slots, histories)
    arena = driver.group._arena
    np.testing.assert_allclose(arena["location"][1], arena["location"][0], atol=0.5)
    np.testing.assert_allclose(arena["scale"][1], arena["scale"][0], rtol=0.2)


def test_dump_load_continues_with_identical_scores() -> None:
    """A device's bytes in another scorer score on to the same bits."""
    driver = Driver(1)
    driver.feed(plants(1, 150))
    other = GroupScorer(3, BUDGET)
    slot = other.add()
    other.load(slot, driver.group.dump(int(driver.slots[0])))
    for t in range(150, 200):
        row = plant_rows(200)[t : t + 1]
        a = driver.group.score(driver.slots, np.array([float(t)]), row)
        b = other.score(np.array([slot]), np.array([float(t)]), row)
        np.testing.assert_array_equal(a.score, b.score)


def test_usual_gap_is_the_median_and_never_zero() -> None:
    """Pauses and repeated stamps do not spoil the usual gap."""
    assert usual_gap(np.array([0.0, 60, 120, 180, 99999])) == 60
    assert usual_gap(np.array([5.0])) == 1.0
    assert usual_gap(np.array([5.0, 5.0, 5.0])) == 1.0


def test_cell_inputs_hold_values_mask_and_log_gap() -> None:
    """The cell sees what was measured, what was missing, and how long the device was silent."""
    inputs = cell_inputs(np.array([[1.0, 2.0]], np.float32), np.array([[True, False]]), np.array([np.e]))
    np.testing.assert_allclose(inputs, [[1, 2, 1, 0, 1]], atol=1e-6)
    assert inputs.shape[1] == input_width(2)
    still = cell_inputs(np.zeros((1, 1), np.float32), np.ones((1, 1), bool), np.array([0.0]))
    assert np.isfinite(still).all()


@pytest.mark.parametrize("name", ["var.weights", "gate", "residual.precision", "level.precision"])
def test_forecaster_damaged_tensor_is_refused(name: str) -> None:
    """A tensor that is absent, misshapen or not finite never becomes a forecaster."""
    driver = Driver(1)
    driver.feed(plants(1, 120), enrol=False)
    package = sealed_model("g", {"d0": driver.history(0)})
    config = check_network(package)
    for wrong in (None, np.zeros((1, 1), np.float32), package.tensors[name] * np.float32("nan")):
        tensors = {n: t for n, t in package.tensors.items() if n != name}
        with pytest.raises(ModelError, match=name.replace(".", r"\.")):
            Forecaster(config, tensors if wrong is None else {**tensors, name: wrong})


def test_forecaster_poisoned_hidden_state_starts_again() -> None:
    """One number that is not finite resets that device's memory, is counted, and touches nobody else."""
    driver = Driver(1)
    driver.feed(plants(1, 120), enrol=False)
    package = sealed_model("g", {"d0": driver.history(0)})
    forecaster = Forecaster(check_network(package), package.tensors)
    inputs = np.ones((3, input_width(3)), np.float32)
    hidden = np.full((3, forecaster.state_width), 0.1, np.float32)
    sound, moved, none = forecaster.remember(inputs, hidden)
    assert none == 0
    poisoned = hidden.copy()
    poisoned[1, 2] = np.nan
    correction, after, resets = forecaster.remember(inputs, poisoned)
    assert resets == 1
    assert np.isfinite(after).all()
    np.testing.assert_array_equal(correction[[0, 2]], sound[[0, 2]])
    np.testing.assert_array_equal(after[[0, 2]], moved[[0, 2]])
