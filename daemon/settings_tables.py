"""The tables of the configuration: every key, its default, its unit and its limits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    field_serializer,
    field_validator,
    model_validator,
)

from gruard.daemon.config_errors import FaultsError
from gruard.daemon.config_values import (
    check_base,
    check_choice,
    check_host,
    check_label,
    check_name,
    check_path,
    parse_budget,
    parse_duration,
    parse_listen,
    spelt,
)
from gruard.daemon.core.sources import Sources, parse_pattern
from gruard.daemon.decoders import DECODERS
from gruard.daemon.records import SourceOptions

if TYPE_CHECKING:
    from gruard.daemon.config_toml import KeyPath
    from gruard.models.calibration import Budget

_MQTT_LARGEST_BYTES = 268_435_455  # MQTT 5 section 2.1.4: the largest "remaining length"
_UINT32_LARGEST = 4_294_967_295


def _duration(least_s: float, *, off: bool = False) -> BeforeValidator:
    return BeforeValidator(spelt(lambda value: parse_duration(value, least_s), off=off))


def _check_topic(value: str) -> str:
    parse_pattern(value)
    return value


def _check_decoder(value: str) -> str:
    return check_choice(value, DECODERS)


Label = Annotated[str, AfterValidator(check_label)]
FilePath = Annotated[Path, Field(strict=False), BeforeValidator(check_path)]


class Table(BaseModel):
    """One TOML table: frozen, every key known, no silent conversion, values never echoed in errors."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        hide_input_in_errors=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


class MqttTls(Table):
    """`[mqtt.tls]`: its presence turns TLS on."""

    ca_file: FilePath | None = None
    """PEM file of the authorities to trust; the system's own when not set."""
    cert_file: FilePath | None = None
    """PEM file of this client's certificate."""
    key_file: FilePath | None = None
    """PEM file of this client's private key."""
    insecure: bool = False
    """Accept a certificate that names another host (tests only)."""

    @model_validator(mode="after")
    def _come_together(self) -> Self:
        if self.cert_file and not self.key_file:
            raise FaultsError([(("cert_file",), "needs key_file beside it")])
        if self.key_file and not self.cert_file:
            raise FaultsError([(("key_file",), "needs cert_file beside it")])
        return self


class Mqtt(Table):
    """`[mqtt]`: the one broker that readings come from and alerts go to."""

    host: Annotated[str, AfterValidator(check_host)] = "127.0.0.1"
    """Host name or address of the broker."""
    port: int = Field(default=1883, ge=1, le=65_535)
    """TCP port of the broker (8883 is usual with TLS)."""
    client_id: Label = "gruard"
    """Name of the session at the broker: unique there and the same on every start."""
    username: Label | None = None
    """User name for the broker; none when not set."""
    password: SecretStr | None = None
    """Password for the broker; better given as the credential mqtt_password."""
    keepalive_s: int = Field(default=10, ge=5, le=3600)
    """Seconds of silence after which a ping is sent."""
    protocol: Literal["5", "3.1.1"] = "5"
    """MQTT version; "5" falls back to 3.1.1 when the broker refuses it."""
    session_expiry_s: int = Field(default=86_400, ge=0, le=_UINT32_LARGEST)
    """Seconds for which the broker keeps messages for us while we are away."""
    receive_maximum: int = Field(default=200, ge=1, le=65_535)
    """Messages in flight that are not acknowledged yet (count)."""
    max_packet_bytes: int = Field(default=1_048_576, ge=1024, le=_MQTT_LARGEST_BYTES)
    """Largest packet that we accept, in bytes."""
    tls: MqttTls | None = None
    """TLS; off while the table is absent."""

    @field_serializer("password", when_used="json")
    def _masked(self, password: SecretStr | None) -> str | None:
        return None if password is None else "***"

    @model_validator(mode="after")
    def _password_has_a_name(self) -> Self:
        if self.protocol == "3.1.1" and self.password is not None and self.username is None:
            raise FaultsError(
                [(("password",), "needs username: MQTT 3.1.1 sends no password without a name")]
            )
        return self


