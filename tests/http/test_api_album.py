"""What the page asked the API for: made again, taken together, dismissed, without a recipe."""

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from doors import HERE, Bench, Watcher
from PIL import Image
from starlette.testclient import TestClient

from api.app import create_app
from watcher.config import Config
from watcher.jobs import Job, job_ids_of
from watcher.pictures.outputs import Outputs
from watcher.pictures.recipe import read_recipe, recipe_of
from watcher.store import JobStore

UNKNOWN = "00000000-0000-4000-8000-000000000000"


@pytest.fixture
def bench(root: Path) -> Iterator[Bench]:
    with Bench(root, model="starter") as bench:
        yield bench


def request_of(bench: Bench, job_id: str) -> dict[str, Any]:
    bench.watcher.take_in()
    job = bench.store.job(job_id)
    assert job is not None
    return job.request.model_dump(exclude_none=True)


def real_picture(bench: Bench, job: Job) -> bytes:
    """The job's picture as the service writes it, its recipe inside."""
    outputs = Outputs(bench.config.outputs)
    outputs.open()
    (bench.config.outputs / job.path).unlink(missing_ok=True)
    outputs.save(job, Image.new("RGB", (128, 128), "teal"), recipe_of(job, {"model": "starter"}))
    return (bench.config.outputs / job.path).read_bytes()


def test_again_makes_a_new_job_with_the_same_or_a_new_seed(bench: Bench):
    largest = 2**63 - 1  # more than a browser's numbers can hold
    job = bench.done(seed=largest, label="kept", width=64, height=96, name="once")
    same = bench.client.post(f"/jobs/{job.id}/again")
    assert same.status_code == 202 and same.headers["location"] == same.json()["location"]
    first = request_of(bench, same.json()["job_id"])
    assert first["seed"] == largest and first["label"] == "kept" and "name" not in first
    other = bench.client.post(f"/jobs/{job.id}/again?seed=new").json()
    assert request_of(bench, other["job_id"])["seed"] != largest
    assert other["image_name"] != job.image_name


def test_again_smaller_halves_the_sides_in_steps_of_16(bench: Bench):
    job = bench.done(width=208, height=96)
    half = bench.client.post(f"/jobs/{job.id}/again?smaller=true").json()
    made = request_of(bench, half["job_id"])
    assert (made["width"], made["height"]) == (96, 48)
    bench.watcher.finish()
    tiny = bench.done(width=16, height=16)
    answer = bench.client.post(f"/jobs/{tiny.id}/again?smaller=true")
    assert (answer.status_code, answer.json()["code"]) == (422, "out_of_range")


def test_again_with_a_key_is_harmless_twice(bench: Bench):
    job = bench.done()
    key = {"Idempotency-Key": "button-1"}
    once, twice = (bench.client.post(f"/jobs/{job.id}/again", headers=key) for _ in range(2))
    assert once.json()["job_id"] == twice.json()["job_id"]
    assert twice.headers["Idempotency-Replayed"] == "true"
    assert bench.client.post(f"/jobs/{UNKNOWN}/again").status_code == 404


def test_chosen_pictures_come_in_one_archive(bench: Bench):
    jobs = [bench.done(prompt=f"number {n}") for n in range(3)]
    bench.store.mark_deleted(jobs[2].id)
    ids = [("id", job.id) for job in (*jobs, jobs[0])] + [("id", UNKNOWN)]
    answer = bench.client.get("/jobs/images.zip", params=ids)
    assert answer.headers["content-disposition"] == 'attachment; filename="pictures.zip"'
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.namelist() == [jobs[0].path, jobs[1].path]
        assert archive.testzip() is None
    none = bench.client.get("/jobs/images.zip", params={"id": UNKNOWN})
    assert (none.status_code, none.json()["code"]) == (400, "image_not_ready")
    assert bench.client.get("/jobs/images.zip").status_code == 422
    many = bench.client.get("/jobs/images.zip", params=[("id", UNKNOWN)] * 201)
    assert many.status_code == 422
    for odd in ("../x", "", "a" * 37):  # what no id can be, and too long for an address in numbers
        assert bench.client.get("/jobs/images.zip", params={"id": odd}).status_code == 422


