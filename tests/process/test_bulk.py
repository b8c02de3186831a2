"""The bulk night: ten thousand rows, a person in between, word lists, the morning's tables."""

import csv
import errno
import json
import os
import random
import signal
import subprocess
import urllib.request
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from conftest import until
from doors import Bench
from engines import expected, read_log
from history import faults, pictures, rows
from PIL import Image
from roots import Root
from store_children import Clock, claim_one

from watcher.dispatch import RunWindow
from watcher.errors import SteadyError, Trouble
from watcher.pace import Pace, loading_seconds
from watcher.wildcards import Wildcards

Make = Callable[..., Root]


def steady(root: Root, *words: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
    return root.steady(*words, given=stdin.encode())


def count(root: Root, where: str = "1 = 1") -> int:
    try:
        return int(rows(root.folder, f"SELECT count(*) AS n FROM jobs WHERE {where}")[0]["n"])
    except Exception as error:  # not there yet
        if "no such table" in str(error) or "unable to open" in str(error):
            return 0
        raise


# -- tables and their results


def test_the_results_come_back_as_a_table_with_rows_and_labels(make_root: Make) -> None:
    root = make_root()
    lines = ["id,prompt,width"]
    lines += [f'A-{i},"row {i}, steps=1",64' for i in range(1, 6)]
    lines[3] = "A-3,bad,65"
    lines += ["A-6,raise,64", "=1+1,=cmd|' /C calc'!A0 steps=1,64"]
    root.drop("night.csv", "\n".join(lines) + "\n")
    root.finish()
    [path] = (root.inbox / "done").rglob("night~*.csv.result.csv")
    table = list(csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines()))
    assert [r["row"] for r in table] == ["1", "2", "4", "5", "6", "7"]
    assert [r["id"] for r in table][:5] == ["A-1", "A-2", "A-4", "A-5", "A-6"]
    assert list(table[0]) == [
        "row", "state", "picture", "seed", "model", "lora", "error", "result_id", "id", "prompt", "width",
    ]  # fmt: skip
    assert table[4]["state"] == "failed" and table[4]["error"].startswith("engine_failed")
    assert table[4]["picture"] == "" and table[0]["seed"].isdigit()
    assert (root.folder / "outputs" / table[0]["picture"]).is_file()
    assert table[5]["id"] == "'=1+1" and table[5]["prompt"].startswith("'=")
    back = next((root.inbox / "done").rglob("*.refused.csv")).read_text(encoding="utf-8-sig")
    assert back.startswith("id,prompt,width,error") and "A-3,bad,65" in back


def test_refused_rows_come_back_as_they_were_judged_whatever_was_changed_since(
    make_root: Make,
) -> None:
    root = make_root()
    (root.folder / "inputs").mkdir()
    (torn := root.folder / "inputs" / "torn.png").write_bytes(b"\x89PNG")
    root.drop("night.csv", "prompt,image,width\na steps=1,,64\nb,torn.png,\nc,,2048\n")
    root.configure(max_side=1024)
    assert root.watch(point="recorded", once=True).wait(60) == -signal.SIGKILL
    torn.unlink()
    root.configure(max_side=2048)
    root.finish()
    told = {row["prompt"]: row["error"] for row in results(root, "night~*.refused.csv")}
    assert "no picture that can be read" in told["b"] and "1024" in told["c"]


def test_refused_rows_come_back_to_whoever_sent_the_table(make_root: Make) -> None:
    from doors import running

    root = make_root()
    text = "prompt,width\nfine steps=1,64\nbad,65\n"
    (file := root.folder / "sent.csv").write_text(text)
    assert steady(root, "submit", str(file)).returncode == 0
    with running(root.folder) as api:
        headers = {"Content-Type": "text/csv"}
        post = urllib.request.Request(f"{api.url}/jobs?filename=posted.csv", text.encode(), headers)
        urllib.request.urlopen(post, timeout=20).close()
        root.finish()
        for name in ("sent", "posted"):
            [row] = results(root, f"{name}~*.refused.csv")
            assert row["prompt"] == "bad" and "multiple of 16" in row["error"]
            asked = "SELECT ticket FROM batches WHERE name LIKE ?"
            [batch] = rows(root.folder, asked, f"{name}%")
            url = f"{api.url}/batches/{batch['ticket']}/refused.csv"
            with urllib.request.urlopen(url, timeout=20) as answer:
                assert b"multiple of 16" in answer.read()


