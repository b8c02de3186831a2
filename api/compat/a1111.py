"""The API of the Stable Diffusion web UI (A1111) under ``/sdapi/v1``, for clients made for it.

txt2img and img2img are ordinary jobs in the queue whose caller stays on the line (see calls.py). What
those clients always send (20 steps, CFG 7, 512x512, a sampler) was meant for other models: it
is clamped and mapped, never refused, and ``info.warnings`` says how (txt2img.py). Steps count
forwards.
"""

import base64
import dataclasses
import datetime
import functools
import html
import json
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from starlette.responses import Response

from api.bodies import fault, read_object
from api.compat.calls import Call, Calls, Snapshot
from api.compat.img2img import EXTRAS_LANCZOS, extras_of, img2img_of, picture_in
from api.compat.txt2img import Txt2ImgBody, txt2img_of, words_of
from api.door import Door
from api.images import picture_bytes
from watcher.errors import SteadyError
from watcher.jobs import Job, JobState
from watcher.limits import Card
from watcher.log import now_us
from watcher.models.loras import listed_loras
from watcher.models.upscalers import upscaler_names
from watcher.pictures.container import NotAPicture, scan
from watcher.pictures.recipe import parameters_text, recipe_of, request_of_parameters
from watcher.store import JobStore
from watcher.submission import Body

NAME = "a1111"  #: the batch's name, for people
_KEYS = "sdapi/"  #: begins the key of all that came in by this door: a name anybody may give
MAX_PICTURE_BODY = 48 << 20  #: bytes of a png-info body
MAX_PICTURES_BODY = 96 << 20  #: … and of an img2img body
_CHOSEN = "a1111_model"  #: where the record keeps the model that this door was told to use
_VERSION = "SteadyDiffusion"

#: What clients ask for at their start and we have none of.
_EMPTY: dict[str, Any] = {
    "scripts": {"txt2img": [], "img2img": []},
    "script-info": [], "latent-upscale-modes": [], "sd-vae": [], "sd-modules": [],
    "prompt-styles": [], "hypernetworks": [], "face-restorers": [],
    "realesrgan-models": [], "extensions": [], "embeddings": {"loaded": {}, "skipped": {}},
    "cmd-flags": {}, "memory": {"ram": {}, "cuda": {}},
}  # fmt: skip


def routes(door: Door, calls: Calls) -> APIRouter:
    """Everything below ``/sdapi/v1``."""
    router = APIRouter(prefix="/sdapi/v1", tags=["a1111"], include_in_schema=False)
    current = Current(door, calls)
    _making(router, door, calls)
    _choice(router, door)
    _state_routes(router, door, current)
    _stopping(router, current)
    for name, empty in _EMPTY.items():
        _fixed_answer(router, name, empty)
    return router


def _fixed_answer(router: APIRouter, name: str, value: Any) -> None:
    @router.get(f"/{name}")
    async def constant() -> Response:
        return JSONResponse(value)


