"""What leaves on MQTT."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from support_engine import reading

from gruard.daemon.core.events import Alert, Scored
from gruard.daemon.core.payloads import (
    ALERT_SCHEMA,
    ModelNote,
    alert_payload,
    info_payload,
    rfc3339,
    sentence,
    state_payload,
)

ALERT = Alert(
    id="00112233aabbccdd",
    state="opened",
    severity="warning",
    device="pump-3",
    source="plant",
    group="plant-123456",
    time_s=1_700_000_000.25,
    opened_s=1_699_999_990.0,
    score=0.912345,
    threshold=0.75,
    value={"vibration": 7.9, "bearing": 61.0, "flow": None},
    expected={"vibration": 3.14159265, "bearing": 60.96, "flow": 12.0},
    deviation={"vibration": 8.2, "bearing": 0.1, "flow": None},
    contributions=(("vibration", 0.7777777), ("bearing", 0.2111111), ("flow", 0.0111112)),
    model="abcdef012345",
)
NOTE = ModelNote("abcdef012345", 1_699_000_000.0, 0.123456)

CONTRACT = [
    "schema", "id", "state", "severity", "device", "group", "time", "opened_at", "score", "threshold",
    "value", "expected", "deviation", "contributions", "model", "message", "instance",
]  # fmt: skip


def alert(**changes: object) -> dict[str, object]:
    return dict(json.loads(alert_payload(dataclasses.replace(ALERT, **changes), NOTE, "gw-1")))  # type: ignore[arg-type]


def test_alert_payload_has_exactly_the_keys_of_the_contract() -> None:
    """People's scripts rely on these keys and their order of meaning."""
    body = alert()
    assert list(body) == CONTRACT
    assert body["schema"] == ALERT_SCHEMA == "gruard.alert/1"
    assert body["instance"] == "gw-1"
    assert body["model"] == {"id": "abcdef012345", "trained_at": rfc3339(1_699_000_000.0), "skill": 0.1235}


def test_alert_payload_times_are_rfc3339_utc() -> None:
    """Times end in Z and carry milliseconds."""
    assert alert()["time"] == "2023-11-14T22:13:20.250Z"
    assert alert()["opened_at"] == "2023-11-14T22:13:10.000Z"


def test_alert_payload_shares_sum_to_one_after_rounding() -> None:
    """Rounding never makes the shares sum to something else."""
    shares = [c["share"] for c in alert()["contributions"]]  # type: ignore[index]
    assert math.fsum(shares) == pytest.approx(1.0, abs=1e-9)


def test_alert_payload_unknown_numbers_are_null() -> None:
    """There is no NaN in JSON: what is missing is null."""
    body = alert()
    assert body["value"]["flow"] is None  # type: ignore[index]
    assert body["deviation"]["flow"] is None  # type: ignore[index]
    assert "NaN" not in alert_payload(ALERT, NOTE, "gw").decode()


def test_alert_payload_baseline_model_has_no_training_time() -> None:
    """The baseline was never trained and says so."""
    body = json.loads(alert_payload(ALERT, ModelNote("baseline"), "gw"))
    assert body["model"] == {"id": "baseline", "trained_at": None, "skill": None}


def test_sentence_names_field_value_and_expectation() -> None:
    """An engineer reads what is wrong in the units of the sensor."""
    text = sentence(ALERT)
    assert text.startswith("pump-3 behaves unusually: vibration is 7.9, expected 3.142")
    assert "vibration 78%" in text
    assert text.endswith(".")


def test_sentence_does_not_name_what_is_as_expected() -> None:
    """A field whose value reads the same as its expectation is not offered as a reason."""
    same = dataclasses.replace(ALERT, expected={**ALERT.expected, "bearing": 61.0})
    assert "bearing is" not in sentence(same)


def test_sentence_lasting_alert_says_how_long() -> None:
    """An update tells for how long the fault lasts."""
    lasting = dataclasses.replace(ALERT, state="updated", opened_s=ALERT.time_s - 3725)
    assert "for 1 h 2 min now" in sentence(lasting)


def test_sentence_resolved_says_it_is_over() -> None:
    """The end of an alert reads like one."""
    over = dataclasses.replace(ALERT, state="resolved", opened_s=ALERT.time_s - 90_000)
    assert sentence(over) == "pump-3 is back to normal after 1 d 1 h."


def test_sentence_missing_field_is_called_missing() -> None:
    """A field that contributes and is absent is named as missing."""
    missing = dataclasses.replace(ALERT, contributions=(("flow", 0.9), ("vibration", 0.1), ("bearing", 0.0)))
    assert "flow is missing" in sentence(missing)


def test_state_payload_warming_device_has_null_score() -> None:
    """A device without a score yet says null, not 0."""
    values = np.array([1.0, np.nan])
    first = reading("d", 5.0, {"a": 1.0})
    scored = Scored(first, "g", ("a", "b"), values, math.nan, math.nan, 0.0, "warming", alarm=False)
    body = json.loads(state_payload(scored, alert_id="", model="baseline"))
    assert body["score"] is None
    assert body["threshold"] is None
    assert body["value"] == {"a": 1.0, "b": None}
    assert body["alarm"] is False
    assert body["state"] == "warming"


def test_state_payload_alarm_carries_the_alert_id() -> None:
    """State and alert can be joined by id."""
    first = reading("d", 5.0, {"a": 1.0})
    scored = Scored(first, "g", ("a",), np.array([1.0]), 0.9, 0.8, 0.0, "ready", alarm=True)
    body = json.loads(state_payload(scored, alert_id="abc", model="m1"))
    assert (body["alarm"], body["alert"], body["model"]) == (True, "abc", "m1")


def test_info_payload_names_its_schema() -> None:
    """The info topic is versioned like the others."""
    assert json.loads(info_payload({"version": "1"})) == {"schema": "gruard.info/1", "version": "1"}


@pytest.mark.parametrize(
    ("late_s", "said"),
    [
        (10_800.0, "(seen 3 h late)."),
        (95.0, "(seen 1 min 35 s late)."),
        (0.0, "(seen late)."),
        (None, "bearing 21%)."),
    ],
)
def test_sentence_of_a_backlog_says_how_late(late_s: float | None, said: str) -> None:
    """What waited at the broker is told with its delay; where no event time tells it, without a number."""
    told = sentence(dataclasses.replace(ALERT, late_s=late_s))
    assert told.startswith("pump-3 behaves unusually: ")
    assert told.endswith(said)
    end = sentence(dataclasses.replace(ALERT, state="resolved", late_s=late_s))
    assert end.startswith("pump-3 is back to normal after 10 s")
    assert end.count(".") == 1


def test_sentence_that_is_given_is_told_as_it_is() -> None:
    """Some alerts are about something else than values."""
    assert sentence(dataclasses.replace(ALERT, sentence="pump-3 is gone.")) == "pump-3 is gone."
    late = dataclasses.replace(ALERT, sentence="pump-3 is gone.", late_s=60.0)
    assert sentence(late) == "pump-3 is gone (seen 1 min late)."
