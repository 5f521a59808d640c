"""What a group lends to a device that no round has seen, and how it comes back."""

from __future__ import annotations

import numpy as np
import pytest
from support_engine import Bench, plant_rows, readings_of
from support_models import quick_candidate, sealed_model

from gruard.daemon.core.engine import group_name
from gruard.daemon.core.events import Reached, Scored
from gruard.models import scaling
from gruard.models.errors import ModelError
from gruard.models.history import History
from gruard.models.loan import CAUTION, REPAID_ROWS, Loan, loan_of, share_of

FIELDS = ("f0", "f1", "f2")
GROUP = group_name("plant", FIELDS)


def history(rows: np.ndarray) -> History:
    return History(np.arange(len(rows), dtype=float), rows, np.ones(len(rows), bool))


def taught(levels: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)) -> dict[str, History]:
    """A fleet whose devices sit so far from each other."""
    return {f"d{n}": history(plant_rows(400, n) + level) for n, level in enumerate(levels)}


@pytest.fixture(scope="module")
def loan() -> Loan:
    found = loan_of(quick_candidate(taught()).tensors)
    assert found is not None
    return found


def test_loan_of_a_package_without_one_is_none() -> None:
    """A package from before there were loans still loads, and lends nothing."""
    tensors = quick_candidate(taught()).tensors
    old = {name: tensor for name, tensor in tensors.items() if not name.startswith("group.")}
    assert loan_of(old) is None


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("group.scale", np.zeros(3)),
        ("group.scale_spread", np.full(3, np.nan)),
        ("group.width", np.ones((2, 2), np.float32)),
        ("group.level", np.ones(3, np.float32)),
    ],
)
def test_loan_of_refuses_what_no_round_could_find(name: str, tensor: np.ndarray) -> None:
    """A scale of nothing, a spread that is no number, and shapes of another model."""
    with pytest.raises(ModelError, match=name):
        loan_of(quick_candidate(taught()).tensors | {name: tensor})


def test_scaling_of_a_device_that_has_hardly_moved_is_the_groups(loan: Loan) -> None:
    """Ten readings of a quarter of its cycle say little of how far it moves."""
    quarter = history(plant_rows(400, 9)[:10])
    alone, lent, whole = (
        scaling.fit(quarter.values)[1],
        loan.scaling(quarter)[1],
        scaling.fit(plant_rows(400, 9))[1],
    )
    assert (np.abs(np.log(lent / whole)) < np.abs(np.log(alone / whole))).all()


def test_scaling_gives_the_location_back_as_readings_come(loan: Loan) -> None:
    """The share of the group's location falls with the device's own readings."""
    off = history(plant_rows(400, 9) + 1.0)
    shares = []
    for rows in (10, 100, 400):
        shown = history(off.values[:rows])
        own, lent = scaling.fit(shown.values)[0], loan.scaling(shown)[0]
        shares.append(float(np.abs((lent - own) / (loan.location - own)).mean()))
    assert shares[0] > shares[1] > shares[2]


def test_location_of_a_group_at_many_levels_is_worth_little() -> None:
    """Where devices sit far apart, a new one keeps its own level; where they do not, it borrows it."""
    near, far = (
        loan_of(quick_candidate(taught(levels)).tensors) for levels in ((0.0,) * 4, (-60, -20, 20, 60))
    )
    assert near is not None
    assert far is not None
    shown = history(plant_rows(10, 9))
    own = scaling.fit(shown.values)[0]
    kept = np.abs(near.scaling(shown)[0] - own) / np.abs(near.location - own)
    assert (np.abs(far.scaling(shown)[0] - own) < 0.05 * near.scale).all()
    assert (kept > 0.2).all()


def test_location_of_a_device_far_off_its_group_is_its_own(loan: Loan) -> None:
    """A hundred spreads away, readings are believed and the group is not."""
    shown = history(plant_rows(50, 9) + 500.0)
    assert (np.abs(loan.scaling(shown)[0] - scaling.fit(shown.values)[0]) < loan.scale).all()


