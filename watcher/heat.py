"""How hot the graphics cards are, by their vendor's own library where it is installed.

Only asks, so a crash leaves nothing. Knows no jobs.
"""

import contextlib
import importlib
from typing import Any

_NO_THERMOMETER = (
    "`max_temperature` is set, but nobody can tell how hot a card is here"
    " (`pip install 'steadydiffusion[care]'`)."
)


def hottest_card() -> int | None:
    """Degrees Celsius of the hottest card of this machine; None where nobody can tell."""
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return None
    with contextlib.suppress(nvml.NVMLError):  # no driver, no card, or one that does not tell
        nvml.nvmlInit()
        cards = [nvml.nvmlDeviceGetHandleByIndex(n) for n in range(nvml.nvmlDeviceGetCount())]
        told = (nvml.nvmlDeviceGetTemperature(card, nvml.NVML_TEMPERATURE_GPU) for card in cards)
        return max(map(int, told), default=None)
    return None


class Heat:
    """Is a card too hot for the next job? It goes on by itself when that has cooled.

    ``most``: degrees Celsius that are too many; None: no number is. Attributes: ``hot``, as of the
    last look, and ``notices``, what is to be said of it.
    """

    def __init__(self, most: int | None) -> None:
        self._most = most
        self.hot = False
        self.notices: list[str] = []

    def look(self) -> None:
        """Ask the cards."""
        if (most := self._most) is None:
            return
        heat = hottest_card()
        self.hot = heat is not None and heat >= most
        words = f"A card has {heat} °C: the next job begins below {most} °C."
        self.notices = [words] if self.hot else [_NO_THERMOMETER] if heat is None else []
