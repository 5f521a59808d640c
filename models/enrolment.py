"""Enrolment: from a device's recent readings to its whole state, for new devices and for new weights.

Everything that belongs to one device is fitted here and nowhere else: scaling, the per-field AR, the
residual scales, the calibration, and the hidden state, which is warmed by running the readings through
the live step. Rows that were in alarm teach nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gruard.models import calibration, evidence, linear, scaling
from gruard.models.lines import (
    BASELINE_LINES,
    LINES,
    MODEL_LINES,
    Step,
    advance,
    begin,
    columns,
    lines,
)
from gruard.models.quantiles import quantile

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from gruard.models.forecaster import Forecaster

#: Share of the rows that fit; the rest is held back to calibrate.
FIT_SHARE = 0.6
#: Share of the rows that only warm the state up.
WARM_SHARE = 1 / 3
#: The model may take over when its held-back error is at most this multiple of the baseline's. Not 1:
#: forecast skill does not rank detectors, and a baseline that follows every fault forecasts it well.
MAY_LOSE = 1.25
#: A device fitted on T rows has its alarm levels widened by 1 + UNSEEN / T: fifty readings of a machine that
#: switches once a minute have not seen all it does, and a false alarm on the first evening is never forgiven.
UNSEEN = 200.0


@dataclass(frozen=True, slots=True)
class History:
    """Recent readings of one device, oldest first."""

    time_s: NDArray[np.float64]  # (T,)
    values: NDArray[np.float64]  # (T, F) physical units, NaN = missing
    normal: NDArray[np.bool_]  # (T,) false where the device was in alarm


@dataclass(frozen=True, slots=True)
class Fitted:
    """What the trainer fixed for a device it saw: see `models.training.candidate`."""

    location: NDArray[np.float64]  # (F,)
    scale: NDArray[np.float64]  # (F,)
    median: NDArray[np.float32]  # (len(MODEL_LINES), K)
    quantile: NDArray[np.float32]  # (len(MODEL_LINES), K)
    level: float
    skill: float


@dataclass(frozen=True, slots=True)
class Aligned:
    """Readings of N devices on one axis, padded in front: arrays (T, N, ...)."""

    valid: NDArray[np.bool_]  # (T, N) the device has a reading there
    mask: NDArray[np.bool_]  # (T, N, F) and the field was seen in it
    z: NDArray[np.float32]  # (T, N, F) sigma, filled forward
    gap_s: NDArray[np.float64]  # (T, N) since the reading before


def usual_gap(time_s: NDArray[np.float64]) -> float:
    """The median time between readings in seconds; 1 where it cannot be told."""
    gaps = np.diff(time_s)
    gaps = gaps[gaps > 0]
    return float(quantile(gaps, 0.5)) if len(gaps) else 1.0


def enrol(
    histories: Sequence[History],
    fitted: Sequence[Fitted | None],
    forecaster: Forecaster | None,
    alarms_per_second: float,
) -> tuple[dict[str, NDArray[Any]], NDArray[np.float64]]:
    """State rows (N, ...) of N devices from their histories, and the model's held-back skill (N,).

    Skill is 1 - model error / baseline error, NaN without a model. Every history has at least one row.
    """
    rows = blank(histories, fitted, 0 if forecaster is None else forecaster.state_width)
    readings = align(rows, histories)
    forecasts = replay(rows, readings, forecaster)
    skill = np.array(
        [
            _calibrate(rows, readings, forecasts, n, history, known, forecaster, alarms_per_second)
            for n, (history, known) in enumerate(zip(histories, fitted, strict=True))
        ]
    )
    return rows, skill


def blank(
    histories: Sequence[History], fitted: Sequence[Fitted | None], state_width: int
) -> dict[str, NDArray[Any]]:
    """Rows (N, ...) that know their scaling and clock, with nothing remembered yet."""
    fields = histories[0].values.shape[1]
    rows = {
        name: np.full((len(histories), *column.shape), column.fill, column.dtype)
        for name, column in columns(fields, state_width).items()
    }
    for n, (history, known) in enumerate(zip(histories, fitted, strict=True)):
        if known is None:
            normal = history.normal if history.normal.sum() >= linear.LAGS else slice(None)
            rows["location"][n], rows["scale"][n] = scaling.fit(history.values[normal])
        else:
            rows["location"][n], rows["scale"][n] = known.location, known.scale
        rows["usual_gap_s"][n] = usual_gap(history.time_s)
        rows["last_time_s"][n] = history.time_s[-1]
        rows["count"][n] = len(history.time_s)
    return rows


def fitted_devices(names: tuple[str, ...], tensors: Mapping[str, NDArray[Any]]) -> dict[str, Fitted]:
    """What a package's tensors fix for each device: the inverse of what `train` stored."""
    return {
        name: Fitted(
            tensors["device.location"][n],
            tensors["device.scale"][n],
            tensors["device.median"][n],
            tensors["device.quantile"][n],
            float(tensors["device.level"][n]),
            float(tensors["device.skill"][n]),
        )
        for n, name in enumerate(names)
    }


