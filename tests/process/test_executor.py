"""Workers as the watcher sees them: real processes, real deaths, deadlines that really pass."""

import dataclasses
import datetime
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import forked
import pytest
from conftest import until
from engines import a_job, expected, read_log

from watcher.errors import ERRORS, ErrorClass, SteadyError
from watcher.executor import (
    Died,
    Event,
    Failed,
    Picture,
    Previewed,
    Ready,
    Started,
    Step,
    WorkerSpec,
)
from watcher.executor.local import LocalExecutor, Patience
from watcher.jobs import JobRequest
from watcher.wire import MAX_LINE, BadFrame, Frames, line

HERE = Path(__file__).parents[1]
E = TypeVar("E")


def ask(prompt: str, *, side: int = 32, seed: int = 7, steps: int = 4) -> JobRequest:
    """A resolved request."""
    return JobRequest(prompt=prompt, width=side, height=side, num_inference_steps=steps, seed=seed)


def alive(pid: int) -> bool:
    """Is this process there, and more than a zombie?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Bench:
    """An executor and everything it said."""

    def __init__(self, executor: LocalExecutor, log: Path) -> None:
        self.executor = executor
        self.log = log
        self.said: list[tuple[float, Event]] = []
        executor.start()

    def until(self, condition: Callable[[], Any], timeout: float = 60, what: str = "") -> Any:
        """Turn the executor's loop until ``condition`` holds."""

        def turn() -> Any:
            for event in self.executor.events(0.05):
                self.said.append((time.monotonic(), event))
            return condition()

        return until(turn, timeout, what)

    def all(self, kind: type[E], job: str | None = None) -> list[E]:
        return [
            e
            for _, e in self.said
            if isinstance(e, kind) and (job is None or getattr(e, "job_id", None) == job)
        ]

    def wait(self, kind: type[E], job: str | None = None, count: int = 1) -> E:
        """The ``count``-th event of this kind (about this job)."""
        self.until(lambda: len(self.all(kind, job)) >= count, what=f"{kind.__name__} {job}")
        return self.all(kind, job)[count - 1]

    def when(self, event: object) -> float:
        return next(t for t, e in self.said if e is event)

    def send(self, job: str, prompt: str, slot: int = 0, **more: Any) -> None:
        """Hand a job over as soon as the slot wants one."""
        self.until(lambda: slot in self.executor.wants(), what=f"slot {slot} wants {job}")
        self.executor.send(slot, a_job(job, ask(prompt, **more)))

    def run(self, job: str, prompt: str, **more: Any) -> Picture:
        self.send(job, prompt, **more)
        return self.wait(Picture, job)

    def pid(self, slot: int = 0) -> int:
        pid = self.executor.status()[slot]["pid"]
        assert isinstance(pid, int)
        return pid

    def notes(self, event: str, prompt: str | None = None) -> list[dict[str, Any]]:
        """What the engine wrote down."""
        return [
            n
            for n in read_log(self.log)
            if n["event"] == event and (prompt is None or n["prompt"] == prompt)
        ]


