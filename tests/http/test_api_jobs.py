"""Jobs and batches over HTTP: lists, submissions in every form, keys, verbs, pictures, archives."""

import io
import json
import os
import re
import threading
import tracemalloc
import zipfile
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from conftest import until
from doors import HERE, PICTURE, Bench
from starlette.testclient import TestClient
from store_children import claim_one, record_jobs
from test_api_seed import refused
from torture import write_loras

from api.app import create_app
from api.images import open_inside
from api.models import BatchView, JobPage, JobView, QueueView, Status
from watcher.errors import SteadyError, ValueFault
from watcher.inbox import refused_rows
from watcher.jobfile.tables import Row
from watcher.jobs import ticket_of_key
from watcher.refused import kept_line
from watcher.submission import Body

UNKNOWN = "550e8400-e29b-41d4-a716-446655440000"


def submit(bench: Bench, data: str | bytes, media: str, **headers: str):
    return bench.client.post("/jobs", content=data, headers={"content-type": media} | headers)


# -- submitting


@pytest.mark.parametrize(
    ("media", "text", "count"),
    [
        ("application/json", '{"prompt": "a fox"}', 1),
        ("application/json", '[{"prompt": "a"}, {"prompt": "b"}]', 2),
        ("application/yaml", "prompt: a fox: the movie\n".replace(": the", " the"), 1),
        ("application/yaml", "- prompt: a\n- prompt: b\n- prompt: c\n", 3),
        (
            "text/yaml",
            'matrix: {animal: [fox, owl], seed: [1, 2]}\njobs: ["a {animal}"]\n',
            4,
        ),
        ("application/jsonl", '{"prompt": "a"}\n{"prompt": "b"}\n', 2),
        ("application/x-ndjson; charset=utf-8", '{"prompt": "a"}\n', 1),
        ("text/csv", "prompt,seed\na,1\nb,2\n", 2),
        ("text/tab-separated-values", "prompt\tseed\na\t1\n", 1),
        ("text/plain", "a red fox\n\nan owl, at night\n", 2),
        ("text/plain; charset=utf-8", "a {curious} fox # 1", 1),
    ],
)
def test_every_form_of_body_becomes_jobs(bench: Bench, media, text, count):
    answer = submit(bench, text, media)
    assert answer.status_code == 202, answer.text
    body = answer.json()
    assert body["jobs"] == count
    assert answer.headers["location"] == body["location"]
    ids = bench.watcher.take_in()
    assert len(ids) == count
    here = bench.client.get(answer.headers["location"])
    assert here.status_code == 200
    batch = bench.client.get(f"/batches/{body['ticket']}").json()
    assert (batch["jobs"], batch["state"], batch["source"]) == (count, "running", "http")
    if count == 1:
        assert body["job_id"] == ids[0]
        assert here.json()["image_name"] == body["image_name"]
    if media.startswith("text/plain"):
        prompts = [j["prompt"] for j in bench.client.get("/jobs").json()["jobs"]]
        assert prompts == [line for line in reversed(text.split("\n")) if line]


@pytest.mark.parametrize(
    ("data", "suffix", "name"),
    [
        ('{"count": 12, "prompt": "A red fox, in the snow"}', ".json", "A-red-fox-in-the-snow"),
        ('{"prompt": "say \\"hello\\" to me"}', ".json", "say"),
        ("a red fox\nan owl\n", ".txt", "a-red-fox"),
        ("prompt,seed\na red fox,1\nan owl,2\n", ".csv", "prompts"),
        ('{"prompt": "???"}', ".json", "prompts"),
        ("- ?\n", ".yaml", "prompts"),
    ],
)
def test_what_comes_without_a_name_is_called_after_its_prompt(data: str, suffix: str, name: str):
    assert Body.of(data.encode(), "", suffix).name == name
    assert Body.of(data.encode(), f"mine{suffix}", suffix).name == "mine"


def test_a_dry_run_tells_the_expansion_and_queues_nothing(bench: Bench):
    text = "matrix: {animal: [fox, owl], seed: [1, 2]}\njobs: ['a {animal}']\n"
    answer = bench.client.post(
        "/jobs?dry_run=true&filename=zoo.yaml",
        content=text,
        headers={"content-type": "application/yaml"},
    )
    assert answer.status_code == 200
    body = answer.json()
    assert body["count"] == 4
    assert [(j["prompt"], j["seed"], j["name"]) for j in body["jobs"]][:2] == [
        ("a fox", 1, "zoo_0001"),
        ("a fox", 2, "zoo_0002"),
    ]
    assert bench.store.batches() == [] and not list(bench.config.inbox.glob("api-*"))


