"""Enrolment: from a device's recent readings to its whole state, for new devices and for new weights.

Everything that belongs to one device is fitted here and nowhere else: scaling, the per-field AR, the
residual scales, the calibration, and the hidden state, which is warmed by running the readings through
the live step. Rows that were in alarm teach nothing.

Shapes: N devices, T rows, F fields, E lines of evidence, K scales.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from gruard.models import alarm, baseline_lines, calibration, evidence, judge, linear, memory, onset
from gruard.models.arena import fresh
from gruard.models.errors import ModelError
from gruard.models.history import align, blank, mean_error, rows_to_use

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, MutableMapping, Sequence

    from numpy.typing import NDArray

    from gruard.models.calibration import Budget
    from gruard.models.forecaster import Forecaster
    from gruard.models.history import Aligned, History
    from gruard.models.loan import Loan

    Floats: TypeAlias = NDArray[np.float32]
    State: TypeAlias = dict[str, NDArray[Any]]

#: The model may take over when its held-back error is at most this multiple of the baseline's. Far from 1:
#: forecast skill does not rank detectors, and a baseline that follows every fault forecasts it well.
MAY_LOSE = 2.5
#: The level above which an alarm opens is widened by 1 + UNSEEN / T after T rows that nobody vouches for:
#: fifty readings of a machine that switches once a minute have not seen all it does, and a false alarm on
#: the first evening is never forgiven.
UNSEEN = 100.0
#: Another head than the shared one forecasts a newcomer with at most this share of its error.
HEAD_BETTER = 0.8
#: What a round may have fixed for a device lies within: readings end at 1e15, and scales begin far above.
SMALLEST_FIT, LARGEST_FIT = 1e-12, 1e16


@dataclass(frozen=True, slots=True)
class Fitted:
    """What the trainer fixed for a device it saw: see `models.training.candidate`."""

    location: NDArray[np.float64]  # (F,)
    scale: NDArray[np.float64]  # (F,)
    median: Floats  # (E, K)
    quantile: Floats  # (E, K)
    level: float
    skill: float
    head: int = 0  # whose weights forecast it: 0 = the shared ones


def fitted_devices(names: tuple[str, ...], tensors: Mapping[str, NDArray[Any]]) -> dict[str, Fitted]:
    """What a package's tensors fix for each device: the inverse of what `train` stored.

    Raises:
        ModelError: one of them is absent, of another shape, or holds a number that no round could find.
    """
    precision = tensors.get("precision")
    if precision is None or precision.ndim != 3:
        raise ModelError("tensor precision is missing or no stack of matrices")
    lines, fields, _ = precision.shape
    per_field, per_scale = (fields,), (lines, len(evidence.SCALES))
    found = {
        "location": _device_tensor(tensors, "location", (len(names), *per_field), -LARGEST_FIT, LARGEST_FIT),
        "scale": _device_tensor(tensors, "scale", (len(names), *per_field), SMALLEST_FIT, LARGEST_FIT),
        "median": _device_tensor(tensors, "median", (len(names), *per_scale), 0.0, LARGEST_FIT),
        "quantile": _device_tensor(tensors, "quantile", (len(names), *per_scale), 0.0, LARGEST_FIT),
        "level": _device_tensor(tensors, "level", (len(names),), SMALLEST_FIT, LARGEST_FIT),
        "skill": _device_tensor(tensors, "skill", (len(names),), -LARGEST_FIT, 1.0),
    }
    heads = np.zeros(len(names), np.int64)
    if "device.head" in tensors:
        kept = tensors.get("head.weights", np.zeros(0))
        heads = _device_tensor(tensors, "head", (len(names),), 0, kept.shape[0] if kept.ndim else 0)
        if heads.dtype.kind != "i":
            raise ModelError("tensor device.head holds no whole numbers")
    return {
        name: Fitted(
            found["location"][n],
            found["scale"][n],
            found["median"][n],
            found["quantile"][n],
            float(found["level"][n]),
            float(found["skill"][n]),
            int(heads[n]),
        )
        for n, name in enumerate(names)
    }


def _device_tensor(
    tensors: Mapping[str, NDArray[Any]], name: str, shape: tuple[int, ...], low: float, high: float
) -> NDArray[Any]:
    tensor = tensors.get(f"device.{name}")
    # Written so that NaN fails.
    if tensor is None or tensor.shape != shape or not ((tensor >= low) & (tensor <= high)).all():
        raise ModelError(f"tensor device.{name} is not an array of shape {shape} from {low:g} to {high:g}")
    return tensor


def enrol(
    histories: Sequence[History],
    fitted: Sequence[Fitted | None],
    forecaster: Forecaster | None,
    budget: Budget,
    may_be_ready: NDArray[np.bool_],
    loan: Loan | None = None,
) -> tuple[State, NDArray[np.bool_]]:
    """State rows (N, ...) of N devices from their histories, and of which the model is in charge (N,).

    Every history has at least one row. A side that is in charge of none of the devices gives no rows. With a
    `loan`, devices that no round has fitted borrow: the model that is put in charge of them knows little.
    """
    stands = [loan if one is None else one for one in fitted]
    state = blank(histories, [_scaling_of(one, h) for one, h in zip(stands, histories, strict=True)])
    readings = align(state, histories)
    ready = np.array([one is not None and one.skill >= 1.0 - MAY_LOSE for one in fitted]) & may_be_ready
    unsure = np.array([one is None for one in fitted]) & may_be_ready
    lines = mix = None
    if forecaster is not None and (ready.any() or unsure.any()):
        rows = fresh(memory.columns(forecaster) | judge.columns(forecaster), len(histories))
        if forecaster.heads:
            rows["head"][:] = [
                nearest_head(readings, n, forecaster) if one is None else one.head
                for n, one in enumerate(fitted)
            ]
        lines = replay(rows, readings, forecaster)
        state |= rows
    if lines is None or not ready.all():
        rows = fresh(baseline_lines.columns(readings.z.shape[2]), len(histories))
        mix = replay_baseline(rows, readings)
        state |= rows
    if lines is not None and mix is not None:
        for n in np.flatnonzero(unsure).tolist():
            ready[n] = held_back_skill(readings, lines[0][:, n], mix[:, n], histories[n], n) >= 1.0 - MAY_LOSE
    state |= fresh(alarm.columns() | onset.columns(), len(histories))
    state |= {"level": np.zeros(len(histories), np.float32), "glow": np.zeros(len(histories), np.float32)}
    for n, (history, one) in enumerate(zip(histories, stands, strict=True)):
        own = slice(len(readings.valid) - len(history.time_s), None)
        if ready[n] and lines is not None and forecaster is not None:
            u = _calibrate_model(state, n, lines[:, own, n], readings.mask[own, n], history, one, forecaster)
        elif mix is not None:
            u = _calibrate_baseline(state, n, readings.z[own, n], readings.mask[own, n], mix[own, n], history)
            one = None  # noqa: PLW2901 -- what the trainer fixed or the group lends is for the model
        _settle(state, n, u, history, budget, one)
    return state, ready


def _scaling_of(
    one: Fitted | Loan | None, history: History
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    if isinstance(one, Fitted):
        return one.location, one.scale
    return None if one is None else one.scaling(history)


def replay(rows: State, readings: Aligned, forecaster: Forecaster) -> Floats:
    """Run aligned readings through the live step; `rows` ends as the memory after the newest one.

    Returns by line how each reading differs from its forecasts and, in the last, from the learned normal,
    (E, T, N, F). The first rows, whose forecasts were not made from readings, differ by 0.
    """
    kept = memory.columns(forecaster)
    lines = np.zeros((len(forecaster.precision), *readings.z.shape), np.float32)

    def step(moving: State, t: int, here: NDArray[np.int64]) -> None:
        lines[:, t, here], _ = memory.advance(
            moving,
            readings.z[t, here],
            readings.mask[t, here],
            readings.gap_ratio[t, here],
            readings.time_s[t, here],
            forecaster,
        )

    _walk({name: rows[name] for name in kept}, readings, memory.begin, step)
    age = np.cumsum(readings.valid, axis=0)  # (T, N)
    for x, h in enumerate(forecaster.horizons):
        lines[x, age < h + forecaster.order] = 0.0
    return lines


def replay_baseline(rows: State, readings: Aligned) -> Floats:
    """Run aligned readings through the baseline's step: its mixed forecasts (T, N, F). Changes `rows`."""
    mix = np.zeros_like(readings.z)

    def step(moving: State, t: int, here: NDArray[np.int64]) -> None:
        mix[t, here] = baseline_lines.advance(moving, readings.z[t, here], readings.mask[t, here]).mix

    _walk(rows, readings, baseline_lines.begin, step)
    return mix


