"""Which executor the configuration asks for."""

import importlib.util
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from watcher.config import Config
from watcher.errors import SteadyError
from watcher.executor import Executor, WorkerSpec
from watcher.executor.local import LocalExecutor
from watcher.executor.ray import environment as rayenv
from watcher.executor.ray.slots import FarExecutor
from watcher.limits import Limits
from watcher.models import Choice, Devices, Probe
from watcher.models.cards import where_it_is
from watcher.previews import Previews
from watcher.program import Launch, extra_missing


def build(
    config: Config,
    choice: Choice,
    probe: Probe,
    limits: Limits,
    first: str = "",
    launch: Launch = subprocess.Popen,
) -> Executor:
    """The executor of this root, not started; its workers begin with the model named ``first``,
    in processes that ``launch`` starts.

    Raises SteadyError: ``bad_config``; ``extra_missing`` when Ray is asked for and not
    installed; ``worker_unavailable`` when the probe for ``devices: auto`` does not answer.
    """
    device = choice.device
    if config.executor == "ray" and device.startswith("cuda"):
        device = "cuda"  # an actor sees the card it was given, and no other
    usual = limits.usual
    spec = WorkerSpec(
        engine=usual.engine,
        model=where_it_is(usual.source, config),
        device=device,
        dtype=config.dtype,
        options=usual.options,
        name=usual.name,
        first=first,
        keep=str(Previews(config.state).folder),
    )
    others = {
        card.name: replace(
            spec, engine=card.engine, model=where_it_is(card.source, config),
            options=card.options, name=card.name,
        )
        for card in limits.others.values()
    }  # fmt: skip
    spec = replace(spec, others=others)
    patience: dict[str, Any] = {
        "load_timeout": config.load_timeout_seconds,
        "step_timeout": config.step_timeout_seconds,
        "job_timeout": config.job_timeout_seconds,
        "idle_unload": config.idle_unload,
    }
    if config.executor == "ray":
        return _on_ray(config, spec, patience)
    devices = config.devices
    if devices == ["auto"] and not choice.waits:
        devices = [found for found in probe().names if found != "cpu"]
    elif devices == ["auto"]:
        devices = []
    return LocalExecutor(spec, devices or [device], launch=launch, **patience)


def probe_of(config: Config, probe: Probe) -> Probe:
    """Who tells which devices there are: on Ray the slots' own, wherever they are."""
    if config.executor == "local":
        return probe
    return lambda: Devices(["cuda", "cpu"] if "GPU" in _need(config) else ["cpu"])


def _need(config: Config) -> Mapping[str, float]:
    """What one slot takes of its machine."""
    return config.ray_resources or ({"CPU": 1} if config.device == "cpu" else {"GPU": 1})


def _on_ray(config: Config, spec: WorkerSpec, limits: Mapping[str, Any]) -> Executor:
    if config.devices:
        raise SteadyError(
            "bad_config",
            "`devices` is for `executor: local`.",
            remedy="On Ray set `ray_slots` and `ray_resources`.",
        )
    if importlib.util.find_spec("ray") is None:
        raise extra_missing("`executor: ray`", "Ray", "ray")
    rayenv.settle(config.ray_address, config.state)
    from watcher.executor.ray.cluster import RayLine

    line = RayLine(
        spec,
        address=config.ray_address,
        state=config.state,
        slots=None if config.ray_slots == "auto" else config.ray_slots,
        resources=_need(config),
        limits=limits,
    )
    return FarExecutor(spec, line)
