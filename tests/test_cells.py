"""The numpy step against torch, and the promises of `Network.step` about batches and bad numbers."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from gruard.models.cells import (
    CELLS,
    CHUNK_ROWS,
    MAX_LAYERS,
    MAX_WIDTH,
    Network,
    NetworkConfig,
    finite_rows,
    repair,
)
from gruard.models.errors import ModelError
from gruard.models.training.network import RecurrentForecaster

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

SHAPES = [(cell, layers) for cell in CELLS for layers in (1, 2)]


def torch_model(config: NetworkConfig, seed: int = 3, gain: float = 1.0) -> RecurrentForecaster:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = RecurrentForecaster(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(gain)
    return model


def make(cell: str = "gru", layers: int = 1, hidden: int = 32, inputs: int = 7, outputs: int = 5) -> Network:
    config = NetworkConfig(cell, inputs, hidden, layers, outputs)
    return Network(config, torch_model(config).export())


def rows(network: Network, count: int, seed: int = 0) -> tuple[Floats, Floats]:
    random = np.random.default_rng(seed)
    x = 2 * random.standard_normal((count, network.config.inputs), np.float32)
    return x, np.tanh(random.standard_normal((count, network.config.state_width), np.float32))


@pytest.mark.parametrize(("cell", "layers"), SHAPES)
@pytest.mark.parametrize("gain", [1.0, 3.0])
def test_step_equals_torch_over_1000_steps(
    cell: str, layers: int, gain: float, record_property: Callable[[str, object], None]
) -> None:
    """A thousand numpy steps give torch's outputs and torch's final state within 1e-5."""
    config = NetworkConfig(cell, 9, 32, layers, 6)
    model = torch_model(config, gain=gain)
    network = Network(config, model.export())
    x = 2 * np.random.default_rng(5).standard_normal((20, 1000, 9), np.float32)
    start = np.tanh(np.random.default_rng(6).standard_normal((20, config.state_width), np.float32))
    with torch.inference_mode():
        expected, last = model(torch.from_numpy(x), torch.from_numpy(start))
    state, worst_output = start, 0.0
    for step in range(1000):
        y, state = network.step(x[:, step], state)
        worst_output = max(worst_output, float(np.abs(y - expected[:, step].numpy()).max()))
    worst_state = float(np.abs(state - last.numpy()).max())
    print(f"{cell} layers={layers} gain={gain}: outputs {worst_output:.1e}, states {worst_state:.1e}")  # noqa: T201 -- figures for the log
    record_property("worst_output", worst_output)
    record_property("worst_state", worst_state)
    assert expected.abs().max() > 0.01
    assert worst_output <= 1e-5
    assert worst_state <= 1e-5


@pytest.mark.parametrize(("cell", "layers"), SHAPES)
def test_state_layout_is_hidden_then_cell_memory(cell: str, layers: int) -> None:
    """The flat state holds every layer's h in order, then for an LSTM every layer's c, as torch's own."""
    config = NetworkConfig(cell, 4, 8, layers, 2)
    model = torch_model(config)
    x, state = rows(Network(config, model.export()), 3)
    _, after = Network(config, model.export()).step(x, state)
    parts = torch.from_numpy(state).view(3, -1, 8).transpose(0, 1).contiguous()  # (memories * L, N, H)
    start = (parts[:layers], parts[layers:]) if cell == "lstm" else parts
    with torch.inference_mode():
        _, last = model.cell(torch.from_numpy(x[:, None]), start)
    memories = torch.cat(last) if cell == "lstm" else last
    np.testing.assert_allclose(after, memories.transpose(0, 1).reshape(3, -1).numpy(), atol=1e-6)


@pytest.mark.parametrize(("cell", "layers"), SHAPES)
@pytest.mark.parametrize("count", [1, 2, 3, 64, CHUNK_ROWS, CHUNK_ROWS + 1, 1300])
def test_step_batched_equals_one_at_a_time(cell: str, layers: int, count: int) -> None:
    """B devices in one step get what B single steps give them, within 1e-6, in whatever chunk they fall."""
    network = make(cell, layers)
    x, state = rows(network, count)
    y, after = network.step(x, state)
    singles = [network.step(x[n : n + 1], state[n : n + 1]) for n in range(count)]
    one_y, one_after = (np.concatenate(part) for part in zip(*singles, strict=True))
    assert y.shape == (count, 5)
    np.testing.assert_allclose(y, one_y, rtol=0, atol=1e-6)
    np.testing.assert_allclose(after, one_after, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("cell", "layers"), SHAPES)
