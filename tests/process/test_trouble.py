"""Bad surroundings cost no job: each is made for real around a running service, shows in its
pulse within 15 seconds, and is over by itself when the surroundings are mended."""

import contextlib
import datetime
import json
import os
import pickle
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import until
from doors import Running
from engines import expected, read_log
from history import faults, pictures, renders, rows
from namespaces import lowered
from roots import Root

from watcher.errors import ERRORS, ErrorClass, SteadyError, Trouble

SHOWN = 15  #: seconds after which everybody must be told
LONG = "long steps=10 sleep=0.1"


@pytest.fixture
def mounted() -> Iterator[Callable[..., None]]:
    """mount(8); whatever is mounted is unmounted at the end."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts")
    points: list[Path] = []

    def mount(point: Path, *options: str) -> None:
        point.mkdir(exist_ok=True, parents=True)
        subprocess.run(["mount", *options, point], check=True)
        points.append(point)

    yield mount
    for point in reversed(points):
        subprocess.run(["umount", "-l", point], stderr=subprocess.DEVNULL)


def remount(point: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", point], check=True)


def fill(folder: Path) -> Path:
    """Take every byte that is left on the disk of ``folder``."""
    hog = folder / ".hog"
    with hog.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))
    return hog


def running(root: Root, prompt: str = LONG) -> None:
    """Wait until ``prompt`` is being rendered."""
    until(
        lambda: any(e["event"] == "start" and e["prompt"] == prompt for e in read_log(root.log)),
        30,
        f"the start of {prompt}",
    )


def told(root: Root, code: str) -> None:
    """Within 15 s a living pulse says so."""
    until(lambda: code in root.troubles(), SHOWN, f"{code}; {root.pulse()}")


def over(root: Root) -> None:
    until(lambda: root.pulse().get("trouble") == [], SHOWN, f"no trouble; {root.pulse()}")


def whole(root: Root, jobs: int, timeout: float = 30) -> None:
    """Everything ended as it should: no job paid."""
    until(lambda: root.states() == ["completed"] * jobs, timeout, f"{root.states()}")
    until(
        lambda: faults(root.folder, expected=jobs) == [],
        20,
        f"{faults(root.folder, expected=jobs)}",
    )
    assert all(not job["deaths"] and not job["watcher_deaths"] for job in root.jobs())


# ---------------------------------------------------------------- disks


def break_full(place: Path) -> Callable[[], None]:
    hog = fill(place)
    return hog.unlink


def break_read_only(place: Path) -> Callable[[], None]:
    remount(place, "ro")
    return lambda: remount(place, "rw")


@pytest.mark.parametrize("where", ["inbox", "outputs"])
@pytest.mark.parametrize(
    ("spoil", "code"), [(break_full, "disk_full"), (break_read_only, "folder_gone")]
)
def test_a_disk_that_cannot_be_written(
    make_root: Callable[..., Root],
    mounted: Callable[..., None],
    tmp_path: Path,
    where: str,
    spoil: Callable[[Path], Callable[[], None]],
    code: str,
) -> None:
    place = tmp_path / "root" / where
    mounted(place, "-t", "tmpfs", "-o", "size=1m", "none")
    root = make_root(min_free_disk=0)
    root.watch()
    shutil.copy(root.folder / "config.yaml", root.folder / "draft")  # a copy: another disk
    (root.folder / "draft").write_text(f"- prompt: {LONG}\n- prompt: next\n")
    shutil.copy(root.folder / "draft", root.inbox / "a.yaml")
    running(root)
    mend = spoil(place)
    told(root, code)
    mend()
    whole(root, 2)
    over(root)
    assert list(renders(root.log).values()) == [1, 1]  # what was drawn waited for its disk


@pytest.mark.parametrize("moment", ["drawn", "killed"])
@pytest.mark.parametrize(
    "words", ["leads out of the outputs folder.", "is a file, and a folder is needed."]
)
def test_a_folder_that_is_none_any_more_costs_only_its_own_jobs(
    make_root: Callable[..., Root], tmp_path: Path, moment: str, words: str
) -> None:
    """Somebody moves a folder of pictures to another disk and leaves a link, or a file has its name:
    said before a picture is drawn in vain, or at the next start, and nothing behind it is touched."""
    root = make_root()
    (tmp_path / "elsewhere").mkdir()
    folder = root.folder / "outputs" / "cats"
    folder.parent.mkdir(exist_ok=True)
    root.drop("a.yaml", "{prompt: a steps=1, folder: cats}")
    if moment == "killed":
        assert root.watch(point="picture_received").wait(30) == -signal.SIGKILL
    if words.startswith("leads"):
        folder.symlink_to(tmp_path / "elsewhere")
    else:
        folder.write_text("not a folder")
    root.drop("b.yaml", "prompt: b steps=1")
    root.finish()
    job = next(job for job in root.jobs() if job["prompt"] == "a steps=1")
    assert (job["state"], job["error_code"]) == ("failed", "bad_name")
    assert job["error_message"] == f"`cats` {words}"
    assert sorted(root.states()) == ["completed", "failed"]
    assert sum(renders(root.log).values()) == 1 + (moment == "killed")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_the_records_disk_alone_is_full(
    make_root: Callable[..., Root], mounted: Callable[..., None], tmp_path: Path
) -> None:
    """There is no room for the WAL; pictures, job files and the pulse lie elsewhere."""
    place = tmp_path / "root" / "record"
    mounted(place, "-t", "tmpfs", "-o", "size=1m", "none")
    (tmp_path / "root" / "steady.db").symlink_to(place / "steady.db")
    root = make_root(min_free_disk=0, database=str(place / "steady.db"))
    root.watch()
    root.drop("a.yaml", f"- prompt: {LONG}\n- prompt: next\n")
    running(root)
    mend = break_full(place)
    told(root, "disk_full")
    mend()
    whole(root, 2)
    over(root)


def test_every_disk_is_full_at_once_and_it_is_said_all_the_same(
    make_root: Callable[..., Root], mounted: Callable[..., None], tmp_path: Path
) -> None:
    mounted(tmp_path / "root", "-t", "tmpfs", "-o", "size=8m", "none")
    log = tmp_path / "engine.log"
    root = make_root(min_free_disk=0, engine_options={"log": str(log)})
    root.log = log
    watcher = root.watch()
    root.drop("a.yaml", f"- prompt: {LONG}\n- prompt: next\n")
    running(root)
    hog = fill(root.folder)
    told(root, "disk_full")
    until(lambda: root.troubles() and "completed" not in root.states(), SHOWN, "still told")
    assert watcher.poll() is None
    hog.unlink()
    whole(root, 2)
    over(root)


def test_a_file_is_not_guilty_of_a_full_disk(
    make_root: Callable[..., Root], mounted: Callable[..., None], tmp_path: Path
) -> None:
    """There is room to begin it, again and again, and none for its jobs."""
    mounted(tmp_path / "root", "-t", "tmpfs", "-o", "size=8m", "none")
    log = tmp_path / "engine.log"
    root = make_root(min_free_disk=0, engine_options={"log": str(log)})
    root.log = log
    root.watch()
    root.drop("small.yaml", "prompt: small\n")
    root.wait_for("completed")
    draft = root.folder / "draft"
    draft.write_text(json.dumps({"prompt": "x" * 4000, "count": 200}))
    hog = fill(root.folder)
    os.truncate(hog, hog.stat().st_size - 400_000)
    draft.rename(root.inbox / "many.json")
    told(root, "disk_full")
    begun = "SELECT 1 FROM batches WHERE name = 'many.json' AND recorded_at IS NULL"
    until(lambda: rows(root.folder, begun), SHOWN, "the first reading")
    note, looks = root.folder / ".steady" / "reading", set[int]()
    until(lambda: looks.add(note.stat().st_mtime_ns) or len(looks) > 3, 30, "three more readings")
    hog.unlink()
    until(lambda: len(root.states()) == 201, what=f"{len(root.states())} jobs")
    assert not list((root.inbox / "refused").iterdir())


def test_outputs_that_are_absent_at_start_are_waited_for(make_root: Callable[..., Root]) -> None:
    """The picture that was published before the kill is found there, not made again."""
    root = make_root()
    root.drop("a.yaml", "prompt: one steps=2\n")
    assert root.watch(point="linked", once=True).wait(60) == -signal.SIGKILL
    (root.folder / "outputs").rename(root.folder / "away")
    (root.folder / "outputs").mkdir()
    root.watch()
    told(root, "folder_gone")
    assert root.states() == ["generating"]
    assert list((root.folder / "outputs").iterdir()) == []
    (root.folder / "outputs").rmdir()
    (root.folder / "away").rename(root.folder / "outputs")
    until(lambda: root.states() == ["completed"], what="adopted")
    assert list(renders(root.log).values()) == [1]


# ---------------------------------------------------------------- the record


class Locked:
    """Another program that holds the record's write lock."""

    def __init__(self, root: Root) -> None:
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import sqlite3, sys\n"
                "c = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)\n"
                "c.execute('BEGIN EXCLUSIVE'); print('held', flush=True); sys.stdin.read()",
                str(root.folder / "steady.db"),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"held\n"

    def __enter__(self) -> "Locked":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


