"""From the histories of a group to a candidate: shared weights plus what it fixes for each device it saw.

The order matters. Rows are split in time; a linear forecaster fitted on the first part leaves residuals
that are honest on the rest; the recurrent net learns to predict those residuals; the gate keeps it, field
by field, only where it helps on held-back rows; and the calibration is read off rows that the scoring
model was not fitted on. See `gruard.models.calibration` for why.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from gruard.models import calibration, evidence, linear, scaling
from gruard.models.cells import NetworkConfig
from gruard.models.enrolment import (
    FIT_SHARE,
    WARM_SHARE,
    Aligned,
    Fitted,
    History,
    align,
    blank,
    mean_error,
    normal_rows,
    replay,
    smoothed,
)
from gruard.models.errors import ModelError
from gruard.models.forecaster import Forecaster, cell_inputs, input_width
from gruard.models.lines import MODEL_LINES
from gruard.models.training.fit import FitConfig, fit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from gruard.models.training.fit import FitResult, Progress

#: Fewest rows a device must have to take part, and fewest on either side of the cut.
FEWEST_ROWS, FEWEST_HELD = 60, 16
#: Targets of the net are residuals in units of their own scale, held within this.
TARGET_LIMIT = 8.0
#: Caution of the gate: the net is trusted a little less than its held-back regression says.
GATE_CAUTION = 1.1
#: The share of the squared error of n rows that a useless correction explains stays under LUCK / n in 99 of
#: 100 cases (chi squared, 1 degree of freedom); the net must explain more to be heard in a field.
LUCK = 6.6


@dataclass(frozen=True, slots=True)
class TrainingOptions:
    """How a candidate is made."""

    fit: FitConfig
    alarms_per_second: float


@dataclass(frozen=True, slots=True)
class Candidate:
    """A trained model: tensors as `gruard.models.weights` stores them, and how it did."""

    config: NetworkConfig
    tensors: dict[str, NDArray[Any]]
    devices: tuple[str, ...]  # order of the device.* tensors
    skill: float  # mean over devices: 1 - held-back error / the baseline's
    held_back_error: float  # mean |residual| in sigma on rows that nothing here was fitted on
    rows: int
    report: dict[str, float | int | str]


@dataclass(frozen=True, slots=True)
class Panel:
    """N devices' rows, aligned at the newest: arrays (T, N, ...), padded in front."""

    names: tuple[str, ...]
    histories: list[History]
    readings: Aligned
    rows: dict[str, NDArray[Any]]  # scaling and clock of each device
    normal: NDArray[np.bool_]  # (T, N) the device was not in alarm
    seen: NDArray[np.bool_]  # (T, N, F) was seen, in a normal row
    lags: NDArray[np.float32]  # (T, N, LAGS, F)
    cut: int  # rows from here on are held back, of every device


def train(
    histories: Mapping[str, History],
    options: TrainingOptions,
    progress: Callable[[Progress], None] | None = None,
    *,
    clock: Callable[[], float] | None = None,
) -> Candidate:
    """Train a candidate on the histories of a group's devices.

    `clock` gives monotonic seconds, for the wall limit of the fit; without one there is no limit.

    Raises:
        ModelError: no device has enough rows.
    """
    panel = _panel(_long_enough(histories))
    fields = panel.seen.shape[2]
    early = _fit_var(panel, panel.cut)  # (P, F): honest on the rows held back
    late = _fit_var(panel, len(panel.seen))
    early_residual = panel.readings.z - _var_forecasts(panel, early)  # (T, N, F)
    scale = _rms(early_residual[: panel.cut], panel.seen[: panel.cut])  # (F,)
    result = _fit_net(panel, early_residual / scale, options.fit, progress, clock)

    net = options.fit
    config = NetworkConfig(net.cell, input_width(fields), net.hidden, net.layers, fields)
    tensors: dict[str, NDArray[Any]] = {
        **result.weights,
        "var.weights": late,
        "gate": scale,
        "residual.precision": np.eye(fields, dtype=np.float32),
        "level.precision": np.eye(fields, dtype=np.float32),
    }
    # Corrections come out of the live step itself, so training and scoring cannot differ.
    rows = blank(panel.histories, [None] * len(panel.names), config.state_width)
    mix, model = replay(rows, panel.readings, Forecaster(config, tensors))
    correction = model - _var_forecasts(panel, late)  # (T, N, F) with the gate wide open
    gate = _gate(correction[panel.cut :], early_residual[panel.cut :], panel.seen[panel.cut :])
    tensors["gate"] = np.asarray(gate * scale, np.float32)
    residual = panel.readings.z - _var_forecasts(panel, late) - gate * correction
    held_residual = early_residual - gate * correction
    pooled, levels = _pooled(residual, panel.seen), _pooled(panel.readings.z, panel.seen)
    tensors["residual.precision"] = evidence.precision(pooled, evidence.RESIDUAL_FLOOR)
    tensors["level.precision"] = evidence.precision(levels, evidence.LEVEL_FLOOR)

    rate = options.alarms_per_second
    fitted = [
        _fit_device(panel, n, residual[:, n], held_residual[:, n], mix[:, n], tensors, rate)
        for n in range(len(panel.names))
    ]
    tensors |= _device_tensors(fitted)
    report: dict[str, float | int | str] = {
        "steps": result.steps_done,
        "stopped_because": result.stopped_because,
        "held_back_loss": result.held_back_loss,
        "zero_loss": result.zero_loss,
        "gate_mean": float(gate.mean()),
        "devices": len(panel.names),
    }
    skill = float(np.mean([f.skill for f in fitted]))
    error = mean_error(held_residual[panel.cut :], panel.seen[panel.cut :])
    return Candidate(config, tensors, panel.names, skill, error, int(panel.readings.valid.sum()), report)


