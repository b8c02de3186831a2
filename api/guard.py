"""Who may ask, and what every answer carries. Sits before all routes; knows none of them.

In this order: the token or, where there is none, the Host header (a page elsewhere whose name was
bound anew to this machine), the page another site made (cross-origin), the size of the body. Each
refusal is a problem like any other. Also writes the access log: method, path without its query (a
search holds words of a prompt, a log-in the token), status, milliseconds.
"""

import base64
import binascii
import contextlib
import hashlib
import hmac
import ipaddress
import logging
import re
import secrets
import time
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import links
from api.errors import SAFE_HEADERS, problem
from watcher import publish
from watcher.config import Config
from watcher.errors import SteadyError
from watcher.log import ThrottledLog, say

logger = logging.getLogger("steady.http")

COOKIE = "steady"
LOGIN = "/login"  #: this answers without a token …
STATIC = "/static/"  #: … and so do its colours: files of the program, nobody's pictures
#: Cache-Control of what never changes, and of what a browser keeps and asks about each time.
FOR_GOOD = "private, max-age=31536000, immutable"
ASKED = "private, no-cache"
MAX_BODY = 1 << 20  #: bytes, where a route sets no other limit

_HUNG_UP = 499  #: the access log's status of a request whose client left before its end
_SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[0-9]{1,5})?", re.IGNORECASE)


# -- settings that stand before a server may start


def is_loopback(host: str) -> bool:
    """Does ``host`` name this machine only? (``localhost``, 127/8, ``::1``)"""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def token_of(config: Config) -> str | None:
    """The secret every request must carry, or None. ``auto`` makes one in ``.steady/token``.

    Two processes that start at once agree: the first creates the file, the other reads it.
    Raises SteadyError ``bad_config`` when it cannot be kept.
    """
    if config.token != "auto":  # noqa: S105  (the word, not a secret)
        return config.token or None
    path = config.state / "token"
    try:
        config.state.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            # Its name appears when its bytes are on the disk: an empty one would stop the service.
            draft = path.with_name(f".token.{secrets.token_hex(8)}")
            publish.write_synced(draft, secrets.token_urlsafe(32).encode(), mode=0o600)
            with contextlib.suppress(FileExistsError):
                publish.publish(draft, path)
            draft.unlink(missing_ok=True)
            publish.sync_folder(config.root)
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        raise SteadyError("bad_config", "`token: auto` cannot be kept in .steady/token.") from None
    if not token:
        raise SteadyError("bad_config", "`.steady/token` is empty.", remedy="Delete it.")
    return token


def check_exposure(config: Config, token: str | None) -> None:
    """Refuse to be reachable from other machines without a token (SteadyError bad_config)."""
    if token is None and not is_loopback(config.host):
        raise SteadyError(
            "bad_config",
            f"Listening on {config.host} would let every machine that can reach this one "
            "make and see pictures.",
            remedy="Set `token: auto` (or STEADY_TOKEN), or listen on 127.0.0.1.",
        )


def cookie_of(token: str) -> str:
    """What a browser keeps instead of the token itself."""
    return hmac.new(token.encode(), b"steady cookie", hashlib.sha256).hexdigest()


def accepts_html(headers: Headers) -> bool:
    """Does a person's browser ask for a page? Java's own client says text/html too, and image/gif
    beside it, as no browser does."""
    accept = headers.get("accept", "")
    return "text/html" in accept and "image/gif" not in accept


def same(given: bytes, right: str) -> bool:
    """Equal, in a time that tells nothing."""
    return secrets.compare_digest(given, right.encode())


@dataclass(frozen=True)
class Rules:
    """What the guard holds requests against.

    ``hosts`` are lower-case names without port, ``*`` or ``*.example.com`` patterns.
    ``origins`` are further origins whose pages are our own (``public_url``).
    ``body_limits`` maps paths that take more or fewer bytes than MAX_BODY to them.
    """

    hosts: frozenset[str]
    token: str | None = None
    origins: frozenset[str] = frozenset()
    body_limits: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, config: Config, body_limits: Mapping[str, int] = {}) -> "Rules":
        """The rules of ``config``, with the ``body_limits``."""
        hosts = {"localhost", "127.0.0.1", "[::1]", *(h.lower() for h in config.allowed_hosts)}
        origins = set()
        if config.public_url:
            parts = urllib.parse.urlsplit(config.public_url)
            if parts.hostname:
                hosts.add(f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname)
                origins.add(f"{parts.scheme}://{parts.netloc}".lower())
        if config.host and not _is_wildcard(config.host):
            hosts.add(f"[{config.host}]" if ":" in config.host else config.host.lower())
        return cls(frozenset(hosts), token_of(config), frozenset(origins), body_limits)

    def knows_host(self, header: str) -> bool:
        """May a request name this ``Host``? Any other is a stranger's name for this machine."""
        match = _HOST.fullmatch(header)
        if not match:
            return False
        name = match[1].lower()
        return any(
            pattern in ("*", name) or (pattern.startswith("*.") and name.endswith(pattern[1:]))
            for pattern in self.hosts
        )

    def body_limit(self, path: str) -> int:
        """Bytes a body of ``path`` may have."""
        return self.body_limits.get(path, MAX_BODY)


