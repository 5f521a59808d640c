"""How a connection to the broker is opened: name, TCP, TLS; and what is unsafe about the way it is asked for.

Nothing here blocks for long: each wait ends with the stop of the daemon, and shows meanwhile that the network
thread is alive. No paho here.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import ssl
import stat
import threading
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from gruard.daemon.edges.link import CONNECT_TIMEOUT_S, cause
from gruard.daemon.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gruard.daemon.edges.link import Bell, BrokerOptions, Link, TlsOptions

    _Address = tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]
    _Found = tuple[socket.AddressFamily, socket.SocketKind, int, str, _Address]

_SLICE_S = 0.5  # the longest wait without a sign of life


class Dialler:
    """Opens sockets for the network thread. `monotonic` gives seconds that never jump."""

    def __init__(
        self, bell: Bell, stopping: threading.Event, link: Link, monotonic: Callable[[], float]
    ) -> None:
        self._bell = bell
        self._stopping = stopping
        self._link = link
        self._monotonic = monotonic
        self._lookup: _Lookup | None = None

    def connect(self, host: str, port: int) -> socket.socket:
        """A connected TCP socket, from the first address of the host that answers within 4 s.

        Raises:
            OSError: none does; the cause is the last one's.
            BrokerError: the name server does not answer, or the daemon stops meanwhile.
        """
        failure = OSError(errno.ENOENT, "the name has no address")
        for family, kind, protocol, _, address in self._addresses(host, port):
            try:
                return self._open(socket.socket(family, kind, protocol), address)
            except OSError as error:
                failure = error
        raise failure

    def _open(self, sock: socket.socket, address: _Address) -> socket.socket:
        try:
            sock.setblocking(False)
            code = sock.connect_ex(address)
            if code == errno.EINPROGRESS:
                self.wait(sock, select.POLLOUT, self.deadline_s())
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        except BaseException:
            sock.close()
            raise
        if code != 0:
            sock.close()
            raise OSError(code, os.strerror(code))
        return sock

    def _addresses(self, host: str, port: int) -> Sequence[_Found]:
        """Ask the name server, in a thread of its own, because a dead one holds its caller for half a minute.

        A question without an answer stays open, and the next attempt waits for the same answer.
        """
        if _address(host) is not None:
            return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        lookup = self._lookup = self._lookup or _Lookup(host, port)
        deadline_s = self.deadline_s()
        while not lookup.over.wait(_SLICE_S):
            self._come_round()
            if self._monotonic() > deadline_s:
                raise BrokerError(f"the name {host} is not resolved, the name server does not answer")
        self._lookup = None
        if lookup.error is not None:
            raise lookup.error
        return lookup.found

    def _come_round(self) -> None:
        self._link.turned_s = self._monotonic()
        if self._stopping.is_set():
            raise BrokerError("the daemon stops")

    def deadline_s(self) -> float:
        """When a step that begins now has taken too long."""
        return self._monotonic() + CONNECT_TIMEOUT_S

    def wait(self, sock: socket.socket, events: int, deadline_s: float) -> None:
        """Wait until the socket is ready for `events`.

        Raises:
            TimeoutError: `deadline_s` passed.
            BrokerError: the daemon stops.
        """
        poller = select.poll()
        poller.register(sock.fileno(), events)
        poller.register(self._bell.fileno(), select.POLLIN)
        while True:
            self._come_round()
            left_s = deadline_s - self._monotonic()
            if left_s <= 0:
                raise TimeoutError
            ready = dict(poller.poll(min(left_s, _SLICE_S) * 1000))
            if sock.fileno() in ready:
                return
            self._bell.silence()


class _Lookup:
    """One question to the name server."""

    def __init__(self, host: str, port: int) -> None:
        self.over = threading.Event()
        self.found: Sequence[_Found] = ()
        self.error: OSError | UnicodeError | None = None
        threading.Thread(target=self._ask, args=(host, port), name="gruard-names", daemon=True).start()

    def _ask(self, host: str, port: int) -> None:
        try:
            self.found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:  # UnicodeError: a name that no name server is asked for
            self.error = error
        finally:
            self.over.set()


class _TlsSocket(ssl.SSLSocket):
    """Shakes hands without blocking, and closes itself when that fails, which paho forgets."""

    dialler: ClassVar[Dialler]

    def do_handshake(self, block: bool = False) -> None:  # noqa: FBT001, FBT002 - the base class's signature
        deadline_s = self.dialler.deadline_s()
        self.setblocking(False)
        try:
            while True:
                try:
                    super().do_handshake(block)
                except ssl.SSLWantReadError:
                    self.dialler.wait(self, select.POLLIN, deadline_s)
                except ssl.SSLWantWriteError:
                    self.dialler.wait(self, select.POLLOUT, deadline_s)
                else:
                    return
        except BaseException:
            self.close()
            raise


def _no_pass_phrase() -> str:
    """Nobody is there to type one: OpenSSL would ask at the terminal and wait."""
    return ""


def tls_context(options: TlsOptions, dialler: Dialler) -> ssl.SSLContext:
    """TLS 1.2 or newer. Certificates are read anew for every connection: renewed ones are picked up.

    Raises:
        BrokerError: a file is missing or is no certificate.
    """
    try:
        context = ssl.create_default_context(cafile=options.ca_file)
        if options.cert_file is not None:
            context.load_cert_chain(options.cert_file, options.key_file, password=_no_pass_phrase)
    except OSError as error:
        files = ", ".join(name for name in (options.ca_file, options.cert_file, options.key_file) if name)
        raise BrokerError(f"the certificates cannot be read ({cause(error)}: {files})") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = not options.insecure
    context.sslsocket_class = type("_Socket", (_TlsSocket,), {"dialler": dialler})
    return context


def risks(options: BrokerOptions) -> list[str]:
    """What is unsafe about the link as configured, a sentence each.

    None of it is refused: a key file whose mode went wrong with its renewal must not end the monitoring.
    """
    found = []
    if options.tls is None:
        if options.password is not None and not _is_loopback(options.host):
            found.append(f"The password goes to {options.host} in the clear: use TLS.")
        return found
    if options.tls.insecure:
        found.append("TLS takes certificates for other host names (insecure), so anybody may be the broker.")
    if options.tls.key_file is not None and _readable_by_others(options.tls.key_file):
        found.append(f"The private key {options.tls.key_file} is readable by other users: chmod 600.")
    return found


def _address(host: str) -> IPv4Address | IPv6Address | None:
    """The address that a host is written as; None for a name."""
    try:
        return ip_address(host)
    except ValueError:
        return None


def _is_loopback(host: str) -> bool:
    address = _address(host)
    return host == "localhost" if address is None else address.is_loopback


def _readable_by_others(path: str) -> bool:
    """The rule of PostgreSQL: nobody else may read it, but for the group where root owns it (ssl-cert)."""
    try:
        status = Path(path).stat()
    except OSError:
        return False  # the attempt itself says what is wrong with the file
    allowed = 0o640 if status.st_uid == 0 else 0o600
    return bool(stat.S_IMODE(status.st_mode) & ~allowed & 0o077)
