"""The page on a long record: first paint, weight, the server's part, paging to the end.

    python -m benchmarks.page [--json] [--jobs 100000] [--browser /usr/bin/chromium]

Fills a record (most jobs completed, a thousand waiting, a few hundred failed), starts
``python -m api`` on it and looks at it in Chromium. Goals: first contentful paint at most
0.5 s, at most 150 KB without pictures, p95 of the server's part at most 100 ms.
"""

import argparse
import http.client
import io
import json
import os
import re
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from benchmarks.store import fill
from watcher.config import Config
from watcher.pictures.outputs import Outputs
from watcher.store import JobStore

HERE = Path(__file__).parent.parent
GOALS = {"first contentful paint [s]": 0.5, "weight [kB]": 150.0, "p95 [ms]": 100.0}
PAGES = ("/", "/queue", "/pictures", "/batches", "/system")


def prepare(root: Path, jobs: int) -> str:
    """A root with ``jobs`` jobs, all completed but the last thousand; the big batch's ticket."""
    config = Config.load(root, model="starter")
    Outputs(config.outputs).open()
    config.inbox.mkdir()
    store = JobStore(config.database_url, synchronous="normal")
    ticket, _ = fill(store, jobs - 1000)
    fill(store, 1000)
    store.close()
    assert config.database_path is not None
    with sqlite3.connect(config.database_path) as connection:
        hour = 3_600_000_000
        now = time.time_ns() // 1000
        connection.execute(
            "UPDATE jobs SET state = 'completed', started_at = ? - (1000000 - idx) * 500000,"
            " completed_at = ? - (1000000 - idx) * 500000 + 2000000, bytes = 1400000,"
            " sha256 = hex(randomblob(32)), created_at = ? - (1000000 - idx) * 500000 - 5000000"
            " WHERE ticket = ?",
            (now + 450 * hour // 4, now + 450 * hour // 4, now + 450 * hour // 4, ticket),
        )
        connection.execute(
            "UPDATE jobs SET state = 'failed', error_code = 'out_of_memory'"
            " WHERE ticket = ? AND idx % 300 = 7",
            (ticket,),
        )
        connection.execute("UPDATE batches SET archived = 1 WHERE ticket = ?", (ticket,))
        newest = connection.execute(
            "SELECT id FROM jobs WHERE state = 'completed' ORDER BY seq DESC LIMIT 200"
        ).fetchall()
    connection.close()
    thumbnail = io.BytesIO()
    Image.effect_noise((256, 256), 60).save(thumbnail, "WEBP")
    for (job_id,) in newest:
        path = config.outputs / ".thumbs" / job_id[:2] / f"{job_id}.webp"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(thumbnail.getvalue())
    return ticket


class Service:
    """``python -m api`` on a root."""

    def __init__(self, root: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._log = (root / "api.log").open("wb")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "api", "--root", str(root), "--port", str(self.port)],
            stdout=self._log, stderr=self._log, env=os.environ | {"PYTHONPATH": str(HERE)},
        )  # fmt: skip
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                time.sleep(0.05)
        raise TimeoutError("the service does not answer")

    def get(self, path: str) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", path, headers={"Accept": "text/html"})
        text = connection.getresponse().read().decode()
        connection.close()
        return text

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(20)
        self._log.close()


def milliseconds(call: Callable[[], Any], times: int) -> list[float]:
    call()
    taken = []
    for _ in range(times):
        begun = time.perf_counter()
        call()
        taken.append((time.perf_counter() - begun) * 1000)
    return sorted(taken)


def p95(taken: list[float]) -> float:
    return taken[min(len(taken) - 1, int(len(taken) * 0.95))]


def server(service: Service, ticket: str, times: int) -> dict[str, dict[str, float]]:
    """Milliseconds of the server's part, whole request over a new connection."""
    deep = "/pictures?cursor=s500"
    first = re.search(r"/jobs/([0-9a-f-]{36})", service.get("/pictures"))
    assert first
    more = (deep, f"/jobs/{first[1]}", f"/batches/{ticket}", f"/batches/{ticket}?after=50000",
            "/pictures?text=number+9999")  # fmt: skip
    found = {}
    for path in (*PAGES, *more):
        taken = milliseconds(lambda path=path: service.get(path), times)  # type: ignore[misc]
        name = re.sub(r"[0-9a-f-]{36}", "…", path)
        found[name] = {
            "median [ms]": round(statistics.median(taken), 1),
            "p95 [ms]": round(p95(taken), 1),
            "kB": round(len(service.get(path)) / 1000, 1),
        }
    return found


def browser(service: Service, path: str) -> dict[str, float]:
    """What Chromium sees: first paint, bytes without pictures, longest pause while scrolling."""
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        page = started.new_page()
        paints, weights = [], []
        for _ in range(5):
            weight = 0.0

            def add(response: Any) -> None:
                nonlocal weight
                if "/jobs/" not in response.url and "/events" not in response.url:
                    weight += int(response.headers.get("content-length") or 0)

            page.on("response", add)
            page.goto(f"http://127.0.0.1:{service.port}/")
            page.wait_for_load_state("load")
            paint = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
            while (painted := page.evaluate(paint)) is None:
                page.wait_for_timeout(20)
            paints.append(painted / 1000)
            weights.append(weight / 1000)
            page.remove_listener("response", add)
        page.goto(f"http://127.0.0.1:{service.port}/pictures")
        page.wait_for_load_state("load")
        frames = page.evaluate(
            """() => new Promise(done => { const times = []; let last = performance.now(), n = 0;
                const step = now => { times.push(now - last); last = now; scrollBy(0, 60);
                    if (++n < 60) requestAnimationFrame(step); else done(times.slice(5)); };
                requestAnimationFrame(step); })"""
        )
        started.close()
    return {
        "first contentful paint [s]": round(statistics.median(paints), 3),
        "weight [kB]": round(max(weights), 1),
        "frame while scrolling, p95 [ms]": round(p95(sorted(frames)), 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--times", type=int, default=40)
    parser.add_argument("--browser", default="/usr/bin/chromium")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        ticket = prepare(root, given.jobs)
        service = Service(root)
        try:
            pages = server(service, ticket, given.times)
            seen = browser(service, given.browser)
        finally:
            service.stop()
    worst = max(figures["p95 [ms]"] for name, figures in pages.items() if "text=" not in name)
    missed = [
        name for name, goal in GOALS.items() if (worst if name == "p95 [ms]" else seen[name]) > goal
    ]
    if given.json:
        print(json.dumps({"jobs": given.jobs, "pages": pages, "browser": seen, "missed": missed}))
        return int(bool(missed))
    print(f"{given.jobs:,} jobs\n\n| Page | median | p95 | HTML |\n| --- | --- | --- | --- |")
    for name, figures in pages.items():
        print("| `{}` | {} ms | {} ms | {} kB |".format(name, *figures.values()))
    for name, figure in seen.items():
        print(f"{name}: {figure}")
    print("goals missed: " + (", ".join(missed) or "none"))
    return int(bool(missed))


if __name__ == "__main__":
    raise SystemExit(main())