def _making(router: APIRouter, door: Door, calls: Calls) -> None:
    @router.post("/txt2img")
    async def txt2img(request: Request) -> Response:
        """Answers when the pictures are there; what was interrupted gives fewer."""
        return await made(request, txt2img_of)

    @router.post("/img2img")
    async def img2img(request: Request) -> Response:
        """The same, from a picture."""
        return await made(request, functools.partial(img2img_of, keep=door.keep))

    @router.post("/extra-single-image")
    async def extra_single_image(request: Request) -> Response:
        """A picture, made larger as it is."""
        raw = await read_object(request)
        asked = await run_in_threadpool(extras_of, raw, door.keep)
        _, over = await outcome(request, asked)
        data = await run_in_threadpool(lambda: picture_bytes(door, over.pictures()[0]))
        words = "".join(f"<p>{html.escape(each)}</p>" for each in asked.warnings)
        return JSONResponse({"html_info": words, "image": base64.b64encode(data).decode()})

    async def made(request: Request, read: Callable[..., Txt2ImgBody]) -> Response:
        raw = await read_object(request)
        asked = await run_in_threadpool(_asked, raw, read)
        call, over = await outcome(request, asked)
        return await run_in_threadpool(_answer, raw, asked, call, over)

    async def outcome(request: Request, asked: Txt2ImgBody) -> tuple[Call, Snapshot]:
        body = Body(json.dumps(asked.fields).encode(), ".json", NAME)
        key = f"{_KEYS}{uuid.uuid4()}"
        call = await run_in_threadpool(functools.partial(calls.begin, body, key=key))
        return call, await calls.outcome(request, call)

    def _asked(raw: dict[str, Any], read: Callable[..., Txt2ImgBody]) -> Txt2ImgBody:
        card = _card_of(raw.get("override_settings"), door)
        asked = read(raw, card)
        named = {} if card == door.limits().usual else {"model": card.name}
        return dataclasses.replace(asked, fields=asked.fields | named)

    def _answer(raw: dict[str, Any], asked: Txt2ImgBody, call: Call, over: Snapshot) -> Response:
        try:
            made = over.pictures()
        except SteadyError as error:
            if error.code != "cancelled":
                raise
            made = []  # interrupted: the web UI answers with what there is
        images = [base64.b64encode(picture_bytes(door, job)).decode() for job in made]
        warnings = _all_warnings(asked, call, over)
        card = door.limits().card(asked.fields)
        info = info_of(made or over.jobs, asked, warnings, card)
        answer = {
            "images": images if asked.send_images else [],
            "parameters": raw | dict.fromkeys(raw.keys() & {"init_images", "mask"}),
            "info": json.dumps(info),
        }
        # in ASCII: what is echoed may hold half a character, which UTF-8 cannot say
        return Response(json.dumps(answer), media_type="application/json")

    @router.post("/png-info")
    async def png_info(request: Request) -> Response:
        """The settings a picture carries; an empty text when it carries none."""
        raw = await read_object(request)
        return JSONResponse(await run_in_threadpool(_settings_in, raw.get("image")))


def _choice(router: APIRouter, door: Door) -> None:
    """What there is to choose from."""

    @router.get("/samplers")
    def samplers() -> Response:
        """The one the model has."""
        name, _ = words_of(_card_of(None, door))
        aliases = [name.lower(), f"k_{name.lower()}"]
        return JSONResponse([{"name": name, "aliases": aliases, "options": {}}])

    @router.get("/schedulers")
    def schedulers() -> Response:
        """The one the model has."""
        _, name = words_of(_card_of(None, door))
        entry = {"name": name.lower(), "label": name, "aliases": None}
        return JSONResponse([{**entry, "default_rho": -1, "need_inner_model": False}])

    @router.get("/loras")
    def loras() -> Response:
        """Those that fit the model in use, as ``<lora:NAME:WEIGHT>`` in a prompt names them."""
        usual = door.limits().usual
        found = listed_loras(door.config, [usual])
        return JSONResponse(
            [
                {"name": each["name"], "alias": each["name"], "path": each["file"], "metadata": {}}
                for each in found
                if each["models"]
            ]
        )

    @router.get("/upscalers")
    def upscalers() -> Response:
        """What a picture can be made larger by as it is."""
        names = [*EXTRAS_LANCZOS, *upscaler_names(door.config.upscalers)]
        nothing = {"model_name": None, "model_path": None, "model_url": None, "scale": 4}
        return JSONResponse([{"name": name} | nothing for name in names])

    @router.get("/sd-models")
    def sd_models() -> Response:
        nothing = {"hash": None, "sha256": None, "config": None}
        names = door.limits().names
        return JSONResponse(
            [{"title": name, "model_name": name, "filename": name} | nothing for name in names]
        )


def _state_routes(router: APIRouter, door: Door, current: "Current") -> None:
    """How it stands, and what is set."""

    @router.get("/progress")
    def progress(skip_current_image: bool = False) -> Response:
        """Of the calls of this door that are waited for; exactly 0.0 when there is none."""
        return JSONResponse(current.progress(look=not skip_current_image))

    @router.get("/options")
    def get_options() -> Response:
        return JSONResponse(
            {
                "sd_model_checkpoint": _card_of(None, door).name,
                "samples_format": door.config.image_format,
                "sd_vae": "None",
                "CLIP_stop_at_last_layers": 1,
            }
        )

    @router.post("/options")
    async def set_options(request: Request) -> Response:
        """Any options are taken; but for the model of the calls to come none changes anything."""
        raw = await read_object(request)
        await run_in_threadpool(lambda: door.store.put(_CHOSEN, _card_of(raw, door).name))
        return JSONResponse(None)


