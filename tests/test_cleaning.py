"""Hindsight: healthy recordings keep their rows, faults lose theirs, whatever else the histories hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from gruard.models.errors import ModelError
from gruard.models.history import History
from gruard.models.training import cleaning
from gruard.models.training.cleaning import FEWEST_ROWS, PIECE_ROWS, abnormal_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

ROWS, FIELDS = 1000, 8
FAULT = slice(600, 650)  # 5 % of the rows


def machine(kind: str, seed: int, rows: int = ROWS) -> Floats:
    """Readings (T, F) of a healthy machine, each field in units and about a level of its own."""
    random = np.random.default_rng(seed)
    t = np.arange(rows)[:, None]
    noise = random.standard_normal((rows, FIELDS))
    if kind == "sine":
        waves = np.sin(2 * np.pi * t / np.array([40, 70, 130, 170]) + random.uniform(0, 6, 4))  # (T, 4)
        values = waves @ random.standard_normal((4, FIELDS)) + 0.2 * noise
    elif kind == "ar":
        mixing = 0.85 * np.eye(FIELDS) + 0.02 * random.standard_normal((FIELDS, FIELDS))
        values = noise
        for row in range(1, rows):
            values[row] += mixing @ values[row - 1]
    else:  # "switching": on and off some twenty times, each field following at its own pace
        on = np.cumsum(random.random(rows) < 0.03) % 2
        values = np.zeros((rows, FIELDS))
        pace = random.uniform(0.05, 0.5, FIELDS)
        for row in range(1, rows):
            values[row] = values[row - 1] + pace * (on[row] - values[row - 1])
        values += 0.02 * noise
    return np.asarray(values * random.uniform(0.1, 50, FIELDS) + random.uniform(-100, 100, FIELDS))


def broken(values: Floats, kind: str, where: slice = FAULT) -> Floats:
    """The same with a fault in two fields."""
    values, fields = values.copy(), [1, 4]
    size = values.std(axis=0)[fields]
    rows = np.arange(where.stop - where.start)[:, None]
    random = np.random.default_rng(9)
    values[where, fields] += (
        size
        * {
            "shift": 6.0,
            "drift": 12.0 * rows / len(rows),
            "spikes": 9.0 * (rows % 3 == 0),
            "noise": 3.5 * random.standard_normal((len(rows), 2)),
        }[kind]
    )
    return values


def history(values: Floats, normal: NDArray[np.bool_] | None = None) -> History:
    every = np.ones(len(values), np.bool_)
    return History(1e9 + 2.0 * np.arange(len(values)), values, every if normal is None else normal)


def outside(flags: NDArray[np.bool_], where: slice = FAULT) -> float:
    """Share of rows flagged that are not within a few rows of the fault."""
    far = flags.copy()
    far[where.start - 30 : where.stop + 30] = False
    return float(far.mean())


@pytest.mark.parametrize("kind", ["sine", "ar", "switching"])
@pytest.mark.parametrize("seed", [0, 1])
def test_healthy_recordings_keep_their_rows(kind: str, seed: int) -> None:
    """Under one row in a hundred of a healthy machine is flagged, though it switches now and then."""
    assert abnormal_rows({"pump": history(machine(kind, seed))})["pump"].mean() < 0.01


@pytest.mark.parametrize("machine_kind", ["sine", "ar", "switching"])
@pytest.mark.parametrize("fault", ["shift", "drift", "spikes", "noise"])
def test_most_rows_of_a_fault_are_flagged(machine_kind: str, fault: str) -> None:
    """Of a fault in 5 % of the rows most are found although the net learned with them; few others are."""
    flags = abnormal_rows({"pump": history(broken(machine(machine_kind, 0), fault))})["pump"]
    assert flags[FAULT].mean() > 0.5
    assert outside(flags) < 0.01


def test_two_sided_net_sees_what_the_level_does_not() -> None:
    """A fast oscillation inside the usual range of a slow machine is found by the net alone."""
    values = machine("sine", 3)
    fast = np.sign(np.sin(2 * np.pi * np.arange(50) / 4))[:, None]
    values[FAULT] = np.median(values, axis=0) + 0.8 * values.std(axis=0) * fast * np.where(
        np.arange(8) % 2, 1, -1
    )
    assert abnormal_rows({"pump": history(values)})["pump"][FAULT].mean() > 0.8


def test_regression_on_neighbours_sees_noise_that_is_small_beside_the_usual_range() -> None:
    """A smooth field that trembles by an eighth of its spread is found, and by this line alone."""
    values = machine("sine", 2)
    values[:, 3] = 5 * np.sin(2 * np.pi * np.arange(ROWS) / 170) + 0.02 * values[:, 3] / values[:, 3].std()
    values[FAULT, 3] += 0.125 * values[:, 3].std() * np.random.default_rng(1).standard_normal(50)
    flags = abnormal_rows({"pump": history(values)})["pump"]
    assert flags[FAULT].mean() > 0.7
    assert outside(flags) < 0.01
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cleaning, "FEWEST_PER_WEIGHT", ROWS)  # too few rows for it
        assert not abnormal_rows({"pump": history(values)})["pump"][FAULT].any()


def test_regression_on_neighbours_is_exact_where_they_tell_all_and_faults_do_not_teach_it() -> None:
    """A parabola is what its neighbours say, but for the rows that were moved and those beside them."""
    t = np.linspace(-1, 1, ROWS)[:, None]
    z = np.concatenate([t**2, 2 * t - t**2, t], axis=1)
    z[FAULT] += 3.0 * np.random.default_rng(0).standard_normal((50, 3))
    left = cleaning._left_by_neighbours(z, np.ones(ROWS, np.bool_))
    far = np.ones(ROWS, np.bool_)
    far[FAULT.start - cleaning.NEIGHBOURS : FAULT.stop + cleaning.NEIGHBOURS] = False
    assert np.abs(left[far]).max() < 0.02
    assert np.abs(left[FAULT]).mean() > 1.0
    few = 3 * cleaning.FEWEST_PER_WEIGHT - 1
    assert not cleaning._left_by_neighbours(z[:few], np.ones(few, np.bool_)).any()


def test_what_recurs_is_not_a_fault_however_large() -> None:
    """A machine that flushes for two rows now and then keeps them; the one that does it once does not."""
    usual, once = machine("ar", 0), machine("ar", 0)
    kick = 15 * usual.std(axis=0)[:3]
    for row in np.random.default_rng(0).choice(ROWS // 20, 20, replace=False) * 20:
        usual[row : row + 2, :3] += kick
    once[400:402, :3] += kick
    assert abnormal_rows({"pump": history(usual)})["pump"].mean() < 0.01
    assert abnormal_rows({"pump": history(once)})["pump"][400:402].all()


def test_net_foresees_a_reading_far_better_than_the_one_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the two-sided net says of row t is about row t, and rows in alarm are no targets of it."""
    told: list[NDArray[np.float32]] = []
    masks: list[NDArray[np.bool_]] = []
    foreseen, fit = cleaning._foreseen, cleaning.fit

    def listening(readings: Any, *rest: Any) -> NDArray[np.float32]:
        told.append(readings.z)
        told.append(foreseen(readings, *rest))
        return told[-1]

    def watching(inputs: Any, targets: Any, mask: NDArray[np.bool_], **rest: Any) -> object:
        masks.append(mask)
        return fit(inputs, targets, mask, **rest)

    monkeypatch.setattr(cleaning, "_foreseen", listening)
    monkeypatch.setattr(cleaning, "fit", watching)
    normal = np.ones(ROWS, np.bool_)
    normal[700:740] = False
    values = machine("ar", 0)
    values = (values - values.mean(axis=0)) * np.where(np.arange(ROWS) % 2, 1, -1)[:, None]  # to and fro
    abnormal_rows({"pump": history(values, normal)})
    z, y = (told_part[:, 0] for told_part in told)
    persistence = np.abs(z[1:] - z[:-1]).mean()
    assert np.abs(z[1:] - y[1:]).mean() < 0.4 * persistence
    assert np.flatnonzero(~masks[0].all(axis=(0, 2))).tolist() == [*range(699, 739), ROWS - 1]