def test_a_bad_item_of_a_list_refuses_the_whole_and_names_its_place(bench: Bench):
    jobs = [{"prompt": "a"}] * 6 + [{"prompt": "b", "width": 1000}]
    body = refused(bench.client.post("/jobs", json=jobs), 422, "size_not_multiple_of_16")
    assert body["errors"][0]["pointer"] == "/6/width"
    assert "992 or 1008" in body["errors"][0]["remedy"]
    assert bench.store.batches() == []


def test_bad_rows_of_a_table_are_left_out_and_named(bench: Bench):
    answer = submit(bench, "prompt,width\na,64\nb,65\n,64\n", "text/csv")
    assert answer.status_code == 202
    body = answer.json()
    assert body["jobs"] == 1
    assert {p["row"] for p in body["refused"]} == {2, 3}


@pytest.mark.parametrize(
    ("media", "data", "status", "code"),
    [
        ("application/xml", "<a/>", 415, "bad_content_type"),
        ("multipart/form-data; boundary=x", "--x--", 415, "bad_content_type"),
        ("application/x-www-form-urlencoded", "prompt=a", 415, "bad_content_type"),
        ("application/yaml", "a: &x [1]\nb: *x\n", 422, "unsafe_yaml"),
        ("application/yaml", "[" * 25_000, 422, None),
        ("application/yaml", "prompt: [masterpiece], cat", 422, "bad_yaml"),
        ("application/yaml", "# nothing", 422, "empty_file"),
        ("application/yaml", "[]", 422, "bad_shape"),
        ("application/json", "{}", 422, "missing_field"),
        ("text/csv", "width\n64\n", 422, "bad_csv"),
        ("text/plain", "\n \n", 422, "empty_file"),
        ("text/plain", b"\xff\xfe\xfd", 422, "encoding"),
        ("application/yaml", b"prompt: " + b"a" * (1 << 20), 413, "too_large"),
        ("application/json", json.dumps([{"prompt": "a"}] * 1001), 422, "too_many_jobs"),
    ],
)
def test_bodies_that_are_no_jobs(bench: Bench, media, data, status, code):
    answer = submit(bench, data, media)
    assert answer.status_code == status
    if code is not None:
        refused(answer, status, code)
    assert bench.store.batches() == []


def test_a_table_of_more_than_a_mebibyte_is_taken(bench: Bench):
    table = "prompt\n" + "".join(f"a fox number {n:05} in the deep snow\n" for n in range(40_000))
    assert len(table) > 1 << 20
    answer = submit(bench, table, "text/csv")
    assert answer.status_code == 202, answer.text
    assert answer.json()["jobs"] is None
    assert len(list(bench.config.inbox.glob("api-*.csv"))) == 1


def test_a_queue_that_is_full_says_when_to_come_back(root: Path):
    with Bench(root, max_queued=2) as bench:
        bench.post()
        bench.post()
        for read in (False, True):  # nobody may be there to read what comes
            if read:
                bench.watcher.take_in()
            answer = bench.client.post("/generate-image", json={"prompt": "one too many"})
            refused(answer, 429, "queue_full")
            assert int(answer.headers["retry-after"]) >= 1
        bench.watcher.finish()
        assert bench.client.post("/generate-image", json={"prompt": "now"}).status_code == 200


# -- keys


def test_the_same_key_and_body_is_the_same_job_also_after_a_restart(bench: Bench):
    send = {"json": {"prompt": "a fox"}, "headers": {"Idempotency-Key": "order-1"}}
    first = bench.client.post("/generate-image", **send)
    second = bench.client.post("/generate-image", **send)
    assert first.json() == second.json()
    assert "idempotency-replayed" not in first.headers
    assert second.headers["idempotency-replayed"] == "true"
    assert first.json()["job_id"] == ticket_of_key("order-1")
    assert len(bench.watcher.take_in()) == 1
    with TestClient(create_app(bench.config), base_url=HERE) as restarted:
        third = restarted.post("/generate-image", **send)
    assert third.json() == first.json()
    assert third.headers["idempotency-replayed"] == "true"
    assert bench.watcher.take_in() == []
    assert len(bench.store.jobs()) == 1


