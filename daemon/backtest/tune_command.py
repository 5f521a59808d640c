"""`gruard tune`: search on the user's own history, compare with the present settings, write the better."""

from __future__ import annotations

import os
import shutil
import sys
import time
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from gruard.daemon.backtest import terminal, tune_summary
from gruard.daemon.backtest.command import INTERRUPTED, MOST_SEED, OK, WEEK_S, Interruption
from gruard.daemon.backtest.gain import LEAST_SEEDS, compare, worth
from gruard.daemon.backtest.held_back import Conditions, examine
from gruard.daemon.backtest.readings import chosen, load
from gruard.daemon.backtest.tune_history import prepare
from gruard.daemon.backtest.tuned_file import tuned
from gruard.daemon.backtest.wording import plain
from gruard.daemon.errors import ConfigError
from gruard.models.detector import DetectorConfig
from gruard.models.errors import ModelError
from gruard.models.lockstep import score_series

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from gruard.daemon.backtest.gain import Gain, Worth
    from gruard.daemon.backtest.held_back import Part, Sheet
    from gruard.daemon.backtest.series import Series
    from gruard.daemon.backtest.tune import Space, Tried
    from gruard.daemon.backtest.tune_history import Ground
    from gruard.daemon.settings import Settings
    from gruard.daemon.settings_tables import Model

