"""JobRequest with one more field of each type, and every way in. Run as a process of its own.

The lines are put into the source of ``watcher.jobs`` as it is imported, where a person would write
them; nothing else is told of them.
"""

import importlib.abc
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LINES = """
    mood: Annotated[str, Field(max_length=100)] | None = _optional("how it should feel")
    warmth: Annotated[float, Field(ge=0, le=1)] | None = _optional("how warm")
    grain: bool | None = _optional("as on film")
    inks: Annotated[list[str], Field(max_length=3)] | None = _optional("by name")
    knobs: dict[str, float] | None = _optional("by name")
"""
BEFORE = "\n\n@functools.cache\ndef field_schemas()"


class More(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Loads ``watcher.jobs`` with LINES at the end of JobRequest."""

    def find_spec(self, name: str, path: object, target: object = None) -> Any:
        return importlib.util.spec_from_loader(name, self) if name == "watcher.jobs" else None

    def exec_module(self, module: ModuleType) -> None:
        source = (ROOT / "watcher" / "jobs.py").read_text("utf-8")
        assert source.count(BEFORE) == 1
        whole = source.replace(BEFORE, LINES + BEFORE)
        exec(compile(whole, "watcher/jobs.py", "exec"), module.__dict__)


VALUES: dict[str, Any] = {
    "mood": "calm", "warmth": 0.5, "grain": True, "inks": ["a", "b"], "knobs": {"x": 1.5},
}  # fmt: skip
BODY = {"prompt": "a fox"} | VALUES
YAML = """prompt: a fox
mood: calm
warmth: 0.5
grain: true
inks: [a, b]
knobs: {x: 1.5}
"""
CSV = 'prompt,mood,warmth,grain,inks,knobs\na fox,calm,"0,5",yes,"a, b","{""x"": 1.5}"\n'
HELD = {"inks": ["a\ud800"], "knobs": {"a\x00": 1}}
WRONG = {"mood": 7, "warmth": 2, "grain": "maybe", "inks": "a", "knobs": [1]}
OPTIONS = [
    "--mood=calm", "--warmth=0.5", "--grain", "--inks=a", "--inks=b", "--knobs=x=1.5",
]  # fmt: skip
SET = ["mood=calm", "warmth=0.5", "grain=true", "inks=a,b", 'knobs={"x":1.5}']


def read(data: str, suffix: str) -> dict[str, Any]:
    from watcher import jobfile
    from watcher.jobfile.planner import Planner
    from watcher.limits import Limits

    return jobfile.parse(data.encode(), suffix, Planner(Limits())).requests[0].request.model_dump()


def wrong(fields: dict[str, Any]) -> list[str]:
    """What each wrong value is told, and what would be right."""
    from watcher import jobfile
    from watcher.errors import SteadyError
    from watcher.jobfile.planner import Planner
    from watcher.limits import Limits

    try:
        jobfile.parse(json.dumps({"prompt": "a"} | fields).encode(), ".json", Planner(Limits()))
    except SteadyError as error:
        return [f"{p.message} [{p.allowed}]" for p in error.problems]
    return []


def submitted(folder: Path, *words: str) -> dict[str, Any]:
    """What ``steady submit`` put into the inbox."""
    from typer.testing import CliRunner

    from watcher.cli import app

    inbox = folder / "inbox"
    inbox.mkdir(exist_ok=True)
    for path in inbox.glob("*.json"):
        path.unlink()
    done = CliRunner().invoke(app, ["--root", str(folder), "submit", "a fox", *words])
    assert done.exit_code == 0, done.output
    [path] = inbox.glob("*.json")
    body: dict[str, Any] = json.loads(path.read_bytes())
    return body


def posted(folder: Path, route: str, **more: Any) -> dict[str, Any]:
    """What the service says of a job that was asked for there, and its recipe."""
    from doors import Bench

    from watcher.pictures.recipe import recipe_of

    with Bench(folder) as bench:
        answer = bench.client.post(route, json=BODY | more)
        assert answer.status_code in (200, 202), answer.text
        [job_id] = bench.watcher.take_in()
        told: dict[str, Any] = bench.client.get(f"/jobs/{job_id}").json()
        job = bench.store.job(job_id)
        assert job is not None
        recipe = recipe_of(job, {})["request"]
        described = bench.client.get("/openapi.json").json()["components"]["schemas"]
    assert all(name in described["JobRequest"]["properties"] for name in VALUES)
    assert all(name in described["JobView"]["properties"] for name in VALUES)
    assert {name: recipe[name] for name in VALUES} == VALUES
    return told


def main(folder: Path) -> dict[str, Any]:
    from watcher.jobfile.batchline import body_fields
    from watcher.limits import Limits

    ways = {
        "yaml": read(YAML, ".yaml"),
        "json": read(json.dumps(BODY), ".json"),
        "jsonl": read(json.dumps(BODY) + "\n", ".jsonl"),
        "csv": read(CSV, ".csv"),
        "defaults": read(json.dumps({"defaults": VALUES, "jobs": ["a fox"]}), ".json"),
        "openai": body_fields(BODY, Limits())[0],
        "POST /jobs": posted(folder / "jobs", "/jobs"),
        "POST /generate-image": posted(folder / "seed", "/generate-image"),
        "options": submitted(folder / "cli", *OPTIONS),
        "--set": submitted(folder / "cli", *(word for s in SET for word in ("--set", s))),
    }
    return {
        "ways": {way: {name: said.get(name) for name in VALUES} for way, said in ways.items()},
        "wrong": wrong(WRONG),
        "held": wrong(HELD),
    }


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    sys.meta_path.insert(0, More())
    print(json.dumps(main(Path(sys.argv[1]))))
