"""OpenAI's clients, unmodified, against the real service; and the calls of open-webui, raw."""

import asyncio
import base64
import http.client
import io
import json
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from conftest import until
from doors import Bench
from engines import expected
from house_of_clients import House, house
from PIL import Image
from store_children import claim_one

from api.compat.calls import Attempt, Call, Calls
from api.door import Door
from api.events import Feed
from api.submit import Submissions
from api.views import Views
from watcher.jobs import Batch, Job, JobState
from watcher.store import JobStore
from watcher.submission import Body


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with house(tmp_path_factory.mktemp("openai") / "root") as made:
        yield made


@pytest.fixture(scope="module")
def client(here: House) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{here.url}/v1", api_key="any", timeout=60) as client:
        yield client


def picture(data: str | bytes) -> Image.Image:
    raw = base64.b64decode(data, validate=True) if isinstance(data, str) else data
    return Image.open(io.BytesIO(raw))


# -- images


def test_four_pictures_of_a_landscape(here: House, client: openai.OpenAI):
    answer = client.images.generate(
        model="gpt-image-1", prompt="a wide fox", n=4, size="96x64", quality="high",
        extra_body={"seed": 7, "steps": 3},
    )  # fmt: skip
    assert answer.size == "96x64" and answer.output_format == "png"
    assert answer.usage and answer.usage.total_tokens == 0
    found = [picture(entry.b64_json) for entry in answer.data]
    assert [image.size for image in found] == [(96, 64)] * 4
    assert [entry.seed for entry in answer.data] == [7, 8, 9, 10]
    for image, seed in zip(found, range(7, 11), strict=True):
        assert image.convert("RGB").tobytes() == expected("a wide fox", seed, 96, 64).tobytes()
    said = " ".join(answer.warnings)
    assert "model has no effect" in said and "quality has no effect" in said
    jobs = here.jobs("a wide fox")
    assert [json.loads(job["request"])["num_inference_steps"] for job in jobs] == [3] * 4
    assert answer.job_id == jobs[0]["id"] and {job["state"] for job in jobs} == {"completed"}
    assert answer._request_id == jobs[0]["ticket"]


def test_addresses_can_be_fetched_plainly(client: openai.OpenAI):
    answer = client.images.generate(
        prompt="a fox by address", size="64x64", response_format="url", output_format="webp"
    )
    [entry] = answer.data
    assert entry.b64_json is None and entry.url.endswith(".webp")
    with urllib.request.urlopen(entry.url) as got:
        assert got.headers["content-type"] == "image/webp"
        assert picture(got.read()).size == (64, 64)


def test_a_stream_tells_parts_and_the_whole(client: openai.OpenAI):
    events = list(
        client.images.generate(
            prompt="a slow fox grows sleep=0.4", size="96x64", stream=True, partial_images=2
        )
    )
    assert [e.type for e in events] == [
        "image_generation.partial_image",
        "image_generation.partial_image",
        "image_generation.completed",
    ]
    assert [e.partial_image_index for e in events[:2]] == [0, 1]
    assert events[0].progress < events[1].progress <= 1
    found = [picture(e.b64_json).convert("L") for e in events]
    assert [image.size for image in found] == [(96, 64)] * 3
    assert found[0].getextrema()[1] < found[1].getextrema()[1]  # later steps are lighter
    assert events[-1].usage.total_tokens == 0 and events[-1].size == "96x64"


def test_a_stream_of_three_tells_each(client: openai.OpenAI):
    events = list(client.images.generate(prompt="three foxes", n=3, size="64x64", stream=True))
    assert [e.type for e in events] == ["image_generation.completed"] * 3
    assert len({e.seed for e in events}) == 3


def test_an_error_inside_a_stream_is_the_clients_exception(client: openai.OpenAI):
    with pytest.raises(openai.APIError) as caught:
        list(client.images.generate(prompt="a fox oom", size="64x64", stream=True))
    assert caught.value.code == "out_of_memory" and caught.value.type == "server_error"


def test_the_asynchronous_client(here: House):
    async def five() -> list:
        async with openai.AsyncOpenAI(base_url=f"{here.url}/v1", api_key="any") as client:
            calls = (client.images.generate(prompt="async fox", size="64x64") for _ in range(5))
            return await asyncio.gather(*calls)

    answers = asyncio.run(five())
    assert len({answer.job_id for answer in answers}) == 5
    assert len({answer.data[0].b64_json for answer in answers}) == 5


