"""Long memory, shown: gradients vanish or explode as theory says; open gates and clipping mend it."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import torch

from gruard.models.errors import ModelError
from gruard.models.training.memory import (
    LONGEST_PAUSE,
    Descent,
    as_built,
    chrono,
    delayed_recall,
    exploding,
    gradient_norms,
    orthogonal,
    recall,
)

HIDDEN, LAGS = 32, (1, 10, 50, 200)
GATED = ("gru", "lstm")


@cache
def descent(clip_norm: float | None) -> Descent:
    return exploding(clip_norm, seed=0)


@pytest.mark.parametrize("lag", [1, 5, 40])
def test_task_asks_for_what_was_shown_so_many_rows_before(lag: int) -> None:
    """Each answer is the flag `lag` rows earlier, flags never overlap, and no other row says anything."""
    inputs, targets, mask = delayed_recall(4 * lag + LONGEST_PAUSE, lag, seed=1, series=50)
    series, rows, _ = np.nonzero(mask)
    assert set(series) == set(range(50))
    assert (rows >= lag).all()
    np.testing.assert_array_equal(targets[series, rows, 0], inputs[series, rows - lag, 0])
    assert set(np.abs(targets[mask])) == {1.0}
    np.testing.assert_array_equal(np.argwhere(inputs[:, :, 1] == 1.0), np.column_stack([series, rows - lag]))
    assert not targets[~mask].any()
    between = np.diff(rows)[np.diff(series) == 0]
    assert ((between > lag) & (between <= lag + LONGEST_PAUSE)).all()


def test_task_too_short_for_an_answer_is_refused() -> None:
    """One row less than a flag and its answer may take is an error, not an empty task."""
    delayed_recall(20 + LONGEST_PAUSE, 20, seed=0)
    with pytest.raises(ValueError, match="too few"):
        delayed_recall(20 + LONGEST_PAUSE - 1, 20, seed=0)
    with pytest.raises(ValueError, match="lag of 0"):
        delayed_recall(50, 0, seed=0)


@pytest.mark.parametrize("cell", ["rnn", *GATED])
def test_gradient_vanishes_geometrically_in_every_cell_as_built(cell: str) -> None:
    """Each further row takes the same factor off, so that nothing is left of an input 200 rows back."""
    near, ten, fifty, far = gradient_norms(cell, HIDDEN, LAGS, seed=0)
    assert near > 0.05
    assert far < 1e-30 * near
    per_row = (ten / near) ** (1 / 9), (fifty / ten) ** (1 / 40), (far / fifty) ** (1 / 150)
    assert max(per_row) < 0.75
    assert max(per_row) / min(per_row) < 1.25


@pytest.mark.parametrize("cell", GATED)
def test_open_gates_carry_a_gradient_over_two_hundred_rows(cell: str) -> None:
    """There the rnn's gradient, even from the best of starts, is five orders of magnitude below."""
    opened = gradient_norms(cell, HIDDEN, LAGS, seed=0, start=chrono(200))
    assert opened[-1] > 1e-4
    assert opened[-1] > opened[0] / 1000
    assert gradient_norms("rnn", HIDDEN, [200], seed=0, start=orthogonal)[0] < 1e-5 * opened[-1]
    assert gradient_norms("rnn", HIDDEN, [200], seed=0)[0] < 1e-30 * opened[-1]


def test_gradient_norm_is_that_of_the_exact_jacobian() -> None:
    """An rnn that stays in its linear range and turns its memory by 0.9: the norm is 0.9^k |W_ih|."""
    turn, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((4, 4)))
    weights = recall("rnn", 3, seed=0, hidden=4, steps=1).weights
    weights = {name: np.zeros_like(weight) for name, weight in weights.items()}
    weights["cell.weight_hh_l0"] += (0.9 * turn).astype(np.float32)
    weights["cell.weight_ih_l0"] += 1e-4
    lags = [0, 1, 10, 100]
    expected = [0.9**lag * np.linalg.norm(weights["cell.weight_ih_l0"]) for lag in lags]
    np.testing.assert_allclose(gradient_norms("rnn", 4, lags, seed=5, weights=weights), expected, rtol=1e-4)


