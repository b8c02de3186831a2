"""Telling others what happened, from the record's outbox: nothing in here delays a job or a stop.

Every receiver has a thread of its own while there is something for it, so a slow one holds up
nobody else. What could not be told is tried again by ``schedule``, with the same id; after that it
is given up and said in the pulse, and so is what waited that long behind it. A crash leaves what is
not recorded as told: it is told once more by the next start, so everything is told at least once.
"""

import contextlib
import functools
import json
import logging
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from watcher.addresses import without_query
from watcher.checkpoints import reached
from watcher.config import Config
from watcher.errors import SteadyError, Trouble
from watcher.log import now_us, say
from watcher.notify.command import Command
from watcher.notify.hooks import Webhooks
from watcher.notify.messages import Messages
from watcher.store import Delivery, JobStore
from watcher.webhooks import Reply

logger = logging.getLogger("steady.notify")

#: Seconds before the first attempt, the second, ...; each a little longer, so that they spread.
SCHEDULE = (0.0, 5.0, 300.0, 1800.0, 7200.0, 18000.0, 36000.0, 50400.0, 72000.0, 86400.0)
LASTS_SECONDS = 60.0  #: of trouble before people are told
_LOOK_SECONDS = 1.0  #: between looks into the outbox when nobody rings
_END_SECONDS = 1.0  #: that what is on its way has to end when the service stops
_SIDE_BY_SIDE = 16  #: receivers at a time
_HOLD_SECONDS = 60.0  #: the longest a receiver that failed is left alone with other news
_TIDY_SECONDS = 60.0  #: between two looks at what is old
_DAY = 86_400_000_000


class Channel(Protocol):
    """A way to tell: endpoints whose name it knows."""

    @property
    def events(self) -> dict[str, Sequence[str]]:
        """Endpoint -> what it hears of, beside what jobs ask for."""

    @property
    def once(self) -> bool:
        """Is one attempt all there is?"""

    def knows(self, endpoint: str) -> bool:
        """Is this endpoint one of its own?"""

    def quiet_seconds(self) -> float:
        """Seconds of quiet hours that are left; 0 when there are none now."""

    def send(self, due: Delivery) -> Reply:
        """One attempt; takes seconds."""

    def close(self, *, at_once: bool) -> None:
        """The service stops: end what is on its way, a second later by force."""


def channels_of(config: Config, store: JobStore) -> list[Channel]:
    """Everybody whom the settings name: a command, programs, people. Raises as Messages does."""
    command = Command(
        config.on_batch_done, store=store, root=config.root, inbox=config.inbox,
        outputs=config.outputs, address=config.address,
    )  # fmt: skip
    webhooks = Webhooks(config.webhooks, config.webhook_hosts)
    return [command, webhooks, Messages(config.notify, address=config.address, now=now_us)]


@dataclass
class _Line:
    """How it goes with one endpoint."""

    failures: int = 0  #: in a row
    held_until: float = 0.0
    busy: bool = False


