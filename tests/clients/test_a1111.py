"""Clients made for the Stable Diffusion web UI, unmodified, against the real service:
webuiapi, and the calls of open-webui's and SillyTavern's back ends, raw."""

import asyncio
import base64
import io
import json
import re
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest
import webuiapi
from conftest import until
from doors import Bench
from engines import expected
from fastapi.routing import APIRoute
from house_of_clients import House, house
from PIL import Image

from api.compat import a1111, openai, openai_batch
from api.compat.img2img import img2img_of
from api.compat.txt2img import txt2img_of
from watcher.errors import SteadyError
from watcher.limits import Card, Limits

ABLE = Card(accepts=("image", "upscale"))


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with house(tmp_path_factory.mktemp("a1111") / "root") as made:
        yield made


@pytest.fixture
def api(here: House) -> Iterator[webuiapi.WebUIApi]:
    client = webuiapi.WebUIApi(port=here.port)
    yield client
    client.session.close()


def test_txt2img_says_what_it_mapped(here: House, api: webuiapi.WebUIApi):
    result = api.txt2img(
        prompt="a wide owl", width=96, height=64, seed=7, negative_prompt="fog, rain"
    )
    assert result.image.size == (96, 64)
    assert result.image.convert("RGB").tobytes() == expected("a wide owl", 7, 96, 64).tobytes()
    info = result.info
    assert (info["seed"], info["steps"], info["cfg_scale"]) == (7, 8, 1)
    assert (info["width"], info["height"], info["sampler_name"]) == (96, 64, "Euler")
    assert info["all_prompts"] == ["a wide owl"] and info["negative_prompt"] == "fog, rain"
    said = " | ".join(info["warnings"])
    for words in ("steps: 8 are used instead of 20", "cfg_scale: 1 is used instead of 7",
                  "'Euler a'", "negative_prompt` has no effect"):  # fmt: skip
        assert words in said
    assert "scheduler" not in said and "no effect here" not in said  # nothing else was asked for
    assert result.parameters["prompt"] == "a wide owl" and len(result.parameters) > 40
    [job] = here.jobs("a wide owl")
    assert json.loads(job["request"])["num_inference_steps"] == 8
    assert info["job_ids"] == [job["id"]]


def test_batch_size_times_n_iter_with_seeds_that_follow(api: webuiapi.WebUIApi):
    result = api.txt2img(prompt="owls", width=64, height=64, batch_size=2, n_iter=2, steps=2)
    seeds = result.info["all_seeds"]
    assert seeds == list(range(seeds[0], seeds[0] + 4)) and result.info["batch_size"] == 4
    assert len({image.tobytes() for image in result.images}) == 4
    assert [f"Seed: {s}," in t for s, t in zip(seeds, result.info["infotexts"], strict=True)]
    assert result.info["steps"] == 2


def test_asynchronously(here: House, api: webuiapi.WebUIApi):
    async def two() -> list:
        calls = [
            api.txt2img(prompt="async owl", width=64, height=64, steps=1, use_async=True)
            for _ in range(2)
        ]
        return await asyncio.gather(*calls)

    results = asyncio.run(two())
    assert len({r.info["seed"] for r in results}) == 2 == len(here.jobs("async owl"))


def test_a_size_no_model_makes_is_brought_near(api: webuiapi.WebUIApi):
    result = api.txt2img(prompt="odd owl", width=100, height=72, steps=1)
    assert result.image.size == (96, 80)
    said = " ".join(result.info["warnings"])
    assert "width: 96 is used instead of 100" in said and "height: 80 is used" in said
    result = api.txt2img(prompt="tiny owl", width=1, height=64, steps=1, send_images=False)
    assert result.images == [] and result.info["width"] == 16