def results(root: Root, table: str) -> list[dict[str, str]]:
    [path] = (root.inbox / "done").rglob(table)
    return list(csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines()))


def test_rows_of_a_table_are_told_apart_whatever_they_share(make_root: Make) -> None:
    """A repeated key, a refused row, an own column of any name: each line is its own row's."""
    root = make_root()
    lines = [
        "customer,prompt,key,sku,Größe,state",
        "Ann,a cat steps=1,k1,-5,M,new",
        "Bob,a cat steps=1,k1,=A1,L,new",
        "Cid,a cat steps=1,k3,+4.5,S",
        "Dan,a cat raise,k4,@x,XL,old",
        ",,,,,",
        "Eve,a cat steps=1,k5,0042,XS,old",
    ]
    root.drop("orders.csv", "\n".join(lines) + "\n")
    root.finish()
    table = results(root, "orders~*.csv.result.csv")
    assert list(table[0])[-6:] == ["customer", "prompt", "key", "sku", "Größe", "state"]
    assert [(r["row"], r["customer"], r["sku"]) for r in table] == [
        ("1", "Ann", "-5"), ("3", "Cid", "+4.5"), ("4", "Dan", "'@x"), ("6", "Eve", "0042"),
    ]  # fmt: skip
    assert [r["result_state"] for r in table] == ["completed", "completed", "failed", "completed"]
    assert [r["state"] for r in table] == ["new", "", "old", "old"]


def test_the_cases_of_tables_that_are_joined_back(make_root: Make) -> None:
    root = make_root()
    cases = Path(__file__).parents[1] / "cases" / "tables"
    for name in ("rows_that_share_a_key.csv", "own_columns.csv"):
        root.drop(name, (cases / name).read_bytes())
    root.finish()
    shared = results(root, "rows_that_share_a_key~*.result.csv")
    assert [(r["row"], r["prompt"]) for r in shared] == [
        ("1", "a lighthouse"), ("3", "a boat"), ("4", "a cat"),
    ]  # fmt: skip
    own = results(root, "own_columns~*.result.csv")
    assert list(own[0])[-4:] == ["prompt", "seed", "customer", "sku"]
    assert [(r["customer"], r["sku"]) for r in own] == [
        ("Miller & Sons", "LH-001"), ("Harbour Ltd", "BT-002"),
    ]  # fmt: skip


def test_rows_are_the_new_file_s_after_it_went_on(make_root: Make) -> None:
    """Sorted otherwise, with rows put in and one taken out: no row is guessed."""
    root = make_root()
    submit = ("submit", "--key", "orders")
    table = root.folder / "orders.csv"
    table.write_text("customer,prompt\n" + "".join(f"C{n},p{n} steps=1\n" for n in range(1, 6)))
    assert steady(root, *submit, str(table)).returncode == 0
    root.finish()
    order = [5, 9, 3, 1, 4]
    table.write_text("customer,prompt\n\n" + "".join(f"C{n},p{n} steps=1\n" for n in order))
    assert steady(root, *submit, "--resume", str(table)).returncode == 0
    root.finish()
    said = rows(root.folder, "SELECT prompt, row FROM jobs")
    wanted = {f"p{n} steps=1": row for row, n in enumerate(order, 2)} | {"p2 steps=1": None}
    assert {each["prompt"]: each["row"] for each in said} == wanted


def test_a_hundred_thousand_refused_rows_never_lie_in_memory() -> None:
    from watcher.jobfile.tables import Row, refused_csv

    asked = []

    def many() -> object:
        asked.append(1)
        return (Row(n, n, {"prompt": "x" * 100}, ()) for n in range(100_000))

    sizes = [len(piece) for piece in refused_csv(many)]  # type: ignore[arg-type]
    assert len(asked) == 2 and sum(sizes) > 10_000_000 and max(sizes) < 1_000_000