def test_the_same_key_with_another_body_is_refused(bench: Bench):
    headers = {"Idempotency-Key": "order-1"}
    bench.client.post("/generate-image", json={"prompt": "a fox"}, headers=headers)
    other = bench.client.post("/generate-image", json={"prompt": "an owl"}, headers=headers)
    refused(other, 422, "key_conflict")
    refused(submit(bench, "prompt: x", "application/yaml", **headers), 422, "key_conflict")
    assert len(bench.store.batches()) == 1


def test_a_repeat_of_one_job_with_a_key_of_its_own_names_no_job_that_is_none(bench: Bench):
    send = {"json": [{"prompt": "a fox", "key": "own"}], "headers": {"Idempotency-Key": "file"}}
    first = bench.client.post("/jobs", **send).json()
    assert bench.watcher.take_in() == [ticket_of_key("own")]
    assert bench.client.post("/jobs", **send).json() == first
    assert first["job_id"] is None and first["location"] == f"/batches/{first['ticket']}"
    refused(bench.client.get(f"/jobs/{first['ticket']}"), 404, "job_not_found")


def test_a_key_in_the_body_works_like_the_header(bench: Bench):
    body = {"prompt": "a fox", "key": "order-9"}
    first = bench.client.post("/jobs", json=body)
    again = bench.client.post("/jobs", json=body)
    assert first.json()["ticket"] == again.json()["ticket"] == ticket_of_key("order-9")
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json() == first.json()
    both = bench.client.post("/jobs", json=body, headers={"Idempotency-Key": "another"})
    refused(both, 422, "key_conflict")


def test_the_only_row_of_a_table_may_have_a_key_of_its_own(bench: Bench):
    told = submit(bench, "prompt,key\na fox,o1\n", "text/csv").json()
    assert (told["jobs"], told["job_id"]) == (1, None)
    assert told["location"] == f"/batches/{told['ticket']}"
    refused(bench.client.get(f"/jobs/{told['ticket']}"), 404, "job_not_found")  # nor before
    alone = bench.client.post("/generate-image", json=[{"prompt": "a fox", "key": "o2"}])
    refused(alone, 422, "bad_shape")


def test_a_body_that_goes_on_with_one_job_names_no_job(bench: Bench):
    send = {"json": {"prompt": "a fox"}, "headers": {"Idempotency-Key": "k"}}
    first = bench.client.post("/jobs", **send).json()
    bench.watcher.take_in()
    more = bench.client.post("/jobs?resume=true", **send | {"json": {"prompt": "an owl"}}).json()
    assert (first["job_id"], first["ticket"]) == (more["ticket"],) * 2
    assert (more["job_id"], more["image_name"]) == (None, None)
    assert more["location"] == f"/batches/{more['ticket']}"


def test_the_key_of_a_request_is_no_row_s_own(bench: Bench):
    send = {"content": "prompt,key\na fox,k\n", "headers": {"Idempotency-Key": "k"}}
    send["headers"]["content-type"] = "text/csv"
    told = bench.client.post("/jobs", **send).json()
    assert bench.watcher.take_in() == [told["job_id"]] == [ticket_of_key("k")]


