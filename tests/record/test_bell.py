"""Deaf watches: every way a watch goes silent is done for real, shown in words, and healed.

"Within a rescan" and "within two" are the promises; here a rescan is 0.4 seconds.
"""

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import until
from namespaces import lowered

from watcher.errors import SteadyError
from watcher.inbox.bell import Bell
from watcher.inbox.watch import Inbox

CHILD = Path(__file__).parents[1] / "inbox_child.py"
RESCAN = 0.4
SLACK = 30.0  #: seconds a busy machine may add


class Driven:
    """An inbox with an intake thread of its own, as the watcher runs it."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.names: list[str] = []
        self.errors: list[str] = []
        self.inbox = Inbox(folder, settle=0.02, rescan=RESCAN, **options)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Driven":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self.inbox.ring()
        self._thread.join()
        self.inbox.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                found = self.inbox.scan()
            except SteadyError as error:
                self.errors.append(error.code)
                found = []
            self.names += [claim.name for claim in found]
            if not found:
                self.inbox.wait()

    @property
    def problems(self) -> str:
        return " ".join(self.inbox.health()["problems"])

    @property
    def hears(self) -> bool:
        return self.inbox.health()["watch"] == "events" and not self.problems

    def within(self, looks: int, predicate: Callable[[], Any], what: str) -> None:
        until(
            predicate, timeout=looks * RESCAN + SLACK, what=f"{what}; health: {self.inbox.health()}"
        )


@pytest.fixture
def folder(root: Path) -> Path:
    return root / "inbox"


@pytest.fixture
def driven(folder: Path) -> Iterator[Driven]:
    box = Driven(folder)
    box.inbox.open()
    with box:
        yield box


@pytest.fixture
def mounted() -> Iterator[Callable[..., None]]:
    """mount(8); whatever is mounted is unmounted at the end. Fails where root cannot mount."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts")
    points: list[Path] = []

    def mount(point: Path, *options: str) -> None:
        subprocess.run(["mount", *options, point], check=True)
        points.append(point)

    yield mount
    for point in reversed(points):
        subprocess.run(["umount", "-l", point], stderr=subprocess.DEVNULL)


def umount(point: Path) -> None:
    subprocess.run(["umount", point], check=True)


def drop(folder: Path, name: str) -> None:
    """As a careful person does: written elsewhere, then moved in."""
    temporary = folder / f".{name}.part"
    temporary.write_text("prompt: a fox")
    temporary.rename(folder / name)


def delete(folder: Path) -> None:
    """rm -r, in one step as far as the watcher can see (it would put its mark back in between)."""
    gone = folder.with_name("gone")
    folder.rename(gone)
    shutil.rmtree(gone)


def rings(driven: Driven, folder: Path) -> None:
    """An event, not the rescan, brings a file: checked with a watch that rests."""
    bell = driven.inbox._bell
    assert bell.alive and bell.hears(lambda: (folder / ".probe").write_bytes(b""), patience=SLACK)


# ---------------------------------------------------------------- the ordinary case


def test_a_file_is_heard_long_before_the_rescan(folder: Path) -> None:
    inbox = Inbox(folder, settle=0.05, rescan=60.0)
    inbox.open()
    inbox.scan()
    assert inbox.health() == {
        "watch": "events", "problems": [], "notices": [], "waiting": 0, "overflows": 0,
        "hot": [],
    }  # fmt: skip
    begun = time.monotonic()
    drop(folder, "a.yaml")
    got: list[Any] = []
    while not got:
        inbox.wait()
        got = inbox.scan()
    assert time.monotonic() - begun < SLACK
    inbox.close()


def test_claiming_does_not_delay_later_events(folder: Path) -> None:
    """A rename out of the folder holds watchdog's queue up for half a second by default."""
    inbox = Inbox(folder, settle=0.0, rescan=60.0)
    inbox.open()
    took = []
    for number in range(20):
        inbox.scan()
        drop(folder, f"{number}.yaml")
        begun = time.monotonic()
        inbox.wait()  # by the bell alone
        while not inbox.scan():
            inbox.wait()
        took.append(time.monotonic() - begun)
    assert min(took[1:]) < 0.4, took  # before the first nothing was renamed
    inbox.close()


