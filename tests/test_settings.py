"""gruard.daemon.settings: what a configuration may say, where it may say it, and how mistakes are told."""

from __future__ import annotations

import ast
import inspect
import math
import re
import subprocess
import sys
import tomllib
import traceback
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from gruard.daemon import settings as module
from gruard.daemon.core.sources import parse_pattern
from gruard.daemon.decoders import DECODERS
from gruard.daemon.errors import ConfigError
from gruard.daemon.records import SourceOptions
from gruard.daemon.settings import Settings, effective, load, load_traced, source_options
from gruard.models.calibration import Budget

FIXTURES = Path(__file__).parent / "fixtures" / "config"
EXAMPLE = Path(__file__).parent.parent / "deploy" / "gruard.example.toml"
CANARY = "canary-7f3a"

CHOICES = ", ".join(f'"{name}"' for name in DECODERS)
LEVELS = '"debug", "info", "warning", "error"'
DURATION = 'must be a duration such as "90s", "15m", "6h" or "7d"'
BUDGET = (
    'must read "NUMBER per device per hour", "... day", "... week", "... month" or "... COUNT readings",'
    ' such as "1 per device per week" or "2 per device per 10000 readings"'
)
LOOP = (
    "would read what the daemon itself publishes below plant/gruard/:"
    " begin the topic with a fixed level of its own, or change alerts.base"
)
LISTEN = 'must be HOST:PORT such as "127.0.0.1:9109" or "[::1]:9109", or "off"'


def pattern_fault(topic: str) -> str:
    with pytest.raises(ValueError, match="topic pattern") as caught:
        parse_pattern(topic)
    return str(caught.value)


