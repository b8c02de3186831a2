"""When a worker is late: the deadlines of loading, steps and jobs; those of steps are learned. Pure."""

import statistics
from collections import OrderedDict, deque
from dataclasses import dataclass

from watcher.executor.child import Child
from watcher.executor.seat import Seat

#: Seconds: the floor of the deadline, and what holds while no step was ever seen (one step of a
#: large picture on a slow processor takes minutes).
STEP_FLOOR, STEP_UNKNOWN = 60.0, 600.0
STEP_FACTOR = 20
JOB_DEADLINE = "job deadline"  #: passed for the first time


class Patience:
    """How long steps take, by picture size, to tell slow from stuck.

    Args:
        fixed: seconds every step may take; None: ``STEP_FACTOR`` times the median of its size,
            and at least ``STEP_FLOOR``.
    """

    def __init__(self, fixed: float | None) -> None:
        self._fixed = fixed
        self._seen: OrderedDict[tuple[int, int], deque[float]] = OrderedDict()

    def add(self, size: tuple[int, int], seconds: float) -> None:
        """Learn that one step of this size took ``seconds``."""
        self._seen.setdefault(size, deque(maxlen=32)).append(seconds)
        self._seen.move_to_end(size)
        if len(self._seen) > 256:
            self._seen.popitem(last=False)

    def median(self, size: tuple[int, int]) -> float | None:
        """Seconds a step takes; of a size never seen, guessed from the last one that was."""
        if size in self._seen:
            return statistics.median(self._seen[size])
        if not self._seen:
            return None
        known = next(reversed(self._seen))
        growth = max(1.0, size[0] * size[1] / max(1, known[0] * known[1]))
        return statistics.median(self._seen[known]) * growth**2  # attention grows so

    def limit(self, size: tuple[int, int], *, compiled: bool = False) -> float:
        """Seconds after which a step counts as stuck; a compiled model may compile in any."""
        if self._fixed is not None:
            return self._fixed
        median = self.median(size)
        floor = STEP_UNKNOWN if compiled else STEP_FLOOR
        return STEP_UNKNOWN if median is None else max(floor, STEP_FACTOR * median)


@dataclass(frozen=True)
class Deadlines:
    """What a worker may take for what it does now; all in seconds, see LocalExecutor."""

    patience: Patience
    load_timeout: float
    job_timeout: float
    kill_after: float
    silence: float

    def next(self, seat: Seat, child: Child) -> tuple[float, str]:
        """The next deadline of this worker (monotonic) and its name."""
        if seat.state == "loading":
            return child.born + self.load_timeout, f"load deadline ({self.load_timeout:g} s)"
        if seat.state == "leaving":
            return seat.idle_since + self.kill_after, "did not leave when told to"
        if not seat.tasks:
            return child.heard + self.silence, f"silent for {self.silence:g} s"
        task = seat.tasks[0]
        if task.started is None:
            return task.moved + STEP_FLOOR, f"did not begin a job in {STEP_FLOOR:g} s"
        compiled = bool(dict(seat.info.get("details", {})).get("compiled"))
        limit = self.patience.limit(task.size, compiled=compiled)
        step = (task.moved + limit, f"step deadline ({limit:g} s)")
        if task.overdue is None:
            return min(step, (task.started + self.job_timeout, JOB_DEADLINE))
        grace = self.kill_after + 3 * (self.patience.median(task.size) or 0.0)
        return min(step, (task.overdue + grace, f"job deadline ({self.job_timeout:g} s)"))

    @property
    def overdue_words(self) -> str:
        """What is said of a job that took too long."""
        return f"The job took longer than {self.job_timeout:g} seconds."