def test_an_inbox_that_is_a_link_is_heard(folder: Path, root: Path) -> None:
    (root / "real").mkdir()
    folder.symlink_to(root / "real")
    with Driven(folder) as driven:
        driven.inbox.open()
        driven.within(2, lambda: driven.hears, "events")
        rings(driven, folder)


def test_an_idle_inbox_costs_next_to_nothing(driven: Driven, folder: Path) -> None:
    driven.within(2, lambda: driven.hears, "events")
    before, begun = time.process_time(), time.monotonic()
    until(lambda: time.monotonic() - begun > 2.0)
    assert time.process_time() - before < 0.6  # until itself looks 100 times a second


# ---------------------------------------------------------------- the folder goes and comes


def test_renamed_away_and_back(driven: Driven, folder: Path, root: Path) -> None:
    folder.rename(root / "away")
    driven.within(1, lambda: "The inbox is not there" in driven.problems, "said")
    assert driven.inbox.health()["watch"] == "polling"
    drop(root / "away", "a.yaml")
    (root / "away").rename(folder)
    driven.within(2, lambda: driven.names == ["a.yaml"] and driven.hears, "healed")
    rings(driven, folder)
    assert set(driven.errors) == {"folder_gone"}


def test_renamed_away_and_a_new_one_made(driven: Driven, folder: Path, root: Path) -> None:
    driven.within(2, lambda: driven.hears, "events")
    folder.rename(root / "away")
    folder.mkdir()
    drop(folder, "a.yaml")
    driven.within(2, lambda: driven.names == ["a.yaml"] and driven.hears, "healed")
    rings(driven, folder)
    assert sorted(os.listdir(folder)) == [
        ".claimed",
        ".probe",
        ".steady",
        ".tmp",
        "done",
        "refused",
    ]


def test_deleted_and_made_again(driven: Driven, folder: Path) -> None:
    delete(folder)
    driven.within(1, lambda: "The inbox is not there" in driven.problems, "said")
    folder.mkdir()
    drop(folder, "a.yaml")
    driven.within(2, lambda: driven.names == ["a.yaml"] and driven.hears, "healed")
    rings(driven, folder)


def test_deleted_and_made_again_between_two_looks(driven: Driven, folder: Path) -> None:
    """The new folder often gets the inode number of the old one."""
    driven.within(2, lambda: driven.hears, "events")
    for _ in range(3):
        delete(folder)
        folder.mkdir()
        drop(folder, "a.yaml")
        driven.within(2, lambda: driven.names == ["a.yaml"] and driven.hears, "healed")
        rings(driven, folder)
        driven.names.clear()


def test_a_file_in_the_place_of_the_folder(driven: Driven, folder: Path, root: Path) -> None:
    folder.rename(root / "away")
    folder.write_text("no folder")
    driven.within(1, lambda: "Not a directory" in driven.problems, "said")
    folder.unlink()
    (root / "away").rename(folder)
    driven.within(2, lambda: driven.hears, "healed")


def test_the_mark_alone_removed_is_made_again(driven: Driven, folder: Path) -> None:
    driven.within(2, lambda: driven.hears, "events")
    (folder / ".steady").unlink()
    driven.within(1, lambda: (folder / ".steady").exists(), "made")
    driven.within(1, lambda: driven.hears, "events")


# ---------------------------------------------------------------- disks that come and go


def test_mounted_over(driven: Driven, folder: Path, mounted: Callable[..., None]) -> None:
    driven.within(2, lambda: driven.hears, "events")
    mounted(folder, "-t", "tmpfs", "none")
    drop(folder, "a.yaml")
    driven.within(1, lambda: "without its mark" in driven.problems, "said")
    driven.within(2, lambda: len(driven.errors) > 2, "looks again")
    assert os.listdir(folder) == ["a.yaml"] and driven.names == []
    umount(folder)
    drop(folder, "b.yaml")
    driven.within(2, lambda: driven.names == ["b.yaml"] and driven.hears, "healed")
    rings(driven, folder)


