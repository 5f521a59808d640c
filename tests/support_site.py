"""A daemon in a place where everything around it can break, and devices that go on publishing meanwhile."""

from __future__ import annotations

import json
import socket
import threading
import time
from contextlib import contextmanager, suppress
from itertools import count
from typing import TYPE_CHECKING, Final, Self

from support_daemon import CONFIG, Daemon
from support_engine import plant_rows
from support_mqtt import Mosquitto, wait_until
from support_shim import Shim, running

from gruard.daemon.edges.broker import Publisher
from gruard.daemon.edges.database import open_readonly

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

#: Longest time until trouble shows, and until all is well once its cause is gone.
PROMPT_S: Final = 5.0
#: What the service manager in these stories waits for a sign of life.
WATCHDOG_S: Final = 10.0


class ServiceManager:
    """Where a daemon sends its datagrams: a stand-in for systemd that notes when each one came."""

    def __init__(self, folder: Path, watchdog_s: float) -> None:
        self._path = folder / "notify"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self._path))
        self._socket.setblocking(False)
        self.environ = {
            "NOTIFY_SOCKET": str(self._path),
            "WATCHDOG_USEC": str(round(watchdog_s * 1e6)),
        }
        self._fed_s = time.monotonic()
        self.longest_gap_s = 0.0

    def listen(self) -> int:
        """Take what has come; how many watchdog messages there were. Call it often: it keeps the times."""
        came = 0
        with suppress(BlockingIOError):
            while message := self._socket.recv(4096):
                came += b"WATCHDOG=1" in message.split(b"\n")
        now = time.monotonic()
        self.longest_gap_s = max(self.longest_gap_s, now - self._fed_s)
        if came:
            self._fed_s = now
        return came

    @property
    def quiet_s(self) -> float:
        """Since the last watchdog message."""
        self.listen()
        return time.monotonic() - self._fed_s

    def begin(self) -> None:
        """Forget the gaps so far."""
        self.listen()
        self._fed_s, self.longest_gap_s = time.monotonic(), 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


class Load:
    """Devices that publish in turn until the block ends, and what they sent: device -> event times."""

    def __init__(self, port: int, *, per_second: float = 200.0, devices: int = 4) -> None:
        self._port, self._gap_s = port, 1 / per_second
        self.sent: dict[str, list[float]] = {f"pump-{n}": [] for n in range(devices)}
        self._values = plant_rows(4096)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._error: BaseException | None = None

    @property
    def total(self) -> int:
        return sum(len(times) for times in self.sent.values())

    def stop(self) -> None:
        """Publish no more; returns once the broker has everything."""
        self._ended.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            with Publisher("127.0.0.1", self._port, "load") as publisher:
                due_s = time.monotonic()
                for n in count():
                    device = f"pump-{n % len(self.sent)}"
                    row = self._values[n // len(self.sent) % len(self._values)]
                    fields = {f"f{k}": float(v) for k, v in enumerate(row)}
                    now_s = time.time()
                    publisher.publish(f"plant/{device}", json.dumps({"ts": now_s, **fields}).encode(), qos=1)
                    self.sent[device].append(now_s)
                    due_s += self._gap_s
                    if self._ended.wait(due_s - time.monotonic()):
                        break
                publisher.wait_all(30)
        except BaseException as error:  # noqa: BLE001 - raised again where the thread is joined
            self._error = error

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def journalled(directory: Path, devices: Iterable[str]) -> dict[str, list[float]]:
    """The event times of each device's stored readings, in the order in which they were taken."""
    fields = tuple(f"f{k}" for k in range(3))
    with open_readonly(directory) as reader:
        return {device: reader.history(device, fields, 1_000_000).time_s.tolist() for device in devices}


class Site:
    """A broker, a daemon under the shim and a stand-in for systemd; the state is kept at `state`."""

    def __init__(self, folder: Path, state: Path, train: str) -> None:
        self.broker = Mosquitto(folder, ["max_queued_messages 100000"])
        config = CONFIG.replace("{state}", str(state)).replace("[mqtt]", "[mqtt]\nkeepalive_s = 5")
        config = config.replace("[train]", f'[train]\nevery = "{train}"')
        self.daemon = Daemon(folder, self.broker.port, config=config, warmup=100)
        self.daemon.state = state
        self.shim = Shim(folder, state)
        self.manager = ServiceManager(folder, WATCHDOG_S)

    def reasons(self) -> str:
        """Why the daemon is not ready; empty when it is, and when it does not answer."""
        status, body = self.daemon.get("/readyz")
        return " ".join(json.loads(body)["reasons"]) if status == 503 else ""

    def waits(self, condition: Callable[[], object], timeout_s: float = PROMPT_S) -> bool:
        """Whether it came true in time, while the watchdog's messages are noted."""

        def true() -> bool:
            self.manager.listen()
            return bool(condition())

        return wait_until(true, timeout_s)

    def ready(self) -> bool:
        return self.daemon.get("/readyz")[0] == 200

    def rests(self, seconds: float) -> None:
        self.waits(lambda: False, seconds)

    def has_all_of(self, load: Load) -> bool:
        """Whether everything sent was taken and applied, once and in order; ends the load."""
        load.stop()
        if self.waits(lambda: journalled(self.daemon.state, load.sent) == load.sent, 60):
            applied = self.daemon.devices()
            counts = {device: applied[device]["readings"] for device in load.sent}
            assert counts == {device: len(times) for device, times in load.sent.items()}
            return True
        found = journalled(self.daemon.state, load.sent)
        wrong = {
            device: {
                "sent": len(times),
                "found": len(found[device]),
                "lost": sorted(set(times) - set(found[device]))[:5],
                "foreign": sorted(set(found[device]) - set(times))[:5],
            }
            for device, times in load.sent.items()
            if found[device] != times
        }
        raise AssertionError(f"{wrong}\n{self.daemon.log()[-3000:]}")


@contextmanager
def site(folder: Path, state: Path, train: str = "off") -> Iterator[Site]:
    """All of it, running."""
    made = Site(folder, state, train)
    with (
        made.shim,
        made.manager,
        made.broker,
        running(made.daemon, made.shim.environ, made.manager.environ),
    ):
        made.manager.begin()
        yield made
