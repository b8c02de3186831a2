"""Models by name: what a job may name, and what becomes of jobs of several models."""

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import until
from doors import Bench
from PIL import Image
from roots import Root
from torture import write_loras

from watcher.config import Config
from watcher.errors import SteadyError
from watcher.jobfile import parse
from watcher.jobfile.planner import Planner
from watcher.limits import Card, Limits
from watcher.models.cards import limits_known
from watcher.pictures.outputs import Outputs
from watcher.pictures.sheet import contact_sheet

MODELS = {
    "tiny": "starter",
    "large": {"source": "starter", "steps": 12, "width": 320, "height": 320, "max_side": 512},
    "farm": {
        "engine": "engines:Guided",
        "url": "http://127.0.0.1:9/v1",
        "model": "far",
        "guidance": 4,
    },
}


def limits(root: Path, **settings: Any) -> Limits:
    return limits_known(
        Config.load(root, **{"model": "starter", "models": MODELS} | settings), None
    )


def faults(root: Path, **job: Any) -> list[tuple[str, str | None, str | None]]:
    with pytest.raises(SteadyError) as found:
        parse(json.dumps({"prompt": "a fox"} | job).encode(), ".json", Planner(limits(root)))
    return [(fault.code, fault.key, fault.remedy) for fault in found.value.problems]


def test_a_job_is_judged_by_the_card_of_the_model_that_it_names(tmp_path: Path) -> None:
    text = "\n".join(
        json.dumps({"prompt": "a fox"} | each)
        for each in (
            {},
            {"model": "large"},
            {"checkpoint": "farm"},
            {"sd_model_checkpoint": "tiny"},
        )
    )
    read = parse(f"[{text.replace(chr(10), ',')}]".encode(), ".json", Planner(limits(tmp_path)))
    sizes = [
        (
            job.request.model,
            job.request.width,
            job.request.num_inference_steps,
            job.request.guidance_scale,
        )
        for job in read.requests
    ]
    assert sizes == [
        (None, 256, 9, None),
        ("large", 320, 12, None),
        ("farm", 1024, 9, 4.0),
        ("tiny", 256, 9, None),
    ]
    assert faults(tmp_path, model="large", width=1024) == [("out_of_range", "width", None)]
    card = limits(tmp_path).named("farm")
    assert card is not None and (card.source, card.engine) == ("far", "engines:Guided")
    assert card.options == {"url": "http://127.0.0.1:9/v1"}


def test_a_name_may_say_which_model_made_the_picture(tmp_path: Path) -> None:
    body = {"prompt": "a fox", "matrix": {"model": ["large", "tiny"]}, "name": "fox_{model}"}
    read = parse(json.dumps(body).encode(), ".json", Planner(limits(tmp_path)))
    assert [job.request.name for job in read.requests] == ["fox_large", "fox_tiny"]


def test_a_name_that_nobody_knows_is_refused_and_the_nearest_told(tmp_path: Path) -> None:
    assert faults(tmp_path, model="lrage") == [
        ("model_not_found", "model", "Did you mean `large`?")
    ]
    [(code, key, remedy)] = faults(tmp_path, model="?")
    assert (code, key) == ("model_not_found", "model")
    assert remedy is not None and "starter, Tongyi-MAI/Z-Image-Turbo, tiny" in remedy


def test_the_root_s_own_model_may_be_one_of_the_names(tmp_path: Path) -> None:
    usual = limits(tmp_path, model="large", default_steps=30).usual
    assert (usual.name, usual.source, usual.default_steps) == ("large", "starter", 12)


@pytest.mark.parametrize(
    ("models", "words"),
    [
        ({"x": {"source": "starter", "stepz": 9}}, "models.x.stepz"),
        ({"x": {"steps": 9}}, "models.x.source"),
        ({"starter": "starter"}, "'starter' cannot be a name"),
        ({"a/b": "starter"}, "'a/b' cannot be a name"),
    ],
)
def test_an_entry_that_cannot_be_used_is_named(
    tmp_path: Path, models: dict[str, Any], words: str
) -> None:
    with pytest.raises(SteadyError, match=words):
        Config.load(tmp_path, models=models)


# -- several models in one queue

NAMES = {"a": "a", "b": {"source": "b"}}


def loads(root: Root) -> list[str]:
    """The models that workers loaded, in order."""
    lines = [json.loads(line) for line in root.log.read_text().splitlines()]
    return [line["model"] for line in lines if line["event"] == "load"]


def drawn(root: Root) -> list[str]:
    """The prompts in the order in which they were begun."""
    lines = [json.loads(line) for line in root.log.read_text().splitlines()]
    return [line["prompt"] for line in lines if line["event"] == "start"]