Start = Callable[..., Bench]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts executors with the scripted engine; ends them all afterwards."""
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    log = tmp_path / "engine.log"
    running: list[LocalExecutor] = []

    def begin(
        *devices: str, options: dict[str, Any] | None = None, engine: str = "", **settings: Any
    ) -> Bench:
        spec = WorkerSpec(
            engine or "engines:Scripted", "none", options={"log": str(log), **(options or {})}
        )
        executor = LocalExecutor(spec, devices, **{"launch": forked.launch} | settings)
        running.append(executor)
        return Bench(executor, log)

    yield begin
    for executor in running:
        executor.stop(0)


# -- the ordinary day


def test_picture_arrives_as_the_engine_drew_it(start: Start) -> None:
    bench = start()
    picture = bench.run("a", "a fox", side=48)
    assert picture.rgb == expected("a fox", 7, 48, 48).tobytes()
    assert (picture.size, picture.attempt) == ((48, 48), 1)
    assert picture.info == bench.wait(Ready).info | {"forwards": 4, "cfg_scale": 1}
    assert picture.info["revision"] == "scripted-1"
    assert picture.timings["total"] > 0
    kinds = [type(e) for _, e in bench.said]
    assert kinds == [Ready, Started, Step, Step, Step, Step, Picture]
    assert [(s.done, s.total) for s in bench.all(Step)] == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_wants_the_next_job_when_one_forward_is_left(start: Start) -> None:
    bench = start()
    bench.send("a", "sleep=0.1 steps=4")
    assert bench.executor.wants() == []
    seen: dict[int, list[int]] = {}

    def note() -> bool:
        done = max((s.done for s in bench.all(Step)), default=0)
        seen.setdefault(done, bench.executor.wants())
        return bool(bench.all(Picture))

    bench.until(note)
    # one look may find several steps
    assert seen == {done: [0] if done >= 3 else [] for done in seen}
    assert 0 in seen and max(seen) >= 3


def test_single_forward_is_the_last_one(start: Start) -> None:
    bench = start()
    bench.send("a", "sleep=5", steps=1)
    bench.wait(Started, "a")
    assert bench.executor.wants() == [0]


def test_device_does_not_wait_between_jobs(start: Start) -> None:
    bench = start()
    for n in range(12):
        bench.send(f"job{n}", f"picture {n} sleep=0.03 steps=3", side=256)
    bench.wait(Picture, "job11")
    begun = [n["t"] for n in bench.notes("start")][1:]
    ended = [n["t"] for n in bench.notes("finish")][:-1]
    gaps = [(b - e) / 1e6 for b, e in zip(begun, ended, strict=True)]
    assert statistics.median(gaps) < 15, gaps  # milliseconds; a round trip would not fit


def test_refuses_a_job_nobody_wanted(start: Start) -> None:
    bench = start()
    with pytest.raises(ValueError, match="takes no job"):
        bench.executor.send(0, a_job("early", ask("x")))


def test_one_slot_per_device(start: Start) -> None:
    bench = start("one", "two")
    bench.until(lambda: bench.executor.wants() == [0, 1])
    assert [s["device"] for s in bench.executor.status()] == ["one", "two"]
    bench.send("a", "sleep=0.2 steps=2", slot=0)
    bench.until(lambda: bool(bench.all(Step, "a")))
    assert bench.executor.wants() == [1, 0]  # the idle one first
    bench.send("b", "b", slot=1)
    assert bench.wait(Picture, "b").slot == 1
    assert bench.wait(Picture, "a").slot == 0


def test_wake_from_another_thread_ends_the_wait(start: Start) -> None:
    bench = start()
    bench.wait(Ready)
    bench.executor.events(0)
    ringer = threading.Timer(0.2, bench.executor.wake)
    ringer.start()
    began = time.monotonic()
    assert bench.executor.events(30) == []
    assert time.monotonic() - began < 10
    ringer.join()


def test_worker_has_a_session_of_its_own_and_no_torch(start: Start) -> None:
    bench = start()
    info = bench.wait(Ready).info
    assert os.getsid(bench.pid()) == bench.pid()  # Ctrl-C on our terminal does not reach it
    assert info["details"] == {"torch": False}
    code = "import sys, watcher.executor; sys.exit('torch' in sys.modules or 'PIL' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=HERE.parent, check=False).returncode == 0
    )


# -- cancel


def test_cancel_of_the_running_job_takes_one_step(start: Start) -> None:
    bench = start()
    bench.run("warm", "warm")
    pid = bench.pid()
    bench.send("a", "long sleep=0.1 steps=50")
    bench.until(lambda: len(bench.all(Step, "a")) == 2)
    asked = time.monotonic()
    bench.executor.cancel("a")
    bench.executor.cancel("a")  # twice changes nothing
    failed = bench.wait(Failed, "a")
    assert failed.code == "cancelled"
    assert bench.when(failed) - asked < 1.0
    assert len(bench.notes("step", "long sleep=0.1 steps=50")) <= 4
    assert bench.notes("finish", "long sleep=0.1 steps=50") == []
    bench.run("b", "next")
    assert bench.pid() == pid
    assert bench.all(Died) == []


def test_cancel_of_the_prefetched_job_drops_it(start: Start) -> None:
    bench = start()
    bench.send("a", "sleep=0.3 steps=2")
    bench.send("b", "prefetched")
    bench.executor.cancel("b")
    assert bench.wait(Failed, "b").code == "cancelled"
    bench.wait(Picture, "a")
    bench.run("c", "c")
    assert bench.notes("start", "prefetched") == []


def test_cancel_of_a_job_that_waits_for_its_worker(start: Start) -> None:
    bench = start(idle_unload=0.2, options={"load_sleep": 0.5})
    bench.until(lambda: bench.executor.status()[0]["state"] == "unloaded")
    bench.send("a", "waiting")
    bench.executor.cancel("a")
    assert bench.wait(Failed, "a").code == "cancelled"
    bench.wait(Ready, count=2)
    bench.run("b", "b")
    assert bench.notes("start", "waiting") == []


# -- failures the worker survives


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        ("raise", "engine_failed", "RuntimeError: the engine failed on purpose"),
        ("oom", "out_of_memory", "OutOfMemory: not enough"),
        ("nan", "non_finite", "The latents hold NaN."),
        ("unsayable", "engine_failed", "TypeError: Object of type set is not JSON serializable"),
        ("wrongsize", "engine_failed", "ValueError: the engine drew (48, 32), asked for (32, 32)"),
    ],
)
def test_failed_job_leaves_the_worker_alone(
    start: Start, fault: str, code: str, words: str
) -> None:
    bench = start()
    bench.wait(Ready)
    pid = bench.pid()
    bench.send("a", f"x {fault}")
    failed = bench.wait(Failed, "a")
    assert (failed.code, failed.message) == (code, words)
    bench.run("b", "b")
    assert bench.pid() == pid


def test_job_that_asks_for_what_may_not_be_asked_for_today_fails_alone(start: Start) -> None:
    """One on record since a time with other limits: it would meet every worker after this one."""
    bench = start()
    bench.wait(Ready)
    pid = bench.pid()
    old = a_job("a", ask("old"))
    request = old.request.model_copy(update={"guidance_scale": 1e6})
    bench.executor.send(0, dataclasses.replace(old, request=request))
    failed = bench.wait(Failed, "a")
    assert failed.code == "engine_failed"
    assert "guidance_scale Input should be less than or equal to 30" in failed.message
    bench.run("b", "b")
    assert bench.pid() == pid


def test_worker_that_cancels_what_nobody_cancelled_has_failed(start: Start) -> None:
    bench = start()
    bench.send("a", "quits")
    failed = bench.wait(Failed, "a")
    assert (failed.code, failed.message) == ("engine_failed", "cancelled: The job was cancelled.")


def test_preview_that_cannot_be_drawn_costs_no_picture(start: Start) -> None:
    bench = start()
    bench.send("a", "hidden sleep=0.2 steps=10")
    bench.wait(Started, "a")
    bench.executor.look("a")
    bench.wait(Picture, "a")
    assert len(bench.notes("preview")) == 1
    assert bench.all(Previewed) == []


# -- deaths


@pytest.mark.parametrize(
    ("fault", "how"),
    [
        ("segv", "was ended by SIGSEGV"),
        ("exit=3", "left with exit code 3"),
        ("kill", "was ended by SIGKILL"),
        ("fork", "left with exit code 9"),  # a child of the engine keeps the socket open
        ("poison", "left on purpose after RuntimeError: CUDA error: device-side assert triggered"),
        ("empty", "was ended: sent nonsense (a picture that is not there)"),
        ("nowhere", "was ended: sent nonsense (a picture at no place)"),
        ("garbage", "was ended: sent nonsense (a line that is not JSON)"),
        ("flood", "was ended: sent nonsense (a line without an end)"),
        ("liar", "was ended: sent nonsense (a word about a job it was not given (another))"),
    ],
)
def test_death_is_noticed_at_once_and_another_worker_comes(
    start: Start, fault: str, how: str
) -> None:
    bench = start()
    bench.run("first", "first")
    pid = bench.pid()
    bench.send("a", f"bad {fault}")
    died = bench.wait(Died)
    if fault == "flood":  # a heartbeat that fell into it ends the line
        how = died.how if died.how.endswith("(a line that is not JSON)") else how
    assert died == Died(0, [("a", 1, True)], how)
    happened = bench.notes("fault")[0]["t"] / 1e9
    assert bench.when(died) - happened < 1.0
    assert not alive(pid)
    picture = bench.run("b", "after")
    assert picture.rgb == expected("after", 7, 32, 32).tobytes()
    assert bench.pid() != pid


def test_kill_from_outside_is_noticed_while_idle(start: Start) -> None:
    bench = start()
    bench.wait(Ready)
    os.kill(bench.pid(), signal.SIGKILL)
    began = time.monotonic()
    assert bench.wait(Died) == Died(0, [], "was ended by SIGKILL")
    assert time.monotonic() - began < 30  # silence alone is noticed after 60
    bench.wait(Ready, count=2)


def test_sigterm_from_outside_is_nobodys_fault(start: Start) -> None:
    bench = start()
    bench.send("a", "x term")
    assert bench.wait(Died) == Died(0, [("a", 1, True)], "was ended by SIGTERM", blame=False)


def test_lost_device_is_trouble_around_us(start: Start) -> None:
    bench = start()
    bench.send("a", "x lost")
    died = bench.wait(Died)
    assert died.environment is not None
    assert died.environment.code == "device_lost"
    assert (died.lost, died.blame) == ([("a", 1, True)], False)
    bench.wait(Ready, count=2)


def test_prefetched_job_is_lost_without_blame(start: Start) -> None:
    bench = start()
    bench.send("a", "sleep=0.3 steps=2 exit at=2")
    bench.send("b", "b")
    assert bench.wait(Died).lost == [("a", 1, True), ("b", 1, False)]
    assert bench.notes("start", "b") == []


def test_crash_right_after_a_picture_does_not_take_the_picture_along(start: Start) -> None:
    bench = start()
    bench.send("a", "sleep=0.2 steps=2 photo", side=1024)
    bench.send("b", "segv at=0")
    died = bench.wait(Died)
    assert (
        bench.wait(Picture, "a").rgb == expected("sleep=0.2 steps=2 photo", 7, 1024, 1024).tobytes()
    )
    assert died.lost == [("b", 1, True)]


def test_two_pictures_wait_for_a_busy_watcher(start: Start) -> None:
    bench = start()
    for pair, sides in enumerate([(256, 512), (1024, 16), (48, 1024)]):
        first, second = f"a{pair}", f"b{pair}"
        bench.send(first, f"{first} sleep=0.1 steps=2", side=sides[0])
        bench.send(second, second, side=sides[1])
        # Not a turn of the loop until both are made.
        until(lambda pair=pair: len(bench.notes("finish")) == 2 * pair + 2)
        for job, side in ((first, sides[0]), (second, sides[1])):
            prompt = f"{first} sleep=0.1 steps=2" if job == first else second
            assert bench.wait(Picture, job).rgb == expected(prompt, 7, side, side).tobytes()


def test_restarts_come_slower_until_a_job_ends(start: Start) -> None:
    pauses = (0.0, 0.5, 1.0)
    bench = start(backoff=pauses)
    for n, pause in enumerate([*pauses, pauses[-1]]):
        bench.send(f"bad{n}", "exit")
        died = bench.wait(Died, count=n + 1)
        status = bench.executor.status()[0]
        assert (status["retry_in"] or 0) <= pause
        assert status["failures"] == n + 1
        ready = bench.wait(Ready, count=n + 2)
        assert bench.when(ready) - bench.when(died) >= pause
    bench.run("good", "good")
    status = bench.executor.status()[0]
    assert (status["failures"], status["restarts"]) == (0, 4)
    bench.send("bad", "exit")
    bench.wait(Died, count=5)
    assert not bench.executor.status()[0]["retry_in"]  # at once, as the first time


def test_no_descriptor_leaks_over_twenty_restarts(start: Start) -> None:
    bench = start(backoff=(0.0,))
    bench.wait(Ready)
    before = len(os.listdir("/proc/self/fd"))
    for n in range(20):
        bench.send(f"bad{n}", "exit")
        bench.wait(Ready, count=n + 2)
    assert len(os.listdir("/proc/self/fd")) == before
    assert bench.executor.status()[0]["restarts"] == 20


def test_no_descriptor_is_lost_where_there_are_too_few(start: Start) -> None:
    def too_few(*_: Any, **__: Any) -> subprocess.Popen[bytes]:
        raise OSError(24, "Too many open files")

    bench = start(backoff=(0.0,), launch=too_few)
    died = bench.wait(Died)
    assert died.how == "could not be started (Too many open files)"
    before = len(os.listdir("/proc/self/fd"))
    bench.wait(Died, count=5)
    assert len(os.listdir("/proc/self/fd")) == before


# -- deadlines


@pytest.mark.parametrize("fault", ["hang", "seize"])
def test_stuck_step_is_ended(start: Start, fault: str) -> None:
    bench = start(step_timeout=0.8)
    bench.send("a", f"x {fault} at=2")
    bench.until(lambda: bool(bench.notes("fault")))
    died = bench.wait(Died)
    assert died == Died(0, [("a", 1, True)], "was ended: step deadline (0.8 s)")
    assert 0.7 < bench.when(died) - bench.notes("fault")[0]["t"] / 1e9 < 4
    bench.run("b", "b")


def test_heartbeat_tells_a_busy_worker_from_a_frozen_one(start: Start) -> None:
    bench = start(step_timeout=30)
    bench.send("a", "hang")
    bench.wait(Started, "a")

    def status() -> dict[str, Any]:
        return bench.executor.status()[0]

    begun = time.monotonic()
    bench.until(lambda: time.monotonic() - begun > 2.5)
    assert status()["heard_seconds_ago"] < 2.0
    assert status()["rss"] > 1_000_000
    assert status()["state"] == "busy"
    os.kill(bench.pid(), signal.SIGSTOP)
    bench.until(lambda: status()["heard_seconds_ago"] > 2.5)
    os.kill(bench.pid(), signal.SIGKILL)


def test_worker_that_ignores_sigterm_is_killed(start: Start) -> None:
    bench = start(step_timeout=0.5, kill_after=0.7)
    bench.send("a", "stubborn")
    bench.until(lambda: bool(bench.notes("fault")))
    died = bench.wait(Died)
    assert died.how == "was ended: step deadline (0.5 s)"
    assert bench.when(died) - bench.notes("fault")[0]["t"] / 1e9 > 1.2
    bench.wait(Ready, count=2)


def test_frozen_idle_worker_is_ended(start: Start) -> None:
    bench = start(silence=1.5, kill_after=0.3)
    bench.wait(Ready)
    os.kill(bench.pid(), signal.SIGSTOP)
    assert bench.wait(Died) == Died(0, [], "was ended: silent for 1.5 s")
    bench.wait(Ready, count=2)


def test_model_that_never_loads_is_ended(start: Start) -> None:
    bench = start(load_timeout=1.0, options={"load_fault": "hang"})
    died = bench.wait(Died)
    assert died.environment is not None
    assert died.environment.code == "worker_unavailable"
    assert died.how == "was ended: load deadline (1 s)"


def test_job_deadline_costs_the_job_and_not_the_worker(start: Start) -> None:
    bench = start(job_timeout=0.6)
    bench.wait(Ready)
    pid = bench.pid()
    bench.send("a", "slow sleep=0.1 steps=100")
    failed = bench.wait(Failed, "a")
    assert (failed.code, failed.message) == ("timed_out", "The job took longer than 0.6 seconds.")
    bench.run("b", "b")
    assert bench.pid() == pid


def test_job_deadline_ends_a_worker_that_does_not_answer(start: Start) -> None:
    bench = start(job_timeout=0.6, step_timeout=60, kill_after=0.5)
    bench.send("a", "hang")
    assert bench.wait(Failed, "a").code == "timed_out"
    died = bench.wait(Died)
    assert (died.lost, died.how) == ([], "was ended: job deadline (0.6 s)")
    bench.run("b", "b")


def test_signs_of_life_are_no_steps(start: Start) -> None:
    """A picture made larger tile by tile says nothing of how long the next one's steps take."""
    bench = start()
    bench.run("a", "again=40 steps=3")
    assert len(bench.executor._patience._seen[32, 32]) == 2  # the first has the prompt in it