def test_another_disk_is_taken_once_a_person_marks_it(
    driven: Driven, folder: Path, mounted: Callable[..., None]
) -> None:
    mounted(folder, "-t", "tmpfs", "none")
    driven.within(1, lambda: "create an empty file `.steady`" in driven.problems, "said")
    drop(folder, "a.yaml")
    (folder / ".steady").touch()
    driven.within(2, lambda: driven.names == ["a.yaml"] and driven.hears, "healed")
    rings(driven, folder)


@pytest.mark.parametrize("lazy", [False, True])
def test_unmounted_and_mounted_again(
    folder: Path, root: Path, mounted: Callable[..., None], lazy: bool
) -> None:
    """The inbox is a bind mount of a folder of the same file system: same device number."""
    disk = root / "disk"
    disk.mkdir()
    folder.mkdir()
    mounted(folder, "--bind", str(disk))
    with Driven(folder) as driven:
        driven.inbox.open()
        drop(folder, "a.yaml")
        driven.within(2, lambda: driven.names == ["a.yaml"], "claimed")
        subprocess.run(["umount", *(["-l"] if lazy else []), folder], check=True)
        driven.within(1, lambda: "without its mark" in driven.problems, "said")
        assert os.listdir(folder) == []  # nothing is made in the empty mount point
        drop(disk, "b.yaml")
        mounted(folder, "--bind", str(disk))
        driven.within(2, lambda: driven.names == ["a.yaml", "b.yaml"] and driven.hears, "healed")
        rings(driven, folder)


def test_a_disk_that_is_absent_at_start(
    folder: Path, root: Path, mounted: Callable[..., None]
) -> None:
    disk = root / "disk"
    disk.mkdir()
    Inbox(disk, settle=0.0, rescan=5.0).open()  # it was ours before
    left = disk / ".claimed" / "11111111-2222-4333-8444-555555555555~old.yaml"
    left.write_text("prompt: a fox")
    folder.mkdir()
    driven = Driven(folder)
    driven.inbox.open(first=False)
    assert driven.inbox.leftovers() == []
    with driven:
        driven.within(1, lambda: "without its mark" in driven.problems, "said")
        drop(disk, "new.yaml")
        mounted(folder, "--bind", str(disk))
        driven.within(2, lambda: sorted(driven.names) == ["new.yaml", "old.yaml"], "both")
        assert driven.hears


def test_an_inbox_gone_altogether_is_made_at_start(folder: Path) -> None:
    inbox = Inbox(folder, settle=0.0, rescan=5.0)
    inbox.open(first=False)
    assert (folder / ".steady").exists() and inbox.health()["problems"] == []
    inbox.close()


# ---------------------------------------------------------------- the watch itself dies


def test_a_dead_observer(driven: Driven, folder: Path) -> None:
    driven.within(2, lambda: driven.hears, "events")
    dead = driven.inbox._bell._observer
    assert dead is not None
    dead.stop()
    dead.join()
    assert "The watch of the inbox ended" in driven.problems
    driven.within(2, lambda: driven.inbox._bell._observer is not dead and driven.hears, "healed")
    rings(driven, folder)


def test_a_watch_the_kernel_dropped(driven: Driven, folder: Path) -> None:
    """All threads live and the folder is the same: only a file that came unheard gives it away."""
    driven.within(2, lambda: driven.hears, "events")
    driven.inbox._doubted_at = float("-inf")  # the start's proof was long ago
    deaf = driven.inbox._bell._observer
    assert deaf is not None
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.inotify_rm_watch(deaf._inotify_fd._inotify_fd, 1) == 0  # type: ignore[attr-defined]
    until(lambda: not deaf._inotify_fd._watch_for_wd)  # type: ignore[attr-defined]
    assert driven.inbox._bell.alive
    for name in ("a.yaml", "b.yaml"):  # a bell that rang just before hides how the first one came
        drop(folder, name)
        driven.within(2, lambda name=name: driven.names[-1:] == [name], "found by looking")
    driven.within(4, lambda: driven.inbox._bell._observer is not deaf and driven.hears, "healed")
    rings(driven, folder)


