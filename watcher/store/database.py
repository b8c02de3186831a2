"""The connection to the record: short transactions, typed errors, no deadlocks.

The only importer of ``dataset`` (and of SQLAlchemy below it), and only for the first transaction:
a command that only looks asks the driver, and does not wait for that import. ``dataset`` connects,
keeps the pool and runs ``with db:``; this class keeps it from its three traps (a pool that runs dry
locks every thread, a write outside ``with db:`` is never committed, a failed commit keeps the
connection). What only SQLite has is in ``file.py``, what only PostgreSQL has in ``server.py``.
Knows tables only to create them. A crash leaves whole transactions.
"""

import contextlib
import itertools
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from watcher.errors import SteadyError
from watcher.log import now_us
from watcher.program import extra_missing
from watcher.store import schema
from watcher.store.entries import to_json
from watcher.store.file import RecordFile, forget_pages
from watcher.store.readers import Readers
from watcher.store.schema import Row

if TYPE_CHECKING:
    import dataset

POOL = 8  #: connections for transactions
_SERVER_SECONDS = 0.2  #: between looks for changes on a server

#: Few sizes, for every statement stays prepared in every connection.
_ROWS_AT_ONCE = (256, 16, 1)


@lru_cache(maxsize=64)
def _insertion(table: str, columns: tuple[str, ...], rows: int, mark: str) -> str:
    row = f"({', '.join([mark] * len(columns))})"
    head = f"INSERT INTO {table} ({', '.join(columns)}) VALUES"  # names of ours
    return f"{head} {', '.join([row] * rows)}"


@lru_cache(maxsize=512)
def _without_hints(sql: str) -> str:
    return re.sub(r"\s+INDEXED BY \w+", "", sql)


