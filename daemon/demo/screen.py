"""What a demo shows while it runs: a live table in a terminal, plain lines anywhere else.

`Board` is what is known so far and is filled by the runner; the two screens only draw it.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Mapping

_BAR_WIDTH = 10
_SHOWN_VALUES = 4
_STATUS_EVERY_S = 10.0
_STATE_STYLE = {"warming": "dim", "learning": "cyan", "ready": "green"}


@dataclass(slots=True)
class DeviceRow:
    """The newest of one device: what it published and what the daemon says of it."""

    device: str
    state: str = "-"
    score: float | None = None
    alarm: bool = False
    model: str = ""
    injected: str = ""  # the fault that is being injected now: the truth, beside the verdict
    values: Mapping[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class Board:
    """Everything a screen draws."""

    total_s: float
    phase: str = "starting"
    elapsed_s: float = 0.0
    sent: int = 0
    counted: int | None = None  # by the daemon, when last asked
    rate: float = 0.0  # readings per second, lately
    online: bool = False
    rows: dict[str, DeviceRow] = field(default_factory=dict)
    events: deque[str] = field(default_factory=lambda: deque(maxlen=8))

    def row(self, device: str) -> DeviceRow:
        """The row of `device`, made when it is new."""
        return self.rows.setdefault(device, DeviceRow(device))

    def take_state(self, state: Mapping[str, Any]) -> None:
        """Note a published device state; a payload without a device is passed over."""
        device = state.get("device")
        if not isinstance(device, str):
            return
        row = self.row(device)
        row.state = str(state.get("state", "-"))
        row.alarm = state.get("alarm") is True
        row.model = str(state.get("model") or "")
        score = state.get("score")
        row.score = float(score) if isinstance(score, int | float) else None

    def models(self) -> dict[str, int]:
        """Models in charge, with the number of devices each has."""
        return dict(Counter(row.model for row in self.rows.values() if row.model))

    def counts(self) -> dict[str, int]:
        """Devices in each state, and how many of them are in alarm."""
        counts = {"warming": 0, "learning": 0, "ready": 0, "alarm": 0}
        for row in self.rows.values():
            if row.state in counts:
                counts[row.state] += 1
            counts["alarm"] += row.alarm
        return counts


class Screen(Protocol):
    """Where a demo shows itself."""

    def event(self, text: str) -> None:
        """Show one thing that has just happened."""

    def refresh(self) -> None:
        """Draw the board as it is now."""

    def close(self) -> None:
        """Draw a last time and give the terminal back."""


class PlainScreen:
    """One line per event, and one status line every ten seconds."""

    def __init__(self, board: Board, out: TextIO) -> None:
        self._board = board
        self._out = out
        self._next_status_s = 0.0

    def event(self, text: str) -> None:
        """Print `text` with the time since the start."""
        self._board.events.append(text)
        self._print(text)

    def refresh(self) -> None:
        """Print the status line when it is due."""
        if self._board.elapsed_s >= self._next_status_s:
            self._next_status_s = self._board.elapsed_s + _STATUS_EVERY_S
            self._print(status_line(self._board))

    def close(self) -> None:
        """Print a last status line."""
        self._print(status_line(self._board))

    def _print(self, text: str) -> None:
        print(f"[{self._board.elapsed_s:5.1f} s] {text}", file=self._out, flush=True)


class LiveScreen:
    """A table that redraws itself in place, from construction until `close`."""

    def __init__(self, board: Board, console: Console) -> None:
        self._board = board
        self._live = Live(draw(board), console=console, auto_refresh=False, transient=False)
        self._live.start()

    def event(self, text: str) -> None:
        """Add `text` to the log under the table."""
        self._board.events.append(f"{self._board.elapsed_s:5.1f} s  {text}")
        self.refresh()

    def refresh(self) -> None:
        """Draw the board."""
        self._live.update(draw(self._board), refresh=True)

    def close(self) -> None:
        """Draw the board a last time and leave it on the terminal."""
        self.refresh()
        self._live.stop()


def open_screen(board: Board, out: TextIO, *, plain: bool | None) -> Screen:
    """The screen that fits `out`: live in a terminal, plain lines elsewhere, or as `plain` says."""
    if plain is None:
        plain = not out.isatty()
    return PlainScreen(board, out) if plain else LiveScreen(board, Console(file=out))


def status_line(board: Board) -> str:
    """The whole board in one line."""
    counts = board.counts()
    worst = max((row for row in board.rows.values() if row.score is not None), key=_score, default=None)
    parts = [
        f"{board.phase}: {board.elapsed_s:.0f} of {board.total_s:.0f} s",
        f"daemon {'online' if board.online else 'offline'}",
        _readings_text(board),
        f"devices {', '.join(f'{count} {state}' for state, count in counts.items())}",
        _models_text(board),
    ]
    if worst is not None:
        parts.append(f"highest score {worst.score:.2f} {worst.device}")
    return " | ".join(parts)


def draw(board: Board) -> Group:
    """The board as a rich picture: header, table, log."""
    header = Text.assemble(
        ("gruard demo  ", "bold"),
        (board.phase, "bold cyan"),
        f"  {board.elapsed_s:.0f}/{board.total_s:.0f} s  ",
        ("online" if board.online else "offline", "green" if board.online else "red"),
        f"  {_readings_text(board)}  {_models_text(board)}",
    )
    table = Table(expand=True, box=None, pad_edge=False)
    for title, min_width in (("device", 7), ("state", 8), ("score", 5), ("", _BAR_WIDTH)):
        table.add_column(title, min_width=min_width, no_wrap=True)
    table.add_column("last values", ratio=1, no_wrap=True, overflow="ellipsis")
    table.add_column("injected", min_width=14, no_wrap=True)
    for row in sorted(board.rows.values(), key=lambda row: row.device):
        table.add_row(*_cells(row), style="red" if row.alarm else "")
    log = Text("\n".join(board.events) or "no events yet")
    return Group(header, table, Panel(log, title="events", title_align="left"))


def _readings_text(board: Board) -> str:
    text = f"{board.sent} readings sent ({board.rate:.0f}/s)"
    return text if board.counted is None else f"{text}, {board.counted} counted"


def _models_text(board: Board) -> str:
    return "models " + (
        ", ".join(f"{model} ({devices})" for model, devices in board.models().items()) or "none"
    )


def _cells(row: DeviceRow) -> list[Text | ProgressBar]:
    values = "  ".join(f"{name} {value:.4g}" for name, value in list(row.values.items())[:_SHOWN_VALUES])
    score = "" if row.score is None else f"{row.score:.2f}"
    state = "ALARM" if row.alarm else row.state
    return [
        Text(row.device),
        Text(state, style="bold red" if row.alarm else _STATE_STYLE.get(row.state, "")),
        Text(score),
        ProgressBar(total=1, completed=row.score or 0, width=_BAR_WIDTH),
        Text(values),
        Text(row.injected, style="yellow"),
    ]


def _score(row: DeviceRow) -> float:
    return -1.0 if row.score is None else row.score
