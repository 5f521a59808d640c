"""The group scorer: phases, batches, swaps."""

from __future__ import annotations

import numpy as np
import pytest
from support_engine import plant_rows
from support_models import BUDGET, random_forecaster, random_tensors, sealed_model

from gruard.models import Detector, DetectorConfig
from gruard.models.enrolment import Fitted, fitted_devices
from gruard.models.errors import ModelError
from gruard.models.forecaster import Forecaster, cell_inputs, horizons_for, input_width
from gruard.models.group import BASELINE_READY, FIRST_SCORE, GroupScorer, Phase, Scores
from gruard.models.history import History
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
    share = result.reasons.share[0]
    assert share.sum() == pytest.approx(1.0, abs=1e-6)
    assert share.argmax() == 2
    assert result.reasons.deviation[0].argmax() == 2
    assert result.score[0] > 0.9


def test_reasons_asked_for_later_are_those_of_the_reading() -> None:
    """What explains a reading is kept as it was, whatever the device has seen since."""
    rows = plants(2, 260)
    one, two = Driver(2), Driver(2)
    for driver in (one, two):
        driver.feed(rows[:200])
    at_once = one.group.score(one.slots, np.full(2, 200.0), rows[200])
    expected, share = at_once.reasons.expected.copy(), at_once.reasons.share.copy()
    late = two.group.score(two.slots, np.full(2, 200.0), rows[200])
    for t in range(201, 260):
        two.group.score(two.slots, np.full(2, float(t)), rows[t] + 50.0)
    np.testing.assert_array_equal(late.reasons.expected, expected)
    np.testing.assert_array_equal(late.reasons.share, share)
    assert late.reasons is late.reasons  # worked out once


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
    for name in ("hidden", "lags", "pending"):
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