def test_progress_until_exactly_nothing(here: House, api: webuiapi.WebUIApi):
    found = {}
    thread = threading.Thread(
        target=lambda: found.update(
            result=api.txt2img(prompt="slow owl grows sleep=0.3", width=64, height=64, n_iter=2)
        )
    )
    thread.start()
    other = webuiapi.WebUIApi(port=here.port)
    seen = until(lambda: (p := other.get_progress())["state"]["sampling_step"] >= 2 and p, 30)
    assert 0 < seen["progress"] < 1 and seen["state"]["job"] == "txt2img"
    assert seen["state"]["job_count"] == 2 and seen["state"]["sampling_steps"] == 8
    assert seen["eta_relative"] >= 0
    grown = until(lambda: (p := other.get_progress())["current_image"] and p, 30)
    assert Image.open(io.BytesIO(base64.b64decode(grown["current_image"]))).size == (12, 8)
    later = until(lambda: (p := other.get_progress())["state"]["job_no"] == 1 and p, 30)
    assert later["progress"] > seen["progress"]
    thread.join()
    idle = other.get_progress()
    assert idle["progress"] == 0.0 and idle["state"]["job_count"] == 0
    other.util_wait_for_ready()
    assert len(found["result"].images) == 2
    other.session.close()


def test_a_second_pass_is_our_refining(api: webuiapi.WebUIApi):
    asked = txt2img_of({"prompt": "a", "width": 64, "height": 64, "enable_hr": True}, ABLE)
    assert asked.fields["upscale"] == {"factor": 2.0, "method": "refine", "strength": 0.7}
    raw = {
        "enable_hr": True,
        "hr_scale": 9,
        "hr_upscaler": "R-ESRGAN 4x+",
        "denoising_strength": 0.3,
    }
    asked = txt2img_of({"prompt": "a", "width": 64, "height": 64} | raw, ABLE)
    assert asked.fields["upscale"] == {"factor": 4.0, "method": "refine", "strength": 0.3}
    assert [w.partition(":")[0] for w in asked.warnings] == ["hr_scale", "hr_upscaler"]
    assert txt2img_of({"prompt": "a", "enable_hr": True, "hr_upscaler": "4"}, ABLE).warnings
    plain = txt2img_of({"prompt": "a", "enable_hr": False, "hr_scale": 2}, ABLE)
    assert "upscale" not in plain.fields
    with pytest.raises(SteadyError):
        txt2img_of({"prompt": "a", "enable_hr": True, "hr_scale": "large"}, ABLE)


def test_interrupt_ends_its_own_and_nothing_else(here: House, api: webuiapi.WebUIApi):
    here.root.drop("other.yaml", "prompt: unconcerned owl\npriority: bulk\nnot_before: 2099-01-01")
    found = {}
    thread = threading.Thread(
        target=lambda: found.update(
            result=api.txt2img(prompt="stopped owl sleep=0.3", width=64, height=64, n_iter=2)
        )
    )
    thread.start()
    here.running("stopped owl")
    other = webuiapi.WebUIApi(port=here.port)
    assert other.interrupt() == {}
    thread.join()
    assert found["result"].images == []
    assert any("0 of 2 pictures" in warning for warning in found["result"].info["warnings"])
    assert {job["state"] for job in here.jobs("stopped owl")} == {"cancelled"}
    assert here.made("stopped owl") == 1
    assert [job["state"] for job in until(lambda: here.jobs("unconcerned"))] == ["queued"]
    other.session.close()


def test_a_name_alone_makes_nothing_this_doors_own(here: House, tmp_path: Path):
    held = tmp_path / "held"
    held.touch()
    mine = json.dumps({"prompt": f"namesake owl held={held}", "width": 64, "height": 64}).encode()
    with urllib.request.urlopen(f"{here.url}/jobs?filename=a1111.json", mine):
        here.running("namesake owl")
    assert ask(here, "POST", "/interrupt") == (200, {})
    (job,) = here.jobs("namesake owl")
    assert (job["state"], job["cancel_requested"]) == ("generating", False)
    held.unlink()
    until(lambda: here.jobs("namesake owl")[0]["state"] == "completed")


def test_skip_ends_one_picture(here: House, api: webuiapi.WebUIApi):
    found = {}
    thread = threading.Thread(
        target=lambda: found.update(
            result=api.txt2img(prompt="skipped owl sleep=0.2", width=64, height=64, n_iter=2)
        )
    )
    thread.start()
    here.running("skipped owl")
    other = webuiapi.WebUIApi(port=here.port)
    assert other.skip() is None
    thread.join()
    assert len(found["result"].images) == 1
    assert sorted(j["state"] for j in here.jobs("skipped owl")) == ["cancelled", "completed"]
    other.session.close()