# -- word lists


def test_word_lists_come_from_their_folder_and_nowhere_else(tmp_path: Path) -> None:
    folder = tmp_path / "wildcards"
    (folder / "sub").mkdir(parents=True)
    (folder / "animal.txt").write_text("\ufeff# ours\nfox\n\n owl \n#1 cat\n", encoding="utf-8")
    (folder / "sub" / "deep.txt").write_text("x\n")
    (tmp_path / "secret.txt").write_text("secret\n")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    lists = Wildcards(tmp_path)
    assert lists("animal") == ["fox", "owl", "#1 cat"]
    assert lists("sub/deep") == ["x"]
    for name in ("../secret", "link", "/etc/passwd", "none", "sub", "", "a" * 200):
        assert lists(name) is None, name
    (folder / "huge.txt").write_bytes(b"x\n" * 600_000)
    (folder / "latin.txt").write_bytes(b"caf\xe9\n")
    for name, code in (("huge", "too_large"), ("latin", "encoding")):
        with pytest.raises(SteadyError) as told:
            lists(name)
        assert told.value.code == code


def test_a_word_list_on_a_disk_that_fails_is_waited_for_and_a_bad_place_in_it_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wildcards").mkdir()
    (tmp_path / "wildcards" / "animal.txt").write_text("fox\n")

    def failing(code: int) -> Callable[..., None]:
        def fail(*_: Any, **__: Any) -> None:
            raise OSError(code, os.strerror(code))

        return fail

    for code, place in ((errno.ESTALE, "open"), (errno.EIO, "resolve")):
        with monkeypatch.context() as there:
            there.setattr(Path, place, failing(code))
            with pytest.raises(Trouble, match="cannot be read"):
                Wildcards(tmp_path)("animal")
    with monkeypatch.context() as there:
        there.setattr(Path, "open", failing(errno.EIO))
        with pytest.raises(SteadyError) as caught:
            Wildcards(tmp_path)("animal")
        assert caught.value.code == "unreadable"
    assert Wildcards(tmp_path)("animal") == ["fox"]


def test_word_lists_work_at_every_door_and_unknown_ones_are_told(make_root: Make) -> None:
    root = make_root()
    (root.folder / "wildcards").mkdir()
    (root.folder / "wildcards" / "animal.txt").write_text("fox\nowl\n")
    text = "expand: wildcards\nprompt: a {small|large} __animal__ steps=1\ncount: 4\n"
    root.drop("w.yaml", text)
    root.drop("bad.yaml", "expand: wildcards\nprompt: a __nothing__\n")
    file = root.folder / "cli.yaml"
    file.write_text(text)
    done = steady(root, "submit", "--dry-run", "--json", str(file))
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 4
    root.finish()
    prompts = {job["prompt"] for job in root.jobs()}
    words = {f"a {size} {a} steps=1" for size in ("small", "large") for a in ("fox", "owl")}
    assert prompts and prompts <= words
    error = json.loads((root.inbox / "refused" / "bad.yaml.error.json").read_bytes())
    assert "nothing" in json.dumps(error)


# -- the same text, three doors

SAME = """\
defaults: {num_inference_steps: 2, width: 64, height: 64}
matrix: {animal: [fox, owl], seed: [1, 2]}
jobs:
  - {prompt: "a {animal}", label: "{animal}", name: "{animal}_{index:03}"}
  - {prompt: "two {animal}s {b}", folder: "sets/{animal}", format: webp, priority: bulk}
"""