def test_fifty_parallel_posts_with_one_key_are_one_job(bench: Bench):
    answers = []
    start = threading.Barrier(50)

    def post() -> None:
        start.wait()
        answers.append(
            bench.client.post(
                "/generate-image",
                json={"prompt": "a fox"},
                headers={"Idempotency-Key": "one"},
            )
        )

    threads = [threading.Thread(target=post) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {a.status_code for a in answers} == {200}
    assert len({a.text for a in answers}) == 1
    assert sum("idempotency-replayed" not in a.headers for a in answers) == 1
    assert len(bench.watcher.take_in()) == 1


def test_a_post_that_died_before_publishing_is_finished_by_its_repeat(bench: Bench):
    send = {"json": {"prompt": "a fox"}, "headers": {"Idempotency-Key": "order-1"}}
    bench.client.post("/generate-image", **send)
    for path in bench.config.inbox.glob("api-*"):
        path.unlink()
    bench.client.post("/generate-image", **send)
    assert bench.watcher.take_in() == [ticket_of_key("order-1")]


@pytest.mark.parametrize("address", ["/generate-image", "/v1/images/generations"])
@pytest.mark.parametrize("key", [{}, {"Idempotency-Key": "order-1"}])
def test_an_inbox_that_cannot_be_written_is_503_and_leaves_no_row(
    bench: Bench, address: str, key: dict[str, str]
):
    """Nobody waits for a file that never came, nor does a second try of the same."""
    away = bench.config.inbox.rename(bench.config.root / "away")
    bench.config.inbox.write_text("a file where the folder was")
    answer = bench.client.post(address, json={"prompt": "a fox"}, headers=key)
    assert (answer.status_code, bench.store.batches()) == (503, [])
    assert "folder_gone" in answer.text
    assert answer.headers["retry-after"]
    bench.config.inbox.unlink()
    away.rename(bench.config.inbox)
    bench.client.post("/generate-image", json={"prompt": "a fox"}, headers=key)
    assert len(bench.watcher.take_in()) == 1


# -- lists


def test_the_list_pages_without_loss_while_jobs_arrive(bench: Bench):
    for batch in range(5):
        submit(bench, "".join(f"p{batch}.{n}\n" for n in range(5)), "text/plain")
    expected = {bench.store.job(i).request.prompt for i in bench.watcher.take_in()}
    seen: list[str] = []
    address = "/jobs?limit=7"
    while address:
        answer = bench.client.get(address)
        page = JobPage.model_validate(answer.json())
        seen += [job.prompt for job in page.jobs]
        bench.post(prompt="a newcomer")
        bench.watcher.take_in()
        link = re.fullmatch(r'<(.*)>; rel="next"', answer.headers.get("link", ""))
        assert (page.next is None) == (link is None)
        address = link[1] if link else None
    assert len(seen) == len(set(seen)) == 25
    assert set(seen) == expected


def test_every_filter_narrows(bench: Bench):
    write_loras(bench.config.root)
    red = bench.done(prompt="a RED fox")
    bench.post(prompt="a blue owl, 100%", lora="one")
    bench.watcher.take_in()
    blue = bench.watcher.fail()
    yesterday = (datetime.now() - timedelta(days=1)).date().isoformat()
    today = datetime.now().date().isoformat()

    def found(**filters: str) -> set[str]:
        answer = bench.client.get("/jobs", params=filters)
        assert answer.status_code == 200, answer.text
        return {job["id"] for job in answer.json()["jobs"]}

    both = {red.id, blue.id}
    assert found() == both
    assert found(state="completed") == {red.id}
    assert found(text="red") == {red.id}
    assert found(text="100%") == {blue.id}
    assert found(text="%") == {blue.id}
    assert found(text="a\0") == both
    assert found(batch=red.ticket) == {red.id}
    assert found(name=red.image_name.upper()) == {red.id}
    assert found(model=bench.watcher.limits.usual.name) == both  # which neither names
    assert found(model="other") == set()
    assert found(lora="one") == {blue.id} and found(lora="on") == set()
    assert found(since=today, until=today) == both
    assert found(since=yesterday, until=yesterday) == set()
    assert found(until="0001-01-01T00:00:00Z") == set()
    assert found(since="9999-12-31T23:59:59+00:00") == set()
    assert found(since="0001-01-01", until="9999-12-31") == both


@pytest.mark.parametrize(
    "query", ["state=lost", "limit=0", "limit=501", "limit=x", "cursor=x", "since=yesterday"]
)
def test_a_bad_filter_is_422_and_not_repeated(bench: Bench, query):
    answer = bench.client.get(f"/jobs?{query}")
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert query.split("=")[0] in answer.json()["detail"]
    if "yesterday" in query or "lost" in query:
        assert query.split("=")[1] not in answer.text


# -- one job


def test_a_job_answers_its_whole_model_at_every_moment(bench: Bench):
    posted = bench.post(label="row 7", metadata={"a": 1})
    address = f"/jobs/{posted['job_id']}"
    views = [JobView.model_validate(bench.client.get(address).json())]
    bench.watcher.take_in()
    views.append(JobView.model_validate(bench.client.get(address).json()))
    job = bench.watcher.claim()
    views.append(JobView.model_validate(bench.client.get(address).json()))
    bench.watcher.finish(job)
    views.append(JobView.model_validate(bench.client.get(address).json()))
    assert [v.state for v in views] == ["queued", "queued", "generating", "completed"]
    assert all(v.label == "row 7" and v.metadata == {"a": 1} for v in views)
    assert [v.position for v in views] == [None, 0, 0, None]
    Status.model_validate(bench.client.get(f"/status/{posted['job_id']}").json())
    QueueView.model_validate(bench.client.get("/queue").json())


def test_progress_comes_from_the_pulse(bench: Bench):
    posted = bench.post()
    bench.watcher.take_in()
    job = bench.watcher.claim()
    bench.watcher.pulse(
        running=[
            {"job_id": job.id, "attempt": 1, "slot": 0, "step": 4, "steps": 8, "started_at": 1}
        ]
    )
    address = f"/status/{posted['job_id']}"
    body = until(
        lambda: (b := bench.client.get(address).json())["step"] == 4 and b, what="step 4 shown"
    )
    assert body["progress"] == pytest.approx(0.5, abs=0.01)
    assert body["position"] == 0
    assert bench.client.get("/queue").json()["running"][0]["step"] == 4


def test_eta_grows_with_the_place_in_the_queue(bench: Bench):
    bench.done()
    ids = [bench.post()["job_id"] for _ in range(3)]
    bench.watcher.take_in()
    with TestClient(create_app(bench.config), base_url=HERE) as fresh:
        bodies = [fresh.get(f"/status/{i}").json() for i in ids]
        assert [b["position"] for b in bodies] == [0, 1, 2]
        etas = [b["eta_seconds"] for b in bodies]
        assert None not in etas and etas == sorted(etas)


def test_cancel_and_retry_by_state(bench: Bench):
    posted = bench.post()
    address = f"/jobs/{posted['job_id']}"
    assert refused(bench.client.post(f"{address}/retry"), 409, "wrong_state")["state"] == "queued"
    refused(bench.client.patch(address, json={"position": "front"}), 409, "wrong_state")
    bench.watcher.take_in()
    body = refused(bench.client.post(f"{address}/retry"), 409, "wrong_state")
    assert body["state"] == "queued"
    assert bench.client.delete(address).json()["state"] == "cancelled"
    body = refused(bench.client.delete(address), 409, "wrong_state")
    assert body["state"] == "cancelled"
    again = bench.client.post(f"{address}/retry").json()
    assert (again["state"], again["image_name"]) == ("queued", posted["image_name"])
    job = bench.watcher.claim()
    running = bench.client.delete(address).json()
    assert (running["state"], running["cancel_requested"]) == ("generating", True)
    bench.watcher.finish(job)
    assert refused(bench.client.delete(address), 409, "wrong_state")["state"] == "completed"
    refused(bench.client.delete(f"/jobs/{UNKNOWN}"), 404, "job_not_found")
    refused(bench.client.post(f"/jobs/{UNKNOWN}/retry"), 404, "job_not_found")


def test_a_waiting_job_can_be_moved(bench: Bench):
    ids = [bench.post(prompt=f"p{n}")["job_id"] for n in range(3)]
    bench.watcher.take_in()
    last = f"/jobs/{ids[2]}"
    assert bench.client.patch(last, json={"position": "front"}).json()["position"] == 0
    body = bench.client.patch(last, json={"priority": "bulk"}).json()
    assert (body["priority"], body["position"]) == ("bulk", 2)
    for bad, code in [
        ({"position": 1}, "out_of_range"),
        ({"position": "top"}, "out_of_range"),
        ({"rank": 1}, "unknown_field"),
    ]:
        refused(bench.client.patch(last, json=bad), 422, code)
    assert bench.client.patch(last, json={}).json()["position"] == 2
    refused(bench.client.patch(f"/jobs/{UNKNOWN}", json={"position": "back"}), 404, "job_not_found")
    bench.watcher.finish()
    done = bench.client.get("/jobs?state=completed").json()["jobs"][0]["id"]
    body = bench.client.patch(f"/jobs/{done}", json={"position": "back"})
    assert refused(body, 409, "wrong_state")["state"] == "completed"


# -- pictures


def test_a_picture_is_fetched_once_and_in_parts(bench: Bench):
    job = bench.done()
    address = f"/jobs/{job.id}/image"
    whole = bench.client.get(address)
    assert whole.headers["cache-control"] == "private, max-age=31536000, immutable"
    assert whole.headers["accept-ranges"] == "bytes"
    assert whole.headers["cross-origin-resource-policy"] == "same-origin"
    assert whole.headers["x-content-type-options"] == "nosniff"
    assert whole.headers["content-disposition"].startswith("inline; filename=")
    etag = whole.headers["etag"]
    size = len(PICTURE)

    def get(**headers: str):
        return bench.client.get(
            address, headers={k.replace("_", "-"): v for k, v in headers.items()}
        )

    for known in (etag, f'"x", {etag}', f"W/{etag}", "*"):
        answer = get(if_none_match=known)
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["etag"] == etag
    assert get(if_none_match='"x"').status_code == 200
    for asked, start, end in [
        ("bytes=0-0", 0, 1),
        ("bytes=100-199", 100, 200),
        ("bytes=100-", 100, size),
        ("bytes=-5", size - 5, size),
        (f"bytes=5-{size * 2}", 5, size),
    ]:
        answer = get(range=asked)
        assert answer.status_code == 206, asked
        assert answer.content == PICTURE[start:end]
        assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{size}"
        assert answer.headers["content-length"] == str(end - start)
    for nonsense in ("bytes=5-1", "bytes=a-b", "lines=1-2", "bytes=0-1,5-6", "bytes=-", ""):
        assert get(range=nonsense).content == PICTURE, nonsense
    beyond = get(range=f"bytes={size}-")
    refused(beyond, 416, "range_not_satisfiable")
    assert beyond.headers["content-range"] == f"bytes */{size}"
    assert get(range="bytes=0-1", if_range='"old"').content == PICTURE
    assert get(range="bytes=0-1", if_range=etag).content == PICTURE[:2]
    saved = bench.client.get(address + "?download=1")
    assert saved.headers["content-disposition"].startswith("attachment;")


def test_the_thumbnail_is_served_and_the_picture_where_there_is_none(bench: Bench):
    job = bench.done()
    address = f"/jobs/{job.id}/image?size=256"
    whole = bench.client.get(address)
    assert whole.content == PICTURE and "immutable" not in whole.headers["cache-control"]
    folder = bench.config.outputs / ".thumbs" / job.id[:2]
    folder.mkdir(parents=True)
    (folder / f"{job.id}.webp").write_bytes(b"small")
    answer = bench.client.get(address)
    assert (answer.content, answer.headers["content-type"]) == (b"small", "image/webp")
    assert bench.client.get(f"/jobs/{job.id}/image?size=17").status_code == 422


def test_names_of_any_script_make_a_header(bench: Bench):
    job = bench.done(name="лиса-狐")
    answer = bench.client.get(f"/image/{job.id}")
    assert answer.headers["content-disposition"].startswith("inline; filename*=UTF-8''%D0%BB")
    assert bench.client.get("/image/by-name/лиса-狐").status_code == 200


@pytest.mark.parametrize(
    "relative",
    [
        "",
        ".",
        "..",
        "../canary",
        "a/../../canary",
        "/etc/passwd",
        "a//b",
        "a/./b",
        "x\0y",
        "a/",
        ".",
    ],
)
def test_no_path_leads_out_of_the_outputs(tmp_path: Path, relative):
    outputs = tmp_path / "outputs"
    (outputs / "a").mkdir(parents=True)
    (tmp_path / "canary").write_text("secret")
    with pytest.raises(SteadyError) as caught:
        open_inside(outputs, relative)
    assert caught.value.code == "image_not_found"


def test_links_pipes_and_folders_in_outputs_are_not_served(bench: Bench):
    secret = bench.config.root / "secret"
    secret.mkdir()
    (secret / "canary.png").write_bytes(b"canary")
    outputs = bench.config.outputs

    def replaced(job, make) -> None:
        path = outputs / job.path
        path.unlink()
        make(path)

    makers = [
        lambda path: path.symlink_to(secret / "canary.png"),
        lambda path: path.symlink_to(path),
        lambda path: os.mkfifo(path),
        lambda path: path.mkdir(),
    ]
    for make in makers:
        job = bench.done(folder="plain")
        replaced(job, make)
        answer = bench.client.get(f"/image/{job.id}")
        refused(answer, 404, "image_not_found")
        assert b"canary" not in answer.content
    job = bench.done(folder="linked", name="canary")
    (outputs / job.path).unlink()
    (outputs / "linked").rmdir()
    (outputs / "linked").symlink_to(secret)
    refused(bench.client.get(f"/image/{job.id}"), 404, "image_not_found")
    refused(bench.client.get("/image/by-name/linked/canary"), 404, "image_not_found")


# -- batches


def test_a_batch_from_begin_to_end(bench: Bench):
    ticket = submit(bench, "- prompt: a\n- prompt: b\n- prompt: c\n", "application/yaml").json()[
        "ticket"
    ]
    address = f"/batches/{ticket}"

    def state() -> str:
        return BatchView.model_validate(bench.client.get(address).json()).state

    assert state() == "waiting"
    bench.watcher.take_in()
    assert state() == "running"
    refused(bench.client.get(f"{address}/images.zip"), 400, "image_not_ready")
    assert bench.client.post(f"{address}/pause").json()["state"] == "paused"
    assert claim_one(bench.store) is None
    assert bench.client.post(f"{address}/resume").json()["state"] == "running"
    bench.watcher.finish()
    bench.watcher.fail()
    assert bench.client.post(f"{address}/retry-failed").json() == {"ticket": ticket, "retried": 1}
    bench.watcher.finish(picture=PICTURE + b"2")
    bench.watcher.fail()
    body = bench.client.get(address).json()
    assert (body["state"], body["done"]) == ("done", 1.0)
    assert body["progress"] == {
        "queued": 0, "generating": 0, "completed": 2, "failed": 1, "cancelled": 0,
    }  # fmt: skip
    packed = bench.client.get(f"{address}/images.zip")
    assert packed.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(packed.content)) as archive:
        assert archive.testzip() is None
        *pictures, table = archive.namelist()
        assert {archive.read(n) for n in pictures} == {PICTURE, PICTURE + b"2"}
        assert table.endswith(".result.csv")
        lines = archive.read(table).decode("utf-8-sig").splitlines()
        assert [line.split(",")[1] for line in lines[1:]].count("completed") == 2
        made = datetime(*archive.getinfo(pictures[0]).date_time)
        assert abs(made - datetime.now()) < timedelta(hours=1)
        assert all(not n.startswith(("/", ".")) for n in archive.namelist())
    assert bench.client.post(f"{address}/cancel").json()["progress"]["cancelled"] == 0


