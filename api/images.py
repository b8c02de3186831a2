"""A picture as an answer: found in the record, opened inside outputs/, cached for good.

Names never become paths here: a path comes from the record, and every step of it is opened
without following links, so nothing outside outputs/ can be served whatever lies inside.
Changes nothing.
"""

import contextlib
import itertools
import os
import re
import stat
import sys
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from api.door import Door
from api.errors import documented
from api.guard import ASKED, FOR_GOOD
from watcher.errors import SteadyError
from watcher.jobs import Job, JobState
from watcher.pictures.container import NotAPicture, strip
from watcher.results import zip_pieces

TYPES = {"png": "image/png", "webp": "image/webp", "jpeg": "image/jpeg"}
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_CHUNK = 256 * 1024
_RANGE = re.compile(r"bytes=(?:(\d{1,18})-(\d{0,18})|-(\d{1,18}))")

_HEADERS = {
    "ETag": {"schema": {"type": "string"}, "description": "the file's sha256"},
    "Cache-Control": {"schema": {"type": "string"}},
    "Content-Disposition": {"schema": {"type": "string"}},
}


def binary(media: str, words: str) -> dict[str, Any]:
    """OpenAPI's answer of bytes of one type."""
    return {"description": words, "content": {media: _BINARY}}


_CONTENT = dict.fromkeys(TYPES.values(), _BINARY)

#: OpenAPI's responses of every route that serves a picture.
DOCUMENTED: dict[int | str, dict[str, Any]] = documented(
    "job_not_found", "image_not_found", "image_not_ready", "image_deleted", "range_not_satisfiable"
) | {
    200: {"description": "The picture.", "content": _CONTENT, "headers": _HEADERS},
    206: {"description": "The part of it that was asked for.", "content": _CONTENT},
    304: {"description": "You have it already (If-None-Match)."},
}


class RangeNotSatisfiable(SteadyError):
    """416, with the size there is."""

    def __init__(self, size: int) -> None:
        super().__init__("range_not_satisfiable")
        self.headers = {"Content-Range": f"bytes */{size}"}


def open_inside(folder: Path, relative: str) -> BinaryIO:
    """The regular file ``relative`` below ``folder``, opened without following a link; close it.

    Raises SteadyError image_not_found for anything else.
    """
    parts = relative.split("/")
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise SteadyError("image_not_found")
    try:
        fd = _walk(folder, parts)
    except (OSError, ValueError):
        raise SteadyError("image_not_found", "The picture's file is not there.") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise SteadyError("image_not_found", "The picture's file is not there.")
    return os.fdopen(fd, "rb")


def _walk(folder: Path, parts: list[str]) -> int:
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    here = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts[:-1]:
            below = os.open(part, flags | os.O_DIRECTORY, dir_fd=here)
            os.close(here)
            here = below
        return os.open(parts[-1], flags, dir_fd=here)
    finally:
        os.close(here)


def check_ready(job: Job) -> None:
    """Raises SteadyError image_deleted (410) or image_not_ready (400, says why)."""
    if job.deleted_at is not None:
        raise SteadyError("image_deleted")
    if job.state is not JobState.COMPLETED:
        words = {
            JobState.QUEUED: "The picture is not ready: the job is waiting.",
            JobState.GENERATING: "The picture is not ready: it is being made.",
            JobState.FAILED: "There is no picture: the job failed.",
            JobState.CANCELLED: "There is no picture: the job was cancelled.",
        }
        raise SteadyError("image_not_ready", words[job.state])


def picture(
    door: Door, job: Job, request: Request, *, fixed: bool = True, download: bool = False
) -> Response:
    """The picture of ``job``. ``fixed``: this address means this picture for ever."""
    check_ready(job)
    file = open_inside(door.outputs, job.path)
    headers = _kept_as(job.path, fixed=fixed, download=download)
    return _open_file(request, file, _media_of(job), f'"{job.sha256}"', headers)


def bare(door: Door, job: Job, *, download: bool = False) -> Response:
    """The picture of ``job`` without its recipe: the same pixels, nothing about their making."""
    try:
        stripped = strip(picture_bytes(door, job))
    except NotAPicture:
        raise SteadyError("image_not_found", "The picture's file is damaged.") from None
    headers = _kept_as(job.path, fixed=False, download=download)
    return Response(stripped, media_type=_media_of(job), headers=headers)


def _media_of(job: Job) -> str:
    return TYPES.get(job.request.format or "", "image/png")


def _kept_as(path: str, *, fixed: bool, download: bool = False) -> dict[str, str]:
    """Headers that say how long a picture is kept by who asked, and under which name."""
    kind, name = "attachment" if download else "inline", path.rpartition("/")[2]
    return {
        "Cache-Control": FOR_GOOD if fixed else ASKED,
        "Content-Disposition": disposition(kind, name),
    }


