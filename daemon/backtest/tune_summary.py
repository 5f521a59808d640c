"""What a search came to, on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from gruard.daemon.backtest.gain import LEAST_PLACES, LEAST_SEEDS, PRICE
from gruard.daemon.backtest.held_back import SELECT, TEACH
from gruard.daemon.backtest.wording import plain
from gruard.daemon.config_sources import PREFIX

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from rich.console import Console

    from gruard.daemon.backtest.gain import Gain, Worth
    from gruard.daemon.backtest.tune import Space
    from gruard.daemon.backtest.tune_command import Found
    from gruard.daemon.backtest.tune_history import Ground
    from gruard.daemon.settings_tables import Model

NO_GAIN = "No gain that can be told from luck."


def settings_of(model: Model) -> str:
    """Settings in a few words."""
    layers = "1 layer" if model.layers == 1 else f"{model.layers} layers"
    return (
        f"{model.cell} {model.hidden}, {layers}, dropout {model.dropout:g}, warm-up {model.warmup_readings:,}"
    )


def show(console: Console, path: Path, ground: Ground, found: Found) -> None:
    """Print what was tried, how it was judged, what came of it, and what was not searched."""
    console.print(Text(plain(f"Tuning on {path}"), style="bold"))
    _lines(console, _how(ground))
    console.print()
    console.print(f"{found.tried:,} settings tried; the best of them on the readings that select:")
    rows = [("present", found.present), *(("", one) for one in found.finalists[1:])]
    _table(
        console, [(name, settings_of(one.model), *_worth(one.worth), "") for name, one in rows], cost=False
    )
    if found.gain is not None and found.cost_us is not None:
        console.print()
        console.print("On the readings that confirm, which no trial has seen:")
        sides = (
            ("present", found.present.model, found.gain.present, found.cost_us[0]),
            ("best", found.best.model, found.gain.new, found.cost_us[1]),
        )
        _table(
            console, [(n, settings_of(m), *_worth(w), f"{cost:.1f}") for n, m, w, cost in sides], cost=True
        )
    console.print()
    _lines(console, verdict(found))
    _lines(console, _limits(ground, found), "dim")


def show_written(console: Console, out: Path, config: Path | None, environ: Mapping[str, str]) -> None:
    """Say what was written, and what would keep it from being heard."""
    origin = "with [model] changed" if config else "the [model] table alone: add it to your configuration"
    console.print(
        Text(plain(f"Written: {out} ({f'{config} {origin}' if config else origin})")), soft_wrap=True
    )
    names = sorted(name for name in environ if name.startswith(f"{PREFIX}MODEL__") and environ[name])
    if names:
        console.print(Text(plain(f"The environment overrides it: {', '.join(names)}"), style="bold yellow"))


def verdict(found: Found) -> list[str]:
    """What the search came to, in sentences."""
    told = ["Interrupted: not everything was tried that was asked for."] if found.interrupted else []
    if found.gain is not None:
        told.append(f"Gain: {_interval(found.gain)}.")
    return told if found.gain is not None and found.gain.certain else [*told, f"{NO_GAIN} {_why_none(found)}"]


def _why_none(found: Found) -> str:
    if not found.tried:
        return "Not one trial came to an end."
    if not found.better:
        return "Nothing that was tried did better than the present settings."
    if found.gain is None:
        return f"The best was not confirmed: that takes {LEAST_SEEDS} comparisons at {LEAST_PLACES} places."
    if found.gain.high < 0:
        return "What did best in the search does worse than the present settings."
    return "The interval holds 0."


def _interval(gain: Gain) -> str:
    return (
        f"{gain.mean:+.3f} (95 % interval {gain.low:+.3f} to {gain.high:+.3f}; {gain.seeds} seeds x"
        f" {gain.places} places, paired bootstrap)"
    )


def _how(ground: Ground) -> list[str]:
    rows = sum(one.rows for one in ground.series)
    count = len(ground.series)
    devices = "1 device" if count == 1 else f"{count} devices, one network for those with the same fields"
    judged = (
        "the labelled anomalies"
        if ground.labelled
        else "faults of known place and size, put into a copy; alerts are counted in the original"
    )
    split = f"{TEACH:.0%} teach, {SELECT - TEACH:.0%} select, {1 - SELECT:.0%} confirm"
    price = f"{PRICE:g} for each false alert per 10,000 readings that alerts.budget does not accept"
    return [
        f"{rows:,} readings of {devices}; in time: {split}.",
        f"Judged by {judged}. Worth = VUS-PR - {price}.",
        *ground.notes,
    ]


def _limits(ground: Ground, found: Found) -> list[str]:
    told = []
    if not found.in_time:
        told.append("Time was up before all trials were done: --minutes gives more.")
    if not ground.labelled:
        told.append(
            "Faults that were put in are not those of your machines, and a real one in this history counts"
            " against whoever alerts in it."
        )
    told.append(
        "A model learnt from the warm-up readings before a part, as the first one of a device does; later"
        " ones of the daemon learn from up to train.max_rows_per_device. A longer warm-up is a longer wait."
    )
    told.append(
        f"Searched: {_searched(found.space)}. Not searched: [train], alerts.budget, which fields are read,"
        " and everything in the detector but the network."
    )
    return told


def _searched(space: Space) -> str:
    return (
        f"cell gru, lstm or rnn; hidden {_range(space.hidden)}; layers {_range(space.layers)};"
        f" dropout {_range(space.dropout)}; warmup_readings {_range(space.warmup_readings)}"
    )


def _range(ends: Sequence[float]) -> str:
    return f"{ends[0]:g} to {ends[1]:g}"


def _worth(worth: Worth) -> tuple[str, str, str]:
    return f"{worth.vus_pr:.3f}", f"{worth.false_per_10k:.1f}", f"{worth.worth:.3f}"


def _table(console: Console, rows: Sequence[tuple[str, ...]], *, cost: bool) -> None:
    columns = ("", "settings", "VUS-PR", "false alerts per 10,000", "worth", "µs per reading")
    table = Table(box=None, pad_edge=False)
    for place, column in enumerate(columns if cost else columns[:-1]):
        table.add_column(column, justify="right" if place > 1 else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(plain(cell)) for cell in row[: len(table.columns)]))
    console.print(table)


def _lines(console: Console, lines: Sequence[str], style: str = "") -> None:
    for line in lines:
        console.print(Text(plain(line), style=style), soft_wrap=True)
