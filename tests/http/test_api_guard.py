"""Who may ask: hosts, tokens, other sites' pages, sizes; and what every answer carries."""

import base64
import json
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from doors import HERE, Bench, Running, running
from starlette.testclient import TestClient
from test_api_seed import refused

from api.__main__ import serve_http
from api.app import create_app
from api.guard import cookie_of, is_loopback, token_of
from watcher.config import Config
from watcher.errors import SteadyError

SAFE = {
    "content-security-policy", "x-content-type-options", "cross-origin-resource-policy",
    "cross-origin-opener-policy", "referrer-policy", "cache-control",
}  # fmt: skip


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with Bench(tmp_path_factory.mktemp("root")) as bench:
        yield bench


@pytest.fixture(scope="module")
def service(bench: Bench) -> Iterator[Running]:
    with running(bench.config.root) as service:
        yield service


def client_of(root: Path, **settings) -> TestClient:
    return TestClient(create_app(Config.load(root, **settings)), base_url=HERE)


# -- headers


@pytest.mark.parametrize(
    "path", ["/health", "/jobs", "/nothing-here", "/docs", "/static/docs.css", "/image/x", "/ready"]
)
def test_every_answer_carries_the_safe_headers(bench: Bench, path: str):
    answer = bench.client.get(path)
    assert {name.lower() for name in answer.headers} >= SAFE, path
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert "access-control-allow-origin" not in answer.headers
    assert "server" not in answer.headers


# -- host


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("127.0.0.1", True),
        ("127.0.0.1:8000", True),
        ("LOCALHOST:1", True),
        ("[::1]:8000", True),
        ("evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example:8000", False),
        ("localhost@evil.example", False),
        ("evil.example#localhost", False),
        ("localhost:8000:8000", False),
        ("0.0.0.0", False),
        ("", False),
        ("localhost.", False),
        ("[::1", False),
    ],
)
def test_only_names_of_this_machine_are_answered(bench: Bench, host: str, allowed: bool):
    answer = bench.client.get("/jobs", headers={"host": host})
    if allowed:
        assert answer.status_code == 200
    else:
        refused(answer, 400, "bad_host")


def test_a_rebound_name_and_a_doubled_host_are_refused_by_the_real_process(service: Running):
    answer = service.raw(b"GET /jobs HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n")
    assert b"400" in answer.split(b"\r\n")[0] and b"bad_host" in answer
    answer = service.raw(
        b"GET /jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
    )
    assert b"400" in answer.split(b"\r\n")[0]
    answer = service.raw(b"GET /jobs HTTP/1.0\r\n\r\n")
    assert b"bad_host" in answer


def test_further_names_are_allowed_by_settings(root: Path):
    with client_of(
        root, allowed_hosts=["nas.lan", "*.home.arpa"], public_url="https://pic.example/x"
    ) as client:
        for host, status in [
            ("nas.lan:8000", 200),
            ("a.home.arpa", 200),
            ("home.arpa", 400),
            ("pic.example", 200),
            ("other.lan", 400),
        ]:
            assert client.get("/queue", headers={"host": host}).status_code == status, host


# -- other sites


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({}, True),
        ({"sec-fetch-site": "same-origin"}, True),
        ({"sec-fetch-site": "none"}, True),
        ({"sec-fetch-site": "cross-site"}, False),
        ({"sec-fetch-site": "same-site"}, False),
        ({"sec-fetch-site": "cross-site", "origin": "http://127.0.0.1"}, False),
        ({"origin": "http://127.0.0.1"}, True),
        ({"origin": "http://127.0.0.1:81"}, False),
        ({"origin": "http://evil.example"}, False),
        ({"origin": "null"}, False),
    ],
)
def test_a_page_of_another_site_changes_nothing(bench: Bench, headers, allowed):
    for method, path in [
        ("POST", "/generate-image"),
        ("POST", "/queue/resume"),
        ("POST", "/jobs"),
        ("DELETE", "/jobs/550e8400-e29b-41d4-a716-446655440000"),
        ("PATCH", "/jobs/550e8400-e29b-41d4-a716-446655440000"),
    ]:
        answer = bench.client.request(
            method, path, headers=headers | {"content-type": "application/json"}, content=b"{}"
        )
        if allowed:
            assert answer.status_code != 403, path
        else:
            refused(answer, 403, "cross_origin")


