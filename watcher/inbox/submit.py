"""The door for everybody: a job file into the inbox, whole or not at all.

What the API, ``steady submit`` and the page do to ask for a picture. It needs no watcher
and no record: the file waits until somebody claims it.
A crash leaves a draft in ``.tmp/``, which the watcher sweeps.
"""

import contextlib
import os
import uuid
from pathlib import Path

from watcher import publish
from watcher.errors import SteadyError
from watcher.folder import real_folder, unmarked
from watcher.inbox.archive import MARK, TMP
from watcher.inbox.claims import own_name
from watcher.publish import disk_errors


def drop_file(
    inbox: Path,
    data: bytes,
    suffix: str,
    ticket: str,
    *,
    known: bool = False,
    resumes: str | None = None,
    name: str = "",
    ways: tuple[publish.Way, ...] = publish.WAYS,
) -> Path:
    """Put ``data`` into ``inbox`` as ``api-<ticket>…<suffix>``, whole or not at all, durably.

    Any process may call this, with or without a watcher. The same ticket again is fine and
    changes nothing. ``known``: the record knows of earlier jobs, so a folder without the
    watcher's mark is the mount point of an absent disk and is refused. ``resumes``: the batch
    of which only what is missing or changed is to run. ``name``: a person's file name, after
    which the batch and its pictures are called. Raises SteadyError disk_full or folder_gone.
    A crash leaves at most a temporary file, which the watcher sweeps.
    """
    if known and inbox.is_dir() and not os.path.lexists(inbox / MARK):
        raise SteadyError("folder_gone", unmarked("inbox", MARK))
    final = inbox / own_name(ticket, suffix, resumes, name)
    temporary = inbox / TMP / f"submit-{uuid.uuid4().hex}"
    with disk_errors("The inbox cannot be written"):
        inbox.mkdir(exist_ok=True)
        real_folder(temporary.parent)
        try:
            publish.write_synced(temporary, data)
            try:
                publish.publish(temporary, final, ways=ways)
            except FileExistsError:
                if os.lstat(final).st_size == 0:
                    # a publish by copy died between reserving the name and filling it
                    os.replace(temporary, final)
                    publish.sync_folder(inbox)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
    return final
