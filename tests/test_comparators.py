"""The offline networks: one interface, no look-ahead but where it is meant, steps that equal whole series."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from gruard.models.cells import CELLS, NetworkConfig
from gruard.models.errors import ModelError
from gruard.models.linear import LAGS
from gruard.models.training import windows
from gruard.models.training.comparators import (
    ATTENTION_READINGS,
    OFFLINE_CELLS,
    OfflineConfig,
    OfflineNetwork,
    build,
    steps_over,
)
from gruard.models.training.fit import FitConfig, fit
from gruard.models.training.network import CHUNK_ROWS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

CAUSAL = ("mlp", "transformer")
INPUTS, HIDDEN, OUTPUTS = 3, 8, 2
SMALL = FitConfig(hidden=12, steps=60, window=24, check_every=15, streams=8, burn_in=4, input_noise=0.05)


def offline(cell: str, layers: int = 1) -> OfflineNetwork:
    """A network with a loud readout, so that every path through it shows, and no age out of sight."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        weights = build(cell, INPUTS, HIDDEN, layers, OUTPUTS).export()
    weights["readout.weight"] *= 30.0
    weights |= {name: np.zeros_like(w) for name, w in weights.items() if name.endswith("age_bias")}
    return OfflineNetwork(OfflineConfig(cell, INPUTS, HIDDEN, layers, OUTPUTS), weights)


def series(count: int, rows: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal((count, rows, INPUTS), np.float32)


def stepped(network: OfflineNetwork, x: Floats) -> Floats:
    state = np.zeros((len(x), network.config.state_width), np.float32)
    outputs = []
    for row in range(x.shape[1]):
        y, state = network.step(x[:, row], state)
        outputs.append(y)
    return np.stack(outputs, axis=1)


def rows_that_change(network: OfflineNetwork, at: int, rows: int) -> set[int]:
    """Rows whose output differs once reading `at` is another one."""
    x = series(1, rows)
    other = x.copy()
    other[:, at] += 1.0
    difference = np.abs(network.hindsight(other) - network.hindsight(x)).max(axis=2)[0]
    return set(np.flatnonzero(difference > 1e-9).tolist())


def copied(series: int, rows: int, shift: int) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """White noise; the target of row t is the reading of row t + shift."""
    x = np.random.default_rng(0).standard_normal((series, rows, 1), np.float32)
    y = np.roll(x, -shift, axis=1)
    mask = np.ones(y.shape, np.bool_)
    mask[:, : max(-shift, 0)] = mask[:, rows - max(shift, 0) :] = False
    return x, y, mask


@pytest.mark.parametrize("cell", CELLS + OFFLINE_CELLS)
@pytest.mark.parametrize("layers", [1, 2])
def test_every_cell_has_the_interface_that_training_uses(cell: str, layers: int) -> None:
    """Outputs, state and zero state have their shapes, weights their names, and a gradient reaches each."""
    network = build(cell, INPUTS, HIDDEN, layers, OUTPUTS, 0.1)
    state = network.zero_state(4)
    assert state.shape == (4, network.config.state_width)
    assert not state.any()
    y, after = network.train()(torch.from_numpy(series(4, 70)), state)
    assert y.shape == (4, 70, OUTPUTS)
    assert after.shape == state.shape
    y.square().sum().backward()
    assert all(weight.grad is not None for weight in network.parameters())
    exported = network.export()
    assert {name: weight.shape for name, weight in exported.items()} == network.config.weight_shapes()
    exported["readout.bias"][:] = 7.0
    assert not network.export()["readout.bias"].any()  # it was a copy


@pytest.mark.parametrize("cell", OFFLINE_CELLS)
def test_offline_networks_start_close_to_no_correction(cell: str) -> None:
    """Outputs begin near zero, as those of the cells do."""
    with torch.no_grad():
        network = build(cell, INPUTS, 32, 1, OUTPUTS).eval()
        y, _ = network(torch.from_numpy(series(4, 50)), network.zero_state(4))
    assert not network.export()["readout.bias"].any()
    assert 0 < y.abs().max() < 0.5


@pytest.mark.parametrize("cell", OFFLINE_CELLS)
def test_dropout_of_offline_networks_acts_in_training_only(cell: str) -> None:
    """Training passes differ from each other, judging passes do not."""
    network = build(cell, INPUTS, HIDDEN, 2, OUTPUTS, 0.5)
    x, state = torch.from_numpy(series(4, 30)), network.zero_state(4)
    with torch.no_grad():
        assert not torch.equal(network.train()(x, state)[0], network(x, state)[0])
        assert torch.equal(network.eval()(x, state)[0], network(x, state)[0])


@pytest.mark.parametrize("cell", CAUSAL)
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_steps_equal_the_whole_series(cell: str, layers: int) -> None:
    """Reading by reading, past the window and past a chunk, the outputs are those of the series at once."""
    network, x = offline(cell, layers), series(5, CHUNK_ROWS + 40)
    whole = network.hindsight(x)
    assert np.abs(whole).max() > 0.1
    assert np.abs(stepped(network, x) - whole).max() <= 1e-5


@pytest.mark.parametrize("cell", CAUSAL)
def test_state_carries_over_any_cut_of_a_series(cell: str) -> None:
    """Windows of odd lengths, the state handed on, give the outputs and last state of the uncut series."""
    network, x = build(cell, INPUTS, HIDDEN, 2, OUTPUTS).eval(), torch.from_numpy(series(4, 150))
    with torch.no_grad():
        whole, last = network(x, network.zero_state(4))
        state, parts = network.zero_state(4), []
        for part in x.split((1, 5, 70, 3, 71), dim=1):
            y, state = network(part, state)
            parts.append(y)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0.0, atol=1e-5)
    torch.testing.assert_close(state, last)


