"""The real pipeline with the starter model, on the processor."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import forked
import numpy as np
import pytest
import torch
from conftest import until
from engines import a_job
from PIL import Image

from watcher.engine import (
    BadPicture,
    Cancelled,
    DeviceLost,
    EngineInfo,
    EngineRequest,
    EngineSettings,
    ModelMissing,
    OutOfMemory,
)
from watcher.engines.device import probe
from watcher.engines.files import inspect
from watcher.engines.latents import sigmas_of
from watcher.engines.placement import Placement
from watcher.engines.plan import DevicePlan
from watcher.engines.shortage import sparing_memory
from watcher.engines.trials import choose_attention, compile_if_faster
from watcher.engines.zimage import ZImage
from watcher.errors import SteadyError
from watcher.executor import Died, Failed, Picture, Ready, Step, WorkerSpec
from watcher.executor.local import LocalExecutor
from watcher.models.tokens import cut_of
from watcher.pictures.recipe import DETAILS

HERE = Path(__file__).parents[1]
STARTER = HERE.parent / "starter" / "model"
FOX = "a red circle on a blue background"


def ask(prompt: str = FOX, *, size: str = "64x64", seed: int = 5, steps: int = 9) -> EngineRequest:
    width, height = size.split("x")
    return EngineRequest(
        prompt=prompt, width=int(width), height=int(height), num_inference_steps=steps, seed=seed
    )


def nothing(done: int, total: int, preview: object = None) -> None:
    """A step nobody watches."""


def settings(**options: Any) -> EngineSettings:
    return EngineSettings(str(STARTER), "cpu", options={"warm_up": False, **options})


def loaded(kind: type[ZImage] = ZImage, **options: Any) -> ZImage:
    engine = kind(settings(**options))
    engine.load()
    return engine


@pytest.fixture(scope="module")
def engine() -> Iterator[ZImage]:
    """One engine for all tests that leave it as it was."""
    engine = ZImage(EngineSettings(str(STARTER), "cpu", options={"guidance": False}))
    engine.load()
    yield engine
    engine.close()


@pytest.fixture
def info(engine: ZImage) -> EngineInfo:
    return ZImage(settings()).load()


@pytest.fixture(scope="module")
def bare() -> Callable[..., np.ndarray[Any, Any]]:
    """diffusers' own pipeline, called as its users call it."""
    from diffusers import ZImagePipeline

    pipe = ZImagePipeline.from_pretrained(STARTER, dtype=torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)

    def draw(request: EngineRequest, forwards: int) -> np.ndarray[Any, Any]:
        image = pipe(
            request.prompt,
            width=request.width,
            height=request.height,
            num_inference_steps=forwards,
            guidance_scale=0.0,
            generator=torch.Generator("cpu").manual_seed(request.seed or 0),
        ).images[0]
        return np.asarray(image)

    return draw


# -- pixels


@pytest.mark.parametrize(
    ("size", "steps", "forwards"),
    [("64x64", 9, 8), ("96x48", 9, 8), ("48x80", 1, 1), ("64x64", 2, 1), ("64x64", 5, 4)],
)
def test_pixels_are_those_of_the_bare_pipeline(
    engine: ZImage, bare: Any, size: str, steps: int, forwards: int
) -> None:
    request = ask(size=size, steps=steps)
    seen: list[tuple[int, int]] = []
    result = engine.generate(request, lambda done, total, preview=None: seen.append((done, total)))
    assert result.image.mode == "RGB"
    assert np.array_equal(np.asarray(result.image), bare(request, forwards))
    assert seen == [(n, forwards) for n in range(1, forwards + 1)]
    assert result.facts["forwards"] == forwards
    assert result.timings.keys() == {"encode", "denoise", "decode"}


def test_same_request_same_pixels_whatever_ran_between(engine: ZImage) -> None:
    first = engine.generate(ask(), nothing).image.tobytes()
    engine.generate(ask("a green tree", size="128x32", seed=9), nothing)
    assert engine.generate(ask(), nothing).image.tobytes() == first
    assert engine.generate(ask(seed=6), nothing).image.tobytes() != first
    assert engine.generate(ask("a green tree"), nothing).image.tobytes() != first


