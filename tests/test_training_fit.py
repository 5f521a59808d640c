"""Training: it learns, it carries memory, it never touches held-back rows, and it always ends well."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from gruard.models.cells import CELLS, Network, NetworkConfig
from gruard.models.errors import ModelError
from gruard.models.training import fit as fit_module
from gruard.models.training import saved, windows
from gruard.models.training.descent import Descent
from gruard.models.training.fit import FitConfig, Progress, fit
from gruard.models.training.memory import delayed_recall
from gruard.models.training.network import RecurrentForecaster, open_gates

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Task = tuple[Floats, Floats, NDArray[np.bool_]]

SMALL = FitConfig(hidden=12, steps=20, window=16, check_every=5, streams=4, burn_in=4)


def lagged(series: int, rows: int, lag: int, seed: int = 0, inputs: int = 1) -> Task:
    """Targets are a nonlinear function of what was read `lag` rows ago and just after, plus noise."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((series, rows, inputs), np.float32)
    y = 0.1 * random.standard_normal((series, rows, 1), np.float32)
    y[:, lag:, 0] += np.sin(1.5 * x[:, :-lag, 0]) * np.sign(x[:, 1 : rows - lag + 1, 0])
    mask = np.ones(y.shape, np.bool_)
    mask[:, :lag] = False
    return x, y, mask


def flag_task() -> Task:
    """Each 60 rows a flag of +-1 shows for one row; the target is the flag, until the next one."""
    random = np.random.default_rng(0)
    x = 0.1 * random.standard_normal((32, 600, 2), np.float32)
    x[:, :, 1] = 0.0
    flags = random.choice(np.array([-1.0, 1.0], np.float32), (32, 10))
    x[:, ::60, 0] = flags
    x[:, ::60, 1] = 1.0  # tells that what stands beside it is a flag
    y = np.repeat(flags, 60, axis=1)[:, :, None]
    return x, y, np.ones(y.shape, np.bool_)


def same(a: dict[str, Floats], b: dict[str, Floats]) -> bool:
    return all(np.array_equal(a[name], b[name]) for name in a.keys() | b.keys())


@pytest.mark.parametrize("cell", CELLS)
def test_fit_learns_a_lagged_nonlinear_task(cell: str) -> None:
    """After the default run the held-back loss lies well below that of correcting nothing."""
    result = fit(*lagged(4, 1000, 3), 600, FitConfig(cell=cell))
    assert result.held_back_loss < 0.7 * result.zero_loss
    assert result.steps_done == len(result.losses) == 150
    assert result.stopped_because == "steps"
    assert np.mean(result.losses[-10:]) < np.mean(result.losses[:10])


@pytest.mark.parametrize("series", [1, 40])
def test_fit_learns_from_one_short_series_and_from_many(series: int) -> None:
    """One device with 400 rows and forty devices are both enough for something better than nothing."""
    result = fit(*lagged(series, 400, 2), 240, FitConfig())
    assert result.held_back_loss < 0.8 * result.zero_loss


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("layers", [1, 2])
def test_fit_weights_give_the_reported_loss_in_numpy(cell: str, layers: int) -> None:
    """The exported weights, stepped by the numpy cell from row 0, have the loss that was reported."""
    x, y, mask = lagged(5, 200, 2)
    y += 0.5  # something that a few steps surely learn
    result = fit(x, y, mask, 120, replace(SMALL, cell=cell, layers=layers, dropout=0.2))
    assert result.best_step > 0
    network = Network(NetworkConfig(cell, 1, 12, layers, 1), result.weights)
    state = np.zeros((5, network.config.state_width), np.float32)
    errors = []
    for row in range(200):
        output, state = network.step(x[:, row], state)
        errors.append(np.abs(output - y[:, row]))
    e = np.stack(errors, axis=1)[:, 120:]
    huber = np.where(e <= 1.0, e**2 / 2, e - 0.5).mean()
    assert result.held_back_loss == pytest.approx(huber, rel=1e-4)


