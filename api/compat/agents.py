"""Tools for agents by the Model Context Protocol: ``/mcp``, and ``python -m api.compat.agents`` on stdio.

A tool reads the record and hands in bodies as every other way in does; nothing is decided here. No
answer is large: a picture is one small WebP beside a text with its id and address. A call that
takes longer than 45 seconds answers with the job's id; the job goes on, also when the agent hangs
up. Over HTTP no session is kept, so a restart is not noticed. The library ``mcp`` is loaded at the
first call.
"""

import argparse
import asyncio
import contextlib
import functools
import inspect
import io
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Annotated, Any

from fastapi.concurrency import run_in_threadpool
from PIL import Image
from pydantic import Field, WithJsonSchema
from starlette.types import Receive, Scope, Send

from api import images, links
from api.door import Door
from api.errors import problem
from api.events import Feed
from api.guard import token_of
from api.health import models_told
from api.jobs import cancelled_job
from api.submit import Submissions
from api.views import Views
from watcher import log
from watcher.config import Config
from watcher.errors import SteadyError
from watcher.jobs import Job, JobRequest, JobState
from watcher.models.loras import listed_loras
from watcher.program import extra_missing, installed_version
from watcher.store import JobFilter, JobStore
from watcher.submission import Body

PATH = "/mcp"
NAME = "agent"  #: the batch's name: tells in lists which door a job came in by
WAIT_SECONDS = 45.0  #: clients give up after 60
_LARGEST = 512  #: pixels of a side
_MOST_BYTES = 150 << 10  #: of a picture
_PAGE = 50
_MOST_LORAS = 500

#: What of a job is told.
_TOLD = (
    "id", "state", "prompt", "negative_prompt", "width", "height", "num_inference_steps", "seed",
    "model", "lora", "image_name", "position", "progress", "eta_seconds", "error_code",
    "error_message", "remedy", "warnings",
)  # fmt: skip

Text = Annotated[str, Field(max_length=4000)]
JobId = Annotated[str, Field(max_length=64, description="as generate_image or list_jobs tells it")]


