"""The report in its four forms: JSON, page, picture, terminal."""

from __future__ import annotations

import io
import json
import re
from typing import TYPE_CHECKING

import matplotlib.image
import numpy as np
import pytest
from rich.console import Console
from support_backtest import Dom, finished, report, series, usual

from gruard.daemon.backtest import page as page_module
from gruard.daemon.backtest import svg, terminal, wording
from gruard.daemon.backtest.chart import write_chart
from gruard.daemon.backtest.envelope import Envelope
from gruard.daemon.backtest.page import page
from gruard.daemon.backtest.report import as_json
from gruard.daemon.backtest.svg import Mark

if TYPE_CHECKING:
    from pathlib import Path

    from gruard.daemon.backtest.report import Report

HOSTILE = "<script>alert(1)</script> & \"'\x1b[31m[red]"


# --- JSON ----------------------------------------------------------------------------------------------


def test_json_tells_all_of_it_with_finite_numbers() -> None:
    """Times are RFC 3339, unknown values are null, and nothing is NaN."""
    told = json.loads(as_json(usual()), parse_constant=pytest.fail)
    assert told["schema"] == "gruard.backtest/1"
    assert told["made_at"] == "2023-11-14T22:13:20.000Z"
    assert told["interrupted"] is True
    assert told["causal"] is True
    whole = told["total"]
    assert (whole["events"], whole["events_found"], whole["false_episodes"]) == (2, 1, 1)
    assert whole["median_delay_readings"] == 3
    assert whole["median_delay_s"] == 30
    assert {"vus_pr", "vus_pr_in_sample", "auc_pr", "auc_pr_in_sample"} < set(whole["rankings"]["gruard"])
    first, second = told["devices"]
    assert first["alerts"][0]["opened_at"] == "2023-11-14T22:38:50.000Z"
    assert first["alerts"][0]["top_fields"][0] == {"field": "pressure", "share": 0.75}
    assert [e["found"] for e in first["events"]] == [True, False]
    assert first["rows"]["f1_always_on"] == pytest.approx(2 * 42 / (300 + 42), abs=1e-3)
    assert second["labelled"] is False
    assert second["events"] == []
    assert second["alert_episodes"] == 1
    assert "false_episodes" not in second
    assert second["readings_left_out"] == 7
    assert second["stored_alerts"][0]["message"] == "too hot"
    assert second["alerts"][0]["resolved"] is False
    assert told["skipped"] == [{"device": "pump-9", "reason": "has 3 readings"}]
    assert told["unfinished"] == ["pump-10"]
    assert len(first["score"]["first_rows"]) == len(first["score"]["highest"]) == 100


def test_json_without_time_has_no_times() -> None:
    """A recording that tells no time gets none in the report, and no rate per week."""
    told = json.loads(as_json(report(finished(series(400, timed=False), [(150, 160)]))))
    (device,) = told["devices"]
    assert device["first_at"] is None
    assert device["alerts"][0]["opened_at"] is None
    assert device["alerts"][0]["opened_row"] == 150
    assert told["total"]["alert_episodes_per_device_week"] is None


# --- wording -------------------------------------------------------------------------------------------


def test_headline_claims_nothing_that_is_not_known() -> None:
    """With labels alerts are called false; without, nobody can tell."""
    with_labels = dict(wording.headline(usual()))
    assert with_labels["devices"] == "2, 1 of them with labels"
    assert with_labels["events found"] == "1 of 2"
    assert with_labels["median delay"] == "3 readings (30 s)"
    assert with_labels["false episodes"].startswith("1: ")
    without = dict(wording.headline(report(finished(series(400), [(150, 160)]))))
    assert "events found" not in without
    assert "none is known to be false" in without["alert episodes behind the warm-up"]


def test_row_by_row_stands_beside_an_alarm_that_never_ends() -> None:
    """One alert that lasts for ever is one episode; that it is in alarm all the time is said too."""
    one = finished(series(400, labels=[(150, 249)]), [(102, 399)])
    told = wording.row_by_row(one.measured)
    assert "F1 0.50 (an alarm that never ends: 0.50)" in told
    assert "in alarm for 99.0% of the normal readings, silent for 0.0% of the others" in told
    assert wording.row_by_row(finished(series(400), []).measured) == ""