def test_fit_zero_loss_is_the_huber_loss_of_no_correction() -> None:
    """`zero_loss` is computed by hand from the held-back targets that count."""
    x, y, mask = lagged(3, 200, 2)
    mask[1, 150:] = False
    y = 3 * y
    held = np.abs(y[:, 120:][mask[:, 120:]])
    expected = np.where(held <= 0.5, held**2 / 2, 0.5 * (held - 0.25)).mean()
    assert fit(x, y, mask, 120, replace(SMALL, huber_delta=0.5)).zero_loss == pytest.approx(
        expected, rel=1e-5
    )


def test_fit_with_the_same_seed_gives_identical_weights() -> None:
    """Two runs with one seed agree to the bit whatever torch's own random state is; another seed differs."""
    config = replace(SMALL, layers=2, dropout=0.3)
    torch.manual_seed(1)
    first = fit(*lagged(6, 300, 2), 200, config)
    torch.manual_seed(2)
    second = fit(*lagged(6, 300, 2), 200, config)
    other = fit(*lagged(6, 300, 2), 200, replace(config, seed=1))
    assert same(first.weights, second.weights)
    assert first.losses == second.losses
    assert not same(first.weights, other.weights)


def test_fit_leaves_the_random_state_and_the_arrays_alone() -> None:
    """A run neither advances torch's random numbers nor writes to what it was given."""
    x, y, mask = lagged(6, 300, 2)
    copies = x.copy(), y.copy(), mask.copy()
    for array in (x, y, mask):
        array.setflags(write=False)
    before = torch.random.get_rng_state()
    fit(x, y, mask, 200, SMALL)
    assert torch.equal(before, torch.random.get_rng_state())
    for array, copy in zip((x, y, mask), copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_fit_never_trains_on_held_back_rows() -> None:
    """Other numbers in the held-back rows leave every training loss and the last weights as they were."""
    x, y, mask = lagged(6, 300, 2)
    # One check at the very end of a run that surely improves: no choice between checkpoints remains.
    config = replace(SMALL, steps=40, check_every=40)
    first = fit(x, y, mask, 200, config)
    x, y, mask = x.copy(), y.copy(), mask.copy()
    x[:, 200:] = 0.5 * x[:, 200:] + 0.01
    y[:, 200:] *= 1.25
    mask[:3, 200:] = False
    second = fit(x, y, mask, 200, config)
    assert first.best_step == second.best_step == 40
    assert first.losses == second.losses
    assert same(first.weights, second.weights)
    assert first.held_back_loss != second.held_back_loss
    y[:, 199] += 1.0  # the row before the cut does count
    assert fit(x, y, mask, 200, config).losses != first.losses


def test_fit_ignores_rows_without_targets() -> None:
    """Padding in front and behind, with whatever numbers in it, changes neither training nor judgement."""
    x, y, mask = lagged(6, 300, 2)
    mask[:2, :60] = False
    mask[2:4, 260:] = False
    first = fit(x, y, mask, 200, replace(SMALL, steps=10))
    y[~mask] = np.nan
    second = fit(x, y, mask, 200, replace(SMALL, steps=10))
    x[:2, :60] = (
        7.0  # behind the rows in use, inputs reach the held-back rows through the carried memory only
    )
    third = fit(x, y, mask, 200, replace(SMALL, steps=10))
    assert same(first.weights, second.weights)
    assert first.losses == second.losses == third.losses


def test_fit_learns_nothing_from_targets_that_do_not_count() -> None:
    """Where half the targets are masked at random, the net learns the other half's value, not a mixture."""
    random = np.random.default_rng(0)
    x = random.standard_normal((6, 300, 1), np.float32)
    y, mask = np.ones((6, 300, 2), np.float32), random.random((6, 300, 2)) < 0.5
    y[~mask] = np.nan
    result = fit(x, y, mask, 200, replace(SMALL, steps=100, patience=99))
    assert result.zero_loss == pytest.approx(0.5)
    assert result.held_back_loss < 0.01
    assert result.losses[-1] < 0.01


def test_streams_visit_every_row_in_use_and_no_other() -> None:
    """Over a long run the scored rows are those with targets before the cut, each at least once."""
    mask = np.ones((5, 400, 1), np.bool_)
    mask[0, :100] = mask[1, 150:] = mask[2] = False
    mask[3, 100:110] = False  # a gap inside is walked through
    streams = windows.Streams(windows.pieces_of(mask, 300, SMALL), SMALL)
    seen = np.zeros((5, 400), np.int64)
    for _ in range(6000):
        window = streams.advance()
        series, rows = np.broadcast_arrays(window.series.numpy(), window.rows.numpy())
        np.add.at(seen, (series[window.scored.numpy()], rows[window.scored.numpy()]), 1)
    assert not seen[0, :100].any()
    assert not seen[1, 150:].any()
    assert not seen[2].any()
    assert not seen[:, 300:].any()
    assert (seen[3:, SMALL.burn_in : 300] > 0).all()  # only a series' first rows are lost to the burn-in
    assert (seen[0, 100 + SMALL.burn_in : 300] > 0).all()
    assert (seen[1, SMALL.burn_in : 150] > 0).all()


def test_streams_walk_on_row_by_row_and_start_fresh_only_on_a_new_piece() -> None:
    """A stream's next window begins where its last one ended, unless it is marked fresh."""
    mask = np.ones((9, 500, 1), np.bool_)
    streams = windows.Streams(windows.pieces_of(mask, 400, SMALL), SMALL)
    last = streams.advance()
    assert last.fresh.all()
    carried = 0
    for _ in range(100):
        window = streams.advance()
        walks = ~window.fresh
        assert torch.equal(window.series[walks], last.series[walks])
        assert torch.equal(window.rows[walks, 0], last.rows[walks, -1] + 1)
        assert not window.scored[window.fresh, : SMALL.burn_in].any()
        assert window.scored[walks, 0].all()
        carried += int(walks.sum())
        last = window
    assert carried > 200


def test_carried_memory_learns_what_a_single_window_cannot_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where causes lie up to six windows back, carried memory learns far better than a reset one."""
    config = FitConfig(
        hidden=16, window=10, steps=500, streams=32, burn_in=0, patience=99, input_noise=0.0, input_drop=0.0
    )
    carried = fit(*flag_task(), 420, config)
    advance = windows.Streams.advance

    def always_fresh(streams: windows.Streams) -> windows.Window:
        window = advance(streams)
        return replace(window, fresh=torch.ones_like(window.fresh))

    monkeypatch.setattr(windows.Streams, "advance", always_fresh)
    reset = fit(*flag_task(), 420, config)
    assert carried.held_back_loss < 0.1 * carried.zero_loss
    assert carried.held_back_loss < 0.4 * reset.held_back_loss


def test_open_gates_let_fit_learn_a_lag_that_it_misses_without() -> None:
    """What showed for one row thirty rows ago is all that tells: told with a long memory, guessed without."""
    task = delayed_recall(310, 30, seed=0, series=200)
    config = FitConfig(
        hidden=16,
        window=96,
        learning_rate=1e-2,
        burn_in=0,
        input_noise=0.05,
        input_drop=0.0,
        longest_memory=40,
        patience=99,
    )
    opened = fit(*task, 230, config)
    assert opened.held_back_loss < 0.5 * opened.zero_loss
    as_built = fit(*task, 230, replace(config, longest_memory=None))
    assert as_built.held_back_loss > 0.9 * as_built.zero_loss


@pytest.mark.parametrize("layers", [1, 2])
def test_open_gates_are_half_of_each_layer_and_leave_the_rest_as_built(layers: int) -> None:
    """The opened units keep all but 1/u of their memory a row, u in [1, longest - 1]; nothing else moves."""
    for cell, gates in (("gru", 3), ("lstm", 4)):
        network = RecurrentForecaster(NetworkConfig(cell, 2, 10, layers, 1))
        before = network.export()
        open_gates(network, 100)
        after = network.export()
        for layer in range(layers):
            inner, outer = (after[f"cell.bias_{side}h_l{layer}"].reshape(gates, 10) for side in "ih")
            u = np.exp(inner[1, 5:])
            assert ((u >= 1.0) & (u <= 99.0)).all()
            assert len(np.unique(u)) == 5
            assert not outer[1, 5:].any()
            if cell == "lstm":
                np.testing.assert_array_equal(inner[0, 5:], -inner[1, 5:])
        moved = sum(int((before[name] != after[name]).sum()) for name in before)
        assert moved == layers * 10 * (2 if cell == "lstm" else 1)


def test_gates_of_a_cell_without_any_cannot_be_opened() -> None:
    """An rnn, an mlp or too short a memory is refused by name; both sides of a bigru have gates."""
    task = lagged(2, 200, 3)
    for cell in ("rnn", "mlp", "transformer"):
        with pytest.raises(ModelError, match="no gates"):
            fit(*task, 120, replace(SMALL, cell=cell, longest_memory=50))
    with pytest.raises(ModelError, match="too short"):
        open_gates(RecurrentForecaster(NetworkConfig("gru", 1, 4, 1, 1)), 2)
    assert fit(*task, 120, replace(SMALL, cell="bigru", longest_memory=50)).steps_done == SMALL.steps


def test_gradients_longer_than_the_limit_are_clipped_and_counted() -> None:
    """With a tiny limit each step is clipped, with a huge one none; the step itself stays bounded."""
    task = lagged(6, 300, 2)
    assert fit(*task, 200, replace(SMALL, clip_norm=1e-6)).clipped == SMALL.steps
    assert fit(*task, 200, replace(SMALL, clip_norm=1e6)).clipped == 0


def test_early_stopping_ends_the_run_and_keeps_the_best_weights() -> None:
    """On pure noise nothing beats the start for long: the run ends early with its best check's weights."""
    random = np.random.default_rng(0)
    x = random.standard_normal((2, 200, 1), np.float32)
    y = random.standard_normal((2, 200, 1), np.float32)
    mask = np.ones(y.shape, np.bool_)
    told: list[Progress] = []
    config = replace(SMALL, steps=500, patience=3, input_noise=0.0, input_drop=0.0)
    result = fit(x, y, mask, 120, config, told.append)
    assert result.stopped_because == "patience"
    assert result.steps_done == result.best_step + 3 * SMALL.check_every < 500
    assert [p.step for p in told] == list(range(5, result.steps_done + 1, 5))
    assert result.held_back_loss <= min(p.held_back_loss for p in told)
    assert all(p.held_back_loss > result.held_back_loss for p in told if p.step > result.best_step)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 10, 12])