def test_the_archive_of_a_table_holds_the_table_with_its_own_columns(bench: Bench):
    ticket = ticket_of_key("nights")
    text = "customer,prompt,sku\nAnn,a cat,=1\nBob,a dog,0042\n"
    bench.watcher.drop(text, ticket, name="Nächte.csv")
    claimed = bench.config.inbox / ".claimed"
    day = bench.config.inbox / "done" / "20260101"
    claimed.mkdir()
    day.mkdir(parents=True)
    lies = [claimed / f"{ticket}~Nächte.csv", day / f"Nächte~{ticket[:8]}.csv"]
    bench.watcher.finish()
    for place in lies:  # in work, then put away
        place.write_text(text)
        answer = bench.client.get(f"/batches/{ticket}/images.zip")
        assert answer.headers["content-disposition"].endswith("N%C3%A4chte.zip")
        with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
            table = archive.read("Nächte.result.csv").decode("utf-8-sig").splitlines()
        assert table[0] == "row,state,picture,seed,model,lora,error,id,customer,prompt,sku"
        assert table[1].startswith("1,completed,") and table[1].endswith(",Ann,a cat,'=1")
        assert table[2].startswith("2,queued,,") and table[2].endswith(",Bob,a dog,0042")
        place.unlink()
    with zipfile.ZipFile(
        io.BytesIO(bench.client.get(f"/batches/{ticket}/images.zip").content)
    ) as archive:  # the file is gone: what the jobs themselves have
        table = archive.read("Nächte.result.csv").decode("utf-8-sig").splitlines()
    assert table[0] == "row,state,picture,seed,model,lora,error,id,label,prompt,customer,sku"
    assert table[1].endswith(",,a cat,Ann,'=1")


