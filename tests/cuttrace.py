"""What a run did to its files, read from strace, and the states a power cut can leave of it.

A trace is a list of events: writes, names, flushes, and what was promised to somebody in
between. A state is a prefix of it of which a variant drops what a disk may have lost:

    ext4        names as of the last commit of the journal, data only of files that were flushed
    data_first  names as of that commit, all data
    meta_drop   all names; data that was not flushed is gone
    meta_zero   all names and sizes; bytes that were not flushed are zero
    torn        all names; of the data that was not flushed a part, the last write torn at 512
    strict      what POSIX gives: a name only by the flush of its folder, bytes by that of the file
    rand        each name and write that was not flushed is there or not
    kill        everything, as after the death of all processes
"""

import codecs
import hashlib
import json
import os
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

VARIANTS = (
    "ext4", "data_first", "meta_drop", "meta_zero", "torn", "strict", "rand", "kill",
)  # fmt: skip
CALLS = (
    "open,openat,creat,write,pwrite64,writev,pwritev,ftruncate,truncate,rename,renameat,renameat2,"
    "link,linkat,unlink,unlinkat,mkdir,mkdirat,rmdir,symlink,symlinkat,fsync,fdatasync,"
    "sync_file_range,sendfile,copy_file_range,fallocate"
)
SAYS = "/said/"  #: a path below it that is opened is a promise, in JSON
#: Rebuilt by whoever needs it, or about this moment only.
_PASSING = re.compile(r"-shm$|/\.steady/(live\.json|\.live\.tmp|lock)$")
_SECTOR = 512

#: Path below the root -> content; None: a folder; a text: another name of the file at that path.
Tree = dict[str, bytes | str | None]


@dataclass(frozen=True, slots=True)
class Write:
    node: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Resize:
    node: int
    size: int


@dataclass(frozen=True, slots=True)
class Names:
    """(folder, name, node or None): at once where the file system has a journal."""

    changes: tuple[tuple[int, str, int | None], ...]


@dataclass(frozen=True, slots=True)
class Flush:
    """All of ``node`` that came before event ``since`` is on the disk now."""

    node: int
    since: int
    path: str


@dataclass(frozen=True, slots=True)
class Say:
    what: dict[str, Any]


Event = Write | Resize | Names | Flush | Say