def align(rows: Mapping[str, NDArray[Any]], histories: Sequence[History]) -> Aligned:
    """Bring N histories to one time axis: sigma, newest last, missing values filled forward."""
    longest = max(len(h.time_s) for h in histories)
    shape = (longest, len(histories), histories[0].values.shape[1])
    valid, gap_s = np.zeros(shape[:2], bool), np.ones(shape[:2])
    z = np.full(shape, np.nan, np.float32)
    for n, history in enumerate(histories):
        start = longest - len(history.time_s)
        valid[start:, n] = True
        z[start:, n] = scaling.to_sigma(history.values, rows["location"][n], rows["scale"][n])
        gap_s[start + 1 :, n] = np.diff(history.time_s)
        gap_s[start, n] = rows["usual_gap_s"][n]
    mask = np.isfinite(z)
    z[0] = np.where(mask[0], z[0], 0.0)
    for t in range(1, longest):
        z[t] = np.where(mask[t], z[t], z[t - 1])
    return Aligned(valid, mask, z, gap_s)


def normal_rows(histories: Sequence[History], total: int) -> NDArray[np.bool_]:
    """Which rows of the common axis (T, N) are readings outside an alarm."""
    normal = np.zeros((total, len(histories)), bool)
    for n, history in enumerate(histories):
        normal[total - len(history.normal) :, n] = history.normal
    return normal


