"""What is done for the record beside the watcher's work: open it, read it whole, index new jobs.

The last two are for threads of their own, so that nothing waits for them, and end with ``stop``. A
crash leaves them for the next start.
"""

import logging
import threading
import time
from collections.abc import Callable

from watcher.config import Config
from watcher.errors import SteadyError, Trouble
from watcher.live import Troubles
from watcher.log import say
from watcher.store import JobStore

logger = logging.getLogger("steady.watcher")

#: The longest wait for another program's lock on the record: shorter than a pulse may be old,
#: so that the pulse tells of it.
_BUSY_SECONDS = 1.0
_OPEN_SECONDS = 10.0  #: the same at start, where nobody waits for a pulse
_VERIFY_SECONDS = 30.0  #: until a record that was found damaged is read once more
#: Between looks for jobs that are not in the index yet, and how much longer than the work itself
#: the pause is that follows it: while files are read, and otherwise.
_INDEX_SECONDS, _READING_PAUSE, _PAUSE = 1.0, 35, 5


def open_record(config: Config) -> JobStore:
    """The record; somebody else's lock on it is waited for a while."""
    deadline = time.monotonic() + _OPEN_SECONDS
    while True:
        try:
            return JobStore(
                config.database_url, synchronous=config.synchronous, busy_seconds=_BUSY_SECONDS
            )
        except SteadyError as error:
            if error.code != "database_trouble" or time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def verify_record(store: JobStore, troubles: Troubles, stop: threading.Event) -> None:
    """After an unclean stop a large record is read as a whole.

    Until it was found whole: what kept us from reading it may end, and a person may mend it.
    """
    begun = time.monotonic()
    while not stop.is_set():
        try:
            store.verify()
        except SteadyError as error:
            if troubles.report("verify", error):
                say(logger, "record.damaged", logging.ERROR, code=error.code,
                    message=error.message)  # fmt: skip
            stop.wait(_VERIFY_SECONDS)
        else:
            troubles.clear("verify")
            say(logger, "record.verified", seconds=round(time.monotonic() - begun, 1))
            return


def index_jobs(store: JobStore, quiet: Callable[[], bool], stop: threading.Event) -> None:
    """Make jobs findable that are on record, whenever there is time. Trouble is the queue's.

    ``quiet``: is no file being read just now?
    """
    while not stop.is_set():
        begun = time.monotonic()
        try:
            count = store.index_some()
        except Trouble:
            stop.wait(_VERIFY_SECONDS)
            continue
        pause = _PAUSE if quiet() else _READING_PAUSE
        worked = time.monotonic() - begun
        stop.wait(worked * pause if count else _INDEX_SECONDS)