def test_a_picture_that_is_sent_is_made_again(bench: Bench):
    job = bench.done(prompt="sent back", seed=5)
    data = real_picture(bench, job)
    headers = {"Content-Type": "image/png"}
    plan = bench.client.post("/jobs?dry_run=true&filename=a.png", content=data, headers=headers)
    assert plan.json()["count"] == 1 and plan.json()["jobs"][0]["seed"] == 5
    made = bench.client.post("/jobs?filename=a.png", content=data, headers=headers).json()
    again = request_of(bench, made["job_id"])
    assert (again["prompt"], again["seed"]) == ("sent back", 5)
    blank = io.BytesIO()
    Image.new("RGB", (16, 16)).save(blank, "PNG")
    for body in (blank.getvalue(), b"no picture", data[:200]):
        refused = bench.client.post("/jobs", content=body, headers=headers)
        assert (refused.status_code, refused.json()["code"]) == (422, "no_recipe")


def test_a_picture_is_given_without_its_recipe(bench: Bench):
    job = bench.done(prompt="a secret")
    whole = real_picture(bench, job)
    bare = bench.client.get(f"/jobs/{job.id}/image?recipe=false&download=true")
    assert bare.headers["content-disposition"].startswith("attachment")
    assert b"secret" in whole and b"secret" not in bare.content
    assert read_recipe(bare.content) is None
    with Image.open(io.BytesIO(whole)) as one, Image.open(io.BytesIO(bare.content)) as other:
        assert one.tobytes() == other.tobytes()


def test_what_was_dismissed_is_told_again_only_when_it_fails_anew(bench: Bench):
    for n in range(3):
        bench.post(prompt=f"fails {n}")
    bench.watcher.take_in()
    jobs = [bench.watcher.fail("out_of_memory") for _ in range(3)]
    bench.store.begin_reading(UNKNOWN, name="bad.yaml", suffix=".yaml", source="file")
    bench.store.refuse(UNKNOWN, {"code": "bad_yaml", "message": "No.", "remedy": "Mend it."})

    def told() -> tuple[list[str], list[str]]:
        now = bench.client.get("/attention").json()
        return [j["prompt"] for j in now["failed"]], [b["name"] for b in now["refused"]]

    assert told() == (["fails 2", "fails 1", "fails 0"], ["bad.yaml"])
    bench.client.post("/attention/dismiss", json={"jobs": [jobs[1].id]})
    assert told() == (["fails 2", "fails 0"], ["bad.yaml"])
    bench.client.post("/attention/dismiss", json={"batches": [UNKNOWN]})
    assert told() == (["fails 2", "fails 0"], [])
    bench.client.post(f"/jobs/{jobs[1].id}/retry")
    bench.watcher.fail("out_of_memory")
    assert told()[0] == ["fails 2", "fails 1", "fails 0"]
    bench.client.post("/attention/dismiss", json={"all": True})
    assert told() == ([], [])
    bench.client.post(f"/jobs/{jobs[0].id}/retry")
    bench.watcher.fail("engine_failed")
    assert told()[0] == ["fails 0"]


def test_what_nobody_saw_is_told_once_what_lies_above_is_dismissed(bench: Bench):
    bench.watcher.drop("".join(f"- fails {n}\n" for n in range(100)), UNKNOWN)
    for _ in range(100):
        bench.watcher.fail("out_of_memory")
    mended = []
    for n in range(30):  # each newer than the one that still lies there
        ticket = f"b{n:07}-0000-4000-8000-000000000000"
        bench.store.begin_reading(ticket, name=f"bad{n}.yaml", suffix=".yaml", source="file")
        bench.store.refuse(ticket, {"code": "bad_yaml", "message": "No.", "remedy": "Mend it."})
        mended.append(ticket)
    refused = bench.config.inbox / "refused"
    refused.mkdir()
    (refused / "bad0.yaml").write_text("no")
    now = bench.client.get("/attention").json()
    assert (len(now["failed"]), now["more"]) == (60, True)
    assert [batch["name"] for batch in now["refused"]] == ["bad0.yaml"]
    address = "/attention/dismiss"
    now = bench.client.post(address, json={"jobs": [now["failed"][0]["id"]]}).json()
    assert (len(now["failed"]), now["more"]) == (60, True)
    seen = [job["id"] for job in now["failed"]]
    now = bench.client.post(address, json={"jobs": seen, "batches": mended}).json()
    assert (len(now["failed"]), now["more"], now["refused"]) == (39, False, [])
    for unknown in (
        {"jobs": [job_ids_of(UNKNOWN)(7, None), UNKNOWN[::-1]]},
        {"batches": ["nothing"]},
    ):
        assert bench.client.post(address, json=unknown).status_code == 404
    assert len(bench.client.get("/attention").json()["failed"]) == 39


