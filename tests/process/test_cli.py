"""The command `steady`, as a person or a cron job runs it: real processes, real files."""

import contextlib
import itertools
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import until
from history import rows
from PIL import Image
from roots import Root

from watcher.cli import COMMANDS
from watcher.config import Config
from watcher.errors import SteadyError
from watcher.inputs import Inputs
from watcher.jobs import ticket_of_key
from watcher.limits import Card, Limits
from watcher.submission import Body, Reader

HOUSE = Path(__file__).parents[2]
STEADY = [sys.executable, "-m", "watcher.cli"]
HOSTILE = "\x1b]0;owned\x07 \x1b[31mred [red]markup[/red] \u202e\x9b2J end"
Make = Callable[..., Root]

pytestmark = pytest.mark.timeout(300)  # many processes each, on machines that may be busy


def steady(
    root: Root, *words: str, env: dict[str, str] | None = None, given: bytes = b""
) -> "subprocess.CompletedProcess[str]":
    done = root.steady(*words, env=env, given=given)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def submit(root: Root, *words: str) -> str:
    """Submit one prompt; the ticket."""
    done = steady(root, "submit", *words, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    return str(objects(done)[0]["ticket"])


def objects(done: "subprocess.CompletedProcess[str]") -> list[dict[str, Any]]:
    """Each line of stdout, which must be a JSON object."""
    parsed = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(isinstance(one, dict) for one in parsed)
    return parsed


def on_terminal(root: Root, *words: str, **env: str) -> str:
    """What a command that ends well shows on a terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*STEADY, "--root", str(root.folder), *words],
        env=root.environment() | {"TERM": "xterm", "PYTHONUTF8": "1"} | env,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    root.processes.append(process)
    os.close(theirs)
    said = b""
    with contextlib.suppress(OSError):  # the other end is closed
        while select.select([ours], [], [], 90)[0]:
            said += os.read(ours, 65536)
    os.close(ours)
    assert process.wait(10) == 0, said
    return said.decode()


def waiting(root: Root) -> list[Path]:
    return [path for path in root.inbox.iterdir() if path.is_file() and path.name[0] != "."]


# -- saying


def test_every_command_with_json_says_json_and_nothing_else(make_root: Make) -> None:
    root = make_root()
    root.drop("one.yaml", "prompt: one\n")
    root.drop("two.yaml", "prompt: two raise\n")
    root.finish()
    good, bad = [job["id"] for job in sorted(root.jobs(), key=lambda job: str(job["state"]))]
    for words, code in [
        (["list"], 0),
        (["status"], 4),
        (["status", good], 0),
        (["status", "nothing"], 3),
        (["retry", bad], 0),
        (["cancel", bad], 0),
        (["pause", "--reason", "lunch"], 0),
        (["resume"], 0),
        (["model", "list"], 0),
        (["submit", "three"], 0),
    ]:
        done = steady(root, *words, "--json")
        assert done.returncode == code, (words, done.stdout, done.stderr)
        assert objects(done), words
    for words in (["retry", "--failed"], ["follow", "--until-idle"], ["watch", "--once"]):
        done = steady(root, *words, "--json")
        assert (done.returncode, done.stdout) == (0, ""), (words, done.stderr)


def test_job_text_cannot_steer_the_terminal(make_root: Make) -> None:
    root = make_root()
    submitted = steady(root, "submit", HOSTILE, "--label", "\x1b[2Jx", "--json")
    assert submitted.returncode == 2, "control characters are refused at the door"
    body = json.dumps({"prompt": HOSTILE.replace("\x1b", "").replace("\x07", "")})
    root.drop("odd\x1b[31m.json", body.replace("\\u009b", ""))
    root.finish()
    [job] = root.jobs()
    for words in (["list"], ["status", job["id"]], ["submit", HOSTILE], ["status", HOSTILE[:30]]):
        done = steady(root, *words)
        text = done.stdout + done.stderr
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text), repr(text)
    assert "[red]markup[/red]" in steady(root, "list").stdout
    [seen] = objects(steady(root, "list", "--json"))
    assert "\u202e" in seen["request"]["prompt"]


def test_every_command_is_listed_whatever_else_is_said(make_root: Make) -> None:
    root = make_root()
    own = root.environment()  # so that nothing is imported before
    listed = [steady(root, *words, env=own).stdout for words in (["-h"], ["-h", "list"])]
    assert listed[0] == listed[1]
    for name in set[str]().union(*COMMANDS.values()):
        assert re.search(rf"^  {name} ", listed[0], re.M), name


def test_a_reader_that_leaves_early_is_no_error(make_root: Make) -> None:
    root = make_root()
    submit(root, "one", "--count", "30")
    root.finish()
    both = subprocess.run(
        f"{' '.join(STEADY)} --root {root.folder} list -n 30 --json | head -n 1",
        shell=True,
        env=root.environment(),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert json.loads(both.stdout)
    assert b"Error" not in both.stderr and b"Traceback" not in both.stderr


def test_quiet_says_nothing_while_all_is_well(make_root: Make) -> None:
    root = make_root()
    for words in (["submit", "one"], ["list"], ["pause"], ["resume"], ["init"]):
        done = steady(root, "-q", *words)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = steady(root, "-q", "status", "0000")
    assert done.returncode == 3 and "no job" in done.stderr


def test_two_faults_are_said_once_each(make_root: Make) -> None:
    done = steady(make_root(), "submit", "one", "--width", "17", "--height", "18")
    assert done.returncode == 2
    assert [line.split(" must")[0] for line in done.stderr.splitlines()] == [
        "steady: `width`", "  `height`",
    ]  # fmt: skip


def test_it_works_with_an_empty_environment(make_root: Make) -> None:
    root = make_root()
    bare = {"PATH": "/usr/bin:/bin", "PYTHONPATH": root.environment()["PYTHONPATH"]}
    for _ in range(2):
        assert steady(root, "submit", "-q", "--key", "night", "ä fox", env=bare).returncode == 0
    assert len(waiting(root)) == 1
    assert steady(root, "list", env=bare).returncode == 0
    latin = bare | {"LC_ALL": "en_US.ISO-8859-1", "PYTHONIOENCODING": "ascii"}
    assert "\\u4e2d" in steady(root, "submit", "中", "--dry-run", env=latin).stdout


# -- submitting


def test_submit_with_the_service_down_writes_one_file(make_root: Make) -> None:
    root = make_root()
    done = steady(root, "submit", "a red fox", "--seed", "7", "--size", "64x48", "--json")
    assert done.returncode == 0
    [answer] = objects(done)
    [file] = waiting(root)
    assert file.name == f"api-{answer['ticket']}.json"
    assert not (root.folder / "steady.db").exists()
    [seen] = objects(steady(root, "status", answer["ticket"], "--json"))
    assert seen["state"] == "queued"
    root.finish()
    [job] = objects(steady(root, "list", "--json"))
    assert job["id"] == answer["job_ids"][0] == answer["ticket"]
    assert (
        job["request"] | {"prompt": "a red fox", "seed": 7, "width": 64, "height": 48}
        == (job["request"])
    )
    assert Path(job["path"]).is_file()


def test_a_bad_file_queues_nothing_and_says_where(make_root: Make) -> None:
    root = make_root()
    good, bad = root.folder / "good.yaml", root.folder / "bad.yaml"
    good.write_text("prompt: fine\n")
    bad.write_text("prompt: fine\nwidht: 64\n")
    done = steady(root, "submit", str(good), str(bad))
    assert done.returncode == 2
    assert "bad.yaml" in done.stderr and "line 2" in done.stderr and "width" in done.stderr
    [refused] = objects(steady(root, "submit", str(bad), "--json"))
    assert refused["error"]["problems"][0]["line"] == 2
    assert waiting(root) == []


@pytest.mark.parametrize(
    "words",
    [
        ["nothing.yaml"],
        ["two", "words"],
        ["fox", "--width", "100"],
        ["fox", "--width", "many"],
        ["fox", "--metadata", "novalue"],
        ["fox", "--no-such-option"],
        ["fox", "--wait", "--timeout", "soon"],
        [""],
        [],
    ],
)
def test_bad_usage_is_2_and_queues_nothing(make_root: Make, words: list[str]) -> None:
    root = make_root()
    done = steady(root, "submit", *words)
    assert done.returncode == 2 and done.stderr and done.stdout == ""
    assert waiting(root) == []


def test_files_patterns_and_standard_input(make_root: Make) -> None:
    root = make_root()
    for name, text in {
        "a1.yaml": "prompt: one\n",
        "a2.yaml": "- prompt: two\n- prompt: three\n",
        "lines.txt": "# a list\nfour\n\nfive\n",
        "rows.csv": "prompt,seed\nsix,1\nseven,2\n",
    }.items():
        (root.folder / name).write_text(text)
    done = steady(root, "submit", "a*.yaml", "lines.txt", "rows.csv", "--json")
    assert [one["jobs"] for one in objects(done)] == [1, 2, 2, 2], done.stderr
    done = steady(root, "submit", "-", "--json", given=b"eight\nnine\n")
    assert [one["jobs"] for one in objects(done)] == [2]
    done = steady(root, "submit", "-", "--type", "yaml", given=b"prompt: ten\n")
    assert done.returncode == 0, done.stderr
    root.finish()
    prompts = {job["request"]["prompt"] for job in objects(steady(root, "list", "--json"))}
    numbers = "one two three four five six seven eight nine ten"
    assert prompts == set(numbers.split())


def test_options_are_put_over_the_jobs_of_a_file(make_root: Make) -> None:
    root = make_root()
    file = root.folder / "two.yaml"
    file.write_text("- {prompt: one, width: 64, height: 64, seed: 5}\n- prompt: two\n")
    done = steady(
        root, "submit", str(file), "--size", "32x48", "--count", "2", "--dry-run", "--json"
    )
    made = objects(done)
    assert [(job["width"], job["height"]) for job in made] == [(32, 48)] * 4
    assert [job.get("seed") for job in made][:2] == [5, 6]
    assert waiting(root) == []


def reader_of_two_models(folder: Path) -> Reader:
    """With a model beside the usual one that other numbers suit, and two pictures in inputs/."""
    (folder / "inputs").mkdir()
    for name in ("a.png", "m.png"):
        Image.new("L", (512, 256)).save(folder / "inputs" / name)
    takes = ("image", "mask", "upscale", "guidance", "negative_prompt")
    base = Card("base", default_width=768, default_height=768, default_steps=28, default_guidance=4,
                accepts=takes, absent=SteadyError("model_not_found"))  # fmt: skip
    limits = Limits(Card(accepts=takes), {"base": base})
    return Reader(limits, folder, Inputs(Config.load(folder), None))


@pytest.mark.parametrize("said", [{}, {"image": "a.png"}, {"model": "base", "width": 64}])
@pytest.mark.parametrize(
    "given",
    [
        {"model": "base"},
        {"image": "a.png"},
        {"image": "a.png", "mask": "m.png"},
        {"image": "a.png", "upscale": 2},
        {"image": "a.png", "height": 128},
        {"count": 3, "seed": 4},
        {"num_inference_steps": 3, "label": "night"},
        {"negative_prompt": "people", "guidance_scale": 2.5},
    ],
)
def test_an_option_over_a_file_is_as_if_it_stood_there(
    tmp_path: Path, said: dict[str, Any], given: dict[str, Any]
) -> None:
    reader = reader_of_two_models(tmp_path)
    job = {"prompt": "a cat", "count": 2} | said
    right = reader.plan(Body(json.dumps(job | given).encode(), ".json", "x"))
    axis = {"matrix": {field: ["-"] for field in given.keys() & {"label", "negative_prompt"}}}
    for file in (
        Body(json.dumps(job).encode(), ".json", "x"),
        Body(json.dumps(job).encode(), ".jsonl", "x"),
        Body(json.dumps(job | axis).encode(), ".yaml", "x"),
    ):
        sent, plan = reader.changed(file, given)
        for each in (plan, reader.plan(sent)):
            assert [p.request for p in each.requests] == [p.request for p in right.requests]
            assert each.warnings == right.warnings


def test_a_field_that_an_option_puts_over_a_file_is_also_what_names_say(tmp_path: Path) -> None:
    reader, name = reader_of_two_models(tmp_path), "{seed}-{steps}"
    matrix = {"prompt": "x", "name": name, "matrix": {"seed": [1, 2], "steps": [4, 8]}}
    table = f"prompt,name,seed,Steps\nx,{name},1,4\n"
    for body in (
        Body(json.dumps(matrix).encode(), ".json", "x"), Body(table.encode(), ".csv", "x"),
    ):  # fmt: skip
        _, plan = reader.changed(body, {"seed": 7, "num_inference_steps": 6})
        assert {planned.request.name for planned in plan.requests} == {"7-6"}


def test_what_is_drawn_under_an_option_is_drawn_anew_but_for_a_key(tmp_path: Path) -> None:
    reader = reader_of_two_models(tmp_path)
    job = {"prompt": "{" + "|".join(map(str, range(99))) + "} {seed}", "expand": "wildcards"}
    free, own = (Body(json.dumps(job | key).encode(), ".json", "x") for key in ({}, {"key": "k"}))
    keyed = replace(reader, key="k")
    drawn = [reader.changed(free, {})[0].data for _ in range(3)]
    assert len(set(drawn)) == 3
    assert len({r.changed(b, {})[0].data for r, b in [(reader, own), (keyed, own)] * 2}) == 1
    assert len({keyed.changed(free, {})[0].data for _ in range(3)}) == 1


def test_a_key_makes_a_repeat_harmless(make_root: Make) -> None:
    root = make_root()
    first = objects(steady(root, "submit", "fox", "--key", "k", "--json"))[0]
    assert first["ticket"] == ticket_of_key("k")
    assert objects(steady(root, "submit", "fox", "--key", "k", "--json"))[0]["duplicate"]
    assert steady(root, "submit", "owl", "--key", "k").returncode == 2
    root.finish()
    assert objects(steady(root, "submit", "fox", "--key", "k", "--json"))[0]["duplicate"]
    assert waiting(root) == []
    conflict = steady(root, "submit", "owl", "--key", "k", "--json")
    assert conflict.returncode == 2 and objects(conflict)[0]["error"]["code"] == "key_conflict"
    table = root.folder / "orders.csv"
    table.write_text("prompt,key\na fox steps=1,o1\nan owl steps=1,\n")
    told = objects(steady(root, "submit", str(table), "--json"))[0]["job_ids"]
    root.finish()
    assert told == [job["id"] for job in root.jobs()][1:]
    (alone := root.folder / "alone.json").write_text('[{"prompt": "a cat", "key": "o2"}]')
    [told] = objects(steady(root, "submit", str(alone), "--steps", "1", "--json"))
    root.finish()
    job = root.jobs()[-1]
    assert (told["ticket"], told["job_ids"]) == (job["ticket"], [job["id"]])
    (twice := root.folder / "twice.csv").write_text("prompt,key\nx steps=1,\ny steps=1,t\n")
    [told] = objects(steady(root, "submit", str(twice), "--key", "t", "--json"))
    root.finish()
    assert told["job_ids"] == [job["id"] for job in root.jobs()][-2:]
    (named := root.folder / "named.yaml").write_text("prompt: a cat\nkey: own\n")
    for key in ("own", "own"):
        told = objects(steady(root, "submit", str(named), str(alone), "--key", key, "--json"))
        assert told[0]["ticket"] == ticket_of_key("own")
    assert told[0]["duplicate"] and told[1]["duplicate"]
    conflict = steady(root, "submit", str(named), "--key", "other", "--json")
    assert conflict.returncode == 2 and objects(conflict)[0]["error"]["code"] == "key_conflict"


def test_a_key_under_a_preset_or_an_option_is_for_what_was_sent(make_root: Make) -> None:
    root = make_root()
    assert steady(root, "init").returncode == 0
    root.finish()  # from now on there is a record
    (file := root.folder / "two.yaml").write_text("- a fox steps=1\n- an owl steps=1\n")
    for what in ("a cat steps=1", str(file)):
        sent = ("submit", what, "--preset", "ink", "--key", what, "--json")
        root.preset("ink", "label: before\n")
        told = [objects(steady(root, *sent))[0]]
        for _ in range(2):  # while it waits, and when it is on record
            root.preset("ink", "label: edited\n")
            told += objects(steady(root, *sent))
            root.finish()
        assert [one.get("duplicate") for one in told] == [None, True, True]
        assert len({(one["ticket"], *one["job_ids"]) for one in told}) == 1
        other = objects(steady(root, *sent, "--label", "mine"))
        assert other[0]["error"]["code"] == "key_conflict"
    assert [json.loads(job["request"])["label"] for job in root.jobs()] == ["before"] * 3
    assert [job["image_name"] for job in root.jobs()][1:] == ["two_0001", "two_0002"]


def test_a_submission_that_died_before_it_was_published_is_finished_by_the_next(
    make_root: Make,
) -> None:
    root = make_root()
    root.finish()
    assert steady(root, "submit", "a cat steps=1", "--key", "k").returncode == 0
    [file] = waiting(root)
    (root.inbox / file).unlink()
    [told] = objects(steady(root, "submit", "a cat steps=1", "--key", "k", "--json"))
    root.finish()
    assert told["job_ids"] == [job["id"] for job in root.jobs()]
    root.inbox.rename(root.folder / "away")
    root.inbox.write_text("a file where the folder was")
    assert steady(root, "submit", "a dog", "--key", "other").returncode != 0
    assert rows(root.folder, "SELECT ticket FROM batches WHERE key = 'other'") == []


# -- waiting


def test_wait_shows_one_line_a_change_and_no_control_codes_in_a_pipe(make_root: Make) -> None:
    root = make_root()
    root.watch()
    done = steady(root, "submit", "fox", "--wait", "--timeout", "30s")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^completed   fox  /", done.stderr, re.M) and "1 picture in " in done.stderr
    assert "\x1b" not in done.stderr and "\r" not in done.stderr
    done = steady(root, "submit", "fox raise", "--count", "2", "--wait", "--timeout", "30s")
    assert done.returncode == 1 and done.stderr.count("failed      fox raise  engine_failed: ") == 2
    assert re.search(r"^0 pictures in [\d.]+ s; 2 failed$", done.stderr, re.M), done.stderr
    done = steady(root, "submit", "fox raise", "--wait", "--timeout", "30s", "--json")
    assert done.returncode == 1
    assert objects(done)[-1]["error_code"] == "engine_failed"


def test_wait_draws_a_bar_on_a_terminal(make_root: Make) -> None:
    root = make_root()
    root.watch()
    until(lambda: root.pulse().get("state") == "running", 30)
    text = on_terminal(root, "submit", "sleep=0.4 fox", "--wait")
    assert re.search(r"[1-9]\d? %", text), text
    assert "▓" in text and "\x1b[32mcompleted \x1b[0m  sleep=0.4 fox  " in text
    assert re.search(r"1 picture in [\d.]+ s -> /", text), text
    assert text.rstrip("\n").endswith(("\r", "\x1b[K")), "the last line is clean"


def test_ctrl_c_ends_the_waiting_and_not_the_job(make_root: Make) -> None:
    root = make_root()
    process = root.spawn("-m", "watcher.cli", "submit", "fox", "--wait")
    until(lambda: waiting(root))
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
    root.finish()
    assert root.states() == ["completed"]


def test_timeout_is_5_and_the_job_goes_on(make_root: Make) -> None:
    root = make_root()
    done = steady(root, "submit", "fox", "--wait", "--timeout", "0.3s")
    assert done.returncode == 5
    root.finish()
    assert root.states() == ["completed"]


# -- asking and changing


def test_a_list_has_a_header_colours_and_a_total_on_a_terminal(make_root: Make) -> None:
    root = make_root()
    submit(root, "fox [red] \u202e", "--count", "3", "--name", "a-long-name-for-a-picture")
    submit(root, "fox raise")
    root.finish()
    text = on_terminal(root, "list", "-n", "2")
    head, first, second, total = text.replace("\r", "").splitlines()
    assert "ID" in head and head.index("PROMPT") - 4 == second.index("fox") - 9  # of their colours
    assert "\x1b[31mfailed (engine_failed)\x1b[0m" in first and "just now" in first
    assert total == "Showing 2 of 4; all of them: --limit 4"
    plain = on_terminal(root, "list", NO_COLOR="1")
    assert "\x1b" not in plain and "\u202e" not in plain
    piped = steady(root, "list", "-n", "2")
    assert len(piped.stdout.splitlines()) == 2 and piped.stderr == ""


def test_status_says_what_needs_a_person(make_root: Make) -> None:
    root = make_root()
    root.drop("bad.yaml", "prompt: x\nwidth: 100\n")
    root.drop("half.csv", "prompt,width\nfox,64\nfox,100\n")
    root.drop("notes.docx", "no job")
    submit(root, "fox raise", "--count", "2")
    submit(root, "fox")
    root.finish()
    shown = steady(root, "status").stdout
    needs = shown.split("needs you\n")[1]
    assert "refused bad.yaml: Line 2: `width` must be a multiple of 16. See" in needs
    assert "refused half.csv: 1 row cannot be used; see" in needs
    assert "failed  2: The model failed on this job. See the log" in needs
    ids = re.findall(r"steady status (\w{8})", needs)
    assert "fox raise" in steady(root, "status", ids[0]).stdout
    submit(root, "sleep=60 fox", "--count", "4")
    assert "1 file in the inbox, for a watcher to read" in steady(root, "status").stdout
    root.watch()
    until(lambda: "generating" in root.states(), 60)
    seen = until(lambda: "left " in (told := steady(root, "status").stdout) and told, 30)
    assert "notes.docx" in seen and re.search(r"all done in about [\d.]+ ", seen)
    told = objects(steady(root, "status", "--json"))[0]
    assert told["ready"] is True and told["eta_seconds"] > 0 and len(told["refused"]) == 1
    mended = root.inbox / "refused" / "bad.yaml"
    mended.write_text("prompt: x\nwidth: 64\n")
    mended.rename(root.inbox / "bad.yaml")
    assert objects(steady(root, "status", "--json"))[0]["refused"] == []


def test_ids_may_be_shortened_while_they_are_unique(make_root: Make) -> None:
    root = make_root()
    seen: dict[str, str] = {}
    for number in range(5000):  # two keys whose ids begin alike
        begin = ticket_of_key(str(number))[:4]
        if begin in seen:
            break
        seen[begin] = str(number)
    for key in (seen[begin], str(number)):
        submit(root, "fox", "--key", key)
    root.finish()
    full = ticket_of_key(str(number))
    assert objects(steady(root, "status", full[:13], "--json"))[0]["id"] == full
    several = steady(root, "status", begin)
    assert several.returncode == 2 and "Several" in several.stderr
    name = objects(steady(root, "status", full, "--json"))[0]["image_name"]
    assert objects(steady(root, "status", name, "--json"))[0]["id"] == full


def test_cancel_and_retry(make_root: Make) -> None:
    root = make_root()
    unread = submit(root, "never")
    assert steady(root, "cancel", unread).returncode == 0
    assert waiting(root) == []
    submit(root, "raise once fox")
    submit(root, "owl")
    root.finish()
    failed = next(job for job in root.jobs() if job["state"] == "failed")
    done = next(job for job in root.jobs() if job["state"] == "completed")
    assert steady(root, "cancel", done["id"]).returncode == 1
    assert steady(root, "retry", done["id"]).returncode == 1
    both = steady(root, "cancel", "0000-no", done["id"])
    assert both.returncode == 3 and both.stderr.count("steady:") == 2, "each is told of"
    for more in (
        [failed["id"], "--failed"],
        [failed["id"], "--batch", "x"],
        ["--failed", "--batch", "x"],
    ):
        assert steady(root, "retry", *more).returncode == 2
    assert steady(root, "retry", "--failed").returncode == 0
    assert steady(root, "cancel", failed["id"][:8]).returncode == 0
    assert steady(root, "retry", failed["id"]).returncode == 0
    root.finish()
    assert sorted(root.states()) == ["completed", "completed"]
    steady(root, "pause")
    for prompt in ("fox", "owl"):
        submit(root, prompt)
    watcher = root.watch()
    until(lambda: len(root.jobs()) == 4, 30, "they wait")
    assert steady(root, "cancel", "--waiting", done["id"]).returncode == 2
    assert steady(root, "cancel", "--waiting").stdout == "2 cancelled\n"
    assert sorted(root.states()) == ["cancelled"] * 2 + ["completed"] * 2
    watcher.send_signal(signal.SIGTERM)
    assert watcher.wait(20) == 0
    submit(root, "late")
    unread = steady(root, "cancel", "--waiting").stdout
    assert unread == "0 cancelled; not taken yet: 1 file in the inbox, for a watcher to read\n"


def test_a_mistake_is_answered_with_what_to_do_instead(make_root: Make, tmp_path: Path) -> None:
    root = make_root()
    for words, said in {
        (
            "submit",
            "x",
            "--priority",
            "urgent",
        ): "one of interactive, normal, bulk. Given: 'urgent'.",
        ("submit", ""): "`prompt` is empty.",
        ("prune", "--older-than", "3"): "write 3d",
        ("model", "pull", "--sha256", "0" * 64): "--sha256 wants owner/name/file.safetensors",
        ("lst",): "Did you mean 'list'?",
        ("list", "--state", "done"): "completed (the picture is there)",
    }.items():
        done = steady(root, *words)
        assert done.returncode == 2 and said in done.stderr, done.stderr
        assert done.stderr.count("one of interactive") < 2, "said once"
    submit(root, "fox", "--count", "2")
    root.finish()
    first, second = root.jobs()
    for job, verb in itertools.product((first, second), ("cancel", "retry")):
        done = steady(root, verb, job["id"])
        assert done.returncode == 1 and "steady submit PICTURE" in done.stderr
    done = steady(root, "cancel", "--batch", first["ticket"])
    assert done.returncode == 1 and "2 completed" in done.stderr
    shown = steady(root, "status", first["ticket"]).stdout
    assert "jobs      2: 2 completed" in shown and "prompt " not in shown
    assert "file      fox.json" in shown and first["image_name"] == "fox_0001"
    named = steady(root, "status", first["image_name"]).stdout
    assert "prompt    fox" in named
    assert steady(root, "status", first["image_name"] + ".png").stdout == named
    empty = tmp_path / "empty"
    empty.mkdir()
    for words in (("list",), ("status",), ("cancel", "abcd1234"), ("submit", "x")):
        done = steady(root, *words, "--root", str(empty))
        assert done.returncode == 4 and "init" in done.stderr and not list(empty.iterdir())


def test_pause_holds_over_a_restart_until_resume(make_root: Make) -> None:
    root = make_root()
    assert steady(root, "pause", "--reason", "lunch").returncode == 0
    submit(root, "fox")
    watcher = root.watch()
    root.wait_for("queued")
    assert "lunch" in steady(root, "status").stdout
    assert steady(root, "resume").returncode == 0
    root.wait_for("completed")
    assert watcher.poll() is None


def test_asking_makes_nothing(make_root: Make) -> None:
    root = make_root()
    assert steady(root, "list").returncode == 0
    assert steady(root, "status").returncode == steady(root, "open").returncode == 4
    lost = steady(root, "status", "boat.yaml")
    assert lost.returncode == 3 and "no job, batch or picture boat.yaml" in lost.stderr
    assert not (root.folder / "steady.db").exists()
    gone = subprocess.run([*STEADY, "--root", "/no/where", "list"], env=root.environment(),
                          capture_output=True, check=False)  # fmt: skip
    assert gone.returncode == 4 and b"init" in gone.stderr
    empty = root.folder / "empty"
    empty.mkdir()
    roundabout = str(root.folder / "inbox" / ".." / "empty")
    none = subprocess.run([*STEADY, "--root", roundabout, "list"], env=root.environment(),
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert none.returncode == 4 and f"{empty.resolve()} is no folder of the service" in none.stderr


def test_a_bad_setting_is_4_and_named(make_root: Make) -> None:
    root = make_root()
    (root.folder / "config.yaml").write_text("prot: 9000\n")
    done = steady(root, "list")
    assert done.returncode == 4 and "port" in done.stderr
    (root.folder / "config.yaml").write_text("port: 9000\nport: 9001\n")
    twice = steady(root, "status")
    assert twice.returncode == 4 and "`port` stands twice in config.yaml" in twice.stderr
    (root.folder / "config.yaml").write_text("run_window: 2026-02-30\n")
    odd = steady(root, "status")
    assert odd.returncode == 4 and "config.yaml cannot be read" in odd.stderr
    (root.folder / "config.yaml").write_text("port: 99999\n")
    done = steady(root, "list")
    assert done.returncode == 4 and "must be at most 65535" in done.stderr


def test_a_port_that_cannot_be_is_2_and_blames_the_option(make_root: Make) -> None:
    done = steady(make_root(), "serve", "--port", "99999")
    assert (done.returncode, done.stderr) == (
        2, "steady: `--port`: it must be at most 65535.\n",
    )  # fmt: skip


# -- the processes


def test_watch_once_does_all_and_a_second_watcher_is_refused(make_root: Make) -> None:
    root = make_root()
    root.drop("one.yaml", "prompt: fox\n")
    assert steady(root, "watch", "--once", "-q").returncode == 0
    assert root.states() == ["completed"]
    root.watch()
    until(lambda: root.pulse().get("state") == "running")
    second = steady(root, "watch", "--once")
    assert second.returncode == 4 and "Another watcher" in second.stderr


@contextlib.contextmanager
def served(root: Root) -> Iterator[tuple["subprocess.Popen[bytes]", str]]:
    """`steady serve` on a free port, once it says that it is ready."""
    with root.said.open("ab") as said:
        process = subprocess.Popen(
            [*STEADY, "--root", str(root.folder), "serve", "--port", "0", "--json"],
            env=root.environment(),
            stdout=subprocess.PIPE,
            stderr=said,
        )
    root.processes.append(process)
    assert process.stdout is not None
    try:
        ready = select.select([process.stdout], [], [], 40)[0]
        assert ready, root.said.read_text()
        yield process, json.loads(process.stdout.readline())["url"]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(url + "health", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def children(process: "subprocess.Popen[bytes]") -> dict[str, int]:
    """The watcher's and the api's process ids."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            parent = int(entry.joinpath("stat").read_text().rsplit(")", 1)[1].split()[1])
            words = entry.joinpath("cmdline").read_bytes().split(b"\0")
            if parent == process.pid and b"-m" in words:
                found[words[words.index(b"-m") + 1].decode()] = int(entry.name)
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_without_its_model_the_service_says_not_ready_and_what_to_type(make_root: Make) -> None:
    model = {"load_fault_while": "", "load_fault": "missing", "load_sleep": 1.0}
    root = make_root()
    hold = root.folder / "hold"
    hold.touch()
    root.configure(engine_options=model | {"log": str(root.log), "load_fault_while": str(hold)})
    root.extra["PYTHONUNBUFFERED"] = "1"
    with (root.folder / "serve.log").open("wb") as said:
        command = [*STEADY, "--root", str(root.folder), "serve", "--port", "0"]
        process = subprocess.Popen(
            command,
            env=root.environment(),
            stdout=said,
            stderr=said,
        )
    root.processes.append(process)
    shown = (root.folder / "serve.log").read_text
    until(lambda: "NOT READY: " in shown(), 60)
    assert "page and API  http://127.0.0.1:" in shown() and "Ready: " not in shown()
    line = next(line for line in shown().splitlines() if line.startswith("NOT READY: "))
    status = until(lambda: "NOT READY" in (told := steady(root, "status").stdout) and told)
    address = re.search(r"page +(http://\S+)", status)
    assert line in status and address
    assert line in steady(root, "submit", "fox").stderr
    waited = steady(root, "submit", "fox", "--wait", "--timeout", "1s")
    assert waited.returncode == 5 and line in waited.stderr
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(address[1] + "ready", timeout=20)
    told = json.loads(refused.value.read())
    assert told["detail"] in line and told["remedy"] in line
    page = urllib.request.Request(address[1], headers={"Accept": "text/html"})
    with urllib.request.urlopen(page, timeout=20) as answer:
        assert ">NOT READY</a>" in answer.read().decode()
    hold.unlink()
    until(lambda: "Ready: " in shown(), 90)
    process.terminate()
    assert process.wait(20) == 0


