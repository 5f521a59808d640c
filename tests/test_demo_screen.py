"""What a running demo shows, in a terminal and out of one."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from gruard.daemon.demo.screen import Board, LiveScreen, PlainScreen, draw, open_screen, status_line


def board() -> Board:
    shown = Board(
        total_s=160,
        phase="faults",
        elapsed_s=71,
        sent=8500,
        rate=124.4,
        counted=8400,
        online=True,
    )
    shown.take_state({"device": "pump-02", "state": "ready", "score": 0.93, "alarm": True, "model": "m-1"})
    shown.take_state({"device": "pump-01", "state": "warming", "score": None, "alarm": False})
    shown.row("pump-02").values = {"flow_lpm": 7.125, "pressure_bar": 0.2}
    shown.row("pump-02").injected = "dry running"
    return shown


def drawn(shown: Board, width: int = 110) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    with console.capture() as capture:
        console.print(draw(shown))
    return capture.get()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_draw_shows_each_device_with_its_state_score_and_truth() -> None:
    """The table names device, state, score, values and the fault being injected, and marks the alarm."""
    lines = drawn(board()).splitlines()
    broken = next(line for line in lines if "pump-02" in line)
    warming = next(line for line in lines if "pump-01" in line)

    assert all(part in broken for part in ("ALARM", "0.93", "flow_lpm 7.125", "dry running"))
    assert "warming" in warming
    assert "ALARM" not in warming


def test_draw_orders_devices_by_name() -> None:
    """A device keeps its line however states arrive."""
    text = drawn(board())

    assert text.index("pump-01") < text.index("pump-02")


def test_draw_shows_the_newest_events() -> None:
    """The log keeps the last lines and lets go of older ones."""
    shown = board()
    shown.events.extend(f"event {number}" for number in range(20))
    text = drawn(shown)

    assert "event 19" in text
    assert "event 3" not in text


def test_draw_takes_foreign_text_literally() -> None:
    """A device name with markup in it is shown as it is and colours nothing."""
    shown = board()
    shown.take_state({"device": "[red]x[/", "state": "[bold]", "score": 0.1})
    shown.events.append("[/nonsense]")

    assert "[red]x[/" in drawn(shown)
    assert "[/nonsense]" in drawn(shown)


def test_draw_fits_a_narrow_terminal() -> None:
    """At 60 columns no line is wider than the terminal."""
    assert all(len(line) <= 60 for line in drawn(board(), width=60).splitlines())


def test_draw_survives_a_terminal_without_unicode() -> None:
    """A terminal that knows ASCII only gets a picture too."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    Console(file=out, width=100).print(draw(board()))
    out.flush()

    assert b"pump-02" in out.buffer.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("state", [{}, {"device": None}, {"device": 7, "score": 1}])
def test_take_state_passes_over_what_names_no_device(state: dict[str, object]) -> None:
    """A foreign payload adds no line."""
    shown = Board(total_s=1)
    shown.take_state(state)

    assert shown.rows == {}


def test_take_state_replaces_what_was_known() -> None:
    """The newest state wins, and a score that went away is not kept."""
    shown = board()
    shown.take_state({"device": "pump-02", "state": "ready", "score": None, "alarm": False})

    assert shown.row("pump-02").score is None
    assert not shown.row("pump-02").alarm
    assert shown.row("pump-02").values["flow_lpm"] == 7.125


def test_status_line_counts_devices_and_names_the_worst() -> None:
    """One line holds phase, link, readings, devices by state, model and the highest score."""
    line = status_line(board())

    assert line.startswith("faults: 71 of 160 s | daemon online | 8500 readings sent (124/s), 8400 counted |")
    assert "1 warming, 0 learning, 1 ready, 1 alarm" in line
    assert line.endswith("models m-1 (1) | highest score 0.93 pump-02")


def test_plain_screen_prints_each_event_and_a_status_every_ten_seconds() -> None:
    """Out of a terminal an event is one line at once, and the status comes every ten seconds."""
    shown, out = board(), io.StringIO()
    screen = PlainScreen(shown, out)
    for elapsed_s in (0, 1, 9.9, 10, 15, 20.2):
        shown.elapsed_s = elapsed_s
        screen.refresh()
    screen.event("ALERT warning pump-02: flow fell")

    lines = out.getvalue().splitlines()
    assert [line[:9] for line in lines[:3]] == ["[  0.0 s]", "[ 10.0 s]", "[ 20.2 s]"]
    assert lines[3] == "[ 20.2 s] ALERT warning pump-02: flow fell"
    assert "\x1b" not in out.getvalue()


def test_live_screen_draws_events_and_gives_the_terminal_back() -> None:
    """In a terminal events join the picture, and closing leaves the last one and shows the cursor again."""
    shown, out = board(), Terminal()
    screen = LiveScreen(shown, Console(file=out, force_terminal=True, width=100))
    screen.event("injected: dry running on pump-02")
    screen.close()

    assert "injected: dry running on pump-02" in out.getvalue()
    assert out.getvalue().rstrip().endswith("\x1b[?25h")


@pytest.mark.parametrize(
    ("out", "plain", "kind"),
    [
        (io.StringIO(), None, PlainScreen),
        (Terminal(), True, PlainScreen),
        (Terminal(), None, LiveScreen),
        (io.StringIO(), False, LiveScreen),
    ],
)
def test_open_screen_follows_the_terminal_unless_told(
    out: io.StringIO, *, plain: bool | None, kind: type[object]
) -> None:
    """Lines where there is no terminal, the live table where there is one, and a wish overrides both."""
    screen = open_screen(board(), out, plain=plain)
    screen.close()

    assert isinstance(screen, kind)