def test_dismissing_refuses_nonsense(bench: Bench):
    for body, code in (
        ({"jobs": [UNKNOWN]}, "job_not_found"),
        ({"batches": [UNKNOWN]}, "batch_not_found"),
        ({"every": True}, "unknown_field"),
        ({"all": "yes"}, "wrong_type"),
        ({"jobs": ["x"] * 201}, "out_of_range"),
    ):
        answer = bench.client.post("/attention/dismiss", json=body)
        assert answer.json()["code"] == code, body
    answer = bench.client.post(
        "/attention/dismiss", content=b"{", headers={"Content-Type": "application/json"}
    )
    assert answer.json()["code"] == "bad_json"


def test_the_record_tells_what_the_page_asks(tmp_path: Path):
    config = Config.load(tmp_path, model="starter")
    config.inbox.mkdir()
    store = JobStore(config.database_url, synchronous="normal")
    watcher = Watcher(config, store)
    ids = watcher.drop("- one\n- two\n- three\n", UNKNOWN)
    first, second = watcher.claim(), watcher.claim()
    assert [first.id, second.id] == ids[:2]
    store.reorder(ids[2], priority=None, position="front")
    late = watcher.drop(
        "prompt: later\nnot_before: 2099-01-01\n", "00000000-0000-4000-8000-000000000001"
    )
    assert [job.id for job in store.upcoming()] == [ids[2]]
    assert [job.id for job in store.held_back()] == late
    assert sum(store.ready_by_class().values()) == 1
    assert store.neighbours(second.seq) == (ids[0], ids[2])
    watcher.finish(first)
    store.fail(second.id, second.attempt, "internal", "", facts={})
    assert [job.id for job in store.failed_of(UNKNOWN)] == [second.id]
    assert store.failed_of(late[0]) == []
    hours = store.hours(0)
    assert [(h.pictures, h.run >= 0, h.wait >= 0) for h in hours] == [(1, True, True)]
    assert store.hours(0, most=0) == []
    store.close()


def test_the_pages_own_files_are_kept_for_good_under_the_name_of_their_version(bench: Bench):
    page = bench.client.get("/", headers={"accept": "text/html"}).text
    found = re.findall(r'(?:src|href)="(/static/([0-9a-f]{10})/[a-z.]+)"', page)
    assert {address.rpartition("/")[2] for address, _ in found} >= {"page.css", "page.js"}
    for address, version in found:
        answer = bench.client.get(address)
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "private, max-age=31536000, immutable", address
        for other in (address.replace(version, "0123456789"), address.replace(version + "/", "")):
            again = bench.client.get(other)  # an older page's, or what names no version
            assert again.content == answer.content
            assert again.headers["cache-control"] == "private, no-cache"


def test_colours_come_without_a_token_and_nothing_else_does(root: Path):
    config = Config.load(root, token="s3cret")
    config.inbox.mkdir()
    with TestClient(create_app(config), base_url=HERE) as client:
        assert client.get("/static/page.css").status_code == 200
        assert "page.css" in client.get("/login").text
        for path in ("/", "/static", "/static/../jobs", "/static/%2e%2e/jobs", "/staticjobs"):
            answer = client.get(path, follow_redirects=False)
            assert answer.status_code in (401, 404), path
            assert "jobs" not in json.dumps(answer.json().get("errors", "")), path