def test_the_public_address_is_our_own_origin(root: Path):
    with client_of(root, public_url="https://pic.example") as client:
        headers = {"origin": "https://pic.example", "sec-fetch-site": "same-site"}
        assert client.post("/queue/resume", headers=headers).status_code == 200


def test_there_is_no_cors(bench: Bench):
    answer = bench.client.options(
        "/generate-image",
        headers={"origin": "http://evil.example", "access-control-request-method": "POST"},
    )
    assert answer.status_code == 405
    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("media", ["text/plain", "application/x-www-form-urlencoded", None])
def test_what_a_form_of_another_site_can_send_makes_no_picture(bench: Bench, media):
    headers = {"content-type": media} if media else {}
    answer = bench.client.post("/generate-image", content=b'{"prompt": "a"}', headers=headers)
    refused(answer, 415, "bad_content_type")


# -- token


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    root = tmp_path_factory.mktemp("guarded")
    (root / "outputs").mkdir()
    with client_of(root, token="s3cret-é") as client:
        yield client


def routes_of(client: TestClient) -> list[tuple[str, str]]:
    document = client.app.openapi()
    found = [("get", "/"), ("get", "/docs"), ("get", "/openapi.json"), ("get", "/static/docs.css")]
    for path, operations in document["paths"].items():
        found += [(method, path.replace("{", "").replace("}", "")) for method in operations]
    return found


def test_every_route_wants_the_token(guarded: TestClient):
    routes = routes_of(guarded)
    assert len(routes) > 30
    for method, path in routes:
        if path.startswith("/static"):  # the log-in page's own colours, the same for everybody
            continue
        answer = guarded.request(method, path)
        refused(answer, 401, "unauthorized")
        assert answer.headers["www-authenticate"].startswith("Bearer")
    basic = base64.b64encode("any:s3cret-é".encode()).decode()
    for good in ("Bearer s3cret-é", "bearer s3cret-é", f"Basic {basic}"):
        headers = {"authorization": good.encode()}
        assert guarded.get("/queue", headers=headers).status_code == 200, good
    for bad in (
        "Bearer s3cret",
        "Bearer",
        "s3cret-é",
        "Basic x",
        "Basic !!",
        "Digest s3cret-é",
        "Bearer s3cret-éé",
    ):
        headers = {"authorization": bad.encode()}
        assert guarded.get("/queue", headers=headers).status_code == 401, bad


def test_the_token_lifts_the_host_check_and_nothing_else(guarded: TestClient):
    headers = {"authorization": "Bearer s3cret-é".encode(), "host": "pod-7.cluster.internal"}
    assert guarded.get("/queue", headers=headers).status_code == 200
    headers |= {"sec-fetch-site": "cross-site"}
    refused(guarded.post("/queue/resume", headers=headers), 403, "cross_origin")


def test_a_browser_logs_in_and_gets_a_cookie_no_script_sees(guarded: TestClient):
    page = {"accept": "text/html"}
    there = guarded.get("/", headers=page, follow_redirects=False)
    assert (there.status_code, there.headers["location"]) == (303, "/login")
    form = guarded.get("/login")
    assert form.status_code == 200 and 'name="token"' in form.text
    for wrong in (
        guarded.get("/login?token=wrong"),
        guarded.post("/login", data={"token": "wrong"}, follow_redirects=False),
    ):
        assert wrong.status_code == 401 and "set-cookie" not in wrong.headers
    right = guarded.post(
        "/login", data={"token": "s3cret-é"}, headers={"origin": HERE}, follow_redirects=False
    )
    assert (right.status_code, right.headers["location"]) == (303, "/")
    cookie = right.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie and "s3cret" not in cookie
    value = cookie_of("s3cret-é")
    assert guarded.get("/queue", headers={"cookie": f"a=b; steady={value}"}).status_code == 200
    assert guarded.get("/queue", headers={"cookie": f"steady={value[:-1]}0"}).status_code == 401
    by_link = guarded.get("/login", params={"token": "s3cret-é"}, follow_redirects=False)
    assert by_link.status_code == 303 and "set-cookie" in by_link.headers
    guarded.cookies.clear()
    # whoever has no token gets little of it read
    refused(guarded.post("/login", data={"token": "%ff" * 2000}), 413, "too_large")