def of_models(*models: str, **more: Any) -> str:
    jobs = [{"prompt": f"{model} {n} steps=1", "model": model} | more
            for n, model in enumerate(models)]  # fmt: skip
    return json.dumps(jobs)


def test_jobs_of_two_models_that_come_in_turns_cost_two_loads(
    make_root: Callable[..., Root],
) -> None:
    root = make_root(model="a", models=NAMES)
    root.drop("turns.json", of_models(*"ab" * 20))
    assert root.watch(once=True).wait(100) == 0
    assert root.states() == ["completed"] * 40
    assert loads(root) == ["a", "b"]
    assert [job["model"] for job in root.jobs()] == list("ab" * 20)


def test_the_order_outlives_a_kill(make_root: Callable[..., Root]) -> None:
    root = make_root(model="a", models=NAMES)
    gate = root.folder / "gate"
    gate.touch()
    jobs = json.loads(of_models(*"ab" * 20))
    jobs[10]["prompt"] += f" held={gate}"
    root.drop("turns.json", json.dumps(jobs))
    watcher = root.watch()
    until(lambda: root.log.is_file() and len(drawn(root)) == 6, what="the sixth of a")
    until(lambda: root.states().count("completed") == 5, what="the five before it on record")
    watcher.kill()
    watcher.wait()
    gate.unlink()
    assert root.watch(once=True).wait(100) == 0
    assert root.states() == ["completed"] * 40
    assert loads(root) == ["a", "a", "b"]
    assert [prompt[0] for prompt in drawn(root)] == [*"a" * 21, *"b" * 20]  # the held one twice


def test_a_stream_of_the_loaded_model_holds_up_no_other_for_longer_than_the_patience(
    make_root: Callable[..., Root],
) -> None:
    root = make_root(model="a", models=NAMES, model_patience=0.5)
    gate = root.folder / "gate"
    gate.touch()
    jobs = json.loads(of_models("a", "b", *"a" * 500))
    jobs[0]["prompt"] += f" held={gate}"
    for job in jobs[2:]:
        job["prompt"] += " sleep=0.05"
    root.drop("night.json", json.dumps(jobs))
    root.watch()
    until(lambda: len(root.jobs()) == 502, what="all are recorded")
    gate.unlink()
    until(lambda: root.jobs()[1]["state"] == "completed", what="the one of the other model")
    assert root.states().count("queued") > 100


def test_one_that_waits_at_the_screen_goes_next_and_drags_no_bulk_behind_it(
    make_root: Callable[..., Root],
) -> None:
    root = make_root(model="a", models=NAMES)
    gate = root.folder / "gate"
    gate.touch()
    held = json.dumps({"prompt": f"first held={gate} steps=1"})
    root.drop("first.json", held)
    root.watch()
    until(lambda: root.log.is_file() and drawn(root), what="the first job")
    root.drop("bulk.json", of_models(*"a" * 6, *"b" * 2, priority="bulk"))
    root.drop("now.json", of_models("b", priority="interactive"))
    until(lambda: len(root.jobs()) == 10, what="all are recorded")
    gate.unlink()
    root.wait_for(*["completed"] * 10)
    order = [prompt.split()[0] for prompt in drawn(root)]
    assert order == ["first", "b", *"aaaaaa", *"bb"]


def test_a_model_that_cannot_be_loaded_keeps_its_own_jobs_waiting_and_no_others(
    make_root: Callable[..., Root],
) -> None:
    root = make_root(model="a", models=NAMES)
    sick = root.folder / "sick"
    sick.touch()
    log = {"log": str(root.log)}
    models = NAMES | {
        "b": {"source": "b", "options": {"load_fault": "oom", "load_fault_while": str(sick)}},
        "gone": {"source": "models/none", "engine": "zimage"},
    }
    config = json.loads((root.folder / "config.yaml").read_text()) | {"models": models}
    (root.folder / "config.yaml").write_text(json.dumps(config | {"engine_options": log}))
    root.drop("jobs.json", of_models("b", "gone", "a", "a"))
    root.watch()
    root.wait_for("queued", "queued", "completed", "completed")
    until(lambda: len(root.pulse()["warnings"]) == 2, what="words for both models")
    said = {warning["model"]: warning for warning in root.pulse()["warnings"]}
    assert root.pulse()["trouble"] == []
    assert said["b"]["message"].startswith("Jobs of the model `b` wait: ")
    assert (said["b"]["code"], said["gone"]["code"]) == ("out_of_memory", "model_missing")
    root.drop("more.json", of_models("a"))
    root.wait_for("queued", "queued", "completed", "completed", "completed")