def test_the_handler_never_raises_whatever_the_name(driven: Driven, folder: Path) -> None:
    driven.within(2, lambda: driven.hears, "events")
    observer = driven.inbox._bell._observer
    for name in (b"\xff\xfe.yaml", b"new\nline.yaml", b"%s%n.yaml", b"x" * 250 + b".yaml"):
        with open(os.fsencode(folder) + b"/" + name, "wb") as file:
            file.write(b"prompt: a fox")
    driven.within(2, lambda: len(driven.names) == 4, "claimed")
    assert driven.inbox._bell._observer is observer and driven.inbox._bell.alive


def test_a_bell_may_be_closed_and_opened_in_any_order(tmp_path: Path) -> None:
    bell = Bell(tmp_path)
    bell.unsubscribe()
    assert not bell.alive
    for _ in range(3):
        assert bell.subscribe() and bell.alive
    shutil.rmtree(tmp_path)
    until(lambda: not bell.alive)
    bell.unsubscribe()
    assert not bell.subscribe() and bell.trouble is not None and not bell.alive
    tmp_path.mkdir()
    assert bell.subscribe() and bell.trouble is None
    bell.unsubscribe()
    before = threading.active_count()
    for _ in range(5):
        bell.subscribe()
    bell.unsubscribe()
    until(lambda: threading.active_count() <= before)


# ---------------------------------------------------------------- in a process of its own


class Child:
    """``inbox_child.py watch`` in a real process; what it tells is read as it comes."""

    def __init__(self, folder: Path, *wrapper: str, **options: Any) -> None:
        order = {"do": "watch", "folder": str(folder), "settle": 0.05, "rescan": RESCAN} | options
        self.lines: list[dict[str, Any]] = []
        self.process = subprocess.Popen(
            [*wrapper, sys.executable, str(CHILD), json.dumps(order)], stdout=subprocess.PIPE
        )
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self.lines.append(json.loads(line))

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._thread.join()

    @property
    def names(self) -> list[str]:
        return [name for line in self.lines for name in line["claims"]]

    @property
    def reads(self) -> list[str]:
        return [name for line in self.lines for name in line["reads"]]

    @property
    def health(self) -> dict[str, Any]:
        assert self.process.poll() is None, "the child died"
        return self.lines[-1]["health"] if self.lines else {"watch": "", "problems": ["none yet"]}

    @property
    def problems(self) -> str:
        return " ".join(self.health["problems"])


