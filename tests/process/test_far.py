"""Ray as an extra: nothing of it without it, and with it one job through a real cluster.

What happens when actors, machines and cables fail: test_ray.py (`make ray`).
"""

import importlib.util
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from engines import expected
from history import faults
from roots import TESTS, Root


@pytest.fixture
def without_ray(tmp_path: Path) -> str:
    """A path for Python on which everything is installed but Ray."""
    spec = importlib.util.find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    farm = tmp_path / "packages"
    farm.mkdir()
    for entry in Path(spec.origin).parents[1].iterdir():
        if entry.name.partition("-")[0] != "ray":
            (farm / entry.name).symlink_to(entry)
    return os.pathsep.join(map(str, (farm, TESTS.parent, TESTS)))


@pytest.fixture
def temporary() -> Iterator[Path]:
    """Where temporary files go; its name is short, as those of Ray's sockets must be."""
    with tempfile.TemporaryDirectory(prefix="far-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def test_without_the_extra_nothing_misses_it_and_asking_for_it_says_what_to_install(
    make_root: Callable[..., Root], without_ray: str
) -> None:
    root = make_root(executor="local")
    root.extra = {"PYTHONPATH": without_ray}
    root.drop("a.yaml", "prompt: a steps=2\n")
    whole = ("-S", str(TESTS / "crashing.py"), str(root.folder), "--once")
    assert root.spawn(*whole).wait(60) == 0, root.said.read_text()
    assert faults(root.folder, expected=1, log=root.log) == []
    settings = json.loads((root.folder / "config.yaml").read_text()) | {"executor": "ray"}
    (root.folder / "config.yaml").write_text(json.dumps(settings))
    assert root.spawn(*whole).wait(30) == 4
    assert "pip install 'steadydiffusion[ray]'" in root.said.read_text()


@pytest.mark.timeout(300)
def test_a_job_through_a_cluster_of_our_own_which_ctrl_c_ends(
    make_root: Callable[..., Root], temporary: Path
) -> None:
    root = make_root(executor="ray", device="cpu", ray_slots=1, engine="engines:Tracing")
    root.extra["TMPDIR"] = str(temporary)
    root.drop("a.yaml", "prompt: a steps=2\n")
    watcher = root.watch(wrapper=["setsid"])
    root.wait_for("completed", timeout=240)
    lose_the_files_of_the_slot(root)
    family = psutil.Process(watcher.pid).children(recursive=True)
    assert any(process.name() == "raylet" for process in family)
    for process in family:
        for socket in process.net_connections("inet"):
            listens = socket.status == psutil.CONN_LISTEN
            assert not listens or socket.laddr.ip in ("127.0.0.1", "::1", "::ffff:127.0.0.1")
    os.killpg(watcher.pid, signal.SIGINT)
    assert watcher.wait(60) == 0, root.said.read_text()[-3000:]
    left = [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert left == []
    assert faults(root.folder, expected=2, log=root.log) == []


def lose_the_files_of_the_slot(root: Root) -> None:
    """Somebody tidies the temporary folder of its machine, or fills it: no fault of the next job."""
    for folder in Path(root.extra["TMPDIR"]).glob("steady-files-*"):
        shutil.rmtree(folder)
    (root.folder / "inputs").mkdir(exist_ok=True)
    expected("input", 1, 64, 64).save(root.folder / "inputs" / "cat.png")
    root.drop("b.yaml", "{prompt: b steps=2, image: cat.png}")
    root.wait_for("completed", "completed", timeout=240)
    assert [job["deaths"] for job in root.jobs()] == [0, 0]
