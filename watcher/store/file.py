"""What only a record in a file has: SQLite's connections and complaints, and whose file it is.

``server.py`` is its counterpart. Knows tables only to tell ours from a stranger's file. A crash
leaves the file, and beside it the log with what was committed last; opening takes both up again.
"""

import contextlib
import os
import sqlite3
import time
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote

from watcher import publish
from watcher.errors import SteadyError
from watcher.store import schema
from watcher.store.schema import Row

_OLDEST = (3, 35)  #: the first SQLite that knows RETURNING
_CHECKED_AT_OPEN = 64 * 2**20  #: bytes of a file that is small enough to be checked at once

_Identity = tuple[int, int]  #: device and inode


class RecordFile:
    """The file at ``path``, and that it stays the one that was opened.

    For ``checkpointer``, ``busy_seconds`` and the errors of opening see ``Database``. Whatever
    talks to SQLite raises :attr:`Error`, of which :meth:`typed` makes ours.
    """

    Error = sqlite3.Error

    def __init__(
        self, path: Path, *, synchronous: str, checkpointer: bool, busy_seconds: float
    ) -> None:
        self.path = path
        #: True when the last stop was no clean one and the file is too large to check at once.
        self.unchecked = False
        self._synchronous = synchronous
        self._checkpointer = checkpointer
        self._busy = busy_seconds
        self._identity: _Identity | None = None
        self._logs: dict[Path, _Identity] = {}  #: SQLite's files beside it

    def prepare(self) -> None:
        """Create the file, recognise a foreign or damaged one, switch to WAL."""
        if sqlite3.sqlite_version_info < _OLDEST:
            raise SteadyError(
                "database_trouble",
                f"SQLite {sqlite3.sqlite_version} is too old; 3.35 is the oldest that will do.",
                remedy="Use a Python that brings a newer SQLite.",
            )
        with contextlib.closing(sqlite3.connect(":memory:")) as any_:
            if not any_.execute("SELECT sqlite_compileoption_used('ENABLE_FTS5')").fetchone()[0]:
                raise SteadyError(
                    "database_trouble",
                    "This SQLite was built without its full-text search (FTS5).",
                    remedy="Use a Python that brings a whole SQLite, as Debian's and Docker's do.",
                )
        path = self.path
        try:
            os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644))
        except OSError as error:
            raise SteadyError(
                "database_trouble", f"The record {path.name} cannot be opened: {error.strerror}."
            ) from None
        log = path.with_name(path.name + "-wal")
        unclean = log.exists() and log.stat().st_size > 0
        with contextlib.closing(self.connect()) as connection:
            tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            owner = connection.execute("PRAGMA application_id").fetchone()[0]
            if tables and owner != schema.APPLICATION_ID:
                raise SteadyError(
                    "database_damaged", f"{path.name} is a database of another program."
                )
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if 0 < version <= schema.VERSION and (_columns_of(version) - _columns(connection)):
                raise SteadyError(
                    "database_damaged",
                    f"{path.name} calls itself version {version}, but lacks columns of it:"
                    " it was made by a program that was never released, or changed by hand.",
                )
            if unclean and self._checkpointer:
                if path.stat().st_size <= _CHECKED_AT_OPEN:
                    _quick_check(connection)
                else:
                    self.unchecked = True
            # The switch does not wait for other processes by itself.
            deadline = time.monotonic() + self._busy
            while True:
                try:
                    connection.execute("PRAGMA journal_mode = WAL")
                    break
                except sqlite3.OperationalError as error:
                    if _result_code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                        raise
                    time.sleep(0.01)
        self._identity = _identity_of(path)

    def connect(self, *, read_only: bool = False) -> sqlite3.Connection:
        """A driver connection; never creates the file, so a deleted one is noticed."""
        connection = sqlite3.connect(
            f"file:{quote(str(self.path))}?mode=rw",
            uri=True,
            timeout=self._busy,
            isolation_level=None,
            check_same_thread=False,
        )
        for pragma in (
            f"synchronous = {self._synchronous}",
            f"wal_autocheckpoint = {1000 if self._checkpointer else 0}",
            "journal_size_limit = 67108864",
            "cache_size = -2048",
            f"query_only = {int(read_only)}",
        ):
            connection.execute(f"PRAGMA {pragma}")
        return connection

    def reader(self) -> sqlite3.Connection:
        """A driver connection for polls, which gives rows as dicts."""
        connection = self.connect(read_only=True)
        connection.row_factory = _row_of
        return connection

    def verify(self) -> None:
        """Read the whole file and look for damage (seconds per GB); ``database_damaged``."""
        with contextlib.closing(self.connect(read_only=True)) as connection:
            _quick_check(connection)
        self.unchecked = False

    def sync(self) -> None:
        """Flush what was committed since the log was last moved into the file. Raises OSError.

        Of use with ``synchronous: normal`` alone: ``full`` does so at each commit.
        """
        if self._synchronous == "full":
            return
        log = self.path.with_name(self.path.name + "-wal")
        with contextlib.suppress(FileNotFoundError), log.open("rb") as file:
            publish.sync_fd(file.fileno())

    # -- whose file it is

    def check(self) -> None:
        """SteadyError ``database_trouble`` when the file was deleted or replaced meanwhile.

        SQLite itself would write on happily.
        """
        identity = _identity_of(self.path)
        if identity is None:
            raise SteadyError(
                "database_trouble", f"The record {self.path.name} is not there any more."
            )
        if identity != self._identity:
            raise SteadyError(
                "database_trouble", f"The record {self.path.name} was replaced by another file."
            )

    def other(self) -> object:
        """How the file looks that was put in the place of ours; None when there is none."""
        try:
            stat = self.path.stat()
        except OSError:
            return None
        if (stat.st_dev, stat.st_ino) == self._identity:
            return None
        return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns

    def note_logs(self) -> None:
        """Remember the files SQLite keeps beside ours, now that it has made them."""
        for end in ("-wal", "-shm"):
            beside = self.path.with_name(self.path.name + end)
            if identity := _identity_of(beside):
                self._logs[beside] = identity

    def drop_stale_log(self) -> None:
        """When another file has our path: the log beside it is still that of ours.

        SQLite would take it for the other file's own and mix the two. Our connections keep
        theirs, which needs no name.
        """
        if self.other() is None:
            return
        for path, identity in self._logs.items():
            if _identity_of(path) == identity:
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()

    # -- complaints

    def typed(self, error: BaseException) -> BaseException:
        """The registered error of SQLite's complaint; our own mistakes stay what they are."""
        if not isinstance(error, sqlite3.Error):
            return error
        kind = _result_code(error)
        if kind == sqlite3.SQLITE_FULL or (kind == sqlite3.SQLITE_IOERR and self._no_space()):
            return SteadyError("disk_full", "The disk of the record is full.")
        if kind in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return SteadyError("database_damaged", f"The record is damaged: {error}.")
        if kind in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return SteadyError("database_trouble", "Another program holds the record's lock.")
        if kind in (
            sqlite3.SQLITE_IOERR,
            sqlite3.SQLITE_CANTOPEN,
            sqlite3.SQLITE_READONLY,
            sqlite3.SQLITE_PERM,
            sqlite3.SQLITE_PROTOCOL,
        ):
            return SteadyError("database_trouble", f"The record cannot be used: {error}.")
        return error

    def _no_space(self) -> bool:
        """Quotas and shared memory report a full disk as an I/O error."""
        try:
            disk = os.statvfs(self.path.parent)
        except OSError:
            return False
        return disk.f_bavail * disk.f_frsize < 2**20


