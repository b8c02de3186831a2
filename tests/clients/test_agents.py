"""Tools for agents: the official client of the Model Context Protocol against the real service."""

import asyncio
import base64
import io
import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import until
from doors import Bench, running
from house_of_clients import House, house
from mcp.client import Client
from mcp.client.stdio import StdioServerParameters
from PIL import Image

from api.compat import agents
from api.door import Door
from api.events import Feed
from api.submit import Submissions
from api.views import Views
from watcher.jobs import JobRequest

TOOLS = {
    "generate_image", "get_job", "get_image", "list_jobs", "cancel_job", "list_models",
    "list_loras", "queue_status",
}  # fmt: skip
POST = (
    b"POST /mcp HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\n"
    b"Accept: application/json, text/event-stream\r\nConnection: close\r\n%sContent-Length: %d\r\n\r\n%s"
)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with house(tmp_path_factory.mktemp("agents") / "root") as made:
        yield made


def told(result: Any) -> dict[str, Any]:
    """The text of an answer, which is never large."""
    assert not result.is_error, result.content[0].text
    assert len(result.model_dump_json()) < 1 << 20
    return json.loads(result.content[0].text)


def fetched_size(url: str) -> tuple[int, int]:
    with urllib.request.urlopen(url) as whole:
        return Image.open(io.BytesIO(whole.read())).size


def test_an_agent_lists_generates_and_looks(here: House) -> None:
    async def talk() -> None:
        async with Client(f"{here.url}/mcp") as client:
            listed = {tool.name: tool for tool in (await client.list_tools()).tools}
            assert set(listed) == TOOLS
            assert listed["get_job"].annotations.read_only_hint
            assert not listed["generate_image"].annotations.read_only_hint
            assert all(tool.description for tool in listed.values())
            asked = listed["generate_image"].input_schema["properties"]
            assert asked.keys() == JobRequest.model_fields.keys() - {"count"}
            assert asked["strength"]["description"]
            assert told(await client.call_tool("list_models", {}))["models"]
            loras = told(await client.call_tool("list_loras", {}))["loras"]
            assert [lora["name"] for lora in loras] == ["ink", "neon"], "the starter's own"
            assert told(await client.call_tool("queue_status", {}))["reasons"] == []
            wish = {"prompt": "a fox steps=1", "width": 768, "height": 64, "seed": 7, "key": "w1",
                    "label": "by an agent", "metadata": {"for": "a test"}}  # fmt: skip
            made = await client.call_tool("generate_image", wish)
            said = told(made)
            assert (said["state"], said["seed"], said["prompt"]) == (
                "completed",
                7,
                "a fox steps=1",
            )
            block = made.content[1]
            assert (block.type, block.mime_type) == ("image", "image/webp")
            small = base64.b64decode(block.data)
            assert len(small) <= 150 << 10 and max(Image.open(io.BytesIO(small)).size) == 512
            url = said["url"].replace(":8000", f":{here.port}")
            assert await asyncio.to_thread(fetched_size, url) == (768, 64)
            again = told(await client.call_tool("generate_image", wish))
            assert again["id"] == said["id"] and here.made("a fox") == 1
            tiny = await client.call_tool("get_image", {"job_id": said["id"], "size": 64})
            assert max(Image.open(io.BytesIO(base64.b64decode(tiny.content[1].data))).size) == 64
            jobs = told(await client.call_tool("list_jobs", {"state": "completed"}))["jobs"]
            assert said["id"] in [job["id"] for job in jobs]
            [mine] = told(await client.call_tool("list_jobs", {"text": "By An Agent"}))["jobs"]
            assert mine["id"] == said["id"]
            for name, given, word in (
                ("get_job", {"job_id": "nobody"}, "no job"),
                ("get_image", {"job_id": said["id"], "size": 5000}, "512"),
                ("generate_image", {"prompt": "x", "width": 65}, "multiple of 16"),
                ("generate_image", {"prompt": "x", "image": "/etc/passwd"}, "picture is named"),
                ("generate_image", {"prompt": "x", "metadata": [1]}, "`metadata` must be"),
                ("generate_image", {}, "prompt"),
            ):
                wrong = await client.call_tool(name, given)
                assert wrong.is_error and word in wrong.content[0].text, wrong.content[0].text

    asyncio.run(talk())


def test_an_agent_cancels_and_hangs_up(here: House) -> None:
    gate = here.root.folder / "gate"
    gate.touch()

    async def talk() -> None:
        async with Client(f"{here.url}/mcp") as client:
            wish = {"prompt": f"held held={gate}", "key": "held"}
            call = asyncio.create_task(client.call_tool("generate_image", wish))
            await asyncio.to_thread(here.running, "held")
            call.cancel()  # hangs up: the job goes on
            await asyncio.wait({call})
        async with Client(f"{here.url}/mcp") as client:
            [job] = told(await client.call_tool("list_jobs", {"text": "held held"}))["jobs"]
            assert job["state"] == "generating"
            told(await client.call_tool("cancel_job", {"job_id": job["id"]}))
            await asyncio.to_thread(
                until, lambda: here.jobs("held")[0]["state"] == "cancelled", 30, "cancelled"
            )
            late = await client.call_tool("cancel_job", {"job_id": job["id"]})
            assert late.is_error and "cancelled" in late.content[0].text

    asyncio.run(talk())
    gate.unlink()
    assert here.made("held") == 1