class Notifier:
    """Tells what lies in the outbox of ``store`` through ``channels``.

    ``schedule``: seconds before each attempt; ``lasts``: until trouble is told to people.
    """

    def __init__(
        self,
        store: JobStore,
        channels: Sequence[Channel],
        *,
        schedule: Sequence[float] = SCHEDULE,
        lasts: float = LASTS_SECONDS,
    ) -> None:
        self._store = store
        self._channels = channels
        self._lasts = lasts
        self._sick_since: float | None = None  #: when the trouble of now began
        self._told_trouble: dict[str, Any] | None = store.get("trouble_told")
        self._schedule = schedule
        self._bell = threading.Event()
        self._stopping = threading.Event()
        self._looking = True
        self._closed = False
        self._tidied = time.monotonic()
        self._lines: dict[str, _Line] = {}
        self._busy = 0
        self._lock = threading.Lock()  # of the lines
        self._recording = threading.Lock()  # nothing is recorded once the service has stopped
        self._thread = threading.Thread(target=self._run, name="notify")

    def start(self) -> None:
        """Begin, with what an earlier process left."""
        self._store.listen({e: on for each in self._channels for e, on in each.events.items()})
        self._bell.set()
        self._thread.start()

    def ring(self) -> None:
        """There may be something to tell."""
        self._bell.set()

    def stop(self) -> None:
        """End the threads, in about a second at most; what is not told is told by the next start."""
        self._stopping.set()
        self._bell.set()
        for channel in self._channels:
            channel.close(at_once=False)
        if self._thread.is_alive():
            self._thread.join()
        deadline = time.monotonic() + _END_SECONDS
        while self._busy and time.monotonic() < deadline:
            self._bell.wait(0.02)
            self._bell.clear()
        for channel in self._channels:
            channel.close(at_once=True)
        with self._recording:
            self._closed = True

    @property
    def idle(self) -> bool:
        """Nothing is being told, and nothing could be told just now."""
        return not (self._looking or self._bell.is_set() or self._busy)

    def tell(self, event: str, body: dict[str, Any]) -> None:
        """Let those who listen hear of it; while the record takes nothing, at once and only once."""
        try:
            if self._store.tell(event, body):
                self.ring()
        except Trouble:
            now = self._store.now()
            unwritten = functools.partial(
                Delivery, 0, "", event, "", None, state="pending", attempt=1, next_at=now,
                created_at=now, ended_at=None, last_status=None, last_error=None,
                body=json.dumps(body, default=str),
            )  # fmt: skip
            for channel in self._channels:
                for endpoint in (e for e, on in channel.events.items() if event in on):
                    due = [unwritten(endpoint=endpoint)]
                    threading.Thread(target=channel.send, args=due, daemon=True).start()

    def tell_of_trouble(self, troubles: Sequence[dict[str, Any]]) -> None:
        """People are told of trouble that lasts, once, and of its end, also after a restart.

        ``troubles``: what is wrong now. Call it every few seconds. Raises Trouble, when they were
        told and the record does not take that.
        """
        now = time.monotonic()
        if not troubles:
            self._sick_since = None
            if self._told_trouble:
                self.tell("trouble.over", self._told_trouble)
                self._told_trouble = None
                self._store.drop("trouble_told")
            return
        self._sick_since = self._sick_since or now
        if self._told_trouble is None and now - self._sick_since >= self._lasts:
            self._told_trouble = troubles[0]
            self.tell("trouble.lasts", troubles[0])
            self._store.put("trouble_told", troubles[0])

    def troubles(self) -> list[SteadyError]:
        """Name the receivers that could not be reached today."""
        found = self._store.given_up(self._store.now() - _DAY)
        return [
            SteadyError(
                "undelivered",
                f"{number} event{'s' * (number > 1)} could not be told to {without_query(endpoint)}."
                f" The last time: {why}",
            )
            for endpoint, (number, why) in list(found.items())[:20]
        ]

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._bell.wait(_LOOK_SECONDS)
            self._looking = True
            self._bell.clear()
            with contextlib.suppress(Trouble):  # told by whoever works with the record; tried again
                self._look()
            self._looking = False

    def _look(self) -> None:
        for endpoint in self._store.due_endpoints():
            with self._lock:
                if self._busy >= _SIDE_BY_SIDE:
                    break
                line = self._lines.setdefault(endpoint, _Line())
                if line.busy or line.held_until > time.monotonic():
                    continue
                line.busy = True
                self._busy += 1
            threading.Thread(
                target=self._drain, args=[endpoint, line], name="notify", daemon=True
            ).start()
        if time.monotonic() - self._tidied >= _TIDY_SECONDS:
            self._tidied = time.monotonic()
            with self._lock:
                for endpoint, line in [*self._lines.items()]:
                    if not line.busy and line.held_until < self._tidied - _TIDY_SECONDS:
                        del self._lines[endpoint]
            self._store.thin_out()

    def _drain(self, endpoint: str, line: _Line) -> None:
        """Tell one endpoint what is due, in order, until an attempt fails."""
        channel = next((each for each in self._channels if each.knows(endpoint)), None)
        try:
            while not self._stopping.is_set():
                quiet = channel.quiet_seconds() if channel else 0.0
                if quiet:
                    line.held_until = time.monotonic() + quiet
                    return
                due = self._store.next_delivery(endpoint)
                if due is None or not self._deliver(channel, due, line):
                    return
        except Trouble:
            line.held_until = time.monotonic() + _LOOK_SECONDS
        finally:
            with self._lock:
                line.busy = False
                self._busy -= 1
                if line.held_until <= time.monotonic():  # nothing to remember: jobs name thousands
                    del self._lines[endpoint]
            self._bell.set()

    def _deliver(self, channel: Channel | None, due: Delivery, line: _Line) -> bool:
        """One attempt, and what came of it on record; False: leave this endpoint alone for now."""
        reached("telling")
        reply = Reply(error="The settings do not name it any more.", final=True)
        try:
            reply = channel.send(due) if channel else reply
        except Trouble:
            raise
        except Exception as fault:  # around one delivery: all others are told all the same
            logger.exception("hook.failed", extra={"facts": {"delivery": due.id}})
            reply = Reply(error=f"{type(fault).__name__} while telling; the log has more.")
        if reply.ok:
            error = None
        elif self._stopping.is_set():
            return False  # ended by us: the next start tries again
        else:
            error = reply.error or f"It answered {reply.status}."
        reached("told")
        with self._recording:
            if self._closed:
                return False
            self._record(channel, due, reply, error, line)
        reached("told_recorded")
        return error is None

    def _record(
        self, channel: Channel | None, due: Delivery, reply: Reply, error: str | None, line: _Line
    ) -> None:
        now = self._store.now()
        again: int | None = None
        if error is None:
            line.failures, line.held_until = 0, 0.0
        elif channel is not None and not channel.once:
            line.failures = min(line.failures + 1, len(self._schedule) - 1)
            asked = reply.retry_after or 0.0
            hold = max(min(self._schedule[line.failures], _HOLD_SECONDS), asked)
            line.held_until = time.monotonic() + hold
            if due.attempt < len(self._schedule) and not reply.final:
                wait = max(self._schedule[due.attempt], asked) * random.uniform(1.0, 1.1)
                again = now + int(wait * 1e6)
        self._store.attempted(due.id, status=reply.status, error=error, again_at=again)
        if error is not None and again is None and due.attempt >= len(self._schedule):
            due_before = now - int(sum(self._schedule) * 1e6)
            self._store.give_up(due.endpoint, error, due=due_before)
        if reply.gone:
            words = "It answered 410: it wants to hear nothing more. Start the service to try anew."
            self._store.silence(due.endpoint, words)
        if error is not None:
            say(logger, "hook.failed", logging.WARNING, told=due.event, ticket=due.ticket or None,
                endpoint=without_query(due.endpoint), attempt=due.attempt, again=again is not None,
                error=error)  # fmt: skip
