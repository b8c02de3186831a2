"""What only a CUDA card can show. docs/gpu.md lists each with the command that runs it.

All but the last need no more than the starter model and 2 GB on the card.
"""

import gc
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import until
from engines import a_job

from watcher.engine import Cancelled, EngineInfo, EngineRequest, EngineSettings, Report, Result
from watcher.engines.device import probe
from watcher.engines.zimage import ZImage
from watcher.executor import Died, Failed, Picture, Ready, Step, WorkerSpec
from watcher.executor.local import LocalExecutor

HERE = Path(__file__).parents[1]
STARTER = HERE.parent / "starter" / "model"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def ask(size: int = 256, *, prompt: str = "a red circle", seed: int = 5) -> EngineRequest:
    return EngineRequest(prompt=prompt, width=size, height=size, num_inference_steps=9, seed=seed)


def nothing(done: int, total: int, preview: object = None) -> None:
    """A step nobody watches."""


def loaded(dtype: str = "auto", **options: Any) -> tuple[ZImage, EngineInfo]:
    engine = ZImage(EngineSettings(str(STARTER), "cuda", dtype, options))
    return engine, engine.load()


def held() -> int:
    """Bytes on the card in use, without the workspaces that cuBLAS keeps for each stream."""
    gc.collect()
    torch._C._cuda_clearCublasWorkspaces()
    return int(torch.cuda.memory_allocated())


class Poisoned(ZImage):
    """Breaks the device's context when the prompt says so (runs in a worker)."""

    def generate(self, request: EngineRequest, report: Report) -> Result:
        if request.prompt == "poison":
            torch.zeros(1, device="cuda")[torch.tensor([5], device="cuda")]
            torch.cuda.synchronize()
        return super().generate(request, report)


def conversation(executor: LocalExecutor) -> Callable[..., Any]:
    """``wait(kind, job)`` on an executor; other events are kept for later waits."""
    said: list[Any] = []

    def wait(kind: type, job: str | None = None, count: int = 1) -> Any:
        def turn() -> Any:
            said.extend(executor.events(0.05))
            found = [e for e in said if type(e) is kind and (job is None or e.job_id == job)]
            return found[count - 1 : count]

        return until(turn, 120, f"{kind.__name__} {job}")[0]

    return wait


def test_gpu_probe_describes_the_card() -> None:
    card = probe(memory=True)["cuda"][0]
    assert card["name"]
    assert card["capability"] >= [7, 0]
    assert 0 < card["free"] <= card["total"]


def test_gpu_dtype_follows_the_card() -> None:
    _, info = loaded()
    modern = torch.cuda.get_device_capability() >= (8, 0)
    assert info.dtype == ("bfloat16" if modern else "float32")
    assert info.device == "cuda:0"


def test_gpu_same_request_same_pixels_across_processes() -> None:
    engine, _ = loaded()
    first = engine.generate(ask(), nothing).image.tobytes()
    engine.generate(ask(512, prompt="another"), nothing)
    assert engine.generate(ask(), nothing).image.tobytes() == first
    executor = LocalExecutor(WorkerSpec("zimage", str(STARTER), "cuda"))
    wait = conversation(executor)
    executor.start()
    try:
        wait(Ready)
        executor.send(0, a_job("a", ask()))
        assert wait(Picture, "a").rgb == first
    finally:
        executor.stop(2)


@pytest.mark.parametrize("tier", ["offload", "stream"])
def test_gpu_tiers_draw_the_same_with_less_memory(tier: str) -> None:
    resident, _ = loaded(tier="resident")
    want = resident.generate(ask(), nothing).image.tobytes()
    whole = held()
    resident.close()
    del resident
    before = held()
    engine, info = loaded(tier=tier)
    assert info.details["tier"] == tier
    assert engine.generate(ask(), nothing).image.tobytes() == want
    assert held() - before < whole - before - (0 if tier == "offload" else 5_000_000)


@pytest.mark.parametrize("tier", ["resident", "offload", "stream"])
def test_gpu_cancel_leaves_every_tier_usable(tier: str) -> None:
    engine, _ = loaded(tier=tier)
    want = engine.generate(ask(), nothing).image.tobytes()

    def third(done: int, total: int) -> None:
        if done == 3:
            raise Cancelled

    before = engine.counters["forwards"]
    with pytest.raises(Cancelled):
        engine.generate(ask(), third)
    assert engine.counters["forwards"] - before == 3  # no step was under way ahead of it
    assert engine.generate(ask(), nothing).image.tobytes() == want


