"""Bytes of a job file become planned jobs, or an error a person can act on."""

from watcher.jobfile import parse
from watcher.jobs import Limits


def test_only_a_prompt_is_required() -> None:
    parsed = parse(b"prompt: a red fox", ".yaml", Limits())
    (planned,) = parsed.requests
    assert planned.request.prompt == "a red fox"
    assert (planned.request.width, planned.request.height) == (1024, 1024)
    assert planned.stem is None