def test_slow_is_not_stuck() -> None:
    small, large = (64, 64), (128, 128)
    patience = Patience(None)
    assert patience.limit(small) == 600  # nothing is known
    for seconds in (0.5, 0.5, 9.0):
        patience.add(small, seconds)
    assert patience.limit(small) == 60  # the floor: 20 x 0.5 is less
    assert patience.limit(large) == 20 * 0.5 * 16  # four times the pixels
    patience.add(large, 30.0)
    assert patience.limit(large) == 20 * 30.0
    assert Patience(5).limit(small) == 5


# -- loading


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        ("missing", "model_missing", "The model is not here."),
        ("lost", "device_lost", "The device is not here."),
        ("damaged", "model_damaged", "The model is torn."),
        ("oom", "out_of_memory", "OutOfMemory: The model does not fit."),
        ("raise", "engine_failed", "RuntimeError: the engine failed on purpose"),
        ("segv", "worker_unavailable", "The worker was ended by SIGSEGV while loading the model."),
    ],
)
def test_failed_load_says_why_and_heals(
    start: Start, tmp_path: Path, fault: str, code: str, words: str
) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    options = {"load_fault": fault, "load_fault_while": str(gate)}
    bench = start(options=options, backoff=(0.0, 0.2))
    died = bench.wait(Died)
    assert died.environment is not None
    assert (died.environment.code, died.environment.message) == (code, words)
    assert (died.lost, died.blame) == ([], False)
    bench.wait(Died, count=2)
    assert bench.executor.wants() == []
    gate.unlink()
    bench.run("a", "a")


