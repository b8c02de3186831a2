"""The open record: its file, its health, its settings, its watcher. What all parts stand on.

Knows no jobs.
"""

import json
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from watcher.store.database import Database
from watcher.store.entries import now_us, to_json
from watcher.store.imagenames import ImageNames


def _encode(pulse: Mapping[str, Any]) -> str:
    return json.dumps(pulse, separators=(",", ":"), default=str)


class Record:
    """The open record, and its settings. Arguments and errors: :class:`watcher.store.JobStore`."""

    def __init__(
        self,
        url: str,
        *,
        synchronous: str = "full",
        clock: Callable[[], int] = now_us,
        checkpointer: bool = True,
        busy_seconds: float = 10.0,
    ) -> None:
        self._clock = clock
        self._db = Database(
            url, synchronous=synchronous, checkpointer=checkpointer, busy_seconds=busy_seconds
        )
        self._names = ImageNames(self._db)

    def close(self) -> None:
        """Give everything back; the last one out moves SQLite's log into the file."""
        self._db.close()

    def reopen(self) -> None:
        """Start anew on the file that now lies at the path."""
        self._db.reopen()

    def check(self) -> None:
        """SteadyError ``database_trouble`` when the file was deleted or replaced meanwhile; on a
        server also ``already_running`` when another watcher has taken over."""
        self._db.check()

    def other(self) -> object:
        """A value for how the file looks that replaced ours; None when none did."""
        return self._db.other()

    def verify(self) -> None:
        """Read the whole file for damage; SteadyError ``database_damaged``. Seconds per GB."""
        self._db.verify()

    def sync(self) -> int:
        """Make every commit so far outlive a power cut; the highest ``seq`` of a job among them.

        For what must not be on the disk before the record is: a picture, a file that leaves
        ``.claimed``, an answer that names a picture. Costs nothing with ``synchronous: full``.
        SteadyError ``database_trouble``.
        """
        newest = self._db.poll("SELECT COALESCE(max(seq), 0) AS seq FROM jobs")[0]["seq"]
        self._db.sync()
        return int(newest)

    @property
    def unchecked(self) -> bool:
        """True: the last stop was no clean one and nobody called :meth:`verify` yet."""
        return self._db.unchecked

    def data_version(self) -> int:
        """Changes whenever anybody, also this process, committed something."""
        return self._db.data_version()

    # -- the watcher of a record on a server; a file's has the lock of its root

    def lead(self, who: Mapping[str, Any]) -> bool:
        """Be the record's one watcher from now on, unless another one lives; never waits.

        A server frees the lock of a watcher whose process died, or whose machine was not heard of
        for five seconds. That one may only have been away (frozen, cut off), so a mark is left:
        what it still writes is refused with ``already_running``. ``who``: words for people. On
        SQLite always True. SteadyError ``database_trouble``.
        """
        return self._db.lead(to_json({**who, "mark": uuid.uuid4().hex}))

    def leader(self) -> dict[str, Any]:
        """Who leads or led last, in its own words; {} for a file or when there was none."""
        words = self.get("watcher")
        return words if isinstance(words, dict) else {}

    def put_pulse(self, who: str, pulse: Mapping[str, Any]) -> None:
        """Say how a watcher is just now, for doors elsewhere; only for a record on a server.

        One that led and does no more is not heard.
        """
        self._db.poll(
            "INSERT INTO pulses (who, at, body)"
            " SELECT :who, extract(epoch FROM clock_timestamp()), :body"
            " WHERE :mark IN ('', (SELECT value FROM settings WHERE key = 'watcher'))"
            " ON CONFLICT (who) DO UPDATE SET at = excluded.at, body = excluded.body"
            " RETURNING 1 AS done",
            who=who,
            body=_encode(pulse),
            mark=self._db.mark or "",
        )

    def pulses(self) -> dict[str, tuple[float, dict[str, Any]]]:
        """What was said last by whom, and how many seconds ago; only for a record on a server."""
        rows = self._db.poll(
            "SELECT who, body, extract(epoch FROM clock_timestamp()) - at AS age FROM pulses"
        )
        return {row["who"]: (float(row["age"]), json.loads(row["body"])) for row in rows}

    def drop_pulse(self, who: str) -> None:
        """Forget what was said by ``who``."""
        self._db.poll("DELETE FROM pulses WHERE who = :who RETURNING 1 AS done", who=who)

    # -- settings

    def get(self, key: str) -> Any | None:
        """The value of a setting, or None."""
        rows = self._db.poll("SELECT value FROM settings WHERE key = :key", key=key)
        return json.loads(rows[0]["value"]) if rows else None

    def put(self, key: str, value: Any) -> None:
        """Set ``key`` to anything JSON knows. ``paused`` takes effect with the next claim."""
        with self._db.write():
            self._db.run(
                "INSERT INTO settings (key, value) VALUES (:key, :value)"
                " ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                key=key,
                value=to_json(value),
            )

    def drop(self, key: str) -> None:
        """Forget a setting."""
        with self._db.write():
            self._db.run("DELETE FROM settings WHERE key = :key", key=key)