def test_only_the_faulty_device_of_a_group_is_flagged() -> None:
    """Devices share a net, of any length of history; each is judged by what it does itself."""
    values = machine("ar", 0, rows=3 * ROWS)
    group = {
        "long": history(values),
        "faulty": history(broken(values[-ROWS:], "shift")),
        "short": history(values[-2 * FEWEST_ROWS :]),
        "new": history(values[-FEWEST_ROWS + 1 :]),
    }
    flags = abnormal_rows(group)
    assert {name: len(found) for name, found in flags.items()} == {
        name: len(h.time_s) for name, h in group.items()
    }
    assert flags["faulty"][FAULT].mean() > 0.8
    assert outside(flags["faulty"]) < 0.01
    assert flags["long"].mean() < 0.01
    assert flags["short"].mean() < 0.05
    assert not flags["new"].any()


def test_rows_in_alarm_teach_nothing_and_are_judged_all_the_same() -> None:
    """A long fault known from its alarm is flagged where it stands; false alarms beside it are cleared."""
    where = slice(500, 900)
    normal = np.ones(ROWS, np.bool_)
    normal[where] = normal[100:130] = False
    flags = abnormal_rows({"pump": history(broken(machine("sine", 0), "shift", where), normal)})["pump"]
    assert flags[where].mean() > 0.9
    assert not flags[100:130].any()
    assert outside(flags, where) < 0.01


