"""The pictures a person chose: which are meant, in words, and the new jobs that are made of them.

Pure. Knows neither the record nor files.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from watcher.errors import ValueFault
from watcher.jobs import MAX_RATING, PICTURE_FIELDS, REJECTED, Job, JobRequest
from watcher.limits import Card
from watcher.pictures import recipe
from watcher.upscaling import USUAL_FACTOR

MOST_CHOSEN = 200  #: pictures that are given in one archive
#: What says how a picture was begun: one that is only made larger is begun with itself.
_BEGINNINGS = frozenset(PICTURE_FIELDS) | {
    *("strength", "resize", "mask_blur", "mask_invert", "mask_only", "mask_padding", "upscale"),
}
_RATINGS = re.compile(
    r"(?:rating)?\s*(?:(>=|<=|=|)\s*(-?\d)|(-?\d)?\s*\.\.\s*(-?\d)?|(-?\d)\s*\+|(rejected))",
    re.IGNORECASE,
)


def rating_range(text: str) -> tuple[int, int]:
    """The lowest and highest rating that ``4``, ``4..``, ``2..3``, ``>=4``, ``4+`` or ``rejected``
    means, also behind the word ``rating``.

    Raises SteadyError out_of_range.
    """
    found = _RATINGS.fullmatch(text.strip())
    if found is None or text.strip().lower() in ("", "rating", "..", "rating.."):
        allowed = "a rating from -1 (rejected) to 5, or several: 4.., 2..3, >=4"
        words = "`rating` is not understood."
        fault = ValueFault("out_of_range", words, key="rating", value=text[:60], allowed=allowed)
        raise fault.error()
    sign, one, low, high, least, rejected = found.groups()
    if rejected:
        return REJECTED, REJECTED
    if sign == "<=":
        return REJECTED, int(one)
    if sign == ">=" or least:
        return int(one or least), MAX_RATING
    if one:
        return int(one), int(one)
    return (REJECTED if low is None else int(low)), (MAX_RATING if high is None else int(high))


def size_said(text: str) -> str:
    """``1024x768``, which may be written ``1024 X 768`` or ``1024 × 768``, for :class:`JobFilter`.

    Raises SteadyError out_of_range.
    """
    found = re.fullmatch(r"\s*([0-9]{1,5})\s*[xX×*]\s*([0-9]{1,5})\s*", text)
    if found is None:
        words, allowed = "`size` is not understood.", "width and height: 1024x768"
        fault = ValueFault("out_of_range", words, key="size", value=text[:60], allowed=allowed)
        raise fault.error()
    return f"{int(found[1])}x{int(found[2])}"


def needs_new_seed(job: Job) -> bool:
    """Would the same seed fail in the same way?"""
    return job.error_code == "blank_picture"


def again_of(request: JobRequest, *, new_seed: bool = False) -> dict[str, Any]:
    """What a new job must say to make the same picture (or, with ``new_seed``, a sister of it)."""
    fields = recipe.again({"request": request.model_dump(mode="json")})
    return {k: v for k, v in fields.items() if not (new_seed and k == "seed")}


def begun_with(job: Job) -> dict[str, Any]:
    """What a new job must say to begin with the picture of ``job``, at its size."""
    width, height = job.request.final_size
    said = {k: v for k, v in again_of(job.request).items() if k not in _BEGINNINGS}
    return said | {"image": f"job:{job.id}", "width": width, "height": height}


def larger_of(job: Job) -> dict[str, Any]:
    """What a new job must say to make the picture of ``job`` larger, as it is."""
    return begun_with(job) | {"upscale": USUAL_FACTOR}


def made_of(
    jobs: Iterable[Job], given: Mapping[str, Any], *, new_seed: bool = False
) -> list[dict[str, Any]]:
    """One new job for each of ``jobs``, with the fields ``given`` put over what it said.

    On the same seeds, but with a ``count`` on new ones. An ``upscale`` alone enlarges the pictures
    that there are.
    """
    if given.keys() == {"upscale"}:
        return [{**larger_of(job), **given} for job in jobs]
    fresh = new_seed or "count" in given
    return [{**again_of(job.request, new_seed=fresh), **given} for job in jobs]


def smaller_size(request: JobRequest, card: Card) -> tuple[int, int] | None:
    """Half the sides, in steps of 16; None when that is less than the model makes."""
    width, height = ((side or 0) // 32 * 16 for side in (request.width, request.height))
    return (width, height) if min(width, height) >= card.min_side else None
