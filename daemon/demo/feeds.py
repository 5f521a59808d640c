"""The two feeds of a demo: the simulated fleet, faster than real time, and this machine's telemetry.

Time, waiting and publishing come from the caller. `pause(seconds)` waits and answers True when asked to stop,
which is what `threading.Event.wait` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gruard.daemon.demo.fleet import Fleet

    Publish = Callable[[str, bytes], None]
    Pause = Callable[[float], bool]
    Seen = Callable[[str, Mapping[str, float]], None]

PUMP_TOPIC = "demo/pumps/"  # and the device
HOST_TOPIC = "demo/hosts/"
HOST_INTERVAL_S = 0.25


def payload(time_s: float, fields: Mapping[str, float]) -> bytes:
    """One reading as flat JSON with its event time under `ts`."""
    return msgspec.json.encode({"ts": round(time_s, 3), **fields})


def publish_fleet(
    publish: Publish,
    fleet: Fleet,
    *,
    speed: float,
    duration_s: float,
    start_time_s: float,
    clock: Callable[[], float],
    pause: Pause,
    seen: Seen | None = None,
) -> int:
    """Publish `duration_s` real seconds of the fleet at `speed` times real time; the number of readings sent.

    Readings carry event times from `start_time_s` on, one second apart. After a delay the feed catches up
    at once, so that event time keeps its pace against the clock.
    """
    sent = 0
    started = clock()
    for t in range(int(duration_s * speed)):
        if pause(max(0.0, started + t / speed - clock())):
            break
        for reading in fleet.readings(t):
            publish(PUMP_TOPIC + reading.device, payload(start_time_s + reading.time_s, reading.fields))
            sent += 1
            if seen is not None:
                seen(reading.device, reading.fields)
    return sent


def publish_host(
    publish: Publish,
    device: str,
    *,
    measure: Callable[[], Mapping[str, float]],
    wall: Callable[[], float],
    pause: Pause,
    seen: Seen,
) -> int:
    """Publish this machine's telemetry every `HOST_INTERVAL_S` until told to stop; the number sent."""
    sent = 0
    while not pause(HOST_INTERVAL_S):
        fields = measure()
        publish(HOST_TOPIC + device, payload(wall(), fields))
        sent += 1
        seen(device, fields)
    return sent
