"""The rows of a batch that could not be used, as they were judged: what each held, and why.

They lie in the inbox, a row a line, written before the first job of their file is recorded. So
whatever is changed on the machine later, every row of a file is a job on record or lies there.
They count while the record says that rows of the batch were refused.
"""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from watcher.errors import ValueFault
from watcher.inbox import refused_rows
from watcher.jobfile.tables import Row, refused_csv
from watcher.jobs import Batch
from watcher.publish import disk_errors


def kept_line(row: Row) -> bytes:
    """A refused row as it is kept."""
    problems = [{k: v for k, v in vars(p).items() if v is not None} for p in row.problems]
    return json.dumps([row.number, row.line, dict(row.cells), problems]).encode() + b"\n"


class RefusedRows:
    """Those of every batch, in the folder ``inbox``. Only reads and removes."""

    def __init__(self, inbox: Path) -> None:
        self._inbox = inbox

    def of(self, ticket: str) -> Iterator[Row]:
        """Those of a batch, in order; none where none are kept. Raises SteadyError folder_gone."""
        path = refused_rows(self._inbox, ticket)
        with (
            disk_errors("Refused rows cannot be read"),
            contextlib.suppress(FileNotFoundError),
            path.open("rb") as lines,
        ):
            for line in lines:
                number, at, cells, problems = json.loads(line)
                yield Row(number, at, cells, tuple(ValueFault(**each) for each in problems))

    def table(self, batch: Batch) -> Iterator[bytes] | None:
        """The ``.refused.csv`` of ``batch``, in pieces; None when all its rows could be used."""
        if not batch.refused_rows or not refused_rows(self._inbox, batch.ticket).is_file():
            return None
        return refused_csv(lambda: self.of(batch.ticket))

    def sweep(self, before: int, needed: Callable[[str], object]) -> None:
        """Remove what was kept before that moment (us) for tickets that are not ``needed``."""
        for path in refused_rows(self._inbox, "*").parent.glob("*"):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime_ns // 1000 < before and not needed(path.stem):
                    path.unlink()