# What each file is told, word for word; "12: ..." stands for "FILE:12: ...".
MISTAKES = {
    "alert-base": ["3: alerts.base: must be one topic, without wildcards and placeholders"],
    "alert-base-slash": ['3: alerts.base: must be a topic without empty levels and without a leading "$"'],
    "budget": [f"3: alerts.budget: {BUDGET}"],
    "budget-readings": [f"3: alerts.budget: {BUDGET}"],
    "budget-nothing": [
        "3: alerts.budget: must allow more than 0 alarms: a budget of nothing would never alert"
    ],
    "choice": [
        '3: mqtt.protocol: must be one of "5", "3.1.1", not a number',
        '5: model.cell: must be one of "gru", "lstm", "rnn", did you mean "lstm"?',
        f"7: log.level: must be one of {LEVELS}",
    ],
    "client-id": ["3: mqtt.client_id: must have 1..128 characters and no control characters"],
    "decoder": [f'4: sources[0].decoder: must be one of {CHOICES}, did you mean "json"?'],
    "decoder-options": ["2: sources[0]: A plain number carries no event time, so `time` must go."],
    "directory": ["3: state.directory: must be a path"],
    "duration": [
        f'3: train.every: {DURATION}, or "off"',
        f"4: train.max_duration: {DURATION}",
        f"6: alerts.update_every: {DURATION}",
        '8: state.checkpoint_every: must be a duration from "1s" to "366d"',
    ],
    "duration-too-short": [
        '3: train.every: must be a duration from "10s" to "366d", or "off"',
        '4: train.max_duration: must be a duration from "10s" to "366d"',
    ],
    "fields": [
        "4: sources[0].include: must be an array of strings, not a string",
        "5: sources[0].exclude[1]: must be a string, not a number",
        "6: sources[0].rename.w: must be a string, not a number",
    ],
    "host-with-port": ["3: mqtt.host: must be a host name or address alone: the port is a key of its own"],
    "host-with-scheme": [
        "3: mqtt.host: must be a host name or address alone, without a scheme such as mqtt://"
    ],
    "key-in-wrong-table": [
        "2: host: unknown key here, it belongs into [mqtt]",
        "4: mqtt.version: unknown key here, it belongs at the top, above the first [table]",
        "5: mqtt.max_rows_per_device: unknown key here, it belongs into [train] or into [state]",
        "8: sources[0].keepalive-s: unknown key here, it belongs into [mqtt]",
    ],
    "key-twice": ["4: is not valid TOML: Cannot overwrite a value"],
    "listen": [f"3: http.listen: {LISTEN}"],
    "listen-address": ['3: http.listen: must hold a valid IPv6 address between the brackets, or "off"'],
    "listen-port": [f"3: http.listen: {LISTEN}"],
    "not-utf-8": ["3: is not UTF-8 text"],
    "number-of-wrong-kind": [
        "3: mqtt.port: must be a whole number 1..65535, not 1883.5",
        "4: mqtt.keepalive_s: must be 5..3600, not a boolean",
        "7: sources[0].future_tolerance_s: must be 0..31622400, not nan",
        "8: sources[0].qos: must be 0..2, not a date or time",
        "10: train.seed: must be 0..4294967295",
    ],
    "number-out-of-range": [
        "3: mqtt.port: must be 1..65535, not 65536",
        "5: model.hidden: must be 4..256, not 3",
        "6: model.dropout: must be 0..0.9, not 0.95",
    ],
    "password-number": ["3: mqtt.password: must be a string, not a number"],
    "password-without-name": [
        "4: mqtt.password: needs username: MQTT 3.1.1 sends no password without a name"
    ],
    "quoted-number": ["3: mqtt.port: must be 1..65535, not a string (write it without quotes)"],
    "rename-twice": ["6: sources[0].rename.z: gives a name that another field already has"],
    "several": [
        f"3: http.listen: {LISTEN}",
        "5: mqtt.port: must be 1..65535, not 0",
        '6: mqtt.hots: unknown key, did you mean "host"?',
        '8: model.cell: must be one of "gru", "lstm", "rnn", did you mean "gru"?',
    ],
    "source-name": [
        "3: sources[0].name: must have 1..64 characters out of letters, digits, dot, hyphen and underscore"
    ],
    "source-name-twice": ["6: sources[1].name: is the name of another source too"],
    "sources-as-table": ["2: sources: must be an array of tables, not a table (write [[sources]])"],
    "syntax": ["3: is not valid TOML: Expected '=' after a key in a key/value pair"],
    "syntax-open-array": ["5: is not valid TOML: Invalid value (at end of document)"],
    "table-as-value": [
        "2: mqtt: must be a table, not a string",
        "3: model: must be a table, not a number",
    ],
    "tls-half": ["3: mqtt.tls.cert_file: needs key_file beside it"],
    "tls-types": [
        "4: mqtt.tls.ca_file: must be a path",
        "5: mqtt.tls.key_file: must be a string, not a number",
        "6: mqtt.tls.insecure: must be true or false, not a string (write it without quotes)",
    ],
    "topic-everything": [
        f"3: sources[0].topic: {pattern_fault('{device+}')}",
        f"5: sources[1].topic: {pattern_fault('#')}",
    ],
    "topic-loop": [f"7: sources[2].topic: {LOOP}"],
    "topic-missing": ["5: sources[1].topic: is required"],
    "topic-without-device": [f"3: sources[0].topic: {pattern_fault('plant/{line}/temperature')}"],
    "unknown-key": ['3: mqtt.hots: unknown key, did you mean "host"?'],
    "unknown-table": ['2: mqqt: unknown key, did you mean "mqtt"?'],
    "unknown-without-guess": ["2: zzz: unknown key", '3: "a\\nb": unknown key'],
    "version-missing": ["1: version: is required: write version = 1"],
    "version-unknown": ["1: version: 2 is not known here: this gruard reads version 1"],
}


def refusal(path: Path | None = None, /, **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, environ)
    return str(caught.value)


def written(folder: Path, text: str) -> Path:
    path = folder / "gruard.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", sorted(MISTAKES))
def test_load_tells_line_key_and_cure_of_each_mistake(name: str) -> None:
    """Every mistake is told with file, line, key and what would be right; all of them, in file order."""
    path = FIXTURES / f"invalid-{name}.toml"
    assert refusal(path).splitlines() == [f"{path}:{line}" for line in MISTAKES[name]]


def test_fixtures_and_expected_messages_are_the_same_set() -> None:
    """No file of mistakes lies about untested, and no expectation has lost its file."""
    assert {path.stem.removeprefix("invalid-") for path in FIXTURES.glob("invalid-*.toml")} == set(MISTAKES)


