"""Z-Image on diffusers: the one engine of the product, and the only importer of torch.

Loads a folder (or what lies in the hub's cache) and never downloads. The starter model and
Z-Image-Turbo go through this same code. Everything a picture depends on is fixed here: the
sigmas, the generator, guidance 0, the dtype; so one request gives the same pixels whenever it
runs on the same kind of device.
"""

import contextlib
import dataclasses
import functools
import gc
import hashlib
import importlib.metadata
import itertools
import json
import logging
import os
import platform
import re
import struct
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image

from watcher.engine import (
    BadPicture,
    DeviceLost,
    EngineInfo,
    EngineSettings,
    ModelMissing,
    OutOfMemory,
)
from watcher.errors import SteadyError
from watcher.jobs import JobRequest, forwards_of
from watcher.model import folder_of, revision_of
from watcher.plan import DeviceDescription, Options, Plan, Weights, plan

log = logging.getLogger("watcher.zimage")

PARTS = ("transformer", "text_encoder", "vae")
MAX_TOKENS = 512  #: of a prompt with its template; the tokenizer cuts what is longer
T = TypeVar("T")

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


class ZImage:
    """One Z-Image pipeline on one device (see watcher.engine for the protocol).

    Attributes:
        last: of the newest picture: seconds of ``encode``, ``denoise`` and ``decode``; how many
            ``encodes``, ``forwards`` and ``decodes`` it took; ``prompt_tokens``;
            ``prompt_truncated``; and ``info``, what differed from the EngineInfo.
        counters: the same counts since load, cancelled and failed pictures included.
    """

    tile = 512  #: pixels on a side of one tile of a decode

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._options = Options.of(settings.options)
        self._pipe: Any = None
        self._plan: Plan | None = None
        self._tier = "resident"
        self._need: dict[int, str] = {}  #: pixels -> the tier it took
        self._embeddings = _Embeddings(self._options.embed_cache)
        self._details: dict[str, Any] = {}
        self.counters = {"encodes": 0, "forwards": 0, "decodes": 0}
        self.last: dict[str, Any] = {}

    # -- load

    def load(self) -> EngineInfo:
        """Read the weights onto the device. Raises ModelMissing, DeviceLost, OutOfMemory, and
        SteadyError ``model_damaged``, ``bad_config`` or ``extra_missing``."""
        folder, commit = locate(self._settings.model, self._options.revision)
        contents = inspect(folder)
        description = describe(self._settings.device)
        chosen = plan(description, self._options, self._settings.dtype, contents.weights)
        self._plan = chosen
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
        for sentence in chosen.because:
            log.info("%s: %s", description.name or description.device, sentence)
        if self._options.threads is not None:
            torch.set_num_threads(self._options.threads)
        if chosen.tf32:
            torch.set_float32_matmul_precision("high")
            torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.deterministic = True
        self._pipe = _sparing_memory(lambda: _read_pipeline(folder, chosen))
        self._tier = ""
        chosen = self._plan = dataclasses.replace(chosen, tier=self._place(chosen))
        self._count_calls()
        attention = self._choose_attention(chosen)
        compiled = chosen.compile and chosen.tier == "resident" and self._compile()
        if self._options.warm_up:
            self._must_work()
        self._embeddings.clear()
        self.counters.update(encodes=0, forwards=0, decodes=0)
        self._details = {
            "device_name": description.name,
            "tier": chosen.tier,
            "quantize": chosen.quantize,
            "tf32": chosen.tf32,
            "compiled": compiled,
            "tiled": False,
            "tile_above": chosen.tile_above,
            "because": list(chosen.because),
        }
        return EngineInfo(
            model=self._settings.model if commit else _name_of(folder),
            revision=commit or contents.digest,
            device=chosen.device,
            dtype=chosen.dtype,
            memory=self._memory(),
            attention=attention,
            versions={
                **{
                    n: importlib.metadata.version(n) for n in ("torch", "diffusers", "transformers")
                },
                "python": platform.python_version(),
            },
            details=dict(self._details),
        )

    def _place(self, chosen: Plan) -> str:
        """Put the weights where the plan says, or a tier lower where it was too hopeful."""
        tier: str | None = chosen.tier
        words = ""
        while tier is not None:
            try:
                _sparing_memory(functools.partial(self._settle_on, tier))
            except OutOfMemory as error:
                words = str(error)
            else:
                return tier
            tier = chosen.below(tier)
        raise OutOfMemory(words)

    def _count_calls(self) -> None:
        """Count what the parts really do, whoever calls them."""

        def counting(name: str) -> Callable[..., None]:
            def count(*_: Any) -> None:
                self.counters[name] += 1

            return count

        self._pipe.transformer.register_forward_pre_hook(counting("forwards"))
        self._pipe.text_encoder.register_forward_pre_hook(counting("encodes"))

    def _choose_attention(self, chosen: Plan) -> str:
        """The first backend that draws a finite picture; it holds for the whole process."""
        for name in chosen.attention:
            if name == "native" and name == chosen.attention[0]:
                return name  # diffusers' own default: nothing to set
            try:
                self._pipe.transformer.set_attention_backend(name)
                self._try_out()
            except (RuntimeError, ValueError, ImportError, BadPicture) as error:
                if name == "native" or _is_poison(error):
                    raise
                log.info("attention %s: cannot be used (%s)", name, error)
            else:
                log.info("attention: %s", name)
                return name
        return "native"

    def _compile(self) -> bool:
        """Compile the repeated blocks; undone when that is not faster."""
        cache = Path.home() / ".cache" / "steadydiffusion" / "inductor"
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))
        plain = self._race()
        try:
            self._pipe.transformer.compile_repeated_blocks(dynamic=True)
            self._race()  # compiles
            compiled = self._race()
        except RuntimeError as error:
            if _is_poison(error) or _is_out_of_memory(error):
                raise
            log.warning("compile: not possible here (%s)", " ".join(str(error).split())[:300])
        else:
            log.info("compile: %.3f s a picture, %.3f s without", compiled, plain)
            if compiled < plain:
                return True
        for module in self._pipe.transformer.modules():
            module._compiled_call_impl = None
        return False

    def _race(self) -> float:
        """Seconds of the quicker of two small pictures."""
        took = []
        for _ in range(2):
            began = time.perf_counter()
            self._try_out(side=512, forwards=4)
            took.append(time.perf_counter() - began)
        return min(took)

    def _try_out(self, side: int = 64, forwards: int = 1) -> None:
        """A small picture for nobody: loads kernels and shows whether the model works."""
        request = JobRequest(
            prompt="", width=side, height=side, num_inference_steps=forwards + 1, seed=0
        )
        latents = self._denoise(request, self._encode("")[0], lambda done, total: None)
        self._decode(latents, tiled=False)

    def _must_work(self) -> None:
        """A model that cannot draw one small picture would fail every job."""
        try:
            _sparing_memory(self._try_out)
        except BadPicture as error:
            words = f"The model cannot compute here in {self._chosen.dtype}: {error}"
            raise SteadyError("model_damaged", words) from error

    def _memory(self) -> int:
        """Bytes the model takes on its device."""
        if self._device.type == "cuda":
            return int(torch.cuda.memory_allocated(self._device))
        parts = [getattr(self._pipe, name) for name in PARTS]
        return sum(p.numel() * p.element_size() for part in parts for p in part.parameters())

    # -- generate

    def generate(self, request: JobRequest, on_step: Callable[[int, int], None]) -> Image.Image:
        """One picture. Out of memory is answered by tiles, then by smaller tiers, each once."""
        width, height = request.width or 0, request.height or 0
        self._check(width, height)
        pixels = width * height
        tier: str | None = self._tier_for(pixels)
        words = ""
        while tier is not None:
            try:
                _sparing_memory(functools.partial(self._settle_on, tier))
                return self._draw(request, on_step)
            except OutOfMemory as error:
                words = str(error)
            # Outside of the handler: only now are the tensors of the attempt gone.
            self._free()
            tier = self._chosen.below(tier)
            if tier is not None:
                log.warning("%dx%d: out of memory; trying again: %s", width, height, tier)
                self._need[pixels] = tier
        raise OutOfMemory(words)

    def _check(self, width: int, height: int) -> None:
        """On a device a wrong index kills the context, so no bad size gets there."""
        limit = 16 * min(self._pipe.transformer.config.axes_lens[1:])
        if not all(16 <= side <= limit and side % 16 == 0 for side in (width, height)):
            raise ValueError(f"{width}x{height}: sides must be multiples of 16, 16 to {limit}")

    def _tier_for(self, pixels: int) -> str:
        """The planned tier, or the smaller one that a picture not larger than this took."""
        known = [tier for size, tier in self._need.items() if size <= pixels]
        order = ("resident", "offload", "stream")
        return max([self._chosen.tier, *known], key=order.index)

    def _draw(self, request: JobRequest, on_step: Callable[[int, int], None]) -> Image.Image:
        before = dict(self.counters)
        clock = [time.perf_counter()]
        pixels = (request.width or 0) * (request.height or 0)
        try:
            embedding, tokens = _sparing_memory(lambda: self._encode(request.prompt))
            clock.append(time.perf_counter())
            latents = _sparing_memory(lambda: self._denoise(request, embedding, on_step))
            clock.append(time.perf_counter())
            if not bool(torch.isfinite(latents).all()):
                raise BadPicture("non_finite", "The model's last numbers are not finite.")
            image, tiled = self._decode_somehow(latents, pixels)
            clock.append(time.perf_counter())
        finally:
            if self._tier == "offload":
                self._pipe.maybe_free_model_hooks()
        extrema: Any = image.getextrema()
        if all(low == high for low, high in extrema):
            raise BadPicture("blank_picture", "Every pixel has the same colour.")
        names = ("encode", "denoise", "decode")
        spans = [round(b - a, 6) for a, b in itertools.pairwise(clock)]
        self.last = {
            **dict(zip(names, spans, strict=True)),
            **{name: count - before[name] for name, count in self.counters.items()},
            "prompt_tokens": tokens,
            "prompt_truncated": tokens >= MAX_TOKENS,
            "info": {"details": {**self._details, "tier": self._tier, "tiled": tiled}},
        }
        return image

    def _encode(self, prompt: str) -> tuple[torch.Tensor, int]:
        """The prompt as the transformer reads it, and its length in tokens; remembered."""
        known = self._embeddings.get(prompt)
        if known is None:
            with torch.no_grad():  # without, the whole autograd graph would stay alive
                (known,), _ = self._pipe.encode_prompt(
                    prompt=prompt,
                    do_classifier_free_guidance=False,
                    max_sequence_length=MAX_TOKENS,
                )
            self._embeddings.put(prompt, known)
        return known, int(known.shape[0])

    def _denoise(
        self, request: JobRequest, embedding: torch.Tensor, on_step: Callable[[int, int], None]
    ) -> torch.Tensor:
        """The final latents. Whatever ``on_step`` raises passes, and the pipeline stays usable."""
        forwards = forwards_of(request.num_inference_steps or 1)

        def after_step(_pipe: Any, index: int, _time: Any, kept: dict[str, Any]) -> dict[str, Any]:
            self._wait()  # else the processor runs steps ahead: false progress, late cancel
            on_step(index + 1, forwards)
            return kept

        latents: torch.Tensor = self._pipe(
            prompt_embeds=[embedding],
            width=request.width,
            height=request.height,
            num_inference_steps=forwards,
            # Spelt out, since what "steps" means changed between versions of diffusers.
            sigmas=sigmas_of(forwards),
            guidance_scale=0.0,
            # On the processor: the same noise on every device.
            generator=torch.Generator("cpu").manual_seed(request.seed or 0),
            output_type="latent",
            callback_on_step_end=after_step,
        ).images
        return latents

    def _decode_somehow(self, latents: torch.Tensor, pixels: int) -> tuple[Image.Image, bool]:
        """The picture, and whether it was decoded in tiles."""
        if pixels <= self._chosen.tile_above:
            try:
                return _sparing_memory(lambda: self._decode(latents, tiled=False)), False
            except OutOfMemory:
                log.warning("%d pixels: out of memory in the decode; trying tiles", pixels)
            self._free()
        return _sparing_memory(lambda: self._decode(latents, tiled=True)), True

    def _decode(self, latents: torch.Tensor, *, tiled: bool) -> Image.Image:
        """As the pipeline itself does it, with a look at the numbers in between."""
        pipe = self._pipe
        vae = pipe.vae
        self.counters["decodes"] += 1
        if tiled:
            vae.tile_sample_min_size = self.tile
            vae.tile_latent_min_size = self.tile // pipe.vae_scale_factor
        vae.use_tiling = tiled
        with torch.no_grad():
            latents = latents.to(vae.dtype)
            latents = (latents / vae.config.scaling_factor) + vae.config.shift_factor
            decoded = vae.decode(latents, return_dict=False)[0]
            if not bool(torch.isfinite(decoded).all()):
                raise BadPicture("non_finite", "The picture's numbers are not finite.")
            image: Image.Image = pipe.image_processor.postprocess(decoded, output_type="pil")[0]
        return image

    # -- device

    @property
    def _chosen(self) -> Plan:
        if self._plan is None:
            raise RuntimeError("load comes first")
        return self._plan

    @property
    def _device(self) -> torch.device:
        return torch.device(self._chosen.device)

    def _settle_on(self, tier: str) -> None:
        """Place the weights for ``tier``. Streaming is for good: its hooks stay."""
        if tier == self._tier or self._tier == "stream":
            return
        pipe = self._pipe
        self._tier = ""  # neither here nor there, should this fail
        pipe.remove_all_hooks()
        if tier == "resident":
            pipe.to(self._device)
        elif tier == "offload":
            pipe.enable_model_cpu_offload(device=self._device)
        else:
            pipe.to("cpu")
            pipe.enable_group_offload(
                onload_device=self._device,
                offload_device=torch.device("cpu"),
                offload_type="leaf_level",
                use_stream=True,
                non_blocking=True,
            )
        self._tier = tier
        self._free()

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        elif self._device.type == "mps":
            torch.mps.synchronize()

    def _free(self) -> None:
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        elif self._device.type == "mps":
            torch.mps.empty_cache()

    def close(self) -> None:
        """Drop the weights; what the driver keeps goes with the process."""
        self._pipe = None
        self._embeddings.clear()
        gc.collect()


