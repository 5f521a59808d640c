"""Who is compared: gruard and its ablations, its controls and floors, and the peers."""

from __future__ import annotations

import copy
import importlib
from contextlib import contextmanager
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from quality import peers
from quality.trace import Contender, Stopwatch, Trace

# Imported here and not when the first net is trained, so that a run is of one state of the code.
import gruard.models.training.candidate
from gruard.models import Detector, DetectorConfig
from gruard.models.quality import controls

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from numpy.typing import NDArray
    from quality.suites import Stream

GRUARD, FLOORS = "gruard", ("random", "always")
#: A clock that must not jump out of its week while warm-up rows are shown a second time.
WEEK_S = 604_800.0
#: Readings of the running mean in the second line of each peer.
SPAN = controls.SPAN
HERE, MODELS = Path(__file__).parent, Path(gruard.models.__file__).parent

PEERS = {
    "river HalfSpaceTrees": (peers.half_space_trees, ("river",)),
    "river OneClassSVM": (peers.one_class_svm, ("river",)),
    "pysad LODA": (peers.Loda, ("pysad",)),
    "deep-river LSTM-AE": (peers.deep_river, ("deep-river", "river", "torch")),
}

NOTES = {
    "deep-river LSTM-AE": "deep-river 0.3.4 asks for river < 0.26 and torch < 2.6, so it cannot be installed "
    "beside gruard; its figures are from an environment of its own, outside those limits"
}


class ConfigError(Exception):
    """An ablation that no DetectorConfig can express."""


def contenders(ablations: Mapping[str, Mapping[str, Any]]) -> list[Contender]:
    """Every line of the table that is run, in its order.

    Raises:
        ConfigError: an ablation names a setting that DetectorConfig does not have, or a wrong value.
    """
    own = [
        _own(GRUARD, "gruard", {}),
        *(_own(name, "ablation", kwargs) for name, kwargs in ablations.items()),
    ]
    # The controls are built of the detector's own parts, whichever these are by now.
    code = (*sorted(MODELS.glob("*.py")), MODELS / "quality" / "controls.py", HERE / "contenders.py")
    simple = [
        Contender(
            name,
            "floor" if name in FLOORS else "control",
            {},
            partial(control_trace, name),
            code,
            several_seeds=name == "random",
        )
        for name in controls.CONTROLS
    ]
    others = [
        Contender(
            name,
            "peer",
            {},
            partial(peers.trace, make),
            (HERE / "peers.py",),
            packages,
            note=NOTES.get(name, ""),
        )
        for name, (make, packages) in PEERS.items()
    ]
    return [*own, *simple, *others]


@contextmanager
def patched(patches: Mapping[str, Any]) -> Iterator[None]:
    """Constants of the detector changed for a while: `module.NAME` below gruard.models -> value.

    Raises:
        ConfigError: there is no such constant.
    """
    before = []
    for path, value in patches.items():
        module_name, _, name = path.rpartition(".")
        module = importlib.import_module(f"gruard.models.{module_name}")
        if not hasattr(module, name):
            raise ConfigError(f"gruard.models.{module_name} has no {name}")
        before.append((module, name, getattr(module, name)))
        setattr(module, name, value)
    try:
        yield
    finally:
        for module, name, value in reversed(before):
            setattr(module, name, value)


def _own(name: str, kind: str, settings_or_patches: Mapping[str, Any]) -> Contender:
    patches = {key: value for key, value in settings_or_patches.items() if "." in key}
    kwargs = {key: value for key, value in settings_or_patches.items() if key not in patches}
    with patched(patches):
        pass  # a misspelt constant is told before anything runs
    unknown = sorted(set(kwargs) - {f.name for f in fields(DetectorConfig)})
    if unknown:
        raise ConfigError(f"ablation {name!r}: DetectorConfig has no {', '.join(unknown)}")
    if "seed" in kwargs:
        raise ConfigError(f"ablation {name!r}: the seed is not a setting to leave out")
    settings = asdict(DetectorConfig(**kwargs)) | {
        key: getattr(value, "__name__", str(value)) for key, value in patches.items()
    }
    del settings["seed"]
    sources = sorted([*MODELS.glob("*.py"), *MODELS.glob("training/*.py"), HERE / "contenders.py"])
    return Contender(
        name,
        kind,
        settings,
        partial(gruard_trace, dict(kwargs), patches),
        tuple(sources),
        ("numpy", "torch"),
        several_seeds=kind == "gruard",
    )


def gruard_trace(
    kwargs: Mapping[str, Any], patches: Mapping[str, Any], stream: Stream, seed: int, seconds_left: float
) -> Trace:
    """Feed a stream to the public detector, as a user of the library would.

    The row that follows the warm-up trains; its cost is `fit_seconds`. A copy made just behind it is shown
    the warm-up rows a second time, whole weeks later, for their in-sample scores.
    """
    with patched(patches):
        return _trace(kwargs, stream, seed, Stopwatch(seconds_left))


def _trace(kwargs: Mapping[str, Any], stream: Stream, seed: int, watch: Stopwatch) -> Trace:
    detector = Detector(
        fields=stream.values.shape[1], warmup=stream.warmup, config=DetectorConfig(seed=seed, **kwargs)
    )
    values, onsets, alarms = np.zeros(stream.rows), np.zeros(stream.rows), np.zeros(stream.rows, bool)
    twin, fit_seconds = detector, 0.0
    for row, (time_s, x) in enumerate(zip(stream.time_s.tolist(), stream.values, strict=True)):
        watch.check(row)
        if row == stream.warmup:
            watch.lap()
        score = detector.update(time_s, x)
        values[row], alarms[row] = score.value, score.alarm
        onsets[row] = score.onset
        if row == stream.warmup:
            fit_seconds = watch.lap()
            twin = copy.deepcopy(detector)
            watch.lap()
    live = watch.lap()
    in_sample = again(twin, stream, watch)
    per_reading = 1e6 * live / max(stream.rows - stream.warmup - 1, 1)
    return Trace(values, onsets, alarms, in_sample, per_reading, fit_seconds)


def again(trained: Detector, stream: Stream, watch: Stopwatch) -> NDArray[np.float64]:
    """Scores (W,) of the warm-up rows by the detector that was trained on them."""
    times = stream.time_s[: stream.warmup]
    later_s = WEEK_S * np.ceil((stream.time_s[stream.warmup] - times[0] + 1.0) / WEEK_S)
    scores = np.zeros(stream.warmup)
    for row in range(stream.warmup):
        watch.check(row)
        scores[row] = trained.update(float(times[row] + later_s), stream.values[row]).value
    return scores


def control_trace(name: str, stream: Stream, seed: int, _seconds_left: float) -> Trace:
    """Score a stream with one of gruard's controls, whole arrays at a time."""
    watch = Stopwatch(0.0)
    values = controls.score(name, stream.values, stream.warmup, seed=seed)
    alarms = np.ones(stream.rows, bool) if name == "always" else None
    return Trace(values, None, alarms, None, 1e6 * watch.lap() / stream.rows, 0.0)


def seeds_of(contender: Contender, seeds: Iterable[int]) -> list[int]:
    """The seeds that a contender is run with: the first alone where one tells all."""
    return list(seeds) if contender.several_seeds else list(seeds)[:1]
