"""Folders and settings that lead elsewhere: nothing is lost, and people are told."""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import until
from history import faults, pictures
from roots import Root


def configure(root: Root, **settings: object) -> None:
    path = root.folder / "config.yaml"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def notices(root: Root) -> str:
    return " ".join(root.pulse().get("notices", ()))


def stop(watcher: subprocess.Popen[bytes]) -> None:
    watcher.terminate()
    assert watcher.wait(30) == 0


@pytest.fixture
def bound(tmp_path: Path) -> Iterator[Callable[[Path, Path], None]]:
    """Bind mounts, gone after the test; they need root, which CI has."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    points: list[Path] = []

    def mount(disk: Path, point: Path) -> None:
        subprocess.run(["mount", "--bind", disk, point], check=True)
        points.append(point)

    yield mount
    for point in points:
        subprocess.run(["umount", "-l", point], check=False, stderr=subprocess.DEVNULL)


def test_outputs_on_a_bind_mount_that_goes_away(
    make_root: Callable[..., Root], tmp_path: Path, bound: Callable[[Path, Path], None]
) -> None:
    """A bind mount has the device number of its disk, so that alone tells nothing."""
    root = make_root()
    disk, outputs = tmp_path / "disk", root.folder / "outputs"
    disk.mkdir()
    outputs.mkdir()
    bound(disk, outputs)
    watcher = root.watch()
    root.drop("before.yaml", "prompt: before steps=1\n")
    root.wait_for("completed")
    subprocess.run(["umount", "-l", outputs], check=True)
    until(lambda: "folder_gone" in root.troubles(), what="said")
    root.drop("after.yaml", "prompt: after steps=1\n")
    until(lambda: root.states() == ["completed", "queued"], what="it waits")
    assert list(outputs.iterdir()) == []
    bound(disk, outputs)
    root.wait_for("completed", "completed")
    stop(watcher)
    assert faults(root.folder, expected=2) == []


def test_an_inbox_that_moves_while_its_files_are_in_work(make_root: Callable[..., Root]) -> None:
    root = make_root()
    gate = root.folder / "gate"
    gate.touch()
    watcher = root.watch()
    root.drop("many.csv", f"prompt\nfirst held={gate} steps=1\nsecond steps=1\n")
    until(lambda: "generating" in root.states())
    watcher.kill()
    watcher.wait()
    gate.unlink()
    configure(root, inbox="in2")
    watcher = root.watch()
    root.wait_for("completed", "completed")
    until(lambda: "`inbox` was inbox at an earlier start. 1 of its files" in notices(root))
    until(lambda: list((root.folder / "in2" / "done").rglob("many~*.csv.result.json")))
    stop(watcher)
    assert "setting.moved" in root.said.read_text()
    assert list((root.inbox / ".claimed").glob("*~many.csv"))  # left alone, not lost

    configure(root, inbox="inbox")
    root.finish()
    kept = sorted(path.name.partition("~")[2][8:] for path in (root.inbox / "done").rglob("many~*"))
    assert kept == [".csv", ".csv.result.csv", ".csv.result.json"]
    assert len(pictures(root.folder)) == 2
    assert faults(root.folder, expected=2) == []


def test_moved_outputs_are_told_until_they_are_brought_along(
    make_root: Callable[..., Root],
) -> None:
    root = make_root()
    root.drop("a.yaml", "prompt: a steps=1\n")
    root.finish()
    configure(root, outputs="pictures")
    watcher = root.watch()
    until(lambda: "`outputs` was outputs" in notices(root))
    doctor = subprocess.run(
        ["steady", "--root", root.folder, "doctor"],
        env=root.environment() | {"PATH": _path()}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "`outputs` was outputs at an earlier start" in doctor.stdout + doctor.stderr
    for made in list((root.folder / "outputs").glob("[0-9]*")):
        made.rename(root.folder / "pictures" / made.name)
    until(lambda: not notices(root))
    stop(watcher)


def test_a_moved_record_is_told(make_root: Callable[..., Root]) -> None:
    root = make_root()
    root.drop("a.yaml", "prompt: a steps=1\n")
    root.finish()
    configure(root, database="other.db")
    watcher = root.watch()
    until(lambda: "`database` was steady.db" in notices(root))
    stop(watcher)
    configure(root, database="steady.db")
    (root.folder / "other.db").unlink()
    watcher = root.watch()
    until(lambda: root.pulse().get("state") == "running" and time.monotonic())
    until(lambda: not notices(root))
    stop(watcher)
    assert root.states() == ["completed"]


def test_a_root_that_moves_as_a_whole_says_nothing(make_root: Callable[..., Root]) -> None:
    root = make_root()
    root.drop("a.yaml", "prompt: a steps=1\n")
    root.finish()
    there = root.folder.with_name("elsewhere")
    root.folder.rename(there)
    watcher = Root.__new__(Root)
    watcher.__dict__ |= root.__dict__ | {"folder": there, "said": there / "watcher.log"}
    watcher.finish()
    assert "setting.moved" not in watcher.said.read_text()


def _path() -> str:
    import sys

    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
