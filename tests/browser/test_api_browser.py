"""What a page of another site can do to the service in a real browser: nothing."""

import http.server
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from doors import PICTURE, Bench, Running, running

pytestmark = pytest.mark.slow


class Evil(http.server.BaseHTTPRequestHandler):
    """A site of somebody else's: an empty page on which scripts are run."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>evil</title>")

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with Bench(tmp_path_factory.mktemp("root")) as bench:
        yield bench


@pytest.fixture(scope="module")
def service(bench: Bench) -> Iterator[Running]:
    with running(bench.config.root) as service:
        yield service


@pytest.fixture(scope="module")
def evil() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Evil)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://evil.example:{server.server_address[1]}/"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def page(evil: str, browser: Any) -> Iterator[Any]:
    page = browser.new_page()
    page.goto(evil)
    yield page
    page.close()


SEND = """async ([url, type]) => {
    const init = {method: "POST", mode: "no-cors", body: new Blob(['{"prompt": "pwned"}'], {type})};
    try { await fetch(url, init); return "sent"; } catch (error) { return "failed"; }
}"""
READ = """async (url) => {
    try { return await (await fetch(url)).text(); } catch (error) { return "failed"; }
}"""
EMBED = """(url) => new Promise((done) => {
    const image = new Image();
    image.onload = () => done("loaded " + image.naturalWidth);
    image.onerror = () => done("refused");
    image.src = url;
})"""
FORM = """(url) => {
    const frame = Object.assign(document.createElement("iframe"), {name: "hidden"});
    const form = Object.assign(document.createElement("form"),
        {method: "POST", action: url, enctype: "text/plain", target: "hidden"});
    const field = Object.assign(document.createElement("input"),
        {name: '{"prompt": "pwned", "label": "', value: '"}'});
    form.append(field);
    document.body.append(frame, form);
    return new Promise((done) => { frame.onload = () => done("sent"); form.submit(); });
}"""


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_what_a_page_may_send_without_asking_makes_nothing(bench, service, page, kind):
    for path in ("/generate-image", "/jobs", "/queue/pause"):
        page.evaluate(SEND, [service.url + path, kind])
    assert bench.store.batches() == []
    assert bench.store.get("paused") is None
    refusals = [line for line in service.log.read_text().splitlines() if '"status": 403' in line]
    assert len(refusals) >= 3


def test_what_needs_asking_is_not_asked_for_twice(bench, service, page):
    assert (
        page.evaluate(SEND.replace("no-cors", "cors"), [service.url + "/jobs", "application/json"])
        == "failed"
    )
    assert bench.store.batches() == []


def test_a_form_makes_nothing(bench, service, page):
    page.evaluate(FORM, service.url + "/generate-image")
    assert bench.store.batches() == []


def test_nothing_can_be_read_or_embedded(bench, service, page):
    import io

    from PIL import Image

    data = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(data, "PNG")
    job = bench.done(prompt="a secret")
    (bench.config.outputs / job.path).write_bytes(data.getvalue())
    assert data.getvalue() != PICTURE
    for path in ("/jobs", f"/status/{job.id}", "/health", "/openapi.json"):
        assert page.evaluate(READ, service.url + path) == "failed"
    assert page.evaluate(EMBED, f"{service.url}/image/{job.id}") == "refused"


def test_a_name_bound_anew_opens_nothing(bench, service, page, evil):
    rebound = f"http://evil.example:{service.port}"
    other = page.context.browser.new_page()
    answer = other.goto(f"{rebound}/jobs")
    assert answer.status == 400
    assert other.evaluate(READ, f"{rebound}/jobs").find("bad_host") > 0
    other.close()


def test_our_own_page_may(service, page):
    own = page.context.browser.new_page()
    own.goto(f"{service.url}/docs")
    assert '"counts"' in own.evaluate(READ, f"{service.url}/queue")
    assert (
        own.evaluate(
            SEND.replace("no-cors", "same-origin"), [f"{service.url}/jobs", "application/json"]
        )
        == "sent"
    )
    own.close()
