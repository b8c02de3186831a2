"""What only a PostgreSQL server has: its driver, its complaints, and the lock of the one watcher.

The only importer of psycopg, and itself imported only for a record on a server. Knows no tables.
A crash leaves nothing: the server ends the session, and with it the lock.
"""

import contextlib
import re
from functools import lru_cache
from typing import Any

import psycopg
from psycopg.rows import dict_row

from watcher.errors import SteadyError

Error = psycopg.Error
Connection = psycopg.Connection[dict[str, Any]]

#: A server that answers nothing for so long is given up: a call waits no longer than this.
PATIENCE: dict[str, Any] = {
    "connect_timeout": 5,
    "tcp_user_timeout": 10_000,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
}

#: Another session's lock, held over several transactions. The number is this program's, the name
#: that of the record among those of one database.
_LOCK = "SELECT pg_try_advisory_lock(1398031450, hashtext(current_schema())) AS ours"


def connect(url: str) -> Connection:
    """A session beside the pool, each statement its own transaction; psycopg's errors.

    ``url`` is SQLAlchemy's. Statements that come again are prepared by the driver.
    """
    plain = url.replace("+psycopg", "", 1)
    return psycopg.connect(plain, autocommit=True, row_factory=dict_row, **PATIENCE)


@lru_cache(maxsize=512)
def native(sql: str) -> str:
    """``:name`` as the driver wants it."""
    return re.sub(r":(\w+)", r"%(\1)s", sql.replace("%", "%%"))


def typed(error: BaseException) -> BaseException:
    """The registered error of the server's complaint; our own mistakes stay what they are."""
    state = str(getattr(error, "sqlstate", None) or "")
    if state == "53100":
        return SteadyError("disk_full", "The disk of the record's server is full.")
    if state.startswith("XX"):
        return SteadyError("database_damaged", f"The record is damaged: {error}.")
    if isinstance(error, psycopg.OperationalError) or state[:2] in ("08", "53", "57", "58"):
        said = str(error).strip().splitlines()
        return SteadyError(
            "database_trouble",
            f"The record's server says: {said[0] if said else type(error).__name__}.",
            remedy="See to the server and the way there; the queue goes on by itself.",
        )
    return error


class WatcherLock:
    """The right to be the watcher of a record: held by a session, freed when that ends.

    The server ends a session whose other side is gone at once when the process dies, and within
    five seconds when its machine or the way there does. One thread.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._session: Connection | None = None

    def take(self) -> bool:
        """Take the lock without waiting; is it ours? Raises psycopg's errors."""
        if self._session is None:
            self._session = connect(self._url)
            for setting, value in (("idle", 2), ("interval", 1), ("count", 3)):
                self._session.execute(f"SET tcp_keepalives_{setting} = {value}")
        try:
            row = self._session.execute(_LOCK).fetchone()
        except Error:
            self.release()
            raise
        return bool(row and row["ours"])

    def held(self) -> bool:
        """Does the session that holds it live? Raises nothing."""
        if self._session is None:
            return False
        try:
            self._session.execute("SELECT 1")
        except Error:
            self.release()
            return False
        return True

    def release(self) -> None:
        """Give it back; harmless when it is not held."""
        if self._session is not None:
            with contextlib.suppress(Error):
                self._session.close()
            self._session = None