def test_a_foreign_lock_is_waited_out_and_nothing_the_workers_said_is_forgotten(
    make_root: Callable[..., Root],
) -> None:
    root = make_root()
    root.watch()
    root.drop("a.yaml", f"- prompt: {LONG}\n- prompt: raise at=5 steps=6 sleep=0.3\n")
    running(root)
    with Locked(root):  # the picture arrives while nobody can write
        told(root, "database_trouble")
        root.drop("late.yaml", "prompt: late\n")
        assert root.pulse()["state"] == "running"
    running(root, "raise at=5 steps=6 sleep=0.3")
    with Locked(root):  # a failure arrives while nobody can write
        until(lambda: any(e["event"] == "fault" for e in read_log(root.log)), what="the fault")
        told(root, "database_trouble")
    root.wait_for("completed", "failed", "completed")
    assert max(renders(root.log).values()) == 1
    over(root)


def test_sigterm_in_the_middle_of_trouble_ends_in_time(make_root: Callable[..., Root]) -> None:
    root = make_root()
    watcher = root.watch()
    root.drop("a.yaml", f"- prompt: {LONG}\n- prompt: next\n")
    running(root)
    with Locked(root):
        told(root, "database_trouble")
        watcher.send_signal(signal.SIGTERM)
        assert watcher.wait(10) == 0
    root.finish()
    assert faults(root.folder, expected=2, log=root.log, kills=0) == []
    assert max(renders(root.log).values()) == 1  # the picture was published, then adopted