@pytest.mark.parametrize(
    ("cell", "layers", "past"), [("mlp", 2, LAGS - 1), ("transformer", 1, 63), ("transformer", 2, 62)]
)
def test_causal_networks_see_their_window_and_nothing_else(cell: str, layers: int, past: int) -> None:
    """A reading moves its own output and those of the next `past` readings, none before and none after."""
    assert past < ATTENTION_READINGS
    assert rows_that_change(offline(cell, layers), 40, 140) == set(range(40, 40 + past + 1))


@pytest.mark.parametrize("layers", [1, 2])
def test_bigru_foretells_a_reading_from_both_sides_without_seeing_it(layers: int) -> None:
    """Row t, which tells of reading t + 1, depends on readings before and after that one, never on itself."""
    changed = rows_that_change(offline("bigru", layers), 20, 40)
    assert 19 not in changed  # the row that tells of reading 20
    assert {15, 16, 17, 18, 20, 21, 22, 23} <= changed


def test_bigru_sees_the_whole_series_however_long() -> None:
    """No cut between chunks of rows: what follows behind it counts as much as elsewhere."""
    changed = rows_that_change(offline("bigru"), CHUNK_ROWS + 1, CHUNK_ROWS + 20)
    assert {CHUNK_ROWS - 2, CHUNK_ROWS - 1, CHUNK_ROWS + 1} <= changed


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_bigru_takes_the_shortest_series(rows: int) -> None:
    """Where nothing follows, the forward side alone speaks: the last two rows see no later reading."""
    network = offline("bigru")
    y = network.hindsight(series(2, rows))
    assert y.shape == (2, rows, OUTPUTS)
    assert np.isfinite(y).all()
    other = series(2, rows + 1)
    other[:, :rows] = series(2, rows)
    np.testing.assert_allclose(network.hindsight(other)[:, rows - 1], y[:, rows - 1], atol=1e-6)


def test_transformer_ignores_what_its_ring_does_not_hold_yet() -> None:
    """Numbers in the unused part of a ring change nothing; those in the used part do."""
    network, x = offline("transformer"), series(1, 1)[:, 0]
    state = np.zeros((1, network.config.state_width), np.float32)
    state[0, 0] = 2.0  # readings held
    clean = network.step(x, state)[0]
    state[0, 1 : -2 * INPUTS] = 9.0
    np.testing.assert_array_equal(network.step(x, state)[0], clean)
    state[0, -2 * INPUTS] = 9.0
    assert not np.allclose(network.step(x, state)[0], clean)


@pytest.mark.parametrize("cell", CAUSAL)
def test_devices_of_a_batch_do_not_touch_each_other(cell: str) -> None:
    """A device with a number that is not finite spoils its own output alone; arguments stay as they were."""
    network, x = offline(cell), series(6, 1)[:, 0]
    state = np.random.default_rng(2).standard_normal((6, network.config.state_width)).astype(np.float32)
    alone = network.step(x[:1], state[:1])
    x[3, 1] = np.nan
    given = x.copy(), state.copy()
    x.setflags(write=False)
    y, after = network.step(x, state)
    np.testing.assert_array_equal(x, given[0])
    np.testing.assert_array_equal(state, given[1])
    np.testing.assert_allclose(y[:1], alone[0], atol=1e-5)
    np.testing.assert_allclose(after[:1], alone[1], atol=1e-5)
    assert np.isfinite(y).all(axis=1).tolist() == [True, True, True, False, True, True]