def test_caveats_say_plainly_what_a_number_must_not_be_believed_without() -> None:
    """Hindsight, an interruption and missing times are said in sentences; a usual report has none."""
    one = finished(series(400), [])
    assert wording.caveats(report(one)) == []
    (hindsight,) = wording.caveats(report(one, causal=False))
    assert hindsight.startswith("Not causal: these scores use hindsight.")
    (cut,) = wording.caveats(report(finished(series(400), [], left=3), unfinished=("b",)))
    assert "Cut short: pump-1 after 400 readings. Not judged: b." in cut
    (untimed,) = wording.caveats(report(finished(series(400, timed=False), [])))
    assert "no time" in untimed


@pytest.mark.parametrize(
    ("seconds", "told"), [(None, "-"), (0.5, "0.5 s"), (90, "1.5 min"), (7200, "2 h"), (200_000, "2.31 d")]
)
def test_duration_is_what_a_person_says(seconds: float | None, told: str) -> None:
    """Three digits and the largest unit that fits."""
    assert wording.duration(seconds) == told


# --- charts --------------------------------------------------------------------------------------------


def test_trace_shows_spikes_and_breaks_at_holes() -> None:
    """A stretch is drawn from its lowest to its highest value; a hole lifts the pen."""
    nan = float("nan")
    own = Envelope(np.array([0.0, 0.5, nan, 1.0]), np.array([0.0, 1.0, nan, 2.0]))
    assert svg.trace(own, 0.0, 1.0) == "M0 1000h0L1 500V0M3 0h0"
    flat = Envelope(np.full(2, 7.0), np.full(2, 7.0))
    assert svg.trace(flat, 7.0, 7.0) == "M0 500h0L1 500"


def test_line_steps_and_breaks() -> None:
    """A threshold is a step line, and is not drawn where there is none."""
    nan = float("nan")
    assert svg.line(np.array([nan, 1.0, 1.0, 0.5, nan]), 0.0, 1.0) == "M0.5 0H2.5V500H3.5"


def test_bands_of_one_reading_in_many_can_be_seen() -> None:
    """A mark is never thinner than a 400th, stays inside the chart, and its title is escaped."""
    drawn = svg.bands([Mark(99_999, 99_999, "<b>", "alert")], 100_000, 400)
    dom = Dom(drawn)
    (rect,) = dom.named("rect")
    assert float(rect["width"] or 0) == pytest.approx(1.0)
    assert float(rect["x"] or 0) == pytest.approx(398.5)
    assert dom.text == "<b>"


# --- the page ------------------------------------------------------------------------------------------


def test_page_is_whole_by_itself() -> None:
    """No script, nothing loaded from anywhere, every tag closed, and all there in text as well."""
    text = page(usual())
    dom = Dom(text)
    names = {tag for tag, _ in dom.tags}
    assert names.isdisjoint({"script", "img", "iframe", "object"})
    assert not re.search(r"https?:|@import|url\(|javascript:| on\w+=", text)
    assert [a["href"] for a in dom.named("link")] == ["data:,"]
    assert "default-src 'none'" in str(dom.named("meta"))
    assert "prefers-color-scheme:dark" in text
    for told in (
        "Backtest of plant.csv",
        "1 of 2",
        "pump-9: has 3 readings",
        "plant.csv: 2 rows left out",
        "Cut short: pump-2",
        "too hot",
        "random (floor)",
        "pump-1 behaves unusually: pressure is",
    ):
        assert told in dom.text


def test_page_charts_can_be_read_and_reached_without_a_mouse() -> None:
    """Each chart says what it shows, what scrolls takes the focus, links lead to what they name."""
    dom = Dom(page(usual()))
    charts = dom.named("svg")
    assert len(charts) == 2 * (1 + 2) + 2 + 2  # score and two fields each, two lanes each
    assert all(a["role"] == "img" and a["aria-label"] for a in charts)
    scrolling = dom.named("div", "scroll")
    assert scrolling
    assert all(a["tabindex"] == "0" and a["aria-label"] for a in scrolling)
    places = {a["id"] for _, a in dom.tags if "id" in a}
    for link in dom.named("a"):
        assert str(link["href"]).removeprefix("#") in places
    assert len(dom.named("path", "score")) == 2
    assert len(dom.named("rect", "alert")) == 2 + 1
    assert len(dom.named("rect", "label")) == 2 * 2
    assert len(dom.named("rect", "stored")) == 1