@pytest.mark.parametrize(
    ("asked", "param", "code"),
    [
        ({"size": "100x64"}, "size", "size_not_multiple_of_16"),
        ({"size": "99999x64"}, "size", "out_of_range"),
        ({"size": "large"}, "size", "wrong_type"),
        ({"n": 11}, "n", "out_of_range"),
        ({"n": 0}, "n", "out_of_range"),
        ({"prompt": ""}, "prompt", "missing_field"),
        ({"prompt": "x" * 4001}, "prompt", "out_of_range"),
        ({"output_format": "gif"}, "output_format", "out_of_range"),
        ({"response_format": "bytes"}, "response_format", "out_of_range"),
        ({"partial_images": 4}, "partial_images", "out_of_range"),
        ({"extra_body": {"steps": 100}}, "steps", "out_of_range"),
        ({"extra_body": {"steps": "many"}}, "steps", "wrong_type"),
        ({"extra_body": {"seed": -1}}, "seed", "out_of_range"),
        ({"extra_body": {"stream": "yes"}}, "stream", "wrong_type"),
        ({"extra_body": {"key": 5}}, "key", "wrong_type"),
    ],
)
def test_bad_parameters_are_bad_requests(client: openai.OpenAI, asked: dict, param: str, code: str):
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(**({"prompt": "never", "size": "64x64"} | asked))
    error = caught.value
    assert (error.param, error.code, error.type) == (param, code, "invalid_request_error")
    assert error.request_id and error.body["message"] in str(error)


def test_what_the_real_service_accepts_is_accepted(client: openai.OpenAI):
    answer = client.images.generate(
        prompt="a fox with everything", size="64x64", background="transparent", moderation="low",
        output_compression=50, style="vivid", user="me",
        extra_body={"from_the_future": 1, "num_inference_steps": 3},
    )  # fmt: skip
    assert any("from_the_future" in warning for warning in answer.warnings)
    assert any("background" in warning for warning in answer.warnings)
    assert picture(answer.data[0].b64_json).size == (64, 64)


def test_models(client: openai.OpenAI):
    names = [model.id for model in client.models.list().data]
    assert names == ["scripted", "starter", "Tongyi-MAI/Z-Image-Turbo"]
    assert client.models.retrieve("scripted").id == "scripted"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("no/such-model")
    assert caught.value.code == "model_not_found"


def test_what_is_not_here_is_said_in_their_words(client: openai.OpenAI):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="x", messages=[])
    assert caught.value.code == "not_found" and caught.value.type == "invalid_request_error"


def test_a_failed_job_is_a_server_error_and_not_tried_again(here: House, client: openai.OpenAI):
    with pytest.raises(openai.InternalServerError) as caught:
        client.images.generate(prompt="a fox nan", size="64x64")
    assert caught.value.code == "non_finite"
    assert len(here.jobs("a fox nan")) == 1
    assert caught.value.response.headers["x-should-retry"] == "false"


def test_a_cancelled_job_is_a_conflict(here: House, client: openai.OpenAI):
    def cancel() -> None:
        here.running("doomed fox")
        [job] = here.jobs("doomed fox")
        request = urllib.request.Request(f"{here.url}/jobs/{job['id']}", method="DELETE")
        urllib.request.urlopen(request).close()

    thread = threading.Thread(target=cancel)
    thread.start()
    with pytest.raises(openai.ConflictError) as caught:
        client.images.generate(prompt="doomed fox sleep=0.5", size="64x64")
    thread.join()
    assert caught.value.code == "cancelled" and len(here.jobs("doomed fox")) == 1