def forget_pages(connection: sqlite3.Connection | None, _record: object) -> None:
    """What a connection at rest remembers of the file is stale as soon as another one writes."""
    if connection is not None:
        connection.execute("PRAGMA shrink_memory")


def _result_code(error: sqlite3.Error) -> int:
    """SQLite's primary result code (0 for complaints of the Python module itself)."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def _quick_check(connection: sqlite3.Connection) -> None:
    answer = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if answer != "ok":
        raise SteadyError("database_damaged", f"The record is damaged: {answer}.")


def _columns(connection: sqlite3.Connection) -> frozenset[tuple[str, str]]:
    return frozenset(
        connection.execute(
            "SELECT m.name, c.name FROM sqlite_master AS m, pragma_table_info(m.name) AS c"
            " WHERE m.type = 'table'"
        )
    )


@lru_cache
def _columns_of(version: int) -> frozenset[tuple[str, str]]:
    """The tables and columns that a record of ``version`` has at least."""
    with contextlib.closing(sqlite3.connect(":memory:")) as model:
        for statements in schema.migrations(schema.SQLITE)[:version]:
            for statement in statements:
                model.execute(statement)
        return _columns(model)


def _identity_of(path: Path) -> _Identity | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


def _row_of(cursor: sqlite3.Cursor, row: tuple[object, ...]) -> Row:
    return {column[0]: value for column, value in zip(cursor.description, row, strict=True)}