class _Embeddings:
    """Encoded prompts, the newest used kept, bounded by bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._entries: OrderedDict[str, torch.Tensor] = OrderedDict()

    def get(self, prompt: str) -> torch.Tensor | None:
        entry = self._entries.get(prompt)
        if entry is not None:
            self._entries.move_to_end(prompt)
        return entry

    def put(self, prompt: str, entry: torch.Tensor) -> None:
        size = entry.numel() * entry.element_size()
        if size > self._limit:
            return
        self._entries[prompt] = entry
        self._held += size
        while self._held > self._limit:
            _, oldest = self._entries.popitem(last=False)
            self._held -= oldest.numel() * oldest.element_size()

    def clear(self) -> None:
        self._entries.clear()
        self._held = 0


def sigmas_of(forwards: int) -> list[float]:
    """The distilled schedule of so many forwards: 1 down to 1/forwards, evenly."""
    if forwards == 1:
        return [1.0]
    last = 1 / forwards
    return [1 + (last - 1) * i / (forwards - 1) for i in range(forwards)]


# -- errors


_OOM = re.compile(
    r"out of memory|can't allocate memory|not enough memory|_STATUS_ALLOC_FAILED", re.IGNORECASE
)


def _is_poison(error: BaseException) -> bool:
    return isinstance(error, torch.AcceleratorError) and not _OOM.search(str(error))


def _is_out_of_memory(error: RuntimeError) -> bool:
    # CUDA has a class of its own for it; its libraries, MPS and the processor say it in words.
    return isinstance(error, torch.OutOfMemoryError) or bool(_OOM.search(str(error)))


def _sparing_memory(work: Callable[[], T]) -> T:
    """``work``'s result; any kind of memory shortage comes out as OutOfMemory, without the
    traceback that would keep the attempt's tensors alive."""
    try:
        return work()
    except MemoryError as error:
        words = str(error)
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        words = " ".join(str(error).split())
    raise OutOfMemory(words[:300])


