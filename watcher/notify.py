"""Telling others what happened: the command ``on_batch_done``, in a thread of its own.

What is to be told lies in the record's outbox, written in the transaction in which a batch was put
away, so nothing in here delays a job, an archive or a stop. A command that runs when the service
stops is ended and run again at the next start; so is one whose watcher died: it is run at least
once a batch, and ``STEADY_ATTEMPT`` says which time this is.
"""

import contextlib
import logging
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from watcher.describe import zoned_time
from watcher.errors import Trouble
from watcher.inbox import file_of
from watcher.jobs import Batch, JobState
from watcher.log import say
from watcher.store import Delivery, JobStore

logger = logging.getLogger("steady.notify")

COMMAND = "on_batch_done"  #: the endpoint that is a command
_COMMAND_SECONDS = 60.0
_LOOK_SECONDS = 2.0  #: between looks into the outbox when nobody rings
_END_SECONDS = 1.0  #: that a command has to end after SIGTERM, when the service stops


class Notifier:
    """Tells what lies in the outbox of ``store``, one thing after the other.

    ``command`` and its arguments, for every batch that is put away; empty: none.
    ``root``, ``inbox``, ``outputs`` and ``address`` (of the HTTP service) are what it is told.
    """

    def __init__(
        self,
        *,
        store: JobStore,
        command: Sequence[str],
        root: Path,
        inbox: Path,
        outputs: Path,
        address: str,
        now: Callable[[], int],
    ) -> None:
        self._store = store
        self._command = list(command)
        self._root = root
        self._inbox = inbox
        self._outputs = outputs
        self._address = address
        self._now = now
        self._bell = threading.Event()
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._run, name="notify")

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Who is told of a batch."""
        return (COMMAND,) if self._command else ()

    def start(self) -> None:
        """Begin, with what an earlier process left."""
        self._bell.set()
        self._thread.start()

    def ring(self) -> None:
        """There may be something to tell."""
        self._bell.set()

    def stop(self) -> None:
        """End the thread, and the command that runs: in about a second at most."""
        self._stopping.set()
        self._bell.set()
        self._signal(signal.SIGTERM)
        self._thread.join(_END_SECONDS)
        self._signal(signal.SIGKILL)
        self._thread.join()

    def _signal(self, number: int) -> None:
        with self._lock, contextlib.suppress(ProcessLookupError):
            if self._process is not None:
                os.killpg(self._process.pid, number)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._bell.wait(_LOOK_SECONDS)
            self._bell.clear()
            with contextlib.suppress(Trouble):  # told by whoever works with the record; tried again
                while not self._stopping.is_set():
                    due = self._store.next_delivery(self._now())
                    if due is None:
                        break
                    self._tell(due)

    def _tell(self, delivery: Delivery) -> None:
        batch = self._store.batch(delivery.ticket)
        if batch is None or not self._command:
            error: str | None = "There is no such command any more."
        else:
            error = self._run_command(self._facts(delivery, batch))
        if self._stopping.is_set() and error:
            return  # ended by us: the next start runs it again
        self._store.delivered(delivery.id, error=error, now=self._now())
        if error:
            say(logger, "hook.failed", logging.WARNING, ticket=delivery.ticket, error=error)

    def _run_command(self, facts: dict[str, str]) -> str | None:
        """Run it to its end; what went wrong, or None."""
        try:
            with self._lock:
                if self._stopping.is_set():
                    return "The service stops."
                self._process = subprocess.Popen(
                    self._command, env=os.environ | facts, stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL, start_new_session=True,
                )  # fmt: skip
            code = self._process.wait(_COMMAND_SECONDS)
            return f"It ended with exit code {code}." if code else None
        except OSError as error:
            return f"It cannot be run: {error.strerror}."
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            return f"It took longer than {_COMMAND_SECONDS:.0f} seconds and was ended."
        finally:
            with self._lock:
                if self._process is not None:
                    self._process.wait()
                self._process = None

    def _facts(self, delivery: Delivery, batch: Batch) -> dict[str, str]:
        """The environment of the command; docs/operations.md has the table."""
        counts = self._store.progress(batch.ticket)
        ended = self._store.last_end(batch.ticket) or delivery.created_at
        told = {
            "EVENT": delivery.event,
            "DELIVERY": delivery.id,
            "ATTEMPT": delivery.attempt,
            "TICKET": batch.ticket,
            "FILE": batch.name,
            "SOURCE": batch.source,
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
