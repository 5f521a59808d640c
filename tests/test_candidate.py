"""Training a candidate: what is shared, what is fixed per device, what is honest."""

from __future__ import annotations

import numpy as np
import pytest
from support_engine import plant_rows
from support_models import quick_candidate

from gruard.models import memory
from gruard.models.arena import fresh
from gruard.models.calibration import LEVEL_HIGH, LEVEL_LOW, Budget
from gruard.models.enrolment import fitted_devices, replay, unseen_factor
from gruard.models.errors import ModelError
from gruard.models.forecaster import Forecaster
from gruard.models.history import History, align, blank
from gruard.models.training.candidate import (
    LONG_ROWS,
    TrainingOptions,
    for_history,
    forecaster_for,
    train,
)
from gruard.models.training.fit import FitConfig


def history(n: int, seed: int = 0, scale: float = 1.0) -> History:
    return History(np.arange(n, dtype=float), plant_rows(n, seed) * scale, np.ones(n, bool))


def test_train_fixes_scaling_and_calibration_for_every_device() -> None:
    """Devices of one group keep their own units and thresholds under shared weights."""
    candidate = quick_candidate({"small": history(300), "large": history(300, 1, 100.0)})
    assert candidate.devices == ("large", "small")
    fitted = fitted_devices(candidate.devices, candidate.tensors)
    ratio = fitted["large"].scale / fitted["small"].scale
    assert (ratio > 50).all()
    for known in fitted.values():
        assert (known.quantile > known.median).all()
        assert LEVEL_LOW <= known.level / unseen_factor(300) <= LEVEL_HIGH + 1e-6


def test_train_gate_is_between_nothing_and_everything() -> None:
    """The net is admitted field by field; its gate never amplifies."""
    candidate = quick_candidate({"d": history(400)})
    assert 0.0 <= candidate.report["gate_mean"] <= 1.0
    assert np.isfinite(candidate.tensors["gate"]).all()


def test_train_net_that_cannot_help_says_next_to_nothing() -> None:
    """On independent noise there is nothing to correct: with the net or without, forecasts are the same."""
    rows = np.random.default_rng(0).standard_normal((500, 2))
    noise = History(np.arange(500.0), rows, np.ones(500, bool))
    candidate = quick_candidate({"d": noise})
    assert candidate.report["gate_mean"] <= 0.25  # one field at one horizon may be lucky
    shut = candidate.tensors | {"gate": np.zeros_like(candidate.tensors["gate"])}
    readings = align(blank([noise], [None]), [noise])
    heard, plain = (
        replay(fresh(memory.columns(model), 1), readings, model)
        for model in (Forecaster(candidate.config, t) for t in (candidate.tensors, shut))
    )
    assert np.sqrt(np.square(heard - plain).mean()) < 0.1  # sigma
    assert np.square(heard[0]).mean() < 1.01 * np.square(plain[0]).mean()


def test_train_is_deterministic() -> None:
    """The same history and seed give the same tensors, bit by bit."""
    first, second = (quick_candidate({"d": history(200)}, seed=3) for _ in range(2))
    for name, tensor in first.tensors.items():
        np.testing.assert_array_equal(tensor, second.tensors[name])
    other = quick_candidate({"d": history(200)}, seed=4)
    assert not np.array_equal(other.tensors["readout.weight"], first.tensors["readout.weight"])


def test_train_rows_in_alarm_teach_nothing() -> None:
    """A marked fault in the history leaves the linear weights nearly as they were."""
    clean, spoilt = history(400), history(400)
    spoilt.values[150:180] += 300
    spoilt.normal[150:180] = False
    a = quick_candidate({"d": clean}).tensors
    b = quick_candidate({"d": spoilt}).tensors
    unmarked = History(spoilt.time_s, spoilt.values, np.ones(400, bool))
    c = quick_candidate({"d": unmarked}).tensors
    marked_shift = np.abs(a["device.scale"] - b["device.scale"]).max()
    assert marked_shift < 0.1 * np.abs(a["device.scale"] - c["device.scale"]).max()
    marked = np.abs(a["var.weights"] - b["var.weights"]).max()
    assert marked < np.abs(a["var.weights"] - c["var.weights"]).max()


def test_train_short_history_is_refused_with_a_sentence() -> None:
    """Too few rows make no model."""
    with pytest.raises(ModelError, match="no device has"):
        quick_candidate({"d": history(30)})


def test_train_latecomers_are_left_out() -> None:
    """A device that joined after the cut does not take part and does not spoil the round."""
    candidate = quick_candidate({"old": history(400), "new": history(80, 1)})
    assert candidate.devices == ("old",)


def test_train_histories_of_different_length_are_aligned_at_the_newest() -> None:
    """Devices with unequal histories train together."""
    candidate = quick_candidate({"long": history(400), "short": history(300, 1)})
    assert candidate.devices == ("long", "short")
    assert candidate.rows == 700
    assert all(np.isfinite(t).all() for t in candidate.tensors.values())


