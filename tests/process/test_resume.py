"""The same batch again: only what is missing or changed runs, through every door."""

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from conftest import until
from history import faults, pictures
from roots import Root

from watcher.intake.resume import Standing, Verdict
from watcher.jobs import Job, JobRequest, JobState, Priority, derived_seed, job_ids_of

Make = Callable[..., Root]
TICKET = "6f1a4f0e-8a55-5a0e-9b5e-2f6a3f1c7d10"


def job(index: int, prompt: str, state: str = "completed", seed: int | None = None) -> Job:
    id_ = job_ids_of(TICKET)(index, None)
    request = JobRequest(prompt=prompt, seed=derived_seed(id_) if seed is None else seed)
    return Job(
        seq=index, id=id_, ticket=TICKET, index=index, state=JobState(state), rev=index,
        request=request, image_name="", folder="", path="", priority=Priority.BULK, created_at=0,
        forwards=8,
    )  # fmt: skip


def test_each_job_on_record_stands_for_one_row() -> None:
    standing = Standing(TICKET, [job(0, "a"), job(1, "a"), job(2, "b", seed=7)])
    a, b = JobRequest(prompt="a"), JobRequest(prompt="b", seed=7)
    assert [standing.judge(r) for r in (b, a, a)] == [Verdict()] * 3
    third = standing.judge(a)
    assert third.new and third.again is None
    assert standing.judge(JobRequest(prompt="b", seed=8)).new
    assert standing.next_index == 3


def test_a_job_that_is_there_stands_for_its_row_in_the_new_file() -> None:
    there = [replace(job(n, "same"), row=n + 1) for n in range(3)]
    standing = Standing(TICKET, [*there, replace(job(3, "other", "failed"), row=4)])
    verdicts = [standing.judge(JobRequest(prompt="same"), row) for row in (1, 5)]
    assert verdicts == [Verdict(), Verdict(moved=1)]
    again = standing.judge(JobRequest(prompt="other"), 6)
    assert (again.again, again.moved) == (job(3, "other").id, 3)
    assert list(standing.gone()) == [2]


def test_what_failed_runs_again_and_reading_twice_gives_the_same_ids() -> None:
    jobs = [job(0, "a", "failed"), job(1, "b", "cancelled"), job(2, "c", "queued")]
    rows = [JobRequest(prompt=p) for p in "abcdd"]
    first = [Standing(TICKET, jobs).judge(r) for r in rows[:1]]
    assert first == [Verdict(again=jobs[0].id)]
    one, two = (Standing(TICKET, jobs) for _ in range(2))
    verdicts = [one.judge(r) for r in rows]
    assert verdicts == [two.judge(r) for r in rows]
    assert verdicts[1] == Verdict(again=jobs[1].id) and verdicts[2] == Verdict()
    assert len({v.new for v in verdicts[3:]}) == 2


def night(count: int, changed: int | None = None) -> str:
    prompts = [f"row {i} steps=1" + (" changed" if i == changed else "") for i in range(count)]
    return json.dumps({"key": "night", "resume": True, "jobs": prompts})


def test_killed_at_37_of_100_then_63_then_none_then_one(make_root: Make) -> None:
    root = make_root()
    root.drop("night.json", night(100))
    watcher = root.watch()
    until(lambda: root.states().count("completed") >= 37, 60, "37 pictures")
    watcher.send_signal(signal.SIGKILL)
    watcher.wait()
    root.finish()
    assert faults(root.folder, expected=100, log=root.log, kills=1) == []
    before = sorted(pictures(root.folder))
    root.drop("night.json", night(100))
    root.finish()
    assert sorted(pictures(root.folder)) == before
    root.drop("night.json", night(100, changed=37))
    root.finish()
    assert len(pictures(root.folder)) == 101
    assert [j["prompt"] for j in root.jobs()][100:] == ["row 37 steps=1 changed"]
    results = sorted((root.inbox / "done").rglob("*.result.json"), key=lambda p: p.stat().st_mtime)
    assert len(results) == 3
    assert len(json.loads(results[-1].read_bytes())["jobs"]) == 101
    assert len({j["ticket"] for j in root.jobs()}) == 1


def test_without_a_key_two_evenings_make_two_sets(make_root: Make) -> None:
    root = make_root()
    for evening in (1, 2):
        root.drop("night.csv", "prompt\n" + "".join(f"row {i} steps=1\n" for i in range(10)))
        root.finish()
        assert len(pictures(root.folder)) == 10 * evening


def test_a_table_goes_on_by_the_command_line(make_root: Make, tmp_path: Path) -> None:
    root = make_root()
    table = tmp_path / "night.csv"

    def rows(*prompts: str) -> None:
        table.write_text("prompt\n" + "".join(f"{p} steps=1\n" for p in prompts))

    rows(*(f"row {i}" for i in range(30)), "raise once")
    assert root.steady("submit", "--key", "n", "--resume", str(table)).returncode == 0
    root.finish()
    assert root.states().count("completed") == 30
    assert root.jobs()[4]["image_name"] == "night_0005"
    assert root.steady("submit", "--key", "n", "--resume", str(table)).returncode == 0
    root.finish()
    assert root.states() == ["completed"] * 31  # the failed one ran again
    rows("row new", *(f"row {i}" for i in range(30)), "raise once")
    assert root.steady("submit", "--key", "n", str(table)).returncode == 2  # another content
    assert root.steady("submit", "--key", "n", "--resume", str(table)).returncode == 0
    root.finish()
    assert [j["prompt"] for j in root.jobs()][31:] == ["row new steps=1"]
    assert root.steady("submit", "--resume", str(table)).returncode == 2


def test_a_resume_survives_a_kill_at_every_step(make_root: Make) -> None:
    for point in ("retried", "recorded"):
        root = make_root(point)
        root.drop("a.json", json.dumps({"key": "k", "jobs": ["one", "raise once", "three"]}))
        root.finish()
        body = {"key": "k", "resume": True, "jobs": ["one", "raise once", "three", "four"]}
        root.drop("a.json", json.dumps(body))
        assert root.watch(point=point, once=True).wait(60) == -signal.SIGKILL, point
        root.finish()
        found = faults(root.folder, expected=4, log=root.log, kills=1)
        # the result file of the first evening tells what there was then
        assert [f for f in found if "tells 3 jobs" not in f] == [], point


def test_a_resume_takes_over_from_a_batch_in_progress(make_root: Make) -> None:
    root = make_root()
    watcher = root.watch()
    slow = [f"row {i} steps=1 sleep=0.05" for i in range(12)]
    root.drop("a.json", json.dumps({"key": "k", "jobs": slow}))
    until(lambda: len(root.jobs()) == 12, what="the recording")
    root.drop("a.json", json.dumps({"key": "k", "resume": True, "jobs": [*slow, "more"]}))
    until(lambda: root.states() == ["completed"] * 13, 30, "all of both")
    watcher.send_signal(signal.SIGTERM)
    assert watcher.wait(20) == 0
    root.finish()
    assert faults(root.folder, expected=13, log=root.log) == []
