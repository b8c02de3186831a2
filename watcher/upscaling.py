"""How a picture is made larger: the field `upscale`, the size that comes of it, its tiles.

Pure: numbers alone. Sizes in pixels.
"""

import re
from collections.abc import Sequence
from typing import Annotated, Any, NotRequired

from pydantic import ConfigDict, Field, TypeAdapter
from typing_extensions import TypedDict

#: Methods that need no file. `refine`: Lanczos, then the model redraws it a little.
LANCZOS, REFINE = "lanczos", "refine"
MAX_LARGE_SIDE = 8192  #: of a picture that was made larger
USUAL_FACTOR, USUAL_STRENGTH = 2.0, 0.3
MIN_FACTOR, MAX_FACTOR = 1.5, 4.0
MULTIPLE = 16  #: pixels; what the sides of every picture must be multiples of


class Upscale(TypedDict):
    """How much larger, and by what: `lanczos`, `refine` or a file in `upscalers/`.

    `strength` and `tile` are those of `refine`: how far the model may go, and the side of
    what it draws at once. What is not said is filled in when the job is recorded.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)  # type: ignore[misc]

    factor: Annotated[float, Field(ge=MIN_FACTOR, le=MAX_FACTOR, allow_inf_nan=False)]
    method: NotRequired[Annotated[str, Field(min_length=1, max_length=200)]]
    strength: NotRequired[Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]]
    tile: NotRequired[Annotated[int, Field(ge=64, le=MAX_LARGE_SIDE, multiple_of=MULTIPLE)]]


UPSCALE_SCHEMA = {
    "anyOf": [
        {"type": "string", "examples": ["2", "2 lanczos", "1.5 refine 0.4"]},
        {"type": "number", "minimum": MIN_FACTOR, "maximum": MAX_FACTOR},
        TypeAdapter(Upscale).json_schema() | {"required": []},
    ]
}


def upscale_of(said: Any) -> Any:
    """``2``, ``2x``, ``"1.5 refine 0.4"`` or a mapping, as Upscale.

    What is none of them stays as it is, for the schema to refuse.
    """
    if isinstance(said, int | float) and not isinstance(said, bool):
        said = {"factor": said}
    elif isinstance(said, str):
        said = _of_words(said.replace(",", " ").split()) or said
    return {"factor": USUAL_FACTOR} | said if isinstance(said, dict) else said


def _of_words(words: Sequence[str]) -> dict[str, Any] | None:
    """A number above 1 is the factor, another the strength, a word the method; each once."""
    found: dict[str, Any] = {}
    for word in words:
        number = re.fullmatch(r"(\d{1,3}(?:\.\d{1,6})?)x?", word, re.ASCII)
        value = float(number[1]) if number else word
        name = "method" if isinstance(value, str) else "factor" if value > 1 else "strength"
        if name in found:
            return None
        found[name] = value
    return found


def enlarged(width: int, height: int, upscale: Upscale | None) -> tuple[int, int]:
    """The size a picture of ``width`` x ``height`` has in the end: multiples of 16."""
    if upscale is None:
        return width, height
    sides = (round(side * upscale["factor"] / MULTIPLE) * MULTIPLE for side in (width, height))
    return next(sides), next(sides)


def tiles_of(width: int, height: int, tile: int) -> list[tuple[int, int, int, int]]:
    """Boxes of at most ``tile`` a side that cover all, row by row; neighbours share at least
    :func:`overlap_of`."""
    return [
        (x, y, x + min(tile, width), y + min(tile, height))
        for y in _starts(height, tile)
        for x in _starts(width, tile)
    ]


def _starts(side: int, tile: int) -> list[int]:
    if side <= tile:
        return [0]
    count = -(-(side - tile) // (tile - overlap_of(tile))) + 1
    return [round((side - tile) * i / (count - 1)) for i in range(count)]


def overlap_of(tile: int) -> int:
    """Pixels over which a tile fades into the one before it."""
    return tile // 8
