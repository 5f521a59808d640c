"""Heads: devices that the shared weights do not fit are forecast by weights of their own kind."""

from __future__ import annotations

import numpy as np
import pytest
from support_engine import Bench, readings_of
from support_models import quick_candidate, random_tensors, sealed_model

from gruard.daemon.core.engine import group_name
from gruard.models.enrolment import fitted_devices
from gruard.models.errors import ModelError
from gruard.models.forecaster import Forecaster
from gruard.models.history import History

FIELDS = ("f0", "f1", "f2")
GROUP = group_name("plant", FIELDS)


def kind(sign: float, seed: int, rows: int = 400) -> History:
    """A device in which a field says what the next one will do, or the opposite of it."""
    rng = np.random.default_rng(seed)
    x = np.zeros((rows, 3))
    for t in range(1, rows):
        x[t] = sign * 0.9 * np.roll(x[t - 1], 1) + 0.3 * rng.standard_normal(3)
    return History(np.arange(rows, dtype=float), 20 + x, np.ones(rows, bool))


def fleet(*signs: float) -> dict[str, History]:
    return {f"d{n}": kind(sign, n) for n, sign in enumerate(signs)}


def test_train_keeps_one_head_for_a_group_of_one_kind() -> None:
    """Chance makes no head: none is stored, and nothing is looked up."""
    candidate = quick_candidate(fleet(1, 1, 1, 1))
    assert not any("head" in name for name in candidate.tensors)
    assert candidate.report["heads"] == 0


@pytest.mark.parametrize(
    ("signs", "heads"),
    [((1, 1, 1, 1, -1), [0, 0, 0, 0, 1]), ((1, 1, -1, -1, -1), [1, 1, 0, 0, 0])],
)
def test_train_splits_devices_that_disagree(signs: tuple[float, ...], heads: list[int]) -> None:
    """A device of another kind gets a head; of two kinds the larger one keeps the shared weights."""
    candidate = quick_candidate(fleet(*signs))
    assert candidate.tensors["device.head"].tolist() == heads
    alone = quick_candidate(fleet(*signs[:2]))
    assert candidate.held_back_error == pytest.approx(alone.held_back_error, rel=0.1)


def test_forecast_takes_each_devices_own_head() -> None:
    """In one batch and in any order, a device's forecast is that of a model with its head alone."""
    config, tensors = random_tensors()
    heads = np.stack([-tensors["var.weights"], 2 * tensors["var.weights"]])
    gates = np.stack([tensors["gate"], 0 * tensors["gate"]])
    both = Forecaster(config, tensors | {"head.weights": heads, "head.gate": gates})
    rng = np.random.default_rng(1)
    lags, of = rng.standard_normal((5, 8, 3)).astype(np.float32), np.array([2, 0, 1, 0, 2])
    inputs, hidden = rng.standard_normal((5, 7)).astype(np.float32), np.zeros((5, 8), np.float32)
    ahead, correction = both.forecast(lags, of), both.remember(inputs, hidden, of)[0]
    for n, head in enumerate(of.tolist()):
        alone = tensors if head == 0 else {"var.weights": heads[head - 1], "gate": gates[head - 1]}
        one = Forecaster(config, tensors | alone)
        np.testing.assert_allclose(ahead[n : n + 1], one.forecast(lags[n : n + 1]), rtol=1e-5)
        told = one.remember(inputs[n : n + 1], hidden[n : n + 1])[0]
        np.testing.assert_allclose(correction[n : n + 1], told, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("heads", [[0, 2], [-1, 0], [0.5, 0]])
def test_fitted_devices_refuse_a_head_that_is_not_there(heads: list[float]) -> None:
    """A number beyond the heads of the package would be somebody else's weights."""
    candidate = quick_candidate(fleet(1, -1))
    broken = candidate.tensors | {"device.head": np.array(heads), "head.weights": np.zeros((1, 13, 6))}
    with pytest.raises(ModelError, match=r"device\.head"):
        fitted_devices(candidate.devices, broken)


def test_devices_are_shown_the_head_that_they_are_forecast_by() -> None:
    """The one device of a head has its own; a newcomer takes the head that fits it."""
    bench = Bench()
    for name, history in fleet(1, 1, 1, -1).items():
        bench.feed(readings_of(name, history.values))
    histories = {name: bench.history(name, FIELDS, 400) for name in bench.engine.devices}
    due = bench.engine.adopt(GROUP, sealed_model(GROUP, histories))
    bench.engine.enrol({event.device: histories[event.device] for event in due})
    shown = {name: device.head for name, device in bench.engine.devices.items()}
    assert shown == {"d0": "shared", "d1": "shared", "d2": "shared", "d3": "own"}
    bench.feed(readings_of("alike", kind(1, 7, 60).values))
    bench.feed(readings_of("other", kind(-1, 8, 60).values))
    assert bench.engine.devices["alike"].head == "shared"
    assert bench.engine.devices["other"].head == "cluster 1"
    assert bench.engine.devices["other"].phase == "ready"


def test_heads_last_through_a_checkpoint() -> None:
    """A restored device is forecast by the same head."""
    benches = []
    for _ in range(2):
        bench = Bench()
        for name, history in fleet(1, 1, 1, -1).items():
            bench.feed(readings_of(name, history.values))
        histories = {name: bench.history(name, FIELDS, 400) for name in bench.engine.devices}
        due = bench.engine.adopt(GROUP, sealed_model(GROUP, histories))
        bench.engine.enrol({event.device: histories[event.device] for event in due})
        benches.append(bench)
    whole, restored = benches
    whole.feed(readings_of("d3", kind(-1, 3, 420).values[400:], 1400.0))
    restored.engine.restore(list(whole.engine.checkpoint(0)))
    more = readings_of("d3", kind(-1, 5, 40).values, 1500.0)
    told = [[event.score for event in each.feed(more) if hasattr(event, "onset")] for each in benches]
    assert told[0] == told[1]
    assert restored.engine.devices["d3"].head == "own"