# -- the model's files


@dataclass(frozen=True)
class Contents:
    """What a model folder holds: its digest (its own name for a revision) and its weights."""

    digest: str
    weights: Weights


def locate(model: str, revision: str | None = None) -> tuple[Path, str | None]:
    """Folder and hub commit (None for a plain folder). Raises ModelMissing."""
    folder = folder_of(model, None)
    if folder is None or not folder.is_dir():
        raise ModelMissing(f"{_shown(model)} is not on this machine.")
    commit = revision_of(folder)
    if revision is not None and commit is not None and commit != revision:
        raise ModelMissing(f"{_shown(model)} is here at another revision than {revision}.")
    return folder, commit


def _shown(model: str) -> str:
    """A hub name as it is, a folder without where it lies."""
    return model if _HUB_NAME.fullmatch(model) else f"The model folder {Path(model).name!r}"


def _name_of(folder: Path) -> str:
    """What a model of one's own is called in recipes: never where it lies."""
    profile = folder / "profile.json"
    name = _json(profile).get("name") if profile.is_file() else None
    return name if isinstance(name, str) and name else folder.resolve().name


def inspect(folder: Path) -> Contents:
    """Are all files there, and whole? Cheap: reads headers, not weights.

    Raises ModelMissing for what is absent, SteadyError ``model_damaged`` for what is torn.
    """
    index = folder / "model_index.json"
    if not index.is_file():
        raise ModelMissing(f"{folder.name} is no model: model_index.json is missing.")
    kind = _json(index).get("_class_name")
    if kind != "ZImagePipeline":
        raise SteadyError("model_damaged", f"{folder.name} is a {kind}, not a ZImagePipeline.")
    digest = hashlib.sha256()
    counts = dict.fromkeys(PARTS, 0)
    for part in PARTS:
        for path in _weight_files(folder / part):
            header, size = _header(path)
            counts[part] += sum(_elements(entry) for entry in header.values())
            digest.update(json.dumps([part, path.name, size, header], sort_keys=True).encode())
            for piece in _samples(path, size):
                digest.update(piece)
    for path in [*sorted(folder.glob("*/*.json")), index]:
        if not path.name.endswith(".index.json"):
            digest.update(path.read_bytes())
    return Contents(f"sha256:{digest.hexdigest()}", Weights(**counts))