def test_a_long_table_of_refused_rows_is_never_in_memory(bench: Bench):
    ticket, number = ticket_of_key("long"), 200_000
    bad = kept_line(Row(1, 2, {"prompt": "a boat"}, (ValueFault("bad_shape", "wrong"),)))
    bench.store.begin_reading(ticket, name="long.csv", suffix=".csv", source="file")
    record_jobs(bench.store, ticket, [], first_index=0, final=True, refused_rows=number,
               )  # fmt: skip
    (kept := refused_rows(bench.config.inbox, ticket)).parent.mkdir()
    kept.write_bytes(bad * number)
    address = f"/batches/{ticket}"
    tracemalloc.start()
    page = bench.client.get(address, headers={"accept": "text/html"})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert page.text.count("a boat") == 200 and peak < len(bad) * number / 2
    table = bench.client.get(f"{address}/refused.csv").text.splitlines()
    assert (table[0], len(table), table[-1]) == ("\ufeffprompt,error", number + 1, "a boat,wrong")


def test_an_unread_batch_can_be_cancelled(bench: Bench):
    ticket = submit(bench, "- prompt: a\n- prompt: b\n", "application/yaml").json()["ticket"]
    assert bench.client.post(f"/batches/{ticket}/cancel").json()["state"] == "cancelled"
    bench.watcher.take_in()
    states = {j["state"] for j in bench.client.get(f"/jobs?batch={ticket}").json()["jobs"]}
    assert states == {"cancelled"}