class Source(Table):
    """`[[sources]]`: one family of topics and how their payloads become readings."""

    name: Annotated[str, AfterValidator(check_name)] = ""
    """Unique label, part of the group's name; made from the topic when not set."""
    topic: Annotated[str, AfterValidator(_check_topic)]
    """Topic pattern: {device} stands for one level, {device+} for several."""
    decoder: Annotated[str, AfterValidator(_check_decoder)] = "json"
    """How payloads are read: json (objects with numbers) or scalar (one number)."""
    time: Label | None = None
    """Dotted path of the event time in the payload; time of arrival when not set."""
    sequence: Label | None = None
    """Dotted path of a number that rises with each reading of the device; none when not set."""
    include: Annotated[tuple[Label, ...], Field(strict=False)] = ()
    """Only fields that fit one of these patterns (* and ?); all when empty."""
    exclude: Annotated[tuple[Label, ...], Field(strict=False)] = ()
    """Never fields that fit one of these patterns; wins over include."""
    rename: dict[Label, Label] = {}
    """Dotted name in the payload -> name of the field."""
    qos: int = Field(default=1, ge=0, le=2)
    """Quality of service of the subscription (level 0..2)."""
    max_payload_bytes: int = Field(default=262_144, ge=1, le=_MQTT_LARGEST_BYTES)
    """Larger payloads are rejected, in bytes."""
    max_fields: int = Field(default=64, ge=1, le=1024)
    """Most numeric fields of one device (count)."""
    future_tolerance_s: float = Field(default=300.0, ge=0, le=31_622_400)
    """Event times further ahead of arrival are rejected, in seconds."""

    @field_validator("rename")
    @classmethod
    def _renames_are_distinct(cls, rename: dict[str, str]) -> dict[str, str]:
        seen: set[str] = set()
        faults: list[tuple[KeyPath, str]] = []
        for old, new in rename.items():
            if new in seen:
                faults.append(((old,), "gives a name that another field already has"))
            seen.add(new)
        if faults:
            raise FaultsError(faults)
        return rename

    @model_validator(mode="after")
    def _decoder_accepts_the_options(self) -> Self:
        try:
            Sources([self.options])
        except ValueError as fault:
            raise ValueError(str(fault).removeprefix(f"Source {self.name!a}: ")) from None
        return self

    @property
    def options(self) -> SourceOptions:
        """The same as a plain record, for the decoders."""
        return SourceOptions(**self.model_dump())


class Model(Table):
    """`[model]`: the recurrent net that a group of devices shares."""

    cell: Literal["gru", "lstm", "rnn"] = "gru"
    """Kind of recurrent cell."""
    hidden: int = Field(default=32, ge=4, le=256)
    """Width of the hidden state (count)."""
    layers: int = Field(default=1, ge=1, le=4)
    """Stacked layers (count)."""
    dropout: float = Field(default=0.0, ge=0, le=0.9)
    """Share of hidden values dropped in training (ratio)."""
    warmup_readings: int = Field(default=400, ge=60, le=100_000)
    """Readings of a device before the model may judge it (count)."""


class Train(Table):
    """`[train]`: rounds of learning, each in a child process."""

    every: Annotated[str, _duration(10, off=True)] = "6h"
    """Duration between rounds; "off" never trains."""
    after_readings: Annotated[int, Field(ge=100, le=1_000_000_000)] | Literal["off"] = 5000
    """New readings, of the device that has shown most, that begin a round early (count); "off" never does."""
    on_drift: bool = True
    """Begin a round early when the live model forecasts lastingly worse than it did."""
    least_pause: Annotated[str, _duration(0)] = "30m"
    """Duration between a round and one that begins early, at least; `every` where that is shorter."""
    max_duration: Annotated[str, _duration(10)] = "15m"
    """Duration after which a round is ended without a result; time for which it is paused does not count."""
    max_cpu: Annotated[str, _duration(10, off=True)] = "15m"
    """Processor time after which a round is ended without a result (duration); "off" sets no limit."""
    max_memory_mb: int = Field(default=2000, ge=300, le=1_000_000)
    """Memory that the training process may fill, 220 of it PyTorch's own, in MB (10^6 bytes)."""
    max_rows_per_device: int = Field(default=5000, ge=100, le=1_000_000)
    """Newest rows of a device that a round learns from (count)."""
    max_devices: int = Field(default=256, ge=1, le=100_000)
    """Devices of a group in one round (count)."""
    seed: int = Field(default=0, ge=0, le=_UINT32_LARGEST)
    """Seed of every random choice (number)."""
    nice: int = Field(default=19, ge=0, le=19)
    """Niceness of the training process (19 yields to all and only gets what nobody else wants)."""
    first_days: Annotated[str, _duration(60, off=True)] = "7d"
    """Duration of a device's first days, which slow drift is measured against; "off" does not watch."""

    @property
    def every_s(self) -> float | None:
        """Seconds between rounds; None when training is off."""
        return None if self.every == "off" else parse_duration(self.every)

    @property
    def first_days_s(self) -> float | None:
        """Seconds that slow drift is measured against; None when it is not watched."""
        return None if self.first_days == "off" else parse_duration(self.first_days)

    @property
    def least_pause_s(self) -> float:
        """Seconds between a round and one that begins early."""
        return parse_duration(self.least_pause)

    @property
    def max_duration_s(self) -> float:
        """Seconds after which a round is ended."""
        return parse_duration(self.max_duration)

    @property
    def max_cpu_s(self) -> float | None:
        """Seconds of processor time after which a round is ended; None when there is no limit."""
        return None if self.max_cpu == "off" else parse_duration(self.max_cpu)