def test_auto_makes_one_token_and_keeps_it_private(root: Path):
    config = Config.load(root, token="auto")
    token = token_of(config)
    assert token == token_of(config) and len(token) >= 32
    path = root / ".steady" / "token"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in (root / ".steady").iterdir()] == ["token"]


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True),
        ("0.0.0.0", False), ("::", False), ("192.168.1.2", False), ("nas.lan", False), ("", False),
    ],
)  # fmt: skip
def test_what_is_loopback(host: str, loopback: bool):
    assert is_loopback(host) is loopback


def command(root: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "api", "--root", str(root), *options],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=root,
        env={"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "/usr/bin:/bin"},
    )


def test_other_machines_are_let_in_only_with_a_token(root: Path):
    done = command(root, "--host", "0.0.0.0", "--port", "0")
    assert done.returncode == 4
    assert "token: auto" in done.stderr and "Traceback" not in done.stderr
    assert not (root / "steady.db").exists()
    for host in ("::", "192.168.7.7", "nas.lan"):
        with pytest.raises(SteadyError) as caught:
            serve_http(Config.load(root, host=host))
        assert (caught.value.code, caught.value.kind.exit) == ("bad_config", 4)
    assert not (root / "steady.db").exists()


def test_a_taken_port_is_said_in_words(root: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SteadyError) as caught:
        serve_http(Config.load(root, port=taken.getsockname()[1]))
    assert "port" in caught.value.message and "--port" in caught.value.remedy


def test_with_a_token_other_machines_are_let_in_and_the_log_does_not_know_it(root: Path):
    with running(root, "--host", "0.0.0.0", STEADY_TOKEN="auto") as service:
        token = (root / ".steady" / "token").read_text()
        ask = "GET /queue HTTP/1.1\r\nHost: any.lan\r\nConnection: close\r\n{}\r\n"
        assert b" 401 " in service.raw(ask.format("").encode())
        with_token = ask.format(f"Authorization: Bearer {token}\r\n")
        assert b" 200 " in service.raw(with_token.encode())
        link = f"GET /login?token={token} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
        assert b" 303 " in service.raw(link.encode())
        service.stop()
        assert token not in service.log.read_text()


# -- bodies


def test_head_answers_as_get_does_and_sends_nothing(bench: Bench, service: Running):
    job = bench.done(prompt="looked for")
    for path, status in (
        ("/health", 200),
        ("/events", 200),
        (f"/image/{job.id}", 200),
        (f"/batches/{job.ticket}/images.zip", 200),
        ("/nothing-here", 404),
        ("/generate-image", 405),
    ):
        ask = f"HEAD {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
        head, _, body = service.raw(ask.encode()).partition(b"\r\n\r\n")
        assert (int(head.split()[1]), body) == (status, b""), path
        if path.startswith("/image/"):
            assert f"content-length: {job.bytes}".encode() in head


