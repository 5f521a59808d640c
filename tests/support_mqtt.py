"""Real and scripted brokers on the loopback, and foreign clients, for tests of all that speaks MQTT."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Self

import pytest

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from gruard.daemon.edges.broker import Broker

HOST = "127.0.0.1"
_PROGRAMS = ("mosquitto", "mosquitto_passwd", "mosquitto_pub", "mosquitto_sub")


def _find(program: str) -> str | None:
    return shutil.which(program) or shutil.which(program, path="/usr/sbin")  # where Debian keeps servers


def skip_without_mosquitto() -> None:
    missing = [name for name in _PROGRAMS if _find(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)} (Debian packages mosquitto and mosquitto-clients)")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], object], timeout_s: float = 10.0) -> bool:
    """Whether `condition` came true in time; the limit is generous, so only a broken feature meets it."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def hurry(broker: Broker, longest_s: float = 0.3) -> None:
    """Let a broker edge that has not started try again far sooner than it would."""
    policy = broker._policy
    policy.cap_s = policy.absent_cap_s = longest_s
    policy.first_s = policy.base_s = policy.apart_s = min(0.05, longest_s)


class Mosquitto:
    """Debian's broker on one loopback port, in one folder; keeps both over stop, kill and start.

    `lines` are further configuration lines. Without a line that begins with `listener`, one is made for
    `port`, open to anonymous clients unless the lines say otherwise. `within` is a command that runs it
    somewhere else, where it has the address `host`.
    """

    def __init__(
        self, folder: Path, lines: Iterable[str] = (), *, host: str = HOST, within: Iterable[str] = ()
    ) -> None:
        skip_without_mosquitto()
        self.host = host
        self.port = free_port()
        self._within = list(within)
        self._config = folder / "mosquitto.conf"
        self._log = folder / "mosquitto.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.configure(lines)

    def configure(self, lines: Iterable[str]) -> None:
        """Replace the configuration lines; takes effect at the next start."""
        given = list(lines)
        head = [f"listener {self.port} {self.host}", f"persistence_location {self._config.parent}/"]
        if not any(line.startswith("allow_anonymous") for line in given):
            head.append("allow_anonymous true")
        if not any(line.startswith("user ") for line in given):
            head.append("user root")  # else a broker started by root cannot read the test's own folder
        self._config.write_text("\n".join([*head, *given, ""]))

    def start(self) -> Self:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *self._within,
                    _find("mosquitto") or "mosquitto",
                    "-c",
                    str(self._config),
                ],
                stdout=log,
                stderr=log,
            )
        assert wait_until(self._answers), self.log()
        return self

    def stop(self) -> None:
        """End it the clean way (SIGTERM)."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            self._process = None

    def kill(self) -> None:
        """End it at once (SIGKILL)."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def signal(self, number: int) -> None:
        """Send it a signal, such as SIGSTOP for a broker that no longer answers."""
        assert self._process is not None
        self._process.send_signal(number)

    def log(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log()
        with suppress(OSError), socket.create_connection((self.host, self.port), 1):
            return True
        return False

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()


def set_password(file: Path, user: str, password: str) -> None:
    """Add a user to a mosquitto password file, made when it is missing."""
    skip_without_mosquitto()
    file.touch(0o600)
    subprocess.run(["mosquitto_passwd", "-b", str(file), user, password], check=True, timeout=30)


def publish(port: int, topic: str, *payloads: str | bytes, qos: int = 1, options: Iterable[str] = ()) -> None:
    """Publish the payloads with mosquitto_pub, in order, over one connection; waits until they are taken.

    A payload must not hold a newline: several go in as lines.
    """
    lines = [payload.encode() if isinstance(payload, str) else payload for payload in payloads]
    command = ["mosquitto_pub", "-h", HOST, "-p", str(port), "-t", topic, "-q", str(qos), *options]
    if len(lines) == 1:
        subprocess.run([*command, "-s"], input=lines[0], check=True, timeout=30)
    else:
        subprocess.run([*command, "-l"], input=b"\n".join(lines) + b"\n", check=True, timeout=30)


class Subscriber:
    """mosquitto_sub in the background; each message becomes one line of `form` (`-F` in its manual)."""

    def __init__(
        self, port: int, topic: str, form: str = "%t %p", qos: int = 1, options: Iterable[str] = ()
    ) -> None:
        # Line by line, else the note of the SUBACK stays in a buffer until a message comes.
        command = ["stdbuf", "-oL", "mosquitto_sub", "-h", HOST, "-p", str(port), "-t", topic, "-q", str(qos)]
        self._process = subprocess.Popen(
            [*command, "-d", "-F", f"={form}", *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self._lines: list[str] = []
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for raw in self._process.stdout:
            line = raw.decode(errors="replace").rstrip("\n")
            if line.startswith("="):
                self._lines.append(line[1:])
            elif "received SUBACK" in line:
                self._ready.set()

    @property
    def lines(self) -> list[str]:
        return list(self._lines)

    def wait_for(self, count: int, timeout_s: float = 10.0) -> list[str]:
        """The lines, once there are `count`."""
        assert wait_until(lambda: len(self._lines) >= count, timeout_s), self._lines
        return self.lines

    def __enter__(self) -> Self:
        if not self._ready.wait(10):
            self.__exit__()
            pytest.fail("mosquitto_sub did not subscribe")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait(10)
        self._thread.join()
        assert self._process.stdout is not None
        self._process.stdout.close()


#: Packet types [MQTT 5, 2.1.2], as the upper half of the first byte.
CONNECT, CONNACK, PUBLISH, PUBACK, SUBSCRIBE, SUBACK, PINGREQ, PINGRESP, DISCONNECT = (
    *(1, 2, 3, 4),
    *(8, 9, 12, 13, 14),
)


def packet(kind: int, body: bytes = b"", flags: int = 0) -> bytes:
    """One MQTT packet; bodies over 127 bytes are not needed here."""
    assert len(body) < 128
    return bytes([kind << 4 | flags, len(body)]) + body


class ScriptedBroker:
    """A server that answers with what `reply(kind, body)` returns; None closes the connection.

    For faults that no real broker shows. `connections` counts those accepted, `packets` keeps all that came.
    """

    def __init__(
        self, reply: Callable[[int, bytes], bytes | None], tls: ssl.SSLContext | None = None
    ) -> None:
        self._reply = reply
        self._tls = tls
        self.connections = 0
        self.packets: list[tuple[int, bytes]] = []
        self._server = socket.create_server((HOST, 0))
        self.port = int(self._server.getsockname()[1])
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            self.connections += 1
            if self._tls is not None:
                client = self._tls.wrap_socket(client, server_side=True)
            self._open.append(client)
            thread = threading.Thread(target=self._serve, args=(client,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError), client, client.makefile("rb") as stream:
            while head := stream.read(1):
                length, shift = 0, 0
                while True:
                    (byte,) = stream.read(1)
                    length |= (byte & 127) << shift
                    shift += 7
                    if byte < 128:
                        break
                body = stream.read(length)
                self.packets.append((head[0] >> 4, body))
                answer = self._reply(head[0] >> 4, body)
                if answer is None:
                    return
                client.sendall(answer)

    def send(self, data: bytes) -> None:
        """Send to the newest connection, unasked."""
        self._open[-1].sendall(data)

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)  # close alone does not end a waiting accept
        self._server.close()
        for client in self._open:
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()


class Certificates:
    """An authority of our own, and certificates from it, made by the openssl command."""

    def __init__(self, folder: Path) -> None:
        if shutil.which("openssl") is None:
            pytest.skip("needs the openssl command")
        self._folder = folder
        self.authority = self._name("authority.crt")
        self._openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-subj", "/CN=test authority", "-keyout", self._name("authority.key")),
            *("-out", self.authority, "-days", "2"),
        )

    def issue(self, name: str, alternative: str) -> tuple[str, str]:
        """Certificate and key files for `name`; `alternative` is a subjectAltName like IP:127.0.0.1."""
        certificate, key, request = (self._name(f"{name}.{end}") for end in ("crt", "key", "csr"))
        extensions = self._folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName={alternative}\n")
        self._openssl(
            *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-subj", f"/CN={name}", "-keyout", key, "-out", request),
        )
        self._openssl(
            *("x509", "-req", "-in", request, "-CA", self.authority, "-CAkey", self._name("authority.key")),
            *("-CAcreateserial", "-days", "2", "-extfile", str(extensions), "-out", certificate),
        )
        return certificate, key

    def _name(self, file: str) -> str:
        return str(self._folder / file)

    @staticmethod
    def _openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=30)