def test_load_without_anything_gives_the_defaults() -> None:
    """Neither file nor environment: the defaults of the contract."""
    settings = load(None, {})
    assert settings == Settings()
    assert (settings.mqtt.host, settings.mqtt.port, settings.mqtt.tls) == ("127.0.0.1", 1883, None)
    assert (settings.train.every_s, settings.train.max_duration_s) == (21_600.0, 900.0)
    assert settings.alerts.false_alarms == Budget(per_second=1 / (7 * 86_400), per_reading=None)
    assert settings.http.address == ("127.0.0.1", 9109)
    assert settings.state.directory == Path("/var/lib/gruard")
    assert settings.state.checkpoint_every_s == 30.0
    assert settings.alerts.update_every_s == 60.0
    assert settings.sources == ()


def test_settings_cannot_be_changed_after_loading() -> None:
    """The configuration is frozen: nobody changes it behind the back of another part."""
    settings = load(None, {})
    with pytest.raises(ValidationError, match="frozen"):
        settings.mqtt.port = 1


def test_words_instead_of_durations_and_addresses_turn_things_off(tmp_path: Path) -> None:
    """Training and the HTTP server can be off, which is None and never 0."""
    path = written(tmp_path, 'version = 1\n[train]\nevery = "off"\n[http]\nlisten = "off"\n')
    settings = load(path, {})
    assert settings.train.every_s is None
    assert settings.http.address is None


def test_an_empty_tls_table_turns_tls_on(tmp_path: Path) -> None:
    """The presence of [mqtt.tls] is what counts, not what stands in it."""
    assert load(written(tmp_path, "version = 1\n[mqtt.tls]\n"), {}).mqtt.tls is not None


def test_instance_is_the_client_id_until_it_is_set() -> None:
    """A daemon that nobody named is called like its session at the broker."""
    assert load(None, {"GRUARD_MQTT__CLIENT_ID": "line-3"}).instance == "line-3"
    both = {"GRUARD_MQTT__CLIENT_ID": "line-3", "GRUARD_INSTANCE": "hall"}
    assert load(None, both).instance == "hall"


def test_environment_wins_over_credentials_over_file(tmp_path: Path) -> None:
    """A secret comes from the strongest of three places that has it."""
    path = written(tmp_path, 'version = 1\n[mqtt]\nport = 1\nhost = "file"\npassword = "file"\n')
    folder = tmp_path / "credentials"
    folder.mkdir()
    (folder / "mqtt_password").write_text(" from a credential \n")
    (folder / "mqtt_port").write_text("99")
    environ = {"CREDENTIALS_DIRECTORY": str(folder)}

    def secret(environ: dict[str, str]) -> str | None:
        password = load(path, environ).mqtt.password
        return password.get_secret_value() if password else None

    assert secret({}) == "file"
    assert secret(environ) == " from a credential "
    assert secret(environ | {"GRUARD_MQTT__PASSWORD": "env"}) == "env"
    settings = load(path, environ | {"GRUARD_MQTT__HOST": "env"})
    assert (settings.mqtt.host, settings.mqtt.port) == ("env", 1)


def test_environment_text_becomes_the_type_of_the_key() -> None:
    """The environment has only text: numbers, booleans, paths and nested tables are made from it."""
    settings = load(
        None,
        {
            "GRUARD_MQTT__PORT": "8883",
            "GRUARD_MQTT__TLS__INSECURE": "true",
            "GRUARD_MQTT__TLS__CA_FILE": "/ca.pem",
            "GRUARD_MODEL__DROPOUT": "0.1",
            "GRUARD_TRAIN__EVERY": "90s",
            "GRUARD_MQTT__CLIENT_ID": "12",
            "GRUARD_MQTT__PROTOCOL": "3.1.1",
            "GRUARD_SOURCES": '[{"topic": "a/{device}", "qos": 2, "rename": {"x.y": "z"}}]',
            "GRUARD_HTTP__LISTEN": "",
        },
    )
    assert (settings.mqtt.port, settings.mqtt.client_id, settings.mqtt.protocol) == (8883, "12", "3.1.1")
    assert settings.mqtt.tls is not None
    assert (settings.mqtt.tls.insecure, settings.mqtt.tls.ca_file) == (True, Path("/ca.pem"))
    assert (settings.model.dropout, settings.train.every_s) == (0.1, 90.0)
    assert (settings.sources[0].qos, settings.sources[0].rename) == (2, {"x.y": "z"})
    assert settings.http.listen == "127.0.0.1:9109"


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("GRUARD_MQTT__PORT", "x", "mqtt.port: must be 1..65535"),
        ("GRUARD_MQTT__PORT", "0", "mqtt.port: must be 1..65535, not 0"),
        ("GRUARD_MQTT__PORT", "9" * 5000, "mqtt.port: must be 1..65535"),
        ("GRUARD_MQTT__PORT", "[" * 100_000, "mqtt.port: must be 1..65535"),
        ("GRUARD_MQTT__TLS__INSECURE", "maybe", "mqtt.tls.insecure: must be true or false"),
        ("GRUARD_LOG__LEVEL", "warn", f'log.level: must be one of {LEVELS}, did you mean "warning"?'),
        ("GRUARD_SOURCES", "[{", "sources: must be an array of tables as JSON"),
        ("GRUARD_SOURCES", "5", "sources: must be an array of tables, not a number"),
        ("GRUARD_SOURCES", '[{"topics": 5}]', 'sources[0].topics: unknown key, did you mean "topic"?'),
        ("GRUARD_VERSION", "7", "version: 7 is not known here: this gruard reads version 1"),
    ],
)
def test_environment_mistakes_name_the_variable(variable: str, text: str, message: str) -> None:
    """What is wrong in the environment is told by the variable's name."""
    assert f"{variable}: {message}" in refusal(None, **{variable: text}).splitlines()