def test_short_runs_end_with_a_check(steps: int) -> None:
    """However few the steps, the last weights are judged before the run ends."""
    told: list[Progress] = []
    result = fit(*lagged(3, 200, 2), 120, replace(SMALL, steps=steps), told.append)
    assert result.steps_done == told[-1].step == steps
    assert result.stopped_because == "steps"


def test_time_limit_stops_the_run_with_a_check() -> None:
    """When the clock passes max_seconds the run ends at that step, judged and with usable weights."""
    seconds = iter(range(1000))
    result = fit(*lagged(3, 200, 2), 120, replace(SMALL, max_seconds=7.0), clock=lambda: float(next(seconds)))
    assert result.stopped_because == "time"
    assert result.steps_done == 7
    assert np.isfinite(result.held_back_loss)


def test_non_finite_loss_stops_the_run_with_the_best_weights() -> None:
    """A target too large for float32's Huber loss ends the run; the weights kept are finite and judged."""
    x, y, mask = lagged(3, 200, 2)
    y[0, 60] = 3e38
    result = fit(x, y, mask, 120, replace(SMALL, steps=200, huber_delta=10.0))
    assert result.stopped_because == "not_finite"
    assert result.steps_done < 200
    assert all(np.isfinite(weight).all() for weight in result.weights.values())
    assert np.isfinite(result.held_back_loss)