class Database:
    """One database, shared by all threads of a process.

    ``busy_seconds``: how long to wait for another process's lock before
    ``database_trouble``. ``checkpointer``: only one process of a root moves the write-ahead
    log into the file (SQLite before 3.51.3 may damage the file if two do at one moment).

    Opening creates and migrates the tables; a crash in there leaves the old version or the
    new one. SteadyError ``database_trouble`` (cannot be reached; heals), ``disk_full``,
    ``database_damaged`` (damaged, newer, or not ours; the file is left as it is).
    """

    def __init__(
        self,
        url: str,
        *,
        synchronous: str = "full",
        clock: Callable[[], int] = now_us,
        checkpointer: bool = True,
        busy_seconds: float = 10.0,
    ) -> None:
        self._url = url
        self.now = clock  #: the time of whatever happens, microseconds UTC
        self._busy = busy_seconds
        self._how: dict[str, Any] = {
            "synchronous": synchronous, "checkpointer": checkpointer, "busy_seconds": busy_seconds,
        }  # fmt: skip
        self._file: RecordFile | None = None
        if url.startswith("sqlite"):
            self._file = RecordFile(Path(url.removeprefix("sqlite:///")), **self._how)
        self._server = None if self._file is not None else _server()
        self.dialect = schema.SQLITE if self._file is not None else schema.POSTGRES
        #: What ``settings`` must say of the watcher, or nothing is written; see ``lead``.
        self.mark: str | None = None
        self._lock = None if self._server is None else self._server.WatcherLock(url)
        # Never more threads inside dataset than its pool has connections: one more would wait
        # inside dataset's own lock, which the others need to give theirs back.
        self._slots = threading.BoundedSemaphore(POOL)
        # One writer at a time per process waits here, not in SQLite's sleep-and-try-again.
        self._writer = threading.Lock()
        self._inside = threading.local()
        self._pool: dataset.Database | None = None
        self._pooling = threading.Lock()
        self._readers = Readers(self._open_reader)
        self._version_seen = (0.0, 0)
        self._open()

    # -- opening and closing

    def _open(self) -> None:
        if self._file is not None:
            with self._typed():
                self._file.prepare()
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            self._migrate()
            undo.pop_all()
        if self._file is not None:
            self._file.note_logs()

    @property
    def _db(self) -> "dataset.Database":
        """dataset's connections, made for the first transaction of this process."""
        with self._pooling:
            if self._pool is None:
                self._pool = self._open_pool()
            return self._pool

    def _open_pool(self) -> "dataset.Database":
        import dataset
        from sqlalchemy import event

        pool: dict[str, Any] = {"pool_size": POOL, "max_overflow": 0}
        if self._file is not None:
            pool |= {"creator": self._file.connect, "pool_use_lifo": True}
        elif self._server is not None:
            pool |= {"pool_pre_ping": True, "connect_args": self._server.PATIENCE}
        opened = dataset.Database(
            self._url,
            ensure_schema=False,
            row_type=dict,
            sqlite_wal_mode=False,
            engine_kwargs=pool,
        )
        if self._file is not None:
            event.listen(opened.engine, "checkin", forget_pages)
        return opened

    def _open_reader(self) -> Any:
        """A driver connection for polls, which gives rows as dicts."""
        server: Any = self._server
        return self._file.reader() if self._file is not None else server.connect(self._url)

    def _migrate(self) -> None:
        if self._version() == schema.VERSION:
            return
        with self.write():
            version = self._version(inside=True)
            if version > schema.VERSION:
                raise SteadyError(
                    "database_damaged",
                    f"The record has version {version}; this program knows {schema.VERSION}.",
                    remedy="Use the newer program, or another root. The record is left as it is.",
                )
            for statements in schema.migrations(self.dialect)[version:]:
                for statement in statements:
                    self.run(statement)
            if self._file is not None:
                self.run(f"PRAGMA application_id = {schema.APPLICATION_ID}")
                self.run(f"PRAGMA user_version = {schema.VERSION}")
            else:
                self._put("schema_version", schema.VERSION)

    def _version(self, *, inside: bool = False) -> int:
        ask = self.run if inside else self.poll
        if self._file is not None:
            return int(ask("PRAGMA user_version")[0]["user_version"])
        # Not to_regclass: what that once did not find it goes on not finding in a transaction.
        if not ask(
            "SELECT 1 FROM pg_tables WHERE schemaname = current_schema() AND tablename = 'settings'"
        ):
            return 0
        rows = ask("SELECT value FROM settings WHERE key = 'schema_version'")
        return int(rows[0]["value"]) if rows else 0

    def close(self) -> None:
        """Give all connections back; the last one out moves SQLite's log into the file."""
        if self._lock is not None:
            self._lock.release()
        if self._file is not None:
            self._file.drop_stale_log()
        self._readers.close()
        if self._pool is not None:
            self._pool.close()

    def reopen(self) -> None:
        """Start anew on whatever now lies at the path (after ``check`` complained).

        Waits until no transaction of this process is left. When the new file cannot be used
        (errors as of the constructor), all stays as it was.
        """
        with contextlib.ExitStack() as alone:
            for _ in range(POOL):
                if not self._slots.acquire(timeout=self._busy * 2):
                    raise SteadyError("database_trouble", "All connections are in use.")
                alone.callback(self._slots.release)
            if self._file is not None:
                self._file.drop_stale_log()
            fresh = Database(self._url, **self._how)
            self.close()
            self._pool, self._readers, self._file = fresh._pool, fresh._readers, fresh._file

    def lead(self, who: Mapping[str, Any]) -> bool:
        """Be the record's one watcher from now on, unless another one lives; never waits.

        A server frees the lock of a watcher whose process died, or whose machine was not heard of
        for five seconds. That one may only have been away (frozen, cut off), so a mark is left:
        what it still writes is refused with ``already_running``. ``who``: words for people. On
        SQLite always True. SteadyError ``database_trouble``.
        """
        if self._lock is None:
            return True
        with self._typed():
            if not self._lock.take():
                return False
        mark = {**who, "mark": uuid.uuid4().hex}
        with self.write():
            self._put("watcher", mark)
            self.run("DELETE FROM pulses")
        self.mark = to_json(mark)
        return True

    def check(self) -> None:
        """Is the file still the one that was opened? On a server: is this watcher still the one?

        SteadyError ``database_trouble`` when the file was deleted or replaced, or the server does
        not answer; ``already_running`` when another watcher has taken over.
        """
        if self._file is not None:
            self._file.check()
        else:
            self._check_lead()

    def _check_lead(self) -> None:
        if self.mark is None or self._lock is None or self._lock.held():
            return
        with self._typed():
            again = self._lock.take()
        with self.read():
            self._be_ours()
        if not again:
            raise SteadyError(
                "database_trouble", "The record's server still holds our lock for a lost session."
            )

    def other(self) -> object:
        """How the file looks that was put in the place of ours; None when there is none."""
        return self._file.other() if self._file is not None else None

    def verify(self) -> None:
        """Read the whole file and look for damage (seconds per GB); ``database_damaged``."""
        if self._file is not None:
            with self._typed():
                self._file.verify()

    def flush(self) -> None:
        """Make what is committed outlive a power cut; SteadyError ``database_trouble``."""
        if self._file is not None:
            try:
                self._file.sync()
            except OSError as error:
                why = f"The record cannot be flushed to its disk: {error.strerror}."
                raise SteadyError("database_trouble", why) from error

    @property
    def unchecked(self) -> bool:
        """The last stop was no clean one, and the file was too large to be checked at once."""
        return self._file is not None and self._file.unchecked

    # -- transactions

    @contextlib.contextmanager
    def write(self) -> Iterator[None]:
        """A transaction that is the only writing one until it ends: committed, or nothing."""
        self._forbid_nesting()
        if self._file is not None:
            self._file.check()  # what is written into a file that has no name any more is lost
        # A writer of this process is alive and will be done; the longest (cancelling a batch of a
        # million) takes about a minute.
        if not self._writer.acquire(timeout=self._busy + 60):
            raise SteadyError("database_trouble", "Another thread holds the record for too long.")
        try:
            with self._transaction():
                self.run(self.dialect.begin)
                self._be_ours()
                yield
        finally:
            self._writer.release()

    def _be_ours(self) -> None:
        """A watcher that was replaced while it was away writes nothing any more.

        A statement of its own: that of the lock looks at the record as it was before the wait.
        """
        if self.mark is None:
            return
        rows = self.run("SELECT value FROM settings WHERE key = 'watcher'")
        if not rows or rows[0]["value"] != self.mark:
            raise SteadyError("already_running", "Another watcher has taken over the record.")

    @contextlib.contextmanager
    def read(self) -> Iterator[None]:
        """A short look; on SQLite each statement sees the latest commit."""
        with self._transaction():
            yield

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._forbid_nesting()
        if not self._slots.acquire(timeout=self._busy * 2):
            raise SteadyError("database_trouble", "All connections to the record are in use.")
        self._inside.now = True
        try:
            with self._typed(), contextlib.ExitStack() as undo:
                opened = self._db
                from sqlalchemy.exc import DBAPIError  # after dataset: two threads at once get half

                undo.callback(self._clean)
                try:
                    with opened:
                        yield
                except DBAPIError as error:
                    if error.orig is None:
                        raise
                    raise error.orig from error
                undo.pop_all()
        finally:
            self._inside.now = False
            self._slots.release()

    def _clean(self) -> None:
        """After a commit that failed dataset has forgotten its transaction and keeps the
        connection; so once more by hand, and it goes back clean."""
        from sqlalchemy.exc import SQLAlchemyError

        with contextlib.suppress(SQLAlchemyError):
            self._db.executable.rollback()
            self._db.begin()
            self._db.rollback()

    def _forbid_nesting(self) -> None:
        if getattr(self._inside, "now", False):
            raise RuntimeError("a transaction inside a transaction would commit half of it")

    def run(self, sql: str, **values: Any) -> list[Row]:
        """One statement of the transaction this thread is in; all its rows."""
        # On the driver's own cursor: SQLAlchemy takes five times as long as SQLite does.
        cursor = self._db.executable.connection.cursor()
        try:
            cursor.execute(self._words(sql), values)
            names = [column[0] for column in cursor.description or ()]
            return (
                [dict(zip(names, row, strict=True)) for row in cursor.fetchall()] if names else []
            )
        finally:
            cursor.close()

    def run_many(self, sql: str, rows: Sequence[Row]) -> None:
        """The same statement for each of ``rows``."""
        if rows:
            self._db.executable.exec_driver_sql(self._words(sql), list(rows))

    def insert(self, table: str, columns: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> None:
        """New rows of ``table``, each in the order of ``columns``.

        Many rows in one statement take half the time of a statement each, and other threads of
        this process run meanwhile.
        """
        done = 0
        with contextlib.closing(self._db.executable.connection.cursor()) as cursor:
            for size in _ROWS_AT_ONCE:
                sql = _insertion(table, tuple(columns), size, self.dialect.mark)
                while len(rows) - done >= size:
                    cursor.execute(sql, [*itertools.chain.from_iterable(rows[done : done + size])])
                    done += size

    def _put(self, key: str, value: Any) -> None:
        self.run(
            "INSERT INTO settings (key, value) VALUES (:key, :value)"
            " ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            key=key,
            value=to_json(value),
        )

    def each(self, name: str) -> str:
        """SQL for the members of the JSON list of strings that is bound as ``name``."""
        return self.dialect.each.format(f":{name}")

    def poll(self, sql: str, **values: Any) -> list[Row]:
        """A one-statement look for hot paths: past the pool, ten times as fast."""
        with self._typed(), self._readers.lend() as connection:
            rows: list[Row] = connection.execute(self._words(sql), values).fetchall()
            return rows

    def data_version(self) -> int:
        """A number that changes whenever somebody committed something.

        A server is asked five times a second, however often this is called.
        """
        if self._file is not None:
            with self._typed():
                return self._readers.data_version()
        asked, version = self._version_seen
        if time.monotonic() - asked >= _SERVER_SECONDS:
            sql = "SELECT hashtext(CAST(pg_current_snapshot() AS text)) AS v"
            version = int(self.poll(sql)[0]["v"])
            self._version_seen = (time.monotonic(), version)
        return version

    def _words(self, sql: str) -> str:
        """``sql`` as the driver takes it."""
        return sql if self._server is None else self._server.native(_without_hints(sql))

    # -- errors

    @contextlib.contextmanager
    def _typed(self) -> Iterator[None]:
        driver: Any = self._file or self._server
        try:
            yield
        except driver.Error as error:
            raise driver.typed(error) from error


def _server() -> ModuleType:
    """What only a server has. SteadyError ``extra_missing`` when its driver is not there."""
    try:
        from watcher.store import server
    except ImportError:
        raise extra_missing("A record on PostgreSQL", "psycopg", "postgres") from None
    return server
