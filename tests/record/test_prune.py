"""Tidying away: what is old goes, in an order a kill does no harm to; nothing else ever does."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from history import pictures
from roots import Root

from watcher import checkpoints, prune
from watcher.config import Config
from watcher.inputs import Inputs
from watcher.pictures.outputs import Outputs
from watcher.prune import Pruned, Pruner
from watcher.store import JobStore

Make = Callable[..., Root]
HOUR = 3_600_000_000


class Cut(BaseException):
    """The process ends here."""


def store_of(root: Root) -> JobStore:
    return JobStore(f"sqlite:///{root.folder / 'steady.db'}", checkpointer=False)


def pruner(root: Root, store: JobStore) -> Pruner:
    config = Config.load(root.folder)
    inputs = Inputs(config, store)
    return Pruner(store, Outputs(config.outputs), root.inbox, inputs, config.uploads)


def soon() -> int:
    return time.time_ns() // 1000 + HOUR


def filled(root: Root) -> None:
    """Two finished batches, one of a table with a bad row, and a job that waits for 2099."""
    root.drop(
        "a.csv", "prompt,width\n" + "".join(f"a{i} steps=1,64\n" for i in range(5)) + "x,65\n"
    )
    root.drop("b.yaml", "prompt: b steps=1\nkey: b\n")
    root.drop("later.yaml", "prompt: later\nnot_before: 2099-01-01\n")
    root.finish()


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_old_batches_go_and_pictures_and_waiting_jobs_stay(make_root: Make) -> None:
    root = make_root()
    filled(root)
    before = pictures(root.folder)
    assert len(before) == 6
    store = store_of(root)
    assert pruner(root, store).prune(soon(), dry_run=True) == Pruned(2, 6)
    assert len(root.jobs()) == 7
    young = time.time_ns() // 1000 - HOUR
    assert pruner(root, store).prune(young).batches == 0
    assert len(files(root.inbox / ".rows")) == 1
    gone = pruner(root, store).prune(soon())
    assert (gone.batches, gone.jobs, gone.pictures) == (2, 6, 0)
    assert [j["prompt"] for j in root.jobs()] == ["later"]
    assert pictures(root.folder) == before
    assert files(root.inbox / "done") + files(root.inbox / ".rows") == []
    assert [f for f in files(root.folder / "outputs") if f.startswith(".thumbs")] == []
    counts = {state.value: n for state, n in store.counts().items() if n}
    assert counts == {"queued": 1}
    store.close()
    # a name is never given twice, even when its job is forgotten
    root.drop("a.csv", "prompt\na1 steps=1\na2 steps=1\n")
    root.finish()
    assert len(pictures(root.folder)) == 8


def test_uploads_go_with_the_batches_they_were_for(make_root: Make) -> None:
    root = make_root()
    filled(root)
    store = store_of(root)
    folder = Config.load(root.folder).uploads
    folder.mkdir()

    def kept(ident: str, **note: str) -> set[str]:
        (folder / f"{ident}.json").write_text(json.dumps({"id": ident, **note}))
        (folder / f"{ident}.jsonl").touch()
        return {f"{ident}.json", f"{ident}.jsonl"}

    tickets = {j["prompt"]: j["ticket"].replace("-", "") for j in root.jobs()}
    stays = kept("file-1") | kept(f"batch_{tickets['later']}", input_file_id="file-1")
    kept("file-2")
    kept(f"batch_{tickets['b steps=1']}", input_file_id="file-2")
    kept("file-3")
    (folder / "file-4.jsonl").touch()  # an upload that was cut off
    every = set(files(folder))
    assert pruner(root, store).prune(time.time_ns() // 1000 - HOUR).files == 0
    assert set(files(folder)) == every
    pruner(root, store).prune(soon())
    assert set(files(folder)) == stays
    store.close()


def test_pictures_go_when_told(make_root: Make) -> None:
    root = make_root()
    filled(root)
    store = store_of(root)
    gone = pruner(root, store).prune(soon(), images=True)
    store.close()
    assert gone.pictures == 6 and pictures(root.folder) == []


def test_pictures_behind_a_link_stay_and_stop_nothing(make_root: Make, tmp_path: Path) -> None:
    root = make_root()
    root.drop("a.yaml", "{prompt: a steps=1, folder: cats}")
    root.drop("b.yaml", "prompt: b steps=1")
    root.finish()
    folder = root.folder / "outputs" / "cats"
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    store = store_of(root)
    gone = pruner(root, store).prune(soon(), images=True)
    store.close()
    assert (gone.batches, gone.pictures) == (2, 1)
    assert len(files(tmp_path / "elsewhere")) == 1
    assert [f for f in files(root.folder / "outputs") if f.startswith(".thumbs")] == []


@pytest.mark.parametrize(
    "point", ["files_dropped", "pictures_dropped", "jobs_dropped", "batch_dropped"]
)
def test_a_cut_at_any_step_is_finished_by_the_next(
    make_root: Make, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    root = make_root()
    filled(root)
    store = store_of(root)

    def cut(step: str) -> None:
        if step == point:
            raise Cut

    with monkeypatch.context() as patch, pytest.raises(Cut):
        patch.setattr(checkpoints, "after", cut)
        pruner(root, store).prune(soon(), images=True)
    assert len(pictures(root.folder)) in (0, 1, 5, 6)
    pruner(root, store).prune(soon(), images=True)
    store.close()
    assert [j["prompt"] for j in root.jobs()] == ["later"]
    assert pictures(root.folder) == [] and files(root.inbox / "done") == []
    root.finish()


def test_a_job_that_runs_again_keeps_its_batch(
    make_root: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And all that it needs: what is gone of it are jobs that had no picture."""
    root = make_root()
    root.drop("a.json", json.dumps(["fine steps=1", "raise once", "raise b once"]))
    root.finish()
    store = store_of(root)
    ticket = root.jobs()[0]["ticket"]
    lie = files(root.inbox / "done"), pictures(root.folder)
    again: list[int] = []

    def run_again(step: str) -> None:
        if step == "jobs_dropped" and len(root.jobs()) == 2:
            again.append(store.retry_failed(ticket))

    with monkeypatch.context() as patch:
        patch.setattr(prune, "_CHUNK", 1)
        patch.setattr(checkpoints, "after", run_again)
        gone = pruner(root, store).prune(soon(), images=True)
    assert again == [1]
    assert gone == Pruned(jobs=1)
    assert (files(root.inbox / "done"), pictures(root.folder)) == lie
    assert pruner(root, store).prune(soon()).batches == 0
    store.close()
    root.finish()
    assert root.states() == ["completed"] * 2