def test_diverging_run_ends_with_finite_weights() -> None:
    """An absurd learning rate may ruin the run but not the weights that it returns."""
    result = fit(*lagged(3, 200, 2), 120, replace(SMALL, learning_rate=1e30, steps=50))
    assert all(np.isfinite(weight).all() for weight in result.weights.values())
    assert result.held_back_loss <= 1.05 * result.zero_loss


def test_disturbance_touches_value_inputs_only() -> None:
    """Noise and drops fall on the first columns; the mask and gap columns behind them stay as given."""
    config = replace(SMALL, value_inputs=2, input_noise=0.5, input_drop=0.25)
    run = fit_module._Run.__new__(fit_module._Run)
    run.config = config
    x = torch.ones(50, 40, 5)
    disturbed = run._disturb(x)
    assert torch.equal(disturbed[:, :, 2:], x[:, :, 2:])
    values = disturbed[:, :, :2]
    assert (values == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert values[values != 0].std().item() == pytest.approx(0.5, abs=0.03)


def test_dropout_acts_in_training_only() -> None:
    """Evaluation is the same each time and equals a network without dropout; training passes differ."""
    config = NetworkConfig("gru", 3, 8, 2, 2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = RecurrentForecaster(config, dropout=0.5)
        plain = RecurrentForecaster(config).eval()
        plain.load_state_dict(model.state_dict())
        x, state = torch.randn(4, 30, 3), model.zero_state(4)
        with torch.no_grad():
            trained = [model.train()(x, state)[0] for _ in range(2)]
            judged = [model.eval()(x, state)[0] for _ in range(2)]
            expected = plain(x, state)[0]
    assert not torch.equal(*trained)
    assert torch.equal(*judged)
    assert torch.equal(judged[0], expected)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("layers", [1, 2])
def test_forward_in_pieces_equals_forward_in_one(cell: str, layers: int) -> None:
    """Carrying the state over a cut gives the outputs of the uncut series."""
    model = RecurrentForecaster(NetworkConfig(cell, 3, 8, layers, 2)).eval()
    x = torch.randn(4, 30, 3)
    with torch.no_grad():
        whole, end = model(x, model.zero_state(4))
        first, state = model(x[:, :11], model.zero_state(4))
        second, last = model(x[:, 11:], state)
    torch.testing.assert_close(torch.cat((first, second), dim=1), whole)
    torch.testing.assert_close(last, end)


def test_network_starts_close_to_no_correction() -> None:
    """The readout begins with a zero bias and small weights, so outputs begin near 0."""
    model = RecurrentForecaster(NetworkConfig("gru", 3, 32, 1, 2)).eval()
    weights = model.export()
    assert not weights["readout.bias"].any()
    assert np.abs(weights["readout.weight"]).max() <= 0.1 / np.sqrt(32) + 1e-7
    with torch.no_grad():
        y, _ = model(torch.randn(4, 50, 3), model.zero_state(4))
    assert y.abs().max() < 0.15


def _nan_input(x: Floats, y: Floats, mask: NDArray[np.bool_]) -> Task:
    x[0, 5, 0] = np.nan
    return x, y, mask


def _nan_target(x: Floats, y: Floats, mask: NDArray[np.bool_]) -> Task:
    y[0, 5, 0] = np.inf
    return x, y, mask


def _other_rows(x: Floats, y: Floats, mask: NDArray[np.bool_]) -> Task:
    return x[:, 1:], y, mask


def _float_mask(x: Floats, y: Floats, mask: NDArray[np.bool_]) -> Task:
    return x, y, mask.astype(np.float32)  # type: ignore[return-value]


def _nothing_to_train(x: Floats, y: Floats, mask: NDArray[np.bool_]) -> Task:
    mask[:, : 120 - SMALL.burn_in] = mask[:, 120 - SMALL.burn_in + 3 : 120] = False
    return x, y, mask


def _nothing_to_judge(x: Floats, y: Floats, mask: NDArray[np.bool_]) -> Task:
    mask[:, 120:] = False
    return x, y, mask


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_nan_input, "not finite"),
        (_nan_target, "not finite"),
        (_other_rows, "are not"),
        (_float_mask, "not bool"),
        (_nothing_to_train, "no series"),
        (_nothing_to_judge, "no held-back"),
    ],
)
def test_fit_refuses_what_it_cannot_learn_from(spoil: Callable[..., Any], reason: str) -> None:
    """Misshapen or non-finite arrays, and histories with nothing to train or judge on, are a ModelError."""
    with pytest.raises(ModelError, match=reason):
        fit(*spoil(*lagged(3, 200, 2)), 120, SMALL)