class Tools:
    """What an agent can do. ``token`` signs the addresses of pictures."""

    def __init__(
        self,
        door: Door,
        views: Views,
        submissions: Submissions,
        feed: Feed,
        *,
        token: str | None,
        wait: float = WAIT_SECONDS,
    ) -> None:
        self._door = door
        self._views = views
        self._submissions = submissions
        self._feed = feed
        self._token = token
        self._wait = wait

    async def generate_image(
        self,
        prompt: Text,
        key: Annotated[
            str | None,
            Field(
                max_length=200,
                description="any name for this wish; the same again makes nothing twice",
            ),
        ] = None,
        **fields: Any,
    ) -> list[Any]:
        """Make a picture. Answers with it, or after 45 seconds with the id of the job, which goes
        on: ask get_job, then get_image. Send the same `key` when you try again. A finished picture
        to start from is named as `image`: job:ID."""
        said = {name: value for name, value in fields.items() if value is not None}
        body = Body.of(json.dumps({"prompt": prompt} | said).encode(), f"{NAME}.json")
        self._feed.places.take()
        try:
            done = await run_in_threadpool(self._submissions.submit, body, key or None)
            job = await self._ended(done.batch.ticket)
        finally:
            self._feed.places.give_back()
        return await run_in_threadpool(self._told_with_picture, job, _LARGEST)

    async def _ended(self, job_id: str) -> Job:
        """The job when it has ended, or when waiting has taken long enough."""
        until = time.monotonic() + self._wait
        async with aclosing(self._feed.turns(1.0)) as turns:
            async for _ in turns:
                job = await run_in_threadpool(self._door.find, job_id)
                if job.state.ended or time.monotonic() >= until:
                    return job
        raise SteadyError("stopping")

    def get_job(self, job_id: JobId) -> str:
        """How a job stands: its state, its place in the queue, what went wrong."""
        return _text(self._told(self._door.find(job_id)))

    def get_image(
        self, job_id: JobId, size: Annotated[int, Field(ge=64, le=_LARGEST)] = _LARGEST
    ) -> list[Any]:
        """A finished picture, made smaller, and the address of the whole one."""
        job = self._door.find(job_id)
        images.check_ready(job)
        return self._told_with_picture(job, size)

    def list_jobs(
        self,
        state: JobState | None = None,
        text: Annotated[
            str | None, Field(max_length=200, description="part of prompt, name, file or label")
        ] = None,
        limit: Annotated[int, Field(ge=1, le=_PAGE)] = 20,
    ) -> str:
        """The newest jobs."""
        chosen = JobFilter(state=state, text=text)
        found = self._door.store.jobs(chosen, limit=limit)
        return _text({"jobs": [self._told(job, place=False) for job in found]})

    def cancel_job(self, job_id: JobId) -> str:
        """Cancel a job: a waiting one ends at once, a running one within a step."""
        return _text(self._told(cancelled_job(self._door, job_id)))

    def list_models(self) -> str:
        """The models that `model` may name, and what each allows."""
        return _text(models_told(self._door))

    def list_loras(self) -> str:
        """The LoRAs that `lora` may name."""
        told = listed_loras(self._door.config, self._door.limits().cards)
        hidden = ("file", "sha256", "tensors_sha256")
        for each in told[:_MOST_LORAS]:
            for name in hidden:
                each.pop(name, None)
        return _text({"loras": told[:_MOST_LORAS]})

    def queue_status(self) -> str:
        """How many jobs wait, what runs, and what keeps the service from making pictures."""
        reasons = [error.as_dict() for error in self._door.unready()]
        return _text(self._views.queue() | {"reasons": reasons})

    def _told(self, job: Job, *, place: bool = True) -> dict[str, Any]:
        told = self._views.job(job, place=place)
        known = {name: told[name] for name in _TOLD if told.get(name) not in (None, [])}
        if job.pictured:
            known["url"] = links.url_of(job, self._door.config.address, self._token)
        return known

    def _told_with_picture(self, job: Job, size: int) -> list[Any]:
        from mcp.server.mcpserver import Image as Block

        told = self._told(job)
        if "url" in told:
            picture = _small(images.picture_bytes(self._door, job), size)
            return [_text(told), Block(data=picture, format="webp")]
        if not job.state.ended:
            told["next"] = "It is not done yet and goes on: ask get_job in a while, then get_image."
        return [_text(told)]


def _text(told: dict[str, Any]) -> str:
    return json.dumps(told, ensure_ascii=False, default=str)


def _small(data: bytes, size: int) -> bytes:
    """A picture as WebP of at most ``size`` pixels a side and _MOST_BYTES."""
    with Image.open(io.BytesIO(data)) as opened:
        picture = opened.convert("RGB")
    picture.thumbnail((size, size), Image.Resampling.LANCZOS)
    for quality in (82, 60, 40, 20):
        out = io.BytesIO()
        picture.save(out, "webp", quality=quality)
        if out.tell() <= _MOST_BYTES:
            break
    return out.getvalue()


def _signature_of(call: Callable[..., Any]) -> inspect.Signature:
    """What ``call`` takes. ``**fields`` are those of a job, which are judged where every job is;
    but for `count`, since an answer shows one picture."""
    own = inspect.signature(call)
    named = {name: each for name, each in own.parameters.items() if name != "fields"}
    told = JobRequest.model_json_schema()["properties"] if "fields" in own.parameters else {}
    more = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[Any, WithJsonSchema(member)],
        )
        for name, member in told.items()
        if name not in (*named, "count")
    ]
    return own.replace(parameters=[*named.values(), *more])