def test_the_same_text_gives_the_same_jobs_at_every_door(make_root: Make) -> None:
    from doors import running

    made = {}
    for door in ("inbox", "http", "cli"):
        root = make_root(door)
        if door == "inbox":
            root.drop("same.yaml", SAME)
        elif door == "cli":
            file = root.folder / "same.yaml"
            file.write_text(SAME)
            assert steady(root, "submit", str(file)).returncode == 0
        else:
            with running(root.folder) as api:
                headers = {"Content-Type": "application/yaml"}
                post = urllib.request.Request(
                    f"{api.url}/jobs?filename=same.yaml", SAME.encode(), headers
                )
                with urllib.request.urlopen(post, timeout=20) as answer:
                    assert answer.status == 202
        root.finish()
        made[door] = [
            (j["idx"], j["prompt"], json.loads(j["request"]), j["image_name"], j["class"])
            for j in root.jobs()
        ]
    assert len(made["inbox"]) == 8
    assert made["inbox"] == made["cli"]
    unsaid = [job[:4] for job in made["inbox"]]
    assert unsaid == [job[:4] for job in made["http"]]


# -- order


def test_a_person_goes_before_five_hundred_over_a_restart(make_root: Make) -> None:
    root = make_root()
    root.drop(
        "night.csv", "prompt\n" + "".join(f"bulk {i} steps=1 sleep=0.02\n" for i in range(500))
    )
    watcher = root.watch()
    until(lambda: count(root) == 500, 30, "the recording")
    watcher.send_signal(signal.SIGTERM)
    assert watcher.wait(20) == 0
    done = count(root, "state = 'completed'")
    assert steady(root, "submit", "a person", "--priority", "interactive").returncode == 0
    root.watch()
    until(lambda: count(root, "prompt = 'a person' AND state = 'completed'") == 1, 30, "the person")
    starts = [e["prompt"] for e in read_log(root.log) if e["event"] == "start"]
    assert starts.index("a person") <= done + 6
    order = [int(p.split()[1]) for p in starts if p.startswith("bulk")]
    assert order == sorted(order)


# -- time


def test_the_pace_is_learned_by_size_and_forwards() -> None:
    def made(side: int, forwards: int, seconds: float, at: float) -> tuple[int, int, int, int, int]:
        return side, side, forwards, int(at * 1e6), int((at + seconds) * 1e6)

    pace = Pace([made(1024, 8, 8.0, 100 * i) for i in range(5)] + [made(512, 8, 90.0, 900)])
    assert pace.seconds(1024, 1024, 8) == 8.0
    assert Pace([made(1024, 8, 8.0, 0)]).seconds(1024, 1024, 4) == pytest.approx(4.0)
    assert Pace([]).seconds(64, 64, 8) is None
    # handed out one forward early: the wait behind the one before is not its own time
    early = [(1024, 1024, 8, int(i * 8e6 - 1e6), int((i + 1) * 8e6)) for i in range(1, 6)]
    assert Pace(early).seconds(1024, 1024, 8) == pytest.approx(8.0, rel=0.05)
    assert pace.queue([(1024, 1024, 8)] * 3, 30, hands=2) == pytest.approx(120.0)
    assert pace.queue([(1024, 1024, 8)] * 3, 30, rest=2.0) == pytest.approx(300.0)


def test_models_that_no_worker_has_take_their_load_as_well() -> None:
    one = {"model": "a", "load_seconds": 20.0}
    assert loading_seconds([one], ["", "b", "c"], "a") == 40.0
    assert (
        loading_seconds([one, {"model": "b", "load_seconds": 30.0}], ["a", "b", "c"], "a") == 15.0
    )
    assert loading_seconds([], ["b"], "a") == 0.0  # nothing is known of a load


def test_after_five_pictures_the_time_left_is_within_a_fifth(tmp_path: Path) -> None:
    """Told of a queue whose pictures take as long as the record says."""
    clock = Clock()
    bench = Bench(tmp_path, clock=clock)
    many = [{"prompt": f"picture {number}"} for number in range(25)]
    bench.watcher.drop(json.dumps(many), str(uuid.uuid4()), "night.json")
    moods = random.Random(4)

    def make(seconds: float) -> None:
        job = claim_one(bench.store)
        assert job is not None
        clock.at += int(seconds * 1e6)
        done = bench.store.complete(job.id, job.attempt, sha256="0" * 64, bytes=1, facts={})
        assert done is not None

    for seconds in (60.0, *(moods.uniform(7, 9) for _ in range(4))):  # the first warms up
        make(seconds)
    told = bench.client.get("/queue").json()["eta_seconds"]
    asked = clock.at
    for _ in range(20):
        make(moods.uniform(7, 9))
    assert claim_one(bench.store) is None
    assert told == pytest.approx((clock.at - asked) / 1e6, rel=0.2)
    bench.store.close()


