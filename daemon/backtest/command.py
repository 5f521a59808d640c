"""`gruard backtest`: read, score, measure, and write the reports, whatever comes in between."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Self

from gruard.daemon import __version__
from gruard.daemon.backtest import terminal
from gruard.daemon.backtest.measures import total
from gruard.daemon.backtest.networks import network_for
from gruard.daemon.backtest.page import page
from gruard.daemon.backtest.readings import chosen, load
from gruard.daemon.backtest.report import Report, as_json
from gruard.daemon.backtest.run import Options, plan, run
from gruard.daemon.backtest.wording import plain
from gruard.daemon.errors import ConfigError
from gruard.models.detector import LEAST_WARMUP, DetectorConfig
from gruard.models.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import FrameType
    from typing import TextIO

    from rich.console import Console

    from gruard.daemon.backtest.networks import Network
    from gruard.daemon.backtest.run import Finished, Plan
    from gruard.daemon.settings import Settings

#: Exit statuses, and what a shell expects of a program that was interrupted.
OK, INTERRUPTED = 0, 130
#: Names of the reports below `--out`.
PAGE, JSON, CHART = "report.html", "report.json", "report.png"
_STOPPING = "Stopping: what is scored so far is reported. Ctrl-C again ends at once."
WEEK_S, MOST_SEED = 7 * 86_400, 2**32 - 1


@dataclass(slots=True, eq=False)
class _Work:
    """What came of the scoring."""

    finished: list[Finished] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)  # device, reason
    interrupted: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for on the command line; None and empty: not said."""

    path: Path
    out: Path | None = None
    model: str | None = None
    warmup: str | None = None
    shared: bool = False
    labels: str | None = None
    exclude: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    seed: int | None = None
    json: bool = False  # to standard output, which then holds nothing else


class Interruption:
    """While it is open, Ctrl-C asks for an early end, and a second one ends at once."""

    def __init__(self, told: Callable[[], None]) -> None:
        self.asked = False
        self._told = told

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self._told()


def backtest(settings: Settings, request: Request) -> int:
    """Run a backtest; returns the exit status.

    Raises:
        ConfigError: nothing can be judged as asked; one sentence with the file or the option.
    """
    network = network_for(request.model or settings.model.cell)
    options = _options(settings, request, network)
    folder = _folder(request)
    series = chosen(request.path, request.devices, load(request.path, request.labels, request.exclude))
    planned = plan(series, options)
    if not planned.batches:
        raise ConfigError(_why_nothing(request, planned.skipped))
    told = terminal.console_on(sys.stderr)
    work = _run_all(planned, options, told)
    finished, skipped = work.finished, (*planned.skipped, *work.failed)
    if not finished and not work.interrupted:
        raise ConfigError(_why_nothing(request, skipped))
    if not finished:
        told.print("Interrupted before the first warm-up was over: nothing to report.")
        return INTERRUPTED
    known = {one.series.name for one in finished} | {name for name, _ in skipped}
    report = Report(
        recording=str(request.path),
        version=__version__,
        made_s=time.time(),
        options=_told(settings, request, options),
        causal=network.causal,
        finished=tuple(finished),
        total=total([(one.series, one.measured) for one in finished]),
        skipped=skipped,
        unfinished=tuple(one.name for one in series if one.name not in known),
        notes=tuple(dict.fromkeys(note for one in series for note in one.notes)),
    )
    terminal.show(report, told if request.json else terminal.console_on(sys.stdout))
    if folder is not None:
        _write(report, folder, sys.stderr if request.json else sys.stdout)
    if request.json:
        sys.stdout.buffer.write(as_json(report))
    return INTERRUPTED if report.interrupted else OK


