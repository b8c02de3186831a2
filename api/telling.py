"""``/webhooks/deliveries`` and ``/notify``: what others were told, and what they could not be."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse
from starlette.responses import Response

from api import models
from api.door import Door
from api.errors import documented
from api.paging import Cursor, Limit, cursor_of, link_of, seq_of, without_nul
from watcher.addresses import without_query
from watcher.describe import utc_time
from watcher.errors import SteadyError
from watcher.store import Delivery, DeliveryState


def routes(door: Door) -> APIRouter:
    """Everything about telling others."""
    router = APIRouter(tags=["telling others"])
    store = door.store

    @router.get("/webhooks/deliveries", response_model=models.DeliveryPage)
    def list_deliveries(
        request: Request,
        state: Annotated[DeliveryState | None, Query(description="only these")] = None,
        cursor: Cursor = None,
        limit: Limit = 50,
    ) -> Response:
        """What was told to whom, what waits, and what was given up; newest first. Those that are
        over are kept for a while: the newest 10,000."""
        rows = store.deliveries(state=state, before_seq=seq_of(cursor), limit=limit + 1)
        following = cursor_of(rows[limit - 1].seq) if len(rows) > limit else None
        body = {"deliveries": [_delivery_told(each) for each in rows[:limit]], "next": following}
        return JSONResponse(body, headers=link_of(request, following))

    @router.post(
        "/webhooks/deliveries/{delivery_id}/resend",
        response_model=models.DeliveryView,
        responses=documented("delivery_not_found"),
    )
    def resend_delivery(delivery_id: str) -> Response:
        """Try a delivery again from the first attempt, with the same id."""
        return JSONResponse(_delivery_told(store.resend(without_nul(delivery_id) or "")))

    @router.post("/notify/test", response_model=models.Tested, responses=documented("bad_request"))
    def test_notifications() -> Response:
        """Notify everybody whom `notify` names; in quiet hours they hear it at their end."""
        told = store.tell("notify.test", {})
        if not told:
            raise SteadyError(
                "bad_request",
                "Nobody is to be notified.",
                remedy="Write addresses under `notify` in config.yaml, and start the service anew.",
            )
        return JSONResponse({"told": told})

    return router


def _delivery_told(delivery: Delivery) -> dict[str, Any]:
    """A delivery as HTTP answers it."""
    return {
        "id": delivery.id,
        "type": delivery.event,
        "endpoint": without_query(delivery.endpoint),
        "ticket": delivery.ticket or None,
        "job_id": delivery.job_id,
        "state": delivery.state,
        "attempts": delivery.attempt,
        "created_at": utc_time(delivery.created_at),
        "next_at": utc_time(delivery.next_at) if delivery.state == "pending" else None,
        "ended_at": utc_time(delivery.ended_at),
        "last_status": delivery.last_status,
        "last_error": delivery.last_error,
    }