def picture_bytes(door: Door, job: Job) -> bytes:
    """The picture's file. Raises SteadyError image_deleted, image_not_found."""
    check_ready(job)
    with open_inside(door.outputs, job.path) as file:
        return file.read()


def thumbnail(door: Door, job: Job, request: Request) -> Response:
    """The small WebP of ``job`` (256 px); the picture itself while there is none."""
    check_ready(job)
    relative = f".thumbs/{job.id[:2]}/{job.id}.webp"
    try:
        file = open_inside(door.outputs, relative)
    except SteadyError:
        return picture(door, job, request, fixed=False)
    headers = _kept_as(relative, fixed=True)
    return _open_file(request, file, "image/webp", f'"{job.sha256}-256"', headers)


def _open_file(
    request: Request, file: BinaryIO, media: str, etag: str, headers: dict[str, str]
) -> Response:
    """The file, or the part of it that was asked for; nothing where the caller has it."""
    headers = headers | {"ETag": etag, "Accept-Ranges": "bytes"}
    with contextlib.ExitStack() as stack:
        stack.enter_context(file)
        if _has(request.headers.get("if-none-match"), etag):
            return Response(status_code=304, headers=headers)
        size = os.fstat(file.fileno()).st_size
        start, end = 0, size
        asked = request.headers.get("range")
        if asked and request.headers.get("if-range", etag) == etag:
            start, end = _range(asked, size)
        part = (start, end) != (0, size)
        if part:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        headers["Content-Length"] = str(end - start)
        stack.pop_all()
    pieces, status = sent_pieces(file, start, end), 206 if part else 200
    if end - start <= _CHUNK:  # as most are: no further thread is asked for it
        return Response(b"".join(pieces), status, headers, media)
    return StreamingResponse(pieces, status, headers, media)


def sent_pieces(file: BinaryIO, start: int = 0, end: int = sys.maxsize) -> Iterator[bytes]:
    """The bytes of an open file up to ``end``, read as they are sent; closes it.

    Of a file that became shorter meanwhile there are fewer, which ends the connection.
    """
    with file:
        file.seek(start)
        while piece := file.read(min(_CHUNK, end - file.tell())):
            yield piece


def _has(header: str | None, etag: str) -> bool:
    """Does If-None-Match name ``etag``? (Weakly compared, as RFC 9110 says.)"""
    if header is None:
        return False
    given = [part.strip().removeprefix("W/") for part in header.split(",")]
    return "*" in given or etag in given


def _range(header: str, size: int) -> tuple[int, int]:
    """The bytes asked for, end excluded. Several ranges or nonsense: the whole, as RFC 9110 allows."""
    match = _RANGE.fullmatch(header.strip().lower().replace(" ", ""))
    if not match:
        return 0, size
    first, last, suffix = match.groups()
    if suffix is not None:
        start, end = max(0, size - int(suffix)), size
    else:
        start = int(first)
        end = min(size, int(last) + 1) if last else size
        if last and int(last) < start:
            return 0, size
    if start >= end:
        raise RangeNotSatisfiable(size)
    return start, end


def disposition(kind: str, filename: str) -> str:
    """A Content-Disposition: ``kind`` is inline or attachment, ``filename`` any text."""
    plain = filename.encode("ascii", "ignore").decode()
    if plain == filename:
        return f'{kind}; filename="{filename}"'
    quoted = urllib.parse.quote(filename, safe="")
    return f"{kind}; filename*=UTF-8''{quoted}"


# -- many in one file


def archive(
    door: Door,
    jobs: Iterator[Job],
    name: str,
    none: str,
    table: tuple[str, Iterator[bytes]] | None = None,
) -> Response:
    """The pictures of ``jobs`` as ``<name>.zip``, then ``table`` (name, pieces), as they are read.

    Raises SteadyError image_not_ready, in the words ``none``, when there are no jobs.
    """
    first = next(jobs, None)
    if first is None:
        raise SteadyError("image_not_ready", none)
    pieces = zip_pieces(_opened_pictures(door, itertools.chain([first], jobs)), table)
    return StreamingResponse(
        itertools.takewhile(lambda _: not door.stopping, pieces),
        media_type="application/zip",
        headers={"Content-Disposition": disposition("attachment", f"{name}.zip")},
    )


def _opened_pictures(door: Door, jobs: Iterator[Job]) -> Iterator[tuple[Job, BinaryIO]]:
    """Each job with its picture's file. Those taken away by hand since are left out."""
    for job in jobs:
        with contextlib.suppress(SteadyError), open_inside(door.outputs, job.path) as file:
            yield job, file
