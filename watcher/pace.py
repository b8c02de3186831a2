"""How long pictures take, learned from those that were made, by size and forwards.

The one place for every estimate: of a picture, a batch, the queue; at every door; and for spans
of the day. Only asks, so a crash leaves nothing.
"""

import bisect
import collections
import datetime
import re
import statistics
import zoneinfo
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from watcher.errors import SteadyError
from watcher.jobs import Job

if TYPE_CHECKING:
    from watcher.store import JobStore

#: (width, height, forwards, started_at, completed_at), newest first; microseconds.
Duration = tuple[int, int, int, int, int]
Size = tuple[int, int, int]  #: width, height, forwards
#: (pixels, forwards): pictures of one cost.
Cost = tuple[int, int]

RECENT = 25  #: pictures of one cost that count; older ones may be of another machine's mood


def size_of(job: Job) -> Size:
    """What a job says of its cost."""
    return *job.request.final_size, job.forwards


def cost_of(width: int, height: int, forwards: int) -> Cost:
    """What decides how long a picture takes."""
    return width * height, forwards


class Pace:
    """Estimates from finished pictures. Seconds; None while nothing is known.

    Pictures of one cost tell by their median, so that one slow start does not count. For a cost
    nobody has run yet, the costs that were run are scaled by pixels and forwards.
    """

    def __init__(self, durations: Iterable[Duration]) -> None:
        recent: dict[Cost, list[float]] = collections.defaultdict(list)
        seconds: list[float] = []
        for cost, taken in _apart(list(durations)):
            seconds.append(taken)
            known = recent[cost]
            if len(known) < RECENT:
                known.append(taken)
        self._medians = {cost: statistics.median(each) for cost, each in recent.items()}
        rates = [taken / (pixels * n) for (pixels, n), taken in self._medians.items()]
        self._rate = statistics.median(rates) if rates else None
        self._mean = statistics.fmean(seconds) if seconds else None

    def seconds(self, width: int, height: int, forwards: int) -> float | None:
        """One such picture."""
        cost = cost_of(width, height, forwards)
        if cost in self._medians:
            return self._medians[cost]
        return None if self._rate is None else self._rate * cost[0] * cost[1]

    def left(self, size: Size, entry: Mapping[str, Any] | None, now: int) -> float | None:
        """Until a running picture is done; ``entry``: what the watcher's pulse says of it."""
        whole = self.seconds(*size)
        if entry and entry.get("started_at") and entry["step"] and entry["steps"]:
            spent = max(0.0, (now - int(entry["started_at"])) / 1e6)
            if whole is None:
                whole = spent * int(entry["steps"]) / int(entry["step"])
            return max(0.0, min(whole, whole - spent))
        return whole

    def queue(
        self, sizes: Sequence[Size], waiting: int, hands: int = 1, rest: float = 0.0
    ) -> float | None:
        """Until ``waiting`` pictures are done, ``hands`` at a time; ``sizes``: those of some.

        ``rest``: seconds a worker rests after each.
        """
        if not waiting:
            return 0.0
        each = self._mean
        if sizes and self._rate is not None:
            each = statistics.fmean(self.seconds(*size) or 0.0 for size in sizes)
        return None if each is None else (each + rest) * waiting / max(1, hands)


def queue_seconds(
    store: "JobStore", waiting: int, workers: Sequence[Mapping[str, Any]], usual: str, rest: float
) -> float | None:
    """Until ``waiting`` jobs are done, with what the ``workers`` of a pulse load for them.

    ``rest``: seconds a worker rests after each. None while nothing is known.
    """
    pace = Pace(store.durations())
    seconds = pace.queue(store.waiting_sizes(), waiting, len(workers), rest)
    return seconds and seconds + loading_seconds(workers, store.waiting_models(), usual)


def loading_seconds(
    workers: Sequence[Mapping[str, Any]], wanted: Iterable[str], usual: str
) -> float:
    """Until the models that jobs wait for and none of the ``workers`` of a pulse has are loaded.

    ``wanted``: their names, "" for ``usual``. As long as the longest last load for each.
    """
    taken = [each["load_seconds"] for each in workers if each.get("load_seconds")]
    absent = {name or usual for name in wanted} - {each.get("model") or usual for each in workers}
    return len(absent) * max(taken, default=0.0) / max(1, len(workers))


def _apart(durations: Sequence[Duration]) -> Iterator[tuple[Cost, float]]:
    """Cost and seconds of each picture, without the time it stood behind the one before.

    A job is handed out while the one before it has a forward left, and waits for that.
    """
    ends = sorted(ended for *_, ended in durations)
    for width, height, forwards, started, ended in durations:
        cost = cost_of(width, height, forwards)
        begun = started
        at = bisect.bisect_right(ends, started)
        if at < len(ends) and ends[at] < ended:
            behind = ends[at] - started
            if behind <= 1.5 / cost[1] * (ended - started):
                begun = ends[at]
        yield cost, max(0.0, (ended - begun) / 1e6)


@dataclass(frozen=True)
class RunWindow:
    """From ``start`` (included) to ``end`` (excluded), past midnight when end <= start.

    ``zone`` None is the machine's local time. No bounds: always open.
    """

    start: datetime.time | None = None
    end: datetime.time | None = None
    zone: datetime.tzinfo | None = None

    @classmethod
    def parse(cls, text: str | None, key: str = "run_window") -> "RunWindow":
        """``"22:00-07:00"`` or ``"22:00-07:00 Europe/Berlin"``; raises SteadyError bad_config."""
        if not text:
            return cls()
        match = re.fullmatch(r"\s*(\d{1,2}):(\d\d)\s*-\s*(\d{1,2}):(\d\d)(?:\s+(\S+))?\s*", text)
        try:
            if not match:
                raise ValueError("no window")
            start = datetime.time(int(match[1]), int(match[2]))
            end = datetime.time(int(match[3]), int(match[4]))
            zone = zoneinfo.ZoneInfo(match[5]) if match[5] else None
        except (ValueError, zoneinfo.ZoneInfoNotFoundError, OSError):
            raise SteadyError(
                "bad_config",
                f'`{key}` must look like "22:00-07:00" or "22:00-07:00 Europe/Berlin".',
            ) from None
        return cls(start, end, zone)

    def is_open(self, moment: datetime.datetime) -> bool:
        """Is ``moment`` (aware) inside?"""
        if self.start is None or self.end is None:
            return True
        clock = moment.astimezone(self.zone).time().replace(tzinfo=None)
        if self.start < self.end:
            return self.start <= clock < self.end
        return clock >= self.start or clock < self.end


def span_words(seconds: float | None) -> str:
    """``0.4 s``, ``12 s``, ``3 min``, ``1 h 20 min``, ``2 days``."""
    if seconds is None:
        return ""
    if seconds < 10:
        return f"{max(seconds, 0):.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{round(hours / 24)} days"