def test_who_could_run_again_goes_first(make_root: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """So nobody wants back what has begun to go, and a dry run knows what would go."""
    root = make_root()
    root.drop("a.json", json.dumps(["fine steps=1", "raise once", "rated steps=1"]))
    root.finish()
    store = store_of(root)
    ticket = root.jobs()[0]["ticket"]
    store.rate(next(job["id"] for job in root.jobs() if job["prompt"] == "rated steps=1"), 5)
    assert pruner(root, store).prune(soon(), images=True, dry_run=True) == Pruned(0, 2, 1)

    def run_again(step: str) -> None:
        assert store.retry_failed(ticket) == 0, step

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "after", lambda s: s != "pictures_dropped" and run_again(s))
        gone = pruner(root, store).prune(soon(), images=True)
    store.close()
    assert (gone.batches, gone.jobs, gone.pictures) == (0, 2, 1)
    assert [job["prompt"] for job in root.jobs()] == ["rated steps=1"]


def test_repeats_left_in_done_go_when_they_are_old(make_root: Make) -> None:
    root = make_root()
    for _ in range(2):
        root.drop("b.yaml", "prompt: b steps=1\nkey: b\n")
        root.finish()
    old = time.time() - 40 * 86400
    for path in (root.inbox / "done").rglob("b~*"):
        os.utime(path, (old, old))
    assert len(files(root.inbox / "done")) == 4
    done = root.steady("prune", "--older-than", "30d", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["files"] == 2  # the batch itself is of today
    assert len(files(root.inbox / "done")) == 2
    assert root.steady("prune", "--older-than", "x").returncode == 2