def test_trouble_of_a_slot_ends_when_its_worker_is_ready_whatever_it_was(
    start: Start, tmp_path: Path
) -> None:
    codes = [code for code, kind in ERRORS.items() if kind.klass is not ErrorClass.INVALID]
    faults = tmp_path / "faults"
    faults.write_text("\n".join([*codes, "oom", "raise", "exit"]))
    bench = start(options={"load_faults": str(faults)}, backoff=(0.0,))
    told = []
    while not bench.all(Ready):
        count = len(bench.all(Died))
        bench.until(lambda n=count: len(bench.all(Died)) > n or bench.all(Ready))
        if trouble := bench.executor.status()[0]["trouble"]:
            told.append(trouble["code"])
            assert trouble["message"] and trouble["remedy"] and trouble["since"]
    assert told == [*codes, "out_of_memory", "engine_failed", "worker_unavailable"]
    assert bench.executor.status()[0]["trouble"] is None
    bench.run("a", "a")


def test_engine_that_cannot_be_imported(start: Start) -> None:
    died = start(engine="nowhere.at_all:Engine").wait(Died)
    assert died.environment is not None
    assert died.environment.code == "engine_failed"
    assert "No module named 'nowhere'" in died.environment.message


@pytest.mark.parametrize(
    ("engine", "hint"),
    [
        ("opnai", "Did you mean `openai`?"),
        ("toyy", "Take zimage, diffusers, openai or package.module:Class."),
    ],
)
def test_a_mistyped_engine_is_told_with_the_nearest_right_name(
    start: Start, engine: str, hint: str
) -> None:
    died = start(engine=engine).wait(Died)
    assert died.environment is not None
    words = f"`{engine}` is no engine. {hint}"
    assert (died.environment.code, died.environment.message) == ("bad_config", words)