def test_a_model_that_was_taken_out_of_the_settings_fails_nothing(
    make_root: Callable[..., Root],
) -> None:
    root = make_root(model="a", models=NAMES)
    root.drop("jobs.json", of_models("b", not_before="2000-01-01T00:00"))
    root.watch(point="recorded").wait(60)
    config = json.loads((root.folder / "config.yaml").read_text())
    (root.folder / "config.yaml").write_text(json.dumps(config | {"models": {}}))
    assert root.watch(once=True).wait(60) == 4
    assert root.states() == ["queued"]
    root.watch()
    until(lambda: "is no model of config.yaml any more" in str(root.pulse().get("warnings")),
          what="words for its jobs")  # fmt: skip
    (root.folder / "config.yaml").write_text(json.dumps(config))
    root.processes[-1].send_signal(15)
    root.processes[-1].wait(30)
    assert root.watch(once=True).wait(60) == 0
    assert root.states() == ["completed"]


def test_a_matrix_of_models_is_a_sweep_whose_grid_is_shown(make_root: Callable[..., Root]) -> None:
    root = make_root(model="a", models=NAMES)
    sweep = {"prompt": "a fox steps=1", "matrix": {"seed": [1, 2, 3], "model": ["a", "b"]}}
    root.drop("sweep.json", json.dumps(sweep))
    root.finish()
    assert [job["model"] for job in root.jobs()] == list("ababab")
    assert loads(root) == ["a", "b"]
    with Bench(root.folder) as bench:
        [batch] = bench.store.batches()
        assert batch.axes == {"seed": [1, 2, 3], "model": ["a", "b"]}
        page = bench.client.get(f"/batches/{batch.ticket}", headers={"accept": "text/html"}).text
        assert page.count('<th scope="row" dir="auto">seed: ') == 3
        assert page.count('<th scope="col" dir="auto">model: ') == 2
        jobs, outputs = bench.store.jobs_of(batch.ticket), Outputs(bench.config.outputs)
        laid = bench.client.get(f"/batches/{batch.ticket}/sheet").content
        with (
            Image.open(io.BytesIO(contact_sheet(outputs, jobs))) as row,
            Image.open(io.BytesIO(laid)) as grid,
        ):
            assert row.width > grid.width and grid.height > row.height


def test_every_way_to_list_models_names_each_and_one_that_is_not_here(tmp_path: Path) -> None:
    models = MODELS | {"gone": "models/gone"}
    with Bench(tmp_path, model="starter", models=models) as bench:
        told = {one["name"]: one for one in bench.client.get("/models").json()["models"]}
        assert [name for name, one in told.items() if one["usual"]] == ["starter"]
        assert (told["large"]["width"], told["large"]["ready"]) == (320, True)
        assert (told["farm"]["engine"], told["farm"]["accepts"]) == ("engines:Guided", None)
        assert told["gone"]["message"] == "`models/gone` is not on this machine."
        assert told["gone"]["remedy"] == "Bring `models/gone` back."
        listed = bench.client.get("/v1/models").json()["data"]
        titles = bench.client.get("/sdapi/v1/sd-models").json()
        assert [one["id"] for one in listed] == [one["title"] for one in titles] == list(told)
        page = bench.client.get("/", headers={"accept": "text/html"}).text
        assert '<option value="large" data-width="320" data-height="320" data-steps="12"' in page
        assert 'value="Tongyi-MAI/Z-Image-Turbo"' not in page  # nobody asked for it
        asked = {"prompt": "a fox", "model": "gone"}
        kept = bench.client.post("/v1/images/generations", json=asked)
        assert (kept.status_code, "`models/gone` is not on this machine" in kept.text) == (
            503,
            True,
        )
        said = bench.post(model="gone")
        warned = bench.client.get(f"/jobs/{said['job_id']}").json()["warnings"]
        assert warned == [] or "`gone` is NOT READY" in warned[0]
        bench.watcher.take_in()
        [warning] = bench.client.get(f"/jobs/{said['job_id']}").json()["warnings"]
        assert warning.startswith("The model `gone` is NOT READY, so the job waits.")
        refused = bench.client.post("/generate-image", json={"prompt": "x", "model": "gnoe"})
        assert (refused.status_code, refused.json()["code"]) == (404, "model_not_found")
        assert "Did you mean `gone`?" in refused.text


