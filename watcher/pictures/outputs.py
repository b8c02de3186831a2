"""The only writer of pictures: encoding, recipe, thumbnail, atomic publish.

A picture appears under its job's path whole or not at all, carries its job's id, and never
replaces a file. The order is: temporary file, fsync, publish, fsync of the folder,
thumbnail; only then may the record say ``completed``. A crash in between leaves a temporary
file (swept by :meth:`Outputs.open`) or a published picture, which :meth:`Outputs.adopt`
finds by the id inside it.

Knows nothing of the record, the queue or who made the pixels.
"""

import contextlib
import errno
import hashlib
import io
import logging
import math
import os
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from watcher import publish
from watcher.checkpoints import reached
from watcher.errors import SteadyError
from watcher.folder import Folder
from watcher.jobs import SUFFIXES, Job
from watcher.pictures.container import NotAPicture, exif_of, scan, xmp_of
from watcher.pictures.recipe import fitting, job_id_in, parameters_text, recipe_json

log = logging.getLogger(__name__)

#: How each format is written, by measurement (benchmarks/encoders.py: 1024 x 1024, one
#: core). PNG: level 1 with run-length matching takes 0.15 of the CPU of Pillow's default at
#: 0.97 of its size (photo-like; 0.29 at 1.07 without any grain). WebP: method 2 takes 0.4 of
#: the default method's CPU at the same size; method 0 would save 12 ms more for up to 25 %
#: more bytes. JPEG: full colour, and optimised tables: 9 ms instead of 4 for 6 to 17 % less.
ENCODERS: dict[str, dict[str, Any]] = {
    "png": {"format": "PNG", "compress_level": 1, "compress_type": 3},  # 3 = Z_RLE
    "webp": {"format": "WEBP", "quality": 92, "method": 2},
    "jpeg": {"format": "JPEG", "quality": 92, "subsampling": 0, "optimize": True},
}
THUMBNAIL_SIDE = 256  #: pixels, the longer one

_FORMATS = {suffix: name for name, suffix in SUFFIXES.items()}
_MARKER = ".steadydiffusion"
_BAD_NAME = {errno.ENAMETOOLONG, errno.EILSEQ, errno.ELOOP, errno.EINVAL}
_OURS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}  #: no fault of the folder


class NameTaken(FileExistsError):
    """Somebody else's file has the job's path; it was left as it is. Give the job a new name."""


@dataclass(frozen=True)
class Saved:
    """One published picture: ``bytes`` and ``sha256`` of the file, sides in pixels."""

    sha256: str
    bytes: int
    width: int
    height: int