def test_serve_keeps_both_alive_and_stops_both(make_root: Make) -> None:
    root = make_root()
    with served(root) as (process, url):
        until(lambda: healthy(url))
        before = children(process)
        assert set(before) == {"watcher", "api"}
        again = steady(root, "serve", "--port", "0")
        assert again.returncode == 4 and url in again.stderr
        browser = root.environment() | {"BROWSER": "sh -c 'touch opened' %s"}
        assert steady(root, "open", env=browser).stdout.strip() == url
        assert (root.folder / "opened").exists()
        for pid in before.values():
            os.kill(pid, signal.SIGKILL)
        until(lambda: healthy(url))
        until(lambda: set(children(process)) == {"watcher", "api"})
        after = children(process)
        assert not set(after.values()) & set(before.values())
        assert steady(root, "submit", "fox", "--wait", "--timeout", "40s").returncode == 0
        process.terminate()
        begun = time.monotonic()
        assert process.wait(60) == 0
        assert time.monotonic() - begun < 30
        assert not any(alive(pid) for pid in after.values())


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells the children, on Linux")
def test_children_end_when_serve_is_killed(make_root: Make) -> None:
    root = make_root()
    with served(root) as (process, _):
        pids = children(process).values()
        process.kill()
        until(lambda: not any(alive(pid) for pid in pids))


