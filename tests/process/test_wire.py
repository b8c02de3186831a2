"""A worker gone mad costs itself and its job: whatever it sends, the watcher reads on, and all that
comes out can be recorded, answered and shown."""

import json
import os
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import until
from doors import running
from engines import a_job
from hypothesis import HealthCheck, given, settings, strategies as st
from roots import Root

from watcher.executor import Died, Event, Failed, Picture, Ready, Step, WorkerSpec
from watcher.executor.local import LocalExecutor
from watcher.executor.printed import BURST, Printed
from watcher.jobs import JobRequest
from watcher.wire import MAX_SAID, MAX_TEXT, BadFrame, SaidFailed, SaidPicture, heard

BYTE = "cannot open /models/\udcff\udcfe.bin"  #: what Python makes of a name that is not UTF-8
INFO = {"model": "m", "revision": None, "device": "cpu", "dtype": "float32", "memory": 1}
READY = {"type": "ready", "info": INFO}
JOB = {"job_id": "a", "attempt": 1}
PICTURE = {"type": "picture", **JOB, "place": 0, "width": 16, "height": 16, "info": {}}

#: A worker that is a shell: it says what lies in a file, before and after it was given a job.
SCRIPT = """#!/bin/bash
cat {before} >&$5
[ -s {after} ] && read -r load <&$5 && read -r job <&$5
cat {after} >&$5
"""


class Mad:
    """An executor whose worker says what it is told to, and all that came of it."""

    def __init__(self, folder: Path) -> None:
        self.before, self.after, self._mad = folder / "before", folder / "after", folder / "mad"
        self._mad.write_text(SCRIPT.format(before=self.before, after=self.after))
        self._mad.chmod(0o755)

    def _launch(self, command: list[str], **how: Any) -> "subprocess.Popen[bytes]":
        return subprocess.Popen([str(self._mad), *command[1:]], **how)

    def run(self, before: bytes, after: bytes = b"") -> tuple[list[Event], dict[str, Any]]:
        """Events until the worker's end, and its status then; a job is sent where it asks."""
        self.before.write_bytes(before)
        self.after.write_bytes(after)
        executor = LocalExecutor(
            WorkerSpec("e", "m"), launch=self._launch, backoff=(60.0,), kill_after=0.1
        )
        events: list[Event] = []
        sent: list[str] = []
        request = JobRequest(prompt="a", width=16, height=16, num_inference_steps=2, seed=1)
        try:
            executor.start()

            def turn() -> bool:
                events.extend(executor.events(0.05))
                if after and not sent and executor.wants():
                    executor.send(0, a_job("a", request))
                    sent.append("a")
                told(executor.status())
                return any(isinstance(e, Died) for e in events)

            until(turn, what="the end of the worker")
            return events, executor.status()[0]
        finally:
            executor.stop(0)


def told(value: Any) -> str:
    """``value`` as an answer has it; fails for what no answer can hold."""
    return json.dumps(value, allow_nan=False, ensure_ascii=False).encode().decode()


def checked(events: list[Event]) -> list[Event]:
    """``events``, when the record and every answer can hold what they say."""
    for event in events:
        match event:
            case Ready():
                told(event.info)
            case Picture():
                told([event.info, event.timings, event.size])
            case Failed():
                told([event.code, event.message])
            case Step():
                told([event.done, event.total])
            case Died():
                told([event.how, event.environment and event.environment.as_dict()])
    return events


@pytest.fixture(scope="module")
def mad(tmp_path_factory: pytest.TempPathFactory) -> Mad:
    return Mad(tmp_path_factory.mktemp("mad"))


def lines(*messages: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(message).encode() + b"\n" for message in messages)


INF, NAN = float("inf"), float("nan")
NONSENSE: dict[str, bytes] = {
    "no json": b"garbage\n",
    "no utf-8": b'{"type":"\xff"}\n',
    "no object": b"[1]\n",
    "no type": b"{}\n",
    "type is no text": b'{"type":1}\n',
    "unknown type": lines({"type": "dance"}),
    "nested": b"[" * 100_000 + b"\n",
    "nested a little": lines({"type": "ready", "info": {"a": [[[[[[[[[1]]]]]]]]]}}),
    "without an end": b"x" * (MAX_SAID + 1),
    "long number": b'{"type":"beat","rss":' + b"9" * 5000 + b"}\n",
    "number over 64 bits": lines({"type": "beat", "rss": None, "x": 1}, {**READY, "info": 10**30}),
    "beat without": lines({"type": "beat"}),
    "beat of text": lines({"type": "beat", "rss": "much"}),
    "ready twice": lines(READY, READY),
    "ready with odd facts": lines({"type": "ready", "info": {"model": 3}}),
    "memory below nothing": lines({"type": "ready", "info": {"memory": -1}}),
    "infinite step": lines({"type": "step", **JOB, "done": INF, "total": 2}),
    "step of none": lines({"type": "step", **JOB, "done": 0, "total": 0}),
    "step of text": lines({"type": "step", **JOB, "done": "1", "total": "2"}),
    "attempt is true": lines({"type": "started", "job_id": "a", "attempt": True}),
    "another's job": lines({"type": "started", "job_id": "b" * 999 + BYTE, "attempt": 1}),
    "started twice": lines({"type": "started", **JOB}, {"type": "started", **JOB}),
    "infinite picture": lines({**PICTURE, "width": INF, "timings": {}}),
    "picture at no place": lines({**PICTURE, "place": 2, "timings": {}}),
    "picture that is not there": lines({**PICTURE, "timings": {}}),
    "timings are a list": lines({**PICTURE, "timings": [1]}),
}


