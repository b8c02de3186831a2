"""How long pictures take, learned from those that were made, by size and steps.

The one place for every estimate: of a picture, a batch, the queue; at every door. Pure.
"""

import collections
import statistics
from collections.abc import Iterable, Mapping

from watcher.jobs import forwards_of

#: (width, height, steps, started_at, completed_at), newest first; microseconds.
Duration = tuple[int, int, int, int, int]
#: (pixels, forwards): pictures of one cost.
Cost = tuple[int, int]

RECENT = 25  #: pictures of one cost that count; older ones may be of another machine's mood


def cost_of(width: int, height: int, steps: int) -> Cost:
    """What decides how long a picture takes."""
    return width * height, forwards_of(steps)


class Pace:
    """Estimates from finished pictures. Seconds; None while nothing is known.

    Pictures of one cost tell by their median, so that one slow start does not count. For a cost
    nobody has run yet, the costs that were run are scaled by pixels and forwards.
    """

    def __init__(self, durations: Iterable[Duration]) -> None:
        recent: dict[Cost, list[float]] = collections.defaultdict(list)
        seconds: list[float] = []
        for width, height, steps, started, ended in durations:
            taken = max(0.0, (ended - started) / 1e6)
            seconds.append(taken)
            known = recent[cost_of(width, height, steps)]
            if len(known) < RECENT:
                known.append(taken)
        self._medians = {cost: statistics.median(each) for cost, each in recent.items()}
        rates = [taken / (pixels * n) for (pixels, n), taken in self._medians.items()]
        self._rate = statistics.median(rates) if rates else None
        self._mean = statistics.fmean(seconds) if seconds else None

    def seconds(self, width: int, height: int, steps: int) -> float | None:
        """One such picture."""
        return self.of(cost_of(width, height, steps))

    def of(self, cost: Cost) -> float | None:
        """One picture of this cost."""
        if cost in self._medians:
            return self._medians[cost]
        return None if self._rate is None else self._rate * cost[0] * cost[1]

    def total(self, costs: Mapping[Cost, int], hands: int = 1) -> float | None:
        """Many pictures, ``hands`` at a time."""
        if not any(costs.values()):
            return 0.0
        if self._rate is None:
            return None
        return sum((self.of(cost) or 0.0) * n for cost, n in costs.items()) / max(1, hands)

    def average(self) -> float | None:
        """The mean of the recent pictures, whatever they were."""
        return self._mean