@pytest.mark.parametrize("trained", [False, True])
def test_dump_load_continues_with_identical_scores(*, trained: bool) -> None:
    """A device's bytes in another scorer score on to the same bits, alarms included."""
    rows = plant_rows(300)
    rows[240:270, 0] += 20.0
    forecaster = random_forecaster() if trained else None
    one, two = GroupScorer(3, BUDGET), GroupScorer(3, BUDGET)
    past = History(np.arange(230.0), rows[:230], np.ones(230, bool))
    for group in (one, two):
        group.adopt(forecaster, "m")
    slot = np.array([one.add(230, 229.0)])
    two.add()
    place = np.array([two.add()])
    one.enrol(slot, [past])
    assert one.phases(slot)[0] == (Phase.READY if trained else Phase.LEARNING)
    alarms = 0
    for t in range(230, 300):
        if t in {235, 250, 275}:  # before, inside and after the fault
            two.load(int(place[0]), one.dump(int(slot[0])))
        a = one.score(slot, np.array([float(t)]), rows[t : t + 1])
        if t < 235:
            continue
        b = two.score(place, np.array([float(t)]), rows[t : t + 1])
        for name in ("score", "threshold", "onset", "alarm", "phase"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
        np.testing.assert_array_equal(a.reasons.expected, b.reasons.expected)
        alarms += int(a.alarm[0])
    assert 0 < alarms < 60
    assert two.counts(place)[0] == 300


def test_enrol_again_on_the_same_history_gives_the_same_state() -> None:
    """What a device remembers follows from its readings alone: enrolled anew, it is the same bytes."""
    rows = plant_rows(260)
    group = GroupScorer(3, BUDGET)
    group.adopt(random_forecaster(), "m")
    past = History(np.arange(260.0), rows, np.ones(260, bool))
    slot = group.add(260, 259.0)
    group.enrol(np.array([slot]), [past])
    before = group.dump(slot)
    group.enrol(np.array([slot]), [past])
    assert group.dump(slot) == before
    group.load(slot, before)
    assert group.dump(slot) == before


class Alone:
    """Devices that each have a scorer of their own, or all share one: the same calls for both."""

    def __init__(
        self, devices: int, forecaster: Forecaster, fitted: dict[int, Fitted], *, shared: bool
    ) -> None:
        self.groups = [GroupScorer(3, BUDGET) for _ in range(1 if shared else devices)]
        for group in self.groups:
            group.adopt(forecaster, "m")
        self.slots = [self.groups[0 if shared else n].add() for n in range(devices)]
        self.fitted, self.shared = fitted, shared
        self.rows: list[list[tuple[float, np.ndarray, bool]]] = [[] for _ in range(devices)]

    def score(self, here: np.ndarray, time_s: float, values: np.ndarray) -> list[dict[str, np.ndarray]]:
        """What the devices `here` (B,) score for values (B, F), device by device."""
        told = (
            [self._score(here, time_s, values)]
            if self.shared
            else [self._score(here[b : b + 1], time_s, values[b : b + 1]) for b in range(len(here))]
        )
        return [
            {name: getattr(part, name)[b] for name in ("score", "threshold", "onset", "alarm", "phase")}
            | {name: getattr(part.reasons, name)[b] for name in ("expected", "deviation", "share")}
            for part in told
            for b in range(len(part.score))
        ]

    def _score(self, here: np.ndarray, time_s: float, values: np.ndarray) -> Scores:
        group = self.groups[0 if self.shared else int(here[0])]
        slots = np.array([self.slots[n] for n in here])
        result = group.score(slots, np.full(len(here), time_s), values)
        for b, n in enumerate(here.tolist()):
            self.rows[n].append((time_s, values[b], bool(result.alarm[b])))
        due = [n for n in here.tolist() if self.slots[n] in group.due(slots)]
        if due:
            group.enrol(
                np.array([self.slots[n] for n in due]),
                [self._history(n) for n in due],
                [self.fitted.get(n) for n in due],
            )
        return result

    def _history(self, n: int) -> History:
        times, values, alarms = zip(*self.rows[n], strict=True)
        return History(np.array(times), np.array(values), ~np.array(alarms))


def test_score_batch_of_64_mixed_and_shuffled_equals_each_device_alone() -> None:
    """Devices at every stage of life, shuffled anew for each reading, score as each does by itself."""
    devices, total = 64, 240
    rng = np.random.default_rng(5)
    rows = plants(devices, total)
    rows[rng.random(rows.shape) < 0.03] = np.nan
    rows[200:235, ::5, 1] += 15.0  # every fifth breaks
    begins = np.array([0, 40, 180, 212, 234])[np.arange(devices) % 5]
    histories = {f"d{n}": History(np.arange(200.0), rows[:200, n], np.ones(200, bool)) for n in range(3)}
    package = sealed_model("g", histories)
    forecaster = Forecaster(check_network(package), package.tensors)
    named = fitted_devices(package.manifest.devices, package.tensors)
    fitted = {n: named[f"d{n}"] for n in range(3)}
    together = Alone(devices, forecaster, fitted, shared=True)
    alone = Alone(devices, forecaster, fitted, shared=False)
    phases, alarms = set(), 0
    for t in range(total):
        here = rng.permutation(np.flatnonzero(begins <= t))
        found = dict(zip(here.tolist(), together.score(here, float(t), rows[t, here]), strict=True))
        some = here[here % 3 == 0]
        by_itself = alone.score(some, float(t), rows[t, some])
        for n, theirs in zip(some.tolist(), by_itself, strict=True):
            ours = found[n]
            for name, value in ours.items():
                np.testing.assert_allclose(value, theirs[name], atol=1e-5, err_msg=f"{name} {n} at {t}")
            alarms += int(ours["alarm"])
        phases.add(frozenset(int(one["phase"]) for one in found.values()))
    assert frozenset(Phase) in phases  # all four in one batch
    assert alarms > 50


def test_score_batch_of_64_equals_a_trained_detector_alone() -> None:
    """The library's one device, put into a batch of 64 under its own weights, scores on as it does alone."""
    rows = plant_rows(300)
    rows[260:290, 2] += 15.0
    detector = Detector(fields=3, warmup=220, config=DetectorConfig(hidden=8))
    for t in range(221):
        detector.update(float(t), rows[t])
    group = GroupScorer(3, detector.config.budget)
    group.adopt(detector._group.forecaster, "inline")
    slots = np.array([group.add() for _ in range(64)])
    for slot in slots.tolist():
        group.load(slot, detector._group.dump(int(detector._slots[0])))
    rng = np.random.default_rng(0)
    place, alarms = 37, 0
    for t in range(221, 300):
        values = rows[t] + rng.standard_normal((64, 3))
        values[place] = rows[t]
        order = rng.permutation(64)
        result = group.score(slots[order], np.full(64, float(t)), values[order])
        own, b = detector.update(float(t), rows[t]), int(np.flatnonzero(order == place)[0])
        assert own.ready
        assert result.score[b] == pytest.approx(own.value, abs=1e-5)
        assert result.threshold[b] == pytest.approx(own.threshold, abs=1e-5)
        assert result.onset[b] == pytest.approx(own.onset, abs=1e-5)
        assert bool(result.alarm[b]) is own.alarm
        np.testing.assert_allclose(result.reasons.share[b], own.share, atol=1e-5)
        np.testing.assert_allclose(result.reasons.expected[b], own.expected, rtol=1e-5)
        alarms += own.alarm
    assert alarms > 15


def test_cell_inputs_hold_values_mask_and_log_gap() -> None:
    """The cell sees what was measured, what was missing, and how long the device was silent."""
    inputs = cell_inputs(np.array([[1.0, 2.0]], np.float32), np.array([[True, False]]), np.array([np.e]))
    np.testing.assert_allclose(inputs, [[1, 2, 1, 0, 1]], atol=1e-6)
    assert inputs.shape[1] == input_width(2)
    still = cell_inputs(np.zeros((1, 1), np.float32), np.ones((1, 1), bool), np.array([0.0]))
    assert np.isfinite(still).all()


@pytest.mark.parametrize("name", ["var.weights", "gate", "precision", "var.clock"])
def test_forecaster_damaged_tensor_is_refused(name: str) -> None:
    """A tensor that is absent, misshapen or not finite never becomes a forecaster."""
    config, tensors = random_tensors(clock_columns=16)
    rest = {n: t for n, t in tensors.items() if n != name}
    for wrong in (None, np.zeros((1, 1), np.float32), tensors[name] * np.float32("nan")):
        if wrong is None and name == "var.clock":
            continue  # a model without a clock is one
        with pytest.raises(ModelError, match=name.replace(".", r"\.")):
            Forecaster(config, rest if wrong is None else {**rest, name: wrong})


@pytest.mark.parametrize(
    "horizons", [None, [], [0, 16], [16, 1], [1, 1], [1, 257], [[1, 16]], list(range(1, 10))]
)
def test_forecaster_senseless_horizons_are_refused(horizons: list[int] | None) -> None:
    """Horizons are a short rising list; what claims thousands of pending forecasts is damaged."""
    config, tensors = random_tensors()
    del tensors["horizons"]
    if horizons is not None:
        tensors["horizons"] = np.array(horizons, np.int64)
    with pytest.raises(ModelError, match="horizons"):
        Forecaster(config, tensors)


def test_forecaster_network_of_another_width_is_refused() -> None:
    """Outputs that are no multiple of the horizons, or inputs of another number of fields, do not fit."""
    _, tensors = random_tensors(3)
    config, _ = random_tensors(2)
    with pytest.raises(ModelError):
        Forecaster(config, tensors)


def test_horizons_for_short_histories_leaves_out_the_long_one() -> None:
    """A horizon is taught by a history that is many times as long; one reading ahead always is."""
    assert horizons_for(60) == (1,)
    assert horizons_for(191) == (1,)
    assert horizons_for(192) == (1, 16)


def test_forecaster_without_a_gate_never_steps_its_cell() -> None:
    """Where nobody listens the recurrent net costs nothing and its memory stays as it is."""
    deaf = random_forecaster(gate=0.0)
    hidden = np.full((2, deaf.state_width), 0.1, np.float32)
    correction, after, resets = deaf.remember(np.ones((2, input_width(3)), np.float32), hidden)
    assert after is hidden
    assert resets == 0
    assert not correction.any()
    assert correction.shape == (2, 2, 3)


def test_forecaster_poisoned_hidden_state_starts_again() -> None:
    """One number that is not finite resets that device's memory, is counted, and touches nobody else."""
    forecaster = random_forecaster()
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