def _is_wildcard(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


# -- the middleware


class Guard:
    """Pure ASGI, so that streams and bodies pass through unbuffered."""

    def __init__(
        self,
        app: ASGIApp,
        rules: Rules,
        log: ThrottledLog,
    ) -> None:
        self._app = app
        self._log = log
        self._rules = rules
        self._cookie = cookie_of(rules.token) if rules.token else ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI: answers what is against the rules, passes on the rest, logs both.

        HEAD is a GET that ends where its body would begin, so that no file is read for nothing
        and no stream stays open.
        """
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = time.monotonic()
        status = 500
        head = scope["method"] == "HEAD"

        async def guarded_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _add_headers(message)
            elif head and message.get("more_body"):
                await send({"type": "http.response.body"})
                raise ClientDisconnect
            await send(message)

        try:
            refusal = self._refusal(scope)
            if refusal is not None:
                await refusal(scope, receive, guarded_send)
            else:
                limit = self._rules.body_limit(scope["path"])
                asked = {**scope, "method": "GET"} if head else scope
                await self._app(asked, _limited(receive, limit), guarded_send)
        except ClientDisconnect:
            status = status if head else _HUNG_UP
        finally:
            tell = say if status < 400 else self._log.say
            level = logging.WARNING if status >= 500 else logging.INFO
            if status < 400 and scope["method"] == "GET" and _of_the_page(scope):
                level = logging.DEBUG
            tell(
                logger,
                "http.request",
                level,
                method=scope["method"],
                path=scope["path"],
                status=status,
                ms=round((time.monotonic() - begun) * 1000, 1),
                client=(scope.get("client") or ("",))[0] or None,
            )

    def _refusal(self, scope: Scope) -> Response | None:
        """The answer to a request that may not pass."""
        headers = Headers(scope=scope)
        path = scope["path"]
        if "transfer-encoding" in headers and "content-length" in headers:
            # Where the body ends is said twice; somebody between us may believe the other.
            return problem(SteadyError("bad_request"), {"Connection": "close"}, path=path)
        if self._rules.token is None:
            hosts = headers.getlist("host")
            if len(hosts) != 1 or not self._rules.knows_host(hosts[0]):
                return problem(SteadyError("bad_host"), path=path)
        elif not (
            # the log-in, and what it looks like; one picture, by the address that was given out
            path == LOGIN
            or path.startswith(STATIC)
            or self._authentic(self._rules.token, headers)
            or links.is_signed(
                self._rules.token, scope["method"], path, scope.get("query_string", b"")
            )
        ):
            # Where a token is needed, a name bound anew to this machine opens nothing.
            if scope["method"] == "GET" and accepts_html(headers):
                return RedirectResponse(LOGIN, status_code=303)
            return problem(SteadyError("unauthorized"), path=path)
        if scope["method"] not in _SAFE_METHODS and self._is_foreign(headers):
            return problem(SteadyError("cross_origin"), path=path)
        length = headers.get("content-length", "0")
        if not length.isdigit():
            return problem(SteadyError("bad_request"), path=path)
        if int(length) > self._rules.body_limit(path):
            # The rest is not read: the connection cannot serve another request.
            return problem(SteadyError("too_large"), {"Connection": "close"}, path=path)
        return None

    def _authentic(self, token: str, headers: Headers) -> bool:
        """Does the request carry the token?"""
        scheme, _, value = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return same(value.strip().encode("latin-1"), token)
        if scheme.lower() == "basic":  # clients made for A1111 know nothing else
            try:
                _, _, secret = base64.b64decode(value).partition(b":")
            except (binascii.Error, ValueError):
                return False
            return same(secret, token)
        for part in headers.get("cookie", "").split(";"):
            name, _, crumb = part.strip().partition("=")
            if name == COOKIE and same(crumb.encode("latin-1"), self._cookie):
                return True
        return False

    def _is_foreign(self, headers: Headers) -> bool:
        """Did a page of another site make this request? (The rule of Go's CrossOriginProtection.)

        A browser says so in Sec-Fetch-Site; an old one only sends Origin; whoever sends
        neither is no browser.
        """
        origin = headers.get("origin")
        if origin is not None and origin.lower() in self._rules.origins:
            return False
        site = headers.get("sec-fetch-site")
        if site is not None:
            return site not in ("same-origin", "none")
        if origin is None:
            return False
        return urllib.parse.urlsplit(origin).netloc.lower() != headers.get("host", "").lower()


def _of_the_page(scope: Scope) -> bool:
    """Does our own page ask by itself? It does so all the time, and that is not logged."""
    headers = Headers(scope=scope)
    return headers.get("sec-fetch-site") == "same-origin" and (
        headers.get("sec-fetch-mode") != "navigate"
    )


def _add_headers(message: Message) -> None:
    headers = MutableHeaders(scope=message)
    for name, value in SAFE_HEADERS.items():
        headers.setdefault(name, value)
    headers.setdefault("Cache-Control", "no-store")


def _limited(receive: Receive, limit: int) -> Receive:
    """``receive`` that raises HTTP 413 once a body (chunked, or longer than it said) is too long."""
    total = 0

    async def counted() -> Any:
        nonlocal total
        message = await receive()
        total += len(message.get("body", b""))
        if total > limit:
            raise HTTPException(413, headers={"Connection": "close"})
        return message

    return counted
