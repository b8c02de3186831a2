"""What is done for the record while the watcher works: read it whole, make new jobs findable.

In threads of its own, so that nothing waits for it. A crash leaves both for the next start.
"""

import logging
import threading
import time
from collections.abc import Callable

from watcher.errors import SteadyError, Trouble
from watcher.live import Troubles
from watcher.log import say
from watcher.store import JobStore

logger = logging.getLogger("steady.watcher")

_VERIFY_SECONDS = 30.0  #: until a record that was found damaged is read once more
#: Between looks for jobs that are not in the index yet, and how much longer than the work itself
#: the pause is that follows it: while files are read, and otherwise.
_INDEX_SECONDS, _READING_PAUSE, _PAUSE = 1.0, 35, 5


class Upkeep:
    """Takes care of ``store``. ``quiet``: is no file being read just now?"""

    def __init__(self, store: JobStore, troubles: Troubles, quiet: Callable[[], bool]) -> None:
        self._store = store
        self._troubles = troubles
        self._quiet = quiet
        self._stopping = threading.Event()
        self._indexer = threading.Thread(target=self._index, name="index")

    def start(self) -> None:
        """Begin; after an unclean stop a large record is read as a whole."""
        if self._store.unchecked:
            threading.Thread(target=self._verify, name="verify", daemon=True).start()
        self._indexer.start()

    def stop(self) -> None:
        """End the threads; who is reading the record just now is not waited for."""
        self._stopping.set()
        if self._indexer.is_alive():
            self._indexer.join()

    def _verify(self) -> None:
        """Until it was found whole: what kept us from reading it may end, and a person may mend it."""
        begun = time.monotonic()
        while not self._stopping.is_set():
            try:
                self._store.verify()
            except SteadyError as error:
                if self._troubles.report("verify", error):
                    say(logger, "record.damaged", logging.ERROR, code=error.code,
                        message=error.message)  # fmt: skip
                self._stopping.wait(_VERIFY_SECONDS)
            else:
                self._troubles.clear("verify")
                say(logger, "record.verified", seconds=round(time.monotonic() - begun, 1))
                return

    def _index(self) -> None:
        """Whenever there is time. Trouble is the queue's."""
        while not self._stopping.is_set():
            begun = time.monotonic()
            try:
                count = self._store.index_some()
            except Trouble:
                self._stopping.wait(_VERIFY_SECONDS)
                continue
            pause = _PAUSE if self._quiet() else _READING_PAUSE
            worked = time.monotonic() - begun
            self._stopping.wait(worked * pause if count else _INDEX_SECONDS)