class Outputs:
    """The pictures below one folder. Safe for several threads; one process writes at a time.

    The steps of a save are ``tmp_written``, ``linked``, ``folder_synced``, ``thumbnail_written``.
    ``ways`` are the ways to publish.

    Every method that touches the disk raises SteadyError ``disk_full`` or ``folder_gone``
    for trouble the queue should wait out, and ``bad_name`` for a path no picture can have.
    """

    def __init__(
        self,
        folder: Path,
        *,
        embed_metadata: bool = True,
        ways: tuple[publish.Way, ...] = publish.WAYS,
    ) -> None:
        self._folder = folder
        self._tmp = folder / ".tmp"
        self._embed = embed_metadata
        self._ways = tuple(self._marked(way) for way in ways)
        self._place = Folder(folder, name="outputs folder", mark=_MARKER)
        self._synced: set[Path] = set()  #: folders whose own names are known to be durable

    def open(self, expected: str | None = None) -> str:
        """Make ready: folders, marker, temporary files of a crash swept. Returns the marker.

        The marker tells this folder from the bare mount point below it. A caller that kept
        the marker of last time passes it as ``expected``: then an existing folder without any
        is not written to (``folder_gone``); a folder that is gone altogether is made anew.
        """
        with _disk_errors():
            self._place.found(first=expected is None)
            self.check()
            for left in self._tmp.iterdir():
                if not left.is_dir() or left.is_symlink():
                    left.unlink(missing_ok=True)
            return (self._place.text or b"").decode("ascii", "replace")

    def check(self) -> None:
        """Is the folder there, writable, and still the one opened? ``folder_gone`` if not.

        An emptied folder on the same disk, seen through the same mount, is taken on again;
        another one under the same name (an unmounted disk) is not.
        """
        with _disk_errors():
            if self._place.visit():
                self._synced.clear()
                self._place.settle()
            for folder in (self._tmp, self._folder / ".thumbs"):
                _make(folder)
            if not os.access(self._folder, os.W_OK):
                raise SteadyError("folder_gone", "The outputs folder cannot be written.")

    def free_bytes(self) -> int:
        """Bytes that may still be written; 0 when there is no room for another file name."""
        with _disk_errors():
            space = os.statvfs(self._folder)
        if space.f_files and not space.f_favail:
            return 0
        return space.f_bavail * space.f_frsize

    def path(self, job: Job) -> Path:
        """Where the job's picture lies, or will.

        ``bad_name`` unless that is inside the folder, and in no folder it asked for that is a file.
        """
        parts = job.path.split("/")
        suffix = os.path.splitext(parts[-1])[1]
        if len(parts) > 8 or suffix not in _FORMATS or not all(map(_is_plain_segment, parts)):
            raise SteadyError("bad_name", "The picture's path cannot be used.")
        final = self._folder.joinpath(*parts)
        with _disk_errors():
            inside = Path(os.path.realpath(final.parent)).is_relative_to(
                os.path.realpath(self._folder)
            )
        if not inside:
            words = f"`{job.folder}` leads out of the outputs folder."
            raise SteadyError("bad_name", words, remedy="Put a folder there in place of the link.")
        asked = job.request.folder is not None  # the day's folder is all jobs' trouble: they wait
        for level in final.parents[: len(parts) - 1] if asked else ():
            if level.is_file():
                words = f"`{level.name}` is a file, and a folder is needed."
                raise SteadyError("bad_name", words, remedy="Move it away, and run the job again.")
        return final

    def thumbnail(self, job: Job) -> Path:
        """Where the job's thumbnail lies: WebP, at most 256 px a side."""
        if not re.fullmatch(r"[0-9A-Za-z][0-9A-Za-z-]{1,63}", job.id):
            raise SteadyError("bad_name", "The job's id cannot be used in a path.")
        return self._folder / ".thumbs" / job.id[:2] / f"{job.id}.webp"

    def save(self, job: Job, image: Image.Image, recipe: Mapping[str, Any]) -> Saved:
        """Publish the picture of ``job`` at its path, durable when this returns.

        ``recipe`` is what :func:`watcher.pictures.recipe.recipe_of` gave; with ``embed_metadata``
        off only the job's id is put in. When a picture of this very job is there already
        (a crash after publishing), that one is kept and described. Raises NameTaken when
        anything else has the path.

        A crash leaves a temporary file or the published picture, never half of one.
        """
        final = self.path(job)
        data = encode(image, _FORMATS[final.suffix], recipe if self._embed else {"job_id": job.id})
        temporary = self._tmp / f"{job.id}.{job.attempt}{final.suffix}"
        with _disk_errors():
            self.check()
            self._make_folder(final.parent)
            try:
                temporary.unlink(missing_ok=True)
                publish.write_synced(temporary, data)
                reached("tmp_written")
                publish.publish(temporary, final, ways=self._ways)
                reached("folder_synced")
            except FileExistsError:
                self._discard(temporary)
                adopted = self.adopt(job)
                if adopted is None:
                    raise NameTaken(errno.EEXIST, "the name is taken", str(final)) from None
                return adopted
            except OSError:
                self._discard(temporary)
                raise
        self._save_thumbnail(job, image)
        return Saved(hashlib.sha256(data).hexdigest(), len(data), *image.size)

    def adopt(self, job: Job) -> Saved | None:
        """The picture of ``job`` that a crash left published but not recorded, or None.

        Only a whole regular file of the right format and size with this job's id inside
        counts; links, pipes, folders and strangers' files are not followed, waited for or
        touched. Makes the names durable and mends the thumbnail.
        """
        final = self.path(job)
        data = _read_regular(final, self._most(job))
        if data is None:
            return None
        try:
            picture = scan(data)
        except NotAPicture:
            return None
        size = (picture.width, picture.height)
        if (
            job_id_in(picture) != job.id
            or picture.format != _FORMATS[final.suffix]
            or size != job.request.final_size
        ):
            return None
        if not self._has_thumbnail(job):
            image = _decode(data, picture.format)
            if image is None:
                return None
            self._save_thumbnail(job, image)
        with _disk_errors():
            self._make_folder(final.parent)
            publish.sync_folder(final.parent)
        return Saved(hashlib.sha256(data).hexdigest(), len(data), *size)

    def delete(self, job: Job) -> bool:
        """Remove the job's picture and thumbnail, durably; was there a picture?"""
        final = self.path(job)
        with _disk_errors():
            self.check()
            self.thumbnail(job).unlink(missing_ok=True)
            try:
                final.unlink()
            except FileNotFoundError:
                return False
            publish.sync_folder(final.parent)
            return True

    # -- inside

    def _marked(self, way: publish.Way) -> publish.Way:
        def marked(temporary: Path, final: Path) -> None:
            way(temporary, final)
            reached("linked")

        return marked

    def _most(self, job: Job) -> int:
        """No picture of this job is larger than its raw pixels and a long recipe."""
        return 4 * math.prod(job.request.final_size) + 2_000_000

    def _make_folder(self, folder: Path) -> None:
        """Make ``folder`` and see to it that every name down to it survives a power cut."""
        for level in [*reversed(folder.relative_to(self._folder).parents), None]:
            path = folder if level is None else self._folder / level
            if path == self._folder or (path in self._synced and path.is_dir()):
                continue
            _make(path)
            publish.sync_folder(path.parent)
            self._synced.add(path)

    def _save_thumbnail(self, job: Job, image: Image.Image) -> None:
        """Small, made anew at need, so not synced; trouble with it costs no picture."""
        path = self.thumbnail(job)
        temporary = self._tmp / f"{job.id}.{job.attempt}.thumb"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(thumbnail_of(image))
            os.replace(temporary, path)
        except OSError as error:
            self._discard(temporary)
            log.warning(
                "thumbnail not written: %s",
                error.strerror,
                extra={"action": "thumbnail_failed", "job_id": job.id},
            )
        else:
            reached("thumbnail_written")

    def _has_thumbnail(self, job: Job) -> bool:
        data = _read_regular(self.thumbnail(job), 2_000_000)
        try:
            return data is not None and scan(data).format == "webp"
        except NotAPicture:
            return False

    def _discard(self, temporary: Path) -> None:
        with contextlib.suppress(OSError):
            temporary.unlink()


