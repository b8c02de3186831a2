"""The composition of the HTTP door: every part built once, every route hung in one place.

No torch, no model, no watcher is started here: the door reads the record and drops files
into the inbox, so it works while the watcher is down and the watcher works without it.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from fastapi import FastAPI
from starlette.responses import RedirectResponse
from starlette.routing import Route

from api import batches, errors, events, health, inputs, jobs, login, page, seed, telling
from api.compat import a1111, agents, edits, openai, openai_batch
from api.compat.calls import Calls
from api.docs import pages, spec
from api.door import Door
from api.guard import LOGIN, Guard, Rules
from api.page import album, needs as attention
from api.page.pages import Pages
from api.page.paint import filled, static
from api.submit import TABLE_BODY, Submissions
from api.views import Views
from watcher.config import Config
from watcher.errors import SteadyError
from watcher.log import ThrottledLog
from watcher.pictures.outputs import Outputs
from watcher.program import installed_version
from watcher.store import JobStore
from watcher.suffixes import MAX_PICTURE

_LINES = 60  #: a minute that the log has of each kind of refusal
#: Bytes of a body where they may be more or fewer than elsewhere.
_BODIES = {
    LOGIN: login.MAX_FORM,
    "/jobs": TABLE_BODY,
    "/v1/files": openai_batch.ROOM,
    "/sdapi/v1/png-info": a1111.MAX_PICTURE_BODY,
    "/inputs": MAX_PICTURE,
    "/v1/images/edits": edits.MAX_FORM,
    "/v1/images/variations": edits.MAX_FORM,
    "/sdapi/v1/img2img": a1111.MAX_PICTURES_BODY,
    "/sdapi/v1/extra-single-image": a1111.MAX_PICTURE_BODY,
}


def _prepare(record: JobStore) -> None:
    """Make the record's connections for writing. A record in trouble tells who comes to write."""
    with contextlib.suppress(SteadyError), record.read():
        pass


def create_app(
    config: Config,
    store: JobStore | None = None,
    *,
    streams: int = events.STREAMS,
) -> FastAPI:
    """The application for one root.

    ``store``: the record, else its own connection is opened (and closed at shutdown).
    ``streams``: requests that may stay open at a time. Raises SteadyError bad_config,
    database_trouble, database_damaged.
    """
    own = store is None
    record = store or JobStore(
        config.database_url, synchronous=config.synchronous, checkpointer=False
    )
    door = Door(config, record)
    views = Views(door)
    submissions = Submissions(door)
    outputs = Outputs(config.outputs, embed_metadata=config.embed_metadata)
    rules = Rules.of(config, body_limits=_BODIES)
    throttled = ThrottledLog(_LINES)
    feed = events.Feed(door, views.brief, most=streams)
    calls = Calls(door, submissions, feed)
    tools = agents.Tools(door, views, submissions, feed, token=rules.token)
    for_agents = agents.Agents(tools, door)
    people = Pages(door)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        door.stopping.bind()
        # The first write would else wait half a second for what is imported only to write.
        ready = asyncio.create_task(asyncio.to_thread(_prepare, record))
        async with feed.running():
            yield
            door.stopping.set()
            await for_agents.close()
        await ready
        if own:
            record.close()

    app = FastAPI(
        title="SteadyDiffusion",
        version=installed_version() or "0.0.0",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
        lifespan=lifespan,
        telemetry={"tracing": False, "metrics": False},
    )
    routers = [
        page.routes(door, people, submissions),  # first: at the addresses of the API, for browsers
        album.routes(door, submissions),
        attention.routes(door, views),
        health.routes(door, views),
        seed.routes(door, views, submissions),
        jobs.routes(door, views, submissions, outputs),
        inputs.routes(door),
        events.routes(door, feed),
        batches.routes(door, views),
        telling.routes(door),
        openai.routes(door, calls, rules.token),
        openai_batch.routes(door, calls, rules.token),
        a1111.routes(door, calls),
        login.routes(rules.token, secure=(config.public_url or "").startswith("https:")),
        pages.routes(lambda: app.openapi(), filled),
    ]
    for router in routers:
        app.include_router(router)
    app.openapi = lambda: spec.openapi(app, door.limits())  # type: ignore[method-assign]
    app.router.routes.append(Route(agents.PATH, for_agents, methods=["POST"]))
    icon = RedirectResponse("/static/icon.svg", status_code=301)
    app.router.routes.append(Route("/favicon.ico", icon, include_in_schema=False))
    for address in ("/static/{name}", "/static/{version}/{name}"):
        app.add_route(address, static)
    errors.install(app, routers, page=people.error, log=throttled)
    app.add_middleware(Guard, rules=rules, log=throttled)
    app.state.throttled = throttled
    app.state.door = door
    return app