def _card_of(settings: Any, door: Door) -> Card:
    """The model that ``settings`` name; else the one this door was told to use before, or the root's.

    Raises SteadyError ``model_not_found``.
    """
    limits = door.limits()
    named = settings.get("sd_model_checkpoint") if isinstance(settings, Mapping) else None
    if named in (None, ""):
        return limits.named(str(door.store.get(_CHOSEN))) or limits.usual
    card = limits.named(named) if isinstance(named, str) else None
    if card is None:
        words = f"GET /sdapi/v1/sd-models names them: {', '.join(limits.names)}."
        raise SteadyError("model_not_found", remedy=words)
    return card


def _stopping(router: APIRouter, current: "Current") -> None:
    @router.post("/interrupt")
    def interrupt() -> Response:
        """Ends the calls of this door; jobs that came in otherwise are not touched."""
        current.stop()
        return JSONResponse({})

    @router.post("/skip")
    def skip() -> Response:
        """Ends the picture being made; the call goes on with its next one."""
        current.stop(only_running=True)
        return JSONResponse(None)

    @router.post("/refresh-checkpoints")
    @router.post("/refresh-loras")
    @router.post("/refresh-vae")
    def refresh() -> Response:
        return JSONResponse(None)


# -- what runs


class Current:
    """The calls of this door that somebody waits for."""

    def __init__(self, door: Door, calls: Calls) -> None:
        self._door = door
        self._store: JobStore = door.store
        self._calls = calls

    def _tickets(self) -> list[str]:
        return [ticket for ticket in self._calls.waited_for() if self._is_ours(ticket)]

    def _is_ours(self, ticket: str) -> bool:
        batch = self._store.batch(ticket)
        return batch is not None and (batch.key or "").startswith(_KEYS)

    def progress(self, *, look: bool) -> dict[str, Any]:
        """What A1111's ``/sdapi/v1/progress`` says: of all that its clients asked for here, in 0..1 and seconds."""
        tickets = self._tickets()
        jobs = [job for ticket in tickets for job in self._store.jobs_of(ticket)]
        open_ = [job for job in jobs if not job.state.ended]
        step = steps = 0
        part = 0.0
        for job in open_:
            entry = self._door.running(job.id) if job.state is JobState.GENERATING else None
            if entry is not None:
                step, steps = int(entry["step"]), max(1, int(entry["steps"]))
                part += min(1.0, step / steps)
        ended = len(jobs) - len(open_)
        busy = bool(tickets)
        done = min(0.99, max(0.01, (ended + part) / max(1, len(jobs)))) if busy else 0.0
        running = [job for job in open_ if job.state is JobState.GENERATING]
        jpeg = self._door.preview(running[0].id) if look and running else None
        etas = [self._door.eta(job, self._door.position(job)) or 0.0 for job in open_]
        return {
            "progress": done,
            "eta_relative": round(max(etas, default=0.0), 1),
            "state": {
                "skipped": False,
                "interrupted": any(job.cancel_requested for job in open_),
                "stopping_generation": False,
                "job": "txt2img" if busy else "",
                "job_count": max(1, len(jobs)) if busy else 0,
                "job_timestamp": _web_ui_time(jobs[0].created_at) if jobs else "0",
                "job_no": ended,
                "sampling_step": step,
                "sampling_steps": steps,
            },
            "current_image": base64.b64encode(jpeg).decode() if jpeg else None,
            "textinfo": None,
        }

    def stop(self, *, only_running: bool = False) -> None:
        """Cancel what is waited for and what this door left running when its caller hung up."""
        chosen = {job.id: job for ticket in self._tickets() for job in self._store.jobs_of(ticket)}
        chosen |= {job.id: job for job in self._store.generating() if self._is_ours(job.ticket)}
        for job in chosen.values():
            if job.state is JobState.GENERATING or (
                job.state is JobState.QUEUED and not only_running
            ):
                try:
                    self._store.cancel(job.id)
                except SteadyError as error:
                    if error.code != "wrong_state":  # it has just ended by itself
                        raise
        if not only_running:
            for ticket in self._tickets():
                batch = self._store.batch(ticket)
                if batch is not None and batch.recorded_at is None:
                    self._store.cancel_batch(ticket)