def test_a_web_ui_s_checkpoint_is_a_model_by_name(tmp_path: Path) -> None:
    with Bench(tmp_path, model="starter", models=MODELS) as bench:
        chosen = {"sd_model_checkpoint": "large"}
        assert bench.client.post("/sdapi/v1/options", json=chosen).status_code == 200
        assert bench.client.get("/sdapi/v1/options").json()["sd_model_checkpoint"] == "large"
        wrong = bench.client.post("/sdapi/v1/options", json={"sd_model_checkpoint": "lerge"})
        assert wrong.status_code == 404


# -- sparing the card

NVML = """
from pathlib import Path
NVML_TEMPERATURE_GPU = 0
class NVMLError(Exception): ...

nvmlInit = bool
nvmlDeviceGetCount = lambda: 2
nvmlDeviceGetHandleByIndex = int
nvmlDeviceGetTemperature = lambda card, kind: int(Path({file!r}).read_text() or 0) - card
"""


def test_no_job_begins_on_a_card_that_is_too_hot(make_root: Callable[..., Root]) -> None:
    root = make_root(max_temperature=80)
    degrees, library = root.folder / "degrees", root.folder / "library"
    library.mkdir()
    (library / "pynvml.py").write_text(NVML.format(file=str(degrees)))
    degrees.write_text("86")
    root.extra["PYTHONPATH"] = os.pathsep.join([root.environment()["PYTHONPATH"], str(library)])
    root.drop("one.json", json.dumps({"prompt": "a fox steps=1"}))
    root.watch()
    words = "A card has 86 °C: the next job begins below 80 °C."
    until(lambda: words in root.pulse().get("notices", ()), what="words about the heat")
    until(lambda: root.states() == ["queued"], what="the job is recorded")
    degrees.write_text("79")
    root.wait_for("completed")
    until(lambda: root.pulse()["notices"] == [], what="nothing to say any more")


def test_a_worker_rests_between_two_pictures(make_root: Callable[..., Root]) -> None:
    root = make_root(cooldown="1s")
    root.drop("two.json", json.dumps({"prompt": "a fox steps=2", "count": 2}))
    root.finish()
    lines = [json.loads(line) for line in root.log.read_text().splitlines()]
    [_, begun] = [line["t"] for line in lines if line["event"] == "start"]
    [ended, _] = [line["t"] for line in lines if line["event"] == "finish"]
    assert begun - ended >= 1e9


def test_the_root_s_own_model_keeps_no_job_of_another_waiting(
    make_root: Callable[..., Root],
) -> None:
    root = make_root()
    sick = root.folder / "sick"
    sick.touch()
    config = json.loads((root.folder / "config.yaml").read_text())
    config["engine_options"] |= {"load_fault": "oom", "load_fault_while": str(sick)}
    config["models"] = {"well": {"source": "well", "options": {"load_fault": ""}}}
    (root.folder / "config.yaml").write_text(json.dumps(config))
    root.drop("own.json", json.dumps({"prompt": "own steps=1"}))
    root.watch()
    until(lambda: root.troubles() == {"out_of_memory"}, what="trouble with the root's own model")
    root.drop("other.json", of_models("well"))
    root.wait_for("queued", "completed")
    until(lambda: root.troubles() == {"out_of_memory"}, what="its jobs wait, and it is said")


def test_what_an_engine_turns_out_not_to_take_fails_the_job_and_no_other(
    make_root: Callable[..., Root],
) -> None:
    root = make_root()
    loads = root.folder / "loads"
    os.mkfifo(loads)
    options = {"log": str(root.log), "load_waits_for": str(loads)}
    root.configure(engine_options=options)
    write_loras(root.folder)
    jobs = ("lora: one", "upscale: 2 refine", "upscale: 2")
    root.drop("first.yaml", "".join(f"- {{prompt: a steps=1, {job}}}\n" for job in jobs))
    watcher = root.watch(once=True)
    until(lambda: len(root.states()) == len(jobs), what="on record: nobody knows yet")
    loads.write_bytes(b"")
    assert watcher.wait(60) == 0
    told = [(job["error_code"], job["error_message"]) for job in root.jobs()]
    assert told == [
        ("not_accepted", "This model does not take `lora`."),
        ("not_accepted", "This model does not take `image`."),
        (None, None),
    ]


def test_what_a_model_does_not_take_is_refused_before_the_queue() -> None:
    plain = Limits(Card(accepts=("guidance",)))
    with pytest.raises(SteadyError) as found:
        parse(b'{"prompt": "a fox", "image": "cat.png"}', ".json", Planner(plain))
    [fault] = found.value.problems
    assert (fault.code, fault.key) == ("not_accepted", "image")
    assert fault.message == "The model `Tongyi-MAI/Z-Image-Turbo` does not take `image`."