def replay(
    rows: dict[str, NDArray[Any]], readings: Aligned, forecaster: Forecaster | None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Run aligned readings through the live step; `rows` ends as the state after the newest one.

    Returns the forecasts of baseline and model, (T, N, F) each, in sigma.
    """
    mix, model = np.zeros_like(readings.z), np.zeros_like(readings.z)
    before = np.zeros(readings.valid.shape[1], bool)  # (N,)
    for t, valid in enumerate(readings.valid):
        here = np.flatnonzero(valid)  # (B,)
        moving = {name: values[here] for name, values in rows.items()}
        fresh = ~before[here]
        if fresh.any():
            started = {name: values[fresh] for name, values in moving.items()}
            begin(started, readings.z[t, here[fresh]])
            for name, values in started.items():
                moving[name][fresh] = values
        step = advance(
            moving, readings.z[t, here], readings.mask[t, here], readings.gap_s[t, here], forecaster
        )
        mix[t, here], model[t, here] = step.mix, step.model
        for name, values in moving.items():
            rows[name][here] = values
        before = valid
    return mix, model


def _ar_forecasts(z: NDArray[np.float32], weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """AR forecasts of a whole series: z (T, F), weights (F, P) -> (T, F)."""
    every = np.broadcast_to(weights, (len(z), *weights.shape))  # (T, F, P)
    return linear.forecast_ar(linear.lagged(z, linear.LAGS), every)


def _sigma(r: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Scale of residuals r (T, F): rms of what was seen, held within +-5, plus a floor. -> (F,)."""
    squared = np.where(mask, np.square(np.clip(r, -5.0, 5.0)), 0.0).sum(axis=0)
    return np.asarray(np.sqrt(squared / np.maximum(mask.sum(axis=0), 1)) + 0.05, np.float32)


def _calibrate(
    rows: dict[str, NDArray[Any]],
    readings: Aligned,
    forecasts: tuple[NDArray[np.float32], NDArray[np.float32]],
    n: int,
    history: History,
    known: Fitted | None,
    forecaster: Forecaster | None,
    alarms_per_second: float,
) -> float:
    """Fit what turns device n's evidence into a score. Returns the model's held-back skill."""
    total = len(history.time_s)
    own = slice(len(readings.valid) - total, None)
    z, mask = readings.z[own, n], readings.mask[own, n]  # (T, F)
    mix, model = forecasts[0][own, n], forecasts[1][own, n]  # (T, F)
    use, held, cut = rows_to_use(history.normal)
    held_weights = linear.fit_ar(z[:cut], mask[:cut]) if cut > 2 * linear.LAGS else None
    rows["ar_weights"][n] = linear.fit_ar(z, mask)
    ar = _ar_forecasts(z, rows["ar_weights"][n])
    ar_held = ar if held_weights is None else _ar_forecasts(z, held_weights)
    rows["mix_sigma"][n] = _sigma((z - mix)[use], mask[use])
    rows["ar_sigma"][n] = _sigma((z - ar_held)[held], mask[held])

    sigmas = {name: rows[name][n : n + 1] for name in ("mix_sigma", "ar_sigma")}
    d, parts = lines(sigmas, Step(mix, ar, model, 0), z, mask, forecaster)  # (T, E), (T, E, F)
    d_held = lines(sigmas, Step(mix, ar_held, model, 0), z, mask, forecaster)[0]
    e, e_held = smoothed(d), smoothed(d_held)  # (T, E, K)
    rows["evidence"][n] = e[-1]
    rows["parts"][n] = parts[-evidence.SCALES[2] :].mean(axis=0)
    med, q = calibration.fit(e[use].reshape(use.sum(), -1), e_held[held].reshape(held.sum(), -1))
    rows["median"][n], rows["quantile"][n] = med.reshape(LINES, -1), q.reshape(LINES, -1)
    skill = float("nan")
    if forecaster is not None:
        errors = [mean_error((z - f)[held], mask[held]) for f in (mix, model)]
        rows["errors_mean"][n] = errors
        skill = 1.0 - errors[1] / max(errors[0], 1e-6)
    if known is not None:
        model_lines = list(MODEL_LINES)
        rows["median"][n, model_lines] = known.median
        # The trainer judged older rows: what the device did since, without an alarm, is normal too.
        rows["quantile"][n, model_lines] = np.maximum(known.quantile, rows["quantile"][n, model_lines])
        skill = known.skill
    rate = alarms_per_second * rows["usual_gap_s"][n]
    for side, chosen in enumerate((BASELINE_LINES, MODEL_LINES)):
        which = list(chosen)
        u = calibration.exceedance(
            e_held[:, which], rows["median"][n, which], rows["quantile"][n, which]
        ).reshape(total, -1)  # (T, S)
        level = calibration.alarm_level(calibration.combine(u[held]), rate)
        rows["level"][n, side] = level * (1.0 + UNSEEN / total)
    if known is not None:
        rows["level"][n, 1] = known.level
    return skill


def rows_to_use(normal: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.bool_], int]:
    """Which of T rows calibrate, which of them are held back, and where the held-back part begins."""
    total = len(normal)
    warm, cut = int(total * WARM_SHARE), int(total * FIT_SHARE)
    # A device that was in alarm for nearly all of its history has no better normal than that.
    use = normal.copy() if normal[cut:].sum() >= linear.LAGS else np.ones(total, bool)
    held = use.copy()
    use[:warm], held[:cut] = False, False
    return use, held, cut


def smoothed(d: NDArray[np.float32]) -> NDArray[np.float32]:
    """Evidence d (T, E) of one device at every scale -> (T, E, K)."""
    return evidence.smooth_series(d[:, None], np.ones((len(d), 1), bool))[:, 0]


def mean_error(r: NDArray[np.float32], mask: NDArray[np.bool_]) -> float:
    """Mean |r| in sigma, each held within 5, over what was seen; 1 where nothing was."""
    return float(np.abs(np.clip(r, -5.0, 5.0))[mask].mean()) if mask.any() else 1.0