def test_unknown_variables_are_refused_with_a_suggestion() -> None:
    """A misspelt variable is never silently ignored; those of other programs are no concern of ours."""
    text = refusal(
        GRUARD_MQTT_HOST="a",
        GRUARD_TRAIN__EVRY="b",
        GRUARD_mqtt__port="c",
        GRUARD_X="d",
        PATH="e",
        GRUARD="f",
    )
    assert text.splitlines() == [
        "GRUARD_MQTT_HOST: unknown variable, did you mean GRUARD_MQTT__HOST?",
        "GRUARD_TRAIN__EVRY: unknown variable, did you mean GRUARD_TRAIN__EVERY?",
        "GRUARD_X: unknown variable",
        "GRUARD_mqtt__port: unknown variable, did you mean GRUARD_MQTT__PORT?",
    ]


def test_variables_that_kubernetes_sets_for_a_service_named_gruard_are_no_mistake() -> None:
    """A Service named gruard puts GRUARD_PORT and others into every container; only there are they let by."""
    links = {
        "GRUARD_SERVICE_HOST": "10.0.0.1",
        "GRUARD_SERVICE_PORT_METRICS": "9109",
        "GRUARD_PORT": "tcp://10.0.0.1:9109",
        "GRUARD_PORT_9109_TCP_ADDR": "10.0.0.1",
        "GRUARD_METRICS_SERVICE_PORT": "9109",
    }
    assert load(None, links | {"KUBERNETES_SERVICE_HOST": "10.0.0.0"}) == Settings()
    assert len(refusal(None, **links).splitlines()) == len(links)
    assert "did you mean GRUARD_MQTT__PORT" in refusal(GRUARD_MQQT__PORT="1", KUBERNETES_SERVICE_HOST="x")


def test_mistakes_of_all_places_are_told_together(tmp_path: Path) -> None:
    """File, environment and credentials are checked in one go, the file's lines first."""
    (tmp_path / "mqtt_password").write_bytes(b"\xff\xfe")
    path = written(tmp_path, "version = 1\n[mqtt]\nport = 0\n[model]\nlayers = 9\n")
    text = refusal(
        path, CREDENTIALS_DIRECTORY=str(tmp_path), GRUARD_LOG__LEVLE="info", GRUARD_TRAIN__SEED="x"
    )
    assert text.splitlines() == [
        f"{path}:3: mqtt.port: must be 1..65535, not 0",
        f"{path}:5: model.layers: must be 1..4, not 9",
        "GRUARD_LOG__LEVLE: unknown variable, did you mean GRUARD_LOG__LEVEL?",
        "GRUARD_TRAIN__SEED: train.seed: must be 0..4294967295",
        "credential mqtt_password: mqtt.password: is not UTF-8 text",
    ]


def test_a_wrong_value_in_the_file_is_not_hidden_by_the_environment(tmp_path: Path) -> None:
    """A table that the file spoils stays a mistake, even where a variable sets one of its keys."""
    path = written(tmp_path, "version = 1\nmqtt = 5\n")
    assert refusal(path, GRUARD_MQTT__HOST="a") == f"{path}:2: mqtt: must be a table, not a number"


