"""The open record: its file, its health, its settings. What all parts of the store stand on."""

import json
from collections.abc import Callable
from typing import Any

from watcher.store.database import Database
from watcher.store.entries import now_us, to_json
from watcher.store.imagenames import ImageNames


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
        """SteadyError ``database_trouble`` when the file was deleted or replaced meanwhile."""
        self._db.check()

    def other(self) -> object:
        """A value for how the file looks that replaced ours; None when none did."""
        return self._db.other()

    def verify(self) -> None:
        """Read the whole file for damage; SteadyError ``database_damaged``. Seconds per GB."""
        self._db.verify()

    @property
    def unchecked(self) -> bool:
        """True: the last stop was no clean one and nobody called :meth:`verify` yet."""
        return self._db.unchecked

    def data_version(self) -> int:
        """Changes whenever anybody, also this process, committed something."""
        return self._db.data_version()

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
