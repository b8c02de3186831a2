"""What the page shows, made from what there is: rows, days, sizes, what a gallery is narrowed to. Pure."""

import datetime
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass

from api.paging import moment_bound, without_nul
from watcher.jobs import Card, Job, JobState
from watcher.store import JobFilter


@dataclass(frozen=True)
class RunningRow:
    """A job that was handed out. ``step`` None: no word of it yet; ``preview``: the step that the
    last one shows."""

    job: Job
    step: int | None
    steps: int
    left: float | None
    preview: int | None

    @property
    def percent(self) -> int:
        """0..99: it is 100 when the picture is there."""
        return min(99, round(100 * (self.step or 0) / self.steps))


@dataclass(frozen=True)
class Chosen:
    """What the gallery is narrowed to, as the address says it."""

    text: str
    state: str
    day: str
    batch: str
    cursor: str | None

    @property
    def filter(self) -> JobFilter:
        """Raises SteadyError out_of_range for a day that is none."""
        state = self.state if self.state in {s.value for s in JobState} else ""
        return JobFilter(
            state=JobState(state) if state and state != "completed" else None,
            pictured=state in ("", "completed"),
            text=without_nul(self.text.strip()) or None,
            since=moment_bound("day", self.day) if self.day else None,
            until=moment_bound("day", self.day, end=True) if self.day else None,
            ticket=without_nul(self.batch) or None,
        )

    @property
    def narrowed(self) -> bool:
        """Is anything but the usual chosen?"""
        return bool(self.text or self.day or self.batch or self.state not in ("", "completed"))

    def address(self, cursor: str | None) -> str:
        """The page of the same choice that begins after ``cursor``."""
        members = {
            "text": self.text,
            "state": self.state,
            "day": self.day,
            "batch": self.batch,
            "cursor": cursor,
        }
        query = urllib.parse.urlencode({k: v for k, v in members.items() if v})
        return f"/pictures?{query}" if query else "/pictures"


def by_day(jobs: Sequence[Job]) -> list[tuple[int, list[Job]]]:
    """Jobs in their order, cut at local midnights: (the first one's time, jobs)."""
    days: list[tuple[int, list[Job]]] = []
    last: datetime.date | None = None
    for job in jobs:
        date = datetime.datetime.fromtimestamp(job.created_at // 1_000_000).date()
        if date != last:
            days.append((job.created_at, []))
            last = date
        days[-1][1].append(job)
    return days


def sizes_of(card: Card) -> list[tuple[int, int, str]]:
    """A few sizes the model makes well: its own, then upright, lying and small ones."""
    width, height = card.default_width, card.default_height
    short = _step(min(width, height) * 3 / 4)
    wanted = [
        (width, height, "square" if width == height else "default"),
        (short, max(width, height), "upright"),
        (max(width, height), short, "wide"),
        (_step(width / 2), _step(height / 2), "small"),
    ]
    found: list[tuple[int, int, str]] = []
    for w, h, name in wanted:
        fits = min(w, h) >= card.min_side and max(w, h) <= card.max_side
        if fits and w * h <= card.max_pixels and all((w, h) != (a, b) for a, b, _ in found):
            found.append((w, h, name))
    return found


def _step(side: float) -> int:
    return max(16, int(side) // 16 * 16)
