"""The queue in front of a server of OpenAI's Images API: what may come back, and who may die."""

import base64
import email
import io
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import trustme
from conftest import until
from PIL import Image
from roots import Root

from watcher.engine import Cancelled, EngineRequest, EngineSettings, ServerAway
from watcher.engines.openai import ImageServer
from watcher.errors import SteadyError
from watcher.pictures.recipe import read_recipe

Answer = Callable[["Scripted"], None]


def png(width: int = 64, height: int = 64, mode: str = "RGB") -> str:
    out = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert(mode).save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


def body_of(picture: str) -> bytes:
    return json.dumps({"created": 1, "data": [{"b64_json": picture}]}).encode()


def form_of(kind: str, data: bytes) -> dict[str, Any]:
    """The fields of a form as texts, its files as bytes."""
    form = email.message_from_bytes(f"Content-Type: {kind}\r\n\r\n".encode() + data)
    found = {}
    for part in form.walk():
        name, content = (
            part.get_param("name", header="content-disposition"),
            part.get_payload(decode=True),
        )
        if name and isinstance(content, bytes):
            found[str(name)] = content if part.get_filename() else content.decode()
    return found


class Scripted(BaseHTTPRequestHandler):
    """Answers pictures as the list says, one entry a call; the last one again and again."""

    script: list[Answer]
    calls: list[dict[str, Any]]

    def do_GET(self) -> None:
        self.say(200, b'{"data": []}')

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        is_form = self.headers.get_content_maintype() == "multipart"
        body = form_of(self.headers["Content-Type"], data) if is_form else json.loads(data)
        self.calls.append({"path": self.path, "body": body, **self.headers})
        step = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        step(self)

    def say(self, status: int, data: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *words: Any) -> None:
        """Silence."""