def _weight_files(part: Path) -> Iterator[Path]:
    indexes = sorted(part.glob("*.safetensors.index.json"))
    if indexes:
        names = sorted(set(_json(indexes[0])["weight_map"].values()))
    else:
        names = sorted(p.name for p in part.glob("*.safetensors"))
    if not names:
        raise ModelMissing(f"{part.name} has no .safetensors file.")
    for name in names:
        if not (part / name).is_file():
            raise ModelMissing(f"{part.name}/{name} is missing: the model is not complete.")
        yield part / name


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file and the file's size, which must agree."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header: dict[str, Any] = json.loads(file.read(length)) if length < size else {}
        header.pop("__metadata__", None)
        end = max(entry["data_offsets"][1] for entry in header.values())
    except (struct.error, ValueError, KeyError, TypeError):
        raise _torn(path) from None
    if 8 + length + end != size:
        raise _torn(path)
    return header, size


def _samples(path: Path, size: int) -> Iterator[bytes]:
    """A small file whole; of a large one 64 pieces: training again changes every one of them."""
    whole = size <= 64 << 20
    with path.open("rb") as file:
        for number in range(64):
            file.seek(size * number // 64)
            yield file.read(size * (number + 1) // 64 - file.tell() if whole else 1 << 12)


def _torn(path: Path) -> SteadyError:
    return SteadyError("model_damaged", f"{path.parent.name}/{path.name} is not whole.")


def _elements(entry: Mapping[str, Any]) -> int:
    count = 1
    for side in entry["shape"]:
        count *= side
    return count


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise SteadyError("model_damaged", f"{path.name} cannot be read.")
    return value


def _read_pipeline(folder: Path, chosen: Plan) -> Any:
    """The pipeline in main memory (quantised parts: on the device)."""
    import diffusers.utils.logging
    import transformers.utils.logging
    from diffusers import ZImagePipeline
    from safetensors import SafetensorError

    diffusers.utils.logging.disable_progress_bar()  # their bars are noise in a log
    transformers.utils.logging.disable_progress_bar()

    more = {} if chosen.quantize == "none" else {"quantization_config": _quantization(chosen)}
    try:
        pipe = ZImagePipeline.from_pretrained(
            folder,
            dtype=getattr(torch, chosen.dtype),
            local_files_only=True,
            use_safetensors=True,
            **more,
        )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        words = " ".join(str(error).split())[:300]
        raise SteadyError("model_damaged", f"{type(error).__name__}: {words}") from error
    except RuntimeError as error:
        if _is_out_of_memory(error) or _is_poison(error):
            raise
        words = " ".join(str(error).split())[:300]
        raise SteadyError("model_damaged", words) from error
    for part in PARTS:
        _must_be_whole(part, getattr(pipe, part), folder / part)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _must_be_whole(name: str, module: torch.nn.Module, folder: Path) -> None:
    """The libraries fill weights that are absent with noise, and only mention it."""
    stored: set[str] = set()
    for path in _weight_files(folder):
        stored |= {key.removeprefix("model.") for key in _header(path)[0]}
    absent = [
        key for key, _ in module.named_parameters() if key.removeprefix("model.") not in stored
    ]
    if absent:
        words = f"{name} lacks {len(absent)} of its weights, {absent[0]} for one."
        raise SteadyError("model_damaged", words)


def _quantization(chosen: Plan) -> Any:
    """diffusers' own configuration for bitsandbytes; the optional extra ``quantize``."""
    from diffusers import PipelineQuantizationConfig

    try:
        importlib.metadata.version("bitsandbytes")
    except importlib.metadata.PackageNotFoundError:
        raise SteadyError("extra_missing", "`quantize` needs the package bitsandbytes.") from None
    if chosen.quantize == "nf4":
        backend = "bitsandbytes_4bit"
        settings = {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_compute_dtype": getattr(torch, chosen.dtype),
        }
    else:
        backend, settings = "bitsandbytes_8bit", {"load_in_8bit": True}
    return PipelineQuantizationConfig(
        quant_backend=backend,
        quant_kwargs=settings,
        components_to_quantize=["transformer", "text_encoder"],
    )


# -- the machine


def describe(device: str) -> DeviceDescription:
    """The device asked for, ``auto`` resolved. Raises DeviceLost when it is not there."""
    if device == "auto":
        device = "cpu"
        if torch.cuda.is_available():
            device = "cuda"
        elif torch.backends.mps.is_available():
            device = "mps"
    kind, _, number = device.partition(":")
    host = _host_memory()
    if kind == "cpu":
        name = platform.processor() or platform.machine()
        return DeviceDescription("cpu", name, total=host[0], free=host[1], host_free=host[1])
    if kind == "mps":
        if not torch.backends.mps.is_available():
            raise DeviceLost("This machine has no MPS device.")
        return DeviceDescription("mps", "Apple", total=host[0], free=host[1], host_free=host[1])
    if kind != "cuda" or not (number or "0").isdigit():
        raise SteadyError("bad_config", f"`device` must be auto, cpu, mps or cuda:N, not {device}.")
    index = int(number or 0)
    if not torch.cuda.is_available() or index >= torch.cuda.device_count():
        raise DeviceLost(f"There is no CUDA device {index} on this machine.")
    free, total = torch.cuda.mem_get_info(index)
    return DeviceDescription(
        f"cuda:{index}",
        torch.cuda.get_device_name(index),
        torch.cuda.get_device_capability(index),
        total,
        free,
        host[1],
    )


def probe() -> dict[str, Any]:
    """The devices of this machine, for choosing a model and for ``steady doctor``."""
    cards = []
    for index in range(torch.cuda.device_count()) if torch.cuda.is_available() else ():
        card = describe(f"cuda:{index}")
        cards.append(
            {
                "device": card.device,
                "name": card.name,
                "capability": list(card.capability or ()),
                "total": card.total,
                "free": card.free,
            }
        )
    total, free = _host_memory()
    return {
        "torch": importlib.metadata.version("torch"),
        "cuda": cards,
        "mps": torch.backends.mps.is_available(),
        "cpu": {"cores": os.cpu_count(), "total": total, "free": free},
    }


def _host_memory() -> tuple[int | None, int | None]:
    """Bytes of main memory: all of it, and what could be had now."""
    with contextlib.suppress(OSError, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        fields = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
        return fields.get("MemTotal"), fields.get("MemAvailable")
    with contextlib.suppress(OSError, ValueError, AttributeError):
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return total, total
    return None, None