def test_options_models_samplers_and_the_lists(here: House, api: webuiapi.WebUIApi, capsys):
    options = api.get_options()
    assert options["sd_model_checkpoint"] == api.util_get_current_model() == "scripted"
    assert options["samples_format"] == "png"
    assert api.set_options(options) is None  # the whole back, as open-webui does
    api.util_set_model("script")
    assert set(api.util_get_model_names()) == {"scripted", "starter", "Tongyi-MAI/Z-Image-Turbo"}
    assert api.util_get_sampler_names() == ["Euler"]
    (here.root.folder / "upscalers").mkdir()
    (here.root.folder / "upscalers" / "net.safetensors").touch()
    assert api.util_get_scheduler_names() == ["simple"]
    for listed in (
        api.get_latent_upscale_modes, api.get_sd_vae, api.get_loras,
        api.get_prompt_styles, api.get_hypernetworks, api.get_face_restorers,
        api.get_realesrgan_models,
    ):  # fmt: skip
        assert listed() == []
    assert [each["name"] for each in api.get_upscalers()] == ["None", "Lanczos", "Nearest", "net"]
    assert api.get_embeddings() == {"loaded": {}, "skipped": {}}
    assert api.get_scripts() == {"txt2img": [], "img2img": []}
    assert api.get_memory() == {"ram": {}, "cuda": {}} and api.get_cmd_flags() == {}
    assert api.refresh_checkpoints() is None
    refused = api.set_options({"sd_model_checkpoint": "sd-xl"})
    assert refused["error"] == "model_not_found" and "scripted" in refused["detail"]


def test_png_info_reads_what_was_made(api: webuiapi.WebUIApi):
    made = api.txt2img(prompt='an owl, "drawn"', width=64, height=96, seed=11, steps=3)
    told = api.png_info(made.image)
    assert told.info.startswith('an owl, "drawn"\nSteps: 3, Sampler: Euler')
    assert told.info == made.info["infotexts"][0]
    assert (told.parameters["Seed"], told.parameters["Size-1"]) == (11, 64)
    assert api.png_info(Image.new("RGB", (16, 16))).info == ""


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"enable_hr": True, "hr_scale": [2]}, "hr_scale"),
        ({"script_name": "x/y/z plot"}, "script_name"),
        ({"alwayson_scripts": {"ControlNet": {"args": []}}}, "alwayson_scripts"),
        ({"n_iter": 1000}, "batch_size"),
        ({"seed": 2**70}, "seed"),
        ({"prompt": ""}, "prompt"),
        ({"override_settings": {"sd_model_checkpoint": "sd-xl"}}, "model"),
    ],
)
def test_what_cannot_be_made_is_refused_by_name(api: webuiapi.WebUIApi, asked: dict, field: str):
    with pytest.raises(RuntimeError) as caught:
        api.txt2img(**({"prompt": "never", "width": 64, "height": 64} | asked))
    status, text = caught.value.args
    body = json.loads(text)
    assert status in (404, 422) and field in body["detail"]
    assert set(body) == {"error", "detail", "body", "errors"}


def test_a_picture_that_fails_says_why(here: House, api: webuiapi.WebUIApi):
    with pytest.raises(RuntimeError) as caught:
        api.txt2img(prompt="an owl nan", width=64, height=64)
    status, text = caught.value.args
    assert status == 500 and json.loads(text)["error"] == "non_finite"
    assert len(here.jobs("an owl nan")) == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # webuiapi's use of aiohttp
def test_basic_and_bearer(tmp_path):
    with house(tmp_path / "root", token="secret") as here:
        wrong = webuiapi.WebUIApi(port=here.port, username="me", password="no")
        assert wrong.get_options()["error"] == "unauthorized"
        right = webuiapi.WebUIApi(port=here.port, username="me", password="secret")
        assert right.txt2img(prompt="an owl", width=64, height=64, steps=1).image.size == (64, 64)
        request = urllib.request.Request(
            f"{here.url}/sdapi/v1/options", headers={"Authorization": "Bearer secret"}
        )
        with urllib.request.urlopen(request) as got:
            assert json.load(got)["sd_model_checkpoint"] == "scripted"

        async def asynchronously() -> Any:
            return await right.txt2img(
                prompt="an async owl", width=64, height=64, steps=1, use_async=True
            )

        assert asyncio.run(asynchronously()).image.size == (64, 64)
        wrong.session.close()
        right.session.close()


