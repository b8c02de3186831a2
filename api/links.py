"""Addresses of pictures that need no header: signed where the service has a token.

Clients that are given a picture's address fetch it plainly, so the address itself proves
that somebody with the token was given it, for one picture and for a time.
"""

import hashlib
import hmac
import secrets
import time
import urllib.parse

from starlette.requests import Request

from watcher.config import Config
from watcher.jobs import SUFFIXES, Job

PREFIX = "/v1/images/pictures/"  #: addresses below it may be signed
HOUR = 3600
_SECONDS = 24 * HOUR


def path_of(job: Job) -> str:
    """The picture's address on this service."""
    return f"{PREFIX}{job.id}{SUFFIXES[job.request.format or 'png']}"


def base_of(config: Config, request: Request) -> str:
    """Where the caller reaches this service: ``public_url``, else as it was called now."""
    return (config.public_url or str(request.base_url)).rstrip("/")


def url_of(job: Job, base: str, token: str | None) -> str:
    """The picture's whole address; with a ``token`` good for a day."""
    path = path_of(job)
    if token is None:
        return base + path
    until = str(int(time.time()) + _SECONDS)
    query = urllib.parse.urlencode({"expires": until, "signature": _signature(token, path, until)})
    return f"{base}{path}?{query}"


def is_signed(token: str, method: str, path: str, query: bytes) -> bool:
    """Does this request carry a signature of ours that still holds?"""
    if method not in ("GET", "HEAD") or not path.startswith(PREFIX):
        return False
    given = urllib.parse.parse_qs(query.decode("latin-1"))
    until, signature = (given.get(name, [""])[0] for name in ("expires", "signature"))
    right = _signature(token, path, until)
    if not secrets.compare_digest(signature.encode(), right.encode()):
        return False
    return until.isascii() and until.isdecimal() and int(until) > time.time()


def _signature(token: str, path: str, until: str) -> str:
    text = f"steady picture\n{path}\n{until}"
    return hmac.new(token.encode(), text.encode(), hashlib.sha256).hexdigest()
