"""One reading through one device: forecasts made before it, residuals, and the state moved past it.

`rows` is the gathered state of B devices, name -> (B, ...); `advance` changes it in place. Live scoring
and the replay that enrols a device call the same two functions, so they cannot disagree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gruard.models import baseline, evidence, linear
from gruard.models.arena import Column
from gruard.models.forecaster import Forecaster, cell_inputs

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: The lines of evidence, in the order of axis E everywhere.
MIX, TAIL, RESIDUAL, LEVEL = range(4)
LINES = 4
#: Which lines speak while the baseline is in charge, and which when the model is.
BASELINE_LINES = (MIX, TAIL, LEVEL)
MODEL_LINES = (RESIDUAL, LEVEL)
#: Memory of "which field was it": about the last 16 readings, the scale of an alarm.
PARTS_ALPHA = np.float32(2.0 / 17.0)
#: Memory of the running forecast errors behind the skill: about the last 400 readings.
SKILL_ALPHA = np.float32(0.005)


def columns(fields: int, state_width: int) -> dict[str, Column]:
    """The memory of one device: F fields, `state_width` floats of hidden state."""
    streams = (LINES, len(evidence.SCALES))
    return {
        "count": Column((), "i8"),  # readings applied to the state
        "last_time_s": Column((), "f8"),
        "phase": Column((), "i8"),  # see group.Phase
        "location": Column((fields,), "f8"),  # m: physical units
        "scale": Column((fields,), "f8", 1.0),  # s
        "usual_gap_s": Column((), "f8", 1.0),
        "lags": Column((linear.LAGS, fields)),  # z, newest first, missing values filled forward
        **baseline.columns(fields),
        "ar_weights": Column((fields, linear.LAGS + 1)),
        "mix_sigma": Column((fields,), fill=1.0),  # scale of the baseline's residuals
        "ar_sigma": Column((fields,), fill=1.0),
        "hidden": Column((state_width,)),
        "correction": Column((fields,)),  # the net's part of the forecast of the next reading
        "evidence": Column(streams),  # exponential means e
        "median": Column(streams),
        "quantile": Column(streams),
        "parts": Column((LINES, fields)),  # who contributed to each line lately
        "level": Column((2,), fill=4.0),  # u that raises an alarm: baseline, model
        "errors_mean": Column((2,), fill=1.0),  # running |residual|: baseline, model
    }


@dataclass(frozen=True, slots=True)
class Step:
    """What `advance` found: forecasts (B, F) in sigma, made before the reading was seen."""

    mix: NDArray[np.float32]
    ar: NDArray[np.float32]
    model: NDArray[np.float32]
    resets: int  # hidden states that were not finite and start again


def begin(rows: dict[str, NDArray[Any]], z: NDArray[np.float32]) -> None:
    """Start the memory of devices from their first reading z (B, F), NaN = missing."""
    first = np.where(np.isfinite(z), z, 0.0).astype(np.float32)
    rows["lags"][:] = first[:, None]
    rows["hidden"][:] = 0.0
    rows["correction"][:] = 0.0
    baseline.start(rows, first)


def filled(
    rows: dict[str, NDArray[Any]], z: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Missing values take the last one seen: z (B, F) with NaN -> z, mask (B, F)."""
    mask = np.isfinite(z)
    return np.where(mask, z, rows["lags"][:, 0]), mask


def advance(
    rows: dict[str, NDArray[Any]],
    z: NDArray[np.float32],
    mask: NDArray[np.bool_],
    gap_s: NDArray[np.float64],
    forecaster: Forecaster | None,
) -> Step:
    """Forecast, then move the state past the reading z (B, F), filled forward where mask is false.

    `gap_s` (B,) is the event time since the device's reading before.
    """
    lags = rows["lags"]  # (B, LAGS, F)
    experts = baseline.forecasts(rows, lags)
    mix = baseline.mix(rows, experts)
    ar = linear.forecast_ar(lags, rows["ar_weights"])
    model, resets = mix, 0
    baseline.learn(rows, lags, experts, z, mask)
    if forecaster is not None:
        model = forecaster.forecast(lags, rows["correction"])
        inputs = cell_inputs(z, mask, gap_s / rows["usual_gap_s"])  # (B, I)
        rows["correction"], rows["hidden"], resets = forecaster.remember(inputs, rows["hidden"])
    rows["lags"] = np.concatenate([z[:, None], lags[:, :-1]], axis=1)
    return Step(mix, ar, model, resets)


def lines(
    rows: dict[str, NDArray[Any]],
    step: Step,
    z: NDArray[np.float32],
    mask: NDArray[np.bool_],
    forecaster: Forecaster | None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Evidence of one reading: z, mask (B, F) -> d (B, E), contributions (B, E, F)."""
    d = np.zeros((len(z), LINES), np.float32)
    parts = np.zeros((len(z), LINES, z.shape[1]), np.float32)
    scaled = np.where(mask, np.clip((z - step.mix) / rows["mix_sigma"], -evidence.CLIP, evidence.CLIP), 0.0)
    parts[:, MIX] = np.square(scaled)
    d[:, MIX] = np.sqrt(parts[:, MIX].sum(axis=1) / np.maximum(mask.sum(axis=1), 1))
    d[:, TAIL], parts[:, TAIL] = evidence.tail((z - step.ar) / rows["ar_sigma"], mask)
    if forecaster is not None:
        residual = z - step.model
        d[:, RESIDUAL], parts[:, RESIDUAL] = evidence.distance(residual, mask, forecaster.residual_precision)
        d[:, LEVEL], parts[:, LEVEL] = evidence.distance(z, mask, forecaster.level_precision)
    else:
        d[:, LEVEL], parts[:, LEVEL] = evidence.tail(z, mask)
    return d, parts


def note_errors(
    rows: dict[str, NDArray[Any]], step: Step, z: NDArray[np.float32], mask: NDArray[np.bool_]
) -> None:
    """Move the running forecast errors (B, 2) of baseline and model past a reading."""
    error = np.stack([np.abs(z - step.mix), np.abs(z - step.model)], axis=1)  # (B, 2, F)
    seen = mask[:, None]
    mean = np.where(seen, np.minimum(error, 5.0), 0.0).sum(axis=2) / np.maximum(seen.sum(axis=2), 1)
    rows["errors_mean"] += SKILL_ALPHA * (mean.astype(np.float32) - rows["errors_mean"])
