"""A benchmark's line: what was measured, the figure, and the most it should be."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Line:
    """``figure`` in ``unit``; ``goal``: at most that, None where nothing was promised.

    ``beside``: figures that explain this one (quartiles, CPU time), as they should be read.
    """

    what: str
    figure: float
    unit: str
    goal: float | None = None
    beside: str = ""

    @property
    def met(self) -> bool | None:
        return None if self.goal is None else self.figure <= self.goal

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "figure": round(self.figure, 4), "met": self.met}

    def __str__(self) -> str:
        goal = "" if self.goal is None else f"<= {self.goal:g}"
        verdict = {True: "", False: "MISSED", None: ""}[self.met]
        return (
            f"  {self.what:<60}{self.figure:>9.2f} {self.unit:<3}{goal:>9}  {verdict:<7}{self.beside}"
        ).rstrip()


def percentile(values: list[float], share: float) -> float:
    """The value that ``share`` of them do not exceed."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]
