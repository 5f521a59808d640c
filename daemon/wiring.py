"""The configuration as each part wants it: settings stop here, small records with units go inwards."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gruard.daemon.core.engine import EngineOptions
from gruard.daemon.edges.broker import BrokerOptions, TlsOptions
from gruard.daemon.pipeline import TrainingSettings
from gruard.daemon.round_pace import PAUSE_AT
from gruard.daemon.settings import source_options

if TYPE_CHECKING:
    from pathlib import Path

    from gruard.daemon.settings import Settings


def training_settings(settings: Settings) -> TrainingSettings:
    """The [model] and [train] tables as the pipeline wants them."""
    model, train = settings.model, settings.train
    return TrainingSettings(
        cell=model.cell,
        hidden=model.hidden,
        layers=model.layers,
        dropout=model.dropout,
        warmup_readings=model.warmup_readings,
        every_s=train.every_s,
        after_readings=None if train.after_readings == "off" else train.after_readings,
        on_drift=train.on_drift,
        least_pause_s=train.least_pause_s,
        max_seconds=train.max_duration_s,
        max_cpu_s=train.max_cpu_s,
        max_memory_bytes=train.max_memory_mb * 1_000_000,
        # At QoS 1 the broker hands over no more than its window: half of that waiting for long is a backlog.
        pause_at=min(PAUSE_AT, settings.mqtt.receive_maximum // 2),
        max_rows=train.max_rows_per_device,
        max_devices=train.max_devices,
        seed=train.seed,
        nice=train.nice,
        first_days_s=train.first_days_s,
    )


def engine_options(settings: Settings) -> EngineOptions:
    """The engine's part of the configuration."""
    return EngineOptions(
        sources=source_options(settings),
        budget=settings.alerts.false_alarms,
        update_every_s=settings.alerts.update_every_s,
        most_devices=settings.limits.devices,
        idle_limit_s=settings.limits.idle_device_s,
        instance=settings.instance,
    )


def broker_options(settings: Settings) -> BrokerOptions:
    """The broker edge's part of the configuration."""
    mqtt, tls = settings.mqtt, settings.mqtt.tls
    return BrokerOptions(
        host=mqtt.host,
        port=mqtt.port,
        client_id=mqtt.client_id,
        username=mqtt.username,
        password=None if mqtt.password is None else mqtt.password.get_secret_value(),
        keepalive_s=mqtt.keepalive_s,
        protocol=mqtt.protocol,
        session_expiry_s=mqtt.session_expiry_s,
        receive_maximum=mqtt.receive_maximum,
        max_packet_bytes=mqtt.max_packet_bytes,
        tls=None
        if tls is None
        else TlsOptions(_path(tls.ca_file), _path(tls.cert_file), _path(tls.key_file), tls.insecure),
        will_topic=f"{settings.alerts.base}/status",
        will_payload=b"offline",
        inbox_readings=settings.limits.inbox_readings,
    )


def _path(path: Path | None) -> str | None:
    return None if path is None else str(path)