def test_thresholds_and_level_move_from_the_groups_to_the_devices(loan: Loan) -> None:
    """At first nearly the group's and a little wider, in the end nearly its own."""
    median, width = loan.median + 1.0, 3.0 * loan.width + 1.0
    near, far = loan.thresholds(median, median + width, 1), loan.thresholds(median, median + width, 10**6)
    np.testing.assert_allclose(near[1] - near[0], loan.width, rtol=0.05, atol=0.05)
    np.testing.assert_allclose(far[1] - far[0], width, rtol=0.01)
    np.testing.assert_allclose(far[0], median, rtol=0.01)
    assert loan.alarm_level(9.0, 10**9) == pytest.approx(9.0)
    assert loan.alarm_level(loan.level, 0) == pytest.approx(loan.level * (1.0 + CAUTION))
    assert share_of(0) == 1.0
    assert share_of(50) > share_of(200) > share_of(900) > 0.0


def fleet() -> Bench:
    """An engine with four devices that a model was trained on, and room for others."""
    bench = Bench()
    for name, one in taught().items():
        bench.feed(readings_of(name, one.values))
    histories = {name: bench.history(name, FIELDS, 400) for name in bench.engine.devices}
    bench.engine.enrol(
        {e.device: histories[e.device] for e in bench.engine.adopt(GROUP, sealed_model(GROUP, histories))}
    )
    return bench


def test_device_that_no_round_has_seen_is_ready_after_fifty_readings() -> None:
    """On its group's thresholds; and at a thousand it owes nothing any more."""
    bench = fleet()
    rows = plant_rows(REPAID_ROWS, 9)
    bench.feed(readings_of("new", rows[:49]))
    assert bench.engine.devices["new"].phase == "warming"
    bench.feed(readings_of("new", rows[49:51], 1049.0))
    group = bench.engine.groups[GROUP]
    slot = group.devices["new"]
    assert bench.engine.devices["new"].phase == "ready"
    assert group.scorer.borrowed(np.array([slot])) == pytest.approx(share_of(50))
    bench.feed(readings_of("new", rows[51:], 1051.0))
    assert group.scorer.borrowed(np.array([slot])) == 0.0


def test_device_that_the_groups_forecasts_do_not_fit_borrows_nothing() -> None:
    """It steps where the group swings: the baseline is in charge of it, on its own scaling."""
    bench = fleet()
    steps = 20 + 5 * np.sin(np.pi / 2 * np.arange(60))[:, None] * np.ones(3)
    bench.feed(readings_of("wild", steps + 0.01 * np.random.default_rng(1).standard_normal((60, 3))))
    scorer = bench.engine.groups[GROUP].scorer
    slots = np.array([bench.engine.groups[GROUP].devices["wild"]])
    assert bench.engine.devices["wild"].phase == "learning"
    assert scorer.borrowed(slots) == 0.0
    np.testing.assert_allclose(scorer._arena["scale"][slots[0]], scaling.fit(steps[:50])[1], rtol=0.05)


def test_loan_lasts_through_a_checkpoint() -> None:
    """The restored device goes on exactly as the one that was never stopped."""
    bench = fleet()
    bench.feed(readings_of("new", plant_rows(120, 9)))
    rows = list(bench.engine.checkpoint(0))
    again = fleet()
    again.engine.restore(rows)
    more = readings_of("new", plant_rows(200, 9)[120:], 1120.0)
    again.rows["new"] = list(bench.rows["new"])
    told = [[e.score for e in each.feed(more) if isinstance(e, Scored)] for each in (bench, again)]
    assert told[0] == told[1]


def test_device_tells_once_when_it_is_first_scored_and_ready() -> None:
    """In seconds and readings since its first; of the devices that the model was trained on, too."""
    bench = fleet()
    events = bench.feed(readings_of("new", plant_rows(220, 9)))
    told = [event for event in events if isinstance(event, Reached)]
    assert told == [Reached("new", "first_score", 10.0, 11), Reached("new", "ready", 50.0, 51)]
    device = bench.engine.devices["new"]
    assert (device.first_s, device.first_score_s, device.ready_s) == (1000.0, 10.0, 50.0)
    assert device.borrowed == pytest.approx(share_of(200))
