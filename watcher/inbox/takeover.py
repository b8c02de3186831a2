"""From the name a file was dropped with to its claim's, with no instant that could lose it.

    inbox/x.yaml                                      dropped
    inbox/x.yaml + .claimed/<ticket>~x.yaml           linked; the folder is flushed
    .claimed/.<ticket>~x.yaml + .claimed/<ticket>~x.yaml    the old name is out of everybody's reach
    .claimed/<ticket>~x.yaml                          claimed; both folders are flushed

A disk may keep the two halves of a rename apart, so the new name is durable before the old one
goes; and the old one is moved before it is removed, so that a newer version which somebody put
in its place meanwhile is claimed, not deleted. A crash in between is ended by ``leftovers``.
Where links are unknown one rename does it all.
"""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from watcher import publish
from watcher.inbox.archive import CLAIMED, claimed_paths, files_in_rooms
from watcher.inbox.claims import Claim, claim_of, cut


def begin(source: Path, target: Path, *, link: publish.Way | None) -> bool:
    """Give the file its claim's name; has it its old one still (``end``)? Raises OSError.

    ``link``: how it gets a second name; None where one rename must do.
    """
    if link is not None:
        with contextlib.suppress(OSError):
            link(source, target)
            if _one_file(source, target):
                return True
            target.unlink()  # some network disks number a file by its name
    os.rename(source, target)
    return False


def end(source: Path, target: Path) -> None:
    """Remove the old name of the file that has the durable name ``target``.

    Raises FileNotFoundError when it is gone already, OSError.
    """
    aside = target.with_name("." + target.name)
    os.rename(source, aside)
    _remove(aside)


def _remove(aside: Path) -> None:
    # One file under both names stays as it is; what differs is newer.
    os.rename(aside, aside.with_name(aside.name.removeprefix(".")))
    aside.unlink(missing_ok=True)


def _one_file(one: Path, other: Path) -> bool:
    try:
        return os.path.samestat(os.lstat(one), os.lstat(other))
    except FileNotFoundError:
        return False


def leftovers(inbox: Path) -> list[Claim]:
    """Everything in ``.claimed``, oldest claim first, each under one name. Raises OSError.

    What may not be taken away from its folder is no claim: it is looked at anew there.
    """
    found: list[tuple[int, Claim]] = []
    named: dict[tuple[Path, str], list[Claim]] = {}  #: by the place and the name they came from
    for path in files_in_rooms(inbox / CLAIMED):
        if path.name.startswith("."):
            _remove(path)
    for path in claimed_paths(inbox / CLAIMED):
        status = os.lstat(path)
        claim = claim_of(path.parent, path.name, status.st_size)
        if claim is not None:
            found.append((status.st_ctime_ns, claim))
            place = inbox / claim.hot, claim.entry.partition("~")[2]
            named.setdefault(place, []).append(claim)
    sources: dict[str, Path] = {}
    homes = {home for home, _ in named}
    for home in homes:
        with contextlib.suppress(FileNotFoundError), os.scandir(home) as entries:
            for entry in entries:
                for claim in named.get((home, cut(entry.name)), ()):
                    if _one_file(claim.path, Path(entry.path)):
                        sources[claim.entry] = Path(entry.path)
    # Old names go in the order of the claims, so a file that has one is later than all without;
    # of those claimed in one tick of the disk's clock the names decide, as when they arrived.
    found.sort(key=lambda pair: (pair[1].entry in sources, pair[0], pair[1].name, pair[1].entry))
    sync({claim.folder for _, claim in found})
    kept = []
    for _, claim in found:
        try:
            if claim.entry in sources:
                end(sources[claim.entry], claim.path)
            kept.append(claim)
        except PermissionError:
            claim.path.unlink()
    sync(homes)
    return kept


def sync(folders: Iterable[Path]) -> None:
    """Make the names in ``folders`` durable; a hot folder may go meanwhile. Raises OSError."""
    for folder in folders:
        with contextlib.suppress(FileNotFoundError):
            publish.sync_folder(folder)
