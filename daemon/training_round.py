"""One training round, as a process of its own: history in, a judged candidate out. Imports torch.

Reads a TrainRequest from standard input and the history from the database; writes weights to the state
directory; prints a TrainOutcome as its last line. Whatever happens here cannot reach the scorer.
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from gruard.daemon import anchor
from gruard.daemon.core.words import taught
from gruard.daemon.edges.database import open_readonly
from gruard.daemon.edges.kept_round import KeptFit
from gruard.daemon.edges.trainer import MODELS, TrainOutcome, TrainRequest
from gruard.daemon.enrolment import history_of
from gruard.daemon.round_conduct import Conduct, OutOfTimeError, yield_to_all
from gruard.models import memory, weights
from gruard.models.arena import fresh
from gruard.models.enrolment import fitted_devices, replay
from gruard.models.errors import ModelError
from gruard.models.forecaster import Forecaster
from gruard.models.history import FIT_SHARE, History, align, blank, mean_error, normal_rows
from gruard.models.training.candidate import TrainingOptions, train
from gruard.models.training.cleaning import abnormal_rows
from gruard.models.training.fit import FitConfig
from gruard.models.training.trial import Model, Trial

if TYPE_CHECKING:
    from gruard.models.drift import Drift
    from gruard.models.training.candidate import Candidate
    from gruard.models.training.fit import Progress
    from gruard.models.training.trial import Verdict
    from gruard.models.weights import ModelPackage

#: A candidate may forecast held-back rows worse than the live model by this factor: ties go to fresh data.
MAY_LOSE = 1.02
#: Devices that are told of for slow drift at most.
MOST_DRIFTS = 500
#: The fit ends in order, with the best weights so far, while there is time to judge them.
FIT_SHARE_OF_TIME = 0.6


def main() -> int:
    """Run the round on standard input; exit 0 whenever an outcome was printed."""
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=TrainRequest)
    yield_to_all(request.nice)
    began = time.monotonic()
    try:
        outcome = run_round(request, Conduct())
    except OutOfTimeError:
        late = f"not done after {request.max_cpu_s or 0:.0f} s of processor time"
        outcome = TrainOutcome(request.group, "timeout", late)
    sys.stdout.flush()
    ended = msgspec.structs.replace(outcome, seconds=time.monotonic() - began)
    sys.stdout.buffer.write(b"\n" + msgspec.json.encode(ended) + b"\n")
    return 0


def run_round(request: TrainRequest, conduct: Conduct) -> TrainOutcome:
    """Train a candidate, judge it against the live model, and write it when it is good enough.

    Raises:
        OutOfTimeError: the processor time is used up; nothing was written that anybody will read.
    """
    conduct.tell("reading history", 0.0)
    histories = _histories(request, conduct)
    conduct.tell("looking for abnormal readings", 0.1)
    clean = _cleaned(histories, request.seed)
    net = FitConfig(
        cell=request.cell,
        hidden=request.hidden,
        layers=request.layers,
        dropout=request.dropout,
        seed=request.seed,
        max_seconds=FIT_SHARE_OF_TIME * request.max_seconds,
    )
    try:
        options = TrainingOptions(net, request.budget)
        conduct.tell("preparing", 0.3)
        keeper = KeptFit(Path(request.directory))
        candidate = train(clean, options, partial(_tell_step, conduct), clock=conduct.clock, keeper=keeper)
    except ModelError as error:
        return TrainOutcome(request.group, "rejected", str(error))
    conduct.tell("judging", 0.9)
    folder = Path(request.directory) / MODELS
    outcome = _tried(request, candidate, histories, clean, folder)
    watched = _watched(request, clean, folder)
    if watched is None:
        return outcome
    return msgspec.structs.replace(outcome, watched=True, drifts=tuple(watched[:MOST_DRIFTS]))


def _tried(
    request: TrainRequest,
    candidate: Candidate,
    histories: dict[str, History],
    clean: dict[str, History],
    folder: Path,
) -> TrainOutcome:
    """Put the candidate on trial, and write it when it may take charge."""
    taught = {name: clean[name] for name in candidate.devices}
    refusal, verdict = _judged(request, taught, candidate, folder)
    if refusal:
        return TrainOutcome(request.group, "rejected", refusal)
    package = _seal(request, candidate, histories, verdict)
    folder.mkdir(mode=0o700, exist_ok=True)
    weights.write(folder, package)
    reason = f"skill {candidate.skill:.3f} against the baseline on {len(candidate.devices)} devices"
    reason += f"; {verdict.told}"
    left_out = sum(int((h.normal & ~clean[name].normal).sum()) for name, h in histories.items())
    if candidate.resumed_at:
        reason += f"; went on at step {candidate.resumed_at}"
    if left_out:
        reason += f"; {left_out} readings left out as abnormal in hindsight"
    return TrainOutcome(request.group, "promoted", reason, package.manifest.id)


def _tell_step(conduct: Conduct, progress: Progress) -> None:
    conduct.tell("fitting", 0.4 + 0.4 * progress.step / progress.steps)


def _histories(request: TrainRequest, conduct: Conduct) -> dict[str, History]:
    before_s = np.inf if request.before_s is None else request.before_s
    histories = {}
    with open_readonly(Path(request.directory)) as reader:
        judged = reader.judged()
        for device in request.devices:
            with conduct.holding():
                rows = reader.history(device, request.fields, request.max_rows, request.before_lsn)
            if (rows.time_s < before_s).any():
                known = history_of(rows, (), *request.new_normals.get(device, (-math.inf, -math.inf)))
                early, spans = known.time_s < before_s, judged.get(device, ())
                time_s = known.time_s[early]
                vouched = taught(time_s, np.zeros(len(time_s), bool), spans)
                normal = taught(time_s, known.normal[early], spans)
                histories[device] = History(time_s, known.values[early], normal, vouched)
    return histories


def _cleaned(histories: dict[str, History], seed: int) -> dict[str, History]:
    """The histories with rows marked that were abnormal in hindsight."""
    try:
        flags = abnormal_rows(histories, seed)
    except ModelError:
        return histories  # too little to judge by
    for name, history in histories.items():
        if history.vouched is not None:
            flags[name] = flags[name] & ~history.vouched
    return {name: replace(h, normal=h.normal & ~flags[name]) for name, h in histories.items()}


def _watched(request: TrainRequest, histories: dict[str, History], folder: Path) -> list[Drift] | None:
    """Devices that have left their first days, the farthest first; None where nobody can tell."""
    package = _package(folder, request.anchor)
    if package is None or request.first_days_s is None:
        return None
    begun = {name: span[0] for name, span in request.new_normals.items()}
    found = anchor.watch(folder, request.group, package, histories, request.first_days_s, begun)
    return sorted(found, key=lambda drift: -drift.excess)


def _judged(
    request: TrainRequest, histories: dict[str, History], candidate: Candidate, folder: Path
) -> tuple[str, Verdict]:
    """Why the candidate must not take charge, empty when it may; and how its trial ended."""
    new = Model(
        Forecaster(candidate.config, candidate.tensors),
        fitted_devices(candidate.devices, candidate.tensors),
        candidate.rows,
    )
    live, anchored = (_model(_package(folder, model)) for model in (request.parent, request.anchor))
    if request.anchor == request.parent:
        anchored = None
    verdict = Trial(histories, request.budget, request.seed).judge(new, live, anchored)
    if live is None:  # the group's first model, or one that cannot be read: no reason to keep that
        return verdict.refusal, verdict
    heads = [0 if (known := live.fitted.get(name)) is None else known.head for name in histories]
    error = _held_back_error(list(histories.values()), live.forecaster, heads)
    if candidate.held_back_error > MAY_LOSE * error:
        worse = f"held-back error {candidate.held_back_error:.4f} is worse than the live model's {error:.4f}"
        return worse, verdict
    return verdict.refusal, verdict


def _model(package: ModelPackage | None) -> Model | None:
    """A package as a trial takes it."""
    if package is None:
        return None
    manifest, tensors = package.manifest, package.tensors
    forecaster = Forecaster(weights.check_network(package), tensors)
    return Model(forecaster, fitted_devices(manifest.devices, tensors), manifest.rows)


def _package(folder: Path, model: str | None) -> ModelPackage | None:
    """A model's package; None where there is none that can be used."""
    try:
        package = None if model is None else weights.read(folder, model)
        if package is not None:
            weights.check_network(package)
            fitted_devices(package.manifest.devices, package.tensors)
    except ModelError:
        return None
    return package