def test_no_address_of_other_services_is_open_without_the_token(tmp_path):
    with Bench(tmp_path, token="secret") as bench:
        routes = [
            (method.lower(), re.sub(r"[{}]|:path", "", path))
            for made in (a1111, openai, openai_batch)
            for method, path in routes_of(made, bench)
        ]
        assert len(routes) >= 40
        for method, path in routes:
            answer = getattr(bench.client, method)(path)
            assert answer.status_code == 401, path
            if path.startswith("/v1/"):
                assert answer.json()["error"]["code"] == "invalid_api_key"
            else:
                assert answer.json()["error"] == "unauthorized"
        bench.client.headers["authorization"] = "Bearer secret"
        for path in ("/v1/images/nothing", "/sdapi/v1/nothing"):
            assert bench.client.post(path, json={}).status_code == 404
        assert bench.client.get("/v1/images/generations").headers["allow"] == "POST"


def routes_of(part, bench: Bench) -> list[tuple[str, str]]:
    door = bench.app.state.door
    anything: Any = None
    router = {
        a1111: lambda: a1111.routes(door, anything),
        openai: lambda: openai.routes(door, anything, None),
        openai_batch: lambda: openai_batch.routes(door, anything, None),
    }[part]()
    return [(m, r.path) for r in router.routes if isinstance(r, APIRoute) for m in r.methods]


# -- back ends that others wrote, as they ask


def ask(here: House, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(
        f"{here.url}/sdapi/v1{path}", data, {"Content-Type": "application/json"} | headers,
        method=method,
    )  # fmt: skip
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.load(answer)
    except HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_open_webui(here: House):
    basic = {"authorization": "Basic " + base64.b64encode(b"user:any").decode()}
    status, options = ask(here, "GET", "/options", **basic)
    assert status == 200
    assert ask(here, "POST", "/options", options, **basic) == (200, None)
    status, models = ask(here, "GET", "/sd-models", **basic)
    assert models[0]["title"] and models[0]["model_name"]
    body = {"prompt": "an owl for open-webui", "batch_size": 1, "width": 96, "height": 64}
    for more in ({}, {"steps": 50}, {"negative_prompt": "fog"}):
        status, answer = ask(here, "POST", "/txt2img", body | more, **basic)
        assert status == 200 and isinstance(json.loads(answer["info"]), dict)
        [image] = answer["images"]
        assert Image.open(io.BytesIO(base64.b64decode(image, validate=True))).size == (96, 64)


def test_sillytavern(here: House):
    for path in ("/options", "/sd-models", "/samplers", "/schedulers", "/upscalers", "/sd-vae",
                 "/latent-upscale-modes", "/sd-modules"):  # fmt: skip
        status, body = ask(here, "GET", path)
        assert status == 200 and isinstance(body, dict if path == "/options" else list), path
    status, progress = ask(here, "GET", "/progress?skip_current_image=false")
    assert progress["progress"] == 0.0 and progress["state"]["job_count"] == 0
    body = {
        "prompt": "an owl for SillyTavern", "negative_prompt": "", "sampler_name": "DPM++ 2M",
        "scheduler": "Karras", "steps": 20, "cfg_scale": 7, "width": 96, "height": 64, "seed": -1,
        "restore_faces": False, "enable_hr": False, "hr_upscaler": "Latent", "hr_scale": 1,
        "hr_additional_modules": [], "denoising_strength": 0.7, "hr_second_pass_steps": 0,
        "override_settings": {"CLIP_stop_at_last_layers": 1, "sd_vae": "Automatic"},
        "override_settings_restore_afterwards": True, "clip_skip": 1, "save_images": True,
        "send_images": True, "do_not_save_grid": False, "do_not_save_samples": False,
    }  # fmt: skip
    status, answer = ask(here, "POST", "/txt2img", body)
    assert status == 200, answer
    assert Image.open(io.BytesIO(base64.b64decode(answer["images"][0]))).size == (96, 64)
    said = " ".join(json.loads(answer["info"])["warnings"])
    assert "'DPM++ 2M'" in said and "override_settings has no effect" in said


def test_a_caller_that_hangs_up_takes_its_waiting_picture_along(here: House, tmp_path: Path):
    import http.client

    def call(prompt: str) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", here.port)
        body = json.dumps({"prompt": prompt, "width": 64, "height": 64})
        connection.request("POST", "/sdapi/v1/txt2img", body, {"Content-Type": "application/json"})
        return connection

    first = call("blocking owl sleep=0.2")
    here.running("blocking owl")
    second = call("waiting owl")
    until(lambda: here.jobs("waiting owl"))
    second.close()
    until(lambda: here.jobs("waiting owl")[0]["state"] == "cancelled")
    assert first.getresponse().status == 200
    first.close()
    # One that runs goes on, and can still be interrupted.
    held = tmp_path / "held"
    held.touch()
    left = call(f"left owl held={held}")
    here.running("left owl")
    left.close()
    until(lambda: ask(here, "GET", "/progress")[1]["state"]["job_count"] == 0)
    assert here.jobs("left owl")[0]["state"] == "generating"
    assert ask(here, "POST", "/interrupt") == (200, {})
    until(lambda: here.jobs("left owl")[0]["state"] == "cancelled")


@pytest.mark.parametrize("path", ["/txt2img", "/png-info", "/options"])
@pytest.mark.parametrize(
    "body",
    [b"", b"null", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"prompt": 1, "image": 1}',
     b'{"prompt": "x", "width": "wide", "image": "%%%"}', b'{"prompt": "x", "steps": 1e400}',
     b'{"prompt": "\\ud800", "image": "AAAA", "sd_model_checkpoint": 3}',
     b'{"prompt": "x", "cfg_scale": "seven", "image": "data:,", "sd_model_checkpoint": []}',
     b'{"prompt": "x", "seed": -7, "image": "", "sd_model_checkpoint": "y"}'],
)  # fmt: skip
def test_no_body_is_a_fault_of_ours(here: House, path: str, body: bytes):
    status, said = ask(here, "POST", path, body)
    options = path == "/options" and body.startswith(b'{"prompt"') and b"checkpoint" not in body
    if options and b"1e400" not in body:  # any options are taken
        assert (status, said) == (200, None)
    else:
        assert 400 <= status < 500, said
        assert set(said) == {"error", "detail", "body", "errors"}
    assert ask(here, "GET", "/nothing")[1]["error"] == "not_found"


