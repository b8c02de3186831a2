"""How long a step may take before its worker counts as stuck: learned from those that were. Pure."""

import statistics
from collections import OrderedDict, deque

#: Seconds: the floor of the deadline, and what holds while no step was ever seen (one step of a
#: large picture on a slow processor takes minutes).
STEP_FLOOR, STEP_UNKNOWN = 60.0, 600.0
STEP_FACTOR = 20


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
