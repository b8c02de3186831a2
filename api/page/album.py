"""What the page does with pictures it has: make them again, one or many; take several home at once.

Drops job files and reads pictures; what is asked to be made again goes the way of any POST.
"""

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import StringConstraints
from starlette.responses import Response

from api import models
from api.bodies import KEY, json_body, read_model
from api.door import Door, is_uuid
from api.errors import documented
from api.images import archive, binary
from api.paging import RATING
from api.submit import ON_ITS_WAY, Submissions, accepted
from watcher.chosen import MOST_CHOSEN, again_of, larger_of, made_of, rating_range, smaller_size
from watcher.errors import SteadyError, ValueFault
from watcher.jobs import Job, JobRequest, input_digest
from watcher.store import JobFilter
from watcher.submission import Body

#: As many of these as MOST_CHOSEN fit into an address; a server refuses one of more than 64 KiB unread.
ID = Annotated[str, StringConstraints(pattern="^[0-9A-Fa-f-]{1,36}$")]

_NUMBER = re.compile(r"_[0-9]{1,6}$")


def routes(door: Door, submissions: Submissions) -> APIRouter:
    """``/jobs/images.zip``, ``/jobs/again`` and ``/jobs/{job_id}/again``; hang them before the other ``/jobs``."""
    router = APIRouter(prefix="/jobs", tags=["jobs"])
    _taken_home(router, door)
    _made_again(router, door, submissions)
    return router


def _taken_home(router: APIRouter, door: Door) -> None:
    """Several pictures at once."""

    @router.get(
        "/images.zip",
        response_class=Response,
        responses={
            **documented("image_not_ready", "out_of_range"),
            200: binary("application/zip", "Those of them that there are, as a zip."),
        },
    )
    def chosen_images(
        id: Annotated[
            list[ID] | None, Query(max_length=MOST_CHOSEN, description="ids of jobs")
        ] = None,
        rating: RATING = None,
    ) -> Response:
        """Some pictures in one archive: those with these ids, or all that are rated so. Unknown ids
        and jobs without a picture are left out. A rating goes along as XMP:Rating."""
        if not id and rating is None:
            words = "Name pictures by `id`, or a `rating`."
            raise ValueFault("out_of_range", words, key="id").error()
        if rating is None:
            jobs = _pictured(door, id or ())
        else:  # the newest first
            wanted = JobFilter(pictured=True, rating=rating_range(rating))
            jobs = door.store.all_jobs(wanted)
        return archive(door, jobs, "pictures", "None of these has a picture.")


def _made_again(router: APIRouter, door: Door, submissions: Submissions) -> None:
    """New jobs like those of pictures there are: of many, of one."""

    @router.post(
        "/again",
        name="many_again",
        status_code=202,
        response_model=models.Accepted,
        responses={**documented("bad_yaml", "image_not_ready"), 202: ON_ITS_WAY},
        openapi_extra=json_body("Again"),
    )
    async def many_again(request: Request, idempotency_key: KEY = None) -> Response:
        """One batch made of many pictures: a new job like each of them, with some fields changed.
        `{"upscale": 2}` makes them larger as they are, `{"count": 4}` four variations of each,
        another `prompt` or `lora` keeps the seeds."""
        what = await read_model(request, models.Again)
        return await run_in_threadpool(_many_again, what, idempotency_key)

    def _many_again(what: models.Again, key: str | None) -> Response:
        jobs = list(_pictured(door, what.ids))
        if not jobs:
            raise SteadyError("image_not_ready", "None of these has a picture.")
        made = made_of(jobs, what.fields, new_seed=what.seeds == "new")
        data = json.dumps(made, ensure_ascii=False).encode()
        return accepted(submissions.submit(Body(data, ".json", "chosen"), key))

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
                raise ValueFault("out_of_range", "It cannot be made smaller.").error()
            request |= {"width": half[0], "height": half[1]}
        name = _NUMBER.sub("", job.image_name) or "again"
        body = Body(json.dumps(request, ensure_ascii=False).encode(), ".json", name)
        return accepted(submissions.submit(body, idempotency_key))


def _pictured(door: Door, ids: Sequence[str]) -> Iterator[Job]:
    """The jobs with these ids that have a picture, each once, in this order."""
    for one in dict.fromkeys(ids):
        job = door.store.job(one) if is_uuid(one) else None
        if job and job.pictured:
            yield job


def started_from(request: JobRequest) -> list[tuple[str, str]]:
    """What a job starts from, as far as its content is known: sha256 and words for each picture."""
    named = ((request.image, "what it started from"), (request.mask, "its mask"))
    return [(digest, words) for name, words in named if (digest := input_digest(name))]


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