@pytest.mark.parametrize("cell", GATED)
def test_gradient_of_a_trained_network_reaches_the_lag_it_learned(cell: str) -> None:
    """After training on a lag of 20 the input of that lag counts more than before, by far."""
    learned = recall(cell, 20, seed=0, start=chrono(30))
    before = gradient_norms(cell, HIDDEN, [20], seed=0, start=chrono(30))[0]
    after = gradient_norms(cell, HIDDEN, [20], seed=0, weights=learned.weights)[0]
    assert learned.accuracy > 0.95
    assert after > 3 * before


@pytest.mark.parametrize("cell", ["rnn", *GATED])
def test_every_cell_recalls_a_near_input_as_built(cell: str) -> None:
    """Five rows back nothing has vanished yet: the task itself is learnable."""
    found = recall(cell, 5, seed=0)
    assert found.accuracy > 0.98
    assert found.explained > 0.9


@pytest.mark.parametrize("cell", ["rnn", *GATED])
def test_no_cell_recalls_a_far_input_as_built(cell: str) -> None:
    """Sixty rows back is out of reach of the same training: answers are guesses, gates or not."""
    found = recall(cell, 60, seed=0, steps=150)
    assert found.accuracy < 0.65
    assert found.explained < 0.1


@pytest.mark.parametrize("cell", GATED)
def test_gated_cells_recall_a_far_input_once_their_gates_are_open(cell: str) -> None:
    """The same training on the same sequences learns the lag of sixty rows: only the start was missing."""
    found = recall(cell, 60, seed=0, start=chrono(70))
    assert found.accuracy > 0.95
    assert found.explained > 0.85


@pytest.mark.parametrize(("lag", "recalled"), [(7, True), (8, False)])
def test_mlp_recalls_what_its_window_holds_and_nothing_before(*, lag: int, recalled: bool) -> None:
    """A window of eight readings ends seven rows back, however long the training."""
    found = recall("mlp", lag, seed=0)
    assert (found.accuracy > 0.98) == recalled
    assert recalled or found.accuracy < 0.65


def test_unclipped_run_diverges_where_the_clipped_one_goes_on() -> None:
    """From matrices that stretch the memory, plain descent ends at a loss that is no number."""
    free, clipped = descent(None), descent(1.0)
    assert not free.finite
    assert max(free.losses) > 1e6
    assert clipped.finite
    assert max(clipped.losses) < 3.0
    assert np.mean(clipped.losses[-20:]) < np.mean(clipped.losses[:20])


def test_clipping_bounds_every_update_and_leaves_short_gradients_alone() -> None:
    """No update is longer than learning rate times limit; below the limit it is the gradient's own."""
    free, clipped = descent(None), descent(1.0)
    assert max(free.updates) > 1e6
    assert max(clipped.gradients) > 10.0  # there was something to clip
    assert max(clipped.updates) <= 0.1 * 1.0 * 1.0001
    for gradient, update in zip(clipped.gradients, clipped.updates, strict=True):
        assert update == pytest.approx(0.1 * min(gradient, 1.0), rel=1e-2)
    # Up to the first gradient above the limit the two runs are one.
    same = next(step for step, gradient in enumerate(free.gradients) if gradient > 1.0)
    assert free.losses[: same + 1] == clipped.losses[: same + 1]


def test_studies_repeat_and_leave_the_random_state_alone() -> None:
    """The same arguments give the same numbers whatever torch's random state is."""
    torch.manual_seed(1)
    first = recall("gru", 3, seed=4, steps=5)
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    again = recall("gru", 3, seed=4, steps=5)
    assert torch.equal(before, torch.random.get_rng_state())
    assert (first.explained, first.steps_done) == (again.explained, again.steps_done)
    for name, weight in first.weights.items():
        np.testing.assert_array_equal(again.weights[name], weight)
    assert recall("gru", 3, seed=5, steps=5).explained != first.explained


def test_studies_refuse_cells_they_cannot_tell_anything_about() -> None:
    """No gradient through time without a hidden state, no open gates without gates, no unknown cell."""
    with pytest.raises(ModelError, match="mlp"):
        gradient_norms("mlp", HIDDEN, [1], seed=0)
    with pytest.raises(ModelError, match="no gates"):
        gradient_norms("rnn", HIDDEN, [1], seed=0, start=chrono(10))
    with pytest.raises(ModelError, match="too short"):
        recall("gru", 3, seed=0, start=chrono(2))
    with pytest.raises(ModelError, match="unknown"):
        recall("tcn", 3, seed=0, start=as_built)
    assert math.isfinite(recall("transformer", 3, seed=0, steps=1).explained)
