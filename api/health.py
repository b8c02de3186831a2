"""How the service is: alive, ready, with which models, in numbers; and the queue's one switch.

``/health`` looks only at the watcher's pulse, so it answers whatever else hangs.
``/ready`` looks at everything a picture needs.
"""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from starlette.responses import Response

from api import metrics, models
from api.bodies import json_body, read_model
from api.door import Door
from api.errors import documented, problem
from api.views import Views
from watcher.describe import public
from watcher.errors import SteadyError
from watcher.live import pulse_troubles
from watcher.models.cards import describe_card
from watcher.models.loras import listed_loras
from watcher.program import installed_version


def routes(door: Door, views: Views) -> APIRouter:
    """``/health``, ``/models``, ``/loras``, ``/ready``, ``/metrics`` and ``/queue``."""
    router = APIRouter(tags=["service"])
    _may_be_named(router, door)
    _queue(router, door, views)
    told = installed_version() or "0.0.0"
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
                "model": public(pulse["model"], _MODEL) if pulse.get("model") else None,
                "workers": [public(worker, _WORKER) for worker in pulse.get("workers", ())],
            }
        )

    @router.get("/ready", response_model=models.Readiness, responses=documented("not_ready"))
    def ready() -> Response:
        """May jobs be made right now? 503 with every reason while the answer is no."""
        reasons = list(door.unready())
        if not reasons:
            return JSONResponse({"ready": True})
        problems = [e.as_fault() for e in reasons]
        soon = reasons[0].code == "model_loading"
        message = ("" if soon else "NOT READY: ") + " ".join(e.message for e in reasons)
        remedy = reasons[0].remedy
        return problem(SteadyError("not_ready", message, problems=problems, remedy=remedy))

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

    return router


def models_told(door: Door) -> dict[str, Any]:
    """The models that jobs may name."""
    limits = door.limits()
    told = [describe_card(card, usual=card is limits.usual) for card in limits.cards]
    return {"models": told}


_MODEL = ("name", "why", "starter", "revision", "device", "dtype", "attention", "memory")
_WORKER = (
    "slot",
    "state",
    "model",
    "device",
    "rss",
    "restarts",
    "failures",
    "retry_in",
    "last_death",
)


def _may_be_named(router: APIRouter, door: Door) -> None:
    @router.get("/models", response_model=models.ModelList)
    def list_models() -> Response:
        """The models that jobs may name, whether their files are here, and what each allows."""
        return JSONResponse(models_told(door))

    @router.get("/loras", response_model=models.LoraList)
    def list_loras() -> Response:
        """The LoRAs that jobs may name, what their files say of themselves, and the models they fit."""
        found = listed_loras(door.config, door.limits().cards)
        shown = set(models.LoraView.model_fields)
        return JSONResponse({"loras": [{k: each[k] for k in each if k in shown} for each in found]})


def _queue(router: APIRouter, door: Door, views: Views) -> None:
    @router.get("/queue", response_model=models.QueueView)
    def queue() -> Response:
        """The queue in numbers: counts of all jobs by state, what runs, and when all will be done."""
        return JSONResponse(views.queue())

    @router.post(
        "/queue/pause",
        response_model=models.QueueView,
        openapi_extra=json_body("Pause", required=False),
    )
    async def pause_queue(request: Request) -> Response:
        """Stop handing out jobs. Running ones end; the rest waits, also over a restart, until
        resumed."""
        reason = None
        if await request.body():
            reason = (await read_model(request, models.Pause)).reason
        return await run_in_threadpool(_pause, reason)

    def _pause(reason: str | None) -> Response:
        if not door.store.get("paused"):
            door.store.put("paused", {"by": "http", "reason": reason, "since": door.store.now()})
        return JSONResponse(views.queue())

    @router.post("/queue/resume", response_model=models.QueueView)
    def resume_queue() -> Response:
        """Go on handing out jobs. Also ends a pause that the service made after repeated failures."""
        door.store.drop("paused")
        return JSONResponse(views.queue())

    @router.post("/queue/cancel", response_model=models.Withdrawn)
    def cancel_waiting() -> Response:
        """Cancel all jobs that wait, also held ones and those of files that are being read. What
        runs goes on."""
        return JSONResponse({"cancelled": door.store.withdraw_all()})