def test_an_empty_credential_is_refused(tmp_path: Path) -> None:
    """A credential file without a secret in it is a mistake, not an empty password."""
    (tmp_path / "mqtt_password").write_text("\n")
    expected = "credential mqtt_password: mqtt.password: is an empty file"
    assert refusal(CREDENTIALS_DIRECTORY=str(tmp_path)) == expected


def test_other_files_in_the_credentials_folder_are_left_alone(tmp_path: Path) -> None:
    """Binary keys of ours and files of others may lie beside the password; no folder is no mistake."""
    (tmp_path / "mqtt_key").write_bytes(b"\xff\x00\xfe")
    (tmp_path / "mqtt").write_text("{}")
    assert load(None, {"CREDENTIALS_DIRECTORY": str(tmp_path)}) == Settings()
    assert load(None, {"CREDENTIALS_DIRECTORY": str(tmp_path / "none")}) == Settings()


def test_a_file_that_cannot_be_read_is_a_configuration_error(tmp_path: Path) -> None:
    """Missing, a directory, or refusing to be read: told by name, in one line."""
    missing = tmp_path / "none.toml"
    assert refusal(missing) == f"{missing}: cannot be read: No such file or directory"
    assert refusal(tmp_path) == f"{tmp_path}: cannot be read: Is a directory"
    # the kernel refuses this one to root as well
    unreadable = Path("/proc/self/mem")
    assert refusal(unreadable).startswith(f"{unreadable}: cannot be read: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("version = 1\nx = " + "[" * 100_000, "is nested too deeply"),
        ("version = 1\n[train]\nseed = " + "9" * 5000, "is not valid TOML: "),
        ("version = 1\n\0", "is not valid TOML: "),
    ],
)
def test_hostile_text_is_a_configuration_error(tmp_path: Path, text: str, message: str) -> None:
    """Nesting, digits and bytes beyond reason end as a sentence, never as a traceback."""
    assert message in refusal(written(tmp_path, text))


def test_a_byte_order_mark_and_windows_line_ends_are_accepted(tmp_path: Path) -> None:
    """A file from a Windows editor is read, and its lines are counted right."""
    path = tmp_path / "gruard.toml"
    path.write_bytes(b"\xef\xbb\xbfversion = 1\r\n[mqtt]\r\nport = 0\r\n")
    assert refusal(path) == f"{path}:3: mqtt.port: must be 1..65535, not 0"


def test_state_directory_of_systemd_is_used_when_nothing_else_is_said(tmp_path: Path) -> None:
    """STATE_DIRECTORY is weaker than file and environment, stronger than the default."""
    environ = {"STATE_DIRECTORY": "/var/lib/one:/var/lib/two"}
    path = written(tmp_path, 'version = 1\n[state]\ndirectory = "/file"\n')
    assert load(None, environ).state.directory == Path("/var/lib/one")
    assert load(path, environ).state.directory == Path("/file")
    assert load(None, environ | {"GRUARD_STATE__DIRECTORY": "/env"}).state.directory == Path("/env")


def test_arguments_of_the_settings_library_are_no_keys(tmp_path: Path) -> None:
    """A key with the name of the library's own constructor arguments is unknown like any other."""
    path = written(tmp_path, 'version = 1\n_env_file = "other.env"\n_cli_parse_args = true\n')
    assert refusal(path).splitlines() == [
        f"{path}:2: _env_file: unknown key",
        f"{path}:3: _cli_parse_args: unknown key",
    ]