def _long_enough(histories: Mapping[str, History]) -> dict[str, History]:
    longest = max((len(h.time_s) for h in histories.values()), default=0)
    # One cut in time serves all devices, so those that joined after it cannot take part this time.
    fewest = max(FEWEST_ROWS, int(longest * (1 - FIT_SHARE)) + FEWEST_ROWS // 2)
    held = longest - int(longest * FIT_SHARE)
    # On both sides of the cut a device must have normal rows: one to fit on, the other to be judged by.
    chosen = {
        name: h
        for name, h in sorted(histories.items())
        if h.normal.sum() >= fewest and min(h.normal[:-held].sum(), h.normal[-held:].sum()) >= FEWEST_HELD
    }
    if not chosen:
        raise ModelError(f"no device has the {fewest} normal readings that training needs")
    return chosen


def _panel(histories: Mapping[str, History]) -> Panel:
    listed = list(histories.values())
    rows = blank(listed, [None] * len(listed), 0)
    readings = align(rows, listed)
    total = len(readings.valid)
    normal = normal_rows(listed, total)
    seen = readings.mask & normal[..., None]
    lags = np.moveaxis(linear.lagged(np.moveaxis(readings.z, 0, 1), linear.LAGS), 0, 1)
    return Panel(tuple(histories), listed, readings, rows, normal, seen, lags, int(total * FIT_SHARE))


def _fit_var(panel: Panel, before: int) -> NDArray[np.float32]:
    """One linear forecaster for all devices, on the rows before `before`. -> (P, F)."""
    sums = linear.RidgeSums(panel.seen.shape[2])
    for n in range(len(panel.names)):
        first = int(panel.readings.valid[:, n].argmax())
        if before - first > linear.LAGS:
            own = slice(first, before), n
            sums.add(panel.readings.z[own], panel.seen[own], panel.normal[own])
    return sums.solve()


def _var_forecasts(panel: Panel, weights: NDArray[np.float32]) -> NDArray[np.float32]:
    steps, devices, lags, fields = panel.lags.shape
    flat = panel.lags.reshape(steps * devices, lags, fields)
    return linear.forecast_var(flat, weights).reshape(steps, devices, fields)


def _fit_net(
    panel: Panel,
    residual: NDArray[np.float32],
    config: FitConfig,
    progress: Callable[[Progress], None] | None,
    clock: Callable[[], float] | None,
) -> FitResult:
    """Teach the net to predict at row t what the linear forecaster will miss at row t + 1."""
    readings = panel.readings
    inputs = cell_inputs(readings.z, readings.mask, readings.gap_s / panel.rows["usual_gap_s"])  # (T, N, I)
    target, seen = np.zeros_like(residual), np.zeros_like(panel.seen)
    target[:-1] = np.clip(residual[1:], -TARGET_LIMIT, TARGET_LIMIT)
    # The first rows after a device's start have lags that are padding.
    seen[:-1] = panel.seen[1:] & _settled(readings.valid)[1:, :, None]
    return fit(
        np.ascontiguousarray(np.moveaxis(inputs, 0, 1)),  # (N, T, I)
        np.ascontiguousarray(np.moveaxis(target, 0, 1)),
        np.ascontiguousarray(np.moveaxis(seen, 0, 1)),
        held_back_from=panel.cut,
        # Noise is for values: a mask or a gap with noise on it says something false.
        config=replace(config, value_inputs=residual.shape[2]),
        progress=progress,
        clock=clock,
    )


def _settled(valid: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Rows (T, N) that have LAGS readings of the device behind them."""
    return np.cumsum(valid, axis=0) > linear.LAGS


def _rms(r: NDArray[np.float32], seen: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Scale of residuals (T, N, F) per field, outliers held within 5 sigma, plus a floor. -> (F,)."""
    squared = np.where(seen, np.square(np.clip(r, -5.0, 5.0)), 0.0).sum(axis=(0, 1))
    return np.asarray(np.sqrt(squared / np.maximum(seen.sum(axis=(0, 1)), 1)) + 0.05, np.float32)


def _gate(
    correction: NDArray[np.float32], residual: NDArray[np.float32], seen: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Weight per field in 0..1: cautious least squares of held-back residuals on corrections. -> (F,).

    0 where the squared error falls by less than luck alone would have it fall.
    """
    rows = np.maximum(seen.sum(axis=(0, 1)), 1)  # (F,)
    c, r = np.where(seen, correction, 0.0), np.where(seen, np.clip(residual, -5.0, 5.0), 0.0)
    product, energy = (c * r).sum(axis=(0, 1)), np.square(c).sum(axis=(0, 1))  # (F,) each
    slope = product / (GATE_CAUTION * energy + 1e-6 * rows + 1e-12)
    weight = np.clip(slope, 0.0, 1.0)
    gain = (2 * weight * product - weight**2 * energy) / (np.square(r).sum(axis=(0, 1)) + 1e-12)
    return np.asarray(np.where(gain >= LUCK / rows, weight, 0.0), np.float32)


def _pooled(series: NDArray[np.float32], seen: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Rows of all devices in which at least one field was seen, the missing ones 0. (T, N, F) -> (R, F)."""
    return np.where(seen, np.clip(series, -evidence.CLIP, evidence.CLIP), 0.0)[seen.any(axis=2)]


def _fit_device(
    panel: Panel,
    n: int,
    residual: NDArray[np.float32],
    held_residual: NDArray[np.float32],
    mix: NDArray[np.float32],
    tensors: Mapping[str, NDArray[Any]],
    alarms_per_second: float,
) -> Fitted:
    """Calibrate device n: residuals (T, F) of the model that will score and of the one that is honest."""
    history = panel.histories[n]
    first, total = len(panel.seen) - len(history.time_s), len(panel.seen)
    warm, cut = first + int(len(history.time_s) * WARM_SHARE), max(panel.cut, first)
    z, mask, seen = panel.readings.z[:, n], panel.readings.mask[:, n], panel.seen[:, n]  # (T, F)
    early = slice(first, cut)
    # The honest level knows only the rows before the cut: its centre, scale and spread come from there.
    m, s = scaling.fit(np.where(seen[early], z[early], np.nan).astype(np.float64))
    z_early = scaling.to_sigma(z, m, s)
    held_precision = evidence.precision(z_early[early][seen[early].any(axis=1)], evidence.LEVEL_FLOOR)
    whiteners = tensors["residual.precision"], tensors["level.precision"]
    final = _evidence((residual, z), mask, whiteners, first)  # (T, 2, K)
    held = _evidence((held_residual, z_early), mask, (whiteners[0], held_precision), first)
    rows = np.arange(total)
    normal = seen.any(axis=1)
    calibrate, judge = normal & (rows >= warm), normal & (rows >= cut)
    med, q = calibration.fit(
        final[calibrate].reshape(calibrate.sum(), -1), held[judge].reshape(judge.sum(), -1)
    )
    u = calibration.combine(calibration.exceedance(held[judge].reshape(judge.sum(), -1), med, q))
    rate = alarms_per_second * panel.rows["usual_gap_s"][n]
    baseline_error = mean_error((z - mix)[judge], seen[judge])
    return Fitted(
        location=panel.rows["location"][n],
        scale=panel.rows["scale"][n],
        median=med.reshape(len(MODEL_LINES), -1),
        quantile=q.reshape(len(MODEL_LINES), -1),
        level=calibration.alarm_level(u, rate),
        skill=1.0 - mean_error(held_residual[judge], seen[judge]) / max(baseline_error, 1e-6),
    )


def _evidence(
    series: tuple[NDArray[np.float32], NDArray[np.float32]],
    mask: NDArray[np.bool_],
    whiteners: tuple[NDArray[np.float32], NDArray[np.float32]],
    first: int,
) -> NDArray[np.float32]:
    """Smoothed evidence of the model lines from row `first` on: (T, F) each -> (T, 2, K)."""
    d = [evidence.distance(r[first:], mask[first:], P)[0] for r, P in zip(series, whiteners, strict=True)]
    out = np.zeros((len(mask), len(MODEL_LINES), len(evidence.SCALES)), np.float32)
    out[first:] = smoothed(np.stack(d, axis=1))
    return out


def _device_tensors(fitted: list[Fitted]) -> dict[str, NDArray[Any]]:
    return {
        "device.location": np.stack([f.location for f in fitted]),
        "device.scale": np.stack([f.scale for f in fitted]),
        "device.median": np.stack([f.median for f in fitted]),
        "device.quantile": np.stack([f.quantile for f in fitted]),
        "device.level": np.array([f.level for f in fitted], np.float32),
        "device.skill": np.array([f.skill for f in fitted], np.float32),
    }
