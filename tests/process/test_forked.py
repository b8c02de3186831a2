"""What the tests' processes are forked from has all of it imported: else each does that by itself."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator

import psutil
import pytest
from conftest import until
from forked import CAN_CLONE, run
from roots import Root

WATCH = """
import json, sys
had = set(sys.modules)
from watcher import service
from watcher.config import Config
code = service.run(Config.load("."), once=True)
print(json.dumps(sorted(set(sys.modules) - had)))
sys.exit(code)
"""


def test_a_watcher_has_nothing_left_to_import(make_root: Callable[..., Root]) -> None:
    root = make_root()
    root.drop("a.yaml", "prompt: a fox\n")
    script = root.folder / "watch.py"
    script.write_text(WATCH)
    done = run([str(script)], cwd=root.folder, env=root.environment())
    assert done.returncode == 0, done.stderr[-3000:]
    assert root.states() == ["completed"]
    assert json.loads(done.stdout) == []


def held_by(pid: int) -> Iterator[str]:
    """What a process has open, but for the engine's log."""
    for each in os.scandir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # it was just closed
            if "engine.log" not in (path := os.readlink(each.path)):
                yield path


@pytest.mark.skipif(not CAN_CLONE, reason="here every process is started as in production")
def test_a_cloned_worker_is_its_watcher_s_own_child_and_holds_nothing_of_it(
    make_root: Callable[..., Root],
) -> None:
    root = make_root()
    watcher = root.watch()
    pid = until(lambda: next(iter(root.pulse().get("workers", ())), {}).get("pid"))
    worker = psutil.Process(pid)
    assert "watcher.worker" not in worker.cmdline()
    assert (worker.ppid(), os.getsid(pid)) == (watcher.pid, pid)
    until(lambda: not [path for path in held_by(pid) if str(root.folder) in path], 20)
    watcher.kill()
    watcher.wait()
    until(lambda: not psutil.pid_exists(pid))