# -- what comes out


def _all_warnings(asked: Txt2ImgBody, call: Call, over: Snapshot) -> list[str]:
    plan = call.submitted.plan
    found = [*asked.warnings, *(plan.warnings if plan else ())]
    found += [w for job in over.jobs for w in job.warnings]
    ended = sum(job.state is JobState.COMPLETED for job in over.jobs)
    if ended < len(over.jobs) or not over.jobs:
        found.append(f"{ended} of {max(1, len(over.jobs))} pictures were made.")
    return list(dict.fromkeys(found))


def info_of(jobs: list[Job], asked: Txt2ImgBody, warnings: list[str], card: Card) -> dict[str, Any]:
    """What the web UI says of its pictures, with what was mapped in ``warnings``."""
    fields = asked.fields
    seeds = [job.request.seed for job in jobs] or [fields["seed"]]
    prompts = [job.request.prompt for job in jobs] or [fields["prompt"]]
    negative = fields.get("negative_prompt", "")
    recipes = [recipe_of(job, {"model": card.name, **job.facts}) for job in jobs]
    sampler, schedule = words_of(card)
    usual = {
        "sampler": sampler,
        "schedule": schedule,
        "cfg_scale": card.unguided + fields.get("guidance_scale", 0),
        "forwards": card.forwards(fields["num_inference_steps"]),
    }
    told = usual | {k: v for each in recipes[:1] for k, v in each.items() if v is not None}
    return {
        "prompt": prompts[0],
        "all_prompts": prompts,
        "negative_prompt": negative,
        "all_negative_prompts": [negative] * len(prompts),
        "seed": seeds[0],
        "all_seeds": seeds,
        "subseed": -1,
        "all_subseeds": [-1] * len(seeds),
        "subseed_strength": 0,
        "width": fields["width"],
        "height": fields["height"],
        "sampler_name": told["sampler"],
        "cfg_scale": told["cfg_scale"],
        "steps": told["forwards"],
        "batch_size": len(prompts),
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": card.name,
        "sd_model_hash": None,
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": fields.get("strength"),
        "extra_generation_params": {"Schedule type": told["schedule"]},
        "index_of_first_image": 0,
        "infotexts": [parameters_text(recipe) for recipe in recipes],
        "styles": [],
        "job_timestamp": _web_ui_time(jobs[0].created_at if jobs else now_us()),
        "clip_skip": 1,
        "is_using_inpainting_conditioning": False,
        "version": _VERSION,
        "warnings": warnings,
        "job_ids": [job.id for job in jobs],
    }


def _web_ui_time(moment: int) -> str:
    return datetime.datetime.fromtimestamp(moment / 1e6).strftime("%Y%m%d%H%M%S")


def _settings_in(image: Any) -> dict[str, Any]:
    """What ``png-info`` answers. Raises SteadyError when ``image`` is no picture."""
    try:
        text = scan(picture_in(image, "image")).parameters
    except NotAPicture:
        raise fault("out_of_range", "image", "is no whole PNG, WebP or JPEG") from None
    if text is None:
        return {"info": "", "items": {}, "parameters": {}}
    return {"info": text, "items": {"parameters": text}, "parameters": _parameters_told(text)}


def _parameters_told(text: str) -> dict[str, Any]:
    """The settings by the web UI's names."""
    request = request_of_parameters(text) or {}
    found = {
        "Prompt": request.get("prompt", ""),
        "Negative prompt": request.get("negative_prompt", ""),
        "Seed": request.get("seed"),
        "Size-1": request.get("width"),
        "Size-2": request.get("height"),
        "CFG scale": request.get("cfg_scale"),
        "Steps": request.get("forwards"),
    }
    return {name: value for name, value in found.items() if value is not None}
