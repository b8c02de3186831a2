"""Notifications for people, by the library apprise: mail, ntfy, Slack and a hundred others.

An address holds passwords, so its endpoint in the record is called by a digest of it.
"""

import datetime
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

from watcher.config import Notify
from watcher.describe import whole_batch
from watcher.errors import SteadyError
from watcher.pace import RunWindow
from watcher.program import extra_missing
from watcher.store import Delivery
from watcher.webhooks import Reply

#: What people are notified of.
EVENTS = ("batch.completed", "queue.paused", "trouble.lasts", "trouble.over", "notify.test")
_PREFIX = "notify:"


class Messages:
    """People's addresses of ``settings``.

    ``address``: of the page. Raises SteadyError ``extra_missing``, and ``bad_config`` for an
    address that apprise does not understand.
    """

    once = False

    def __init__(self, settings: Notify | None, *, address: str, now: Callable[[], int]) -> None:
        self._address = address
        self._now = now
        settings = settings or Notify()
        self._quiet = RunWindow.parse(settings.quiet, key="quiet")
        self._sleeps = settings.quiet is not None
        self._senders = _senders_of(settings.to) if settings.to else {}

    @property
    def events(self) -> dict[str, Sequence[str]]:
        """Everybody hears everything."""
        return dict.fromkeys(self._senders, EVENTS)

    def knows(self, endpoint: str) -> bool:
        """Is it one of them?"""
        return endpoint in self._senders

    def quiet_seconds(self) -> float:
        """Until the quiet hours are over."""
        moment = datetime.datetime.fromtimestamp(self._now() / 1e6, datetime.UTC)
        return 60.0 if self._sleeps and self._quiet.is_open(moment) else 0.0

    def close(self, *, at_once: bool) -> None:
        """Attempts end by their own time-outs of a few seconds; nobody waits for them."""

    def send(self, due: Delivery) -> Reply:
        """One attempt."""
        title, words, kind = self._words(due)
        try:
            sent = self._senders[due.endpoint].notify(title=title, body=words, notify_type=kind)
        except Exception as error:  # a plug-in of others
            return Reply(error=f"apprise failed: {type(error).__name__}.")
        return Reply(error=None if sent else "It could not be delivered; the log has the reason.")

    def _words(self, due: Delivery) -> tuple[str, str, str]:
        """Title, text, and the kind as apprise calls it."""
        if due.event == "batch.completed":
            return self._words_of_batch(due)
        said = json.loads(due.body)
        where = f"\n{self._address}"
        if due.event == "queue.paused":
            return "The queue is paused", f"{said['reason']} Go on: steady resume{where}", "warning"
        if due.event == "trouble.over":
            return "All is well again", f"It is over: {said['message']}{where}", "success"
        if due.event == "trouble.lasts":
            return (
                "SteadyDiffusion needs you",
                f"{said['message']} {said['remedy']}{where}",
                "failure",
            )
        return "A test", f"Notifications of SteadyDiffusion arrive here.{where}", "info"

    def _words_of_batch(self, due: Delivery) -> tuple[str, str, str]:
        batch, counts = due.batch()
        told = whole_batch(batch, counts)
        if told["error"]:
            return f"{batch.name} was refused", str(told["error"].get("message")), "failure"
        ended = {state: n for state, n in told["progress"].items() if n}
        words = ", ".join(f"{n} {state}" for state, n in ended.items()) or "no jobs"
        if batch.refused_rows:
            words += f", {batch.refused_rows} rows refused"
        words += f".\n{self._address}/batches/{batch.ticket}"
        return f"{batch.name} is done", words, "warning" if ended.get("failed") else "success"


def _senders_of(addresses: Sequence[str]) -> dict[str, Any]:
    try:
        import apprise
    except ImportError:
        raise extra_missing("`notify`", "the library apprise", "notify") from None
    asset = apprise.AppriseAsset(app_id="SteadyDiffusion", app_desc="SteadyDiffusion", app_url="")
    found = {}
    for number, address in enumerate(addresses, 1):
        sender = apprise.Apprise(asset=asset)
        if not sender.add(address):
            scheme = address.partition("://")[0]
            raise SteadyError(
                "bad_config",
                f"`notify`: address {number} ({scheme}://…) is none that apprise knows.",
            )
        digest = hashlib.sha256(address.encode()).hexdigest()[:8]
        found[f"{_PREFIX}{address.partition(':')[0]}:{digest}"] = sender
    return found
