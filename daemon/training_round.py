"""One training round, as a process of its own: history in, a judged candidate out. Imports torch.

Reads a TrainRequest from standard input and the history from the database; writes weights to the state
directory; prints a TrainOutcome as its last line. Whatever happens here cannot reach the scorer.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from gruard.daemon.core.flags import IN_ALARM
from gruard.daemon.edges.database import open_readonly
from gruard.daemon.edges.kept_round import KeptFit
from gruard.daemon.edges.trainer import MODELS, TrainOutcome, TrainRequest
from gruard.daemon.round_conduct import Conduct, OutOfTimeError, yield_to_all
from gruard.models import memory, weights
from gruard.models.arena import fresh
from gruard.models.enrolment import replay
from gruard.models.errors import ModelError
from gruard.models.forecaster import Forecaster
from gruard.models.history import FIT_SHARE, History, align, blank, mean_error, normal_rows
from gruard.models.training.candidate import TrainingOptions, train
from gruard.models.training.cleaning import abnormal_rows
from gruard.models.training.fit import FitConfig

if TYPE_CHECKING:
    from gruard.models.training.candidate import Candidate
    from gruard.models.training.fit import Progress
    from gruard.models.weights import ModelPackage

#: A candidate may forecast held-back rows worse than the live model by this factor: ties go to fresh data.
MAY_LOSE = 1.02
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
    clean, left_out = _cleaned(histories, request.seed)
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
    if request.parent is not None:
        verdict = _compare(clean, candidate, folder, request.parent)
        if verdict:
            return TrainOutcome(request.group, "rejected", verdict)
    package = _seal(request, candidate, histories)
    folder.mkdir(mode=0o700, exist_ok=True)
    weights.write(folder, package)
    reason = f"skill {candidate.skill:.3f} against the baseline on {len(candidate.devices)} devices"
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
        for device in request.devices:
            with conduct.holding():
                rows = reader.history(device, request.fields, request.max_rows, request.before_lsn)
            early = rows.time_s < before_s
            if early.any():
                normal = (rows.flags[early] & IN_ALARM) == 0
                histories[device] = History(rows.time_s[early], rows.values[early], normal)
    return histories


def _cleaned(histories: dict[str, History], seed: int) -> tuple[dict[str, History], int]:
    """The histories with rows marked that were abnormal in hindsight, and how many these are."""
    try:
        flags = abnormal_rows(histories, seed)
    except ModelError:
        return histories, 0  # too little to judge by
    clean = {name: replace(h, normal=h.normal & ~flags[name]) for name, h in histories.items()}
    return clean, sum(int((h.normal & flags[name]).sum()) for name, h in histories.items())


def _compare(histories: dict[str, History], candidate: Candidate, folder: Path, parent: str) -> str:
    """Why the candidate must not replace the live model; empty when it may."""
    try:
        package = weights.read(folder, parent)
        live = Forecaster(weights.check_network(package), package.tensors)
    except ModelError:
        return ""  # a live model that cannot be read any more is no reason to keep it
    error = _held_back_error([histories[name] for name in candidate.devices], live)
    if candidate.held_back_error > MAY_LOSE * error:
        return f"held-back error {candidate.held_back_error:.4f} is worse than the live model's {error:.4f}"
    return ""


def _held_back_error(histories: list[History], forecaster: Forecaster) -> float:
    readings = align(blank(histories, [None] * len(histories)), histories)
    residual = replay(fresh(memory.columns(forecaster), len(histories)), readings, forecaster)[0]  # (T, N, F)
    held = slice(int(len(readings.valid) * FIT_SHARE), None)
    seen = readings.mask & normal_rows(histories, len(readings.valid))[..., None]
    return mean_error(residual[held], seen[held])


def _seal(request: TrainRequest, candidate: Candidate, histories: dict[str, History]) -> ModelPackage:
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
        report=candidate.report,
        tensors=candidate.tensors,
    )


if __name__ == "__main__":
    sys.exit(main())