@pytest.fixture
def server() -> Iterator[Any]:
    handler = type("Handler", (Scripted,), {"script": [], "calls": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as found:
        found.daemon_threads = True
        found.block_on_close = False
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield found
        found.shutdown()


def engine_of(server: Any, **options: Any) -> ImageServer:
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    return ImageServer(EngineSettings("gpt", options={"url": url, **options}))


def ask(**more: Any) -> EngineRequest:
    asked: dict[str, Any] = {"width": 64, "height": 64, "num_inference_steps": 9, "seed": 7}
    return EngineRequest(prompt="a fox", job_id="j1", **asked | more)


def nothing(done: int, total: int, preview: object = None) -> None:
    """A step nobody watches."""


def good(call: Scripted) -> None:
    call.say(200, body_of(png()))


def answers(status: int, data: bytes = b"", **headers: str) -> Answer:
    return lambda call: call.say(status, data, **headers)


def broken(call: Scripted) -> None:
    call.close_connection = True
    call.connection.shutdown(socket.SHUT_RDWR)


def half(call: Scripted) -> None:
    whole = body_of(png())
    call.send_response(200)
    call.send_header("Content-Length", str(len(whole)))
    call.end_headers()
    call.wfile.write(whole[: len(whole) // 2])
    call.close_connection = True


def hanging(call: Scripted) -> None:
    call.connection.recv(1)  # until the other side has hung up


REFUSED = json.dumps({"error": {"message": "Your prompt was\n\x1b[31mflagged."}}).encode()
BAD: dict[str, tuple[Answer, str, str]] = {
    "partial JSON": (answers(200, b'{"data": [{"b64_json": "iVBO'), "bad_answer", "holds no picture"),
    "no JSON": (answers(200, b"<html>"), "bad_answer", "holds no picture"),
    "no list": (answers(200, b'{"data": []}'), "bad_answer", "holds no picture"),
    "deep": (answers(200, b"[" * 100_000), "bad_answer", "holds no picture"),
    "an address": (answers(200, b'{"data": [{"url": "http://x/"}]}'), "bad_answer", "not followed"),
    "no base64": (answers(200, body_of("!!")), "bad_answer", "holds no picture"),
    "no picture": (answers(200, body_of("QUJD")), "bad_answer", "is no picture"),
    "a torn one": (answers(200, body_of(png()[:120])), "bad_answer", "damaged"),
    "another size": (answers(200, body_of(png(32, 48))), "bad_answer", "32x48 pixels instead of 64x64"),
    "huge": (answers(200, b" " * 2_000_000), "bad_answer", "larger than"),
    "redirect": (answers(307, Location="http://127.0.0.1:9/"), "bad_answer", "points elsewhere"),
    "refused": (answers(400, REFUSED), "server_refused", "Your prompt was .*flagged"),
    "unknown": (answers(404), "server_refused", "404"),
    "key": (answers(401), "server_failed", "refuses the key"),
    "hang": (hanging, "timed_out", "within 0.5 seconds"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_used_is_told_in_words_and_the_next_job_is_made(
    server: Any, name: str
) -> None:
    step, code, words = BAD[name]
    handler = server.RequestHandlerClass
    handler.script[:] = [step, good]
    engine = engine_of(server, timeout=0.5 if name == "hang" else 60)
    engine.load()
    with pytest.raises(SteadyError, match=words) as caught:
        engine.generate(ask(), nothing)
    assert caught.value.code == code
    assert caught.value.message.isprintable()
    assert len(handler.calls) == 1  # nothing of this kind passes by itself
    engine = engine_of(server)
    assert engine.generate(ask(), nothing).image.getbbox() is not None


@pytest.mark.parametrize("step", [answers(429, Retry_After="1"), answers(503), broken, half])
def test_what_passes_is_asked_again(server: Any, step: Answer) -> None:
    handler = server.RequestHandlerClass
    handler.script[:] = [step, good]
    result = engine_of(server).generate(ask(), nothing)
    keys = [call["Idempotency-Key"] for call in handler.calls]
    # What was answered is asked anew; a call that broke off may be running still.
    assert keys == (["j1-0", "j1-0"] if step in (broken, half) else ["j1-0", "j1-1"])
    assert (result.image.mode, result.image.size) == ("RGB", (64, 64))
    assert (result.facts["forwards"], result.facts["cfg_scale"]) == (None, None)


def test_a_server_that_is_not_there_is_the_slots_trouble(server: Any) -> None:
    engine = engine_of(server)
    server.shutdown()
    server.server_close()
    with pytest.raises(ServerAway, match="cannot be reached"):
        engine.load()
    with pytest.raises(ServerAway, match="cannot be reached"):
        engine.generate(ask(), nothing)


def test_what_the_environment_trusts_is_trusted(server: Any, tmp_path: Path) -> None:
    held, authority = tmp_path / "held.pem", trustme.CA()
    authority.cert_pem.write_to_path(held)
    secret = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(secret)
    with ThreadingHTTPServer(("127.0.0.1", 0), server.RequestHandlerClass) as found:
        found.socket = secret.wrap_socket(found.socket, server_side=True)
        threading.Thread(target=found.serve_forever, daemon=True).start()
        url = f"https://127.0.0.1:{found.server_address[1]}/v1"
        script = (
            "from watcher.engine import EngineSettings; from watcher.engines.openai import ImageServer;"
            f"print(ImageServer(EngineSettings('gpt', options={{'url': '{url}'}})).load().device)"
        )
        for trusted, said in (({"SSL_CERT_FILE": str(held)}, "server\n"), ({}, "")):
            done = subprocess.run(
                [sys.executable, "-c", script], env=os.environ | trusted, text=True,
                capture_output=True, cwd=Path(__file__).parents[2],
            )  # fmt: skip
            assert done.stdout == said, done.stderr
        found.shutdown()


def test_a_cancel_needs_no_answer(server: Any) -> None:
    server.RequestHandlerClass.script[:] = [hanging]
    reports = iter([None, None, Cancelled()])

    def report(done: int, total: int, preview: object = None) -> None:
        if (said := next(reports)) is not None:
            raise said

    began = time.monotonic()
    with pytest.raises(Cancelled):
        engine_of(server).generate(ask(), report)
    assert time.monotonic() - began < 30


def test_only_what_is_configured_is_sent(server: Any) -> None:
    handler = server.RequestHandlerClass
    handler.script[:] = [lambda call: call.say(200, body_of(png(mode="RGBA")))]
    request = ask(guidance_scale=4.0, negative_prompt="blue", label="private")
    full = engine_of(server, key_env="PATH")
    assert full.load().accepts == ("guidance", "negative_prompt")
    full.generate(request, nothing)
    bare = engine_of(server, sends=[], extra={"quality": "low"}, key="k")
    assert bare.load().accepts == ()
    assert "not given the seed" in bare.generate(request, nothing).facts["warnings"][0]
    renamed = engine_of(server, sends={"num_inference_steps": "step"})
    renamed.generate(request, nothing)
    plain = {"model": "gpt", "prompt": "a fox", "size": "64x64", "n": 1}
    wire = {"response_format": "b64_json"}
    assert [call["body"] for call in handler.calls] == [
        plain | wire | {"seed": 7, "num_inference_steps": 9, "guidance_scale": 4.0,
                        "negative_prompt": "blue"},
        plain | {"quality": "low"},
        plain | wire | {"step": 9},
    ]  # fmt: skip
    assert [call.get("Authorization") for call in handler.calls] == [
        f"Bearer {os.environ['PATH']}", "Bearer k", None,
    ]  # fmt: skip


def test_a_picture_to_start_from_goes_along_where_the_server_takes_one(server: Any) -> None:
    handler = server.RequestHandlerClass
    handler.script[:] = [broken, good]
    engine = engine_of(server, edits=True, extra={"quality": "low", "background": None})
    assert engine.load().accepts == ("guidance", "negative_prompt", "image", "mask")
    source = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    job = ask(image=source, mask=mask, strength=0.5, negative_prompt="Füchse\r\n--x")
    engine.generate(job, nothing)
    first, again = handler.calls
    assert first == again  # what broke off is asked for under the same key
    assert again["path"] == "/v1/images/edits"
    form = again["body"]
    with Image.open(io.BytesIO(form.pop("image"))) as sent:
        assert sent.tobytes() == source.tobytes()
    with Image.open(io.BytesIO(form.pop("mask"))) as sent:
        clear = sent.getchannel("A")
    assert (clear.getpixel((8, 8)), clear.getpixel((40, 8))) == (0, 255)
    assert form == {
        "model": "gpt", "prompt": "a fox", "size": "64x64", "n": "1", "quality": "low",
        "seed": "7", "num_inference_steps": "9", "strength": "0.5",
        "negative_prompt": "Füchse\r\n--x",
    }  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [{}, {"url": "ftp://x/v1"}, {"url": "http://me:secret@x/v1"}, {"sends": ["prompt"]},
     {"key_env": "NO_SUCH_VARIABLE"}, {"speed": 3}, {"timeout": 0}],
)  # fmt: skip
def test_options_that_cannot_be(options: dict[str, Any]) -> None:
    given = options if not options or "url" in options else {"url": "http://x/v1", **options}
    with pytest.raises(SteadyError) as caught:
        ImageServer(EngineSettings("gpt", options=given))
    assert caught.value.code == "bad_config"
    assert "secret" not in str(caught.value)
    assert not ({"Input", "String"} & set(str(caught.value).split()))


# -- a service of ours in front of another of ours


class Farm:
    """A service whose pictures another one asks for."""

    def __init__(self, make_root: Callable[..., Root]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.root = make_root("farm", port=self.port)
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._processes: list[Any] = []

    def start(self) -> None:
        api = ["-m", "watcher.cli", "--root", str(self.root.folder), "api"]
        self._processes = [self.root.watch(), self.root.spawn(*api)]

    def kill(self) -> None:
        for process in self._processes:
            process.send_signal(signal.SIGKILL)
            process.wait()


def test_two_services_in_a_row_make_each_picture_once_whoever_is_killed(
    make_root: Callable[..., Root], tmp_path: Path
) -> None:
    farm = Farm(make_root)
    held = tmp_path / "held"
    held.touch()
    front = make_root("front", engine="openai", engine_options={"url": farm.url})
    front.drop("jobs.json", json.dumps(
        [{"prompt": f"{n} held={held}", "seed": n} for n in range(3)]
    ))  # fmt: skip
    watcher = front.watch()
    until(lambda: front.troubles() == {"server_away"}, 30, str(front.said))  # and nothing is lost
    assert front.states() == ["queued"] * 3
    farm.start()
    until(lambda: "generating" in farm.root.states(), 60, str(front.said))
    watcher.send_signal(signal.SIGKILL)
    watcher.wait()
    watcher = front.watch()
    until(lambda: next(job["attempt"] for job in front.jobs()) >= 2, 60, str(front.said))
    farm.kill()
    farm.start()
    os.remove(held)
    jobs = front.wait_for(*3 * ["completed"], timeout=90)
    made = farm.root.jobs()
    assert sorted(job["seed"] for job in map(request_of, made)) == [0, 1, 2]
    assert {job["state"] for job in made} == {"completed"}
    for job, there in zip(jobs, sorted(made, key=lambda job: request_of(job)["seed"]), strict=True):
        picture = (front.folder / "outputs" / job["path"]).read_bytes()
        recipe = read_recipe(picture)
        assert recipe is not None
        assert (recipe["model"], recipe["device"], recipe["forwards"]) == (
            "scripted",
            "server",
            None,
        )
        assert pixels(picture) == pixels(
            (farm.root.folder / "outputs" / there["path"]).read_bytes()
        )
    assert farm.url.encode() not in picture


def request_of(job: dict[str, Any]) -> dict[str, Any]:
    return dict(json.loads(job["request"]))


def pixels(data: bytes) -> bytes:
    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGB").tobytes()
