"""Folders and settings that lead elsewhere: nothing is lost."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import until
from history import faults, pictures
from roots import Root


def configure(root: Root, **settings: object) -> None:
    path = root.folder / "config.yaml"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


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
    until(lambda: list((root.folder / "in2" / "done").rglob("many~*.csv.result.json")))
    stop(watcher)
    assert list((root.inbox / ".claimed").glob("*~many.csv"))  # left alone, not lost

    configure(root, inbox="inbox")
    root.finish()
    kept = sorted(path.name.partition("~")[2][8:] for path in (root.inbox / "done").rglob("many~*"))
    assert kept == [".csv", ".csv.result.csv", ".csv.result.json"]
    assert len(pictures(root.folder)) == 2
    assert faults(root.folder, expected=2) == []