def _walk(
    rows: State,
    readings: Aligned,
    begin: Callable[[MutableMapping[str, NDArray[Any]], Floats], None],
    step: Callable[[State, int, NDArray[np.int64]], None],
) -> None:
    """Take the devices that have a reading through `step`, row by row; those that start through `begin`."""
    for t, valid in enumerate(readings.valid):
        here = np.flatnonzero(valid)  # (B,)
        whole = len(here) == readings.valid.shape[1]
        moving = rows if whole else {name: values[here] for name, values in rows.items()}
        if t == 0 or not readings.valid[t - 1, here].all():
            begun = np.flatnonzero(~readings.valid[t - 1, here]) if t else np.arange(len(here))
            started = {name: values[begun] for name, values in moving.items()}
            begin(started, readings.z[t, here[begun]])
            for name, values in started.items():
                moving[name][begun] = values
        step(moving, t, here)
        if not whole:
            for name, values in moving.items():
                rows[name][here] = values


def held_back_skill(readings: Aligned, residual: Floats, mix: Floats, history: History, n: int) -> float:
    """1 - error / the baseline's, on device n's held-back rows; residual of the shortest horizon (T, F)."""
    own = slice(len(readings.valid) - len(history.time_s), None)
    _, held, _ = rows_to_use(history.normal)
    z, mask = readings.z[own, n], readings.mask[own, n]
    errors = [mean_error(r[held], mask[held]) for r in (residual[own], z - mix[own])]
    return 1.0 - errors[0] / max(errors[1], 1e-6)


