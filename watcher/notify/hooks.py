"""Webhooks: what happened as JSON, posted to the operator's receivers and to those of jobs.

The body is ``{type, timestamp, data}``; data is the job or batch as HTTP answers it, as it was
when it happened. Signed anew at every attempt, with the receiver's own secret.
"""

import ipaddress
import json
from collections.abc import Mapping, Sequence

from watcher.addresses import Address
from watcher.config import Webhook
from watcher.describe import utc_time, whole_batch, whole_job
from watcher.log import now_us
from watcher.store import Delivery
from watcher.webhooks import Poster, Reply, signed_headers


class Webhooks:
    """Receivers of the settings, ``own``, and hosts where jobs may want to be told, ``hosts``."""

    once = False

    def __init__(
        self,
        own: Sequence[Webhook],
        hosts: Mapping[str, str],
        *,
        poster: Poster | None = None,
    ) -> None:
        self._own = {hook.url: hook for hook in own}
        self._hosts = hosts
        self._poster = poster or Poster()

    @property
    def events(self) -> dict[str, Sequence[str]]:
        """What the settings say; jobs name their own addresses."""
        return {url: hook.events for url, hook in self._own.items()}

    def knows(self, endpoint: str) -> bool:
        """Is it an address, and allowed?"""
        return endpoint in self._own or (
            "://" in endpoint and Address.of(endpoint).entry(self._hosts) is not None
        )

    def quiet_seconds(self) -> float:
        """Programs do not sleep."""
        return 0.0

    def close(self, *, at_once: bool) -> None:
        """Cut off what is on its way."""
        self._poster.close()

    def send(self, due: Delivery) -> Reply:
        """One attempt."""
        address = Address.of(due.endpoint)
        entry = address.entry(self._hosts)
        inside = entry is not None and "://" in entry
        if hook := self._own.get(due.endpoint):
            secret, inside = hook.secret, inside or _is_literal(address.host)
        else:
            secret = self._hosts[entry or ""]
        body = json.dumps(payload_of(due), ensure_ascii=False, separators=(",", ":")).encode()
        headers = signed_headers(secret, due.id, now_us() // 1_000_000, body)
        headers |= {"Content-Type": "application/json", "User-Agent": "SteadyDiffusion"}
        return self._poster.post(due.endpoint, body, headers, inside=inside)


def payload_of(due: Delivery) -> dict[str, object]:
    """What is posted of a job or batch."""
    data = whole_batch(*due.batch()) if due.job_id is None else whole_job(due.job(), utc_time)
    return {"type": due.event, "timestamp": utc_time(due.created_at), "data": data}


def _is_literal(host: str) -> bool:
    """Is it this machine or an IP address, so that no name server has a say?"""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return True
