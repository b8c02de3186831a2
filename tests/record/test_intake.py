"""Who asks over HTTP goes before files, also before one that is being read; small before large."""

import json
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import until

from watcher import inbox as folder
from watcher.config import Config
from watcher.inbox.watch import Inbox
from watcher.inputs import Inputs
from watcher.intake import Intake, Reading
from watcher.models import limits_known
from watcher.parts import Shared
from watcher.store import JobStore

SENT = [str(uuid.uuid4()) for _ in range(3)]
MOST = 20_000_000  #: rows after which the table ends although nobody was served


class Long(Reading):
    """Reads tables whose last row comes again and again until what goes before them is on record."""

    store: JobStore
    path: Path
    seen: list[Any]

    def lines(self, stream: Any, claim: Any, batch: Any) -> Any:
        return Rows(super().lines(stream, claim, batch), self, claim, batch.ticket)

    def served(self, tickets: list[str]) -> bool:
        found = [self.store.batch(ticket) for ticket in tickets]
        return all(batch is not None and batch.recorded_at for batch in found)


class Rows:
    def __init__(self, lines: Any, reading: Long, claim: Any, ticket: str) -> None:
        self._lines, self._reading, self._claim, self._ticket = lines, reading, claim, ticket
        self.warnings: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Any]:
        last = None
        for last in self._lines:
            yield last
        if self._claim.source == "file":
            send, first = SENT[:1], SENT
        else:  # the submitted table of 500 rows, and two that are shorter
            send = SENT[1:] if self._ticket == SENT[0] else []
            first = send
        for ticket in send:
            suffix = ".json" if ticket == SENT[2] else ".jsonl"
            many = 500 if ticket == SENT[0] else 1
            row = json.dumps({"prompt": f"a fox {ticket} " + "and " * 40}) + "\n"
            folder.drop_file(self._reading.path, row.encode() * many, suffix, ticket)
        for number in range(MOST):
            if number % 1000 == 0 and self._reading.served(first):
                self._reading.seen.append(self._reading.store.batch(self._ticket))
                return
            yield last
        pytest.fail("no submission was read while the table was")


def test_no_submission_waits_for_a_table_that_is_being_read(root: Path):
    config = Config.load(root, settle_seconds=0, rescan_seconds=0.05)
    config.state.mkdir()
    store = JobStore(config.database_url)
    inbox = Inbox(config.inbox, settle=0, rescan=0.05)
    reading = Long(
        inbox=inbox,
        limits=limits_known(config, None),
        root=root,
        inputs=Inputs(config, store),
    )
    reading.store, reading.path, reading.seen = store, config.inbox, []
    recorded = threading.Event()
    intake = Intake(
        Shared(store, inbox, wake=recorded.set),
        reading=reading,
        state=config.state,
        max_queued=1000,
        announce=lambda: None,
    )
    inbox.open()
    intake.start()
    try:
        draft = config.inbox / ".table"
        draft.write_text("prompt\na cat\na dog\n")
        draft.rename(config.inbox / "table.csv")
        until(lambda: len(reading.seen) == 3, 60, "all submissions are on record")
        short, table, file = reading.seen
        assert [short.ticket, table.ticket] == [SENT[1], SENT[0]]
        assert not any(each.recorded_at for each in reading.seen), "and the tables are not yet"
        until(lambda: store.batch(file.ticket).recorded_at, 100)
        assert [len(store.jobs_of(ticket)) for ticket in SENT[1:]] == [1, 1]
        assert len(store.jobs_of(SENT[0])) >= 500
    finally:
        intake.stop()
        inbox.close()
        store.close()