def test_the_real_environment_is_never_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the mapping that is handed in counts."""
    monkeypatch.setenv("GRUARD_MQTT__PORT", "7")
    monkeypatch.setenv("GRUARD_NONSENSE", "7")
    assert load(None, {}).mqtt.port == 1883


LEAKS = {
    "wrong type": f'[mqtt]\npassword = ["{CANARY}"]\n',
    "misspelt key": f'[mqtt]\npasswrod = "{CANARY}"\n',
    "other mistakes": f'[mqtt]\npassword = "{CANARY}"\nport = 0\n',
    "whole table": f'mqtt = "{CANARY}"\n',
    "in the address": f'[mqtt]\nhost = "mqtt://user:{CANARY}@broker"\n',
    "in every kind of value": f'[model]\ncell = "{CANARY}"\n[train]\nevery = "{CANARY}"\n[alerts]\nbudget = '
    f'"{CANARY}"\nbase = "{CANARY}/#"\n[http]\nlisten = "{CANARY}"\n',
    "syntax": f'[mqtt]\npassword = "{CANARY}\n',
    "syntax behind it": f'[mqtt]\npassword = "{CANARY}" port = 1\n',
    "without a name": f'[mqtt]\nprotocol = "3.1.1"\npassword = "{CANARY}"\n',
}


@pytest.mark.parametrize("name", LEAKS)
def test_errors_never_repeat_a_secret(tmp_path: Path, name: str) -> None:
    """Wherever a secret stands, neither message nor traceback nor a chained error has it."""
    with pytest.raises(ConfigError) as caught:
        load(written(tmp_path, "version = 1\n" + LEAKS[name]), {})
    error = caught.value
    assert CANARY not in "".join(traceback.format_exception(error)) + repr(error.args)
    assert error.__cause__ is None
    assert error.__context__ is None


def test_errors_never_repeat_a_secret_from_environment_or_credential(tmp_path: Path) -> None:
    """Secrets of the environment and the credentials folder stay out of messages as well."""
    (tmp_path / "mqtt_password").write_text(CANARY)
    for environ in (
        {"GRUARD_MQTT__PASSWORD": CANARY, "GRUARD_MQTT__PORT": "0"},
        {"GRUARD_MQTT__PASWORD": CANARY},
        {"GRUARD_MQTT__PORT": CANARY},
        {"GRUARD_SOURCES": CANARY},
        {"CREDENTIALS_DIRECTORY": str(tmp_path), "GRUARD_MQTT__PROTOCOL": "3.1.1"},
    ):
        assert CANARY not in refusal(None, **environ)


def test_settings_never_show_a_secret(tmp_path: Path) -> None:
    """However the settings are printed, the password is masked; the broker edge can still read it."""
    path = written(tmp_path, f'version = 1\n[mqtt]\npassword = "{CANARY}"\n')
    settings, origin = load_traced(path, {})
    shown = (effective(settings, origin), str(settings), repr(settings), str(settings.model_dump()))
    assert all(CANARY not in text for text in (*shown, settings.model_dump_json()))
    assert 'password = "***"' in effective(settings)
    assert settings.mqtt.password is not None
    assert settings.mqtt.password.get_secret_value() == CANARY


def test_effective_tells_value_and_origin_of_every_key(tmp_path: Path) -> None:
    """Each key shows what holds and who said so."""
    path = written(tmp_path, 'version = 1\n[mqtt]\nport = 1884\n[[sources]]\ntopic = "a/{device}"\n')
    (tmp_path / "mqtt_password").write_text("x")
    environ = {
        "GRUARD_MODEL__CELL": "lstm",
        "CREDENTIALS_DIRECTORY": str(tmp_path),
        "STATE_DIRECTORY": "/var/lib/x",
    }
    lines = effective(*load_traced(path, environ)).splitlines()
    for expected in (
        f"port = 1884  # {path}:3",
        f'topic = "a/{{device}}"  # {path}:5',
        'name = "a-device"  # default',
        'cell = "lstm"  # GRUARD_MODEL__CELL',
        'password = "***"  # credential mqtt_password',
        'directory = "/var/lib/x"  # STATE_DIRECTORY',
        "keepalive_s = 10  # default",
        "# username is not set",
    ):
        assert expected in lines


def test_effective_is_a_configuration_that_means_the_same(tmp_path: Path) -> None:
    """What `effective` prints can be loaded again and is the same configuration."""
    text = """version = 1
instance = "quote \\" backslash \\\\ ünïcode 🌡"
[mqtt.tls]
[[sources]]
topic = "a/{device}"
rename = { "env.t" = "temperature", "ä b" = "c" }
include = ["*", "x?"]
[[sources]]
topic = "b/{line}/{device+}"
decoder = "scalar"
future_tolerance_s = 0.5
"""
    settings = load(written(tmp_path, text), {})
    again = tmp_path / "again.toml"
    again.write_text(effective(settings))
    assert load(again, {}) == settings


def test_sources_become_records_for_the_decoders(tmp_path: Path) -> None:
    """Each block is handed over whole, with a name that is unique and the same on every start."""
    text = """version = 1