def test_numbers_and_truth_values_may_come_as_text():
    said = {
        "prompt": "12", "width": "512", "height": "256.0", "steps": "4", "cfg_scale": "1.0",
        "seed": "-1", "batch_size": "2", "enable_hr": "false", "send_images": "False",
        "restore_faces": "false", "subseed": "-1",
    }  # fmt: skip
    asked = txt2img_of(said, Limits().usual)
    assert asked.fields["prompt"] == "12" and asked.fields["count"] == 2
    assert (asked.fields["width"], asked.fields["height"]) == (512, 256)
    assert asked.fields["num_inference_steps"] == 5
    assert not asked.send_images and not asked.warnings
    for name, text in {"script_name": "True", "steps": "many"}.items():
        with pytest.raises(SteadyError) as caught:
            txt2img_of({"prompt": "x", name: text}, Limits().usual)
        assert caught.value.problems[0].key == name


def test_loras_inside_a_prompt_are_read_and_their_kin_named():
    prompt = "a fox <lora:ink:0.8>, 3 < 4 > 2 <lora:b/c:1:0.5><lyco:d><hypernet:e:1><lora:f:x>"
    asked = txt2img_of({"prompt": prompt}, Limits().usual)
    assert asked.fields["prompt"] == "a fox , 3 < 4 > 2 "
    assert asked.fields["lora"] == [
        {"name": "ink", "weight": 0.8}, {"name": "b/c", "weight": 0.5}, {"name": "d", "weight": 1.0},
    ]  # fmt: skip
    raw = {"prompt": prompt, "init_images": ["aGk="]}
    begun = img2img_of(raw, Limits().usual, lambda data, name: "sha256:0")
    assert (begun.fields["prompt"], begun.fields["lora"]) == (
        asked.fields["prompt"], asked.fields["lora"],
    )  # fmt: skip
    for left in ("<hypernet:e:1>", "<lora:f:x>"):
        assert any(left in warning for warning in asked.warnings)
