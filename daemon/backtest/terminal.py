"""The report on a terminal, and the bar that tells how far a backtest is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from gruard.daemon.backtest import wording

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import TextIO

    from gruard.daemon.backtest.report import Report

#: Rows of a table that a terminal shows; the JSON has them all.
MOST_ROWS = 20
#: Columns where the output is no terminal: nothing is cut off there.
WIDE = 160


def console_on(stream: TextIO) -> Console:
    """A console that fits a terminal, and cuts nothing off where there is none."""
    return Console(file=stream, width=None if stream.isatty() else WIDE, highlight=False)


def bar(console: Console) -> Progress:
    """A progress bar over readings; nothing where the console is no terminal."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("readings"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )


def show(report: Report, console: Console) -> None:
    """Print what a backtest came to."""
    console.print(Text(wording.plain(f"Backtest of {report.recording}"), style="bold"))
    for text in wording.caveats(report):
        console.print(Text(wording.plain(text), style="bold yellow"))
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column()
    facts.add_column()
    for name, value in wording.headline(report):
        facts.add_row(name, Text(wording.plain(value)))
    console.print(facts)
    rankings = wording.ranking_rows(report.total.rankings)
    if rankings:
        console.print()
        _print_table(console, wording.RANKING_COLUMNS, rankings)
    console.print()
    _print_table(console, wording.DEVICE_COLUMNS, wording.device_rows(report))
    _print_more(console, [f"{name}: {reason}" for name, reason in report.skipped], "not judged: ")
    _print_more(console, report.notes, "")


def _print_table(console: Console, columns: Sequence[str], rows: Sequence[Iterable[str]]) -> None:
    table = Table(box=None, pad_edge=False)
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left", overflow="fold")
    for row in rows[:MOST_ROWS]:
        table.add_row(*(Text(wording.plain(cell)) for cell in row))
    console.print(table)
    if len(rows) > MOST_ROWS:
        console.print(f"and {len(rows) - MOST_ROWS:,} more")


def _print_more(console: Console, lines: Sequence[str], before: str) -> None:
    for text in lines[:MOST_ROWS]:
        console.print(Text(wording.plain(before + text), style="dim"))
    if len(lines) > MOST_ROWS:
        console.print(f"and {len(lines) - MOST_ROWS:,} more")