def test_a_body_that_says_it_is_too_long_is_refused_before_it_is_read(service: Running):
    answer = service.raw(
        b"POST /generate-image HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        b"Content-Length: 9999999999\r\n\r\n{"
    )
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b" 413 " in head and b"application/problem+json" in head
    assert json.loads(body)["code"] == "too_large"


@pytest.mark.parametrize("path", ["/generate-image", "/jobs"])
def test_a_chunked_body_is_cut_off_at_the_limit(service: Running, path: str):
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        "Transfer-Encoding: chunked\r\n\r\n"
    ).encode()
    chunk = b"10000\r\n" + b"a" * 65536 + b"\r\n"
    sent = 0
    with service.connect() as connection:
        connection.sendall(head)
        try:
            while sent < 256 << 20:
                connection.sendall(chunk)
                sent += 65536
        except (BrokenPipeError, ConnectionResetError):
            pass
        else:
            pytest.fail("the whole body was taken")
    assert sent < 64 << 20  # the limit of /jobs, and what the sockets' buffers hold


def test_a_small_chunked_body_is_taken_and_a_too_long_one_is_a_problem(service: Running):
    head = (
        b"POST /generate-image HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    )
    body = b'{"prompt": "a fox"}'
    answer = service.raw(head + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
    assert b" 200 " in answer.split(b"\r\n")[0]
    long = b"a" * ((1 << 20) + 1)
    answer = service.raw(head + b"%x\r\n%s\r\n0\r\n\r\n" % (len(long), long))
    assert b" 413 " in answer.split(b"\r\n")[0] and b"too_large" in answer


@pytest.mark.parametrize(
    "target",
    [
        "/image/by-name/..%2f..%2fcanary", "/image/by-name/%2e%2e/canary", "/image/by-name//etc/passwd",
        "/image/by-name/..%5c..%5ccanary", "/image/by-name/canary%00.png", "/image/by-name/%ff%fe",
        "/image/by-name/" + "a" * 5000, "/image/by-name/" + "..%2f" * 10 + "etc/passwd",
        "/image/..%2fcanary", "/image/%00", "/static/..%2f..%2fcanary", "/static/%2e%2e/__main__.py",
        "/static/../guard.py", "/static//etc/passwd", "/jobs/..%2fcanary/image", "/status/%0d%0aX-A:b",
        "/batches/..%2f..%2f/images.zip", "/image/by-name/a%0d%0aSet-Cookie:x=y",
    ],
)  # fmt: skip
def test_no_address_reaches_outside(bench: Bench, service: Running, target: str):
    (bench.config.root / "canary").write_text("tweet-tweet")
    answer = service.raw(
        f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode()
    )
    status = int(answer.split(b" ")[1])
    assert status in (400, 404), answer[:200]
    assert b"tweet" not in answer and b"root:" not in answer and b"Pure ASGI" not in answer
    assert b"set-cookie" not in answer.lower() and b"x-a:" not in answer.lower()


def test_the_log_is_one_harmless_json_object_a_line(bench: Bench, service: Running):
    service.raw(
        b'GET /jobs?text=secret-prompt%0a{"level":"error"} HTTP/1.1\r\nHost: 127.0.0.1\r\n'
        b"Connection: close\r\n\r\n"
    )
    service.raw(b"GET /%0a%1b[31mforged HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
    body = json.dumps({"prompt": "secret-prompt", "name": "cat"}).encode()
    service.raw(
        b"POST /generate-image HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        b"Connection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    )
    text = service.log.read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert len(lines) > 5
    assert all({"ts", "level", "event"} <= line.keys() for line in lines)
    assert "secret-prompt" not in text and "\x1b" not in text
    assert {line["event"] for line in lines} >= {"http.listening", "http.request", "http.submitted"}


def test_the_api_has_no_torch_and_no_watcher_inside(root: Path):
    code = (
        "import sys; import api.app, api.__main__; from watcher.config import Config;"
        f"api.app.create_app(Config.load({str(root)!r}));"
        "bad = {'torch', 'diffusers', 'transformers', 'watcher.service', 'watcher.executor',"
        " 'watcher.worker', 'watcher.engines', 'watcher.engines.zimage'} & set(sys.modules);"
        "assert not bad, bad"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "/usr/bin:/bin"},
        cwd=root,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
