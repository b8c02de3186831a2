"""A ``.zip`` that holds one job file and the pictures it names.

Its table of contents is judged before anything is unpacked, and nothing is ever unpacked to the
disk: an entry is read when it is asked for, into memory, up to what the table promised.
"""

import io
import os
import stat
import zipfile
import zlib

from watcher.errors import SteadyError
from watcher.suffixes import (
    FORMS,
    INPUT_SUFFIXES,
    LINE_SUFFIXES,
    MAX_PICTURE,
    PICTURE_SUFFIXES,
    suffix_of,
)

MAX_BUNDLE = 256 << 20  #: bytes of the file
_MAX_ENTRIES = 5000
_MAX_UNPACKED = 2 << 30  #: bytes of all entries
#: What to do with a table that is too long here, where all of it is read before anything is recorded.
ALONE = "Drop the table by itself, and put the pictures it names below inputs/."
_READ = FORMS.keys() - PICTURE_SUFFIXES - {".zip"}
_BROKEN = (OSError, ValueError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile,
           zlib.error)  # fmt: skip


class Bundle:
    """An opened ``.zip``. Names are as the job file says them: from its own folder.

    Raises SteadyError bad_bundle for what is none, or none that may be opened.
    """

    def __init__(self, data: bytes) -> None:
        # Counted before they take memory: with folders, and what is put beside people's files.
        if data.count(b"PK\x01\x02") > 4 * _MAX_ENTRIES:
            raise _too_much()
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(data))
            entries = [each for each in self._zip.infolist() if not _aside(each)]
        except _BROKEN:
            raise SteadyError("bad_bundle", "The file is no .zip, or it is damaged.") from None
        if len(entries) > _MAX_ENTRIES or sum(e.file_size for e in entries) > _MAX_UNPACKED:
            raise _too_much()
        for each in entries:
            _check(each)
        jobs = [each for each in entries if suffix_of(each.filename) in _READ]
        if len(jobs) != 1:
            raise SteadyError("bad_bundle", f"The .zip holds {len(jobs)} job files; one is read.")
        self._job = jobs[0]
        self.suffix = suffix_of(self._job.filename)
        beside = len(os.path.dirname(self._job.filename))
        begin = self._job.filename[: beside + 1] if beside else ""
        self._entries = {each.filename.removeprefix(begin): each for each in entries}
        if len(self._entries) < len(entries):
            raise SteadyError("bad_bundle", "Two entries of the .zip have the same name.")

    @property
    def names(self) -> list[str]:
        """Of the pictures in it."""
        return [name for name in self._entries if suffix_of(name) in INPUT_SUFFIXES]

    def job(self, most: int) -> bytes:
        """The job file. SteadyError too_large for one of more than ``most`` bytes."""
        return self._read(self._job, most, ALONE if self.suffix in LINE_SUFFIXES else "")

    def picture(self, name: str) -> bytes | None:
        """The bytes of the picture ``name``; None when there is none."""
        entry = self._entries.get(name) if suffix_of(name) in INPUT_SUFFIXES else None
        return None if entry is None else self._read(entry, MAX_PICTURE)

    def _read(self, entry: zipfile.ZipInfo, most: int, remedy: str = "") -> bytes:
        if entry.file_size > most:
            words = f"{entry.filename[-60:]} in the .zip has more than {most:,} bytes."
            raise SteadyError("too_large", words, remedy=remedy)
        try:
            with self._zip.open(entry) as file:
                data = file.read(most + 1)
        except _BROKEN:
            raise SteadyError(
                "bad_bundle", f"{entry.filename[-60:]} in the .zip is damaged."
            ) from None
        return data


def _aside(entry: zipfile.ZipInfo) -> bool:
    """Folders, and what systems put beside people's files."""
    parts = entry.filename.split("/")
    return entry.is_dir() or parts[0] == "__MACOSX" or parts[-1].startswith(".")


def _check(entry: zipfile.ZipInfo) -> None:
    """What may not be opened spoils the whole bundle: it was packed with a purpose."""
    name = entry.filename
    shown = name[-60:]
    if entry.flag_bits & 1:
        raise SteadyError("bad_bundle", f"{shown} in the .zip is encrypted.")
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise SteadyError("bad_bundle", f"{shown} in the .zip is a link.")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise SteadyError(
            "bad_bundle", f"{shown} in the .zip is packed by another method than deflate."
        )
    if not name.isprintable() or "\\" in name or not all(
        part.strip(". ") for part in name.split("/")
    ):  # fmt: skip
        raise SteadyError("bad_bundle", f"The name {shown!r} in the .zip cannot be used.")


def _too_much() -> SteadyError:
    words = f"The .zip holds more than {_MAX_ENTRIES} entries or {_MAX_UNPACKED >> 30} GiB."
    return SteadyError("bad_bundle", words)
