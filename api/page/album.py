"""What the page does with pictures it has: make them again, take several home at once.

Drops job files and reads pictures; what is asked to be made again goes the way of any POST.
"""

import json
import re
import shlex
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import StringConstraints
from starlette.responses import Response

from api import models
from api.bodies import KEY
from api.door import Door, is_uuid
from api.errors import documented
from api.images import archive, binary
from api.submit import ON_ITS_WAY, Submissions, accepted
from api.views import Views
from watcher.errors import SteadyError, ValueFault
from watcher.jobs import Card, Job, JobRequest, JobState, input_digest
from watcher.pictures import recipe
from watcher.submission import Body
from watcher.upscaling import USUAL_FACTOR

MOST = 200  #: pictures in one archive of chosen ones

#: As many of these as MOST fit into an address; a server refuses one of more than 64 KiB unread.
ID = Annotated[str, StringConstraints(pattern="^[0-9A-Fa-f-]{1,36}$")]

#: What says how a picture was begun: one that is only made larger is begun with itself.
_BEGINNINGS = frozenset(
    {
        "image", "mask", "strength", "resize", "mask_blur", "mask_invert", "mask_only",
        "mask_padding", "upscale",
    }
)  # fmt: skip
_NUMBER = re.compile(r"_[0-9]{1,6}$")


def routes(door: Door, views: Views, submissions: Submissions) -> APIRouter:
    """``/jobs/images.zip`` and ``/jobs/{job_id}/again``; hang them before the other ``/jobs``."""
    router = APIRouter(prefix="/jobs", tags=["jobs"])

    @router.get(
        "/images.zip",
        response_class=Response,
        responses={
            **documented("image_not_ready", "out_of_range"),
            200: binary("application/zip", "Those of them that there are, as a zip."),
        },
    )
    def chosen_images(
        id: Annotated[list[ID], Query(min_length=1, max_length=MOST, description="ids of jobs")],
    ) -> Response:
        """Some pictures in one archive. Unknown ids and jobs without a picture are left out."""
        found = [door.store.job(one) for one in dict.fromkeys(id) if is_uuid(one)]
        jobs = (j for j in found if j and j.state is JobState.COMPLETED and j.deleted_at is None)
        return archive(door, jobs, "pictures", "None of these has a picture.")

    @router.post(
        "/{job_id}/again",
        status_code=202,
        response_model=models.Accepted,
        responses={
            **documented("out_of_range"),
            202: ON_ITS_WAY,
        },
    )
    def again(
        job_id: str,
        seed: Annotated[
            Literal["same", "new"], Query(description="same: the very same picture")
        ] = "same",
        smaller: Annotated[bool, Query(description="with sides half as long")] = False,
        larger: Annotated[bool, Query(description="its picture, made twice as large")] = False,
        idempotency_key: KEY = None,
    ) -> Response:
        """A new job like this one. Unlike a retry it gets an id and a picture of its own; the old
        ones stay."""
        job = door.find(job_id)
        request = again_of(job.request, new_seed=seed == "new")
        if larger:
            request = larger_of(job)
        elif smaller:
            half = smaller_size(job.request, door.limits().usual)
            if half is None:
                fault = ValueFault("out_of_range", "It cannot be made smaller.")
                raise SteadyError("out_of_range", problems=[fault])
            request |= {"width": half[0], "height": half[1]}
        name = _NUMBER.sub("", job.image_name) or "again"
        body = Body(json.dumps(request, ensure_ascii=False).encode(), ".json", name)
        return accepted(submissions.submit(body, idempotency_key))

    return router


def again_of(request: JobRequest, *, new_seed: bool = False) -> dict[str, Any]:
    """What a new job must say to make the same picture (or, with ``new_seed``, a sister of it)."""
    fields = recipe.again({"request": request.model_dump(mode="json")})
    return {k: v for k, v in fields.items() if not (new_seed and k == "seed")}


def larger_of(job: Job) -> dict[str, Any]:
    """What a new job must say to make the picture of ``job`` larger, as it is."""
    width, height = job.request.final_size
    said = {k: v for k, v in again_of(job.request).items() if k not in _BEGINNINGS}
    started = {"image": f"job:{job.id}", "upscale": USUAL_FACTOR}
    return said | started | {"width": width, "height": height}


def started_from(request: JobRequest) -> list[tuple[str, str]]:
    """What a job starts from, as far as its content is known: sha256 and words for each picture."""
    named = ((request.image, "what it started from"), (request.mask, "its mask"))
    return [(digest, words) for name, words in named if (digest := input_digest(name))]


def smaller_size(request: JobRequest, card: Card) -> tuple[int, int] | None:
    """Half the sides, in steps of 16; None when that is less than the model makes."""
    width, height = ((side or 0) // 32 * 16 for side in (request.width, request.height))
    return (width, height) if min(width, height) >= card.min_side else None


def yaml_of(request: Mapping[str, Any]) -> str:
    """The job as a file for the inbox. JSON's texts and mappings are YAML's."""
    return "".join(f"{k}: {json.dumps(v, ensure_ascii=False)}\n" for k, v in request.items())


def curl_of(request: Mapping[str, Any], base: str, *, token: bool) -> str:
    """The job as a command."""
    body = json.dumps(request, ensure_ascii=False)
    login = ' \\\n  -H "Authorization: Bearer $STEADY_TOKEN"' if token else ""
    return (
        f"curl -sS {shlex.quote(base + '/jobs')}{login} \\\n"
        f"  -H 'Content-Type: application/json' \\\n  -d {shlex.quote(body)}"
    )