def test_guidance_and_negative_prompt_change_nothing(engine: ZImage) -> None:
    plain = engine.generate(ask(), nothing).image.tobytes()
    request = ask().model_copy(update={"guidance_scale": 7.0, "negative_prompt": "blue"})
    again = engine.generate(request, nothing)
    assert again.image.tobytes() == plain
    assert (again.facts["forwards"], again.facts["cfg_scale"]) == (8, 1)


def test_sigmas_are_the_distilled_schedule() -> None:
    assert sigmas_of(1) == [1.0]
    assert sigmas_of(2) == [1.0, 0.5]
    assert np.allclose(sigmas_of(8), np.linspace(1, 1 / 8, 8), atol=0, rtol=1e-15)


def test_another_process_draws_the_same_and_survives_a_cancel(engine: ZImage) -> None:
    launch = partial(forked.launch, heavy=True)
    executor = LocalExecutor(WorkerSpec("zimage", str(STARTER), "cpu"), launch=launch)
    said: list[Any] = []

    def wait(kind: type, job: str | None = None) -> Any:
        def turn() -> Any:
            said.extend(executor.events(0.05))
            found = [e for e in said if type(e) is kind and (job is None or e.job_id == job)]
            assert not any(isinstance(e, Died) for e in said), said
            return found[:1]

        return until(turn, 100, f"{kind.__name__} {job}")[0]

    executor.start()
    try:
        ready = wait(Ready)
        executor.send(0, a_job("a", ask()))
        wait(Step, "a")
        executor.cancel("a")
        failed = wait(Failed, "a")
        executor.send(0, a_job("b", ask()))
        picture = wait(Picture, "b")
    finally:
        executor.stop(2)
    assert failed.code == "cancelled"
    assert picture.rgb == engine.generate(ask(), nothing).image.tobytes()
    assert ready.info["model"] == "starter"
    assert picture.info["details"]["tiled"] is False
    assert picture.info["forwards"] == 8  # those of the cancelled try are not this picture's


# -- counters, cache, cancel


def test_one_encoding_per_distinct_prompt() -> None:
    engine = loaded()
    for prompt in ("a fox", "an owl", "a fox", "a fox", ""):
        engine.generate(ask(prompt, steps=2), nothing)
    assert engine.counters == {"encodes": 3, "forwards": 5, "decodes": 5, "previews": 0}


def test_cached_prompt_gives_the_same_pixels(engine: ZImage) -> None:
    encodes, pictures = [], set()
    for _ in range(3):
        before = engine.counters["encodes"]
        pictures.add(engine.generate(ask("a cat"), nothing).image.tobytes())
        encodes.append(engine.counters["encodes"] - before)
        if len(encodes) == 1:
            engine._encode.cache_clear()
    assert (encodes, len(pictures)) == ([1, 1, 0], 1)


def test_an_encoded_prompt_keeps_nothing_but_itself(engine: ZImage) -> None:
    encoded, tokens = engine._encode("a fox")
    assert not encoded.requires_grad
    assert encoded._base is not None and encoded.nbytes < tokens * 4096  # a view of its own pages
    assert tokens < 30


def test_overlong_prompt_is_said_to_be_cut(engine: ZImage) -> None:
    cut = engine.generate(ask("house " * 600, steps=2), nothing).facts
    assert (cut["prompt_truncated"], cut["prompt_tokens"]) == (True, 512)
    assert cut["warnings"] == [cut_of(STARTER, "house " * 600)]  # what was said before the queue
    short = engine.generate(ask(steps=2), nothing).facts
    assert (short["prompt_truncated"], "warnings" in short) == (False, False)


def test_an_exact_fit_is_not_said_to_be_cut(engine: ZImage) -> None:
    words = next(n for n in range(100, 600) if cut_of(STARTER, " ".join(["house"] * n)))
    for prompt in (
        " ".join(["house"] * (words - k)) + " a" * more for k in (1, 2) for more in range(3)
    ):
        facts = engine.generate(ask(prompt, steps=2), nothing).facts
        assert facts["prompt_truncated"] == (cut_of(STARTER, prompt) is not None)
        if facts["prompt_tokens"] == 512 and not facts["prompt_truncated"]:
            break
    else:
        pytest.fail("none of these fills the encoder exactly")