def test_memory_per_device_is_what_the_window_holds() -> None:
    """The ring counts in full: past inputs of the window, whatever the width of the network."""
    widths = {cell: OfflineConfig(cell, 17, 32, 1, 8).state_width for cell in OFFLINE_CELLS}
    assert widths == {"mlp": (LAGS - 1) * 17, "transformer": 63 * 17 + 1, "bigru": 32}


def test_unknown_cells_are_refused_with_all_names() -> None:
    """A wrong name lists every cell there is; the live side goes on knowing its own alone."""
    with pytest.raises(ModelError, match="gru, lstm, rnn, mlp, transformer, bigru"):
        build("gpt", 3, 8, 1, 2)
    with pytest.raises(ModelError, match=r"'gpt' is unknown.*transformer"):
        fit(*copied(2, 100, 0), 60, replace(SMALL, cell="gpt"))
    with pytest.raises(ModelError, match="mlp, transformer, bigru"):
        OfflineConfig("gru", 3, 8, 1, 2)
    with pytest.raises(ModelError, match="gru, lstm, rnn"):
        NetworkConfig("mlp", 3, 8, 1, 2)
    with pytest.raises(ModelError, match="hidden"):
        build("mlp", 3, 0, 1, 2)


def test_two_sided_network_has_no_step() -> None:
    """What needs the readings that follow cannot be driven a reading at a time."""
    network = offline("bigru")
    with pytest.raises(ModelError, match="readings that follow"):
        network.step(series(1, 1)[:, 0], np.zeros((1, network.config.state_width), np.float32))


def test_steps_over_a_recording_are_what_hindsight_says_of_it() -> None:
    """A two-sided network driven row by row gives what it gives for the whole series, from row 0 on."""
    config, x = OfflineConfig("bigru", INPUTS, HIDDEN, 1, OUTPUTS), series(1, 20)
    weights = build("bigru", INPUTS, HIDDEN, 1, OUTPUTS).export()
    whole = OfflineNetwork(config, weights).hindsight(x)
    steps = steps_over(config, weights, x)
    assert steps is not None
    state = np.zeros((1, config.state_width), np.float32)
    for row in range(20):
        y, state = steps.step(x[:, row], state)
        np.testing.assert_array_equal(y, whole[:, row])
    with pytest.raises(ModelError, match="needs the readings that follow"):
        steps_over(config, weights, None)


@pytest.mark.parametrize("cell", CAUSAL)
def test_steps_over_causal_networks_need_no_recording(cell: str) -> None:
    """A causal comparator is driven as it is; a live cell is the Forecaster's own."""
    config = OfflineConfig(cell, INPUTS, HIDDEN, 1, OUTPUTS)
    weights = build(cell, INPUTS, HIDDEN, 1, OUTPUTS).export()
    assert isinstance(steps_over(config, weights, None), OfflineNetwork)
    assert steps_over(NetworkConfig("gru", INPUTS, HIDDEN, 1, OUTPUTS), {}, None) is None


def test_step_and_hindsight_refuse_shapes_that_do_not_fit() -> None:
    """Too many inputs, a foreign state or a missing axis are named."""
    network = offline("mlp")
    state = np.zeros((2, network.config.state_width), np.float32)
    for x, memory in ((np.zeros((2, 4), np.float32), state), (np.zeros((2, 3), np.float32), state[:, 1:])):
        with pytest.raises(ValueError, match="do not fit"):
            network.step(x, memory)
    for x in (np.zeros((2, 9, 4), np.float32), np.zeros((9, 3), np.float32)):
        with pytest.raises(ValueError, match="does not fit"):
            network.hindsight(x)


def test_damaged_weights_are_refused() -> None:
    """A missing weight, one of another shape and one that is not finite are each a ModelError by name."""
    config = OfflineConfig("transformer", INPUTS, HIDDEN, 1, OUTPUTS)
    weights = build("transformer", INPUTS, HIDDEN, 1, OUTPUTS).export()
    broken = np.full_like(weights["embed.weight"], np.nan)
    for name, spoilt in (("missing", None), ("shape", broken[:, :1]), ("not finite", broken)):
        rest = {key: weight for key, weight in weights.items() if key != "embed.weight"}
        with pytest.raises(ModelError, match=name):
            OfflineNetwork(config, rest if spoilt is None else rest | {"embed.weight": spoilt})


@pytest.mark.parametrize("cell", CELLS + OFFLINE_CELLS)
def test_fit_trains_every_cell(cell: str) -> None:
    """On a reading two rows back, which each can know, the loss falls and held-back rows agree."""
    result = fit(*copied(6, 300, -2), 200, replace(SMALL, cell=cell, learning_rate=2e-2))
    assert np.mean(result.losses[-5:]) < 0.6 * np.mean(result.losses[:5])
    assert result.held_back_loss < 0.6 * result.zero_loss