def test_step_is_independent_of_device_order_and_company(cell: str, layers: int) -> None:
    """Shuffling the devices or leaving most of them out changes no device's result by more than 1e-6."""
    network = make(cell, layers)
    x, state = rows(network, 700)
    y, after = network.step(x, state)
    for size in (700, 600, 37, 2):
        chosen = np.random.default_rng(size).permutation(700)[:size]
        y_chosen, after_chosen = network.step(x[chosen], state[chosen])
        np.testing.assert_allclose(y_chosen, y[chosen], rtol=0, atol=1e-6)
        np.testing.assert_allclose(after_chosen, after[chosen], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("cell", "layers"), SHAPES)
@pytest.mark.parametrize("count", [1, 600])
def test_step_leaves_inputs_and_earlier_results_alone(cell: str, layers: int, count: int) -> None:
    """Neither the arrays handed in nor results handed out before are touched by a step."""
    network = make(cell, layers)
    x, state = rows(network, count)
    x_before, state_before = x.copy(), state.copy()
    x.setflags(write=False)
    state.setflags(write=False)
    y, after = network.step(x, state)
    kept = y.copy(), after.copy()
    network.step(*rows(network, count, seed=9))
    np.testing.assert_array_equal(x, x_before)
    np.testing.assert_array_equal(state, state_before)
    np.testing.assert_array_equal(y, kept[0])
    np.testing.assert_array_equal(after, kept[1])


def test_step_with_no_device_gives_empty_results() -> None:
    """A batch of nobody is no error."""
    network = make("lstm", 2)
    y, after = network.step(*rows(network, 0))
    assert y.shape == (0, 5)
    assert after.shape == (0, network.config.state_width)


@pytest.mark.parametrize(("cell", "layers"), SHAPES)
@pytest.mark.parametrize("extreme", [1e30, -1e30, float(np.finfo(np.float32).max), 1e-45])
def test_step_on_extreme_finite_inputs_stays_finite(cell: str, layers: int, extreme: float) -> None:
    """Numbers as large as float32 has leave outputs and states finite, and the memory of them washes out."""
    config = NetworkConfig(cell, 7, 32, layers, 5)
    network = Network(config, torch_model(config, gain=20.0).export())
    signs = np.sign(np.random.default_rng(0).standard_normal((40, 7))).astype(np.float32)
    x = signs * np.float32(extreme)
    state = np.zeros((40, config.state_width), np.float32)
    for _ in range(20):
        y, state = network.step(x, state)
        assert np.isfinite(y).all()
        assert finite_rows(state).all()
    assert np.abs(state).max() <= 20.0  # h within 1, an LSTM's c grows by at most 1 a step


EXTREME_SCRIPT = """
import sys
import numpy as np
from gruard.models.cells import CELLS, Network, NetworkConfig
random = np.random.default_rng(0)
for cell in CELLS:
    config = NetworkConfig(cell, 7, 32, 2, 5)
    shapes = config.weight_shapes().items()
    network = Network(config, {n: 3 * random.standard_normal(s, np.float32) for n, s in shapes})
    x = random.choice(np.array([-3e38, 3e38], np.float32), (40, 7))
    y, state = network.step(x, np.zeros((40, config.state_width), np.float32))
    assert np.isfinite(y).all() and np.isfinite(state).all(), cell
"""


def test_step_on_extreme_inputs_stays_finite_without_fused_multiply_add() -> None:
    """On BLAS kernels whose products overflow by themselves, extreme inputs still give finite results."""
    old_kernels = os.environ | {"OPENBLAS_CORETYPE": "Nehalem"}
    done = subprocess.run([sys.executable, "-c", EXTREME_SCRIPT], env=old_kernels, check=False)
    assert done.returncode == 0