def test_cancel_stops_at_the_step_and_leaves_the_engine_as_it_was(engine: ZImage) -> None:
    whole = engine.generate(ask(), nothing).image.tobytes()
    before = dict(engine.counters)

    def third(done: int, total: int, preview: object = None) -> None:
        if done == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        engine.generate(ask(), third)
    took = {name: engine.counters[name] - before[name] for name in before}
    assert took == {"encodes": 0, "forwards": 3, "decodes": 0, "previews": 0}
    assert engine.generate(ask(), nothing).image.tobytes() == whole


# -- bad pictures


@pytest.mark.parametrize("part", ["transformer", "vae"])
def test_numbers_that_are_none_are_no_picture(part: str) -> None:
    engine = loaded()
    with torch.no_grad():
        next(getattr(engine._pipe, part).parameters()).fill_(float("nan"))
        engine._pipe.vae.decoder.conv_out.weight.mul_(1.0 if part == "transformer" else np.nan)
    with pytest.raises(BadPicture) as caught:
        engine.generate(ask(), nothing)
    assert caught.value.code == "non_finite"
    assert engine.counters["decodes"] == (0 if part == "transformer" else 1)


@pytest.mark.parametrize("size", ["100x64", "64x8", "0x64", "64x4112"])
def test_impossible_sizes_never_reach_the_device(engine: ZImage, size: str) -> None:
    before = dict(engine.counters)
    width, height = (int(n) for n in size.split("x"))
    with pytest.raises(ValueError, match="multiples of 16, 16 to 4096"):
        engine.generate(ask().model_copy(update={"width": width, "height": height}), nothing)
    assert engine.counters == before


# -- memory


class Tight(ZImage):
    """Cannot decode a picture whole."""

    tile = 32
    tiles_fit = True

    def __init__(self, settings: EngineSettings) -> None:
        super().__init__(settings)
        self.tried: list[bool] = []

    def _decode(self, latents: torch.Tensor) -> Any:
        tiled = self._pipe.vae.use_tiling
        self.tried.append(tiled)
        if not tiled:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        if not self.tiles_fit:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return super()._decode(latents)


@pytest.fixture
def tight() -> Tight:
    engine = loaded(Tight)
    assert isinstance(engine, Tight)
    return engine


def test_decode_without_room_is_done_in_tiles_without_a_second_denoise(tight: Tight) -> None:
    result = tight.generate(ask(), nothing)
    assert tight.tried == [False, True]
    assert result.facts["details"]["tiled"] is True
    assert tight.counters["forwards"] == 8
    tight.generate(ask(size="96x64"), nothing)
    assert tight.tried == [False, True, True]  # known now, and of larger ones too


def test_out_of_memory_after_the_second_way_is_final_and_survivable(tight: Tight) -> None:
    tight.tiles_fit = False
    with pytest.raises(OutOfMemory, match="can't allocate memory"):
        tight.generate(ask(), nothing)
    assert tight.tried == [False, True]  # the same settings are never tried twice
    with pytest.raises(OutOfMemory, match="Tried to allocate"):
        tight.generate(ask(size="32x32"), nothing)
    assert tight.tried == [False, True, False]  # one tile would be all of it
    tight.tiles_fit = True
    tight.generate(ask(), nothing)


class Small(ZImage):
    """Decodes in small tiles."""

    tile = 64


def test_tiles_look_like_the_whole(engine: ZImage) -> None:
    request = ask(size="112x96", steps=5)
    whole = np.asarray(engine.generate(request, nothing).image).astype(int)
    result = loaded(Small, tile_above=0).generate(request, nothing)
    tiled = np.asarray(result.image).astype(int)
    assert result.facts["details"]["tiled"] is True
    assert not np.array_equal(whole, tiled)  # it really took the other way
    assert np.abs(whole - tiled).mean() < 4


class Card(Placement):
    """A card whose memory ends at so many pixels per tier. Computes on the processor."""

    room = MappingProxyType({"resident": 64 * 64, "offload": 128 * 64, "stream": 128 * 128})

    def _move(self, tier: str) -> None:
        pass

    def wait(self) -> None:
        pass

    def free(self) -> None:
        pass


def on_a_card(engine: ZImage) -> DevicePlan:
    return dataclasses.replace(engine._placement._plan, device="cuda:0")


