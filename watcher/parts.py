"""What the working parts of a watcher share: built once by the service, handed to each of them.

Keeps nothing of its own, so a crash leaves nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from watcher.inbox.watch import Inbox
from watcher.live import Troubles
from watcher.store import JobStore


@dataclass(frozen=True)
class Shared:
    """What is shared. ``wake``: called when there may be something to hand out."""

    store: JobStore
    inbox: Inbox
    troubles: Troubles = field(default_factory=Troubles)
    wake: Callable[[], None] = lambda: None


class Part:
    """A working part, with what it shares at hand."""

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self._store = shared.store
        self._inbox = shared.inbox
        self._troubles = shared.troubles
        self._wake = shared.wake
