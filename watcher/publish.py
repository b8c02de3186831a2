"""How a file appears: whole or not at all, and never over another one.

``publish`` is the one primitive behind every file this product makes for somebody else to
see: pictures, submitted job files, sidecars. Knows nothing of jobs.

A crash before it leaves a temporary file (swept at start), after it the final file.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from watcher.errors import SteadyError

_RENAME_NOREPLACE = 1
_AT_FDCWD = -100

#: What link() and renameat2() answer on file systems that do not know them (SMB, exFAT, FUSE).
_UNKNOWN = {
    errno.EPERM,
    errno.ENOSYS,
    errno.EINVAL,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.EMLINK,
    errno.EXDEV,
    errno.EACCES,
}

#: What reading a file answers where nothing is wrong but with that file, or its name.
_OF_A_FILE = {
    errno.EACCES,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.ENXIO,
    errno.EPERM,
}


def write_synced(path: Path, data: bytes | Iterable[bytes], *, mode: int = 0o644) -> None:
    """Create ``path`` (it must not exist) with ``data``, whole or in pieces, and flush it.

    Raises FileExistsError, OSError. A crash in here leaves a partial file under this name,
    so ``path`` is always a temporary one.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(fd, "wb") as file:
        file.writelines([data] if isinstance(data, bytes) else data)
        file.flush()
        sync_fd(file.fileno())


def sync_fd(fd: int) -> None:
    """fsync, tolerating file systems that do not know it."""
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF):
            raise


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable (a no-op where folders cannot be opened)."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    except PermissionError:
        return
    try:
        sync_fd(fd)
    finally:
        os.close(fd)


def by_link(temporary: Path, final: Path) -> None:
    """A hard link refuses an existing name in one step; the temporary name is still there."""
    os.link(temporary, final, follow_symlinks=False)


def by_rename(temporary: Path, final: Path) -> None:
    """Linux renameat2 with RENAME_NOREPLACE, for file systems without hard links."""
    import ctypes  # every command imports this module, and few file systems need it

    libc = ctypes.CDLL(None, use_errno=True)
    call = getattr(libc, "renameat2", None)
    if call is None:
        raise OSError(errno.ENOSYS, "renameat2")
    result = call(
        _AT_FDCWD, os.fsencode(temporary), _AT_FDCWD, os.fsencode(final), _RENAME_NOREPLACE
    )
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(final))


def by_copy(temporary: Path, final: Path) -> None:
    """Reserve the name with O_EXCL, then rename over our own reservation.

    The only way left on the plainest file systems. A crash between the two steps leaves an
    empty file of this name, which readers of ours take as absent.
    """
    fd = os.open(final, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    os.close(fd)
    try:
        os.replace(temporary, final)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(final)
        raise


Way = Callable[[Path, Path], None]
WAYS: tuple[Way, ...] = (by_link, by_rename, by_copy)


def publish(temporary: Path, final: Path, *, ways: tuple[Way, ...] = WAYS) -> None:
    """Give the finished ``temporary`` its ``final`` name, never replacing a file.

    Both must lie on one file system. The folder of ``final`` is synced, and only then does
    the other name go: a power cut leaves one of them at least. Raises FileExistsError when
    the name is taken (``temporary`` is then untouched), OSError when no way works.
    """
    for way in ways:
        try:
            way(temporary, final)
        except FileExistsError:
            raise
        except OSError as error:
            if error.errno == errno.EEXIST:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(final)) from None
            if error.errno not in _UNKNOWN or way is ways[-1]:
                raise
        else:
            sync_folder(final.parent)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            return


def replace(
    path: Path, data: bytes | Iterable[bytes], *, temporary: Path, sync: bool = True
) -> None:
    """Write ``path`` anew by way of ``temporary``: for files only we write (sidecars, live.json).

    A crash leaves the old content or the new one, and perhaps the temporary file.
    """
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    with contextlib.ExitStack() as undo:
        undo.callback(temporary.unlink, missing_ok=True)
        if sync:
            write_synced(temporary, data)
        else:
            temporary.write_bytes(data if isinstance(data, bytes) else b"".join(data))
        os.replace(temporary, path)
        undo.pop_all()
    if sync:
        sync_folder(path.parent)


# -- files that others made


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file to read it: no link is followed, no pipe waited for, no device touched.

    Raises OSError, for what is no such file with ELOOP.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY
    # opening a device may already do something: look first
    if stat.S_ISREG(os.lstat(path).st_mode):
        fd = os.open(path, flags)
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return os.fdopen(fd, "rb")
        os.close(fd)
    raise OSError(errno.ELOOP, "it is no file")


# -- trouble with the disk


@contextlib.contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """The file system's errors become environment errors: nothing is lost, all waits."""
    try:
        yield
    except OSError as error:
        raise disk_trouble(error, what) from error


def of_the_disk(error: OSError, *, reading: bool = False) -> bool:
    """Is the disk at fault, and not the one file that was to be read?

    ``reading``: the file was found; that the system cannot read on is a bad place in it.
    """
    return error.errno not in _OF_A_FILE and not (reading and error.errno == errno.EIO)


def disk_trouble(error: OSError, what: str) -> SteadyError:
    """disk_full or folder_gone; ``what`` could not be done, in words without a path."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    remedy = "Take off what is mounted in it." if error.errno == errno.EXDEV else ""
    code = "disk_full" if full else "folder_gone"
    return SteadyError(code, f"{what} ({reason(error)}).", remedy=remedy)


def reason(error: OSError) -> str:
    """Why, in the system's words, but for those that nobody knows."""
    if error.errno == errno.EXDEV:
        return "a folder in it is on another disk"
    return os.strerror(error.errno) if error.errno else str(error)
