"""What the record holds besides jobs and batches: settings, and how its watchers are.

Part of :class:`watcher.store.JobStore`. A crash leaves the last words of each.
"""

import json
from collections.abc import Mapping
from typing import Any

from watcher.store.database import Database


class Record(Database):
    """Settings and pulses."""

    def sync(self) -> int:
        """Make every commit so far outlive a power cut; the highest ``seq`` of a job among them.

        For what must not be on the disk before the record is: a picture, a file that leaves
        ``.claimed``, an answer that names a picture. Costs nothing with ``synchronous: full``.
        SteadyError ``database_trouble``.
        """
        newest = self.poll("SELECT COALESCE(max(seq), 0) AS seq FROM jobs")[0]["seq"]
        self.flush()
        return int(newest)

    # -- the watcher of a record on a server; a file's has the lock of its root

    def leader(self) -> dict[str, Any]:
        """Who leads or led last, in its own words; {} for a file or when there was none."""
        words: dict[str, Any] = self.get("watcher") or {}
        return words

    def put_pulse(self, who: str, pulse: Mapping[str, Any]) -> None:
        """Say how a watcher is just now, for doors elsewhere; only for a record on a server.

        One that led and does no more is not heard.
        """
        self.poll(
            "INSERT INTO pulses (who, at, body)"
            " SELECT :who, extract(epoch FROM clock_timestamp()), :body"
            " WHERE :mark IN ('', (SELECT value FROM settings WHERE key = 'watcher'))"
            " ON CONFLICT (who) DO UPDATE SET at = excluded.at, body = excluded.body"
            " RETURNING 1 AS done",
            who=who,
            body=json.dumps(pulse, separators=(",", ":"), default=str),
            mark=self.mark or "",
        )

    def pulses(self) -> dict[str, tuple[float, dict[str, Any]]]:
        """What was said last by whom, and how many seconds ago; only for a record on a server."""
        rows = self.poll(
            "SELECT who, body, extract(epoch FROM clock_timestamp()) - at AS age FROM pulses"
        )
        return {row["who"]: (float(row["age"]), json.loads(row["body"])) for row in rows}

    def drop_pulse(self, who: str) -> None:
        """Forget what was said by ``who``."""
        self.poll("DELETE FROM pulses WHERE who = :who RETURNING 1 AS done", who=who)

    # -- settings

    def get(self, key: str) -> Any:
        """The value of a setting, or None."""
        rows = self.poll("SELECT value FROM settings WHERE key = :key", key=key)
        return json.loads(rows[0]["value"]) if rows else None

    def put(self, key: str, value: Any) -> None:
        """Set ``key`` to anything JSON knows. ``paused`` takes effect with the next claim."""
        with self.write():
            self._put(key, value)

    def drop(self, key: str) -> None:
        """Forget a setting."""
        with self.write():
            self.run("DELETE FROM settings WHERE key = :key", key=key)
