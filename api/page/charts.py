"""The small bar charts of the system page: the last hours, one bar each. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from api.page import paint
from watcher.pace import span_words

HOUR = 3_600_000_000  #: microseconds


def hour_of(us: int) -> int:
    """The beginning of the hour ``us`` (microseconds UTC) lies in."""
    return us // HOUR * HOUR


@dataclass(frozen=True)
class Plot:
    """A small bar chart: one bar an hour, heights in a box 40 high."""

    title: str
    top: str
    bars: tuple[tuple[int, float, float, str], ...]  #: (x, y, height, words)


def plots_of(hours: Sequence[Any], first: int) -> list[Plot]:
    """Pictures, waiting and running time of each hour, ready to be drawn."""

    def plot(title: str, values: list[float], words: Any) -> Plot:
        top = max(values, default=0.0)
        bars = []
        for n, value in enumerate(values):
            high = round(38 * value / top, 1) if top else 0.0
            high = max(high, 1.0) if value else 0.0
            bars.append(
                (n * 10, 40 - high, high, f"{paint.when(first + n * HOUR)}: {words(value)}")
            )
        return Plot(title, words(top) if top else "", tuple(bars))

    return [
        plot("Pictures an hour", [float(h.pictures) if h else 0.0 for h in hours],
             lambda v: paint.count(int(v), "picture")),
        plot("Waiting time", [h.wait if h else 0.0 for h in hours], span_words),
        plot("Time for one picture", [h.run if h else 0.0 for h in hours], span_words),
    ]  # fmt: skip