def nearest_head(readings: Aligned, n: int, forecaster: Forecaster) -> int:
    """The head that forecasts all rows of device n best; the shared one unless another is clearly better."""
    own = slice(int(readings.valid[:, n].argmax()), None)
    z, mask = readings.z[own, n], readings.mask[own, n].copy()
    lags = linear.lagged(z, linear.LAGS)  # (T, LAGS, F): what was known before each row
    mask[: forecaster.order] = False
    errors = [
        mean_error(z - forecaster.forecast(lags, np.full(len(z), head))[:, 0], mask)
        for head in range(forecaster.heads + 1)
    ]
    best = int(np.argmin(errors))
    return best if errors[best] < HEAD_BETTER * errors[0] else 0


def distance_series(lines: Floats, mask: NDArray[np.bool_], P: Floats) -> Floats:
    """Evidence of one device along a series: lines (E, T, F), mask (T, F), P (E, F, F) -> e (T, E, K)."""
    return smoothed(evidence.distances(lines, mask, P)[0].T)


def smoothed(d: Floats) -> Floats:
    """Evidence d (T, E) of one device at every scale -> (T, E, K)."""
    return evidence.smooth_series(d[:, None], np.ones((len(d), 1), bool))[:, 0]


def u_series(e: Floats, med: Floats, q: Floats, weights: Floats) -> Floats:
    """u of state and onset along a series: e (T, E, K) -> (T, 2)."""
    u = calibration.exceedance(e, med, calibration.inverse_width(med, q))
    return calibration.combine(u.reshape(len(u), -1), weights)


def _calibrate_model(
    state: State,
    n: int,
    lines: Floats,
    mask: NDArray[np.bool_],
    history: History,
    known: Fitted | Loan | None,
    forecaster: Forecaster,
) -> Floats:
    """Fit what turns the model's evidence of device n into a score; its u (T, 2) so far."""
    e = distance_series(lines, mask, forecaster.precision)
    use, held, _ = rows_to_use(history.normal)
    med, q = _fit_streams(e, e, use, held)
    if isinstance(known, Fitted):
        # The trainer judged older rows: what the device did since, without an alarm, is normal too.
        med, q = known.median, np.maximum(known.quantile, q)
    elif known is not None:
        med, q = known.thresholds(med, q, len(history.time_s))
    newest = evidence.distances(lines[:, -16:], mask[-16:], forecaster.precision)[1]  # (E, 16, F)
    state["evidence"][n], state["parts"][n] = e[-1], newest.mean(axis=1)
    state["median"][n], state["inverse"][n] = med, calibration.inverse_width(med, q)
    return u_series(e, med, q, judge.weights(len(lines)))


