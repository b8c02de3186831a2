"""Finding jobs: by any part of their words and by marks, with and without the index, alike."""

import itertools
import json
import os
import random
import re
import signal
import sqlite3
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest
from conftest import until
from doors import Bench
from hypothesis import HealthCheck, given, settings, strategies as st
from postgres import fresh_record
from store_children import Clock, record_jobs

from watcher.jobs import Job, JobRequest, JobState
from watcher.store import JobFilter, JobStore, NewJob, Want
from watcher.store.imagenames import folded

SERVER = os.environ.get("STEADY_DATABASE", "")


@pytest.fixture
def clock() -> Clock:
    """That of the record."""
    return Clock()


@pytest.fixture(params=["sqlite", "postgresql"] if SERVER else ["sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Iterator[JobStore]:
    """An empty record of each kind."""
    if request.param == "sqlite":
        opened = JobStore(f"sqlite:///{tmp_path / 'steady.db'}", synchronous="normal", clock=clock)
        yield opened
        opened.close()
        return
    with fresh_record(SERVER) as url:
        opened = JobStore(url, synchronous="normal", clock=clock)
        yield opened
        opened.close()


def wanted(prompt: str, **fields: object) -> NewJob:
    fields = {"width": 64, "height": 64, "num_inference_steps": 9, "seed": 1} | fields
    return NewJob.of(JobRequest(prompt=prompt, **fields))  # type: ignore[arg-type]


def put(store: JobStore, *jobs: NewJob, file: str = "a.yaml") -> list[str]:
    ticket = str(uuid.uuid4())
    store.begin_reading(ticket, name=file, suffix=".yaml", source="file")
    return record_jobs(store, ticket, jobs, first_index=0, final=True)


def index_all(store: JobStore) -> None:
    while store.index_some():
        pass


def found(store: JobStore, **chosen: object) -> list[str]:
    return [job.id for job in store.jobs(JobFilter(**chosen))]  # type: ignore[arg-type]


def drop(store: JobStore, ids: list[str]) -> None:
    """Forget jobs of a batch, as pruning does."""
    for id_ in ids:
        store.cancel(id_)
    ticket = ids[0]
    store.archived(ticket)
    assert store.drop_jobs(ticket, ids) == len(ids)


#: Letters of one and of two cases, of several scripts, what LIKE and MATCH take for signs, and a
#: letter that is two when it is folded.
LETTERS = "aAbBÄäßẞéЖж猫🦊 \"'%_!*-:().\n"


@given(
    prompts=st.lists(st.text(LETTERS, min_size=1, max_size=12), min_size=1, max_size=8),
    texts=st.lists(st.text(LETTERS, min_size=1, max_size=6), min_size=1, max_size=6),
    indexed=st.integers(0, 8),
)
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_the_index_finds_what_reading_finds(
    store: JobStore, prompts: list[str], texts: list[str], indexed: int
) -> None:
    """Every part of a prompt, in any case, whatever signs are in it, however far the index is."""
    index_all(store)
    ids = put(store, *map(wanted, prompts))
    if indexed:
        store.index_some(indexed)
    for text in [*texts, *(prompt[1:5] for prompt in prompts if prompt[1:5])]:
        right = [
            id_ for id_, prompt in zip(ids, prompts, strict=True) if folded(text) in folded(prompt)
        ]
        here = [job.id for job in store.jobs(JobFilter(text=text, ticket=ids[0]))]
        assert set(right) <= set(here)  # a name or a file may have it too
        words = {
            job.id: f"{job.request.prompt}\n{job.image_name}\na.yaml"
            for job in store.jobs_in_order(ids[0])
        }
        assert here == [id_ for id_ in reversed(ids) if folded(text) in folded(words[id_])]


MODELS, LORAS, LABELS = ("turbo", "base", None), ("ink", "wash 2", "neon"), ("A-1", "ß é", None)


def some_job(rnd: random.Random) -> NewJob:
    fields: dict[str, object] = {
        "seed": rnd.randrange(4), "width": 64 * rnd.randint(1, 2), "model": rnd.choice(MODELS),
        "label": rnd.choice(LABELS), "metadata": rnd.choice([None, {"sku": "B-7", "n": 3}]),
        "lora": [{"name": name, "weight": 1.0} for name in LORAS if rnd.random() < 0.3] or None,
    }  # fmt: skip
    words = rnd.sample(["fox", "cat", "red", "foxglove", "猫", "Ärger"], 3)
    return wanted(" ".join(words), **{k: v for k, v in fields.items() if v is not None})


def fits(job: Job, chosen: JobFilter) -> bool:
    """The same question asked in Python."""
    asked = job.request
    text = folded(chosen.text or "")
    words = [asked.prompt, job.image_name, asked.label or "", "night.csv"]
    words += [f"{key} {value}" for key, value in (asked.metadata or {}).items()]
    return (
        any(text in folded(each) for each in words)
        and chosen.state in (None, job.state)
        and chosen.seed in (None, asked.seed)
        and chosen.size in (None, "{}x{}".format(*asked.final_size))
        and (not chosen.models or (job.model or "") in chosen.models)
        and (chosen.lora is None or chosen.lora in [each["name"] for each in asked.lora or ()])
        and (chosen.label is None or folded(chosen.label) == folded(asked.label or ""))
        and (chosen.rating is None or chosen.rating[0] <= job.rating <= chosen.rating[1])
        and (chosen.since is None or job.created_at >= chosen.since)
        and (chosen.until is None or job.created_at < chosen.until)
    )


@pytest.mark.parametrize("seed", range(3))
def test_every_filter_with_every_other_in_pages(store: JobStore, clock: Clock, seed: int) -> None:
    rnd = random.Random(seed)
    for now in range(10):
        clock.put(now)
        put(store, *(some_job(rnd) for _ in range(30)), file="night.csv")
        if now == 6:
            index_all(store)
    want = [Want(("", "turbo", "base"), "turbo")]
    for _ in range(60):
        [job] = store.claim_many(want, usual="turbo")
        assert job is not None
        if rnd.random() < 0.8:
            store.complete(job.id, job.attempt, sha256="0", bytes=1, facts={})
            store.rate(job.id, rnd.randint(-1, 5))
    every = list(store.all_jobs(JobFilter()))
    assert len(every) == 300
    for _ in range(250):
        chosen = JobFilter(
            text=rnd.choice(
                [None, "fox", "FOXG", "x", "猫", "ärg", "sku b-7", "night", "none such"]
            ),
            seed=rnd.choice([None, None, 2]),
            size=rnd.choice([None, None, "128x64"]),
            lora=rnd.choice([None, None, *LORAS]),
            label=rnd.choice([None, None, "a-1", "SS É"]),
            models=rnd.choice([(), (), ("turbo", ""), ("base",)]),
            state=rnd.choice([None, None, JobState.COMPLETED, JobState.QUEUED]),
            rating=rnd.choice([None, None, None, (1, 5), (-1, 0)]),
            since=rnd.choice([None, None, 3, 99]),
            until=rnd.choice([None, None, 8, 0]),
        )
        right = [job.id for job in every if fits(job, chosen)]
        pages, before = [], None
        while page := store.jobs(chosen, before, limit=7):
            pages += [job.id for job in page]
            before = page[-1].seq
        assert pages == right, chosen


def test_a_text_is_looked_for_in_everything_a_person_may_know(store: JobStore) -> None:
    [fox] = put(store, wanted("a fox", name="Portrait"), file="sheet-7.csv")
    [cat] = put(store, wanted("a cat", label="Order 66", metadata={"client": "Ärzte", "n": 4711}))
    for _ in range(2):
        for text in ("FOX", "portrait", "sheet-7"):
            assert found(store, text=text) == [fox]
        for text in ("order 66", "ÄRZTE", "client", "4711"):
            assert found(store, text=text) == [cat]
        assert found(store, text="a ") == [cat, fox]
        assert found(store, text="") == [cat, fox]
        index_all(store)


def test_what_changes_later_is_found_as_it_is(store: JobStore) -> None:
    first, second = put(store, wanted("one", name="same"), wanted("two"))
    index_all(store)
    [job] = store.claim_many([Want()], usual="turbo")
    assert job is not None and job.id == first
    assert found(store, models=("turbo",)) == [first]
    assert found(store, models=("",)) == [second]
    store.rename(first, job.attempt)
    assert found(store, text="same_2") == [first]


def test_what_is_forgotten_leaves_the_index_too(store: JobStore) -> None:
    old = put(store, wanted("an old fox", seed=5), wanted("a cat", seed=5))
    new = put(store, wanted("a new fox", seed=5))
    index_all(store)
    drop(store, old)
    assert found(store, text="fox") == new and found(store, seed=5) == new
    assert found(store, text="cat") == [] and store.index_some() == 0
    again = put(store, wanted("a last fox"))
    index_all(store)
    assert found(store, text="fox") == again + new
    assert store.poll("SELECT count(*) AS n FROM search")[0]["n"] == 2
    check_index(store)


def test_every_door_asks_for_seed_size_and_label(bench: Bench) -> None:
    one = bench.done(prompt="a fox", seed=7, width=64, height=128, label="Order 66")
    two = bench.done(prompt="a cat", seed=8, width=128, height=64, metadata={"client": "Ärzte"})

    def listed(query: str) -> list[str]:
        answer = bench.client.get(f"/jobs?{query}")
        assert answer.status_code == 200, answer.text
        return [job["id"] for job in answer.json()["jobs"]]

    def shown(query: str) -> list[str]:
        page = bench.client.get(f"/pictures?{query}", headers={"accept": "text/html"})
        assert page.status_code == 200
        return re.findall(r'id="c-([0-9a-f-]{36})"', page.text)

    for _ in range(2):
        for ask in (listed, shown):
            assert ask("seed=7") == [one.id] and ask("seed=9") == []
            assert ask("size=128x64") == [two.id] and ask("size=128%20%C3%97%2064") == [two.id]
            assert ask("text=order+66") == [one.id] and ask("text=%C3%84RZTE") == [two.id]
            assert ask("seed=7&text=cat") == []
        assert listed("label=order%2066") == [one.id]
        index_all(bench.store)
    for query in ("size=big", "seed=x"):
        assert bench.client.get(f"/jobs?{query}").status_code == 422
        page = bench.client.get(f"/pictures?{query}", headers={"accept": "text/html"})
        assert page.status_code == 422
        assert f"<code>{query[:4]}</code>" in page.text, "what is wrong, not only that it is"


def test_the_command_lists_by_seed_size_and_model(make_root: Callable[..., Any]) -> None:
    root = make_root(models={"b": "b"})
    for n, more in ((1, ["--model", "b"]), (2, [])):
        words = ("submit", f"fox {n}", "--seed", str(n), "--size", f"64x{64 * n}", *more)
        done = root.steady(*words)
        assert done.returncode == 0, done.stderr
    root.finish()

    def listed(*words: str) -> list[str]:
        said = root.steady("list", "--json", *words).stdout.splitlines()
        return [json.loads(line)["request"]["prompt"] for line in said if line]

    assert listed("--seed", "2") == ["fox 2"] and listed("--seed", "3") == []
    assert listed("--size", "64x64") == ["fox 1"] and listed("--text", "FOX") == ["fox 2", "fox 1"]
    assert listed("--model", "b") == ["fox 1"] and listed("--model", "a") == []
    assert listed("--model", "scripted") == ["fox 2"]
    root.drop("late.json", json.dumps({"prompt": "fox 3", "not_before": "2099-01-01"}))
    root.watch()
    root.wait_for("completed", "completed", "queued")
    assert listed("--model", "scripted") == ["fox 3", "fox 2"]
    wrong = root.steady("list", "--size", "big")
    assert wrong.returncode == 2 and "1024x768" in wrong.stderr


def check_index(store: JobStore) -> None:
    """SQLite's own comparison of its indexes with the rows they are of."""
    if store.dialect.name == "sqlite":
        with store.write():
            for index in ("search_words", "search_marks"):
                store.run(f"INSERT INTO {index} ({index}, rank) VALUES ('integrity-check', 1)")


_INDEXING = """
import sys
from watcher.store import JobStore
store = JobStore(sys.argv[1], synchronous="normal")
print("open", flush=True)
while store.index_some(7):
    print("some", flush=True)
"""


def test_a_kill_leaves_index_and_rows_in_step(tmp_path: Path) -> None:
    """SIGKILL at ten moments of the indexing: it goes on where it was, and misses nothing."""
    file = tmp_path / "steady.db"
    url = f"sqlite:///{file}"
    store = JobStore(url, synchronous="normal")
    ids = put(store, *(wanted(f"fox number {n}", seed=n) for n in range(2000)))
    for round in range(10):
        child = Popen(
            [sys.executable, "-c", _INDEXING, url], stdout=-1, cwd=Path(__file__).parents[2]
        )
        assert child.stdout is not None
        for _ in itertools.islice(child.stdout, 1 + round * 3):
            pass
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        rows = store.poll("SELECT job FROM search ORDER BY job")
        assert [row["job"] for row in rows] == list(range(1, len(rows) + 1))
        check_index(store)
        assert found(store, text="number 1234") == [ids[1234]]
        assert found(store, seed=7) == [ids[7]] and found(store, seed=1999) == [ids[1999]]
    assert 0 < len(rows) < 2000
    index_all(store)
    assert len(store.poll("SELECT job FROM search")) == 2000
    check_index(store)
    store.close()


@pytest.mark.parametrize("version", [1, 2])
def test_an_older_record_is_searched_at_once_and_indexed_by_the_watcher(
    make_root: Callable[..., Any], version: int
) -> None:
    script = (Path(__file__).parents[1] / f"record_of_version_{version}.sql").read_text("utf-8")
    root = make_root(database="steady.db")  # a file, wherever the other records lie
    with sqlite3.connect(root.folder / "steady.db") as old:
        old.executescript(script)
    store = JobStore(f"sqlite:///{root.folder / 'steady.db'}", checkpointer=False)
    [fox] = store.jobs(JobFilter(text="狐"))
    assert store.poll("SELECT count(*) AS n FROM search")[0]["n"] == 0
    watcher = root.watch()
    count = len(list(store.all_jobs(JobFilter())))
    until(lambda: store.poll("SELECT count(*) AS n FROM search")[0]["n"] >= count, 60, "the index")
    assert [job.id for job in store.jobs(JobFilter(text="狐"))] == [fox.id]
    store.close()
    watcher.terminate()
    assert watcher.wait(20) == 0
