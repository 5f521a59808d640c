"""Rows for the database's tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gruard.daemon.edges.rows import AlertRow, Checkpoint, ModelRow, StoredReading

if TYPE_CHECKING:
    from collections.abc import Sequence

FIELDS = ("temp", "load")
NOW_S = 1_767_225_600.0  # 2026-01-01T00:00:00Z


def reading(
    lsn: int,
    device: str = "pump-1",
    values: Sequence[float] | None = None,
    fields: tuple[str, ...] = FIELDS,
    score: float = 0.25,
) -> StoredReading:
    """A reading whose numbers follow from its LSN."""
    return StoredReading(
        lsn=lsn,
        device=device,
        source="plant",
        fields=fields,
        time_s=NOW_S + lsn,
        received_s=NOW_S + lsn + 0.5,
        values=np.array([lsn + 0.5 * place for place in range(len(fields))] if values is None else values),
        score=score,
        flags=lsn % 3,
    )


def readings(first: int, count: int, devices: Sequence[str] = ("pump-1",)) -> list[StoredReading]:
    """Consecutive readings, device after device in turn."""
    return [reading(lsn, devices[lsn % len(devices)]) for lsn in range(first, first + count)]


def checkpoint(device: str = "pump-1", lsn: int = 7, state: bytes = b"\x01\x02") -> Checkpoint:
    return Checkpoint(device, "plant", FIELDS, lsn, "layout-1", "model-1", state)


def alert(identity: str = "a-1", opened_s: float = NOW_S, resolved_s: float | None = None) -> AlertRow:
    state = "opened" if resolved_s is None else "resolved"
    return AlertRow(
        identity, "pump-1", "plant", state, "warning", opened_s, opened_s, resolved_s, 0.9, 0.8, "{}"
    )


def model(identity: str, group: str = "plant/2", status: str = "candidate") -> ModelRow:
    return ModelRow(identity, group, status, NOW_S, None, 0.5, '{"sha256": "00"}', "first")