def _held_back_error(histories: list[History], forecaster: Forecaster, heads: list[int]) -> float:
    readings = align(blank(histories, [None] * len(histories)), histories)
    rows = fresh(memory.columns(forecaster), len(histories))
    if forecaster.heads:
        rows["head"][:] = heads
    residual = replay(rows, readings, forecaster)[0]  # (T, N, F)
    held = slice(int(len(readings.valid) * FIT_SHARE), None)
    seen = readings.mask & normal_rows(histories, len(readings.valid))[..., None]
    return mean_error(residual[held], seen[held])


def _seal(
    request: TrainRequest, candidate: Candidate, histories: dict[str, History], verdict: Verdict
) -> ModelPackage:
    trial: dict[str, float | int | str] = {}
    if verdict.faults:
        trial = {"recall": verdict.recall, "faults": verdict.faults}
    used = [histories[name] for name in candidate.devices]
    return weights.seal(
        group=request.group,
        source=request.source,
        fields=request.fields,
        cell=candidate.config.cell,
        hidden=candidate.config.hidden,
        layers=candidate.config.layers,
        created_s=request.now_s,
        parent=request.parent,
        span_start_s=min(float(h.time_s[0]) for h in used),
        span_end_s=max(float(h.time_s[-1]) for h in used),
        rows=candidate.rows,
        devices=candidate.devices,
        skill=candidate.skill,
        report=candidate.report | trial,
        tensors=candidate.tensors,
    )


if __name__ == "__main__":
    sys.exit(main())