def test_a_batch_the_watcher_refused_says_why_without_the_values(bench: Bench):
    posted = bench.post()
    bench.store.begin_reading(posted["job_id"], name="api", suffix=".json", source="cli")
    bench.store.refuse(
        posted["job_id"],
        {
            "file": "api.json", "code": "out_of_range", "message": "No.", "remedy": "Mend it.",
            "problems": [{"code": "out_of_range", "message": "No.", "value": "canary"}],
        },
    )  # fmt: skip
    body = bench.client.get(f"/status/{posted['job_id']}").json()
    assert (body["status"], body["error_code"], body["error_message"]) == (
        "failed", "out_of_range", "No.",
    )  # fmt: skip
    batch = bench.client.get(f"/batches/{posted['job_id']}")
    assert batch.json()["state"] == "refused"
    assert "canary" not in batch.text


def test_batches_page_and_unknown_ones_are_404(bench: Bench):
    tickets = [bench.post()["job_id"] for _ in range(5)]
    seen, address = [], "/batches?limit=2"
    while address:
        answer = bench.client.get(address)
        seen += [b["ticket"] for b in answer.json()["batches"]]
        link = re.fullmatch(r'<(.*)>; rel="next"', answer.headers.get("link", ""))
        address = link[1] if link else None
    assert seen == list(reversed(tickets))
    for verb in ("cancel", "pause", "resume", "retry-failed"):
        refused(bench.client.post(f"/batches/{UNKNOWN}/{verb}"), 404, "batch_not_found")
    refused(bench.client.get(f"/batches/{UNKNOWN}"), 404, "batch_not_found")
    refused(bench.client.get(f"/batches/{UNKNOWN}/images.zip"), 404, "batch_not_found")