def server_of(tools: Tools) -> Any:
    """The library's server with every tool. Raises SteadyError extra_missing."""
    try:
        from mcp.server.mcpserver import MCPServer
        from mcp.server.mcpserver.exceptions import ToolError
        from mcp_types import ToolAnnotations
    except ImportError:
        raise extra_missing("The server for agents", "the library mcp", "mcp") from None

    def worded(call: Callable[..., Any]) -> Callable[..., Any]:
        """``call``, with errors in our words."""

        @functools.wraps(call)
        async def tool(*args: Any, **given: Any) -> Any:
            try:
                if asyncio.iscoroutinefunction(call):
                    return await call(*args, **given)
                return await run_in_threadpool(call, *args, **given)
            except SteadyError as error:
                words = str(error)
                for fault in error.problems[:5]:
                    more = [fault.message, f"Allowed: {fault.allowed}." if fault.allowed else ""]
                    words += "".join(f" {each}" for each in more if each and each not in words)
                raise ToolError(words) from None

        tool.__signature__ = _signature_of(call)  # type: ignore[attr-defined]
        return tool

    instructions = "Makes pictures from words on this machine, one after another, from a queue."
    server = MCPServer(
        "SteadyDiffusion", instructions=instructions, version=installed_version() or "0.0.0"
    )
    looking: tuple[Callable[..., Any], ...] = (
        tools.get_job, tools.get_image, tools.list_jobs, tools.list_models, tools.list_loras,
        tools.queue_status,
    )  # fmt: skip
    every: list[Callable[..., Any]] = [*looking, tools.generate_image, tools.cancel_job]
    for call in every:
        hints = ToolAnnotations(
            read_only_hint=call in looking,
            destructive_hint=call == tools.cancel_job,
            open_world_hint=False,
        )
        server.add_tool(worded(call), annotations=hints, structured_output=False)
    return server


class Agents:
    """``/mcp``, an application of its own. Token, Host and origin are the guard's matter."""

    def __init__(self, tools: Tools, door: Door) -> None:
        self._tools = tools
        self._door = door
        self._manager: Any = None
        self._ready = asyncio.Event()
        self._begun = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        try:
            async with self._begun:
                if self._manager is None:
                    await self._begin()
        except SteadyError as error:
            await problem(error, path=PATH)(scope, receive, send)
            return
        await self._manager.handle_request(scope, receive, send)

    async def _begin(self) -> None:
        server = await run_in_threadpool(server_of, self._tools)
        from mcp.server.transport_security import TransportSecuritySettings

        server.streamable_http_app(
            stateless_http=True,
            transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),
        )
        self._task = asyncio.create_task(self._run(server.session_manager))
        await self._ready.wait()
        self._manager = server.session_manager

    async def _run(self, manager: Any) -> None:
        """The library wants to be entered and left by one task."""
        async with manager.run():
            self._ready.set()
            await self._door.stopping.wait()

    async def close(self) -> None:
        """Wait for its end."""
        if self._task is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await self._task


def main(arguments: Sequence[str] | None = None) -> int:
    """``steady mcp``: the same tools on stdin and stdout, beside the service; the exit code."""
    parser = argparse.ArgumentParser(prog="steady mcp", description="Tools for agents on stdio.")
    parser.add_argument("--root", default=os.environ.get("STEADY_ROOT", "."), help="folder")
    try:
        config = Config.load(parser.parse_args(arguments).root)
        log.configure("warning")
        asyncio.run(_serve_stdio(config))
    except SteadyError as error:
        print(log.harmless(str(error)), file=sys.stderr)  # noqa: T201
        return error.kind.exit
    except KeyboardInterrupt:
        pass
    return 0


async def _serve_stdio(config: Config) -> None:
    store = JobStore(config.database_url, synchronous=config.synchronous, checkpointer=False)
    with contextlib.closing(store):
        door = Door(config, store)
        door.stopping.bind()
        views = Views(door)
        feed = Feed(door, views.brief)
        tools = Tools(door, views, Submissions(door), feed, token=token_of(config))
        server = server_of(tools)
        async with feed.running():
            await server.run_stdio_async()
            door.stopping.set()


if __name__ == "__main__":
    sys.exit(main())