@pytest.mark.parametrize("cut", [0, -1, 200, 500])
def test_fit_refuses_a_cut_outside_the_rows(cut: int) -> None:
    """Both sides of the cut need rows."""
    with pytest.raises(ModelError, match="held_back_from"):
        fit(*lagged(3, 200, 2), cut, SMALL)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("steps", 0),
        ("window", 0),
        ("streams", 0),
        ("burn_in", -1),
        ("patience", 0),
        ("check_every", 0),
        ("value_inputs", -1),
        ("longest_memory", 2),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("clip_norm", -1.0),
        ("huber_delta", 0.0),
        ("max_seconds", 0.0),
        ("weight_decay", -1.0),
        ("input_noise", float("nan")),
        ("dropout", 1.0),
        ("input_drop", -0.1),
    ],
)
def test_fit_config_refuses_numbers_out_of_range(name: str, number: float) -> None:
    """Each setting names itself when it cannot be."""
    with pytest.raises(ValueError, match=name):
        FitConfig(**{name: number})  # type: ignore[arg-type]


class Kept:
    """A place in memory for a fit that is cut off."""

    def __init__(self, content: bytes | None = None) -> None:
        self.content, self.saves = content, 0

    def load(self) -> bytes | None:
        return self.content

    def save(self, content: bytes) -> None:
        self.content, self.saves = content, self.saves + 1