class Alerts(Table):
    """`[alerts]`: where people are told, and how often they may be told in vain."""

    base: Annotated[str, AfterValidator(check_base)] = "gruard"
    """Topic below which alerts, state and status are published."""
    budget: Annotated[str, BeforeValidator(spelt(parse_budget))] = "1 per device per week"
    """False alarms to accept: NUMBER per device per hour|day|week|month, or per COUNT readings."""
    update_every: Annotated[str, _duration(1)] = "60s"
    """Duration between two updates of an open alert, at least."""
    most_per_minute: int = Field(default=60, ge=1, le=100_000)
    """Alerts that are told one by one; of more there is one summary (count per minute)."""

    @property
    def false_alarms(self) -> Budget:
        """The budget as numbers; a month counts 30 days."""
        return parse_budget(self.budget)

    @property
    def update_every_s(self) -> float:
        """Seconds between two updates of an open alert, at least."""
        return parse_duration(self.update_every)


class Http(Table):
    """`[http]`: metrics, health and the status page."""

    listen: Annotated[str, BeforeValidator(spelt(parse_listen, off=True))] = "127.0.0.1:9109"
    """HOST:PORT to listen on, port 0 is any free one; "off" opens nothing."""

    @property
    def address(self) -> tuple[str, int] | None:
        """Host (without brackets) and port; None when the server is off."""
        return None if self.listen == "off" else parse_listen(self.listen)


class State(Table):
    """`[state]`: the database on disk."""

    directory: FilePath = Path("/var/lib/gruard")
    """Directory of the database; systemd's STATE_DIRECTORY when not set."""
    max_rows_per_device: int = Field(default=20_000, ge=1200, le=10_000_000)
    """Newest readings kept for each device, at least what enrolment reads again (count)."""
    max_megabytes: int = Field(default=4000, ge=10, le=10_000_000)
    """Size beyond which the oldest history of all devices goes, in MB (10^6 bytes)."""
    max_age: Annotated[str, _duration(3600, off=True)] = "off"
    """Duration for which history is kept; "off" keeps it until there is too much."""
    checkpoint_every: Annotated[str, _duration(1)] = "30s"
    """Duration between two checkpoints of the devices' memory."""
    commit_every_ms: int = Field(default=10, ge=1, le=1000)
    """Longest wait of a commit, in milliseconds."""
    commit_readings: int = Field(default=512, ge=1, le=65_535)
    """Readings that fill a commit (count)."""

    @property
    def max_age_s(self) -> float | None:
        """Seconds for which history is kept; None when it does not age."""
        return None if self.max_age == "off" else parse_duration(self.max_age)

    @property
    def checkpoint_every_s(self) -> float:
        """Seconds between two checkpoints."""
        return parse_duration(self.checkpoint_every)


class Limits(Table):
    """`[limits]`: what bounds memory, disk and metric series."""

    devices: int = Field(default=10_000, ge=1, le=1_000_000)
    """Devices that are remembered (count)."""
    idle_device: Annotated[str, _duration(60)] = "30d"
    """Duration of silence after which a device may make room for a new one."""
    inbox_readings: int = Field(default=5_000, ge=1, le=10_000_000)
    """Messages that wait before they are shed (count)."""
    labelled_devices: int = Field(default=500, ge=0, le=100_000)
    """Devices with metric series of their own (count)."""
    outbox_events: int = Field(default=10_000, ge=10, le=10_000_000)
    """Alert events that wait for the broker before further ones are only counted (count)."""

    @property
    def idle_device_s(self) -> float:
        """Seconds of silence after which a device may make room."""
        return parse_duration(self.idle_device)


class Log(Table):
    """`[log]`: what the daemon tells about itself."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least level that is written."""
    format: Literal["auto", "text", "json", "journal"] = "auto"
    """Form of a line; "auto" is journal under systemd and text elsewhere."""
