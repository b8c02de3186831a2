"""When bulk jobs may run: ``run_window: "22:00-07:00"``, with a time zone if wanted.

Pure arithmetic on clocks; knows nothing of jobs.
"""

import datetime
import re
import zoneinfo
from dataclasses import dataclass

from watcher.errors import SteadyError


@dataclass(frozen=True)
class RunWindow:
    """From ``start`` (included) to ``end`` (excluded), past midnight when end <= start.

    ``zone`` None is the machine's local time. No bounds: always open.
    """

    start: datetime.time | None = None
    end: datetime.time | None = None
    zone: datetime.tzinfo | None = None

    @classmethod
    def parse(cls, text: str | None) -> "RunWindow":
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
                '`run_window` must look like "22:00-07:00" or "22:00-07:00 Europe/Berlin".',
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
