"""Streaming detectors of other projects behind one call, each with fixed, default-ish settings.

A peer is made for one stream and scores a reading with this and earlier ones only: `update(t, x) -> score`,
higher = more anomalous. Packages are imported when a peer is made: a missing one only costs its own line.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from quality.trace import Stopwatch, Trace

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from quality.suites import Stream

    Floats = NDArray[np.float64]


class Peer(Protocol):
    """One detector on one stream."""

    def update(self, time_s: float, x: Floats) -> float:
        """Score a reading x (F,), then learn from it."""
        ...


def trace(make: Callable[[int, int, int], Peer], stream: Stream, seed: int, seconds_left: float) -> Trace:
    """Feed a stream in order to make(fields, warmup, seed). A score that is not finite counts as 0."""
    watch = Stopwatch(seconds_left)
    peer = make(stream.values.shape[1], stream.warmup, seed)
    values = np.zeros(stream.rows)
    watch.lap()
    for row, (time_s, x) in enumerate(zip(stream.time_s.tolist(), stream.values, strict=True)):
        watch.check(row)
        score = float(peer.update(time_s, x.astype(np.float64)))
        values[row] = score if math.isfinite(score) else 0.0
    return Trace(values, None, None, None, 1e6 * watch.lap() / stream.rows, 0.0)


def window(warmup: int) -> int:
    """Rows that a peer gathers or reckons with at a time."""
    return min(max(warmup // 2, 50), 250)


class UnitScale:
    """Readings (F,) scaled to 0..1 by the range seen so far, this reading included."""

    def __init__(self, fields: int) -> None:
        self.low, self.high = np.full(fields, np.inf), np.full(fields, -np.inf)

    def __call__(self, x: Floats) -> Floats:
        """(F,) -> (F,)."""
        self.low, self.high = np.minimum(self.low, x), np.maximum(self.high, x)
        width = np.where(self.high > self.low, self.high - self.low, 1.0)
        return np.asarray((x - self.low) / width)


class StandardScale:
    """Readings (F,) in running standard deviations from their running mean, by river's own scaler."""

    def __init__(self) -> None:
        from river import preprocessing  # noqa: PLC0415 - see the module's docstring

        self.scaler = preprocessing.StandardScaler()

    def __call__(self, x: Floats) -> Floats:
        """(F,) -> (F,)."""
        row = dict(enumerate(x.tolist()))
        self.scaler.learn_one(row)
        return np.array(list(self.scaler.transform_one(row).values()))


class RiverPeer:
    """Anything with river's two verbs, behind a scale."""

    def __init__(self, scale: Callable[[Floats], Floats], model: Any) -> None:
        self.scale, self.model = scale, model

    def update(self, _time_s: float, x: Floats) -> float:
        """Score, then learn."""
        row = dict(enumerate(self.scale(x).tolist()))
        score = float(np.ravel(self.model.score_one(row))[0])
        self.model.learn_one(row)
        return score


def half_space_trees(fields: int, warmup: int, seed: int) -> Peer:
    """river's half-space trees (Tan, Ting and Liu, 2011): 25 of height 8."""
    from river import anomaly  # noqa: PLC0415 - see the module's docstring

    model = anomaly.HalfSpaceTrees(n_trees=25, height=8, window_size=window(warmup), seed=seed)
    return RiverPeer(UnitScale(fields), model)


def one_class_svm(_fields: int, _warmup: int, _seed: int) -> Peer:
    """river's linear one-class machine."""
    from river import anomaly  # noqa: PLC0415 - see the module's docstring

    return RiverPeer(StandardScale(), anomaly.OneClassSVM(nu=0.1))


def deep_river(fields: int, _warmup: int, seed: int) -> Peer:
    """deep-river's rolling autoencoder: a recurrent net that trains on the last 20 readings at every one."""
    import torch  # noqa: PLC0415 - see the module's docstring
    from deep_river.anomaly import RollingAutoencoder  # noqa: PLC0415

    torch.manual_seed(seed)
    torch.set_num_threads(1)
    net = _autoencoder(torch, fields, hidden=16)
    model = RollingAutoencoder(
        module=net, loss_fn="mse", optimizer_fn="adam", lr=2e-3, window_size=20, seed=seed
    )
    return RiverPeer(StandardScale(), model)


class Loda:
    """pysad's LODA (Pevny, 2016): 100 sparse projections with a histogram of 10 bins each."""

    def __init__(self, fields: int, warmup: int, seed: int) -> None:
        from pysad.models import LODA  # noqa: PLC0415 - see the module's docstring

        self.scale, self.model = UnitScale(fields), LODA(random_state=seed)
        self.silent = window(warmup)

    def update(self, _time_s: float, x: Floats) -> float:
        """Score, then learn; 0 for the first readings."""
        row = self.scale(x)
        score = 0.0 if self.silent else self.model.score_partial(row)
        self.silent = max(self.silent - 1, 0)
        self.model.fit_partial(row)
        return float(score)


def _autoencoder(torch: Any, fields: int, hidden: int) -> Any:
    """LSTM in, its last output repeated, LSTM out: (T, 1, F) -> (T, 1, F)."""

    class Autoencoder(torch.nn.Module):  # type: ignore[misc]
        def __init__(self, n_features: int) -> None:
            super().__init__()
            self.encoder = torch.nn.LSTM(n_features, hidden)
            self.decoder = torch.nn.LSTM(hidden, n_features)

        def forward(self, x: Any) -> Any:
            code = self.encoder(x)[0][-1:]
            return self.decoder(code.repeat(len(x), 1, 1))[0]

    return Autoencoder(fields)