def test_strangers_are_kept_out(here: House, tmp_path: Path) -> None:
    body = json.dumps(
        {"jsonrpc": "2.0", "id": 1, "method": "tools/call",
         "params": {"name": "generate_image", "arguments": {"prompt": "a stranger"}}}
    ).encode()  # fmt: skip
    own = f"127.0.0.1:{here.port}".encode()
    for host, more, status in (
        (b"evil.example", b"", b"400"),
        (own, b"Origin: https://evil.example\r\n", b"403"),
        (own, b"Sec-Fetch-Site: cross-site\r\n", b"403"),
    ):
        answer = here.service.raw(POST % (host, more, len(body), body))
        assert answer.split()[1] == status, answer
    huge = b" " * (1 << 20) + body
    assert here.service.raw(POST % (own, b"", len(huge), huge)).split()[1] == b"413"
    # No session is kept, so there is nothing that a stream would tell.
    listening = b"GET /mcp HTTP/1.1\r\nHost: %s\r\nAccept: text/event-stream\r\n"
    answer = here.service.raw(listening % own + b"Connection: close\r\n\r\n")
    assert answer.split()[1] == b"405" and b"allow: POST" in answer
    assert here.made("stranger") == 0 and here.jobs("stranger") == []
    with running(tmp_path, STEADY_TOKEN="secret") as guarded:
        name = f"127.0.0.1:{guarded.port}".encode()
        assert guarded.raw(POST % (name, b"", len(body), body)).split()[1] == b"401"
        asked = urllib.request.Request(
            f"{guarded.url}/mcp", b"{}", {"Authorization": "Bearer secret"}, method="POST"
        )
        with pytest.raises(urllib.error.HTTPError) as caught:  # it is let in, and is no call
            urllib.request.urlopen(asked, timeout=60)
        assert caught.value.code in (400, 406, 415)
        caught.value.close()


@asynccontextmanager
async def tools_of(bench: Bench, wait: float) -> AsyncIterator[Client]:
    door = Door(bench.config, bench.store)
    door.stopping.bind()
    views = Views(door)
    feed = Feed(door, views.brief)
    made = agents.Tools(door, views, Submissions(door), feed, token=None, wait=wait)
    async with feed.running(), Client(agents.server_of(made)) as client:
        yield client
        door.stopping.set()


def test_a_long_job_answers_with_its_id_and_no_answer_is_large(tmp_path: Path) -> None:
    async def talk(bench: Bench) -> None:
        async with tools_of(bench, 0.2) as client:
            wish = {"prompt": "before", "key": ""}  # models say "" where they mean nothing
            told(await client.call_tool("generate_image", wish))
            said = told(await client.call_tool("generate_image", wish | {"prompt": "slow"}))
            assert said["state"] == "queued" and "get_job" in said["next"] and "url" not in said
            for n in range(60):
                body = {"prompt": f"{n} " + "ü" * 3990}
                await asyncio.to_thread(lambda b=body: bench.client.post("/jobs", json=b))
            bench.watcher.take_in()
            listed = await client.call_tool("list_jobs", {"limit": 50})
            assert len(told(listed)["jobs"]) == 50

    with Bench(tmp_path) as bench:
        asyncio.run(talk(bench))


def test_on_stdio(here: House) -> None:
    command = ["-P", "-m", "watcher.cli", "--root", str(here.root.folder), "mcp"]
    start = StdioServerParameters(command=sys.executable, args=command, env=here.root.environment())

    async def talk() -> None:
        async with Client(start) as client:
            said = told(await client.call_tool("generate_image", {"prompt": "by wire steps=1"}))
            assert said["state"] == "completed"

    asyncio.run(talk())


def test_no_model_library_comes_along_and_without_the_extra_it_says_so(tmp_path: Path) -> None:
    heavy = "import sys; import api.compat.agents, mcp.server.mcpserver, mcp_types; "
    heavy += "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", heavy], check=True, cwd=Path(__file__).parents[2])
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "mcp.py").write_text("raise ImportError")
    done = subprocess.run(
        [sys.executable, "-m", "api.compat.agents", "--root", str(tmp_path)],
        env={"PYTHONPATH": f"{tmp_path / 'without'}:{Path(__file__).parents[2]}"},
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 4 and "steadydiffusion[mcp]" in done.stderr