class Ladder(ZImage):
    """Lies on a Card, and keeps a record of the tiers that were tried."""

    tiers: list[str]

    def load(self) -> EngineInfo:
        found = super().load()
        self._placement = Card(self._pipe, on_a_card(self), tile=self.tile)
        return found

    def _denoise(self, request: EngineRequest, *rest: Any) -> torch.Tensor:
        if not isinstance(self._placement, Card):
            return super()._denoise(request, *rest)
        self.tiers.append(self._placement.tier)
        if (request.width or 0) * (request.height or 0) > Card.room[self._placement.tier]:
            raise torch.OutOfMemoryError("no room")
        return super()._denoise(request, *rest)


def test_memory_ladder_is_climbed_down_once_and_remembered() -> None:
    engine = loaded(Ladder)
    assert isinstance(engine, Ladder)

    def tiers(size: str) -> list[str]:
        engine.tiers = []
        engine.generate(ask(size=size, steps=2), nothing)
        return engine.tiers

    assert tiers("64x64") == ["resident"]
    assert tiers("128x128") == ["resident", "offload", "stream"]
    assert tiers("128x128") == ["stream"]  # known now
    assert tiers("128x64") == ["resident", "offload"]
    assert tiers("64x64") == ["resident"]  # small ones are as fast as before
    assert engine.generate(ask(steps=2), nothing).facts["details"]["tier"] == "resident"
    with pytest.raises(OutOfMemory, match="no room"):
        tiers("256x128")
    assert engine.tiers == ["stream"]


def test_every_tier_draws_the_same_and_leaves_nothing_behind(engine: ZImage) -> None:
    """Streaming included, as far as it goes without a card."""
    small = ask(size="32x32", steps=4)
    want = engine.generate(small, nothing).image.tobytes()
    moving = loaded()
    placement = moving._placement
    for tier in ("stream", "offload", "stream", "resident"):
        placement._settle(tier)
        moving._encode.cache_clear()
        assert moving._draw(small, nothing).image.tobytes() == want
        for error in (Cancelled(), torch.OutOfMemoryError("CUDA out of memory.")):
            with pytest.raises((Cancelled, OutOfMemory)):
                moving._draw(small, raising(error))
            assert moving._draw(small, nothing).image.tobytes() == want
        for part, streamed in (
            ("text_encoder", ("offload", "stream")),
            ("transformer", ("stream",)),
        ):
            hooks = [m for m in getattr(moving._pipe, part).modules() if _hooked(m)]
            assert bool(hooks) == (tier in streamed)


def raising(error: Exception) -> Callable[..., None]:
    """A step in whose middle something happens."""

    def step(done: int, total: int, preview: object = None) -> None:
        if done == 2:
            raise error

    return step


def test_a_size_that_found_no_room_once_is_tried_again_after_a_while(engine: ZImage) -> None:
    clock = [0.0]
    card = Card(engine._pipe, on_a_card(engine), tile=512, clock=lambda: clock[0])
    tiers: list[str] = []

    def work() -> None:
        tiers.append(card.tier)
        if tiers == ["resident"]:
            raise OutOfMemory("a browser has it")

    for clock[0] in (0.0, 599.0, 601.0):
        card.run(1, work)
    assert tiers == ["resident", "offload", "offload", "resident"]

    def decode() -> None:
        if not engine._pipe.vae.use_tiling and clock[0] == 700.0:
            raise OutOfMemory("a browser has it")

    told = []
    for clock[0] in (700.0, 1299.0, 1301.0):
        told.append(card.whole_or_tiled((1024, 16), decode)[1])
    assert told == [True, True, False]


@pytest.mark.parametrize(
    "words",
    [
        "GET was unable to find an engine to execute this computation",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "MPS backend out of memory (MPS allocated: 8.00 GB)",
    ],
)
def test_a_shortage_is_one_in_whatever_words(words: str) -> None:
    def work() -> None:
        raise RuntimeError(words)

    with pytest.raises(OutOfMemory):
        sparing_memory(work)


