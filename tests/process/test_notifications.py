"""Notifications for people: by apprise to a receiver and a mail server of the tests."""

import email
import http.server
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from conftest import until
from history import rows
from roots import Root

from watcher.config import Config, Notify
from watcher.errors import SteadyError
from watcher.notify.messages import Messages

Make = Callable[..., Root]


class Post(list[dict[str, Any]]):
    """What a receiver of apprise's plain JSON got."""

    port = 0


@pytest.fixture
def post() -> Iterator[Post]:
    got = Post()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    got.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=[0.02])
    thread.start()
    yield got
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def mails() -> Iterator[tuple[int, list[email.message.Message]]]:
    got: list[email.message.Message] = []

    class Box:
        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
            got.append(email.message_from_bytes(envelope.content))
            return "250 OK"

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    controller = Controller(Box(), hostname="127.0.0.1", port=port)
    controller.start()
    yield port, got
    controller.stop()


def test_people_hear_of_batches_pauses_and_trouble(
    make_root: Make, post: Post, mails: tuple[int, list[email.message.Message]]
) -> None:
    port, letters = mails
    mail = f"mailto://127.0.0.1:{port}?from=steady@example.org&to=me@example.org"
    root = make_root(notify=[f"json://127.0.0.1:{post.port}/x", mail])

    def titles() -> list[str]:
        return [each["title"] for each in post]

    watcher = root.watch(pace=0.001)
    root.drop("cats.csv", "prompt,width\na cat steps=1,64\nno,65\na raise,64\n")
    until(lambda: "cats.csv is done" in titles(), 60, f"the batch; {root.said}")
    [batch] = [each for each in post if each["title"] == "cats.csv is done"]
    assert "1 completed, 1 failed, 1 rows refused" in batch["message"]
    assert "/batches/" in batch["message"] and batch["type"] == "warning"
    until(lambda: letters, 30, "a mail")
    assert letters[0]["Subject"] == "cats.csv is done" and "me@example.org" in letters[0]["To"]

    (root.folder / "outputs").rename(root.folder / "elsewhere")
    until(lambda: "SteadyDiffusion needs you" in titles(), 60, "trouble")
    (root.folder / "elsewhere").rename(root.folder / "outputs")
    until(lambda: "All is well again" in titles(), 60, "its end")
    assert titles().count("SteadyDiffusion needs you") == 1

    root.drop("bad.json", json.dumps([{"prompt": f"raise {n}"} for n in range(6)]))
    until(lambda: "The queue is paused" in titles(), 60, "the pause")
    assert "steady resume" in next(e for e in post if "paused" in e["title"])["message"]
    addresses = json.dumps(rows(root.folder, "SELECT endpoint FROM deliveries"))
    assert "127.0.0.1" not in addresses  # an address may hold a password
    watcher.terminate()
    watcher.wait(20)


def test_quiet_hours_and_addresses_that_cannot_be_used(tmp_path: Path, post: Post) -> None:
    to = [f"json://127.0.0.1:{post.port}"]

    def at(hour: int, quiet: str | None = "22:00-07:00 UTC") -> float:
        moment = int(datetime(2026, 1, 2, hour, 30, tzinfo=UTC).timestamp() * 1e6)
        settings = Notify(to=to, quiet=quiet)
        return Messages(settings, address="", now=lambda: moment).quiet_seconds()

    assert at(23) > 0 and at(6) > 0 and at(7) == 0 and at(12) == 0 and at(23, None) == 0
    for bad, word in ((Notify(to=["nonsense"]), "address 1"), (Notify(to=to, quiet="x"), "quiet")):
        with pytest.raises(SteadyError) as caught:
            Messages(bad, address="", now=lambda: 0)
        assert caught.value.code == "bad_config" and word in caught.value.message
    assert Config(notify="json://a json://b").notify == Notify(to=["json://a", "json://b"])


def test_without_the_extra_the_setting_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "apprise.py").write_text("raise ImportError")
    code = (
        "from watcher.config import Notify; from watcher.notify.messages import Messages;"
        "Messages(Notify(to=['json://x']), address='', now=lambda: 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True,
        env={"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}"}, cwd=tmp_path,
    )  # fmt: skip
    assert "steadydiffusion[notify]" in done.stderr
