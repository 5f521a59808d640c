"""From the histories of a group to a candidate: shared weights plus what it fixes for each device it saw.

The order matters. Rows are split in time; linear forecasters fitted and scaled on the first part leave
residuals that are honest on the rest; the recurrent net learns to predict those residuals; the gate keeps
it, field by field, only where it helps on held-back rows; and the calibration is read off rows that the
scoring model was not fitted on. See `gruard.models.calibration` for why.

Shapes: N devices, T rows, F fields, X horizons, E = X + 1 lines of evidence, K scales, P regressors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from gruard.models import alarm, baseline_lines, calibration, evidence, judge, memory
from gruard.models.arena import fresh
from gruard.models.enrolment import (
    Fitted,
    distance_series,
    replay,
    replay_baseline,
    u_series,
    unseen_factor,
)
from gruard.models.errors import ModelError
from gruard.models.forecaster import Forecaster, cell_inputs, input_width
from gruard.models.history import (
    WARM_SHARE,
    Aligned,
    History,
    align,
    blank,
    mean_error,
)
from gruard.models.training.comparators import TWO_SIDED_CELL, config_for, steps_over
from gruard.models.training.fit import FitConfig, fit
from gruard.models.training.heads import fit_heads
from gruard.models.training.lending import group_width, loan_tensors
from gruard.models.training.panel import Panel, fit_linear, panel_of, settled

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from gruard.models.calibration import Budget
    from gruard.models.cells import NetworkConfig
    from gruard.models.training.fit import FitResult, Progress
    from gruard.models.training.saved import Keeper

    Floats: TypeAlias = NDArray[np.float32]

#: Targets of the net are residuals in units of their own scale, held within this.
TARGET_LIMIT = 8.0
#: Caution of the gate: the net is trusted a little less than its held-back regression says.
GATE_CAUTION = 1.1
#: The share of the squared error of n rows that a useless correction explains stays under LUCK / n in 99 of
#: 100 cases (chi squared, 1 degree of freedom); the net must explain more to be heard in a field.
LUCK = 6.6
#: Histories of so many rows are worth a longer training: steps and streams times LONG_FACTOR, no early stop,
#: and half of the gates opened for memories of up to LONG_MEMORY rows. That is where the recurrent part was
#: found to pay: see bench/results/recurrent.md.
LONG_ROWS, LONG_FACTOR, LONG_MEMORY = 2000, 2, 199
#: Cells whose gates can be opened.
GATED = ("gru", "lstm")


@dataclass(frozen=True, slots=True)
class TrainingOptions:
    """How a candidate is made."""

    fit: FitConfig
    budget: Budget
    vouched: bool = False  # somebody says that the histories show all that is normal


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
    resumed_at: int = 0  # steps of the fit that an earlier run had done, which was cut off


def train(
    histories: Mapping[str, History],
    options: TrainingOptions,
    progress: Callable[[Progress], None] | None = None,
    *,
    clock: Callable[[], float] | None = None,
    keeper: Keeper | None = None,
) -> Candidate:
    """Train a candidate on the histories of a group's devices.

    `clock` gives monotonic seconds, for the wall limit of the fit; without one there is no limit. `keeper`
    keeps the fit, so that the same call goes on with it after an end of the process.

    Raises:
        ModelError: no device has enough rows, or there is more than the one that a two-sided cell takes.
    """
    if options.fit.cell == TWO_SIDED_CELL and len(histories) > 1:
        raise ModelError(f"{TWO_SIDED_CELL} hears what follows, of one device and not of {len(histories)}")
    panel = panel_of(histories, options.fit.cell)
    fields = panel.seen.shape[2]
    heads = fit_heads(panel, fit_linear(panel))
    var = heads.shared
    residual = var.early * panel.to_sigma  # (X, T, N, F) sigma
    seen = panel.seen & settled(panel)[:, :, :, None]  # (X, T, N, F)
    scale = _rms(residual[:, : panel.cut], seen[:, : panel.cut])  # (X, F)
    inputs = _inputs(panel.readings)
    net = for_history(options.fit, len(panel.seen))
    result = _fit_net(panel, inputs, residual / scale[:, None, None], seen, net, (progress, clock, keeper))

    width = len(panel.horizons) * fields
    config = config_for(net.cell, input_width(fields), net.hidden, net.layers, width)
    network = steps_over(config, result.weights, inputs)
    tensors: dict[str, NDArray[Any]] = {
        **result.weights,
        "horizons": np.array(panel.horizons, np.int64),
        "var.weights": var.weights,
        "gate": np.zeros(width, np.float32),
        "precision": np.tile(np.eye(fields, dtype=np.float32), (len(panel.horizons) + 1, 1, 1)),
    }
    if len(var.clock):
        tensors["var.clock"] = var.clock
    count = len(heads.weights)
    if count:
        tensors |= {"head.weights": heads.weights, "head.gate": np.zeros((count, width), np.float32)}
    # Corrections come out of the live step itself, so training and scoring cannot differ.
    plain = _lines(panel, Forecaster(config, tensors, network), heads.of)
    tensors |= _gate_tensors(np.tile(scale, (count + 1, 1, 1)))
    # (E, T, N, F), 0 in the last line
    correction = plain - _lines(panel, Forecaster(config, tensors, network), heads.of)
    held = slice(panel.cut, None)
    gate = np.stack(
        [
            _gate(correction[:-1, held][:, :, own], residual[:, held][:, :, own], seen[:, held][:, :, own])
            for own in (heads.of == head for head in range(count + 1))
        ]
    )  # (C + 1, X, F)
    tensors |= _gate_tensors(gate * scale)
    correction[:-1] *= np.moveaxis(gate[heads.of], 0, 1)[:, None]
    lines = plain - correction
    early_lines = np.concatenate([var.early - correction[:-1] / panel.to_sigma, panel.early.z[None]])
    tensors["precision"] = _precision(lines, panel.seen)

    own = _fit_devices(panel, lines, early_lines, tensors["precision"], options)
    # What one device has not shown yet, another has: nobody is held to less than most of the group are.
    most = group_width(own)
    fitted = [replace(f, quantile=np.asarray(np.maximum(f.quantile, f.median + most))) for f in own]
    if count:
        tensors["device.head"] = heads.of
    tensors |= _device_tensors(fitted) | loan_tensors(fitted, panel.histories, most)
    report: dict[str, float | int | str] = {
        "steps": result.steps_done,
        "stopped_because": result.stopped_because,
        "held_back_loss": result.held_back_loss,
        "zero_loss": result.zero_loss,
        "gate_mean": float(gate.mean()),
        "clock_columns": len(var.clock),
        "devices": len(panel.names),
        "heads": count,
    }
    skill = float(np.mean([f.skill for f in fitted]))
    error = mean_error((early_lines[0] * panel.to_sigma)[panel.cut :], panel.seen[panel.cut :])
    return Candidate(
        config, tensors, panel.names, skill, error, int(panel.readings.valid.sum()), report, result.resumed_at
    )


def for_history(config: FitConfig, rows: int) -> FitConfig:
    """How to train on histories of up to so many rows."""
    if rows < LONG_ROWS:
        return config
    opened = LONG_MEMORY if config.cell in GATED else None
    return replace(
        config,
        steps=LONG_FACTOR * config.steps,
        streams=LONG_FACTOR * config.streams,
        patience=LONG_FACTOR * config.steps,
        longest_memory=config.longest_memory or opened,
    )


def forecaster_for(candidate: Candidate, taught: History, whole: History | None) -> Forecaster:
    """The candidate at work, any comparator too.

    A cell that hears what follows needs all readings of its one device, `whole`, which begin with those that
    were trained on, `taught`; others look at neither.

    Raises:
        ModelError: it needs them and they are not there.
    """
    config, tensors, inputs = candidate.config, candidate.tensors, None
    if config.cell == TWO_SIDED_CELL and whole is not None:
        rows = blank([taught], [(tensors["device.location"][0], tensors["device.scale"][0])])
        inputs = _inputs(align(rows, [whole]))
    return Forecaster(config, tensors, steps_over(config, tensors, inputs))


def _gate_tensors(gates: Floats) -> dict[str, NDArray[Any]]:
    """Gates (C + 1, X, F), the shared one first, as a package has them."""
    flat = np.asarray(gates, np.float32).reshape(len(gates), -1)
    return {"gate": flat[0]} | ({"head.gate": flat[1:]} if len(flat) > 1 else {})


def _lines(panel: Panel, forecaster: Forecaster, heads: NDArray[np.int64]) -> Floats:
    """Residuals by line (E, T, N, F) of the live step; heads (N,)."""
    rows = fresh(memory.columns(forecaster), len(panel.names))
    if forecaster.heads:
        rows["head"] = heads.copy()
    return replay(rows, panel.readings, forecaster)


def _inputs(readings: Aligned) -> Floats:
    """What the cell is given of every reading: (N, T, I)."""
    inputs = cell_inputs(readings.z, readings.mask, readings.gap_ratio)  # (T, N, I)
    return np.ascontiguousarray(np.moveaxis(inputs, 0, 1))


def _fit_net(
    panel: Panel,
    inputs: Floats,
    residual: Floats,
    seen: NDArray[np.bool_],
    config: FitConfig,
    outside: tuple[Callable[[Progress], None] | None, Callable[[], float] | None, Keeper | None],
) -> FitResult:
    """Teach the net to tell at row t what the linear forecasters will miss at rows t + h."""
    steps, devices, fields = panel.readings.z.shape
    target = np.zeros((steps, devices, len(panel.horizons), fields), np.float32)
    known = np.zeros(target.shape, bool)
    for x, h in enumerate(panel.horizons):
        target[:-h, :, x] = np.clip(residual[x, h:], -TARGET_LIMIT, TARGET_LIMIT)
        known[:-h, :, x] = seen[x, h:]
        # What lies ahead of the cut is known to no row before it.
        known[panel.cut - h : panel.cut, :, x] = False
    flat = devices, steps, len(panel.horizons) * fields
    progress, clock, keeper = outside
    return fit(
        inputs,
        np.moveaxis(target, 0, 1).reshape(flat),
        np.moveaxis(known, 0, 1).reshape(flat),
        held_back_from=panel.cut,
        # Noise is for values: a mask or a gap with noise on it says something false.
        config=replace(config, value_inputs=fields),
        progress=progress,
        clock=clock,
        keeper=keeper,
    )


def _rms(r: Floats, seen: NDArray[np.bool_]) -> Floats:
    """Scale of residuals (X, T, N, F) per field, outliers held within 5 sigma, plus a floor. -> (X, F)."""
    squared = np.where(seen, np.square(np.clip(r, -5.0, 5.0)), 0.0).sum(axis=(1, 2))
    return np.asarray(np.sqrt(squared / np.maximum(seen.sum(axis=(1, 2)), 1)) + 0.05, np.float32)


def _gate(correction: Floats, residual: Floats, seen: NDArray[np.bool_]) -> Floats:
    """Weight per horizon and field in 0..1: cautious least squares of held-back residuals on corrections.

    Arrays (X, T, N, F) -> (X, F). 0 where the squared error falls by less than luck alone would have it fall.
    """
    rows = np.maximum(seen.sum(axis=(1, 2)), 1)  # (X, F)
    c, r = np.where(seen, correction, 0.0), np.where(seen, np.clip(residual, -5.0, 5.0), 0.0)
    product, energy = (c * r).sum(axis=(1, 2)), np.square(c).sum(axis=(1, 2))  # (X, F) each
    weight = np.clip(product / (GATE_CAUTION * energy + 1e-6 * rows + 1e-12), 0.0, 1.0)
    gain = (2 * weight * product - weight**2 * energy) / (np.square(r).sum(axis=(1, 2)) + 1e-12)
    return np.asarray(np.where(gain >= LUCK / rows, weight, 0.0), np.float32)


def _precision(lines: Floats, seen: NDArray[np.bool_]) -> Floats:
    """Whitener of every line (E, F, F), from the rows of all devices in which at least one field was seen."""
    used = seen.any(axis=2)
    pooled = np.where(seen, np.clip(lines, -evidence.CLIP, evidence.CLIP), np.float32(0.0))
    floors = evidence.floors(len(lines))
    return np.stack(
        [evidence.precision(line[used], floor) for line, floor in zip(pooled, floors, strict=True)]
    )


def _fit_devices(
    panel: Panel, lines: Floats, early_lines: Floats, P: Floats, options: TrainingOptions
) -> list[Fitted]:
    """Calibrate every device: lines (E, T, N, F) of the model that will score and of the honest one."""
    early_P = _precision(early_lines[:, : panel.cut], panel.seen[: panel.cut])
    mix = _baseline_forecasts(panel)
    return [
        _fit_device(panel, n, lines[:, :, n], early_lines[:, :, n], mix[:, n], (P, early_P), options)
        for n in range(len(panel.names))
    ]


def _baseline_forecasts(panel: Panel) -> Floats:
    rows = fresh(baseline_lines.columns(panel.seen.shape[2]), len(panel.names))
    return replay_baseline(rows, panel.readings)


def _fit_device(
    panel: Panel,
    n: int,
    lines: Floats,
    early_lines: Floats,
    mix: Floats,
    whiteners: tuple[Floats, Floats],
    options: TrainingOptions,
) -> Fitted:
    """Calibrate device n: lines (E, T, F) of both models, mix (T, F)."""
    total, length = len(panel.seen), len(panel.histories[n].time_s)
    first = total - length
    own = slice(first, None)
    z, mask, seen = panel.readings.z[own, n], panel.readings.mask[own, n], panel.seen[own, n]  # (T', F)
    e, e_held = (
        distance_series(some[:, own], mask, P)
        for some, P in zip((lines, early_lines), whiteners, strict=True)
    )  # (T', E, K)
    rows = np.arange(length)
    normal = seen.any(axis=1)
    calibrate, held = normal & (rows >= int(length * WARM_SHARE)), normal & (rows >= panel.cut - first)
    med, q = (
        found.reshape(e.shape[1:])
        for found in calibration.fit(
            e[calibrate].reshape(calibrate.sum(), -1), e_held[held].reshape(held.sum(), -1)
        )
    )
    u = u_series(e_held, med, q, judge.weights(len(lines)))[:, 0]
    rate = options.budget.rate(float(panel.scaling["usual_gap_s"][n]))
    level = calibration.alarm_level(alarm.slow_mean(u)[held], rate, options.budget.least_level)
    baseline_error = mean_error((z - mix[own])[held], seen[held])
    residual = early_lines[0, own] * panel.to_sigma[n]
    return Fitted(
        location=panel.scaling["location"][n],
        scale=panel.scaling["scale"][n],
        median=med,
        quantile=q,
        level=level if options.vouched else level * unseen_factor(length),
        skill=1.0 - mean_error(residual[held], seen[held]) / max(baseline_error, 1e-6),
    )


def _device_tensors(fitted: list[Fitted]) -> dict[str, NDArray[Any]]:
    return {
        "device.location": np.stack([f.location for f in fitted]),
        "device.scale": np.stack([f.scale for f in fitted]),
        "device.median": np.stack([f.median for f in fitted]),
        "device.quantile": np.stack([f.quantile for f in fitted]),
        "device.level": np.array([f.level for f in fitted], np.float32),
        "device.skill": np.array([f.skill for f in fitted], np.float32),
    }
