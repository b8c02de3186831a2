"""Running the command ``on_batch_done`` for every batch that is put away.

A command that runs when the service stops is ended and run again at the next start; so is one
whose watcher died: it is run at least once a batch, and ``STEADY_ATTEMPT`` says which time this is.
"""

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

from watcher.describe import whole_batch, zoned_time
from watcher.inbox import file_of
from watcher.jobs import Batch, JobState
from watcher.store import Delivery, JobStore
from watcher.webhooks import Reply

COMMAND = "on_batch_done"  #: its endpoint
_COMMAND_SECONDS = 60.0


class Command:
    """The command and its arguments; empty: none.

    ``root``, ``inbox``, ``outputs`` and ``address`` (of the HTTP service) are what it is told.
    """

    once = True

    def __init__(
        self,
        words: Sequence[str],
        *,
        store: JobStore,
        root: Path,
        inbox: Path,
        outputs: Path,
        address: str,
    ) -> None:
        self._words = list(words)
        self._store = store
        self._root = root
        self._inbox = inbox
        self._outputs = outputs
        self._address = address
        self._closed = False
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def events(self) -> dict[str, Sequence[str]]:
        """Batches alone."""
        return {COMMAND: ("batch.completed",)} if self._words else {}

    def knows(self, endpoint: str) -> bool:
        """Is it this command?"""
        return bool(self._words) and endpoint == COMMAND

    def quiet_seconds(self) -> float:
        """No quiet hours hold for it."""
        return 0.0

    def close(self, *, at_once: bool) -> None:
        """End the command that runs."""
        self._closed = True
        self._signal(signal.SIGKILL if at_once else signal.SIGTERM)

    def _signal(self, number: int) -> None:
        with self._lock, contextlib.suppress(ProcessLookupError):
            if self._process is not None:
                os.killpg(self._process.pid, number)

    def send(self, due: Delivery) -> Reply:
        """Run it to its end."""
        batch = self._store.batch(due.ticket)
        if batch is None:
            return Reply(error="The batch is not there any more.")
        facts = self._facts(due, batch)
        try:
            with self._lock:
                if self._closed:
                    return Reply(error="The service stops.")
                self._process = subprocess.Popen(
                    self._words, env=os.environ | facts, stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL, start_new_session=True,
                )  # fmt: skip
            code = self._process.wait(_COMMAND_SECONDS)
            return Reply(error=f"It ended with exit code {code}." if code else None)
        except OSError as error:
            return Reply(error=f"It cannot be run: {error.strerror}.")
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            return Reply(error=f"It took longer than {_COMMAND_SECONDS:.0f} seconds and was ended.")
        finally:
            with self._lock:
                if self._process is not None:
                    self._process.wait()
                self._process = None

    def _facts(self, due: Delivery, batch: Batch) -> dict[str, str]:
        """The environment of the command; docs/operations.md has the table."""
        counts = self._store.progress(batch.ticket)
        ended = self._store.span(batch.ticket)[1] or due.created_at
        told = {
            "EVENT": due.event,
            "DELIVERY": due.id,
            "ATTEMPT": due.attempt,
            "TICKET": batch.ticket,
            "FILE": batch.name,
            "SOURCE": batch.source,
            "STATE": whole_batch(batch, counts)["state"],
            "ERROR": (batch.error or {}).get("message", ""),
            "JOBS": batch.jobs,
            **{state.name: counts[state] for state in JobState if state.ended},
            "REFUSED_ROWS": batch.refused_rows,
            "CREATED_AT": zoned_time(batch.created_at, "seconds"),
            "ENDED_AT": zoned_time(ended, "seconds"),
            "SECONDS": max(0, ended - batch.created_at) // 1_000_000,
            "ROOT": self._root,
            "OUTPUTS": self._outputs,
            "URL": f"{self._address}/batches/{batch.ticket}",
            **self._files(batch),
        }
        return {f"STEADY_{name}": str(value) for name, value in told.items()}

    def _files(self, batch: Batch) -> dict[str, str]:
        """Where the file of a batch lies with its results; empty for what there is not."""
        claim = None
        if batch.source == "file":
            with contextlib.suppress(OSError):
                ticket = batch.claim or batch.ticket
                claim = file_of(self._inbox, ticket, batch.name, batch.suffix)
        path = "" if claim is None else str(claim.path)
        beside = {
            "ARCHIVED": path,
            "RESULT": f"{path}.result.json",
            "TABLE": f"{path}.result.csv",
            "REFUSED": f"{path.removesuffix(batch.suffix)}.refused.csv",
        }
        return {
            name: each if path and Path(each).is_file() else "" for name, each in beside.items()
        }
