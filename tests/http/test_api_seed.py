"""The first version's five routes: its own words, codes and fields, and every error they give."""

import io
import json
import re

import pytest
from conftest import until
from doors import PICTURE, Bench
from PIL import Image

from watcher.finder import Finder
from watcher.inputs import Inputs
from watcher.jobfile.sources import Found

SEED_STATUS = [
    "job_id", "image_name", "status", "prompt", "height", "width", "num_inference_steps",
    "created_at", "completed_at", "error_message",
]  # fmt: skip
SEED_BODY = {
    "prompt": "a beautiful sunset over mountains",
    "height": 1024,
    "width": 1024,
    "num_inference_steps": 9,
}
UNKNOWN = "550e8400-e29b-41d4-a716-446655440000"


def refused(answer, status: int, code: str) -> dict:
    """The problem an answer is, checked for its form."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["status"] == status
    assert body["code"] == code
    assert body["type"] == f"/docs#{code}"
    assert isinstance(body["detail"], str) and body["detail"].endswith((".", "!"))
    assert {"title", "remedy"} <= body.keys()
    return body


def test_health_answers_without_a_watcher(bench: Bench):
    answer = bench.client.get("/health")
    assert answer.status_code == 200
    assert answer.json()["status"] == "degraded"
    bench.watcher.pulse()
    until(lambda: bench.client.get("/health").json()["status"] == "healthy")


def test_generate_image_answers_the_seeds_three_fields(bench: Bench):
    answer = bench.client.post("/generate-image", json=SEED_BODY)
    assert answer.status_code == 200
    body = answer.json()
    assert list(body) == ["job_id", "image_name", "status"]
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", body["job_id"])
    assert re.fullmatch(r"ImgGen_\d{6}(_\d+)?", body["image_name"])
    assert body["status"] == "generating"


def test_status_has_the_seeds_fields_first_and_in_its_order_at_every_moment(bench: Bench):
    posted = bench.client.post("/generate-image", json=SEED_BODY).json()
    address = f"/status/{posted['job_id']}"

    waiting = bench.client.get(address).json()
    bench.watcher.take_in()
    recorded = bench.client.get(address).json()
    job = bench.watcher.claim()
    running = bench.client.get(address).json()
    bench.watcher.finish(job)
    done = bench.client.get(address).json()

    for body in (waiting, recorded, running, done):
        assert list(body)[:10] == SEED_STATUS
        assert {k: body[k] for k in SEED_BODY} == SEED_BODY
        assert body["job_id"] == posted["job_id"]
        assert body["image_name"] == posted["image_name"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}", body["created_at"])
        assert body["error_message"] is None
    assert [b["status"] for b in (waiting, recorded, running, done)] == [
        "generating", "generating", "generating", "completed",
    ]  # fmt: skip
    assert [b["state"] for b in (waiting, recorded, running, done)] == [
        "queued", "queued", "generating", "completed",
    ]  # fmt: skip
    assert [b["completed_at"] for b in (waiting, recorded, running)] == [None, None, None]
    assert done["completed_at"] >= done["created_at"]
    assert waiting["seed"] == done["seed"]
    assert done["progress"] == 1.0 and done["step"] == done["steps"] == 8


def test_a_failed_job_says_why(bench: Bench):
    posted = bench.post()
    bench.watcher.take_in()
    bench.watcher.fail("out_of_memory", "The device ran out of memory.")
    body = bench.client.get(f"/status/{posted['job_id']}").json()
    assert body["status"] == "failed"
    assert body["error_message"] == "The device ran out of memory."
    assert body["error_code"] == "out_of_memory"


@pytest.mark.parametrize("recorded", [False, True])
def test_a_cancelled_job_is_failed_with_the_word_cancelled(bench: Bench, recorded: bool):
    posted = bench.post()
    if recorded:
        bench.watcher.take_in()
    assert bench.client.delete(f"/jobs/{posted['job_id']}").status_code == 200
    body = bench.client.get(f"/status/{posted['job_id']}").json()
    assert (body["status"], body["error_message"]) == ("failed", "cancelled")
    assert body["state"] == "cancelled"
    bench.watcher.take_in()
    assert bench.client.get(f"/status/{posted['job_id']}").json()["state"] == "cancelled"


def test_the_image_by_its_files_name(bench: Bench):
    bench.done(name="n3")
    for name in ("n3", "n3.png", "N3.PNG"):
        assert bench.client.get(f"/image/by-name/{name}").status_code == 200
    for name in ("n3.webp", "n3.", ".png", "n3.png.png"):
        refused(bench.client.get(f"/image/by-name/{name}"), 404, "image_not_found")


def test_the_image_by_job_and_by_name(bench: Bench):
    job = bench.done()
    for address in (
        f"/image/{job.id}",
        f"/image/by-name/{job.image_name}",
        f"/image/by-name/{job.image_name.lower()}",
        f"/image/by-name/{job.folder}/{job.image_name}",
    ):
        answer = bench.client.get(address)
        assert answer.status_code == 200, address
        assert answer.content == PICTURE
        assert answer.headers["content-type"] == "image/png"
        assert answer.headers["etag"] == f'"{job.sha256}"'


def test_the_image_before_it_is_ready_is_400(bench: Bench):
    posted = bench.post()
    address = f"/image/{posted['job_id']}"
    refused(bench.client.get(address), 400, "image_not_ready")
    bench.watcher.take_in()
    refused(bench.client.get(address), 400, "image_not_ready")
    refused(bench.client.get(f"/image/by-name/{posted['image_name']}"), 400, "image_not_ready")
    bench.watcher.fail()
    body = refused(bench.client.get(address), 400, "image_not_ready")
    assert "failed" in body["detail"]


def test_unknown_things_are_404(bench: Bench):
    refused(bench.client.get(f"/status/{UNKNOWN}"), 404, "job_not_found")
    refused(bench.client.get(f"/image/{UNKNOWN}"), 404, "job_not_found")
    refused(bench.client.get("/image/by-name/ImgGen_143022"), 404, "image_not_found")
    refused(bench.client.get("/no-such-route"), 404, "not_found")
    java = {"accept": "text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2"}
    refused(bench.client.get(f"/status/{UNKNOWN}", headers=java), 404, "job_not_found")
    refused(bench.client.get(f"/jobs/{UNKNOWN}", headers=java), 404, "job_not_found")


def test_a_deleted_image_is_410(bench: Bench):
    job = bench.done()
    assert bench.client.delete(f"/jobs/{job.id}/image").status_code == 204
    assert bench.client.delete(f"/jobs/{job.id}/image").status_code == 204
    refused(bench.client.get(f"/image/{job.id}"), 410, "image_deleted")
    refused(bench.client.get(f"/image/by-name/{job.image_name}"), 410, "image_deleted")
    assert not (bench.config.outputs / job.path).exists()
    assert bench.client.get(f"/status/{job.id}").json()["status"] == "completed"


@pytest.mark.parametrize(
    ("body", "code", "key"),
    [
        ({}, "missing_field", "prompt"),
        ({"prompt": ""}, "missing_field", "prompt"),
        ({"prompt": 7}, "wrong_type", "prompt"),
        ({"prompt": "a", "width": 1000}, "size_not_multiple_of_16", "width"),
        ({"prompt": "a", "height": 100_000}, "out_of_range", "height"),
        ({"prompt": "a", "num_inference_steps": 0}, "out_of_range", "num_inference_steps"),
        ({"prompt": "a", "num_inference_steps": "9"}, "wrong_type", "num_inference_steps"),
        ({"prompt": "a", "seed": -1}, "out_of_range", "seed"),
        ({"prompt": "a", "widht": 64}, "unknown_field", "widht"),
        ({"prompt": "a", "name": "../x"}, "bad_name", "name"),
        ([{"prompt": "a"}, {"prompt": "b"}], "bad_shape", None),
        ({"prompt": "a", "count": 2}, "bad_shape", None),
        ("a fox", "bad_shape", None),
    ],
)
def test_a_bad_body_is_422_with_the_key_and_never_the_value(bench: Bench, body, code, key):
    said = refused(bench.client.post("/generate-image", json=body), 422, code)
    assert '"value":' not in json.dumps(said)
    if key is not None:
        assert said["errors"][0]["key"] == key
    assert bench.store.batches() == []
    assert list(bench.config.inbox.glob("api-*")) == []


def test_the_secret_in_a_bad_value_is_not_sent_back(bench: Bench):
    body = {"prompt": "a", "seed": "canary-4711", "name": "canary-4711/../", "width": "canary-4711"}
    answer = bench.client.post("/generate-image", json=body)
    assert answer.status_code == 422
    assert "canary" not in answer.text


@pytest.mark.parametrize(
    ("data", "media", "status", "code"),
    [
        (b"{", "application/json", 422, "bad_json"),
        (b"", "application/json", 422, "empty_file"),
        (b"\xff\xfe\xfd", "application/json", 422, "encoding"),
        (b'{"prompt": "a", "prompt": "b"}', "application/json", 422, "duplicate_key"),
        (b"[" * 100_000, "application/json", 422, "unsafe_yaml"),
        (b'{"prompt": "a"}', "text/plain", 415, "bad_content_type"),
        (b'{"prompt": "a"}', None, 415, "bad_content_type"),
        (b'{"prompt": "' + b"a" * 2_000_000 + b'"}', "application/json", 413, "too_large"),
    ],
)
def test_bodies_that_are_no_json(bench: Bench, data, media, status, code):
    headers = {"content-type": media} if media else {}
    answer = bench.client.post("/generate-image", content=data, headers=headers)
    refused(answer, status, code)


def test_wrong_methods_are_405_and_name_the_right_ones(bench: Bench):
    for address, allowed in [
        ("/generate-image", {"POST"}),
        ("/health", {"GET"}),
        (f"/status/{UNKNOWN}", {"GET"}),
        ("/image/by-name/x", {"GET"}),
        ("/jobs", {"GET", "POST"}),
        (f"/jobs/{UNKNOWN}", {"GET", "PATCH", "DELETE"}),
        (f"/jobs/{UNKNOWN}/image", {"GET", "DELETE"}),
    ]:
        answer = bench.client.put(address)
        refused(answer, 405, "method_not_allowed")
        assert {m.strip() for m in answer.headers["allow"].split(",")} == allowed, address


def test_a_name_given_is_the_name_answered(bench: Bench):
    first = bench.post(name="sunset", folder="walls")
    second = bench.post(name="sunset", folder="walls")
    assert (first["image_name"], second["image_name"]) == ("sunset", "sunset_2")
    bench.watcher.take_in()
    names = {bench.watcher.finish().path for _ in range(2)}
    assert names == {"walls/sunset.png", "walls/sunset_2.png"}
    assert bench.client.get("/image/by-name/walls/sunset_2").status_code == 200


def test_the_newest_of_one_name_wins(bench: Bench):
    old = bench.done(name="cat", folder="a")
    new = bench.done(name="cat", folder="b")
    assert bench.client.get("/image/by-name/cat").headers["etag"] == f'"{new.sha256}"'
    assert bench.client.get("/status/" + old.id).json()["image_name"] == "cat"
    answer = bench.client.get("/image/by-name/cat")
    assert "immutable" not in answer.headers["cache-control"]
    assert f'filename="{new.path.split("/")[-1]}"' in answer.headers["content-disposition"]
    bench.post(name="cat", folder="c")
    bench.watcher.take_in()
    for end in (lambda: None, bench.watcher.fail):  # what waits or failed hides no picture
        end()
        assert bench.client.get("/image/by-name/cat").headers["etag"] == f'"{new.sha256}"'
    refused(bench.client.get("/image/by-name/c/cat"), 400, "image_not_ready")


def test_who_starts_from_a_name_is_told_of_a_later_job_that_waits(bench: Bench):
    def found() -> Found:
        return Finder(Inputs(bench.config, bench.store), copies=False).find("cat")

    drawn = io.BytesIO()
    Image.new("RGB", (64, 64)).save(drawn, "png")
    bench.post(name="cat", folder="a")
    bench.watcher.take_in()
    done = bench.watcher.finish(picture=drawn.getvalue())
    assert found().warning is None
    later = bench.post(name="cat", folder="b")["job_id"]
    bench.watcher.take_in()
    assert found().reference == f"sha256:{done.sha256} job:{done.id}"
    assert f"`job:{later}`" in str(found().warning)
    bench.watcher.fail()
    assert found().warning is None


def test_what_has_no_effect_is_said_in_warnings(bench: Bench):
    posted = bench.post(guidance_scale=7.5)
    bench.watcher.take_in()
    warnings = bench.client.get(f"/status/{posted['job_id']}").json()["warnings"]
    assert any("guidance_scale" in words for words in warnings)