# -- the queue


def test_all_that_waits_is_cancelled_at_once(bench: Bench):
    ids = [bench.post()["job_id"] for _ in range(3)]
    bench.watcher.take_in()
    assert claim_one(bench.store) is not None
    for number in (2, 0):
        assert bench.client.post("/queue/cancel").json() == {"cancelled": number}
    states = [bench.client.get(f"/jobs/{each}").json()["state"] for each in ids]
    assert states == ["generating", "cancelled", "cancelled"]


def test_the_queue_is_paused_and_resumed_and_says_by_whom(bench: Bench):
    bench.post()
    bench.watcher.take_in()
    body = bench.client.post("/queue/pause", json={"reason": "the GPU is needed"}).json()
    assert (body["paused"]["by"], body["paused"]["reason"]) == ("http", "the GPU is needed")
    assert claim_one(bench.store) is None
    assert bench.client.post("/queue/pause").json()["paused"]["reason"] == "the GPU is needed"
    assert bench.client.post("/queue/resume").json()["paused"] is None
    assert bench.client.post("/queue/resume").status_code == 200
    assert claim_one(bench.store) is not None
    refused(bench.client.post("/queue/pause", json={"reason": 7}), 422, "wrong_type")
    counts = bench.client.get("/queue").json()["counts"]
    assert counts == {"queued": 0, "generating": 1, "completed": 0, "failed": 0, "cancelled": 0}
