"""A device's checkpoint: what the engine knows of it and its numeric memory, and who owes one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from gruard.daemon.core.devices import Device
from gruard.models.errors import ModelError

if TYPE_CHECKING:
    from gruard.daemon.core.groups import Group


@dataclass(frozen=True, slots=True)
class DeviceRow:
    """A device's checkpoint."""

    device: str
    source: str
    fields: tuple[str, ...]
    layout: str
    model: str
    state: bytes


def row_of(device: Device, group: Group) -> DeviceRow:
    """A device's checkpoint as of now."""
    known = msgspec.msgpack.encode(device)
    state = len(known).to_bytes(4, "big") + known + group.scorer.dump(group.devices[device.name])
    layout = group.scorer.layout_id
    return DeviceRow(device.name, device.source, device.fields, layout, group.model, state)


def open_state(state: bytes) -> tuple[Device, bytes]:
    """Take a checkpoint's bytes apart: what the engine knows of the device, and its numeric memory.

    Raises:
        msgspec.DecodeError: the bytes are no checkpoint.
    """
    numeric_at = int.from_bytes(state[:4], "big") + 4
    try:
        return msgspec.msgpack.decode(state[4:numeric_at], type=Device), state[numeric_at:]
    except UnicodeDecodeError as error:  # what msgspec raises for a name that is not UTF-8
        raise msgspec.DecodeError(str(error)) from error


def loaded(group: Group, slot: int, layout: str, numeric: bytes) -> bool:
    """Whether the numeric memory fits the group's layout and model, and was put in its slot."""
    if layout != group.scorer.layout_id:
        return False
    try:
        group.scorer.load(slot, numeric)
    except ModelError:
        return False
    return True


@dataclass(slots=True)
class Marks:
    """Devices whose row in one generation of checkpoints is behind."""

    moved: set[str] = field(default_factory=set)
    taken: set[str] = field(default_factory=set)  # given out and not known to be durable yet

    def take(self) -> list[str]:
        """All that are behind, by name; those that a failed write left are among them."""
        self.taken |= self.moved
        self.moved = set()
        return sorted(self.taken)

    def settle(self) -> None:
        """What was taken is durable. What moved since stays marked."""
        self.taken.clear()
