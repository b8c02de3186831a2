"""A job's journey through real processes: what a person sees, and what becomes of bad days."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import until
from engines import read_log
from history import faults, pictures, renders
from roots import Root

from watcher.pictures.recipe import read_recipe
from watcher.store import JobStore


def worker_of(root: Root) -> psutil.Process:
    """The one worker process of the watcher that runs on ``root``."""
    pid = until(lambda: root.pulse()["workers"][0]["pid"], what="a worker")
    return psutil.Process(pid)


def started(root: Root, prompt: str) -> bool:
    return any(e["event"] == "start" and e["prompt"] == prompt for e in read_log(root.log))


def record_of(root: Root) -> JobStore:
    """The record as the doors see it."""
    return JobStore(f"sqlite:///{root.folder / 'steady.db'}", checkpointer=False)


def test_a_dropped_file_becomes_a_picture_with_a_result_beside_it(
    make_root: Callable[..., Root],
) -> None:
    root = make_root()
    root.watch()
    root.drop("cats.yaml", "prompt: a cat steps=2\nwidth: 96\nheight: 64\nseed: 7\nlabel: c1\n")
    job = root.wait_for("completed")[0]
    picture = root.folder / "outputs" / job["path"]
    recipe = read_recipe(picture.read_bytes())
    assert recipe is not None
    assert recipe["request"]["prompt"] == "a cat steps=2"
    assert (recipe["request"]["width"], recipe["request"]["height"], recipe["seed"]) == (96, 64, 7)
    done = root.inbox / "done"
    result = until(lambda: list(done.rglob("cats~*.result.json")), what="the result file")[0]
    entry = json.loads(result.read_bytes())["jobs"][0]
    assert (entry["id"], entry["state"]) == (job["id"], "completed")
    assert (entry["picture"], entry["label"]) == (job["path"], "c1")
    assert result.with_name(result.name.removesuffix(".result.json")).is_file()


def test_bad_files_are_set_aside_with_words_and_disturb_nothing(
    make_root: Callable[..., Root],
) -> None:
    root = make_root()
    bad = {
        "empty.yaml": ("", "empty_file"),
        "latin.yaml": (b"prompt: caf\xe9\n", "encoding"),
        "shape.yaml": ("42\n", "bad_shape"),
        "broken.json": ("{", "bad_json"),
        "unknown.yaml": ("prompt: x\nwidht: 64\n", "unknown_field"),
        "size.yaml": ("prompt: x\nwidth: 100\n", "size_not_multiple_of_16"),
        "huge.yaml": ("prompt: x\nwidth: 160000\n", "out_of_range"),
        "steps.yaml": ("prompt: x\nsteps: 0\n", "out_of_range"),
        "seed.yaml": ("prompt: x\nseed: -1\n", "out_of_range"),
        "bomb.yaml": ("[" * 25_000, "unsafe_yaml"),
    }
    for name, (content, _code) in bad.items():
        root.drop(name, content)
    root.drop("good.yaml", "prompt: good\n")
    root.watch(once=True)
    refused = root.inbox / "refused"
    del bad["empty.yaml"]  # an empty file gets half a minute to be filled
    until(lambda: len(list(refused.glob("*.error.json"))) >= len(bad), 30, "the refusals")
    root.wait_for("completed")
    for name, (_content, code) in bad.items():
        body = json.loads((refused / f"{name}.error.json").read_bytes())
        codes = {body["code"]} | {p["code"] for p in body.get("problems", [])}
        assert code in codes, (name, body)
        assert body["file"] == name
        assert body["remedy"]
    problem = json.loads((refused / "size.yaml.error.json").read_bytes())["problems"][0]
    assert (problem["key"], problem["line"], problem["value"]) == ("width", 2, "100")
    assert "96" in problem["remedy"] + problem["message"]
    assert "112" in problem["remedy"] + problem["message"]


def test_the_file_moved_back_from_refused_is_tried_again(make_root: Callable[..., Root]) -> None:
    root = make_root()
    root.watch()
    root.drop("a.yaml", "prompt: x\nwidht: 64\n")
    refused = root.inbox / "refused" / "a.yaml"
    until(refused.exists, what="the refusal")
    refused.write_text("prompt: x\nwidth: 64\n")
    refused.rename(root.inbox / "a.yaml")
    root.wait_for("completed")


def test_a_killed_worker_costs_a_rendering_and_no_job(make_root: Callable[..., Root]) -> None:
    root = make_root()
    root.watch()
    root.drop("a.yaml", "prompt: a steps=8 sleep=0.1\n")
    until(lambda: started(root, "a steps=8 sleep=0.1"), what="the start")
    worker_of(root).kill()
    root.wait_for("completed")
    assert len(pictures(root.folder)) == 1
    assert list(renders(root.log).values()) == [1]


def test_a_job_that_always_crashes_ends_after_two_deaths_and_the_others_run(
    make_root: Callable[..., Root],
) -> None:
    root = make_root()
    root.drop("a.json", json.dumps([{"prompt": p} for p in ("one", "segv", "two", "three")]))
    root.watch()
    jobs = root.wait_for("completed", "failed", "completed", "completed", timeout=40)
    assert jobs[1]["error_code"] == "worker_crashed"
    assert sum(e["event"] == "fault" for e in read_log(root.log)) == 2


def test_failed_jobs_say_why(make_root: Callable[..., Root]) -> None:
    root = make_root()
    codes = {"raise": "engine_failed", "oom": "out_of_memory", "nan": "non_finite"}
    root.drop("a.json", json.dumps([{"prompt": p} for p in codes]))
    root.watch()
    jobs = root.wait_for("failed", "failed", "failed")
    assert [job["error_code"] for job in jobs] == list(codes.values())


def test_five_failures_of_one_class_pause_the_queue_until_a_person_resumes(
    make_root: Callable[..., Root],
) -> None:
    root = make_root()
    root.drop("a.json", json.dumps([{"prompt": "raise", "count": 6}, {"prompt": "fine"}]))
    watcher = root.watch()
    until(lambda: root.states().count("failed") == 5, 30, "five failures")
    until(lambda: root.pulse().get("state") == "paused", what="the pause")
    watcher.send_signal(signal.SIGTERM)
    assert watcher.wait(15) == 0
    root.watch()
    until(lambda: root.pulse().get("state") == "paused", what="still paused after a restart")
    assert root.states().count("queued") == 2
    record = record_of(root)
    record.drop("paused")
    record.close()
    root.wait_for(*["failed"] * 6, "completed")


def test_cancel_stops_a_running_job_without_a_picture_and_keeps_the_worker(
    make_root: Callable[..., Root],
) -> None:
    root = make_root()
    root.watch()
    root.drop("a.yaml", "prompt: long steps=200 sleep=0.05\n")
    until(lambda: started(root, "long steps=200 sleep=0.05"), what="the start")
    worker = worker_of(root).pid
    record = record_of(root)
    record.cancel(root.jobs()[0]["id"])
    record.close()
    root.wait_for("cancelled")
    root.drop("b.yaml", "prompt: next\n")
    root.wait_for("cancelled", "completed")
    assert worker_of(root).pid == worker
    assert len(pictures(root.folder)) == 1


def test_sigterm_ends_everything_in_time_and_the_running_job_waits_again(
    make_root: Callable[..., Root],
) -> None:
    root = make_root()
    watcher = root.watch()
    root.drop("a.yaml", "prompt: long steps=400 sleep=0.05\n")
    until(lambda: started(root, "long steps=400 sleep=0.05"), what="the start")
    worker = worker_of(root)
    watcher.send_signal(signal.SIGTERM)
    assert watcher.wait(10) == 0
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE
    job = root.jobs()[0]
    assert (job["state"], job["watcher_deaths"], job["deaths"]) == ("queued", 0, 0)


def test_a_second_watcher_on_one_root_exits_with_a_sentence(make_root: Callable[..., Root]) -> None:
    root = make_root()
    root.watch()
    until(lambda: root.pulse().get("state") == "running", what="the first watcher")
    assert root.watch().wait(20) == 4
    assert "Another watcher" in root.said.read_text()


def test_outputs_that_vanish_cost_no_job(make_root: Callable[..., Root]) -> None:
    root = make_root()
    root.watch()
    root.drop("a.yaml", "prompt: first\n")
    root.wait_for("completed")
    outputs = root.folder / "outputs"
    outputs.rename(root.folder / "elsewhere")
    until(lambda: root.pulse().get("trouble"), what="the trouble in the pulse")
    root.drop("b.yaml", "prompt: second\n")
    until(lambda: len(root.states()) == 2, what="the recording")
    assert root.states() == ["completed", "queued"]
    (root.folder / "elsewhere").rename(outputs)
    until(lambda: faults(root.folder, expected=2) == [], what="both jobs whole")


def test_a_person_may_pause_and_the_pause_survives(make_root: Callable[..., Root]) -> None:
    root = make_root()
    watcher = root.watch()
    until(lambda: root.pulse().get("state") == "running", what="the watcher")
    record = record_of(root)
    record.put("paused", {"by": "person", "reason": "", "since": 0})
    root.drop("a.yaml", "prompt: waits\n")
    until(lambda: root.states() == ["queued"], what="the recording")
    watcher.send_signal(signal.SIGKILL)
    watcher.wait()
    root.watch()
    until(lambda: root.pulse().get("state") == "paused", what="paused again")
    assert root.states() == ["queued"]
    record.drop("paused")
    record.close()
    root.wait_for("completed")


def test_no_process_but_the_worker_has_torch(make_root: Callable[..., Root]) -> None:
    root = make_root()
    root.watch()
    root.drop("a.yaml", "prompt: a\n")
    root.wait_for("completed")
    pid = root.pulse()["pid"]
    assert "libtorch" not in Path(f"/proc/{pid}/maps").read_text()
    assert psutil.Process(pid).memory_info().rss < 120 * 2**20


def test_a_table_runs_before_it_is_all_in_and_bad_rows_come_back(
    make_root: Callable[..., Root],
) -> None:
    root = make_root()
    rows = [f"row {i} steps=1,64" for i in range(30)]
    rows[6] = "row 6,65"
    root.drop("night.csv", "prompt,width\n" + "\n".join(rows) + "\n")
    root.watch(once=True).wait(60)
    assert root.states() == ["completed"] * 29
    back = next((root.inbox / "done").rglob("*.refused.csv")).read_text()
    assert "row 6" in back
    assert "error" in back.splitlines()[0]
    assert faults(root.folder, expected=29) == []


@pytest.mark.parametrize("name", ["named.yaml", "named.json"])
def test_a_key_makes_a_repeat_harmless_and_another_content_a_conflict(
    make_root: Callable[..., Root], name: str
) -> None:
    root = make_root()
    root.watch()
    body: dict[str, Any] = {"prompt": "once", "key": "monday"}
    root.drop(name, json.dumps(body))
    root.wait_for("completed")
    root.drop("again-" + name, json.dumps(body))
    until(
        lambda: list((root.inbox / "done").rglob(f"again-*{name[-5:]}")), 20, "the repeat in done/"
    )
    root.drop("other-" + name, json.dumps(body | {"prompt": "else"}))
    reason = root.inbox / "refused" / f"other-{name}.error.json"
    until(reason.exists, what="the refusal")
    assert json.loads(reason.read_bytes())["code"] == "key_conflict"
    assert root.states() == ["completed"]


def test_an_engine_may_be_named_in_the_environment(make_root: Callable[..., Root]) -> None:
    root = make_root()
    settings = json.loads((root.folder / "config.yaml").read_text())
    del settings["engine"]
    (root.folder / "config.yaml").write_text(json.dumps(settings))
    root.extra = {"STEADY_ENGINE": "engines:Scripted"}
    root.drop("a.yaml", "prompt: a\n")
    root.finish()
    assert root.states() == ["completed"]
