"""Where others are told of jobs: addresses, the hosts that are allowed, and the secrets they share.

Whom a job may name is listed by the operator (``webhook_hosts``): ``hooks.example.com`` or
``*.example.com`` is reached by https on port 443 and only where it leads to the public internet;
a whole origin, ``http://n8n.lan:5678``, exactly as written and wherever it leads. Pure.
"""

import base64
import binascii
import re
import urllib.parse
from collections.abc import Iterable
from dataclasses import dataclass

_PORTS = {"https": 443, "http": 80}


@dataclass(frozen=True)
class Address:
    """A URL taken apart. ``target``: its path and query."""

    scheme: str
    host: str
    port: int
    target: str

    @classmethod
    def of(cls, url: str) -> "Address":
        """Raises ValueError, in words that go on from the name of what holds it."""
        if not re.fullmatch(r"[\x21-\x7e]+", url):
            raise ValueError("is no address: write other letters and blanks as %XX.")
        try:
            parts = urllib.parse.urlsplit(url)
            scheme, host, port = parts.scheme.lower(), parts.hostname, parts.port
        except ValueError:
            scheme, host, port = "", None, None
        if scheme not in _PORTS or not host:
            raise ValueError("is no address that begins with https:// and names a host.")
        if parts.username is not None or parts.fragment:
            raise ValueError("must hold no user, password or #fragment.")
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return cls(scheme, host.rstrip("."), port or _PORTS[scheme], target)

    @property
    def netloc(self) -> str:
        """The host, and the port where it is not the usual one."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        """Scheme, host and port."""
        return f"{self.scheme}://{self.netloc}"

    def entry(self, listed: Iterable[str]) -> str | None:
        """The entry of ``webhook_hosts`` that allows this address; its origin before its host."""
        plain = self.scheme == "https" and self.port == 443
        found = None
        for entry in listed:
            if "://" in entry:
                if Address.of(entry).origin == self.origin:
                    return entry
            elif plain and (
                self.host == entry.lower()
                or (entry.startswith("*.") and self.host.endswith(entry[1:].lower()))
            ):
                found = found or entry
        return found


def without_query(url: str) -> str:
    """``url`` as people and logs are told it: what stands behind its ``?`` may be a secret."""
    plain, query, _ = url.partition("?")
    return f"{plain}{query and '?…'}"


def check_entry(entry: str) -> None:
    """Raise ValueError for what can be no entry of ``webhook_hosts``."""
    if "://" in entry:
        if Address.of(entry).target != "/":
            raise ValueError(f"{entry} must end with its host or port")
    elif not re.fullmatch(r"(\*\.)?[a-zA-Z0-9.-]+", entry):
        raise ValueError(f"{entry} is neither a host nor an origin such as http://host:port")


def not_allowed(url: str, listed: Iterable[str]) -> str | None:
    """Why a job may not name ``url``, in words that go on from "`webhook`"; None: it may."""
    try:
        address = Address.of(url)
    except ValueError as error:
        return str(error)
    if address.entry(listed) is None:
        return f"names {address.origin}, which config.yaml does not allow."
    return None


def key_of(secret: str) -> bytes:
    """The bytes of a ``whsec_…`` secret. Raises ValueError."""
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except binascii.Error:
        key = b""
    if not secret.startswith("whsec_") or not 24 <= len(key) <= 64:
        raise ValueError("a secret is whsec_ and 24 to 64 bytes in base64")
    return key
