"""A batch's pictures at a glance: one picture of many small ones.

Made from the thumbnails, a page at a time, so memory does not grow with the batch. Changes
nothing in the outputs folder.
Knows nothing of the record.
"""

import io
import itertools
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw, UnidentifiedImageError

from watcher.jobs import Job
from watcher.pictures.outputs import Outputs

COLUMNS = 8
PICTURES = 64  #: on one sheet
CELL = 192  #: pixels a side
MOST_ACROSS = 16  #: columns of a matrix
_GAP = 8
_LINE = 48  #: pixels for the words above a matrix
_INK = (228, 228, 231)
_GROUND = (24, 24, 27)
_EMPTY = (48, 48, 54)  #: where a picture is not there (yet)


@dataclass(frozen=True)
class Grid:
    """A matrix laid out: its last name goes across, the others down."""

    across: tuple[str, ...]
    down: tuple[str, ...]

    @classmethod
    def of(cls, axes: Mapping[str, Sequence[Any]], most: int = MOST_ACROSS) -> "Grid | None":
        """None for no matrix, and for one that is too wide to be looked at."""
        words = [[f"{name}: {value}" for value in values] for name, values in axes.items()]
        if not words or len(words[-1]) > most:
            return None
        return cls(tuple(words[-1]), tuple(map(", ".join, itertools.product(*words[:-1]))))


def contact_sheet(
    outputs: Outputs, jobs: Sequence[Job], axes: Mapping[str, Sequence[Any]] | None = None
) -> bytes:
    """A JPEG with the pictures of ``jobs`` in order, at most PICTURES of them.

    A job without a picture leaves a grey square in its place, so places can be counted. A matrix
    (``axes`` of the batch) whose pictures are all of ``jobs`` is laid out as one, with its words.
    """
    shown = jobs[:PICTURES]
    grid = Grid.of(axes or {})
    if grid is not None and len(grid.across) * len(grid.down) > len(shown):
        grid = None
    columns = len(grid.across) if grid else min(COLUMNS, max(1, len(shown)))
    rows = max(1, -(-len(shown) // columns))
    step = CELL + _GAP
    left, top = (CELL, _LINE) if grid else (0, 0)
    size = (left + columns * step + _GAP, top + rows * step + _GAP)
    sheet = Image.new("RGB", size, _GROUND)
    if grid:
        write = ImageDraw.Draw(sheet).text
        for place, words in enumerate(grid.across):
            write((left + _GAP + place * step, _GAP), _fit(words), fill=_INK)
        for place, words in enumerate(grid.down):
            write((_GAP, top + _GAP + place * step), _fit(words), fill=_INK)
    for place, job in enumerate(shown):
        x, y = left + _GAP + place % columns * step, top + _GAP + place // columns * step
        small = _cell_picture(outputs, job)
        if small is None:
            sheet.paste(_EMPTY, (x, y, x + CELL, y + CELL))
        else:
            sheet.paste(small, (x + (CELL - small.width) // 2, y + (CELL - small.height) // 2))
    data = io.BytesIO()
    sheet.save(data, "JPEG", quality=85)
    return data.getvalue()


def _fit(words: str) -> str:
    """``words`` in lines that are no wider than a cell."""
    return "\n".join(textwrap.wrap(words, 28, max_lines=6, placeholder=" …"))


def _cell_picture(outputs: Outputs, job: Job) -> Image.Image | None:
    """The job's picture in at most CELL x CELL; from the picture itself without a thumbnail."""
    if not job.pictured:
        return None
    for path in (outputs.thumbnail(job), outputs.path(job)):
        try:
            with Image.open(path) as image:
                image.draft("RGB", (CELL, CELL))
                small = image.convert("RGB")
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
            continue
        small.thumbnail((CELL, CELL))
        return small
    return None