def test_a_window_on_the_nights_the_clocks_change() -> None:
    """In autumn 02:30 comes twice, in spring never."""

    def opened(window: str, month: int, day: int, *hours: int) -> list[bool]:
        at = [datetime(2027, month, day, hour, 30, tzinfo=UTC) for hour in hours]
        return [RunWindow.parse(f"{window} Europe/Berlin").is_open(each) for each in at]

    assert opened("02:00-03:00", 10, 31, 0, 1, 2) == [True, True, False]
    assert opened("02:00-03:00", 3, 28, 0, 1) == [False, False]
    assert opened("02:45-05:00", 3, 28, 0, 1, 2, 3) == [False, True, True, False]


# -- made again from the picture


@pytest.mark.parametrize("format", ["png", "webp", "jpeg"])
def test_a_picture_dropped_back_is_made_again(make_root: Make, format: str) -> None:
    root = make_root()
    body = {"prompt": "a fox steps=2", "seed": 5, "width": 96, "height": 64, "format": format}
    root.drop("fox.json", json.dumps(body))
    root.finish()
    [first] = pictures(root.folder)
    root.drop(f"again{first.suffix}", first.read_bytes())
    root.finish()
    made = []
    for path in sorted(pictures(root.folder)):
        with Image.open(path) as image:
            made.append(image.convert("RGB"))
    one, two = made
    assert one.tobytes() == two.tobytes()
    if format == "png":
        assert one.tobytes() == expected("a fox steps=2", 5, 96, 64).tobytes()
        assert steady(root, "submit", str(first), "--count", "4").returncode == 0
        root.finish()
        seeds = [json.loads(j["request"])["seed"] for j in root.jobs()]
        assert seeds == [5, 5, 5, 6, 7, 8]


def test_a_picture_of_another_revision_of_the_model_says_that_it_will_differ(
    make_root: Make,
) -> None:
    root = make_root()
    root.drop("fox.json", json.dumps({"prompt": "a fox steps=1", "seed": 5}))
    root.finish()
    [fox] = pictures(root.folder)
    root.drop("same.png", fox.read_bytes())
    root.finish()
    options = {"log": str(root.log), "revision": "sha256:" + "ab" * 32}
    root.configure(engine_options=options)
    root.drop("owl.json", json.dumps({"prompt": "an owl steps=1"}))
    root.finish()
    root.drop("other.png", fox.read_bytes())
    asked = steady(root, "submit", "--dry-run", str(fox))
    root.finish()
    words = (
        "It was made by scripted at revision scripted-1; scripted is at abababababab here, so it"
        " will not be the same to the pixel."
    )
    said = [json.loads(job["warnings"] or "[]") for job in root.jobs()]
    assert said == [[], [], [], [words]]
    assert words in asked.stdout + asked.stderr


# -- the command line over a batch