def test_gpu_streaming_ends_when_a_picture_fits_again() -> None:
    engine, _ = loaded(tier="resident")
    want = engine.generate(ask(), nothing).image.tobytes()
    placement = engine._placement
    whole = held()
    for _ in range(2):
        placement._settle("stream")
        assert held() < whole - 5_000_000  # the transformer is 10 MB
        assert engine._draw(ask(), nothing).image.tobytes() == want
        assert engine.generate(ask(), nothing).image.tobytes() == want
        assert placement.tier == "resident"
        assert held() > whole - 5_000_000


def test_gpu_decode_without_room_is_done_in_tiles() -> None:
    engine, _ = loaded(tier="resident", tile_above=10**9)
    peaks = []
    for tiled in (True, False):
        engine.generate(ask(1024), nothing)
        torch.cuda.reset_peak_memory_stats()
        latents = torch.randn(1, 16, 128, 128, device="cuda")
        engine._pipe.vae.use_tiling = tiled
        engine._decode(latents)
        peaks.append(torch.cuda.max_memory_allocated())
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(sum(peaks) / 2 / total)
    before = engine.counters["decodes"]
    try:
        result = engine.generate(ask(1024), nothing)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert result.facts["details"]["tiled"] is True
    assert engine.counters["decodes"] - before == 2


def test_gpu_attention_backends_fall_back() -> None:
    _, info = loaded(attention="sage_varlen")  # hardly anywhere installed, no use with Z-Image
    assert info.attention in ("sage_varlen", "native")
    _, info = loaded(attention="_native_flash")
    assert info.attention in ("_native_flash", "native")
    _, info = loaded(attention="fastest")
    assert info.attention in ("_flash_3", "_native_cudnn", "_native_flash", "native")


def test_gpu_tf32_is_used_for_float32() -> None:
    _, info = loaded("float32")
    assert info.details["tf32"] is True
    assert torch.get_float32_matmul_precision() == "high"


@pytest.mark.timeout(900)
def test_gpu_compile_is_kept_only_if_faster() -> None:
    engine, info = loaded(compile=True, tier="resident")
    assert info.details["compiled"] in (True, False)
    assert engine.generate(ask(), nothing).image.size == (256, 256)


def test_gpu_quantised_weights_draw() -> None:
    pytest.importorskip("bitsandbytes")
    engine, info = loaded(quantize="nf4")
    assert info.details["quantize"] == "nf4"
    assert engine.generate(ask(), nothing).image.size == (256, 256)


def test_gpu_poisoned_context_costs_the_worker_and_not_the_service(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{HERE}{os.pathsep}{Path(__file__).parent}")
    executor = LocalExecutor(WorkerSpec("test_gpu:Poisoned", str(STARTER), "cuda"))
    wait = conversation(executor)
    executor.start()
    try:
        wait(Ready)
        executor.send(0, a_job("bad", ask(prompt="poison")))
        died = wait(Died)
        assert died.lost == [("bad", 1, True)]
        assert died.how.startswith("left on purpose after")
        wait(Ready, count=2)
        executor.send(0, a_job("good", ask()))
        wait(Picture, "good")
    finally:
        executor.stop(2)


def test_gpu_cancel_of_a_worker_takes_one_step() -> None:
    executor = LocalExecutor(WorkerSpec("zimage", str(STARTER), "cuda"))
    wait = conversation(executor)
    executor.start()
    try:
        wait(Ready)
        executor.send(0, a_job("a", ask(1024)))
        wait(Step, "a")
        executor.cancel("a")
        assert wait(Failed, "a").code == "cancelled"
    finally:
        executor.stop(2)


def test_gpu_idle_unload_gives_all_memory_back() -> None:
    code = "import torch; print(torch.cuda.mem_get_info()[0])"

    def free() -> int:
        out = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True)
        return int(out.stdout)

    before = free()
    executor = LocalExecutor(WorkerSpec("zimage", str(STARTER), "cuda"), idle_unload=5)
    wait = conversation(executor)
    executor.start()
    try:
        wait(Ready)
        assert free() < before - 50_000_000

        def unloaded() -> bool:
            executor.events(0.1)
            return executor.status()[0]["state"] == "unloaded"

        until(unloaded, 30)
        assert abs(free() - before) < 20_000_000
    finally:
        executor.stop(2)


@pytest.mark.timeout(900)  # 33 GB from a cold disk
@pytest.mark.skipif("Z_IMAGE_MODEL" not in os.environ, reason="Z_IMAGE_MODEL names no model")
def test_gpu_real_model_draws_its_native_size() -> None:
    engine = ZImage(EngineSettings(os.environ["Z_IMAGE_MODEL"], "cuda"))
    info = engine.load()
    result = engine.generate(ask(1024, prompt="a red fox in the snow, photograph"), nothing)
    assert np.asarray(result.image).std() > 20
    assert result.facts["forwards"] == 8
    print(info, result)
