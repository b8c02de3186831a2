"""One line that is drawn over and over on a terminal: how far something is.

Nothing is drawn where stderr is no terminal. Prompts never reach it unfiltered.
"""

import contextlib
import shutil
import sys

from watcher.commands.desk import Desk, fitted_line

_MARKS = 20
_START_OF_LINE = "\r\x1b[K"


class Bar:
    """``▓▓▓▓░░░░  words``; as a context manager it leaves a clean line."""

    def __init__(self, desk: Desk) -> None:
        self.shown = sys.stderr.isatty() and not desk.as_json and not desk.quiet
        self._drawn = False
        utf8 = (sys.stderr.encoding or "").lower().startswith("utf")
        self._full, self._empty = ("▓", "░") if utf8 else ("#", ".")

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self.wipe()

    def draw(self, share: float, words: str) -> None:
        """Show ``share`` (0 to 1) and ``words``."""
        if not self.shown:
            return
        marks = round(_MARKS * min(1.0, max(0.0, share)))
        width = shutil.get_terminal_size((80, 24)).columns
        line = fitted_line(
            f"{self._full * marks}{self._empty * (_MARKS - marks)}  {words}", width - 1
        )
        self._write(_START_OF_LINE + line)
        self._drawn = True

    def bytes(self, done: int, total: int) -> None:
        """Show so many bytes of so many."""
        self.draw(done / max(1, total), f"{done / 1e9:.2f} of {total / 1e9:.2f} GB")

    def wipe(self) -> None:
        """Take the line away, for other words to come."""
        if self._drawn:
            self._write(_START_OF_LINE)
            self._drawn = False

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            print(text, end="", file=sys.stderr, flush=True)