def test_train_missing_values_and_gaps_are_native() -> None:
    """Missing fields and irregular times train without a NaN anywhere."""
    holes = history(400)
    rng = np.random.default_rng(0)
    holes.values[rng.random(holes.values.shape) < 0.2] = np.nan
    times = np.cumsum(rng.exponential(30, 400))
    candidate = quick_candidate({"d": History(times, holes.values, holes.normal)})
    assert all(np.isfinite(t).all() for t in candidate.tensors.values())


def test_train_field_never_seen_is_carried_without_harm() -> None:
    """A field that is always missing has zero weights and a neutral scale."""
    empty = history(300)
    empty.values[:, 1] = np.nan
    tensors = quick_candidate({"d": empty}).tensors
    np.testing.assert_array_equal(tensors["var.weights"][:, 1], 0)
    assert tensors["device.scale"][0, 1] == 1.0


@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
@pytest.mark.parametrize("layers", [1, 2])
def test_train_every_cell_and_depth(cell: str, layers: int) -> None:
    """Every live cell trains into a complete, finite package."""
    candidate = quick_candidate({"d": history(200)}, cell=cell, layers=layers, dropout=0.1, steps=10)
    assert candidate.config.cell == cell
    assert set(candidate.config.weight_shapes()) <= set(candidate.tensors)
    assert all(np.isfinite(t).all() for t in candidate.tensors.values())


def test_train_device_in_alarm_ever_since_is_left_out() -> None:
    """A device without a normal row to be judged by does not spoil the round of its group."""
    sick = history(1000, 1)
    sick.normal[550:] = False
    candidate = quick_candidate({"well": history(1000), "sick": sick})
    assert candidate.devices == ("well",)


@pytest.mark.parametrize("cell", ["mlp", "transformer"])
def test_train_comparators_by_the_same_way(cell: str) -> None:
    """A causal comparator is trained, gated and calibrated as a live cell is, for several devices."""
    candidate = quick_candidate({"a": history(250), "b": history(250, 1)}, cell=cell, steps=10)
    assert candidate.config.cell == cell
    assert all(np.isfinite(t).all() for t in candidate.tensors.values())
    forecaster = forecaster_for(candidate, history(250), None)
    assert forecaster.state_width == candidate.config.state_width


def test_train_two_sided_takes_one_device_and_its_readings_to_the_end() -> None:
    """What hears the readings that follow is trained on one device and scores what it was given whole."""
    with pytest.raises(ModelError, match="one device and not of 2"):
        quick_candidate({"a": history(250), "b": history(250, 1)}, cell="bigru")
    candidate = quick_candidate({"a": history(250)}, cell="bigru", steps=10)
    assert candidate.tensors["horizons"].tolist() == [1]
    with pytest.raises(ModelError, match="needs the readings that follow"):
        forecaster_for(candidate, history(250), None)
    assert forecaster_for(candidate, history(250), history(400)).fields == 3


def test_train_on_rows_that_somebody_vouches_for_keeps_the_level() -> None:
    """Without a word that the rows show all that is normal, alarms open later."""
    rows = {"one": history(300)}
    net = FitConfig(steps=5, hidden=8)
    levels = []
    for vouched in (True, False):
        candidate = train(rows, TrainingOptions(net, Budget(), vouched))
        levels.append(float(candidate.tensors["device.level"][0]))
    assert levels[1] == pytest.approx(levels[0] * unseen_factor(300))


def test_train_lets_a_device_borrow_the_range_of_its_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is held to a narrower range of normal than most of the group keep within."""
    fleet = {f"d{n}": history(300, n) for n in range(4)}

    def widths() -> np.ndarray:
        tensors = quick_candidate(fleet).tensors
        return np.asarray(tensors["device.quantile"] - tensors["device.median"])  # (N, E, K)

    borrowed = widths()
    monkeypatch.setattr("gruard.models.training.lending.BORROWED", 0.0)
    own = widths()
    np.testing.assert_allclose(borrowed, np.maximum(own, np.quantile(own, 0.9, axis=0)), rtol=1e-4)
    assert (borrowed > 1.02 * own).any()


def test_for_history_trains_longer_where_there_is_more_to_learn() -> None:
    """A short history is trained on as was asked for; an rnn has no gates to open."""
    asked = FitConfig(steps=10, streams=4)
    assert for_history(asked, LONG_ROWS - 1) == asked
    longer = for_history(asked, LONG_ROWS)
    assert (longer.steps, longer.streams) == (20, 8)
    assert longer.longest_memory is not None
    assert for_history(FitConfig(cell="rnn"), LONG_ROWS).longest_memory is None


def test_train_follows_the_rule_for_long_histories(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the rule says is what is trained."""
    monkeypatch.setattr("gruard.models.training.candidate.LONG_ROWS", 230)
    long, short = history(240), history(220)
    assert quick_candidate({"d0": long}, steps=10, check_every=5).report["steps"] == 20
    assert quick_candidate({"d0": short}, steps=10, check_every=5).report["steps"] == 10
