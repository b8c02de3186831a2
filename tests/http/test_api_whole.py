"""The door beside the real watcher: the seed's loop, progress by events, and a busy day."""

import json
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import until
from doors import Running, Stream, running
from roots import Root

from watcher.config import Config
from watcher.store import JobStore


@pytest.fixture
def house(tmp_path: Path) -> Iterator[Root]:
    root = Root(tmp_path / "root")
    yield root
    root.close()


def ask(service: Running, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        service.url + path, data=data, headers={"Content-Type": "application/json"} | headers
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            raw = answer.read()
            return answer.status, json.loads(raw) if raw.startswith((b"{", b"[")) else raw
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def test_the_seeds_loop_ends_in_a_picture(house: Root):
    with running(house.folder) as service:
        status, posted = ask(service, "/generate-image", {"prompt": "a sunset"})
        assert status == 200
        job = f"/status/{posted['job_id']}"
        assert ask(service, job)[1]["status"] == "generating"
        assert ask(service, f"/image/{posted['job_id']}")[0] == 400
        assert ask(service, "/ready")[0] == 503
        house.watch()
        until(lambda: ask(service, job)[1]["status"] != "generating", 60)
        told = ask(service, job)[1]
        assert (told["status"], told["image_name"]) == ("completed", posted["image_name"])
        status, picture = ask(service, f"/image/by-name/{posted['image_name']}")
        assert status == 200 and picture.startswith(b"\x89PNG")
        until(lambda: ask(service, "/ready")[0] == 200, 30)
        assert ask(service, "/health")[1]["status"] == "healthy"
        status, thumbnail = ask(service, f"/jobs/{posted['job_id']}/image?size=256")
        assert status == 200 and thumbnail[8:12] == b"WEBP"


def test_every_step_is_told_and_a_running_job_is_cancelled(house: Root):
    with running(house.folder) as service:
        house.watch()
        _, posted = ask(
            service, "/generate-image", {"prompt": "sleep=0.3", "num_inference_steps": 100}
        )
        stream = Stream(service, f"/jobs/{posted['job_id']}/events")
        steps = [stream.next("step")["data"]["step"] for _ in range(3)]
        assert steps == sorted(set(steps))
        request = urllib.request.Request(service.url + f"/jobs/{posted['job_id']}", method="DELETE")
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert json.loads(answer.read())["state"] in ("generating", "cancelled")
        stream.until(lambda job: job["state"] == "cancelled")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_forty_clients_ask_while_five_thousand_files_are_dropped(house: Root):
    with running(house.folder) as service:
        house.watch()
        _, posted = ask(service, "/generate-image", {"prompt": "first"})
        slowest, answers, wrong = [0.0], [0], []
        stop = threading.Event()

        def client(number: int) -> None:
            paths = [f"/status/{posted['job_id']}", "/jobs?limit=20", "/queue", "/health"]
            while not stop.wait(0.25):
                begun = time.monotonic()
                status, _ = ask(service, paths[number % 4])
                slowest[0] = max(slowest[0], time.monotonic() - begun)
                answers[0] += 1
                if status != 200:
                    wrong.append((paths[number % 4], status))

        threads = [threading.Thread(target=client, args=(n,)) for n in range(40)]
        for thread in threads:
            thread.start()
        for n in range(5000):
            house.drop(f"job-{n}.yaml", f"prompt: number {n}\n")
        until(lambda: sum(ask(service, "/queue")[1]["counts"].values()) == 5001, 300)
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong
    assert answers[0] > 1000
    assert slowest[0] <= 2.0


WRITING = """
import sys
from fastapi.testclient import TestClient
from api.app import create_app
from watcher.config import Config
app = create_app(Config.load(sys.argv[1]))
assert "dataset" not in sys.modules, "whoever only looks would wait for it"
with TestClient(app, base_url="http://127.0.0.1") as client:
    if sys.argv[2] == "at once":  # two threads import the same at a time
        answer = client.post("/generate-image", json={"prompt": "a fox"})
        assert answer.status_code == 200, answer.text
assert "dataset" in sys.modules, "the first who writes would wait for it"
"""


@pytest.mark.parametrize("when", ["later", "at once"])
def test_what_only_writes_need_is_there_before_the_first_of_them(house: Root, when: str):
    house.steady("list")  # the record is there
    JobStore(Config.load(house.folder).database_url).close()  # makes it
    done = subprocess.run(
        [sys.executable, "-c", WRITING, str(house.folder), when],
        env=house.environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