NOBODY = 65534


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that other users reach."""
    if os.geteuid() != 0:
        pytest.skip("only root can be somebody else")
    base = Path("/var/tmp") / f"inbox-{os.getpid()}-{time.monotonic_ns()}"
    base.mkdir(mode=0o755)
    (base / "inbox").mkdir()
    os.chown(base / "inbox", NOBODY, NOBODY)
    yield base / "inbox"
    shutil.rmtree(base)


def test_unreadable_and_readable_again(public: Path) -> None:
    with Child(public, uid=NOBODY) as child:
        until(lambda: child.health["watch"] == "events")
        os.chmod(public, 0o300)
        until(lambda: "cannot be read (Permission denied)" in child.problems, RESCAN + SLACK)
        drop(public, "a.yaml")
        os.chown(public / "a.yaml", NOBODY, NOBODY)
        os.chmod(public, 0o700)
        until(lambda: child.names == ["a.yaml"], 2 * RESCAN + SLACK)
        until(lambda: child.health["watch"] == "events" and not child.problems, RESCAN + SLACK)


def test_unreadable_from_the_start(public: Path) -> None:
    os.chmod(public, 0o000)
    with Child(public, uid=NOBODY) as child:
        until(lambda: "Permission denied" in child.problems)
        os.chmod(public, 0o700)
        until(lambda: child.health["watch"] == "events" and not child.problems)


def test_a_file_of_another_owner_waits_longer_because_nobody_can_say_who_writes(
    public: Path,
) -> None:
    with Child(public, uid=NOBODY, settle_blind=3.0, read=True) as child:
        until(lambda: child.health["watch"] == "events")
        begun = time.monotonic()
        drop(public, "own.yaml.tmp")
        os.chown(public / "own.yaml.tmp", NOBODY, NOBODY)
        drop(public, "root.yaml")
        (public / "own.yaml.tmp").rename(public / "own.yaml")
        until(lambda: len(child.names) == 2, 30)
        assert child.names == ["own.yaml", "root.yaml"]
        assert time.monotonic() - begun >= 2.9
        os.close(os.open(public / "secret.yaml.tmp", os.O_CREAT | os.O_WRONLY, 0o000))
        (public / "secret.yaml.tmp").write_text("prompt: secret")
        (public / "secret.yaml.tmp").rename(public / "secret.yaml")
        until(lambda: len(child.reads) == 3)
        assert child.reads == ["prompt: a fox", "prompt: a fox", "unreadable"]


def test_a_sticky_folder_keeps_other_peoples_files(public: Path) -> None:
    os.chown(public, 0, 0)
    os.chmod(public, 0o1777)
    drop(public, "a.yaml")
    with Child(public, uid=NOBODY, settle_blind=0.05) as child:
        until(lambda: "a.yaml cannot be taken and does not run" in child.problems)
        assert child.names == [] and child.health["waiting"] == 1
        os.chown(public, NOBODY, NOBODY)
        os.utime(public / "a.yaml")
        until(lambda: child.names == ["a.yaml"])
        until(lambda: not child.problems)


@pytest.mark.parametrize(
    ("limit", "value", "words"),
    [
        ("max_inotify_watches", 100, "max_user_watches"),
        ("max_inotify_instances", 100, "max_user_instances"),
    ],
)
def test_the_systems_limit_of_watches(folder: Path, limit: str, value: int, words: str) -> None:
    folder.mkdir()
    with Child(folder, *lowered(limit)) as child:
        until(lambda: words in child.problems)
        assert child.health["watch"] == "polling"
        drop(folder, "a.yaml")
        until(lambda: child.names == ["a.yaml"], RESCAN + SLACK)
        raised = f"echo {value} > /proc/sys/user/{limit}"
        enter = ["nsenter", "-t", str(child.process.pid), "--user", "--preserve-credentials"]
        subprocess.run([*enter, "sh", "-c", raised], check=True)
        until(lambda: child.health["watch"] == "events", 2 * RESCAN + SLACK)
        assert not child.problems


def overflow(folder: Path, count: int) -> tuple["Child", float]:
    """Stop a watcher, move ``count`` files in, let it go on; seconds until all were claimed."""
    queue = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    assert count > queue, "the kernel's queue is longer here: raise the count"
    outside = folder.with_name("outside")
    outside.mkdir()
    for number in range(count):
        (outside / f"{number}.yaml").write_bytes(b"prompt: a fox")
    with Child(folder, rescan=5.0, settle=0.2) as child:
        until(lambda: child.health["watch"] == "events")
        os.kill(child.process.pid, signal.SIGSTOP)
        for number in range(count):
            (outside / f"{number}.yaml").rename(folder / f"{number}.yaml")
        begun = time.monotonic()
        os.kill(child.process.pid, signal.SIGCONT)
        until(lambda: len(child.names) >= count, 60)
        took = time.monotonic() - begun
        until(lambda: child.health["overflows"] > 0)
        drop(folder, "after.yaml")
        until(lambda: "after.yaml" in child.names)
        return child, took


@pytest.mark.slow
def test_an_overflow_loses_nothing(folder: Path) -> None:
    folder.mkdir()
    child, took = overflow(folder, 20_000)
    assert sorted(child.names) == sorted([*(f"{n}.yaml" for n in range(20_000)), "after.yaml"])
    assert any("events were lost" in " ".join(line["health"]["problems"]) for line in child.lines)
    assert max(line["rss"] for line in child.lines) < 150
    print(f"20,000 files in {took:.1f} s, overflows {child.lines[-1]['health']['overflows']}")
