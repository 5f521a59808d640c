"""From residuals to u of state and onset: what is listened to, and that live is the trainer's series."""

from __future__ import annotations

import numpy as np
import pytest
from support_models import random_forecaster

from gruard.models import calibration, evidence, judge
from gruard.models.arena import fresh
from gruard.models.enrolment import distance_series, u_series

LINES, FIELDS, SCALES = 3, 3, len(evidence.SCALES)
LEVEL = LINES - 1
MIX = judge.weights(LINES)
P = np.stack([np.eye(FIELDS, dtype=np.float32) * k for k in (1.0, 0.5, 0.25)])


def device(devices: int = 1) -> dict[str, np.ndarray]:
    """Rows (B, ...) of devices whose evidence is calibrated to med 0.5 and q 1.5."""
    rows = fresh(judge.columns(random_forecaster(FIELDS)), devices)
    rows["median"][:], rows["inverse"][:] = 0.5, 1.0
    rows["evidence"][:] = 0.5
    return rows


def lines(rows: int, seed: int = 0) -> np.ndarray:
    """Residuals (E, T, F)."""
    return np.random.default_rng(seed).standard_normal((LINES, rows, FIELDS)).astype(np.float32)


def step(rows: dict[str, np.ndarray], line: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """u (B, 2) of one reading, line (E, B, F)."""
    seen = np.ones(line.shape[1:], bool) if mask is None else mask
    return judge.judge(rows, line, seen, P, MIX)[0]


def test_weights_of_each_mean_sum_to_one() -> None:
    """Both means are means, for one horizon and for several."""
    for count in (2, 3, 4):
        weights = judge.weights(count)
        assert weights.shape == (count * SCALES, 2)
        np.testing.assert_allclose(weights.sum(axis=0), 1.0, rtol=1e-6)


def test_weights_state_hears_residuals_and_onset_hears_short_scales() -> None:
    """The level does not keep the state up, and no onset comes from a mean of sixty readings."""
    state, onset = MIX.reshape(LINES, SCALES, 2).transpose(2, 0, 1)  # (E, K) each
    assert not state[LEVEL].any()
    assert (state[0] > 0).all()
    assert (state[1] > 0).sum() >= 2
    long = np.array(evidence.SCALES) > judge.ONSET_SCALE
    assert not onset[:, long].any()
    assert (onset[:, ~long] > 0).all()


def test_judge_reading_at_its_median_is_no_evidence() -> None:
    """Where every stream stands at its median u is 0."""
    rows = device()
    quiet = np.zeros((LINES, 1, FIELDS), np.float32)
    quiet[:, 0] = 0.5 / np.sqrt(np.diagonal(P, axis1=1, axis2=2))
    np.testing.assert_allclose(step(rows, quiet), 0.0, atol=1e-5)


def test_judge_level_moves_the_onset_and_not_the_state() -> None:
    """A reading far from normal that was foreseen is the beginning of something and no lasting state."""
    line = np.zeros((LINES, 1, FIELDS), np.float32)
    line[LEVEL] = 20.0
    state, onset = step(device(), line)[0]
    assert state == 0.0
    assert onset > 1.0


@pytest.mark.parametrize("horizon", range(LEVEL))
def test_judge_every_horizon_is_heard(horizon: int) -> None:
    """A residual at any one horizon raises the state."""
    line = np.zeros((LINES, 1, FIELDS), np.float32)
    line[horizon] = 20.0
    assert step(device(), line)[0, 0] > 1.0


def test_judge_lasting_residual_keeps_the_state_up_after_it_ends() -> None:
    """The longest scale still speaks of a fault thirty readings later; the onset has forgotten it."""
    rows = device()
    loud, calm = (np.full((LINES, 1, FIELDS), value, np.float32) for value in (10.0, 0.0))
    for _ in range(60):
        step(rows, loud)
    for _ in range(30):
        told = step(rows, calm)
    state, onset = told[0]
    assert state > 1.0
    assert onset < 0.5 * state


def test_judge_evidence_is_the_exponential_mean_of_the_distance() -> None:
    """Scale by scale e moves by alpha towards the new distance."""
    rows, line = device(), lines(1)
    step(rows, line)
    d = evidence.distances(line, np.ones((1, FIELDS), bool), P)[0][:, 0]  # (E,)
    np.testing.assert_allclose(rows["evidence"][0], 0.5 + evidence.ALPHAS * (d[:, None] - 0.5), rtol=1e-5)


def test_judge_parts_remember_which_field_it_was() -> None:
    """A field that stands out for some readings leads its line's contributions, and fades from them after."""
    rows = device()
    line = 0.1 * np.ones((LINES, 1, FIELDS), np.float32)
    line[0, 0, 2] = 5.0
    for _ in range(8):
        step(rows, line)
    assert rows["parts"][0, 0].argmax() == 2
    height = rows["parts"][0, 0, 2]
    for _ in range(60):
        step(rows, 0.1 * np.ones((LINES, 1, FIELDS), np.float32))
    assert rows["parts"][0, 0, 2] < 0.01 * height


def test_judge_missing_reading_says_nothing() -> None:
    """Where no field was seen the distance is 0, whatever stands in the residuals."""
    rows = device()
    step(rows, 100.0 + lines(1), np.zeros((1, FIELDS), bool))
    np.testing.assert_allclose(
        rows["evidence"][0], 0.5 * (1 - evidence.ALPHAS) * np.ones((LINES, 1)), rtol=1e-6
    )


def test_judge_along_a_series_is_what_calibration_computes_at_once() -> None:
    """Live, reading by reading, gives the u that the trainer and enrolment read thresholds from."""
    many = 3.0 * lines(200)
    mask = np.random.default_rng(1).random((200, FIELDS)) < 0.9
    e = distance_series(many, mask, P)  # (T, E, K)
    med, q = (found.reshape(LINES, SCALES) for found in calibration.fit(e.reshape(200, -1)))
    at_once = u_series(e, med, q, MIX)  # (T, 2)
    rows = device()
    rows["median"][0], rows["inverse"][0] = med, calibration.inverse_width(med, q)
    rows["evidence"][0] = e[0]
    live = [step(rows, many[:, t : t + 1], mask[t : t + 1])[0] for t in range(1, 200)]
    np.testing.assert_allclose(live, at_once[1:], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(rows["evidence"][0], e[-1], rtol=1e-4)


def test_judge_batch_equals_each_device_alone() -> None:
    """Devices share whiteners and nothing else."""
    devices = 9
    together, alone = device(devices), [device() for _ in range(devices)]
    for t in range(30):
        line = lines(devices, seed=t)
        told = step(together, line)
        for n in range(devices):
            np.testing.assert_allclose(told[n], step(alone[n], line[:, n : n + 1])[0], atol=1e-6)
    for name, values in together.items():
        np.testing.assert_allclose(values, np.concatenate([a[name] for a in alone]), atol=1e-5, err_msg=name)
