"""What the tests' processes are forked from has all of it imported: else each does that by itself."""

import json
from collections.abc import Callable

from forked import run
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
