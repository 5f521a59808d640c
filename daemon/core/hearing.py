"""An operator's word takes effect on a device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gruard.models.patterns import MOST_PATTERNS

if TYPE_CHECKING:
    from gruard.daemon.core.devices import Device
    from gruard.daemon.core.groups import Group
    from gruard.daemon.core.words import Effect


def hear(device: Device, group: Group, word: int, change: Effect) -> None:
    """Change what the engine knows of a device as a word says. The same word changes the same."""
    device.heard = word
    kept = [pattern for pattern in device.patterns if pattern.word not in change.drops]
    if change.pattern is not None:
        kept = [pattern for pattern in kept if pattern.word != change.pattern.word]
        kept = [*kept, change.pattern][-MOST_PATTERNS:]
    device.patterns = tuple(kept)
    remind(device, group)
    slot = group.devices[device.name]
    if change.forgives:
        group.scorer.forgive(slot)
    if change.lowers:
        group.scorer.lower(slot, change.lowers)


def remind(device: Device, group: Group) -> None:
    """Tell the group what is normal for a device. Patterns of other fields wait until it has those again."""
    own = [pattern for pattern in device.patterns if pattern.fields == group.fields]
    group.scorer.patterns.keep(group.devices[device.name], own)
