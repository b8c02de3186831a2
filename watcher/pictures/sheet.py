"""A batch's pictures at a glance: one picture of many small ones.

Made from the thumbnails, a page at a time, so memory does not grow with the batch. Changes
nothing in the outputs folder.
Knows nothing of the record.
"""

import io
from collections.abc import Sequence

from PIL import Image, UnidentifiedImageError

from watcher.jobs import Job, JobState
from watcher.pictures import Outputs

COLUMNS = 8
PICTURES = 64  #: on one sheet
CELL = 192  #: pixels a side
_GAP = 8
_GROUND = (24, 24, 27)
_EMPTY = (48, 48, 54)  #: where a picture is not there (yet)


def contact_sheet(outputs: Outputs, jobs: Sequence[Job]) -> bytes:
    """A JPEG with the pictures of ``jobs`` in order, at most PICTURES of them.

    A job without a picture leaves a grey square in its place, so places can be counted.
    """
    shown = jobs[:PICTURES]
    columns = min(COLUMNS, max(1, len(shown)))
    rows = max(1, -(-len(shown) // columns))
    step = CELL + _GAP
    sheet = Image.new("RGB", (columns * step + _GAP, rows * step + _GAP), _GROUND)
    for place, job in enumerate(shown):
        x, y = _GAP + place % columns * step, _GAP + place // columns * step
        small = _cell_picture(outputs, job)
        if small is None:
            sheet.paste(_EMPTY, (x, y, x + CELL, y + CELL))
        else:
            sheet.paste(small, (x + (CELL - small.width) // 2, y + (CELL - small.height) // 2))
    data = io.BytesIO()
    sheet.save(data, "JPEG", quality=85)
    return data.getvalue()


def _cell_picture(outputs: Outputs, job: Job) -> Image.Image | None:
    """The job's picture in at most CELL x CELL; from the picture itself without a thumbnail."""
    if job.state is not JobState.COMPLETED or job.deleted_at is not None:
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