def test_options_that_are_no_plain_data_are_refused_before_anything_starts() -> None:
    spec = WorkerSpec("engines:Scripted", "m", options={"when": datetime.date(2026, 1, 1)})
    with pytest.raises(SteadyError) as caught:
        LocalExecutor(spec)
    assert caught.value.code == "bad_config"
    assert "engine_options" in caught.value.message


def test_interpreter_that_cannot_be_started(start: Start) -> None:
    def launch(command: list[str], **how: Any) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(["/nonexistent/python", *command[1:]], **how)

    died = start(launch=launch).wait(Died)
    assert died.environment is not None
    assert died.environment.code == "worker_unavailable"


# -- rest and end


def test_idle_worker_ends_and_comes_back_when_needed(start: Start) -> None:
    bench = start(idle_unload=0.4)
    bench.run("a", "a")
    pid = bench.pid()
    bench.until(lambda: bench.executor.status()[0]["state"] == "unloaded")
    assert not alive(pid)
    assert bench.notes("close")
    assert bench.all(Died) == []
    assert bench.executor.wants() == [0]
    picture = bench.run("b", "b")
    assert picture.rgb == expected("b", 7, 32, 32).tobytes()
    assert len(bench.all(Ready)) == 2


def test_job_sent_to_a_sleeping_worker_that_cannot_load_is_given_back(
    start: Start, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    options = {"load_fault": "missing", "load_fault_while": str(gate)}
    bench = start(idle_unload=0.2, options=options)
    bench.until(lambda: bench.executor.status()[0]["state"] == "unloaded")
    gate.touch()
    bench.send("a", "a")
    died = bench.wait(Died)
    assert (died.lost, died.blame) == ([("a", 1, False)], False)


def test_stop_lets_the_running_job_end(start: Start) -> None:
    bench = start()
    bench.send("a", "sleep=0.2 steps=3")
    bench.send("b", "prefetched sleep=0.2")
    pid = bench.pid()
    bench.executor.stop(10)
    assert [e.job_id for e in bench.executor.events(0) if isinstance(e, Picture)] == ["a"]
    assert not alive(pid)
    bench.executor.stop(10)
    bench.executor.wake()  # harmless


@pytest.mark.parametrize("fault", ["hang", "stubborn", "seize"])
def test_stop_ends_what_does_not_end_by_itself(start: Start, fault: str) -> None:
    bench = start()
    bench.send("a", f"x {fault} at=0")
    bench.until(lambda: bool(bench.notes("fault")))
    pid = bench.pid()
    began = time.monotonic()
    bench.executor.stop(0.3)
    assert bench.all(Picture) == []
    assert time.monotonic() - began < 30
    assert not alive(pid)


def test_stop_while_loading(start: Start) -> None:
    bench = start(options={"load_sleep": 60})
    pid = bench.pid()
    began = time.monotonic()
    bench.executor.stop(60)
    assert time.monotonic() - began < 30
    assert not alive(pid)


@pytest.mark.parametrize("prompt", ["idle", "seize at=0"])
def test_worker_dies_with_its_parent(start: Start, tmp_path: Path, prompt: str) -> None:
    log = tmp_path / "orphan.log"
    code = f"""
import os, signal
from engines import a_job
from watcher.executor import Ready, WorkerSpec
from watcher.executor.local import LocalExecutor
from watcher.jobs import JobRequest
executor = LocalExecutor(WorkerSpec("engines:Scripted", "m", options={{"log": {str(log)!r}}}))
executor.start()
while not executor.wants():
    executor.events(1)
print(executor.status()[0]["pid"], flush=True)
if {prompt!r} != "idle":
    request = JobRequest(prompt={prompt!r}, width=16, height=16, num_inference_steps=2, seed=1)
    executor.send(0, a_job("a", request))
    while '"fault"' not in open({str(log)!r}).read():
        executor.events(0.05)
os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = {**os.environ, "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}"}
    parent = subprocess.run(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, check=False
    )
    assert parent.returncode == -signal.SIGKILL
    until(lambda: not alive(int(parent.stdout)), what="the orphan to die")


# -- the wire


def test_messages_arrive_whole_however_they_are_cut() -> None:
    data = line({"type": "a", "text": "ü\ud800\n"}) + line({"type": "b"}) + line({"type": "c"})
    for cut in range(len(data) + 1):
        frames = Frames()
        got = [*frames.feed(data[:cut]), *frames.feed(data[cut:])]
        assert [m["type"] for m in got] == ["a", "b", "c"]
    frames = Frames()
    got = [message for n in range(len(data)) for message in frames.feed(data[n : n + 1])]
    assert [m["type"] for m in got] == ["a", "b", "c"]
    assert got[0]["text"] == "ü\ud800\n"


@pytest.mark.parametrize(
    "data",
    [
        b"x" * (MAX_LINE + 1),
        b'{"type":"a","x":"' + b"x" * MAX_LINE + b'"}\n',
        b"no json\n",
        b"\xff\n",
        b"[1]\n",
        b"{}\n",
        b'{"type":1}\n',
        b"[" * 100_000 + b"\n",
    ],
)
def test_nonsense_is_no_frame(data: bytes) -> None:
    frames = Frames()
    good = line({"type": "good"})
    with pytest.raises(BadFrame):
        for message in frames.feed(good + data):
            assert message == {"type": "good"}


def test_too_large_a_message_is_not_sent(start: Start) -> None:
    with pytest.raises(ValueError, match="over the limit"):
        line({"type": "a", "text": "x" * MAX_LINE})
    bench = start()
    bench.wait(Ready)
    huge = ask("x").model_copy(update={"metadata": {"x": "y" * MAX_LINE}})
    with pytest.raises(ValueError, match="over the limit"):
        bench.executor.send(0, a_job("huge", huge))
    assert dataclasses.asdict(bench.run("a", "a"))["job_id"] == "a"  # nothing was left behind