def test_alarms_of_most_of_a_history_are_not_believed() -> None:
    """A device in alarm nearly all the time has no better normal than that."""
    values = broken(machine("ar", 0), "shift")
    believed = abnormal_rows({"pump": history(values)})["pump"]
    never_normal = abnormal_rows({"pump": history(values, np.zeros(ROWS, np.bool_))})["pump"]
    np.testing.assert_array_equal(never_normal, believed)


def test_missing_values_are_neither_flagged_nor_in_the_way() -> None:
    """With a field never seen, one seen now and then and gaps in all, a fault is found and nothing else."""
    values = broken(machine("ar", 2), "shift")
    values[np.random.default_rng(0).random(values.shape) < 0.1] = np.nan
    values[:, 7] = np.nan
    values[np.arange(ROWS) % 5 > 0, 6] = np.nan
    values[300:330] = np.nan
    flags = abnormal_rows({"pump": history(values)})["pump"]
    assert flags[FAULT].mean() > 0.5
    assert outside(flags) < 0.01


@pytest.mark.parametrize("fields", [1, 2])
def test_few_fields_are_enough(fields: int) -> None:
    """One field alone has no others to be compared with, and a flat one no spread."""
    values = machine("sine", 1)[:, :fields].copy()
    values[:, 1:] = 3.0
    flags = abnormal_rows({"pump": history(values)})["pump"]
    assert flags.mean() < 0.01
    values[FAULT, 0] += 6 * values[:, 0].std()
    assert abnormal_rows({"pump": history(values)})["pump"][FAULT].mean() > 0.8


def test_same_histories_give_the_same_flags_and_stay_as_they_were() -> None:
    """Whatever torch's random state is, which is left alone; nothing is written to the readings."""
    values = broken(machine("sine", 0), "noise")
    values.setflags(write=False)
    torch.manual_seed(1)
    first = abnormal_rows({"pump": history(values)}, seed=3)["pump"]
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    np.testing.assert_array_equal(abnormal_rows({"pump": history(values)}, seed=3)["pump"], first)
    assert torch.equal(before, torch.random.get_rng_state())


def test_histories_without_a_reading_to_learn_from_are_refused() -> None:
    """A device that never sent a value leaves nothing to train on; no device at all is no question."""
    with pytest.raises(ModelError):
        abnormal_rows({"pump": history(np.full((ROWS, 3), np.nan))})
    assert abnormal_rows({}) == {}


def test_long_series_are_cut_into_equal_pieces_padded_in_front() -> None:
    """No row is lost or moved: joined again, the pieces are the series behind its padding."""
    total = 2 * PIECE_ROWS + 1
    series = np.arange(1.0, 2 * total * 3 + 1).reshape(2, total, 3)
    pieces = cleaning._pieces(series)
    assert pieces.shape == (6, -(-total // 3), 3)
    joined = pieces.reshape(2, -1, 3)
    np.testing.assert_array_equal(joined[:, -total:], series)
    assert not joined[:, :-total].any()
    assert cleaning._pieces(series[:, :PIECE_ROWS]).shape == (2, PIECE_ROWS, 3)