def test_a_record_that_is_taken_away_and_brought_back(make_root: Callable[..., Root]) -> None:
    root = make_root()
    root.watch()
    root.drop("a.yaml", "prompt: first\n")
    root.wait_for("completed")
    api = Running(root.folder)
    record, away = root.folder / "steady.db", root.folder / "away.db"
    try:
        assert ask(api, "/health")["status"] == "healthy"
        record.rename(away)
        told(root, "database_trouble")
        codes = {reason["code"] for reason in ask(api, "/health")["reasons"]}
        assert "database_trouble" in codes
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(api, "/jobs", prompt="into the void")
        with refused.value as answer:  # it holds a connection
            assert answer.code == 503
        root.drop("b.yaml", "prompt: second\n")
        until(lambda: not (root.inbox / "b.yaml").exists(), what="the claim")
        assert not record.exists()
        away.rename(record)
        until(lambda: root.states() == ["completed"] * 2, what=f"{root.states()}")
        ask(api, "/jobs", prompt="third")
        whole(root, 3)
    finally:
        api.stop(signal.SIGKILL)


def ask(api: Running, path: str, **body: Any) -> dict[str, Any]:
    """GET, or POST when there is a body."""
    data = json.dumps(body).encode() if body else None
    request = urllib.request.Request(
        api.url + path, data=data, headers={"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        return dict(json.loads(answer.read()))


def test_a_record_that_is_replaced_by_a_copy_is_gone_on_with(
    make_root: Callable[..., Root],
) -> None:
    root = make_root()
    watcher = root.watch()
    root.drop("a.yaml", "prompt: first\n")
    root.wait_for("completed")
    copy = root.folder / "copy.db"
    with (
        contextlib.closing(sqlite3.connect(root.folder / "steady.db")) as source,
        contextlib.closing(sqlite3.connect(copy)) as target,
    ):
        source.backup(target)
    root.drop("lost.yaml", "prompt: only in the old one\n")
    root.wait_for("completed", "completed")
    api = Running(root.folder)
    assert ask(api, "/queue")["counts"]["completed"] == 2
    assert (root.folder / "steady.db-wal").stat().st_size > 0  # nobody thinks of this one
    copy.replace(root.folder / "steady.db")
    until(lambda: "watcher.anew" in root.said.read_text(), SHOWN, "a new beginning")
    root.drop("b.yaml", "prompt: second\n")
    until(lambda: root.states() == ["completed", "completed"], 30, f"{root.states()}")
    assert [job["prompt"] for job in root.jobs()] == ["first", "second"]
    until(lambda: "record.anew" in api.log.read_text(), SHOWN, "the door follows")
    ask(api, "/jobs", prompt="third")
    root.wait_for("completed", "completed", "completed")
    api.stop(signal.SIGKILL)
    assert watcher.poll() is None
    watcher.send_signal(signal.SIGTERM)
    assert watcher.wait(15) == 0


@pytest.mark.parametrize("harm", ["damaged", "newer"])
def test_a_record_that_cannot_be_trusted_is_refused_at_start_and_left_as_it_is(
    make_root: Callable[..., Root], harm: str
) -> None:
    root = make_root()
    root.drop("a.yaml", "prompt: first\n")
    root.finish()
    record = root.folder / "steady.db"
    if harm == "newer":
        with contextlib.closing(sqlite3.connect(record)) as connection:
            connection.execute("PRAGMA user_version = 99")
    else:
        record.write_bytes(b"\0" * 100 + record.read_bytes()[100:])
    before = record.read_bytes()
    root.drop("b.yaml", "prompt: second\n")
    assert root.watch().wait(30) == 4
    assert "damaged" in root.said.read_text() or "version 99" in root.said.read_text()
    assert record.read_bytes() == before
    assert (root.inbox / "b.yaml").exists()


# ---------------------------------------------------------------- the inbox


def test_an_inbox_that_goes_and_comes_back(
    make_root: Callable[..., Root], mounted: Callable[..., None]
) -> None:
    root = make_root()
    root.watch()
    root.drop("a.yaml", "prompt: first\n")
    root.wait_for("completed")
    root.inbox.rename(root.folder / "away")
    told(root, "folder_gone")
    (root.folder / "away").rename(root.inbox)
    over(root)
    root.drop("b.yaml", "prompt: second\n")
    root.wait_for("completed", "completed")
    api = Running(root.folder)
    assert ask(api, "/health")["status"] == "healthy"
    # As if another disk lay over it, or its own were gone and left the mount point.
    mounted(root.inbox, "-t", "tmpfs", "none")
    told(root, "folder_gone")
    until(lambda: "mark" in root.inbox_words(), SHOWN, "the words")
    with pytest.raises(urllib.error.HTTPError) as refused:
        ask(api, "/jobs", prompt="under the disk")
    with refused.value as answer:
        assert answer.code == 503
    api.stop(signal.SIGKILL)
    assert list(root.inbox.iterdir()) == []
    subprocess.run(["umount", root.inbox], check=True)
    over(root)
    root.drop("c.yaml", "prompt: third\n")
    whole(root, 3)
    shutil.rmtree(root.inbox)
    root.inbox.mkdir(exist_ok=True)
    until(lambda: (root.inbox / ".claimed").is_dir(), SHOWN, "its rooms are made anew")
    root.drop("d.yaml", "prompt: fourth\n")
    root.wait_for(*["completed"] * 4)


@pytest.mark.parametrize("limit", ["watches", "instances"])
def test_without_events_files_are_taken_all_the_same(
    make_root: Callable[..., Root], limit: str
) -> None:
    root = make_root()
    watcher = root.watch(wrapper=lowered(f"max_inotify_{limit}"))
    until(lambda: f"max_user_{limit}" in root.inbox_words(), SHOWN, f"{root.pulse()}")
    root.drop("a.yaml", "prompt: first\n")
    root.wait_for("completed")
    raised = f"echo 100 > /proc/sys/user/max_inotify_{limit}"
    enter = ["nsenter", "-t", str(watcher.pid), "--user", "--preserve-credentials"]
    subprocess.run([*enter, "sh", "-c", raised], check=True)
    until(lambda: root.pulse()["inbox"]["watch"] == "events", SHOWN, "events again")
    assert root.inbox_words() == ""


# ---------------------------------------------------------------- the clock


@pytest.mark.parametrize("jump", [-86_400, 86_400])
def test_a_clock_that_jumps_disturbs_nobody(make_root: Callable[..., Root], jump: int) -> None:
    root = make_root()
    clock = root.folder / "clock"
    clock.write_text("0")
    watcher = root.watch(clock=clock)
    root.drop("a.yaml", f"- prompt: {LONG}\n- prompt: next\n")
    running(root)
    draft = root.folder / "clock.new"
    draft.write_text(str(jump))
    draft.replace(clock)
    root.drop("b.yaml", "prompt: after\n")
    root.wait_for(*["completed"] * 3)
    assert max(renders(root.log).values()) == 1
    until(lambda: faults(root.folder, expected=3) == [], what="all put away")
    watcher.send_signal(signal.SIGKILL)
    watcher.wait()
    assert root.troubles() == set()  # a pulse from another time is no sign of life
    from watcher import live

    assert not live.read_pulse(root.folder / ".steady")["alive"]
    root.finish()
    assert faults(root.folder, expected=3) == []


@pytest.mark.parametrize("way", ["forward", "back"])
def test_the_hour_in_which_clocks_are_changed(make_root: Callable[..., Root], way: str) -> None:
    root = make_root()
    ahead = time.monotonic_ns() - time.time_ns()
    change = int(time.time()) + 5
    at = datetime.datetime.fromtimestamp(change, datetime.UTC)
    late = at + datetime.timedelta(seconds=2)
    day = at.timetuple().tm_yday - 1
    other = (day + 180) % 365
    if way == "forward":  # local time leaps over an hour, and the job's time lies after it
        zone = f"WIN0SUM-1,{day}/{at:%H:%M:%S},{other}"
        not_before = f"{late + datetime.timedelta(hours=1):%Y-%m-%dT%H:%M:%S}"
    else:  # every local time of an hour comes twice
        zone = f"WIN0SUM-1,{other},{day}/{at.hour + 1}:{at:%M:%S}"
        not_before = f"{late:%Y-%m-%dT%H:%M:%S}+00:00"
    root.extra["TZ"] = zone
    root.watch(wrapper=("env",))
    root.drop("late.yaml", f"prompt: late\nnot_before: {not_before}\n")
    root.drop("a.yaml", "".join(f"- prompt: p{n} steps=4 sleep=0.2\n" for n in range(8)))
    whole(root, 9, 60)  # and nothing waits for an hour
    assert max(renders(root.log).values()) == 1
    (begun,) = (
        e["t"] for e in read_log(root.log) if e["event"] == "start" and e["prompt"] == "late"
    )
    assert begun - ahead >= late.timestamp() * 1e9
    shown = root.steady("list", env=root.environment())
    assert shown.returncode == 0, shown.stderr


# ---------------------------------------------------------------- threads


def test_a_thread_that_dies_ends_the_process_and_the_next_one_goes_on(
    make_root: Callable[..., Root],
) -> None:
    root = make_root()
    root.drop("a.yaml", "prompt: one\n")
    assert root.watch(point="parsed", broken=True).wait(30) == 1
    said = [json.loads(line) for line in root.said.read_text().splitlines() if line[:1] == "{"]
    death = next(line for line in said if line["event"] == "thread.died")
    assert death["thread"] == "intake"
    assert "broken on purpose at parsed" in death["traceback"]
    root.finish()
    assert faults(root.folder, expected=1) == []


def test_a_file_that_always_breaks_the_reader_is_set_aside_and_the_others_run(
    make_root: Callable[..., Root],
) -> None:
    root = make_root()
    root.drop("a.yaml", "{prompt: one, key: one}\n")  # with a key it is read alone in its group
    root.drop("beside.yaml", "prompt: beside it\n")
    for _ in range(2):
        assert root.watch(point="parsed", broken=True).wait(30) == 1
    root.drop("b.yaml", "prompt: two\n")
    root.finish()
    assert (root.inbox / "refused" / "a.yaml.error.json").exists()
    assert sorted(job["prompt"] for job in root.jobs()) == ["beside it", "two"]


def test_a_file_that_meets_a_fault_of_ours_is_refused_and_the_watcher_goes_on(
    make_root: Callable[..., Root],
) -> None:
    root = make_root(engine="engines:Tracing")
    (root.folder / "inputs").mkdir()
    expected("input", 1, 64, 64).save(root.folder / "inputs" / "cat.png")
    root.drop("a.yaml", "{prompt: one, image: cat.png}")
    root.drop("b.csv", "prompt\ntwo\n")
    assert root.watch(point="input_noted", broken=True, once=True).wait(60) == 0
    reason = json.loads((root.inbox / "refused" / "a.yaml.error.json").read_bytes())
    assert reason["code"] == "internal"
    assert "broken on purpose at input_noted" in root.said.read_text()
    root.drop("a.csv", "prompt,image\none,cat.png\n")
    assert root.watch(point="input_written", broken=True, once=True).wait(60) == 0
    assert (root.inbox / "refused" / "a.csv.error.json").exists()
    assert [job["prompt"] for job in root.jobs()] == ["two"]


def test_a_batch_that_cannot_be_put_away_does_not_hold_up_the_others(
    make_root: Callable[..., Root],
) -> None:
    root = make_root()
    root.drop("a.yaml", "prompt: one\n")
    watcher = root.watch(point="archived_files", broken=True)
    until(lambda: root.said.exists() and "batch.stuck" in root.said.read_text(), what="the fault")
    root.drop("b.yaml", "prompt: two\n")
    until(lambda: list((root.inbox / "done").rglob("b~*.result.json")), what="the second")
    until(lambda: root.pulse()["warnings"], what="a warning")
    (warning,) = root.pulse()["warnings"]
    assert warning["message"].startswith("The batch `a.yaml` cannot be put away: broken on purpose")
    assert root.troubles() == set()
    watcher.send_signal(signal.SIGTERM)
    assert watcher.wait(15) == 0
    root.finish()
    assert faults(root.folder, expected=2) == []


def test_a_worker_that_dies_is_noticed_at_once(make_root: Callable[..., Root]) -> None:
    """Its job waits again long before a worker that says nothing counts as dead."""
    root = make_root()
    watcher = root.watch()
    root.drop("a.yaml", "prompt: long steps=400 sleep=0.05\n")
    running(root, "long steps=400 sleep=0.05")
    worker = root.pulse()["workers"][0]["pid"]
    os.kill(worker, signal.SIGKILL)
    until(lambda: rows(root.folder, "SELECT 1 FROM jobs WHERE deaths = 1"), 20.0, "queued again")
    assert watcher.poll() is None
    assert threading.active_count() >= 1
    assert pictures(root.folder) == []


def test_what_is_wrong_around_the_service_is_a_class_of_its_own() -> None:
    for code, kind in ERRORS.items():
        error = SteadyError(code, "said")
        assert isinstance(error, Trouble) == (kind.klass is ErrorClass.ENVIRONMENT), code
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), again.code, again.message) == (type(error), code, "said")
