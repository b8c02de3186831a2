"""Models by name: what a job may name, and what becomes of jobs of several models."""

import json
from pathlib import Path
from typing import Any

import pytest

from watcher.config import Config
from watcher.errors import SteadyError
from watcher.jobfile import parse
from watcher.jobs import Limits
from watcher.models import limits_known

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
        parse(json.dumps({"prompt": "a fox"} | job).encode(), ".json", limits(root))
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
    read = parse(f"[{text.replace(chr(10), ',')}]".encode(), ".json", limits(tmp_path))
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