def test_set_export_cancel_and_retry_of_a_batch(make_root: Make, tmp_path: Path) -> None:
    root = make_root()
    table = root.folder / "t.csv"
    table.write_text("id,prompt\n" + "".join(f"L{i},row {i} steps=1\n" for i in range(6)))
    done = steady(root, "submit", "--json", "--set", "width=96", "--set", "steps=3", str(table))
    ticket = json.loads(done.stdout)["ticket"]
    root.finish()
    requests = [json.loads(j["request"]) for j in root.jobs()]
    assert {(r["width"], r["num_inference_steps"]) for r in requests} == {(96, 3)}
    assert [r["label"] for r in requests] == [f"L{i}" for i in range(6)]
    for target in ("all.zip", "all.csv", "sheet.jpg", "folder"):
        assert steady(root, "export", ticket[:8], str(tmp_path / target)).returncode == 0, target
    mine, *others = sorted((tmp_path / "folder").rglob("*.png"))
    assert len(others) == 5
    mine.write_bytes(b"mine")
    others[0].unlink()
    done = steady(root, "export", ticket, str(tmp_path / "folder"))
    assert done.returncode == 2 and str(mine) in done.stderr, "nothing of another is replaced"
    assert mine.read_bytes() == b"mine" and others[0].exists(), "and all else is there"
    assert sorted((tmp_path / "folder").rglob("*.*")) == [mine, *others]
    assert len((tmp_path / "all.csv").read_text().splitlines()) == 7
    with Image.open(tmp_path / "sheet.jpg") as sheet:
        assert sheet.size == (6 * 200 + 8, 208)
    assert steady(root, "export", ticket, str(tmp_path / "all.zip")).returncode == 2
    assert steady(root, "submit", "--set", "widht=9", str(table)).returncode == 2
    done = steady(root, "submit", "--json", "--not-before", "2099-01-01", str(table))
    later = json.loads(done.stdout)["ticket"]
    root.finish()
    assert steady(root, "cancel", "--batch", later).returncode == 0
    assert root.states()[6:] == ["cancelled"] * 6
    assert steady(root, "cancel", "--batch", "nothing").returncode == 3


# -- the whole night


def tail(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4000))
        return file.read().decode()


def ten_thousand(root: Root) -> str:
    text = "prompt\n" + "".join(f"row {i} steps=1\n" for i in range(10_000))
    root.drop("night.csv", text)
    return text


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_first_picture_starts_before_the_last_row_is_in(make_root: Make) -> None:
    root = make_root()
    root.watch()
    until(lambda: "worker.ready" in root.said.read_text(), 60, "the worker")
    ten_thousand(root)
    until(lambda: count(root) == 10_000, 60, "the recording")
    until(lambda: "file.recorded" in root.said.read_text(), 60, "the end of it")
    told = [json.loads(t) for t in root.said.read_text().splitlines() if t.startswith("{")]
    [recorded] = [t for t in told if t["event"] == "file.recorded"]
    first = next(t for t in told if t["event"] == "job.started")
    assert first["ts"] < recorded["ts"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_night_of_ten_thousand_survives_twenty_kills(make_root: Make) -> None:
    root = make_root()
    ten_thousand(root)
    dice = random.Random(5)
    for kill in range(20):
        watcher = root.watch(once=True)
        goal = (kill + dice.random()) * 450
        until(
            lambda watcher=watcher, goal=goal: (
                watcher.poll() is not None  # type: ignore[misc]
                or count(root, "state = 'completed'") >= goal
            ),
            120,
            f"picture {goal}",
        )
        watcher.send_signal(signal.SIGKILL)
        watcher.wait()
    root.finish(timeout=600)
    assert faults(root.folder, expected=10_000, log=root.log, kills=20) == []
    [result] = (root.inbox / "done").rglob("*.result.json")
    assert len(json.loads(result.read_bytes())["jobs"]) == 10_000
    [table] = (root.inbox / "done").rglob("*.result.csv")
    assert len(table.read_text().splitlines()) == 10_001


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_million_lines_take_less_than_300_megabytes(make_root: Make) -> None:
    root = make_root(max_lines=1_000_000)
    with (root.folder / "draft").open("w") as file:
        file.write("prompt\n")
        file.writelines(f"row {i} of a long night steps=1 sleep=60\n" for i in range(1_000_000))
    watcher = root.watch()
    until(lambda: root.pulse().get("state") == "running", 60, "the watcher")
    (root.folder / "draft").rename(root.inbox / "night.csv")
    until(lambda: "file.recorded" in tail(root.said), 800, "the recording")
    high = Path(f"/proc/{watcher.pid}/status").read_text().partition("VmHWM:")[2].split()
    peak = int(high[0]) * 1024
    assert count(root) == 1_000_000
    assert peak < 300 * 2**20