def test_serve_says_at_once_when_it_cannot_start(make_root: Make) -> None:
    root = make_root()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = steady(root, "serve", "--port", str(taken.getsockname()[1]))
    assert done.returncode == 4 and "--port" in done.stderr
    root.watch()
    until(lambda: root.pulse().get("state") == "running")
    done = steady(root, "serve", "--port", "0")
    assert done.returncode == 4 and "Another watcher" in done.stderr


# -- setting up, and looking for faults


def test_init_makes_a_root_and_keeps_what_is_there(make_root: Make) -> None:
    root = make_root()
    fresh = root.folder / "new" / "root"
    environment = root.environment()
    first = subprocess.run([*STEADY, "--root", str(fresh), "init", "--json"], env=environment,
                           capture_output=True, check=True)  # fmt: skip
    assert json.loads(first.stdout)["created"] is True
    (fresh / "config.yaml").write_text("port: 9000\n")
    again = subprocess.run([*STEADY, "init", "--root", str(fresh), "--json"], env=environment,
                           capture_output=True, check=True)  # fmt: skip
    assert json.loads(again.stdout)["created"] is False
    assert (fresh / "config.yaml").read_text() == "port: 9000\n"
    assert (fresh / "inbox").is_dir() and (fresh / "outputs").is_dir()
    (root.folder / "file").touch()
    for place in ("file", "file/below"):
        done = steady(root, "init", "--root", str(root.folder / place))
        assert done.returncode == 4 and "file" in done.stderr and "cannot be made" in done.stderr