@pytest.mark.parametrize(
    ("model", "forms"),
    [("dall-e-3", {"url"}), ("gpt-image-1", {"b64_json"}), (None, {"url", "b64_json"})],
)
def test_pictures_come_as_the_model_asked_for_gives_them(here: House, model, forms):
    body = json.dumps(
        {"prompt": "a told fox", "size": "64x64"} | ({"model": model} if model else {})
    )
    request = urllib.request.Request(
        f"{here.url}/v1/images/generations", body.encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        [entry] = json.load(answer)["data"]
    assert {"url", "b64_json"} & entry.keys() == forms
    if "url" in entry:
        with urllib.request.urlopen(entry["url"]) as answer:
            assert picture(answer.read()).size == (64, 64)


@pytest.mark.parametrize("size", ["500x64", "64x500", "4096x64", "2048x2048"])
def test_a_size_that_cannot_be_made_is_called_size(tmp_path: Path, size: str):
    with Bench(tmp_path, max_pixels=1 << 20) as bench:
        answer = bench.client.post("/v1/images/generations", json={"prompt": "x", "size": size})
        error = answer.json()["error"]
        assert answer.status_code == 400 and error["param"] == "size"
        assert "`size`" in error["message"] and "`width`" not in error["message"]
        assert "`height`" not in error["message"]


@pytest.mark.parametrize("path", ["/v1/images/generations", "/sdapi/v1/txt2img"])
@pytest.mark.parametrize("read", [True, False])
def test_a_paused_queue_says_so_and_keeps_nothing(tmp_path: Path, path: str, read: bool):
    with Bench(tmp_path, call_patience=0.2) as bench:
        bench.store.put("paused", {"by": "person", "reason": None, "since": 1})
        if read:
            hand = threading.Thread(target=lambda: until(bench.watcher.take_in))
            hand.start()
        answer = bench.client.post(path, json={"prompt": "a fox", "width": 64, "height": 64})
        assert answer.status_code == 503 and int(answer.headers["retry-after"]) > 0
        assert "paused" in answer.text and "steady resume" in answer.text
        if read:
            hand.join()
            until(lambda: [j.state for j in bench.store.jobs()] == [JobState.CANCELLED])
        else:
            until(lambda: bench.store.batches()[0].cancelled)


# -- trying again


def test_three_tries_of_one_second_make_one_picture(here: House):
    with (
        openai.OpenAI(base_url=f"{here.url}/v1", api_key="any", timeout=1) as client,
        pytest.raises(openai.APITimeoutError),
    ):
        client.images.generate(prompt="late fox sleep=1", size="64x64")
    until(lambda: here.jobs("late fox")[0]["state"] == "completed", 30)
    assert len(here.jobs("late fox")) == here.made("late fox") == 1


def test_a_try_that_comes_in_time_gets_the_first_ones_picture(here: House):
    with openai.OpenAI(base_url=f"{here.url}/v1", api_key="any", timeout=1.5) as client:
        answer = client.images.generate(prompt="soon fox sleep=0.25", size="64x64")
    [job] = here.jobs("soon fox")
    assert answer.job_id == job["id"] and here.made("soon fox") == 1


def test_equal_calls_that_time_out_find_each_its_own_run(here: House):
    async def two() -> list:
        async with openai.AsyncOpenAI(
            base_url=f"{here.url}/v1", api_key="any", timeout=1.5
        ) as client:
            calls = (
                client.images.generate(prompt="twin fox sleep=0.2", size="64x64") for _ in range(2)
            )
            return await asyncio.gather(*calls)

    answers = asyncio.run(two())
    assert len({answer.job_id for answer in answers}) == 2 == len(here.jobs("twin fox"))
    assert here.made("twin fox") == 2


def test_each_try_joins_a_run_nobody_waits_for_any_more(tmp_path):
    with Bench(tmp_path) as bench:
        door = bench.app.state.door
        calls = Calls(door, Submissions(door), Feed(door, Views(door).brief))
        body = Body(b'{"prompt": "a fox"}', ".json", "openai")

        def begin(number: int) -> Call:
            return calls.begin(body, attempt=Attempt(number, 1.0), asked=b"the same")

        first = [begin(0), begin(0)]
        assert len({call.ticket for call in first}) == 2
        for call in first:
            calls.leave(call, hung_up=False)
        again = [begin(1), begin(1)]
        assert {call.ticket for call in again} == {call.ticket for call in first}
        third = begin(1)  # a third caller of the same: there is none of its own to join
        assert third.ticket in {call.ticket for call in first}
        assert len(bench.store.batches()) == 2
        assert begin(0).ticket not in {call.ticket for call in first}


def test_a_try_again_finds_its_first_run_over_a_restart_of_the_service(tmp_path):
    with house(tmp_path / "root") as here:
        found = {}

        def call() -> None:
            with openai.OpenAI(
                base_url=f"{here.url}/v1", api_key="any", timeout=60, max_retries=30
            ) as client:
                found["answer"] = client.images.generate(prompt="durable fox sleep=0.3")

        thread = threading.Thread(target=call)
        thread.start()
        here.running("durable fox")
        here.service.process.kill()
        here.service.process.wait()
        here.root.spawn("-m", "api", "--root", str(here.root.folder), "--port", str(here.port))
        thread.join(60)
        [job] = here.jobs("durable fox")
        assert found["answer"].job_id == job["id"] and here.made("durable fox") == 1


def test_equal_calls_that_are_no_tries_are_two(here: House, client: openai.OpenAI):
    first = client.images.generate(prompt="same fox", size="64x64")
    second = client.images.generate(prompt="same fox", size="64x64")
    assert first.job_id != second.job_id


def test_a_key_of_ones_own_is_kept(client: openai.OpenAI):
    asked = {"prompt": "keyed fox", "size": "64x64", "extra_headers": {"Idempotency-Key": "fox-1"}}
    assert client.images.generate(**asked).job_id == client.images.generate(**asked).job_id


# -- hanging up


def hang_up(here: House, body: dict, when) -> None:
    """A plain caller that closes its connection once ``when`` holds."""
    connection = http.client.HTTPConnection("127.0.0.1", here.port)
    connection.request(
        "POST", "/v1/images/generations", json.dumps(body), {"Content-Type": "application/json"}
    )
    until(when, 30)
    connection.close()


def test_hanging_up_cancels_what_has_not_started(here: House):
    blocker = threading.Thread(
        target=hang_up,
        args=(here, {"prompt": "blocking fox sleep=0.25"}, lambda: here.jobs("waiting fox")),
    )
    blocker.start()
    here.running("blocking fox")
    for extra in ({}, {"stream": True}):
        word = f"waiting fox {len(extra)}"
        hang_up(here, {"prompt": word, "n": 2} | extra, lambda word=word: len(here.jobs(word)) == 2)
        until(lambda word=word: {j["state"] for j in here.jobs(word)} == {"cancelled"}, what=word)
    blocker.join()
    until(lambda: here.jobs("blocking fox")[0]["state"] == "completed", 30)
    assert here.made("waiting fox") == 0


class Racing(JobStore):
    """A record in which the watcher takes a job at the worst moment of somebody who gives up."""

    looked: Callable[[str], object] = staticmethod(lambda at: None)

    def jobs_of(self, *args: Any, **more: Any) -> list[Job]:
        found = super().jobs_of(*args, **more)
        self.looked("jobs_of")
        return found

    def batch(self, ticket: str) -> Batch | None:
        found = super().batch(ticket)
        self.looked("batch")
        return found

    def withdraw(self, ticket: str) -> None:
        self.looked("withdraw")
        super().withdraw(ticket)


@pytest.mark.parametrize("moment", ["batch", "jobs_of", "withdraw"])
@pytest.mark.parametrize("read", [True, False])
def test_what_is_claimed_while_its_caller_hangs_up_goes_on(tmp_path: Path, read: bool, moment: str):
    with Bench(tmp_path) as bench:
        store = Racing(bench.config.database_url)
        door = Door(bench.config, store)
        calls = Calls(door, Submissions(door), Feed(door, Views(door).brief))
        call = calls.begin(Body(b'{"prompt": "a fox", "count": 2}', ".json", "openai"))
        if read:
            bench.watcher.take_in()

        def claims(at: str) -> None:
            if at in (moment, "withdraw"):
                bench.watcher.take_in()
                if not bench.store.generating():
                    claim_one(bench.store)

        async def gone() -> None:
            calls.leave(call, hung_up=True)
            await asyncio.get_running_loop().shutdown_default_executor()

        store.looked = claims
        asyncio.run(gone())
        first, second = bench.store.jobs_of(call.ticket)
        assert first.state is JobState.GENERATING and not first.cancel_requested
        assert second.state is JobState.CANCELLED
        store.close()


def test_a_try_again_revives_what_hanging_up_cancelled(here: House):
    hanging = threading.Thread(
        target=hang_up,
        args=(here, {"prompt": "first fox sleep=0.4"}, lambda: here.jobs("second fox")),
    )
    hanging.start()
    here.running("first fox")
    with openai.OpenAI(base_url=f"{here.url}/v1", api_key="any", timeout=1.2) as client:
        answer = client.images.generate(prompt="second fox", size="64x64")
    hanging.join()
    [job] = here.jobs("second fox")
    assert answer.job_id == job["id"] and here.made("second fox") == 1


# -- open-webui, as its back end asks


def test_open_webui(here: House):
    connection = http.client.HTTPConnection("127.0.0.1", here.port, timeout=60)
    headers = {"Authorization": "Bearer key", "Content-Type": "application/json"}
    body = {
        "model": "gpt-image-1", "prompt": "a fox for open-webui", "n": 1, "size": "96x64",
        "response_format": "b64_json",
    }  # fmt: skip
    connection.request("POST", "/v1/images/generations", json.dumps(body), headers)
    answer = connection.getresponse()
    assert answer.status == 200
    [entry] = json.load(answer)["data"]
    assert picture(entry["b64_json"]).size == (96, 64)
    connection.close()


@pytest.mark.parametrize(
    "body",
    [b"", b"null", b"[]", b"{", b'"x"', b"\xff", b"[" * 100_000, b'{"prompt": 1}', b"{}",
     b'{"prompt": "x", "n": 1e400}', b'{"prompt": "x", "n": true}', b'{"prompt": "x", "size": []}',
     b'{"prompt": "\\ud800"}', b'{"prompt": "x", "metadata": 3}', b'{"prompt": "x", "model": {}}',
     b'{"prompt": "x", "seed": 99999999999999999999}', b'{"prompt": {"a": 1}}'],
)  # fmt: skip
def test_no_body_is_a_fault_of_ours(here: House, body: bytes):
    connection = http.client.HTTPConnection("127.0.0.1", here.port, timeout=60)
    connection.request("POST", "/v1/images/generations", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    said = json.load(answer)
    if body == b'{"prompt": "x", "model": {}}':  # no word about it would change anything
        assert answer.status == 200
    else:
        assert answer.status == 400, said
        assert set(said["error"]) == {"message", "type", "param", "code"}
    connection.close()


def test_without_a_token_the_key_is_wrong_and_addresses_are_signed(tmp_path):
    with house(tmp_path / "root", token="secret") as here:
        with (
            openai.OpenAI(base_url=f"{here.url}/v1", api_key="wrong", timeout=60) as wrong,
            pytest.raises(openai.AuthenticationError) as caught,
        ):
            wrong.images.generate(prompt="never")
        assert caught.value.code == "invalid_api_key"
        with openai.OpenAI(base_url=f"{here.url}/v1", api_key="secret", timeout=60) as right:
            answer = right.images.generate(prompt="a fox", size="64x64", response_format="url")
        url = answer.data[0].url
        with urllib.request.urlopen(url) as got:
            assert picture(got.read()).size == (64, 64)
        other = url.replace("expires=", "expires=9")
        for bad in (url.partition("?")[0], url[:-1] + ("0" if url[-1] != "0" else "1"), other):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(bad)
            assert refused.value.code == 401, bad
            refused.value.close()


def test_a_full_queue_is_a_rate_limit(tmp_path):
    with house(tmp_path / "root", watch=False, max_queued=1) as here:
        headers = {"Content-Type": "application/json"}
        connection = http.client.HTTPConnection("127.0.0.1", here.port, timeout=60)
        body = json.dumps({"prompt": "x", "n": 2})
        connection.request("POST", "/v1/images/generations", body, headers)
        answer = connection.getresponse()
        error = json.load(answer)["error"]
        assert (answer.status, error["code"]) == (429, "queue_full")
        assert int(answer.headers["Retry-After"]) > 0
        begun = time.monotonic()
        with (
            openai.OpenAI(base_url=f"{here.url}/v1", api_key="x", max_retries=0) as client,
            pytest.raises(openai.RateLimitError),
        ):
            client.images.generate(prompt="x", n=2)
        assert time.monotonic() - begun < 10
        connection.close()
