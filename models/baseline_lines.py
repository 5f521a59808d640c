"""The adaptive baseline at work: one reading through one device before any model was trained for it.

`rows` is the gathered state of B devices, name -> (B, ...); `advance` changes it in place. Live scoring
and the replay that enrols a device call the same two functions, so they cannot disagree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gruard.models import baseline, calibration, evidence, linear
from gruard.models.arena import Column

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from numpy.typing import NDArray

#: The lines of evidence, in the order of axis E: the mixed forecast, the autoregression, the level.
MIX, TAIL, LEVEL = range(3)
LINES = 3
#: Memory of "which field was it": about the last 16 readings, the scale of an alarm.
PARTS_ALPHA = np.float32(2.0 / 17.0)
#: Every stream counts the same, for the state and for the onset.
WEIGHTS = calibration.equal_weights(*2 * [np.ones(LINES * len(evidence.SCALES), bool)])


def columns(fields: int) -> dict[str, Column]:
    """The memory of one device with F fields."""
    streams = (LINES, len(evidence.SCALES))
    return {
        "base_lags": Column((linear.LAGS, fields)),  # z, newest first, missing values filled forward
        **baseline.columns(fields),
        "ar_weights": Column((fields, linear.LAGS + 1)),
        "mix_sigma": Column((fields,), fill=1.0),  # scale of the baseline's residuals
        "ar_sigma": Column((fields,), fill=1.0),
        "base_evidence": Column(streams),  # exponential means e
        "base_median": Column(streams),
        "base_inverse": Column(streams, fill=1.0),
        "base_parts": Column((LINES, fields)),  # who contributed to each line lately
    }


@dataclass(frozen=True, slots=True)
class Step:
    """What `advance` found: forecasts (B, F) in sigma, made before the reading was seen."""

    mix: NDArray[np.float32]
    ar: NDArray[np.float32]


def begin(rows: MutableMapping[str, NDArray[Any]], z: NDArray[np.float32]) -> None:
    """Start the memory of devices from their first reading z (B, F)."""
    rows["base_lags"][:] = z[:, None]
    baseline.start(rows, z)


def advance(rows: MutableMapping[str, NDArray[Any]], z: NDArray[np.float32], mask: NDArray[np.bool_]) -> Step:
    """Forecast, then move the state past the reading z (B, F), filled forward where mask is false."""
    lags = rows["base_lags"]  # (B, LAGS, F)
    experts = baseline.forecasts(rows, lags)
    step = Step(baseline.mix(rows, experts), linear.forecast_ar(lags, rows["ar_weights"]))
    baseline.learn(rows, lags, experts, z, mask)
    lags[:, 1:] = lags[:, :-1]
    lags[:, 0] = z
    return step


def lines(
    rows: MutableMapping[str, NDArray[Any]], step: Step, z: NDArray[np.float32], mask: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Evidence of one reading: z, mask (B, F) -> d (B, E), contributions (B, E, F)."""
    d = np.zeros((len(z), LINES), np.float32)
    parts = np.zeros((len(z), LINES, z.shape[1]), np.float32)
    scaled = np.where(mask, np.clip((z - step.mix) / rows["mix_sigma"], -evidence.CLIP, evidence.CLIP), 0.0)
    parts[:, MIX] = np.square(scaled)
    d[:, MIX] = np.sqrt(parts[:, MIX].sum(axis=1) / np.maximum(mask.sum(axis=1), 1))
    d[:, TAIL], parts[:, TAIL] = evidence.tail((z - step.ar) / rows["ar_sigma"], mask)
    d[:, LEVEL], parts[:, LEVEL] = evidence.tail(z, mask)
    return d, parts


def judge(
    rows: MutableMapping[str, NDArray[Any]], step: Step, z: NDArray[np.float32], mask: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Move the evidence past a reading: u of state and onset (B, 2), u of every stream (B, E, K)."""
    d, parts = lines(rows, step, z, mask)
    rows["base_evidence"] = evidence.smooth(rows["base_evidence"], d)
    rows["base_parts"] += PARTS_ALPHA * (parts - rows["base_parts"])
    u = calibration.exceedance(rows["base_evidence"], rows["base_median"], rows["base_inverse"])
    return calibration.combine(u.reshape(len(u), -1), WEIGHTS), u