class Trace:
    """The events below ``root``, which was ``before`` (all of it durable) when they began."""

    def __init__(self, root: str, before: Tree) -> None:
        self.root = root
        self.events: list[Event] = []
        self._nodes = 1
        self._folders: dict[int, dict[str, int]] = {0: {}}
        self._at: dict[tuple[int, str], int] = {}  #: where a descriptor stands in a file
        self._begun: dict[str, tuple[str, int]] = {}
        for path, content in sorted(before.items()):
            self._make(f"{root}/{path}", content is None)
            if isinstance(content, bytes):
                self.events.append(Write(self._node(f"{root}/{path}") or 0, 0, content))
        self.start = len(self.events)

    # -- reading

    def read(self, lines: Iterator[str]) -> None:
        """Take in the lines strace wrote."""
        for text in lines:
            pid, _, rest = text.rstrip("\n").partition(" ")
            rest = rest.lstrip()
            if rest.endswith("<unfinished ...>"):
                self._begun[pid] = (rest.removesuffix("<unfinished ...>"), len(self.events))
                continue
            since = len(self.events)
            if resumed := re.match(r"<\.\.\. \w+ resumed>", rest):
                head, since = self._begun.pop(pid)
                rest = head + rest[resumed.end() :]
            call = re.match(r"(\w+)\(", rest)
            end = rest.rfind(" = ")
            if call is None or end < 0:
                continue
            result = rest[end + 3 :].strip()
            arguments = rest[call.end() : end].rstrip().removesuffix(")")
            if call[1].startswith("open") and f'"{SAYS}' in arguments:
                said = bytes.fromhex(_texts(arguments)[0].decode().removeprefix(SAYS))
                self.events.append(Say(json.loads(said)))
            elif not result.startswith("-1") and not result.startswith("?"):
                self._take(call[1], arguments, result, since)

    def _take(self, call: str, given: str, result: str, since: int) -> None:
        if call in ("open", "openat", "creat"):
            self._open(given, result)
        elif call in ("write", "pwrite64", "writev", "pwritev", "fallocate", "ftruncate"):
            self._write(call, given, result)
        elif call in ("fsync", "fdatasync"):
            path = _descriptor(given)[1]
            node = self._node(path)
            if node is not None:
                self.events.append(Flush(node, since, os.path.relpath(path, self.root)))
        elif call.startswith(("rename", "link")):
            old, new = _paths(given, self.root)
            self._move(old, new, keep=call.startswith("link"))
        elif call in ("unlink", "unlinkat", "rmdir"):
            self._rename(_paths(given, self.root)[0], None)
        elif call in ("mkdir", "mkdirat"):
            self._make(_paths(given, self.root)[0], folder=True)
        elif self.root + "/" in given:
            raise NotImplementedError(f"{call}({given[:300]})")

    def _open(self, given: str, result: str) -> None:
        path = _paths(given, self.root)[0]
        if not self._ours(path) or "O_TMPFILE" in given or "O_DIRECTORY" in given:
            return
        node = self._node(path)
        if node is None:
            if "O_CREAT" not in given:
                return
            self._make(path, folder=False)
        elif "O_TRUNC" in given:
            self.events.append(Resize(node, 0))
        number = result.partition("<")[0]
        self._at[self._node(path) or 0, number] = 0

    def _write(self, call: str, given: str, result: str) -> None:
        number, path = _descriptor(given)
        node = self._node(path)
        if node is None or not self._ours(path):
            return
        if call == "ftruncate":
            self.events.append(Resize(node, int(given.rpartition(", ")[2])))
            return
        if call == "fallocate":
            raise NotImplementedError(given)
        data = b"".join(_texts(given[given.index(">") :]))[: int(result)]
        assert len(data) == int(result), f"strace cut a write of {result} bytes to {path}"
        key = node, number
        if call.startswith("p"):
            offset = int(given.rpartition(", ")[2])
        else:
            offset = self._at.get(key, 0)
            self._at[key] = offset + len(data)
        self.events.append(Write(node, offset, data))

    # -- names

    def _ours(self, path: str) -> bool:
        return path.startswith(self.root + "/") and not _PASSING.search(path)

    def _node(self, path: str) -> int | None:
        if path == self.root:
            return 0
        folder, name = os.path.split(path)
        above = self._node(folder) if self._ours(path) else None
        return None if above is None else self._folders.get(above, {}).get(name)

    def _make(self, path: str, folder: bool) -> None:
        if not self._ours(path):
            return
        node, self._nodes = self._nodes, self._nodes + 1
        if folder:
            self._folders[node] = {}
        self._put([(path, node)])

    def _move(self, old: str, new: str, *, keep: bool) -> None:
        node = self._node(old)
        if node is not None and node == self._node(new):
            return  # rename leaves two names of one file as they are
        if self._ours(new):
            assert node is not None, f"{old} comes from outside"
            self._put([(new, node)] + ([] if keep else [(old, None)]))
        elif not keep:
            self._rename(old, None)

    def _rename(self, path: str, node: int | None) -> None:
        if self._node(path) is not None:
            self._put([(path, node)])

    def _put(self, changes: Sequence[tuple[str, int | None]]) -> None:
        done = []
        for path, node in changes:
            folder, name = os.path.split(path)
            above = self._node(folder)
            assert above is not None, path
            if node is None:
                self._folders[above].pop(name, None)
            else:
                self._folders[above][name] = node
            done.append((above, name, node))
        self.events.append(Names(tuple(done)))

    # -- states

    def without(self, lost: re.Pattern[str]) -> "Trace":
        """The same run, had nothing flushed the paths that ``lost`` matches: a seeded fault."""
        other = Trace(self.root, {})
        other.start, other._folders = self.start, self._folders
        kept = [not isinstance(e, Flush) or not lost.search(e.path) for e in self.events]
        place = [0]
        for keep in kept:
            place.append(place[-1] + keep)
        for event, keep in zip(self.events, kept, strict=True):
            if isinstance(event, Flush):
                event = Flush(event.node, place[event.since], event.path)
            if keep:
                other.events.append(event)
        return other

    def said(self, cut: int) -> list[dict[str, Any]]:
        """What was promised before event ``cut``."""
        return [e.what for e in self.events[:cut] if isinstance(e, Say)]

    def cuts(self, variant: str) -> list[int]:
        """The instants at which a cut may leave something else than at the one before."""
        everywhere = range(self.start + 1, len(self.events) + 1)
        if variant not in ("ext4", "data_first", "strict"):
            return list(everywhere)
        return [c for c in everywhere if c == len(self.events) or isinstance(self.events[c], Flush)]

    def state(self, cut: int, variant: str, seed: int = 0) -> Tree:
        """What a cut before event ``cut`` leaves below the root."""
        dice = random.Random(f"{cut} {variant} {seed}")
        flushed: dict[int, int] = {}
        commit = self.start
        for event in self.events[:cut]:
            if isinstance(event, Flush):
                flushed[event.node] = max(flushed.get(event.node, 0), event.since)
                commit = max(commit, event.since)
        folders: dict[int, dict[str, int]] = {}
        files: dict[int, bytearray] = {}
        full: dict[int, int] = {}  #: sizes had nothing been lost
        torn: set[int] = set()  #: nodes of which no later write is there
        for index, event in enumerate(self.events[:cut]):
            if isinstance(event, Names):
                whole = dice.random() < 0.5
                for folder, name, node in event.changes:
                    sure = index < max(flushed.get(folder, 0), self.start)
                    if variant in ("ext4", "data_first"):
                        sure = index < commit
                    elif variant == "rand":
                        one = len({f for f, _, _ in event.changes}) == 1
                        sure = sure or (whole if one else dice.random() < 0.5)
                    elif variant != "strict":
                        sure = True
                    if sure and node is None:
                        folders.setdefault(folder, {}).pop(name, None)
                    elif sure:
                        folders.setdefault(folder, {})[name] = node or 0
            elif isinstance(event, Write | Resize):
                node = event.node
                end = event.size if isinstance(event, Resize) else event.offset + len(event.data)
                full[node] = end if isinstance(event, Resize) else max(full.get(node, 0), end)
                sure = index < max(flushed.get(node, 0), self.start)
                part = len(event.data) if isinstance(event, Write) else 0
                if not sure and variant == "rand":
                    sure = dice.random() < 0.5
                    part = _tear(part, dice)
                elif not sure and variant == "torn" and node not in torn:
                    sure = True
                    if dice.random() < 0.3:
                        torn.add(node)
                        part = _tear(part, dice)
                elif variant in ("kill", "data_first"):
                    sure = True
                if sure:
                    _apply(files.setdefault(node, bytearray()), event, part)
        if variant == "meta_zero":
            for node, size in full.items():
                content = files.setdefault(node, bytearray())
                content.extend(bytes(max(0, size - len(content))))
        tree: Tree = {}
        known: dict[int, str] = {}

        def walk(node: int, at: str) -> None:
            for name, inside in sorted(folders.get(node, {}).items()):
                path = f"{at}{name}"
                if inside in self._folders:
                    tree[path] = None
                    walk(inside, path + "/")
                elif inside in known:
                    tree[path] = known[inside]
                else:
                    tree[path] = bytes(files.get(inside, b""))
                    known[inside] = path

        walk(0, "")
        return tree