def encode(image: Image.Image, format: str, recipe: Mapping[str, Any]) -> bytes:
    """The file of ``image``: ``png`` (pixels exact), ``webp`` or ``jpeg``, recipe inside.

    ``recipe`` may be the whole one or just ``{"job_id": …}``, which then is all that is put
    in. The same image and recipe give the same bytes.
    """
    recipe = fitting(recipe)
    plain = image if image.mode == "RGB" and not image.info else _bare(image)
    parameters = parameters_text(recipe) if "request" in recipe else None
    options = dict(ENCODERS[format])
    if format == "png":
        texts = PngImagePlugin.PngInfo()
        if parameters is not None:
            texts.add_text("parameters", parameters)
        texts.add_text("steadydiffusion", recipe_json(recipe))
        options["pnginfo"] = texts
    else:
        options["xmp"] = xmp_of(recipe_json(recipe))
        if parameters is not None:
            options["exif"] = exif_of(parameters)
    file = io.BytesIO()
    plain.save(file, **options)
    return file.getvalue()


def thumbnail_of(image: Image.Image) -> bytes:
    """``image`` as WebP, at most 256 px a side, nothing else inside."""
    small = _bare(image)
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), reducing_gap=2.0)
    file = io.BytesIO()
    small.save(file, format="WEBP", quality=80, method=2)
    return file.getvalue()


def _bare(image: Image.Image) -> Image.Image:
    """A copy that holds pixels only: whatever an engine hung on the picture stays out."""
    copy = image.convert("RGB") if image.mode != "RGB" else image.copy()
    copy.info = {}
    return copy


def _make(folder: Path) -> None:
    """A folder, unless it is there; ``folder_gone`` when something else has its name."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise SteadyError(
            "folder_gone",
            f"`{folder.name}` is a file, and a folder is needed.",
            remedy="Move it away; the queue goes on by itself.",
        ) from None


def _is_plain_segment(part: str) -> bool:
    """May this be one segment of a path of ours?"""
    if not part or part.startswith(".") or re.search(r'[\x00-\x1f\x7f/\\:*?"<>|]', part):
        return False
    try:
        return len(part.encode()) <= 250
    except UnicodeEncodeError:
        return False


def _read_regular(path: Path, most: int) -> bytes | None:
    """A regular file of at most ``most`` bytes; None for anything else, without waiting."""
    try:
        with publish.open_regular(path) as file:
            data = file.read(most + 1)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.ENAMETOOLONG, errno.EOPNOTSUPP):
            return None  # a link, a pipe or socket: not ours
        raise _error_of(error) from error
    return data if len(data) <= most else None


def _decode(data: bytes, format: str) -> Image.Image | None:
    """The pixels of a picture of known, checked size; None when they are damaged."""
    try:
        with Image.open(io.BytesIO(data), formats=[ENCODERS[format]["format"]]) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error):
        return None


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    """Turn what the disk says into what the queue understands."""
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        raise _error_of(error) from error


def _error_of(error: OSError) -> Exception:
    if error.errno in _OURS:
        return error
    if error.errno in _BAD_NAME:
        return SteadyError("bad_name", f"The picture cannot have this name: {error.strerror}.")
    return publish.disk_trouble(error, "The outputs folder cannot be used")