class Loud:
    """A transformer that knows some attention backends, and how each fails."""

    def __init__(self, **fails: Exception) -> None:
        self.fails, self.now, self.tried = fails, "", []  # type: tuple[Any, str, list[str]]
        self.clock = 0.0  #: seconds

    def set_attention_backend(self, name: str) -> None:
        self.now = name
        self.tried.append(name)

    def draw(self, side: int, forwards: int) -> Image.Image:
        if self.now in self.fails:
            raise self.fails[self.now]
        self.clock += 0.01 if self.now == "quick" else 0.02
        return Image.new("RGB", (1, 1), (self.now == "odd" and "red") or "blue")


@pytest.mark.parametrize(
    "error",
    [TypeError("unexpected keyword"), OSError("offline"), AssertionError(), ImportError("sage"),
     torch.AcceleratorError("CUDA error: no kernel image is available for execution")],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_attention_that_fails_in_any_way_is_not_used(error: Exception) -> None:
    scripted = Loud(sage=error)
    assert choose_attention(scripted, ("sage", "native"), scripted.draw) == "native"
    assert scripted.now == "native"


def test_attention_that_kills_the_device_is_no_reason_to_go_on() -> None:
    scripted = Loud(sage=torch.AcceleratorError("CUDA error: an illegal memory access"))
    with pytest.raises(torch.AcceleratorError):
        choose_attention(scripted, ("sage", "native"), scripted.draw)


def test_the_fastest_attention_is_kept_and_its_pixels_are_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    scripted = Loud(broken=TypeError())

    def fastest(*names: str) -> str:
        return choose_attention(
            scripted, names, scripted.draw, race=True, clock=lambda: scripted.clock
        )

    assert fastest("broken", "quick", "native") == "quick"
    assert "the same pixels as native" in caplog.text
    assert fastest("slow", "native") == "native"
    assert scripted.now == "native"


class Blocks(torch.nn.Module):
    """A transformer whose compiled blocks draw nothing that is a picture."""

    compiled = False
    fault: Exception = BadPicture("non_finite", "Not a number.")

    def compile_repeated_blocks(self, *, dynamic: bool) -> None:
        self.compiled = True
        self._compiled_call_impl = self.forward

    def draw(self, side: int, forwards: int) -> Image.Image:
        if self.compiled:
            raise self.fault
        return Image.new("RGB", (1, 1))


@pytest.mark.parametrize("fault", [Blocks.fault, torch.OutOfMemoryError("CUDA out of memory")])
def test_compiled_blocks_that_draw_no_picture_are_taken_back(fault: Exception) -> None:
    blocks = Blocks()
    blocks.fault = fault
    assert compile_if_faster(blocks, blocks.draw) is False
    assert blocks._compiled_call_impl is None


class Fickle(ZImage):
    """Draws its second small picture otherwise."""

    seen = 0

    def _try_out(self, side: int = 64, forwards: int = 1) -> Image.Image:
        self.seen += 1
        return super()._try_out(side + 16 * self.seen, forwards)


def test_a_model_that_does_not_repeat_itself_is_not_ready() -> None:
    with pytest.raises(SteadyError, match="came out different") as caught:
        Fickle(EngineSettings(str(STARTER), "cpu")).load()
    assert caught.value.code == "model_unfit"


def test_what_is_tried_at_load_changes_no_pixel(engine: ZImage) -> None:
    tried = loaded(attention="fastest")
    drawn = tried.generate(ask(), nothing)
    assert drawn.image.tobytes() == engine.generate(ask(), nothing).image.tobytes()


def _hooked(module: torch.nn.Module) -> bool:
    registry = getattr(module, "_diffusers_hook", None)
    return registry is not None and bool(registry.hooks)


# -- loading


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the starter to spoil."""
    folder = tmp_path / "copy"
    shutil.copytree(STARTER, folder)
    return folder


def load_error(model: Path | str, device: str = "cpu") -> Exception:
    with pytest.raises((ModelMissing, SteadyError, DeviceLost)) as caught:
        ZImage(EngineSettings(str(model), device)).load()
    return caught.value


def test_info_says_what_was_loaded(info: EngineInfo) -> None:
    assert (info.model, info.device, info.dtype, info.attention) == (
        "starter",
        "cpu",
        "float32",
        "native",
    )
    assert (info.revision or "").startswith("sha256:")
    assert set(info.versions) == {"torch", "diffusers", "transformers", "python"}
    assert (info.memory or 0) > 10_000_000
    assert info.details["tier"] == "resident"
    no_pixel = {"device_name", "tile_above", "because"}
    assert info.details.keys() - no_pixel == set(DETAILS), "all else is in every recipe"
    json.dumps(dataclasses.asdict(info))
    assert str(STARTER) not in repr(info)


@pytest.mark.parametrize(
    "model", ["/nonexistent/model", "Nobody/No-Such-Model", "no name", "starter/nothing/here"]
)
def test_absent_model_is_missing_and_never_fetched(model: str) -> None:
    assert isinstance(load_error(model), ModelMissing)


def test_incomplete_model_is_missing(model: Path) -> None:
    weights = model / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    assert "transformer/*.safetensors is missing" in str(load_error(model))
    index = {"weight_map": {"a": "one.safetensors"}}
    (weights.parent / "x.safetensors.index.json").write_text(json.dumps(index))
    assert "transformer/one.safetensors is missing" in str(load_error(model))
    (model / "model_index.json").unlink()
    assert "model_index.json is missing" in str(load_error(model))


def test_torn_model_is_damaged(model: Path) -> None:
    weights = model / "vae" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    for torn in (whole[:-1], whole[:100], whole[:4], b"", b"\xff" * 64):
        weights.write_bytes(torn)
        error = load_error(model)
        assert isinstance(error, SteadyError)
        assert error.code == "model_damaged"
        assert "vae/diffusion_pytorch_model.safetensors is not whole" in error.message


def test_model_of_another_kind_is_refused(model: Path) -> None:
    index = json.loads((model / "model_index.json").read_text())
    index["_class_name"] = "FluxPipeline"
    (model / "model_index.json").write_text(json.dumps(index))
    assert "is a FluxPipeline, not a ZImagePipeline" in str(load_error(model))
    (model / "model_index.json").write_text("{")
    assert "model_index.json cannot be read" in str(load_error(model))


@pytest.mark.parametrize("part", ["transformer", "text_encoder"])
def test_weights_that_are_absent_are_not_made_up(model: Path, part: str) -> None:
    path = model / part / "config.json"
    config = json.loads(path.read_text())
    config["n_layers" if part == "transformer" else "num_hidden_layers"] += 1
    config.pop("layer_types", None)
    path.write_text(json.dumps(config))
    assert inspect(model).digest != inspect(STARTER).digest
    error = load_error(model)
    assert isinstance(error, SteadyError)
    assert error.code == "model_damaged"
    assert f"{part} lacks" in error.message


def test_model_that_cannot_compute_is_not_ready(model: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = model / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    save_file({name: torch.full_like(t, float("nan")) for name, t in tensors.items()}, path)
    error = load_error(model)
    assert isinstance(error, SteadyError)
    assert error.code == "model_unfit"
    assert "cannot compute here in float32" in error.message


def test_revision_follows_the_weights_and_nothing_else(model: Path) -> None:
    first = inspect(model)
    assert first == inspect(STARTER)
    assert first.weights.transformer > first.weights.vae > 1_000_000
    path = model / "transformer" / "diffusion_pytorch_model.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert inspect(model).digest != first.digest


@pytest.mark.parametrize(
    ("device", "kind"), [("cuda:99", DeviceLost), ("cuda:x", SteadyError), ("tpu", SteadyError)]
)
def test_device_that_is_not_there(device: str, kind: type[Exception]) -> None:
    assert isinstance(load_error(STARTER, device), kind)


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has one")
def test_absent_apple_device() -> None:
    assert isinstance(load_error(STARTER, "mps"), DeviceLost)


def test_bfloat16_on_the_processor_is_close(engine: ZImage) -> None:
    half = ZImage(EngineSettings(str(STARTER), "cpu", "bfloat16", {"warm_up": False}))
    assert half.load().dtype == "bfloat16"
    ours = np.asarray(half.generate(ask(), nothing).image).astype(int)
    exact = np.asarray(engine.generate(ask(), nothing).image).astype(int)
    assert np.abs(ours - exact).mean() < 8


def test_probe_names_the_devices() -> None:
    found = probe()
    assert found["cpu"]["cores"] >= 1
    assert found["cpu"]["total"] > 10**8
    assert isinstance(found["cuda"], list)
    json.dumps(found)