class PowerLossError(Exception):
    """Raised where the power goes."""


def cut_off(task: Task, config: FitConfig, after_step: int) -> Kept:
    """What is left of a fit that was cut off at a check, saved at each step until then."""
    kept, ticks = Kept(), itertools.count(0, 100)

    def lose_power(progress: Progress) -> None:
        if progress.step == after_step:
            raise PowerLossError

    with pytest.raises(PowerLossError):
        fit(*task, 200, config, lose_power, clock=lambda: float(next(ticks)), keeper=kept)
    assert kept.saves > 0
    return kept


@pytest.mark.parametrize("cell", CELLS)
def test_fit_that_was_cut_off_goes_on_and_ends_as_if_it_had_not_been(cell: str) -> None:
    """Dropout, noise, streams, schedule and best weights are all as they would have been: to the bit."""
    config = replace(SMALL, cell=cell, layers=2, dropout=0.3, max_seconds=1e9, steps=60)
    task = lagged(6, 300, 2)
    whole = fit(*task, 200, config)
    resumed = fit(*task, 200, config, clock=lambda: 0.0, keeper=cut_off(task, config, 35))
    assert resumed.resumed_at == 34  # the last save was before the step at which the power went
    assert same(resumed.weights, whole.weights)
    assert resumed.losses == whole.losses
    assert replace(resumed, resumed_at=0, weights={}) == replace(whole, weights={})


def test_fit_goes_on_with_nothing_else_than_its_own() -> None:
    """Other rows, another seed or a damaged file: the fit begins anew and is what it would be without."""
    config = replace(SMALL, max_seconds=1e9)
    task = lagged(6, 300, 2)
    kept = cut_off(task, config, 10)
    assert kept.content is not None
    for place in range(0, len(kept.content), 997):
        damaged = bytearray(kept.content)
        damaged[place] ^= 0x40
        for content in (bytes(damaged), kept.content[:place]):
            assert saved.unpack("", content) is None
    other_rows = (task[0] + np.float32(1e-3), *task[1:])
    whole = fit(*task, 200, config)
    for rows, changed, content in (
        (other_rows, config, kept.content),
        (task, replace(config, seed=1), kept.content),
        (task, config, kept.content[:-1]),
        (task, config, b""),
    ):
        result = fit(*rows, 200, changed, clock=lambda: 0.0, keeper=Kept(content))
        assert result.resumed_at == 0
    assert same(result.weights, whole.weights)


def test_descent_moves_as_torch_does() -> None:
    """Step for step the numbers of AdamW along OneCycleLR, which cost a process 80 MB more."""
    torch.manual_seed(0)
    ours, theirs = torch.nn.GRU(3, 5), torch.nn.GRU(3, 5)
    theirs.load_state_dict(ours.state_dict())
    steps = 30
    descent = Descent(ours.parameters(), steps, 8e-3, 1e-3)
    adam = torch.optim.AdamW(theirs.parameters(), lr=8e-3, weight_decay=1e-3)
    cycle = torch.optim.lr_scheduler.OneCycleLR(adam, max_lr=8e-3, total_steps=steps + 1, pct_start=0.1)
    for x in torch.randn(steps, 7, 2, 3):
        descent.forget_gradients()
        adam.zero_grad()
        for network in (ours, theirs):
            network(x)[0].square().sum().backward()
        descent.step()
        adam.step()
        cycle.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)