#: Settings that are looked at again before the best is chosen, how often, and the seeds of the comparison.
FINALISTS, LOOKS, SEEDS = 3, 2, 5
#: Runs that come behind the trials.
BEHIND = (1 + FINALISTS) * LOOKS + 2 * SEEDS
DEFAULT_OUT = Path("gruard.tuned.toml")
MOST_TRIALS, MOST_MINUTES = 10_000, 10_000.0
_STOPPING = (
    "Stopping the search: the best so far is compared with the present settings next."
    " Ctrl-C again ends at once and writes nothing."
)
_ENDING = "Ending the comparison. Ctrl-C again ends at once and writes nothing."


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for on the command line; None and empty: not said."""

    path: Path | None = None
    config: Path | None = None
    out: Path = DEFAULT_OUT
    trials: int = 20
    minutes: float = 10.0
    seed: int | None = None
    labels: str | None = None
    exclude: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    force: bool = False


@dataclass(slots=True, eq=False)
class Found:
    """What came of the search and of the comparison."""

    space: Space
    tried: int  # settings, besides the present ones
    finalists: list[Tried]  # the present settings, then those that did best in the search
    in_time: bool = True  # all trials that were asked for
    interrupted: bool = False
    gain: Gain | None = None  # None: not compared, or with too few seeds or places to tell
    cost_us: tuple[float, float] | None = None  # to score a reading: present settings, best

    @property
    def present(self) -> Tried:
        """The present settings."""
        return self.finalists[0]

    @property
    def best(self) -> Tried:
        """What is worth most on the readings that select: the present settings where nothing is better."""
        return max(self.finalists, key=lambda one: one.worth.worth)

    @property
    def better(self) -> bool:
        """Whether anything was better there than the present settings."""
        return self.best is not self.present


def tune(settings: Settings, request: Request) -> int:
    """Search, compare, and write what is better; returns the exit status.

    Raises:
        ConfigError: nothing can be tuned as asked; one sentence with the file or the option.
    """
    _check(request)
    seed = settings.train.seed if request.seed is None else request.seed
    path = settings.state.directory if request.path is None else request.path
    series = chosen(path, request.devices, _load(path, request))
    ground = prepare(path, series, settings.model.warmup_readings, seed)
    budget = settings.alerts.false_alarms
    base = DetectorConfig(
        alarms_per_week=budget.per_second * WEEK_S,
        alarms_per_10k=None if budget.per_reading is None else budget.per_reading * 10_000,
    )
    told = terminal.console_on(sys.stderr)
    work = _Work(ground, Conditions(base, settings.alerts.update_every_s, score_series), request, seed, told)
    found = work.run(settings.model, path)
    if found is None:
        told.print("Interrupted before anything was tried: nothing to keep.")
        return INTERRUPTED
    out = terminal.console_on(sys.stdout)
    tune_summary.show(out, path, ground, found)
    if found.better and (request.force or (found.gain is not None and found.gain.certain)):
        _write(request, found.best.model)
        tune_summary.show_written(out, request.out, request.config, os.environ)
    else:
        out.print("Nothing was written." + (" --force writes the best all the same." if found.better else ""))
    return INTERRUPTED if found.interrupted else OK


def _check(request: Request) -> None:
    """What can be known to fail before any work is done for it."""
    if find_spec("optuna") is None:
        raise ConfigError("gruard tune needs optuna, which is not installed: pip install 'gruard[tune]'")
    if not 1 <= request.trials <= MOST_TRIALS:
        raise ConfigError(f"--trials: must be 1..{MOST_TRIALS}, not {request.trials}")
    if not 0 < request.minutes <= MOST_MINUTES:
        raise ConfigError(f"--minutes: must be above 0 and at most {MOST_MINUTES:g}, not {request.minutes:g}")
    if request.seed is not None and not 0 <= request.seed <= MOST_SEED:
        raise ConfigError(f"--seed: must be 0..{MOST_SEED}, not {request.seed}")
    if request.out.is_dir():
        raise ConfigError(f"--out: {request.out}: is a directory: name a file in it")
    if request.out.exists() and not request.force:
        raise ConfigError(f"--out: {request.out}: exists: name another file, or overwrite it with --force")
    if not os.access(request.out.parent, os.W_OK | os.X_OK):
        raise ConfigError(f"--out: {request.out}: its directory is missing or cannot be written to")


def _load(path: Path, request: Request) -> list[Series]:
    try:
        return load(path, request.labels, request.exclude)
    except ConfigError as error:
        if request.path is not None:
            raise
        raise ConfigError(
            f"{error} (the state directory: name a recording, or give the daemon's configuration with -c)"
        ) from None


class _Work:
    """The runs of a search and of a comparison, with one bar over all of them."""

    def __init__(
        self, ground: Ground, conditions: Conditions, request: Request, seed: int, told: Console
    ) -> None:
        self._ground, self._conditions, self._seed = ground, conditions, seed
        self._request, self._told = request, told
        self._started = time.perf_counter()
        self._runs = 0  # as the bar counts them
        self._done = 0  # those that were begun

    def run(self, present: Model, path: Path) -> Found | None:
        """Everything; None when it was interrupted before the present settings were tried.

        Raises:
            ConfigError: the present settings cannot be trained on this history.
        """
        with _bar(self._told, 1 + self._request.trials + BEHIND) as self._bar:
            with Interruption(lambda: self._told.print(_STOPPING)) as interruption:
                try:
                    found = self._search(present, lambda: interruption.asked)
                except ModelError as error:
                    raise ConfigError(f"{path}: the present settings cannot be tried: {error}") from None
                if found is None:
                    return None
                self._look_again(found, lambda: interruption.asked)
                found.interrupted = interruption.asked
            if found.better:
                with Interruption(lambda: self._told.print(_ENDING)) as interruption:
                    self._confirm(found, lambda: interruption.asked)
                    found.interrupted |= interruption.asked
            return found

    def _search(self, present: Model, stop: Callable[[], bool]) -> Found | None:
        from gruard.daemon.backtest.tune import Tried, search, space_around  # noqa: PLC0415 - an extra

        held, trials = self._ground.select(0), self._request.trials

        def judge(model: Model) -> Worth | None:
            what = f"trial {self._runs} of {trials}" if self._runs else "present settings"
            sheet = self._examine(what, held, model, self._seed, stop)
            return None if sheet is None else worth([sheet])

        first = judge(present)
        if first is None:
            return None
        space, own = space_around(present, self._ground.most_warmup), Tried(present, first)
        tried = search(space, own, trials, self._seed, judge, self._out_of_time)
        best = sorted(tried, key=lambda one: -one.worth.worth)[:FINALISTS]
        return Found(space, len(tried), [own, *best], in_time=stop() or self._runs > trials)

    def _out_of_time(self, runs: int = 1 + BEHIND) -> bool:
        """Whether so many runs more would take too long: for a trial, itself and what comes behind it."""
        elapsed = time.perf_counter() - self._started
        return elapsed * (1 + runs / self._done) > 60.0 * self._request.minutes

    def _look_again(self, found: Found, stop: Callable[[], bool]) -> None:
        """Judge the finalists anew: the best of many runs is partly the luckiest of them."""
        self._runs = 1 + self._request.trials
        sheets: list[list[Sheet]] = [[] for _ in found.finalists]
        for look in range(1, 1 + LOOKS):
            held = self._ground.select(look)
            for own, one in zip(sheets, found.finalists, strict=True):
                sheet = self._examine("another look", held, one.model, self._seed_of(look), stop)
                if sheet is None or self._out_of_time(0):
                    return
                own.append(sheet)
        again = zip(found.finalists, sheets, strict=True)
        found.finalists = [replace(one, worth=worth(own)) for one, own in again]

    def _confirm(self, found: Found, stop: Callable[[], bool]) -> None:
        """Compare the best with the present settings on readings that no trial has seen."""
        self._runs = 1 + self._request.trials + BEHIND - 2 * SEEDS
        pairs: list[tuple[Sheet, Sheet]] = []
        for repeat in range(SEEDS):
            held, seed = self._ground.confirm(repeat), self._seed_of(1 + LOOKS + repeat)
            what = f"comparison {repeat + 1} of {SEEDS}"
            try:
                before = self._examine(what, held, found.present.model, seed, stop)
                after = self._examine(what, held, found.best.model, seed, stop)
            except ModelError:
                return  # the rows that teach are the same for every seed
            if before is None or after is None:
                break
            pairs.append((before, after))
            if len(pairs) >= LEAST_SEEDS and self._out_of_time(2):
                break
        if pairs:
            present, best = zip(*pairs, strict=True)
            found.gain = compare(present, best)
            found.cost_us = (_median_cost(present), _median_cost(best))

    def _seed_of(self, run: int) -> int:
        return (self._seed + run) % (MOST_SEED + 1)

    def _examine(
        self, what: str, held: list[Part], model: Model, seed: int, stop: Callable[[], bool]
    ) -> Sheet | None:
        description = plain(f"{what}: {tune_summary.settings_of(model)}")
        task, before = self._bar.task_ids[0], self._runs

        def progress(share: float) -> None:
            self._bar.update(task, completed=before + share, description=description)

        progress(0.0)
        self._runs += 1
        self._done += 1
        return None if stop() else examine(held, model, self._conditions, seed, progress, stop)


def _median_cost(sheets: tuple[Sheet, ...]) -> float:
    return float(np.median([sheet.cost_us for sheet in sheets]))


def _bar(console: Console, runs: int) -> Progress:
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("runs"),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )
    bar.add_task("reading", total=runs)
    return bar


def _write(request: Request, model: Model) -> None:
    """Write the configuration, readable for whom the one that it is made from is."""
    scratch = request.out.with_name(f".{request.out.name}.part")
    try:
        text = None if request.config is None else request.config.read_text(encoding="utf-8")
        # A configuration may hold a password: nobody else may read it, not even for a moment.
        scratch.touch(0o600 if request.config else 0o644, exist_ok=False)
        scratch.write_text(tuned(text, model), encoding="utf-8")
        if request.config is not None:
            shutil.copymode(request.config, scratch)
        if not request.force:
            request.out.touch(exist_ok=False)  # it may have come to be in the meantime
        scratch.replace(request.out)
    except OSError as error:
        raise ConfigError(f"--out: {request.out}: cannot be written: {error.strerror}") from None
    finally:
        scratch.unlink(missing_ok=True)