@pytest.mark.parametrize("kind", NONSENSE)
def test_nonsense_costs_the_worker_and_gives_the_job_back(mad: Mad, kind: str) -> None:
    events, status = mad.run(lines({**READY}), NONSENSE[kind])
    died = checked(events)[-1]
    assert isinstance(died, Died)
    assert died.how.startswith("was ended: sent nonsense (")
    assert [job[:2] for job in died.lost] == [("a", 1)]
    assert (status["state"], status["failures"]) == ("waiting", 1)
    assert not any(isinstance(e, Picture) for e in events)


def test_odd_texts_and_numbers_are_made_harmless_and_the_job_ends(mad: Mad) -> None:
    info = {**INFO, "model": BYTE, "memory": NAN, "details": {"x\udc80": [INF, "\x00\x1b[31m"]}}
    failed = {
        "type": "failed",
        **JOB,
        "code": "engine_failed",
        "message": BYTE + "\x00\n" + "x" * 9999,
    }
    said = [{"type": "beat", "rss": -INF}, {"type": "started", **JOB}, failed]
    events, status = mad.run(lines({"type": "ready", "info": info}), lines(*said))
    ready, _, failure, _ = checked(events)
    assert isinstance(ready, Ready) and isinstance(failure, Failed)
    assert ready.info["model"] == "cannot open /models/\\udcff\\udcfe.bin"
    assert ready.info["memory"] is None
    assert ready.info["details"] == {"x\\udc80": [None, "\\x00\\x1b[31m"]}
    assert failure.message.startswith("cannot open /models/\\udcff\\udcfe.bin\\x00 xxx")
    assert status["rss"] is None


def test_a_load_error_is_as_harmless(mad: Mad) -> None:
    events, status = mad.run(lines({"type": "load_failed", "code": BYTE, "message": BYTE * 999}))
    (died,) = checked(events)
    assert isinstance(died, Died) and died.environment is not None
    assert died.environment.code == "engine_failed"
    assert len(died.environment.message) < 2 * MAX_TEXT
    assert status["trouble"]["message"] == died.environment.message


def test_what_an_engine_counts_is_left_as_it_is() -> None:
    said = {**PICTURE, "timings": {"denoise": 1.5, "n": 3, "bad": NAN}, "info": {"forwards": 8}}
    picture = heard(said)
    assert isinstance(picture, SaidPicture)
    assert picture.timings == {"denoise": 1.5, "n": 3, "bad": None}
    assert picture.info == {"forwards": 8}
    text = "Ünïcode, “quotes”, 猫, 🐈"
    failed = heard({"type": "failed", **JOB, "code": "x", "message": text})
    assert isinstance(failed, SaidFailed) and failed.message == text


# -- the fuzzer

anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(10**400), max_value=10**400)
    | st.floats()
    | st.text(st.characters(), max_size=20)
    | st.sampled_from([BYTE, "a", "\x00", "\x1b[31m", "\u202e", "device_lost", "cancelled"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
KINDS = {
    "hello": ["pid"],
    "beat": ["rss"],
    "ready": ["info"],
    "load_failed": ["code", "message"],
    "leaving": ["code", "message"],
    "started": [],
    "step": ["done", "total"],
    "picture": ["place", "width", "height", "info", "timings"],
    "failed": ["code", "message"],
}
GOOD: dict[str, Any] = {
    "done": 1, "total": 2, "place": 0, "width": 16, "height": 16, "info": INFO, "timings": {},
    "code": "engine_failed", "message": "x", "rss": 1, "pid": 1, "job_id": "a", "attempt": 1,
}  # fmt: skip


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """One of the right form with a value or two of the wrong one; or no message at all."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=60)) + b"\n"
    kind = draw(st.sampled_from(sorted(KINDS)))
    names = KINDS[kind] + (
        ["job_id", "attempt"] if kind in ("started", "step", "picture", "failed") else []
    )
    message = {"type": kind} | {name: GOOD[name] for name in names}
    for name in draw(st.lists(st.sampled_from(names), max_size=2)) if names else []:
        inside = message[name]
        if isinstance(inside, dict) and inside and draw(st.booleans()):
            message[name] = inside | {draw(st.sampled_from(sorted(inside))): draw(anything)}
        else:
            message[name] = draw(anything)
    return json.dumps(message).encode() + b"\n"


@given(before=st.lists(messages(), max_size=3), after=st.lists(messages(), min_size=1, max_size=4))
@settings(
    max_examples=int(os.environ.get("FUZZ", "60")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_whatever_a_worker_sends_the_executor_reads_on(
    mad: Mad, before: list[bytes], after: list[bytes]
) -> None:
    events, _ = mad.run(b"".join([*before, lines(READY)]), b"".join(after))
    assert isinstance(checked(events)[-1], Died)


@given(message=st.dictionaries(st.text(max_size=8), anything, max_size=4))
def test_whatever_is_heard_can_be_told(message: dict[str, Any]) -> None:
    for kind in KINDS:
        try:
            said = heard(GOOD | {"type": kind} | message)
        except BadFrame as error:
            told(str(error))
        else:
            told(said.model_dump())


# -- through the whole service


def test_an_engine_error_with_an_undecodable_byte_fails_its_job_alone(
    make_root: Callable[..., Root],
) -> None:
    root = make_root()
    watcher = root.watch()
    root.drop("a.yaml", "- prompt: a mojibake steps=1\n- prompt: b steps=1\n")
    guilty, _ = root.wait_for("failed", "completed")
    assert guilty["error_code"] == "engine_failed"
    assert guilty["error_message"].startswith(
        "RuntimeError: cannot open /models/\\udcff\\udcfe.bin"
    )
    assert not {"\x00", "\x1b"} & set(guilty["error_message"])
    assert (watcher.poll(), guilty["watcher_deaths"]) == (None, 0)


def test_a_worker_that_prints_without_end_does_not_fill_the_log(
    make_root: Callable[..., Root],
) -> None:
    root = make_root(executor="local")
    root.watch()
    root.drop("a.yaml", "- prompt: a chatter steps=1\n- prompt: b steps=1\n")
    root.wait_for("completed", "completed")
    until(lambda: root.pulse()["workers"][0]["state"] == "ready", what="rest")
    assert root.said.stat().st_size < 2 * BURST


def test_health_tells_a_load_error_with_an_undecodable_byte(make_root: Callable[..., Root]) -> None:
    options = {"load_fault": "mojibake"}
    root = make_root(executor="local", engine_options=options)
    root.watch()
    until(lambda: root.troubles() == {"engine_failed"}, 30, "the trouble")
    with running(root.folder) as api:
        with urllib.request.urlopen(f"{api.url}/health", timeout=30) as answer:
            health = json.load(answer)
        assert "/models/\\udcff\\udcfe.bin" in health["reasons"][0]["message"]


# -- what it prints


@pytest.fixture
def printed() -> Iterator[tuple[Printed, list[bytes], list[float]]]:
    clock, out = [0.0], list[bytes]()
    yield Printed("worker 7", write=out.append, clock=lambda: clock[0]), out, clock


def test_what_a_worker_prints_is_passed_on_in_whole_harmless_lines(
    printed: tuple[Printed, list[bytes], list[float]],
) -> None:
    lines_of, out, _ = printed
    for piece in (b"one\ntw", b"o \x1b[31m\xff\n", b"three"):
        lines_of.take(piece)
    assert out == [b"one\n", "two \\x1b[31m\ufffd\n".encode()]
    lines_of.end()
    assert out[2:] == [b"three\n"]


def test_what_a_worker_prints_without_end_is_counted(
    printed: tuple[Printed, list[bytes], list[float]],
) -> None:
    lines_of, out, clock = printed
    row = b"x" * 99 + b"\n"
    for _ in range(10_000):  # a megabyte
        lines_of.take(row)
    assert BURST <= sum(map(len, out)) <= BURST + 200
    passed = sum(map(len, out))
    clock[0] += 3600
    lines_of.take(b"still here\n")
    assert out[-2:] == [
        f"worker 7: {1_000_000 - passed} bytes left out here\n".encode(),
        b"still here\n",
    ]
    lines_of.take(b"y" * 100_000)  # no line at all
    assert max(map(len, out)) < 10_000
