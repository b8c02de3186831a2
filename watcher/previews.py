"""Half-made pictures between processes: who looks at which job, and how that looks.

Small files in ``.steady/previews/``: whoever looks touches ``<job>.look``, the watcher has the
worker draw for those that were touched lately and puts ``<job>.jpg``. Nothing is synced; a crash
leaves files that the next start removes, and that nobody is shown meanwhile.
"""

import contextlib
import os
import time
from pathlib import Path

from watcher.publish import replace

FRESH = 5.0  #: seconds that a look lasts


class Previews:
    """The previews of one root; any process. ``state``: its ``.steady``."""

    def __init__(self, state: Path) -> None:
        self.folder = state / "previews"

    def begin(self) -> None:
        """Forget what an earlier watcher left. What engines learned stays."""
        with contextlib.suppress(OSError):
            self.folder.mkdir(exist_ok=True)
            for path in self.folder.iterdir():
                if path.suffix in (".look", ".jpg", ".tmp"):
                    path.unlink(missing_ok=True)

    def look(self, job_id: str) -> None:
        """Somebody looks at this job, which runs."""
        path = self.folder / f"{job_id}.look"
        with contextlib.suppress(OSError):  # no room: no preview
            path.touch()

    def looked_at(self) -> set[str]:
        """The jobs that somebody looks at."""
        found = set()
        now = time.time()
        with contextlib.suppress(OSError), os.scandir(self.folder) as entries:
            for entry in entries:
                name, _, end = entry.name.rpartition(".")
                age = abs(now - entry.stat().st_mtime)
                if end == "look" and age < FRESH:
                    found.add(name)
                elif end == "look" and age > 10 * FRESH:  # of a job that had just ended
                    os.unlink(entry)
        return found

    def put(self, job_id: str, jpeg: bytes) -> None:
        """Show ``jpeg`` for this job. Raises OSError."""
        temporary = self.folder / f"{job_id}.tmp"
        replace(self.folder / f"{job_id}.jpg", jpeg, temporary=temporary, sync=False)

    def get(self, job_id: str) -> bytes | None:
        """The last preview of this job, if there is one."""
        with contextlib.suppress(OSError):
            return (self.folder / f"{job_id}.jpg").read_bytes()
        return None

    def end(self, job_id: str) -> None:
        """The job is over: nothing of it is shown any more."""
        for end in ("look", "jpg"):
            with contextlib.suppress(OSError):
                (self.folder / f"{job_id}.{end}").unlink(missing_ok=True)
