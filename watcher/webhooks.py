"""Posting signed JSON to an address, by Standard Webhooks, and never to a place inside.

A name is resolved once, the answer is checked, and that very address is connected to. No redirect
is followed and no proxy of the environment is asked. Keeps nothing.
"""

import base64
import contextlib
import email.utils
import functools
import hashlib
import hmac
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from watcher.addresses import Address, key_of

MAX_BODY = 256 << 10  #: bytes
_DAY = 86400.0
#: 64 bits of prefix, then an IPv4 address, as translators between the two protocols have it.
_NAT64 = ipaddress.ip_network("64:ff9b::/96")

#: (host, port) -> the addresses, as ``socket.getaddrinfo`` has them.
Resolve = Callable[[str, int], list[Any]]
Connect = Callable[[Any, float], socket.socket]


def signed_headers(secret: str, id: str, moment: int, body: bytes) -> dict[str, str]:
    """The three headers of Standard Webhooks; ``moment``: of this attempt, seconds UTC."""
    text = b"%s.%d.%s" % (id.encode(), moment, body)
    digest = hmac.new(key_of(secret), text, hashlib.sha256).digest()
    return {
        "webhook-id": id,
        "webhook-timestamp": str(moment),
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }


def is_inside(text: str) -> bool:
    """Does this IP address lead anywhere but to the public internet?"""
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        if address in _NAT64:
            address = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        elif wrapped := address.ipv4_mapped or address.sixtofour or address.teredo:
            address = wrapped[1] if isinstance(wrapped, tuple) else wrapped
        elif address.is_site_local:
            return True
    return not address.is_global or address.is_multicast or address.is_reserved


@dataclass(frozen=True)
class Reply:
    """What came of an attempt: a status, or in words why there is none."""

    status: int | None = None
    error: str | None = None
    retry_after: float | None = None  #: seconds, as the receiver asks
    final: bool = False  #: another attempt would change nothing

    @property
    def ok(self) -> bool:
        """Was it delivered?"""
        return self.error is None and (self.status is None or 200 <= self.status < 300)

    @property
    def gone(self) -> bool:
        """Does the receiver want to hear nothing more?"""
        return self.status == http.HTTPStatus.GONE


def _resolved(host: str, port: int) -> list[Any]:
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)


def _connected(place: Any, seconds: float) -> socket.socket:
    family, kind, proto, _, where = place
    with contextlib.ExitStack() as undo:
        opened = undo.enter_context(socket.socket(family, kind, proto))
        opened.settimeout(seconds)
        opened.connect(where)
        undo.pop_all()
    return opened


class Poster:
    """Posts. Safe for several threads.

    ``seconds``: for a whole attempt, whatever it hangs at.
    """

    def __init__(
        self,
        *,
        seconds: float = 20.0,
        resolve: Resolve = _resolved,
        connect: Connect = _connected,
    ) -> None:
        self._seconds = seconds
        self._resolve = resolve
        self._connect = connect
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._closed = False

    def close(self) -> None:
        """Cut off what is on its way; nothing more is sent."""
        with self._lock:
            self._closed = True
            for each in self._open:
                _cut(each)

    def post(
        self, url: str, body: bytes, headers: Mapping[str, str], *, inside: bool = False
    ) -> Reply:
        """One attempt. ``inside``: the operator has allowed that this origin is no public one."""
        if len(body) > MAX_BODY:
            return Reply(error=f"The body has more than {MAX_BODY} bytes.", final=True)
        try:
            address = Address.of(url)
            places = self._resolve(address.host, address.port)
            for place in places:
                if is_inside(place[4][0]) and not inside:
                    return Reply(
                        error=f"{address.host} leads to {place[4][0]}, which is not on the public"
                        f" internet. If that is meant, list {address.origin} under `webhook_hosts`."
                    )
            return self._sent(address, places, body, headers)
        except TimeoutError:
            return Reply(error=f"No answer within {self._seconds:.0f} seconds.")
        except ssl.SSLError as error:
            return Reply(error=f"No safe connection: {error.reason or 'cut off'}.")
        except (OSError, ValueError, http.client.HTTPException) as error:
            words = getattr(error, "strerror", None) or str(error) or type(error).__name__
            return Reply(error=f"It cannot be reached: {words}.")

    def _sent(
        self, address: Address, places: list[Any], body: bytes, headers: Mapping[str, str]
    ) -> Reply:
        begun = time.monotonic()
        plain = self._any_of(places)
        if address.scheme == "https":
            plain = _tls().wrap_socket(
                plain, server_hostname=address.host, do_handshake_on_connect=False
            )
        with plain, self._watched(plain):
            try:
                if isinstance(plain, ssl.SSLSocket):
                    plain.do_handshake()
                line = http.client.HTTPConnection(address.host, address.port)
                line.sock = plain
                line.request("POST", address.target, body, {"Host": address.netloc, **headers})
                answer = line.getresponse()  # its body is nobody's business
            except (OSError, http.client.HTTPException) as error:
                if time.monotonic() - begun >= self._seconds:  # cut off by us
                    raise TimeoutError from error
                raise
            return Reply(answer.status, None, _seconds_of(answer.headers.get("Retry-After")))

    def _any_of(self, places: list[Any]) -> socket.socket:
        failed: OSError = OSError("the name leads nowhere")
        for place in places[:4]:
            try:
                return self._connect(place, self._seconds / 4)
            except OSError as error:
                failed = error
        raise failed

    @contextlib.contextmanager
    def _watched(self, opened: socket.socket) -> Iterator[None]:
        """However slowly the other side goes on: an attempt has an end, and a stop cuts it off."""
        timer = threading.Timer(self._seconds, _cut, [opened])
        timer.daemon = True
        with self._lock:
            if self._closed:
                raise OSError("the service stops")
            self._open.add(opened)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            with self._lock:
                self._open.discard(opened)


def _cut(opened: socket.socket) -> None:
    with contextlib.suppress(OSError):
        socket.socket.shutdown(opened, socket.SHUT_RDWR)  # of TLS without its good-bye


@functools.cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


def _seconds_of(text: str | None) -> float | None:
    """A Retry-After header, at most a day; None for one that says nothing."""
    if not text:
        return None
    if text.strip().isdecimal():
        return min(float(text), _DAY)
    try:
        moment = email.utils.parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError):
        return None
    return min(max(0.0, moment - time.time()), _DAY)