@pytest.mark.parametrize("cell", OFFLINE_CELLS)
@pytest.mark.parametrize("layers", [1, 2])
def test_fit_weights_give_the_reported_loss(cell: str, layers: int) -> None:
    """The weights returned, run over the whole series, have the held-back loss that was reported."""
    x, y, mask = copied(5, 2 * CHUNK_ROWS, -1)
    cut = CHUNK_ROWS + 100
    result = fit(x, y, mask, cut, replace(SMALL, cell=cell, layers=layers, dropout=0.1))
    assert result.best_step > 0
    outputs = OfflineNetwork(OfflineConfig(cell, 1, 12, layers, 1), result.weights).hindsight(x)
    e = np.abs(outputs - y)[:, cut:]
    assert result.held_back_loss == pytest.approx(np.where(e <= 1.0, e**2 / 2, e - 0.5).mean(), rel=1e-4)


def test_bigru_learns_from_what_follows_where_a_gru_cannot() -> None:
    """A target that shows two rows later is learned from behind, and from the front it is noise."""
    task = copied(6, 400, 2)
    config = replace(SMALL, steps=100, learning_rate=2e-2)
    two_sided, one_sided = (fit(*task, 280, replace(config, cell=cell)) for cell in ("bigru", "gru"))
    assert two_sided.held_back_loss < 0.3 * two_sided.zero_loss
    assert one_sided.held_back_loss > 0.95 * one_sided.zero_loss


@pytest.mark.parametrize("burn_in", [0, 4])
def test_bigru_cannot_learn_the_reading_that_it_foretells(burn_in: int) -> None:
    """White noise stays unpredictable in training and in judgement: nothing of the target leaks in."""
    config = replace(SMALL, cell="bigru", burn_in=burn_in, steps=100, patience=99, learning_rate=2e-2)
    result = fit(*copied(6, 400, 1), 280, config)
    assert result.held_back_loss > 0.97 * result.zero_loss
    assert np.mean(result.losses[-20:]) > 0.8 * np.mean(result.losses[:5])


@pytest.mark.parametrize("burn_in", [0, 4])
def test_bigru_is_scored_only_where_readings_follow(burn_in: int) -> None:
    """Every scored row has real, not repeated, rows behind it in its window, as many as the look-ahead."""
    config = replace(SMALL, cell="bigru", burn_in=burn_in)
    mask = np.ones((3, 130, 1), np.bool_)
    streams = windows.Streams(windows.pieces_of(mask, 100, config), config)
    scored_rows = set()
    for _ in range(300):
        window = streams.advance()
        rows, scored = window.rows.numpy(), window.scored.numpy()
        for line, counts in zip(rows, scored, strict=True):
            for at in np.flatnonzero(counts):
                following = line[at + 1 :]
                assert len(np.unique(following[following > line[at]])) >= config.look_ahead
                scored_rows.add(int(line[at]))
    assert config.look_ahead == max(burn_in, 2)
    assert scored_rows == set(range(burn_in, 100 - config.look_ahead))


def test_bigru_refuses_series_with_targets_only_in_its_look_ahead() -> None:
    """Rows that a two-sided network is never scored on are nothing to train on; a causal one takes them."""
    x, y, mask = copied(3, 100, 0)
    mask[:, 5:57] = False  # burn-in before, three rows and the cut behind
    fit(x, y, mask, 60, replace(SMALL, cell="mlp", steps=1))
    with pytest.raises(ModelError, match="no series"):
        fit(x, y, mask, 60, replace(SMALL, cell="bigru", burn_in=5, steps=1))


def test_bigru_never_trains_on_held_back_rows() -> None:
    """Other numbers in the held-back rows leave every training loss as it was, though it looks ahead."""
    x, y, mask = copied(6, 300, 2)
    config = replace(SMALL, cell="bigru", patience=99)
    first = fit(x, y, mask, 200, config)
    x, y = x.copy(), y.copy()
    x[:, 200:], y[:, 200:] = 0.5 * x[:, 200:] + 0.01, 1.25 * y[:, 200:]
    assert fit(x, y, mask, 200, config).losses == first.losses


def test_fit_config_refuses_a_window_without_room_for_the_look_ahead() -> None:
    """A two-sided network needs windows longer than what it may not be scored on; causal ones do not."""
    with pytest.raises(ValueError, match="window"):
        FitConfig(cell="bigru", window=8, burn_in=8)
    assert FitConfig(cell="gru", window=8, burn_in=8).look_ahead == 0