def _options(settings: Settings, request: Request, network: Network) -> Options:
    model, budget = settings.model, settings.alerts.false_alarms
    if request.seed is not None and not 0 <= request.seed <= MOST_SEED:
        raise ConfigError(f"--seed: must be 0..{MOST_SEED}, not {request.seed}")
    if request.shared and not network.causal:
        raise ConfigError(f"--shared: {network.cell} hears what follows, of one device at a time")
    config = DetectorConfig(
        cell=network.cell,
        hidden=model.hidden,
        layers=model.layers,
        dropout=model.dropout,
        seed=settings.train.seed if request.seed is None else request.seed,
        alarms_per_week=budget.per_second * WEEK_S,
        alarms_per_10k=None if budget.per_reading is None else budget.per_reading * 10_000,
    )
    return Options(
        config,
        warmup=None if request.warmup is None else parse_warmup(request.warmup),
        least_warmup=model.warmup_readings,
        shared=request.shared,
        update_every_s=settings.alerts.update_every_s,
    )


def parse_warmup(text: str) -> int | float:
    """`--warmup`: a number of readings, or a share of them between 0 and 1.

    Raises:
        ConfigError: it is neither.
    """
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if 0 < number < 1:
        return number
    if number.is_integer() and number >= LEAST_WARMUP:
        return int(number)
    raise ConfigError(
        f'--warmup: "{text}" is neither a number of readings from {LEAST_WARMUP} on (as in 400)'
        " nor a share of them below 1 (as in 0.2)"
    )


def _folder(request: Request) -> Path | None:
    """The directory for the reports, made before any work is done for them; None: none is wanted."""
    folder = request.out
    if folder is None:
        if request.json:
            return None
        folder = Path(f"{request.path.resolve().stem or 'recording'}-backtest")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out: {folder}: cannot be made: {error.strerror}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"--out: {folder}: cannot be written to")
    return folder


def _run_all(planned: Plan, options: Options, told: Console) -> _Work:
    """Score batch after batch."""
    work = _Work()
    readings = sum(one.rows for batch in planned.batches for one in batch.series)
    with terminal.bar(told) as bar, Interruption(lambda: bar.console.print(_STOPPING)) as interruption:
        task = bar.add_task("scoring", total=readings)
        before = 0

        def progress(rows: int) -> None:
            bar.update(task, completed=before + rows)

        for batch in planned.batches:
            if interruption.asked:
                break
            names = [one.name for one in batch.series]
            shown = names[0] if len(names) == 1 else f"{len(names)} devices"
            bar.update(task, description=plain(shown), completed=before)
            try:
                work.finished += run(batch, options, planned.stretches, progress, lambda: interruption.asked)
            except ModelError as error:
                work.failed += [(name, f"cannot be learnt from its warm-up: {error}") for name in names]
            before += sum(one.rows for one in batch.series)
        work.interrupted = interruption.asked
    return work


def _why_nothing(request: Request, skipped: Sequence[tuple[str, str]]) -> str:
    reasons = "; ".join(f"{name} {reason}" for name, reason in skipped[:5])
    hint = "a shorter warm-up (--warmup) or a longer recording would help"
    return f"{request.path}: nothing can be judged: {reasons}: {hint}"


def _told(
    settings: Settings, request: Request, options: Options
) -> dict[str, str | int | float | bool | None]:
    config = options.config
    return {
        "model": config.cell,
        "hidden": config.hidden,
        "layers": config.layers,
        "dropout": config.dropout,
        "seed": config.seed,
        "budget": settings.alerts.budget,
        "warmup": options.warmup,
        "shared": options.shared,
        "label": request.labels,
    }


def _write(report: Report, folder: Path, out: TextIO) -> None:
    """Write the reports, each at once: what was there before stays until the new one is whole."""
    try:
        _replace(folder / JSON, lambda path: path.write_bytes(as_json(report)))
        _replace(folder / PAGE, lambda path: path.write_text(page(report), encoding="utf-8"))
        written = [JSON, PAGE]
        if find_spec("matplotlib") is None:
            out.write(f"No {CHART}: it needs matplotlib (pip install 'gruard[report]').\n")
        else:
            from gruard.daemon.backtest.chart import write_chart  # noqa: PLC0415 - an extra

            _replace(folder / CHART, lambda path: write_chart(report, path))
            written.append(CHART)
    except OSError as error:
        raise ConfigError(f"--out: {folder}: cannot be written to: {error.strerror}") from None
    out.write(f"Written: {', '.join(str(folder / name) for name in written)}\n")


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    scratch = path.with_name(f".{path.name}.part")
    try:
        write(scratch)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