def test_page_hostile_names_are_text() -> None:
    """What a recording calls its devices never becomes markup."""
    dom = Dom(page(report(finished(series(400, name=HOSTILE, labels=[(150, 160)]), [(150, 160)]))))
    assert not dom.named("script")
    assert "<script>alert(1)</script>" in dom.text


def test_page_says_that_hindsight_was_used() -> None:
    """Scores that no daemon could have had are marked as such at the top."""
    dom = Dom(page(report(finished(series(400), []), causal=False)))
    assert len(dom.named("p", "caveat")) == 1
    assert "Not causal: these scores use hindsight" in dom.text
    assert not Dom(page(report(finished(series(400), [])))).named("p", "caveat")


def test_page_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long tables are cut and say so; many charts are folded away."""
    monkeypatch.setattr(page_module, "MOST_ROWS", 1)
    monkeypatch.setattr(page_module, "MOST_OPEN_CHARTS", 1)
    dom = Dom(page(report(finished(series(400), [(150, 160), (200, 210), (250, 260)]))))
    assert "And 2 more, in report.json." in dom.text
    assert any("open" not in a for a in dom.named("details"))


# --- the picture ---------------------------------------------------------------------------------------


def test_chart_shows_score_and_alerts(tmp_path: Path) -> None:
    """The score's blue and the alert's red are to be seen; a dollar in a name makes no formula."""
    write_chart(report(finished(series(400, name="$a_$ 泵"), [(150, 200)])), tmp_path / "a.png")
    pixels = matplotlib.image.imread(tmp_path / "a.png")[..., :3]
    for colour in ((0x0B, 0x5C, 0xAD), (0xC6, 0x28, 0x28)):
        near = np.abs(pixels - np.array(colour) / 255).max(axis=2) < 0.02
        assert near.sum() > 100, colour


def test_chart_of_many_devices_shows_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture grows with the devices up to a limit."""
    one = finished(series(400), [])
    write_chart(report(one), tmp_path / "one.png")
    monkeypatch.setattr("gruard.daemon.backtest.chart.MOST_DEVICES", 2)
    write_chart(report(one, one, one), tmp_path / "three.png")
    heights = [matplotlib.image.imread(tmp_path / name).shape[0] for name in ("one.png", "three.png")]
    assert heights[0] < heights[1] < 2 * heights[0]


# --- the terminal --------------------------------------------------------------------------------------


def shown(told: Report) -> str:
    out = io.StringIO()
    terminal.show(told, terminal.console_on(out))
    return out.getvalue()


def test_terminal_summary_has_the_numbers_that_count() -> None:
    """Headline, controls, devices and what was left out, with nothing cut off where there is no terminal."""
    text = shown(usual())
    for told in (
        "1 of 2",
        "3 readings (30 s)",
        "random (floor)",
        "pump-2",
        "not judged: pump-9",
        "Interrupted",
    ):
        assert told in text
    assert "…" not in text


def test_terminal_hostile_names_steer_nothing() -> None:
    """A device name is neither markup nor an escape sequence."""
    text = shown(report(finished(series(400, name=HOSTILE), []), notes=(HOSTILE,)))
    assert "[red]" in text
    assert "\x1b" not in text


def test_bar_draws_on_a_terminal_only() -> None:
    """Output that goes to a file holds no progress bar."""
    for is_terminal in (True, False):
        out = io.StringIO()
        with terminal.bar(Console(file=out, force_terminal=is_terminal, width=100)) as bar:
            task = bar.add_task(HOSTILE, total=10)
            bar.update(task, completed=5)
            bar.refresh()
        assert ("5/10" in out.getvalue()) is is_terminal