def _calibrate_baseline(
    state: State, n: int, z: Floats, mask: NDArray[np.bool_], mix: Floats, history: History
) -> Floats:
    """Fit what turns the baseline's evidence of device n into a score; its u (T, 2) so far."""
    use, held, cut = rows_to_use(history.normal)
    held_weights = linear.fit_ar(z[:cut], mask[:cut]) if cut > 2 * linear.LAGS else None
    state["ar_weights"][n] = linear.fit_ar(z, mask)
    ar = _ar_forecasts(z, state["ar_weights"][n])
    ar_held = ar if held_weights is None else _ar_forecasts(z, held_weights)
    state["mix_sigma"][n] = _sigma((z - mix)[use], mask[use])
    state["ar_sigma"][n] = _sigma((z - ar_held)[held], mask[held])
    sigmas = {name: state[name][n : n + 1] for name in ("mix_sigma", "ar_sigma")}
    d, parts = baseline_lines.lines(sigmas, baseline_lines.Step(mix, ar), z, mask)  # (T, E), (T, E, F)
    d_held = baseline_lines.lines(sigmas, baseline_lines.Step(mix, ar_held), z, mask)[0]
    e = smoothed(d)
    med, q = _fit_streams(e, smoothed(d_held), use, held)
    state["base_evidence"][n], state["base_parts"][n] = e[-1], parts[-16:].mean(axis=0)
    state["base_median"][n], state["base_inverse"][n] = med, calibration.inverse_width(med, q)
    return u_series(e, med, q, baseline_lines.WEIGHTS)


def _fit_streams(
    e: Floats, e_held: Floats, use: NDArray[np.bool_], held: NDArray[np.bool_]
) -> tuple[Floats, Floats]:
    """Median and upper quantile of every stream (E, K), from e (T, E, K) and its honest twin."""
    med, q = calibration.fit(e[use].reshape(use.sum(), -1), e_held[held].reshape(held.sum(), -1))
    return med.reshape(e.shape[1:]), q.reshape(e.shape[1:])


def _settle(
    state: State,
    n: int,
    u: Floats,
    history: History,
    budget: Budget,
    known: Fitted | Loan | None,
) -> None:
    """Start alarm, onset and afterglow of device n from its u (T, 2) so far."""
    alarm.reset(state["alarm"][n])
    alarm.settle(state["alarm"][n], u[:, 0])
    onset.settle(state["onset_counts"][n], state["onset"][n], u[:, 1])
    state["glow"][n] = alarm.mean_after(calibration.glowing(u[:, 0]), float(calibration.GLOW))
    if isinstance(known, Fitted):
        state["level"][n] = known.level
        return
    _, held, _ = rows_to_use(history.normal)
    rate = budget.rate(float(state["usual_gap_s"][n]))
    level = calibration.alarm_level(alarm.slow_mean(u[:, 0])[held], rate, budget.least_level)
    level *= unseen_factor(len(u))
    state["level"][n] = level if known is None else known.alarm_level(level, len(u))


def unseen_factor(rows: int) -> float:
    """What an alarm level is widened by after so many rows that nobody vouches for."""
    return 1.0 + UNSEEN / rows


def _ar_forecasts(z: Floats, weights: Floats) -> Floats:
    """AR forecasts of a whole series: z (T, F), weights (F, P) -> (T, F)."""
    every = np.broadcast_to(weights, (len(z), *weights.shape))  # (T, F, P)
    return linear.forecast_ar(linear.lagged(z, linear.LAGS), every)


def _sigma(r: Floats, mask: NDArray[np.bool_]) -> Floats:
    """Scale of residuals r (T, F): rms of what was seen, held within +-5, plus a floor. -> (F,)."""
    squared = np.where(mask, np.square(np.clip(r, -5.0, 5.0)), 0.0).sum(axis=0)
    return np.asarray(np.sqrt(squared / np.maximum(mask.sum(axis=0), 1)) + 0.05, np.float32)