[[sources]]
topic = "plant/{line}/{device}"
decoder = "json"
time = "t.s"
include = ["a*"]
exclude = ["b"]
rename = { x = "y" }
qos = 2
max_payload_bytes = 5
max_fields = 6
future_tolerance_s = 7
[[sources]]
topic = "plant/line/{device}"
[[sources]]
topic = "plant/{line}/{device}/raw"
name = "plant-line-device"
"""
    first, second, third = source_options(load(written(tmp_path, text), {}))
    assert first == SourceOptions(
        name="plant-line-device-2",
        topic="plant/{line}/{device}",
        time="t.s",
        include=("a*",),
        exclude=("b",),
        rename={"x": "y"},
        qos=2,
        max_payload_bytes=5,
        max_fields=6,
        future_tolerance_s=7.0,
    )
    assert second == SourceOptions(name="plant-line-device-3", topic="plant/line/{device}")
    assert third.name == "plant-line-device"


def test_defaults_of_a_source_are_those_of_the_record() -> None:
    """The schema and the record behind it agree on every default."""
    settings = load(None, {"GRUARD_SOURCES": '[{"topic": "a/{device}"}]'})
    assert source_options(settings) == (SourceOptions(name="a-device", topic="a/{device}"),)


def uncommented(text: str) -> str:
    return re.sub(r"^#(?=\[|\w+ = )", "", text, flags=re.MULTILINE)


def keys(tree: object, prefix: str = "") -> set[str]:
    if isinstance(tree, list) and tree and isinstance(tree[0], dict):
        tree = tree[0]
    if not isinstance(tree, dict) or prefix.endswith(".rename"):
        return {prefix}
    return set().union(*(keys(inner, f"{prefix}.{key}" if prefix else key) for key, inner in tree.items()))


def test_example_loads_to_the_defaults() -> None:
    """The shipped example is valid, and every value in it is the default."""
    settings = load(EXAMPLE, {})
    with_source = Settings.model_validate({"sources": [{"topic": "sensors/{device}"}]})
    assert settings == with_source


def test_example_shows_every_key_of_the_schema_and_no_other(tmp_path: Path) -> None:
    """With the commented keys switched on the example has exactly the schema's keys, and loads."""
    text = uncommented(EXAMPLE.read_text())
    known = {".".join(str(part) for part in path) for path in module._VARIABLES.values()} - {"sources"}
    known |= {f"sources.{name}" for name in module.Source.model_fields}
    assert keys(tomllib.loads(text)) == known
    settings = load(written(tmp_path, text), {})
    assert settings.mqtt.tls is not None
    assert settings.state.directory == Settings().state.directory
    assert settings.sources[0].name == load(EXAMPLE, {}).sources[0].name


def tables() -> list[type[BaseModel]]:
    found = [value for value in vars(module).values() if inspect.isclass(value)]
    return [cls for cls in found if issubclass(cls, module.Table) and cls.__module__ == module.__name__]


def test_every_key_is_described_with_its_unit() -> None:
    """A number without a unit in its name says in its description what it counts."""
    words = r"second|millisecond|byte|count|ratio|number|level|port|nice"
    for table in tables():
        for name, field in table.model_fields.items():
            assert field.description, f"{table.__name__}.{name}"
            if field.annotation in {int, float}:
                assert re.search(words, field.description, re.IGNORECASE), f"{table.__name__}.{name}"


def test_every_number_has_a_lower_and_an_upper_bound() -> None:
    """No limit can be switched off by a number nobody meant; the default lies inside."""
    for table in tables():
        for name, field in table.model_fields.items():
            if field.annotation in {int, float} and name != "version":
                low = next((bound.ge for bound in field.metadata if hasattr(bound, "ge")), math.nan)
                high = next((bound.le for bound in field.metadata if hasattr(bound, "le")), math.nan)
                assert low <= field.default <= high, f"{table.__name__}.{name}"


def test_configuration_modules_beside_settings_do_not_import_pydantic() -> None:
    """The checks, the places and the messages are plain Python; only the schema needs the library."""
    folder = Path(inspect.getfile(module)).parent
    for path in folder.glob("config_*.py"):
        imported = {
            alias
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in [getattr(node, "module", None), *(name.name for name in node.names)]
            if alias
        }
        assert not any(name.startswith("pydantic") for name in imported), path.name


def test_importing_settings_loads_neither_torch_nor_the_broker_library() -> None:
    """Checking a configuration is quick: it needs no network library and no training library."""
    code = (
        "import sys, gruard.daemon.settings as s; print([m for m in ('torch', 'paho') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
