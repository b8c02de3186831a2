"""The command run when a batch is done: what it is told, that nothing waits for it, and crashes."""

import contextlib
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import until
from history import rows
from roots import Root

from watcher.notify import Notifier
from watcher.store import Delivery, JobStore
from watcher.webhooks import Reply

Make = Callable[..., Root]

#: Notes what it was told; while a file ``wait`` lies there it does not end.
SCRIPT = """
import json, os, pathlib, subprocess, sys, time
here = pathlib.Path(os.environ["STEADY_ROOT"])
told = {k[7:]: v for k, v in os.environ.items() if k.startswith("STEADY_")}
if (here / "ask").exists():
    done = subprocess.run([sys.executable, "-m", "watcher.cli", "list", "--json"], capture_output=True)
    told["LISTED"] = str(done.returncode)
draft = here / f"draft-{told['DELIVERY']}-{told['ATTEMPT']}"
draft.write_text(json.dumps(told))
draft.rename(here / f"told-{told['DELIVERY']}-{told['ATTEMPT']}.json")
while (here / "wait").exists():
    time.sleep(0.02)
sys.exit(3 if (here / "fail").exists() else 0)
"""


@pytest.fixture
def make(make_root: Make, tmp_path: Path) -> Make:
    """Roots whose ``on_batch_done`` is SCRIPT."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    return lambda *words, **settings: make_root(
        *words, on_batch_done=[sys.executable, str(script)], **settings
    )


def told(root: Root) -> list[dict[str, Any]]:
    """What the command was told each time it ran, oldest first."""
    paths = sorted(root.folder.glob("told-*.json"), key=lambda path: path.stat().st_mtime_ns)
    return [json.loads(path.read_text()) for path in paths]


def test_the_command_is_told_everything_about_its_batch(make: Make) -> None:
    root = make()
    (root.folder / "ask").touch()
    root.drop("cats.csv", "prompt,width\na cat steps=1,64\nno,65\na raise,64\n")
    root.finish()
    [facts] = told(root)
    [batch] = rows(root.folder, "SELECT * FROM batches")
    assert (facts["EVENT"], facts["ATTEMPT"], facts["SOURCE"]) == ("batch.completed", "1", "file")
    assert (facts["TICKET"], facts["FILE"]) == (batch["ticket"], "cats.csv")
    counted = [facts[n] for n in ("JOBS", "COMPLETED", "FAILED", "CANCELLED", "REFUSED_ROWS")]
    assert counted == ["2", "1", "1", "0", "1"]
    for name, begin in (("ARCHIVED", "prompt,width"), ("RESULT", "{"), ("TABLE", "\ufeffrow,"),
                        ("REFUSED", "\ufeffprompt,width,error")):  # fmt: skip
        assert Path(facts[name]).read_text(encoding="utf-8").startswith(begin), name
    assert (Path(facts["ROOT"]), Path(facts["OUTPUTS"])) == (root.folder, root.folder / "outputs")
    assert facts["URL"].endswith(f"/batches/{batch['ticket']}")
    assert facts["CREATED_AT"] <= facts["ENDED_AT"] and facts["SECONDS"].isdigit()
    assert facts["LISTED"] == "0"  # a command of ours inside it takes none of this for a setting
    table = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
    assert all(f"`STEADY_{name}`" in table for name in facts if name != "LISTED")


def test_nothing_waits_for_the_command(make: Make) -> None:
    root = make()
    (root.folder / "wait").touch()
    watcher = root.watch()
    for name in ("one", "two", "three"):
        root.drop(f"{name}.json", json.dumps({"prompt": f"{name} steps=1"}))
    until(lambda: len(list((root.inbox / "done").rglob("*.result.json"))) == 3, 30, "all archived")
    assert len(until(lambda: told(root), 30, "the first command")) == 1
    watcher.send_signal(signal.SIGTERM)
    assert watcher.wait(20) == 0
    assert len(told(root)) == 1
    (root.folder / "wait").unlink()
    root.finish()
    attempts = {(each["TICKET"], each["ATTEMPT"]) for each in told(root)}
    first = told(root)[0]["TICKET"]
    assert len(attempts) == 4 and {(first, "1"), (first, "2")} <= attempts
    assert rows(root.folder, "SELECT DISTINCT state FROM deliveries") == [{"state": "delivered"}]


def test_a_kill_between_the_archive_and_the_command_loses_nothing(make: Make) -> None:
    for point in ("archived_files", "archived"):
        root = make(point)
        root.drop("a.json", '{"prompt": "a steps=1"}')
        assert root.watch(point=point, once=True).wait(60) == -signal.SIGKILL
        root.finish()
        assert {(each["FILE"]) for each in told(root)} == {"a.json"}
        assert len({each["DELIVERY"] for each in told(root)}) == 1


def test_a_command_that_fails_or_is_not_there_is_said_once(make: Make, make_root: Make) -> None:
    root = make()
    (root.folder / "fail").touch()
    root.drop("a.json", '{"prompt": "a steps=1"}')
    root.finish()
    root.finish()
    assert len(told(root)) == 1
    gone = make_root("gone", on_batch_done=["/nowhere/at-all"])
    gone.drop("a.json", '{"prompt": "a steps=1"}')
    gone.finish()
    for each, words in ((root, "exit code 3"), (gone, "No such file")):
        [row] = rows(each.folder, "SELECT state, last_error FROM deliveries")
        assert row["state"] == "dead" and words in row["last_error"]
        assert each.said.read_text().count("hook.failed") == 1


def test_without_a_command_nothing_is_written_for_one(make_root: Make) -> None:
    root = make_root()
    root.drop("a.json", '{"prompt": "a steps=1"}')
    root.finish()
    assert rows(root.folder, "SELECT * FROM deliveries") == []


class Brittle:
    """A channel of our own whose first delivery is a fault of ours."""

    once = False

    def __init__(self) -> None:
        self.got: list[str] = []
        self.events = {"bad": ("notify.test",), "good": ("notify.test",)}

    def knows(self, endpoint: str) -> bool:
        return endpoint in self.events

    def quiet_seconds(self) -> float:
        return 0.0

    def close(self, *, at_once: bool) -> None:
        pass

    def send(self, due: Delivery) -> Reply:
        if due.endpoint == "bad" and due.attempt < 2:
            raise KeyError("a column that this record did not have")
        self.got.append(due.endpoint)
        return Reply(200)


def test_a_delivery_that_cannot_be_told_is_tried_again_and_holds_up_nobody(tmp_path: Path) -> None:
    channel = Brittle()
    with contextlib.closing(JobStore(f"sqlite:///{tmp_path}/steady.db")) as store:
        notifier = Notifier(store, [channel], schedule=[0.0, 0.05, 0.05])
        notifier.start()
        notifier.tell("notify.test", {})
        until(lambda: sorted(channel.got) == ["bad", "good"], 30, "both")
        until(lambda: notifier.idle, 30, "the record")
        told = {each.endpoint: (each.state, each.attempt) for each in store.deliveries()}
        notifier.stop()
    assert told == {"bad": ("delivered", 2), "good": ("delivered", 1)}