@pytest.mark.parametrize(("cell", "layers"), SHAPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_step_with_a_broken_state_spoils_only_its_own_row(cell: str, layers: int, bad: float) -> None:
    """A device whose memory is damaged leaves all others exactly as they are without it."""
    network = make(cell, layers)
    x, state = rows(network, 30)
    y, after = network.step(x, state)
    state[11] = bad
    y_bad, after_bad = network.step(x, state)
    others = np.arange(30) != 11
    np.testing.assert_array_equal(y_bad[others], y[others])
    np.testing.assert_array_equal(after_bad[others], after[others])
    repaired, _ = repair(after_bad)
    assert finite_rows(repaired).all()


def test_step_after_a_broken_row_is_clean() -> None:
    """What a non-finite row left in the work space reaches nobody later."""
    network = make()
    x, state = rows(network, 30)
    expected = network.step(x, state)
    network.step(np.full_like(x, np.nan), np.full_like(state, np.nan))
    for found, right in zip(network.step(x, state), expected, strict=True):
        np.testing.assert_array_equal(found, right)


def test_step_refuses_shapes_that_do_not_fit() -> None:
    """A wrong width or unequal row counts are the caller's mistake and are named."""
    network = make()
    x, state = rows(network, 4)
    for wrong in ((x[:, 1:], state), (x, state[:, 1:]), (x[1:], state)):
        with pytest.raises(ValueError, match="do not fit"):
            network.step(*wrong)


def test_repair_resets_only_broken_rows_and_counts_them() -> None:
    """Rows with a NaN or an infinity become zero; the others and the array handed in stay as they are."""
    state = rows(make(), 6)[1]
    state[1, 3], state[4, 0], state[5, 31] = np.nan, np.inf, -np.inf
    before = state.copy()
    repaired, count = repair(state)
    assert count == 3
    np.testing.assert_array_equal(finite_rows(state), [True, False, True, True, False, False])
    np.testing.assert_array_equal(repaired[[1, 4, 5]], 0.0)
    np.testing.assert_array_equal(repaired[[0, 2, 3]], before[[0, 2, 3]])
    np.testing.assert_array_equal(state, before)


@pytest.mark.parametrize("level", [0.0, 1.0, 3e38])
def test_repair_of_a_sound_state_returns_it_untouched(level: float) -> None:
    """No row is reset when all numbers are finite, however large."""
    state = np.full((5, 8), level, np.float32)
    repaired, count = repair(state)
    assert repaired is state
    assert count == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cell", "transformer"),
        ("cell", ""),
        ("inputs", 0),
        ("hidden", MAX_WIDTH + 1),
        ("layers", MAX_LAYERS + 1),
        ("layers", -1),
        ("outputs", 2.0),
        ("hidden", True),
        ("inputs", None),
    ],
)
def test_config_out_of_range_is_refused(name: str, value: object) -> None:
    """A cell or a size that cannot be is a ModelError that names it."""
    with pytest.raises(ModelError, match=name):
        NetworkConfig(
            **({"cell": "gru", "inputs": 3, "hidden": 8, "layers": 1, "outputs": 2} | {name: value})
        )  # type: ignore[arg-type]


def test_config_at_its_limits_is_accepted() -> None:
    """The largest sizes that are named are allowed."""
    assert NetworkConfig("lstm", MAX_WIDTH, MAX_WIDTH, MAX_LAYERS, MAX_WIDTH).state_width == 2 * 8 * 4096


@pytest.mark.parametrize(("cell", "layers"), SHAPES)
def test_weight_shapes_are_those_of_torch(cell: str, layers: int) -> None:
    """Names and shapes are torch's state_dict, so exported weights fit without renaming."""
    config = NetworkConfig(cell, 6, 16, layers, 3)
    found = {name: tuple(weight.shape) for name, weight in torch_model(config).state_dict().items()}
    assert config.weight_shapes() == found
    assert config.state_width == (2 if cell == "lstm" else 1) * layers * 16


def _without(weights: dict[str, Floats]) -> None:
    del weights["cell.bias_hh_l0"]


def _foreign(weights: dict[str, Floats]) -> None:
    weights["cell.weight_ih_l1"] = weights["cell.weight_ih_l0"]


def _transposed(weights: dict[str, Floats]) -> None:
    weights["readout.weight"] = weights["readout.weight"].T


def _double(weights: dict[str, Floats]) -> None:
    weights["readout.bias"] = weights["readout.bias"].astype(np.float64)  # type: ignore[assignment]


def _nan(weights: dict[str, Floats]) -> None:
    weights["cell.weight_hh_l0"][2, 1] = np.nan


def _huge(weights: dict[str, Floats]) -> None:
    weights["cell.weight_ih_l0"][0, 0] = 5e37  # what one flipped bit makes of a weight


@pytest.mark.parametrize("damage", [_without, _foreign, _transposed, _double, _nan, _huge])
def test_network_refuses_damaged_weights(damage: Callable[[dict[str, Floats]], None]) -> None:
    """A missing, foreign, misshapen, mistyped, non-finite or absurd weight is a ModelError."""
    config = NetworkConfig("gru", 7, 8, 1, 5)
    weights = torch_model(config).export()
    Network(config, weights)
    damage(weights)
    with pytest.raises(ModelError, match="weight"):
        Network(config, weights)


def test_network_keeps_its_own_copy_of_the_weights() -> None:
    """Changing the arrays that a network was built from does not change the network."""
    config = NetworkConfig("gru", 7, 8, 1, 5)
    weights = torch_model(config).export()
    network = Network(config, weights)
    x, state = rows(network, 4)
    expected = network.step(x, state)
    for weight in weights.values():
        weight[...] = 0.0
    np.testing.assert_array_equal(network.step(x, state)[0], expected[0])
    np.testing.assert_array_equal(network.step(x, state)[1], expected[1])


def test_scoring_modules_do_not_import_torch() -> None:
    """Whoever only steps cells and reads packages never pays for torch."""
    script = "import sys, gruard.models.cells, gruard.models.weights; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
