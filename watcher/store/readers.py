"""Connections for looks at the record: lent for a statement, kept for the next. Thread-safe."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

READERS = 8  #: connections for polls


class Readers:
    """A few driver connections for polls, the last used first, plus one that only listens."""

    def __init__(self, connect: Callable[[], Any]) -> None:
        self._connect = connect
        self._idle: list[Any] = []
        self._slots = threading.BoundedSemaphore(READERS)
        self._listener: Any = None
        self._listening = threading.Lock()

    @contextlib.contextmanager
    def lend(self) -> Iterator[Any]:
        """A connection, given back at the end; closed with all others that rest after an error."""
        with self._slots:
            try:
                connection = self._idle.pop()
            except IndexError:
                connection = self._connect()
            with contextlib.ExitStack() as undo:
                undo.callback(self._drop)  # a server that went took the others along
                undo.callback(connection.close)
                yield connection
                undo.pop_all()
            self._idle.append(connection)

    def data_version(self) -> int:
        """SQLite's number that changes with every commit, as one connection sees it."""
        with self._listening:
            if self._listener is None:
                self._listener = self._connect()
            return int(self._listener.execute("PRAGMA data_version").fetchone()["data_version"])

    def close(self) -> None:
        """Close those that rest."""
        with self._listening:
            if self._listener is not None:
                self._listener.close()
                self._listener = None
        self._drop()

    def _drop(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                self._idle.pop().close()
