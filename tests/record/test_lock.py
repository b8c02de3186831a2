"""One watcher a root: the second waits, then says who has it; death frees the lock at once."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import until
from doors import running
from forked import run
from roots import Root

from watcher.errors import SteadyError
from watcher.root import held, holder, locked

HOLD = """
import sys; sys.path.insert(0, sys.argv[2])
from pathlib import Path
from watcher.root import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def path(root: Path) -> Path:
    return root / "lock"


@pytest.fixture
def other(path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Another process that holds the lock until its stdin closes."""
    repository = str(Path(__file__).parents[2])
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), repository],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_a_second_process_waits_and_then_says_who_holds_it(
    path: Path, other: "subprocess.Popen[bytes]"
) -> None:
    begun = time.monotonic()
    with pytest.raises(SteadyError) as error, locked(path):
        pass
    assert time.monotonic() - begun > 1.9
    assert error.value.code == "already_running" and error.value.kind.exit == 4
    assert f"process {other.pid}, since 2" in error.value.message


def test_a_second_lock_in_the_same_process_is_refused_too(path: Path) -> None:
    with locked(path), pytest.raises(SteadyError), locked(path, 0):
        pass
    with locked(path, 0):
        assert holder(path)["pid"] == os.getpid()


def test_sigkill_frees_it_at_once(path: Path, other: "subprocess.Popen[bytes]") -> None:
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    with locked(path, 0):
        assert holder(path)["pid"] == os.getpid()


def test_a_waiting_one_gets_it_when_the_holder_ends(
    path: Path, other: "subprocess.Popen[bytes]"
) -> None:
    got = threading.Event()

    def wait() -> None:
        with locked(path, 10):
            got.set()

    thread = threading.Thread(target=wait)
    thread.start()
    assert not got.wait(0.2)
    assert other.stdin is not None
    other.stdin.close()
    assert got.wait(60)
    thread.join()


def test_a_standby_waits_until_it_is_told_to_stop(
    path: Path, other: "subprocess.Popen[bytes]"
) -> None:
    asked: list[int] = []
    told: list[str] = []
    with (
        pytest.raises(SteadyError),
        locked(
            path,
            float("inf"),
            give_up=lambda: asked.append(1) or len(asked) > 5,
            waits=lambda: told.append("once"),
        ),
    ):
        pass
    assert told == ["once"]
    assert len(asked) == 6


def test_asking_never_waits_and_never_keeps_it(
    path: Path, other: "subprocess.Popen[bytes]"
) -> None:
    assert not held(path.with_name("missing")) and holder(path.with_name("missing")) == {}
    begun = time.monotonic()
    assert all(held(path) for _ in range(100))
    assert time.monotonic() - begun < 60  # with the usual wait it would be 200 s
    other.kill()
    other.wait()
    assert not held(path)
    assert holder(path)["pid"] == other.pid  # the last one


def test_a_watcher_starts_while_many_ask(path: Path) -> None:
    path.touch()
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            held(path)

    askers = [threading.Thread(target=ask) for _ in range(4)]
    for asker in askers:
        asker.start()
    try:
        for _ in range(5):
            with locked(path, 10):
                assert until(lambda: held(path))
    finally:
        stop.set()
        for asker in askers:
            asker.join()


def test_a_lock_file_that_cannot_be_opened(root: Path) -> None:
    with pytest.raises(SteadyError) as error, locked(root / "absent" / "lock"):
        pass
    assert error.value.code == "folder_gone"


def test_words_that_are_no_words_do_no_harm(path: Path) -> None:
    path.write_bytes(b"\xff\x00 nonsense")
    assert holder(path) == {} and not held(path)
    path.write_text("[1]")
    assert holder(path) == {}
    with locked(path):
        assert holder(path)["pid"] == os.getpid()


@pytest.mark.parametrize("name", ["inbox", "outputs", ".steady"])
@pytest.mark.parametrize("loop", ["itself", "each other"])
def test_a_folder_that_is_a_link_to_itself_is_refused_in_words(
    root: Path, name: str, loop: str
) -> None:
    folder, other = root / name, root / "other"
    folder.symlink_to(folder if loop == "itself" else other)
    other.symlink_to(folder)
    done = run(["-m", "watcher.cli", "--root", str(root), "watch"], cwd=root, env=dict(os.environ))
    assert done.returncode == 4, done.stderr
    assert f"`{name}` is a link that leads back to itself." in done.stderr
    assert "Remove the link" in done.stderr and "Traceback" not in done.stderr


def test_with_a_token_other_users_of_the_machine_read_nothing(
    make_root: Callable[..., Root],
) -> None:
    root = make_root(database="steady.db")
    root.drop("before.yaml", "prompt: before the token\nsteps: 1")
    root.finish()
    record = root.folder / "steady.db"
    assert record.stat().st_mode & 0o777 == 0o644
    config = root.folder / "config.yaml"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"token": "auto"}))
    root.watch()
    root.drop("after.yaml", "prompt: after it\nsteps: 1")
    root.wait_for("completed", "completed")
    with running(root.folder):
        assert root.pulse()
        shown = {p.name: p.stat().st_mode & 0o777 for p in root.folder.glob("steady.db*")}
        assert shown == dict.fromkeys(("steady.db", "steady.db-wal", "steady.db-shm"), 0o600)
        assert (root.folder / ".steady").stat().st_mode & 0o777 == 0o700


def test_a_full_disk_keeps_nobody_from_being_the_watcher(path: Path) -> None:
    path.symlink_to("/dev/full")
    with locked(path, 0):
        assert held(path)
