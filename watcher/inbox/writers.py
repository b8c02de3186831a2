"""Does somebody still write this file? The kernel knows: it grants a read lease, or not.

A lease is refused while any process has the file open for writing or mapped for it, also
after we renamed it, so it tells a finished file from one whose writer only pauses. Where
nobody can tell (no Linux, no leases on this file system, a file of another owner) the
answer is UNKNOWN and silence alone has to decide.
"""

import os
import signal
import sys
import time
from enum import Enum
from pathlib import Path

if sys.platform == "linux":
    import fcntl


class Writer(Enum):
    """Does some process still have the file open for writing?"""

    NONE = "none"
    HOLDS = "holds"
    UNKNOWN = "unknown"  #: no leases here, or not for files of this owner


if sys.platform == "linux":

    def writer_of(path: Path | str) -> Writer:
        """Ask the kernel for a read lease on ``path`` (a regular file), give it back at once."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return Writer.UNKNOWN
        try:
            # A writer that opens the file right now sends us a signal. Its default, SIGIO, is
            # death; this one is ignored.
            fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        except BlockingIOError:
            return Writer.HOLDS
        except OSError:
            return Writer.UNKNOWN
        finally:
            os.close(fd)
        return Writer.NONE
else:

    def writer_of(path: Path | str) -> Writer:
        """Nobody can tell here: silence alone decides, and it must last longer."""
        return Writer.UNKNOWN


def leases_work(path: Path | str) -> bool:
    """Say whether a file that nobody writes is known to be one, by ``path``, just written and closed.

    A process that was forked meanwhile has it open until it starts its program: up to a
    second is given to that.
    """
    for _ in range(100):
        found = writer_of(path)
        if found is not Writer.HOLDS:
            return found is Writer.NONE
        time.sleep(0.01)
    return False
