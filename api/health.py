"""How the service is: alive, ready, in numbers; and the queue's one switch.

``/health`` looks only at the watcher's pulse, so it answers whatever else hangs.
``/ready`` looks at everything a picture needs.
"""

import shutil
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from pydantic import ValidationError
from starlette.responses import Response

from api import metrics, models
from api.bodies import read_body
from api.door import Door
from api.errors import documented, problem
from api.views import Views
from watcher.errors import ERRORS, SteadyError, ValueFault
from watcher.log import now_us
from watcher.pictures.recipe import model_name

_PROBE = "api_probe"  #: the settings key written to learn whether the record can be written


def installed_version() -> str:
    """The installed version; 0.0.0 in a tree that was never installed."""
    try:
        return metadata.version("steadydiffusion")
    except metadata.PackageNotFoundError:
        return "0.0.0"


def routes(door: Door, views: Views) -> APIRouter:
    """``/health``, ``/ready``, ``/metrics`` and ``/queue``."""
    router = APIRouter(tags=["service"])
    told = installed_version()
    registry = CollectorRegistry(auto_describe=False)
    registry.register(metrics.Figures(door, told))

    @router.get("/health", response_model=models.Health)
    def health() -> Response:
        """Is it alive, and how well? Always 200 while the process lives; `reasons` say in words
        what is wrong."""
        pulse = door.pulse()
        reasons = [e.as_dict() for e in pulse_troubles(pulse)]
        inbox = pulse.get("inbox") or {}
        return JSONResponse(
            {
                "status": "degraded" if reasons else "healthy",
                "version": told,
                "reasons": reasons,
                "notices": [str(n) for n in (*pulse.get("notices", ()), *inbox.get("notices", ()))],
                "watcher": {
                    "alive": pulse["alive"],
                    "state": pulse.get("state"),
                    "standbys": pulse.get("standbys", 0),
                },
                "model": _public_members(pulse.get("model"), _MODEL),
                "workers": [
                    _public_members(worker, _WORKER) for worker in pulse.get("workers", ())
                ],
            }
        )

    @router.get("/ready", response_model=models.Readiness, responses=documented("not_ready"))
    def ready() -> Response:
        """May jobs be made right now? 503 with every reason while the answer is no."""
        reasons = list(unready(door))
        if not reasons:
            return JSONResponse({"ready": True})
        problems = [ValueFault(e.code, e.message, remedy=e.remedy) for e in reasons]
        message = " ".join(e.message for e in reasons)
        return problem(SteadyError("not_ready", message, problems=problems))

    @router.get(
        "/metrics",
        name="metrics",
        response_class=Response,
        responses={
            200: {
                "description": "Prometheus text; computed from the record, so it survives restarts.",
                "content": {"text/plain": {"schema": {"type": "string"}}},
            }
        },
    )
    def figures() -> Response:
        """Figures for Prometheus. No prompt, id or file name is in any label."""
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    @router.get("/queue", response_model=models.QueueView)
    def queue() -> Response:
        """The queue in numbers: counts of all jobs by state, what runs, and when all will be done."""
        return JSONResponse(views.queue())

    @router.post(
        "/queue/pause",
        response_model=models.QueueView,
        responses=documented("wrong_type", "bad_content_type", "bad_request"),
        openapi_extra={
            "requestBody": {
                "required": False,
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Pause"}}},
            }
        },
    )
    async def pause_queue(request: Request) -> Response:
        """Stop handing out jobs. Running ones end; the rest waits, also over a restart, until
        resumed."""
        reason = None
        if await request.body():
            reason = _reason(await read_body(request, "application/json"))
        return await run_in_threadpool(_pause, reason)

    def _pause(reason: str | None) -> Response:
        if not door.store.get("paused"):
            door.store.put("paused", {"by": "http", "reason": reason, "since": now_us()})
        return JSONResponse(views.queue())

    @router.post("/queue/resume", response_model=models.QueueView)
    def resume_queue() -> Response:
        """Go on handing out jobs. Also ends a pause that the service made after repeated failures."""
        door.store.drop("paused")
        return JSONResponse(views.queue())

    return router


_MODEL = ("name", "why", "starter", "revision", "device", "dtype", "attention", "memory")
_WORKER = ("slot", "state", "device", "rss", "restarts", "failures", "retry_in", "last_death")


def _public_members(entry: dict[str, Any] | None, names: Sequence[str]) -> dict[str, Any] | None:
    """What is everybody's business: never a path of this machine."""
    if entry is None:
        return None
    told = {name: entry[name] for name in names if entry.get(name) is not None}
    if "name" in told:
        told["name"] = model_name(str(told["name"]))
    return told


def _reason(data: bytes) -> str | None:
    try:
        return models.Pause.model_validate_json(data).reason
    except ValidationError:
        fault = ValueFault("wrong_type", "`reason` must be a text of at most 500 characters.")
        raise SteadyError("wrong_type", problems=[fault]) from None


# -- reasons


def pulse_troubles(pulse: dict[str, Any]) -> Iterator[SteadyError]:
    """What the watcher's pulse says is wrong, also where the queue goes on all the same."""
    yield from _holding(pulse)
    if pulse["alive"]:
        for words in (pulse.get("inbox") or {}).get("problems", ()):
            yield SteadyError("inbox_degraded", str(words))
        yield from map(_as_error, pulse.get("warnings", ()))


def _holding(pulse: dict[str, Any]) -> Iterator[SteadyError]:
    """Why nothing is begun; the absence of the pulse most of all."""
    if pulse["alive"]:
        yield from map(_as_error, pulse.get("trouble", ()))
    else:
        yield SteadyError("watcher_down")


def _as_error(entry: dict[str, Any]) -> SteadyError:
    code = entry["code"] if entry.get("code") in ERRORS else "internal"
    return SteadyError(code, entry.get("message", ""), remedy=entry.get("remedy", ""))


def unready(door: Door) -> Iterator[SteadyError]:
    """Every reason why no picture can be made now."""
    if door.stopping:
        yield SteadyError("stopping")
    pulse = door.pulse()
    reasons = list(_holding(pulse))
    yield from reasons
    if pulse["alive"] and not _has_hands(pulse):
        yield SteadyError("model_loading")
    try:
        door.store.put(_PROBE, now_us() // 60_000_000)
        paused = door.store.get("paused")
    except SteadyError as error:
        yield error
        return
    if paused and paused.get("by") == "failures":
        yield SteadyError("repeated_failures", paused.get("reason") or "")
    yield from _disk_warnings(door, {error.code for error in reasons})


def _disk_warnings(door: Door, seen: set[str]) -> Iterator[SteadyError]:
    try:
        free = shutil.disk_usage(door.outputs).free
    except OSError:
        if "folder_gone" not in seen:
            yield SteadyError("folder_gone", "The outputs folder is not there.")
        return
    if free < door.config.min_free_disk and "disk_full" not in seen:
        yield SteadyError("disk_full", "Less disk is free than `min_free_disk` asks for.")


def _has_hands(pulse: dict[str, Any]) -> bool:
    """Is there a worker whose model is loaded, or one that sleeps until work comes?"""
    return any(w.get("state") in _WORKING for w in pulse.get("workers", ()))


_WORKING = {"ready", "busy", "unloaded"}
