"""Faults of known place and size: what is promised about them on simulated, real and awkward recordings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gruard.models import scaling
from gruard.models.plants import faults
from gruard.models.plants.faults import KINDS, SIZES, Kind, UnfitError, inject, inject_all, schedule
from gruard.models.plants.plants import PLANTS, simulate

if TYPE_CHECKING:
    from numpy.typing import NDArray

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
FIRST, LAST = 1200, 1399
every_kind = pytest.mark.parametrize("kind", KINDS)


def plant(name: str = "thermostat", rows: int = 3000) -> NDArray[np.float64]:
    return simulate(name, rows, seed=4).values


def promises_hold(
    before: NDArray[np.floating], after: NDArray[np.float64], labels: NDArray[np.bool_], first: int, last: int
) -> None:
    """The guarantees of the module, word by word."""
    rows = np.arange(len(before))
    np.testing.assert_array_equal(labels, (rows >= first) & (rows <= last))
    np.testing.assert_array_equal(after[~labels], before[~labels])
    seen = np.isfinite(before)
    np.testing.assert_array_equal(np.isfinite(after), seen)
    np.testing.assert_array_equal(after[~seen], before[~seen])
    assert (after != before)[seen].any()


def test_kinds_every_one_has_a_type_and_sizes() -> None:
    """The list, the type and the sizes name the same kinds, and every size grows from hard to clear."""
    assert get_args(Kind) == KINDS
    assert tuple(SIZES) == KINDS
    assert all(0 < hard < clear for hard, clear in SIZES.values())


@every_kind
@pytest.mark.parametrize("name", PLANTS)
def test_inject_any_kind_into_any_plant_keeps_the_promises(name: str, kind: Kind) -> None:
    """Only labelled rows change, labels are exactly the rows asked for, and the original is left alone."""
    values = plant(name)
    original = values.copy()
    after, labels = inject(values, kind, FIRST, LAST, np.random.default_rng(1))
    promises_hold(original, after, labels, FIRST, LAST)
    np.testing.assert_array_equal(values, original)


@every_kind
def test_inject_same_seed_same_fault(kind: Kind) -> None:
    """A generator in the same state puts in the same fault."""
    a, b, other = (inject(plant(), kind, FIRST, LAST, np.random.default_rng(seed))[0] for seed in (7, 7, 8))
    np.testing.assert_array_equal(a, b)
    assert (a != other).any()


@every_kind
def test_inject_named_field_changes_only_that_field(kind: Kind) -> None:
    """Whoever names a field gets the fault there and nowhere else."""
    values = plant("compressor")
    after, _ = inject(values, kind, FIRST, LAST, np.random.default_rng(0), field=2)
    assert (after[:, 2] != values[:, 2]).any()
    np.testing.assert_array_equal(after[:, :2], values[:, :2])


@settings(max_examples=300, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    rows=st.integers(1, 120),
    fields=st.integers(1, 4),
    gaps=st.sampled_from([0.0, 0.1, 0.6, 1.0]),
    resolution=st.sampled_from([0.0, 1.0, 100.0]),
    seed=st.integers(0, 10_000),
)
def test_inject_awkward_recording_keeps_the_promises_or_says_why_not(
    kind: Kind, rows: int, fields: int, gaps: float, resolution: float, seed: int
) -> None:
    """Gaps, infinities, constant fields and a single row end in a kept promise or in an UnfitError."""
    rng = np.random.default_rng(seed)
    values = rng.normal(10, 3, (rows, fields)).cumsum(axis=0)
    if resolution:
        values = np.round(values / resolution) * resolution
    values[rng.random(values.shape) < gaps] = rng.choice([np.nan, np.inf])
    first = int(rng.integers(rows))
    last = int(rng.integers(first, rows))
    original = values.copy()
    try:
        after, labels = inject(values, kind, first, last, rng)
    except UnfitError:
        return
    promises_hold(original, after, labels, first, last)


def test_inject_float32_is_taken_and_float64_comes_back() -> None:
    """Recordings on disk are often float32; the numbers outside the fault are theirs."""
    values = plant().astype(np.float32)
    after, labels = inject(values, "shift", FIRST, LAST, np.random.default_rng(0))
    assert after.dtype == np.float64
    np.testing.assert_array_equal(after[~labels].astype(np.float32), values[~labels])


def test_inject_shift_moves_by_its_size_in_spreads() -> None:
    """A shift of two is two robust standard deviations, up or down, from the first row to the last."""
    values = plant()
    spread = scaling.fit(values)[1][0]
    moved = set()
    for seed in range(8):
        after, _ = inject(values, "shift", FIRST, LAST, np.random.default_rng(seed), size=2.0, field=0)
        difference = (after - values)[FIRST : LAST + 1, 0] / spread
        np.testing.assert_allclose(difference, difference[0])
        moved.add(round(float(difference[0]), 6))
    assert moved == {-2.0, 2.0}


def test_inject_departure_grows_steadily_to_its_size() -> None:
    """A departure begins unnoticed and is at its full size in the last row."""
    values = plant()
    after, _ = inject(values, "departure", FIRST, LAST, np.random.default_rng(0), size=3.0, field=0)
    away = np.abs(after - values)[FIRST : LAST + 1, 0] / scaling.fit(values)[1][0]
    np.testing.assert_allclose(away, 3.0 * np.arange(1, 201) / 200, rtol=1e-6)


def test_inject_stuck_repeats_one_value_near_the_last_reading() -> None:
    """A stuck field has no movement left; how far from its last reading it sticks is the size."""
    values = plant()
    values[FIRST - 3 : FIRST, 0] = np.nan  # the last reading is the last one that was seen
    values[FIRST + 5, 0] = np.nan
    after, _ = inject(values, "stuck", FIRST, LAST, np.random.default_rng(0), size=0.5, field=0)
    inside = after[FIRST : LAST + 1, 0]
    assert np.isnan(inside[5])
    assert len(np.unique(inside[np.isfinite(inside)])) == 1
    assert abs(abs(inside[0] - values[FIRST - 4, 0]) / scaling.fit(values)[1][0] - 0.5) < 0.01


def test_inject_stuck_from_the_first_row_holds_its_own_value() -> None:
    """With nothing before it, a field sticks at what it shows."""
    values = plant()
    after, _ = inject(values, "stuck", 0, 99, np.random.default_rng(0), size=0.1, field=0)
    assert abs(abs(after[50, 0] - values[0, 0]) / scaling.fit(values)[1][0] - 0.1) < 0.01


def test_inject_noise_has_its_size_and_no_direction() -> None:
    """Noise widens a field by its size and leaves the mean where it was."""
    values = plant()
    after, _ = inject(values, "noise", 500, 2499, np.random.default_rng(0), size=0.8, field=0)
    added = (after - values)[500:2500, 0] / scaling.fit(values)[1][0]
    assert abs(added.std() - 0.8) < 0.05
    assert abs(added.mean()) < 0.05


def test_inject_period_runs_the_whole_machine_faster_or_slower() -> None:
    """One octave is twice or half the number of switchings; relay and noise stay what they were."""
    values = plant(rows=6000)
    healthy = int((np.diff((values[1000:3000, 1] > 100).astype(int)) == 1).sum())
    found = set()
    for seed in range(8):
        after, _ = inject(values, "period", 1000, 2999, np.random.default_rng(seed), size=1.0)
        inside = after[1000:3000]
        found.add(round(int((np.diff((inside[:, 1] > 100).astype(int)) == 1).sum()) / healthy * 2) / 2)
        between = (inside[:, 1] > 50) & (inside[:, 1] < 1000)
        assert not between.any()
        noise = [np.diff(x, 2).std() for x in (inside[:, 0], values[1000:3000, 0])]
        assert 0.8 < noise[0] / noise[1] < 1.3
    assert found == {0.5, 2.0}


def test_inject_period_at_the_end_of_a_recording_can_only_be_slower() -> None:
    """Faster would need readings that were never taken."""
    values = plant()
    for seed in range(6):
        after, labels = inject(values, "period", 2500, 2999, np.random.default_rng(seed), size=1.0)
        promises_hold(values, after, labels, 2500, 2999)
        slow = values[2500 + np.round(np.arange(500) / 2).astype(int), 1] > 100
        np.testing.assert_array_equal(after[2500:, 1] > 100, slow)


def test_inject_cycle_skips_or_repeats_a_share_of_the_cycle() -> None:
    """A broken cycle is the same machine some way further on or further back in its cycle."""
    values = plant()
    on = np.diff((values[:, 1] > 100).astype(int)) == 1
    usual = np.median(np.diff(np.flatnonzero(on)))
    ways = set()
    for seed in range(8):
        after, _ = inject(values, "cycle", FIRST, LAST, np.random.default_rng(seed), size=0.25)
        moved = [
            k for k in range(-400, 401) if (after[FIRST : LAST + 1] == values[FIRST + k : LAST + 1 + k]).all()
        ]
        assert len(moved) == 1
        assert abs(abs(moved[0]) / usual - 0.25) < 0.05
        ways.add(np.sign(moved[0]))
    assert ways == {-1, 1}


def test_inject_cycle_takes_the_way_that_the_recording_has() -> None:
    """At the beginning only a skip is possible, at the end only a repetition, over all of it neither."""
    values = plant(rows=600)
    for seed in range(6):
        rng = np.random.default_rng(seed)
        at_first, _ = inject(values, "cycle", 0, 99, rng, size=0.5)
        at_last, _ = inject(values, "cycle", 500, 599, rng, size=0.5)
        assert any((at_first[:100] == values[k : 100 + k]).all() for k in range(1, 200))
        assert any((at_last[500:] == values[500 - k : 600 - k]).all() for k in range(1, 200))
    with pytest.raises(UnfitError, match="too short to move 600 rows"):
        inject(values, "cycle", 0, 599, np.random.default_rng(0))


@pytest.mark.parametrize(("length", "rows"), [(37, 400), (288, 3000), (700, 9000)])
def test_cycle_length_is_found_through_noise(length: int, rows: int) -> None:
    """The cycle of a noisy recording is its period, not a multiple of it; constant fields do not matter."""
    rng = np.random.default_rng(0)
    wave = np.sin(2 * np.pi * np.arange(rows) / length)
    x = np.column_stack([wave + rng.normal(0, 0.3, rows), np.full(rows, 5.0), np.full(rows, np.nan)])
    assert abs(faults._cycle(x, slice(rows // 2, rows // 2 + 50)) / length - 1) < 0.1


def test_cycle_length_without_a_cycle_is_a_bounded_guess() -> None:
    """White noise has no cycle, a ramp has none either, and three rows are not enough for one."""
    noise = np.random.default_rng(0).normal(size=(2000, 1))
    assert faults._cycle(noise, slice(900, 950)) == 100
    assert faults._cycle(np.arange(3.0)[:, None], slice(0, 2)) == 3


def test_inject_link_keeps_the_field_and_breaks_its_company() -> None:
    """One field shows values of its own from another time; the distribution stays, the relation goes."""
    values = plant("compressor", rows=6000)
    after, _ = inject(values, "link", 2000, 3999, np.random.default_rng(0), field=0, size=1.5)
    inside, before = after[2000:4000], values[2000:4000]
    assert abs(inside[:, 0].mean() - before[:, 0].mean()) < 0.05
    assert 0.9 < inside[:, 0].std() / before[:, 0].std() < 1.1
    rises = [np.corrcoef(np.diff(x[:, 0]), x[1:, 1])[0, 1] for x in (before, inside)]
    assert rises[0] > 0.7
    assert abs(rises[1]) < 0.5
    assert any((inside[:, 0] == values[k : 2000 + k, 0]).all() for k in range(4001))


def test_inject_link_size_chooses_among_other_times() -> None:
    """A larger size takes a time at which the field was further away."""
    values = plant("delayed", rows=6000)
    change = [
        np.mean(
            [
                np.sqrt(
                    np.mean((inject(values, "link", 2000, 2199, rng, size=size, field=2)[0] - values) ** 2)
                )
                for rng in map(np.random.default_rng, range(8))
            ]
        )
        for size in (0.2, 2.0)
    ]
    assert change[1] > 1.5 * change[0]


@pytest.mark.parametrize("field", [None, 0])
def test_inject_link_needs_company(field: int | None) -> None:
    """A single field, or one among constants, has no relation that could break."""
    alone = plant()[:, :1]
    with pytest.raises(UnfitError, match="two fields that move"):
        inject(alone, "link", FIRST, LAST, np.random.default_rng(0), field=field)
    with pytest.raises(UnfitError, match="two fields that move"):
        inject(
            np.column_stack([alone, np.ones(3000)]),
            "link",
            FIRST,
            LAST,
            np.random.default_rng(0),
            field=field,
        )


def test_inject_drawn_field_prefers_measurements_to_modes_and_constants() -> None:
    """Half a spread on a relay is a value that no relay has, so a field with a fine grain is taken."""
    rng = np.random.default_rng(0)
    values = np.column_stack([np.ones(900), np.arange(900) % 90 < 45, rng.normal(size=900)]).astype(float)
    for kind in KINDS:
        if kind in {"shift", "departure", "stuck", "noise", "link"}:
            for seed in range(5):
                after, _ = inject(values, kind, 400, 499, np.random.default_rng(seed))
                np.testing.assert_array_equal(after[:, :2], values[:, :2])
    modes = values[:, :2]
    for seed in range(5):
        after, _ = inject(modes, "shift", 400, 499, np.random.default_rng(seed))
        np.testing.assert_array_equal(after[:, 0], modes[:, 0])
    after, _ = inject(values[:, :1], "shift", 400, 499, rng)
    assert (after[400:500] != 1.0).all()


def test_inject_nothing_seen_is_unfit() -> None:
    """Where every reading is missing there is nothing to falsify."""
    values = plant()
    values[FIRST : LAST + 1] = np.nan
    for kind in ("shift", "link", "cycle"):
        with pytest.raises(UnfitError):
            inject(values, kind, FIRST, LAST, np.random.default_rng(0))


def test_inject_constant_machine_has_no_time_to_lose() -> None:
    """A recording that never moves looks the same at every speed and in every phase."""
    for kind in ("period", "cycle"):
        with pytest.raises(UnfitError, match="would change nothing"):
            inject(np.ones((500, 2)), kind, 200, 299, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"kind": "ghost"}, "no such kind of fault: 'ghost'; there are shift"),
        ({"first": -1}, "rows -1 to 20 are not in a recording of 100 rows"),
        ({"first": 21}, "rows 21 to 20"),
        ({"last": 100}, "rows 10 to 100"),
        ({"size": 0.0}, "must be positive"),
        ({"field": 2}, "no field 2 in a recording of 2"),
        ({"field": -1}, "no field -1"),
    ],
)
def test_inject_impossible_wish_is_refused(change: dict[str, object], text: str) -> None:
    """A slip of the caller is a ValueError in words, and never an UnfitError that a loop would swallow."""
    wish = {"kind": "shift", "first": 10, "last": 20, "size": 1.0, "field": 0} | change
    with pytest.raises(ValueError, match=text) as caught:
        inject(np.random.default_rng(0).normal(size=(100, 2)), rng=np.random.default_rng(0), **wish)  # type: ignore[arg-type]
    assert not isinstance(caught.value, UnfitError)


def test_draw_size_covers_hard_to_clear() -> None:
    """Sizes fill their range, as many below its geometric middle as above."""
    rng = np.random.default_rng(0)
    for kind, (hard, clear) in SIZES.items():
        sizes = np.array([faults.draw_size(kind, rng) for _ in range(400)])
        assert hard <= sizes.min() < hard * 1.1
        assert clear / 1.1 < sizes.max() <= clear
        assert 0.4 < (sizes < np.sqrt(hard * clear)).mean() < 0.6


@settings(max_examples=200, deadline=None)
@given(
    rows=st.integers(0, 20_000),
    share=st.floats(0.0, 1.0),
    shortest=st.integers(1, 60),
    spread=st.integers(0, 300),
    margin=st.integers(0, 100),
    start=st.integers(0, 3000),
    seed=st.integers(0, 1000),
)
def test_schedule_faults_keep_their_distance_and_their_share(
    rows: int, share: float, shortest: int, spread: int, margin: int, start: int, seed: int
) -> None:
    """Whatever is asked for: lengths within bounds, margins on both sides, nothing before `start`."""
    plan = schedule(
        rows,
        np.random.default_rng(seed),
        share=share,
        shortest=shortest,
        longest=shortest + spread,
        margin=margin,
        start=start,
    )
    free_from = start
    for _, first, last in plan:
        assert first - free_from >= margin
        assert shortest <= last - first + 1 <= shortest + spread
        free_from = last + 1
    if plan:
        assert rows - free_from >= margin
        assert sum(last - first + 1 for _, first, last in plan) <= share * (rows - start)


def test_schedule_fills_its_share_and_takes_all_kinds_in_turn() -> None:
    """On a long recording a fifth is faulty, every kind comes equally often, and places differ by seed."""
    plan = schedule(30_000, np.random.default_rng(0), start=2000)
    assert 0.19 < sum(last - first + 1 for _, first, last in plan) / 28_000 <= 0.2
    counts = [sum(kind == wanted for kind, *_ in plan) for wanted in KINDS]
    assert max(counts) - min(counts) <= 1
    lengths = [last - first + 1 for _, first, last in plan]
    assert min(lengths) < 40
    assert max(lengths) > 200
    assert plan != schedule(30_000, np.random.default_rng(1), start=2000)
    assert {kind for kind, *_ in schedule(9000, np.random.default_rng(0), kinds=("link",))} == {"link"}


@pytest.mark.parametrize(
    "wish",
    [{"kinds": ()}, {"share": 1.1}, {"shortest": 0}, {"longest": 10}, {"margin": -1}, {"start": -1}],
)
def test_schedule_contradictory_wish_is_refused(wish: dict[str, object]) -> None:
    """A plan that cannot be meant is refused instead of being empty."""
    with pytest.raises(ValueError, match="cannot schedule"):
        schedule(1000, np.random.default_rng(0), **wish)  # type: ignore[arg-type]


def test_inject_all_labels_are_the_plan_and_the_rest_is_untouched() -> None:
    """A scheduled recording carries every fault where it was planned, of a size within its range."""
    values = plant("batch", rows=8000)
    rng = np.random.default_rng(0)
    plan = schedule(len(values), rng, start=1000)
    after, labels, placed = inject_all(values, plan, rng)
    assert [fault[:3] for fault in placed] == plan
    expected = np.zeros(len(values), bool)
    for kind, first, last, size in placed:
        expected[first : last + 1] = True
        assert SIZES[kind][0] <= size <= SIZES[kind][1]
        assert (after[first : last + 1] != values[first : last + 1]).any()
    np.testing.assert_array_equal(labels, expected)
    np.testing.assert_array_equal(after[~labels], values[~labels])


def test_inject_all_faults_do_not_carry_each_other_along() -> None:
    """A part that is moved in time comes from the healthy recording, not from a neighbouring fault."""
    values = plant()
    plan: list[tuple[Kind, int, int]] = [("shift", FIRST - 200, FIRST - 1), ("cycle", FIRST, LAST)]
    back = 0
    for seed in range(8):
        after, _, _ = inject_all(values, plan, np.random.default_rng(seed))
        inside = after[FIRST : LAST + 1]
        ways = [k for k in range(-200, 201) if (inside == values[FIRST + k : LAST + 1 + k]).all()]
        assert len(ways) == 1
        back += ways[0] < 0
    assert back > 0


def test_inject_all_unfit_kind_gives_way_to_another() -> None:
    """A link asked of a single field becomes a fault that one field can carry, and is listed as that."""
    values = plant()[:, :1]
    after, labels, placed = inject_all(values, [("link", FIRST, LAST)], np.random.default_rng(0))
    assert len(placed) == 1
    assert placed[0].kind != "link"
    promises_hold(values, after, labels, FIRST, LAST)


def test_inject_all_where_nothing_is_seen_there_is_no_label() -> None:
    """A fault that cannot be put in is neither labelled nor listed."""
    values = plant()
    values[FIRST : LAST + 1] = np.nan
    after, labels, placed = inject_all(values, [("shift", FIRST, LAST)], np.random.default_rng(0))
    assert placed == []
    assert not labels.any()
    np.testing.assert_array_equal(after, values)


def test_inject_all_overlapping_plan_is_refused() -> None:
    """Two faults in one row would leave it open whose label it carries."""
    plan: list[tuple[Kind, int, int]] = [("shift", 100, 200), ("noise", 200, 300)]
    with pytest.raises(ValueError, match="noise in rows 200 to 300 overlaps"):
        inject_all(plant(), plan, np.random.default_rng(0))


@pytest.mark.recordings
@pytest.mark.parametrize(
    ("archive", "stream"),
    [("nab", "art_daily_no_noise"), ("msl", "M-6"), ("smd", "machine-1-6"), ("skab", "free")],
)
def test_inject_all_real_recording_carries_the_plan(archive: str, stream: str) -> None:
    """Recordings of one to fifty-five fields, many of them constant, take a whole schedule."""
    path = DATA / f"{archive}.npz"
    if not path.exists():
        pytest.skip("the labelled recordings are not beside the checkout")
    with np.load(path) as stored:
        values = next(stored[key] for key in stored.files if stream in key and key.endswith("|x"))[:8000]
    rng = np.random.default_rng(0)
    plan = schedule(len(values), rng, start=500)
    after, labels, placed = inject_all(values, plan, rng)
    assert len(placed) == len(plan)
    np.testing.assert_array_equal(after[~labels], values[~labels])
    for _, first, last, _ in placed:
        promises_hold(
            values[first : last + 1],
            after[first : last + 1],
            labels[first : last + 1],
            0,
            last - first,
        )