def _tear(size: int, dice: random.Random) -> int:
    """How many bytes of a write of ``size`` came to the disk."""
    return min(size, _SECTOR * dice.randint(0, size // _SECTOR + 1))


def _apply(content: bytearray, event: Write | Resize, part: int) -> None:
    if isinstance(event, Resize):
        del content[event.size :]
        content.extend(bytes(event.size - len(content)))
        return
    content.extend(bytes(max(0, event.offset - len(content))))
    content[event.offset : event.offset + part] = event.data[:part]


def digest(tree: Tree) -> str:
    """The same for two states that cannot be told apart."""
    found = hashlib.sha256()
    for path, content in sorted(tree.items()):
        found.update(f"{path}\0{type(content).__name__}\0{len(content or b'')}\0".encode())
        found.update(content.encode() if isinstance(content, str) else content or b"")
    return found.hexdigest()


# -- what strace writes


def _texts(arguments: str) -> list[bytes]:
    """Every quoted text, as the bytes it stands for."""
    return [
        codecs.escape_decode(found[1].encode("latin-1"))[0]  # type: ignore[misc]
        for found in re.finditer(r'"((?:[^"\\]|\\.)*)"', arguments)
    ]


def _descriptor(arguments: str) -> tuple[str, str]:
    """The number of the first argument and the path it stands for."""
    match = re.match(r"(\d+)<([^>]*)>", arguments)
    return (match[1], match[2]) if match else ("", "")


def _paths(arguments: str, cwd: str) -> list[str]:
    """Every path named, absolute."""
    found = []
    for match in re.finditer(r'(?:(?:AT_FDCWD|\d+)<([^>]*)>, )?"((?:[^"\\]|\\.)*)"', arguments):
        name = os.fsdecode(codecs.escape_decode(match[2].encode("latin-1"))[0])  # type: ignore[misc]
        found.append(os.path.normpath(os.path.join(match[1] or cwd, name)))
    return found
