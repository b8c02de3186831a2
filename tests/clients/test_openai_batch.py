"""OpenAI's Batch API with its unmodified client, and the same file dropped in the inbox."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from conftest import until
from doors import Bench
from house_of_clients import House, house
from store_children import Clock

URL = "/v1/images/generations"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with house(tmp_path_factory.mktemp("batch") / "root") as made:
        yield made


@pytest.fixture(scope="module")
def client(here: House) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{here.url}/v1", api_key="any", timeout=60) as client:
        yield client


def lines_of(count: int, word: str, **more) -> bytes:
    body = {"model": "gpt-image-1", "size": "64x64", "steps": 1} | more
    return b"".join(
        json.dumps(
            {
                "custom_id": f"{word}-{n}",
                "method": "POST",
                "url": URL,
                "body": {"prompt": f"{word} {n}", "seed": n, **body},
            }
        ).encode()
        + b"\n"
        for n in range(count)
    )


def _form(disposition: str, value: str) -> bytes:
    """A multipart body of one part; its boundary is x."""
    head = f"--x\r\nContent-Disposition: form-data; {disposition}\r\n\r\n"
    return f"{head}{value}\r\n--x--\r\n".encode()


def started(client: openai.OpenAI, data: bytes, name: str = "foxes.jsonl", **more):
    file = client.files.create(file=(name, data), purpose="batch")
    assert (file.bytes, file.filename, file.status) == (len(data), name, "processed")
    return client.batches.create(
        input_file_id=file.id, endpoint=URL, completion_window="24h", **more
    )


def ended(client: openai.OpenAI, batch, timeout: float = 60):
    def look():
        now = client.batches.retrieve(batch.id)
        return now if now.status in ("completed", "failed", "cancelled") else None

    return until(look, timeout, f"{batch.id} ends")


def read(client: openai.OpenAI, file_id: str) -> list[dict]:
    text = client.files.content(file_id).text
    assert client.files.retrieve(file_id).bytes == len(text.encode())
    return [json.loads(line) for line in text.splitlines()]


def whole_batch(here: House, client: openai.OpenAI, count: int) -> None:
    word = f"many{count}"
    batch = started(client, lines_of(count, word), metadata={"for": "a test"})
    assert batch.status in ("validating", "in_progress") and batch.metadata == {"for": "a test"}
    over = ended(client, batch, 110)
    counts = over.request_counts
    assert (over.status, counts.total, counts.completed, counts.failed) == (
        "completed", count, count, 0,
    )  # fmt: skip
    assert over.error_file_id is None and over.created_at <= over.completed_at
    found = read(client, over.output_file_id)
    assert [line["custom_id"] for line in found] == [f"{word}-{n}" for n in range(count)]
    assert len({line["id"] for line in found}) == count
    for n, line in enumerate(found):
        assert line["error"] is None and line["response"]["status_code"] == 200
        [entry] = line["response"]["body"]["data"]
        assert entry["seed"] == n and entry["url"].startswith(here.url)
    with urllib.request.urlopen(entry["url"]) as got:
        assert got.read(8) == b"\x89PNG\r\n\x1a\n"
    assert here.made(f"{word} ") == count


def test_a_batch_from_end_to_end(here: House, client: openai.OpenAI):
    whole_batch(here, client, 60)


@pytest.mark.slow
def test_a_thousand_lines(here: House, client: openai.OpenAI):
    whole_batch(here, client, 1000)


@pytest.mark.slow
def test_fifty_thousand_lines_are_taken_and_told(here: House, client: openai.OpenAI):
    batch = started(client, lines_of(50_000, "huge sleep=1"), "huge.jsonl")
    until(lambda: client.batches.retrieve(batch.id).request_counts.total == 50_000, 100)
    client.batches.cancel(batch.id)
    over = ended(client, batch)
    counts = over.request_counts
    assert over.status == "cancelled" and counts.failed + counts.completed == 50_000
    lines = client.files.content(over.error_file_id).text.splitlines()
    assert len(lines) == counts.failed > 49_000
    assert json.loads(lines[-1])["error"]["code"] == "cancelled"


def test_lines_that_cannot_run_are_in_the_error_file(here: House, client: openai.OpenAI):
    lines = [
        {"custom_id": "good", "method": "POST", "url": URL, "body": {"prompt": "ok", "n": 2}},
        {"custom_id": "bad", "method": "POST", "url": URL, "body": {"prompt": "x", "n": "two"}},
        {"custom_id": "chat", "method": "POST", "url": "/v1/chat/completions", "body": {}},
        {"custom_id": "fails", "method": "POST", "url": URL, "body": {"prompt": "an error nan"}},
    ]
    data = "\n".join(map(json.dumps, lines)).encode()
    over = ended(client, started(client, data))
    assert over.status == "completed"
    assert (over.request_counts.completed, over.request_counts.failed) == (2, 3)
    [good] = read(client, over.output_file_id)
    assert good["custom_id"] == "good" and len(good["response"]["body"]["data"]) == 2
    bad = {line["custom_id"]: line for line in read(client, over.error_file_id)}
    assert set(bad) == {"bad", "chat", "fails"}
    assert bad["fails"]["error"]["code"] == "non_finite"
    assert bad["fails"]["response"]["status_code"] == 500
    assert bad["bad"]["error"]["param"] and bad["bad"]["line"] == 2
    assert bad["chat"]["response"]["status_code"] == 400


def test_cancel(here: House, client: openai.OpenAI):
    batch = started(client, lines_of(30, "stopped sleep=0.3"))
    here.running("stopped")
    assert client.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    over = ended(client, batch)
    assert over.status == "cancelled" and over.cancelled_at
    assert over.request_counts.failed > 20
    assert len(read(client, over.error_file_id)) == over.request_counts.failed
    assert here.made("stopped") < 5


def test_lists_pages_and_files(client: openai.OpenAI):
    made = [started(client, lines_of(1, f"page{n}")) for n in range(3)]
    for batch in made:
        ended(client, batch)
    assert {b.id for b in made} <= {b.id for b in client.batches.list(limit=2)}
    file = client.files.retrieve(made[0].input_file_id)
    assert file.id in {f.id for f in client.files.list(purpose="batch")}
    assert client.files.content(file.id).read() == lines_of(1, "page0")
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError) as caught:
        client.files.retrieve(file.id)
    assert caught.value.code == "file_not_found"
    assert client.batches.retrieve(made[0].id).status == "completed"


def test_what_cannot_be_a_batch(here: House, client: openai.OpenAI):
    with pytest.raises(openai.BadRequestError) as caught:
        client.files.create(file=("x.jsonl", b"{}"), purpose="fine-tune")
    assert caught.value.param == "purpose"
    with pytest.raises(openai.BadRequestError) as caught:
        client.files.create(file=("x.jsonl", b""), purpose="batch")
    assert caught.value.code == "empty_file"
    # A file of another kind is none of ours, wherever it lies.
    (here.root.folder / "planted.json").write_text('{"id": "../../planted", "filename": "x"}')
    (here.root.folder / "planted.jsonl").write_bytes(lines_of(1, "planted"))
    for ident in ("file-" + "0" * 32, "../../planted", "file-x"):
        with pytest.raises(openai.NotFoundError):
            client.batches.create(input_file_id=ident, endpoint=URL, completion_window="24h")
    file = client.files.create(file=("x.jsonl", b'{"custom_id": "a", "url": 1, "body": {}}'),
                               purpose="batch")  # fmt: skip
    with pytest.raises(openai.BadRequestError) as caught:
        client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
    assert caught.value.param == "endpoint"
    with pytest.raises(openai.BadRequestError) as caught:
        client.batches.create(input_file_id=file.id, endpoint=URL, completion_window="24h")
    assert caught.value.code == "all_rows_refused"
    for ident in ("batch_x", "batch_" + "0" * 32):
        with pytest.raises(openai.NotFoundError):
            client.batches.retrieve(ident)
    for ident in ("file-output-" + "0" * 32, "x"):
        with pytest.raises(openai.NotFoundError):
            client.files.content(ident)


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("multipart/form-data", b"", 400),
        ("multipart/form-data; boundary=x", b"", 400),
        ("multipart/form-data; boundary=x", b"\xff" * 1000, 400),
        ("multipart/form-data; boundary=x", b"--x\r\n\r\nnameless\r\n--x--\r\n", 400),
        ("multipart/form-data; boundary=x", _form('name="purpose"', "batch"), 400),
        ("multipart/form-data; boundary=x", _form('name="file"; filename="a"', "{}"), 400),
        ("application/json", b"{}", 415),
    ],
)
def test_no_upload_is_a_fault_of_ours(here: House, kind: str, body: bytes, status: int):
    request = urllib.request.Request(f"{here.url}/v1/files", body, {"Content-Type": kind})
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request)
    with caught.value as answer:
        assert answer.code == status
        assert set(json.load(answer)["error"]) == {"message", "type", "param", "code"}


def test_half_a_character_in_a_note_is_kept(here: House, client: openai.OpenAI):
    file = client.files.create(file=("a\ud800/b.jsonl".encode("utf-8", "replace").decode(),
                                     lines_of(1, "half")), purpose="batch")  # fmt: skip
    body = {"input_file_id": file.id, "endpoint": URL, "metadata": {"a": "\ud800"}}
    request = urllib.request.Request(
        f"{here.url}/v1/batches", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        assert json.load(answer)["metadata"] == {"a": "\ud800"}


def test_a_batch_is_completed_when_the_last_of_its_jobs_is(tmp_path: Path):
    clock = Clock()
    with Bench(tmp_path, clock=clock) as bench:
        file = {"file": ("two.jsonl", lines_of(2, "two"))}
        uploaded = bench.client.post("/v1/files", data={"purpose": "batch"}, files=file).json()
        said = {"input_file_id": uploaded["id"], "endpoint": URL}
        batch = bench.client.post("/v1/batches", json=said).json()
        bench.watcher.take_in()
        for second in (9, 5):  # the first one took the longest
            clock.put(second * 1_000_000)
            job = bench.watcher.claim()
            bench.store.complete(job.id, job.attempt, sha256="0" * 64, bytes=1, facts={})
        over = bench.client.get(f"/v1/batches/{batch['id']}").json()
        assert (over["status"], over["completed_at"]) == ("completed", 9)


def test_the_same_file_in_the_inbox(here: House):
    lines = (
        lines_of(3, "dropped")
        + json.dumps(
            {"custom_id": "lost", "method": "POST", "url": URL, "body": {"prompt": "dropped nan"}}
        ).encode()
    )
    here.root.drop("dropped.jsonl", lines)
    done = here.root.inbox / "done"
    [output] = until(lambda: list(done.glob("*/dropped~*.output.jsonl")), 30)
    until(lambda: list(done.glob("*/dropped~*.result.json")), 30)
    found = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["custom_id"] for line in found] == [f"dropped-{n}" for n in range(3)]
    for line in found:
        [entry] = line["response"]["body"]["data"]
        assert (here.root.folder / "outputs" / entry["picture"]).is_file()
        assert entry["url"].endswith("/image")
    [errors] = done.glob("*/dropped~*.errors.jsonl")
    [lost] = [json.loads(line) for line in errors.read_text().splitlines()]
    assert (lost["custom_id"], lost["error"]["code"]) == ("lost", "non_finite")


def test_a_plain_list_in_the_inbox_gets_no_such_file(here: House):
    here.root.drop("plain.jsonl", '{"prompt": "plain one"}\n{"prompt": "plain two"}\n')
    done = here.root.inbox / "done"
    until(lambda: list(done.glob("*/plain~*.result.json")), 30)
    assert not list(done.glob("*/plain~*put.jsonl"))
