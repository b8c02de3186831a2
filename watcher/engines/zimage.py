"""The engine ``zimage``: Z-Image on diffusers.

Loads a folder (or what lies in the hub's cache) and never downloads. The starter model and
the whole family go through this same code: Turbo, base, fine-tunes, a transformer in one file.
Everything a picture depends on is fixed here: the sigmas, the generator, the dtype, and guidance
(0, unless the model takes it and the job asks); so one request gives the same pixels whenever
it runs on the same kind of device.

This page is the story, load and generate. Its rooms: ``files.py`` (what lies in the model's
folder), ``loading.py`` (from there into memory), ``device.py`` (what this machine has),
``placement.py`` (where the weights are, and what is done when memory is short),
``trials.py`` (attention, compiling, decoding), ``embeddings.py`` (prompts that were encoded
before), ``latents.py`` (where a picture begins and what of it stays).
"""

import functools
import gc
import itertools
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image

from watcher.engine import (
    BadPicture,
    EngineInfo,
    EngineRequest,
    EngineSettings,
    OutOfMemory,
    Report,
    Result,
)
from watcher.engines.device import describe
from watcher.engines.embeddings import Embeddings
from watcher.engines.files import inspect, is_single_file, locate_model, name_of
from watcher.engines.latents import Origin, levels_of, noise_of, pooled, predicted, sigmas_of
from watcher.engines.loading import read_pipeline
from watcher.engines.lora import Loras
from watcher.engines.placement import Placement, library_versions, prepare
from watcher.engines.plan import DevicePlan, Options, plan
from watcher.engines.preview import PreviewMap
from watcher.engines.shortage import sparing_memory
from watcher.engines.trials import (
    channels_last_if_faster,
    choose_attention,
    compile_if_faster,
    must_work,
)
from watcher.errors import SteadyError
from watcher.limits import Card
from watcher.models.tokens import MAX_TOKENS, cut_by

log = logging.getLogger("watcher.engines.zimage")

_T = TypeVar("_T")
_COUNTS = Card()  #: how Z-Image counts, and the words for what it does


class ZImage:
    """One Z-Image pipeline on one device (see watcher.engine for the protocol).

    Attributes:
        counters: how many ``encodes``, ``forwards`` and ``decodes`` since load, for cancelled and
            failed pictures too. Each picture's own are in its Result's facts.
    """

    tile = 512  #: pixels on a side of one tile of a decode

    def __init__(
        self,
        settings: EngineSettings,
        *,
        read: Callable[..., Any] = read_pipeline,
    ) -> None:
        """``read``: another way from the model's folder to a pipeline in main memory."""
        self._settings = settings
        self._read = read
        self._options = Options.of(settings.options)
        self._guided = self._options.guidance is not False  #: has guidance an effect?
        self._pipe: Any = None
        self._plan: DevicePlan | None = None
        self._weights: Placement | None = None
        self._loras: Loras | None = None
        self._map: PreviewMap | None = None
        self._embeddings = Embeddings(self._options.embed_cache)
        self._details: dict[str, Any] = {}
        self.counters = {"encodes": 0, "forwards": 0, "decodes": 0, "previews": 0}

    # -- load

    def load(self) -> EngineInfo:
        """Read the weights onto the device. Raises ModelMissing, DeviceLost, OutOfMemory, and
        SteadyError ``model_damaged``, ``bad_config`` or ``extra_missing``."""
        model, single = self._files()
        folder, commit = locate_model(model, self._options.revision)
        contents = inspect(folder, transformer=single)
        description = describe(self._settings.device)
        chosen = plan(description, self._options, self._settings.dtype, contents.weights)
        self._plan = chosen
        prepare(description, chosen, self._options.threads)
        more = {} if single is None else {"transformer": single}
        self._pipe = sparing_memory(lambda: self._read(folder, chosen, **more))
        self._weights = Placement(self._pipe, chosen)
        self._weights.run(0, lambda: None)
        self._loras = Loras(
            self._pipe.transformer, name_of(folder), self._device, getattr(torch, chosen.dtype)
        )
        tier = self._weights.tier
        self._count_calls()
        transformer = self._pipe.transformer
        attention = choose_attention(transformer, chosen.attention, self._try_out, race=chosen.race)
        compiled = (
            chosen.compile and tier == "resident" and compile_if_faster(transformer, self._try_out)
        )
        channels_last = chosen.channels_last and channels_last_if_faster(
            self._pipe.vae, self._try_decode
        )
        if self._options.warm_up:
            must_work(self._drawn_anew, chosen.dtype)
        self._embeddings.clear()
        self.counters.update(encodes=0, forwards=0, decodes=0, previews=0)
        self._details = {
            "device_name": description.name,
            "tier": tier,
            "quantize": chosen.quantize,
            "tf32": chosen.tf32,
            "compiled": compiled,
            "channels_last": channels_last,
            "tiled": False,
            "tile_above": chosen.tile_above,
            "because": list(chosen.because),
        }
        info = EngineInfo(
            model=single.stem if single else model if commit else name_of(folder),
            revision=contents.digest if single else commit or contents.digest,
            device=chosen.device,
            dtype=chosen.dtype,
            memory=self._weights.held(),
            attention=attention,
            versions=library_versions(),
            details=dict(self._details),
            accepts=(
                *("image", "mask", "lora", "preview"),
                *(("guidance", "negative_prompt") if self._guided else ()),
            ),
            sampler=_COUNTS.sampler,
            schedule=_COUNTS.schedule,
        )
        named = f"{info.model}@{info.revision}"
        self._map = PreviewMap(transformer.in_channels, self._settings.keep, named)
        return info

    def _files(self) -> tuple[str, Path | None]:
        """The model, and the single file that stands in for its transformer."""
        model, options = self._settings.model, self._options
        if is_single_file(model):
            if options.base is None or options.transformer is not None:
                words = "A transformer in one file needs the engine option `base` beside it: the model whose text encoder and VAE it is used with."
                raise SteadyError("bad_config", words)
            return options.base, Path(model).expanduser().absolute()
        if options.base is not None:
            words = "Engine option `base` belongs to a model that is a transformer in one file."
            raise SteadyError("bad_config", words)
        single = options.transformer
        return model, Path(single).expanduser().absolute() if single else None

    def _count_calls(self) -> None:
        """Count the calls of transformer and text encoder, whatever makes them."""

        def counting(name: str) -> Callable[..., None]:
            def count(*_: Any) -> None:
                self.counters[name] += 1

            return count

        self._pipe.transformer.register_forward_pre_hook(counting("forwards"))
        self._pipe.text_encoder.register_forward_pre_hook(counting("encodes"))

    def _try_out(self, side: int = 64, forwards: int = 1) -> Image.Image:
        """Draw a small picture and throw it away: it loads kernels and shows whether the model works."""
        request = EngineRequest(
            prompt="", width=side, height=side, num_inference_steps=forwards + 1, seed=0,
            guidance_scale=4.0,
        )  # fmt: skip
        latents = self._denoise(
            request, [self._encode("")[0]], lambda done, total, preview=None: None
        )
        return self._decode(latents, tiled=False)

    def _try_decode(self) -> Image.Image:
        """Decode 512 x 512 pixels of noise, always the same."""
        noise = torch.randn(1, 16, 64, 64, generator=torch.Generator("cpu").manual_seed(0))
        return self._decode(noise.to(self._device), tiled=False)

    def _drawn_anew(self) -> Image.Image:
        self._embeddings.clear()
        return self._try_out(64 if self._device.type == "cpu" else 256)

    # -- generate

    def generate(self, request: EngineRequest, report: Report) -> Result:
        """One picture. Out of memory is answered by tiles, then by lower tiers, each once."""
        self._check(request.width, request.height)
        both = 2 if self._guidance_of(request) else 1  # with guidance two pictures at once
        pixels = request.width * request.height * both
        if self._loras is None:
            raise RuntimeError("load comes first")
        with self._loras.worn(request.loras) as worn, self._placement.as_written(bool(worn)):
            result = self._placement.run(pixels, lambda: self._draw(request, report))
        return replace(result, facts={**result.facts, "loras": worn}) if worn else result

    def _guidance_of(self, request: EngineRequest) -> float:
        return (request.guidance_scale or 0.0) if self._guided else 0.0

    def _check(self, width: int, height: int) -> None:
        """On a device a wrong index kills the context, so no bad size gets there."""
        limit = 16 * min(self._pipe.transformer.config.axes_lens[1:])
        if not all(16 <= side <= limit and side % 16 == 0 for side in (width, height)):
            raise ValueError(f"{width}x{height}: sides must be multiples of 16, 16 to {limit}")

    def _draw(self, request: EngineRequest, report: Report) -> Result:
        before = dict(self.counters)
        clock = [time.perf_counter()]
        words = [request.prompt]
        if self._guidance_of(request):
            words.append(request.negative_prompt or "")
        encoded = [sparing_memory(functools.partial(self._encode, text)) for text in words]
        tokens = encoded[0][1]
        clock.append(time.perf_counter())
        latents = sparing_memory(
            lambda: self._denoise(request, [embedding for embedding, _ in encoded], report)
        )
        clock.append(time.perf_counter())
        if not bool(torch.isfinite(latents).all()):
            raise BadPicture("non_finite", "The model's last numbers are not finite.")
        pixels = request.width * request.height
        image, tiled = self._in_one_or_tiled(
            pixels, lambda tiled: self._decode(latents, tiled=tiled)
        )
        if self._map is not None:
            self._map.learn(latents, image)
        clock.append(time.perf_counter())
        names = ("encode", "denoise", "decode")
        spans = [round(b - a, 6) for a, b in itertools.pairwise(clock)]
        cut = self._cut(request.prompt) if tokens >= MAX_TOKENS else None
        facts = {
            **{name: count - before[name] for name, count in self.counters.items()},
            # What has an effect, whatever the request says.
            "cfg_scale": _COUNTS.unguided + self._guidance_of(request),
            "prompt_tokens": tokens,
            "prompt_truncated": cut is not None,
            **({"warnings": [cut]} if cut else {}),
            "details": self._details_now(tiled),
        }
        return Result(image, facts, dict(zip(names, spans, strict=True)))

    def _details_now(self, tiled: bool) -> dict[str, Any]:
        tier = self._placement.tier
        compiled = self._placement.compiles and bool(self._details["compiled"])
        return {**self._details, "tier": tier, "compiled": compiled, "tiled": tiled}

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

    def _cut(self, prompt: str) -> str | None:
        """The warning of what the encoder does not read; None for an exact fit."""
        tokenizer = self._pipe.tokenizer

        def template(text: str) -> str:  # as the pipeline does it
            messages = [{"role": "user", "content": text}]
            return str(
                tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=True, enable_thinking=True
                )
            )

        return cut_by(
            lambda text: tokenizer(text, return_offsets_mapping=True).offset_mapping,
            template,
            prompt,
        )

    def _denoise(
        self, request: EngineRequest, embeddings: Sequence[torch.Tensor], report: Report
    ) -> torch.Tensor:
        """The final latents. Whatever ``report`` raises passes, and the pipeline stays usable.

        ``embeddings``: of the prompt and, for guidance, of the negative one.
        """
        forwards = _COUNTS.forwards(request.num_inference_steps, request.strength_used)
        # Spelt out, since what "steps" means changed between versions of diffusers.
        sigmas = sigmas_of(forwards, request.strength_used)
        # On the processor: the same noise on every device, drawn before anything else.
        latents = noise_of(
            request.width, request.height, request.seed, self._pipe.transformer.in_channels
        ).to(self._device)
        origin = self._origin(request, latents)
        levels = levels_of(self._pipe.scheduler, sigmas, latents)
        if origin is not None:
            latents = origin.at(levels[0])
        before = latents

        def after_step(_pipe: Any, index: int, _time: Any, kept: dict[str, Any]) -> dict[str, Any]:
            self._placement.wait()  # else the processor runs steps ahead: false progress, late cancel
            nonlocal before
            latents = kept["latents"]

            def look() -> Image.Image | None:
                clean = predicted(before, latents, levels[index], levels[index + 1])
                return self._preview(clean if origin is None else origin.kept(clean, 0.0))

            # What the first of many predicts has shapes, but colours that are wrong.
            report(index + 1, forwards, look if index or forwards <= 2 else None)
            if origin is not None:
                latents = kept["latents"] = origin.kept(latents, levels[index + 1])
            before = latents
            return kept

        drawn: torch.Tensor = self._pipe(
            prompt_embeds=[embeddings[0]],
            negative_prompt_embeds=[embeddings[-1]],
            width=request.width,
            height=request.height,
            num_inference_steps=forwards,
            sigmas=sigmas,
            guidance_scale=self._guidance_of(request),
            latents=latents,
            output_type="latent",
            callback_on_step_end=after_step,
        ).images
        return drawn

    def _preview(self, latents: torch.Tensor) -> Image.Image | None:
        self.counters["previews"] += 1
        return None if self._map is None else self._map.draw(latents)

    def _origin(self, request: EngineRequest, noise: torch.Tensor) -> Origin | None:
        """The input as latents; None where nothing of it would be left."""
        image = request.image
        if image is None or (request.mask is None and request.strength_used == 1):
            return None
        latents, _ = self._in_one_or_tiled(
            request.width * request.height, lambda tiled: self._into_latents(image, tiled=tiled)
        )
        mask = None if request.mask is None else pooled(request.mask).to(self._device)
        return Origin(latents, noise, mask)

    def _into_latents(self, image: Image.Image, *, tiled: bool) -> torch.Tensor:
        """The middle of what the encoder sees in ``image``, so that no seed has a part in it."""
        vae = self._pipe.vae
        self._set_tiles(tiled)
        with torch.no_grad():
            pixels = self._pipe.image_processor.preprocess(image).to(self._device, vae.dtype)
            latents = vae.encode(pixels).latent_dist.mode().float()
        latents = (latents - vae.config.shift_factor) * vae.config.scaling_factor
        return torch.as_tensor(latents)

    def _in_one_or_tiled(self, pixels: int, work: Callable[[bool], _T]) -> tuple[_T, bool]:
        """``work(tiled)``, and whether it was done in tiles: it is where a whole is too large."""
        if pixels <= self._chosen.tile_above:
            try:
                return sparing_memory(lambda: work(False)), False
            except OutOfMemory:
                log.warning("%d pixels: out of memory in the decoder; trying tiles", pixels)
            self._placement.free()
        return sparing_memory(lambda: work(True)), True

    def _set_tiles(self, tiled: bool) -> None:
        vae = self._pipe.vae
        if tiled:
            vae.tile_sample_min_size = self.tile
            vae.tile_latent_min_size = self.tile // self._pipe.vae_scale_factor
        vae.use_tiling = tiled

    def _decode(self, latents: torch.Tensor, *, tiled: bool) -> Image.Image:
        """As the pipeline itself does it, with a look at the numbers in between."""
        pipe = self._pipe
        vae = pipe.vae
        self.counters["decodes"] += 1
        self._set_tiles(tiled)
        with torch.no_grad():
            latents = latents.to(vae.dtype)
            latents = (latents / vae.config.scaling_factor) + vae.config.shift_factor
            decoded = vae.decode(latents, return_dict=False)[0]
            if not bool(torch.isfinite(decoded).all()):
                raise BadPicture("non_finite", "The picture's numbers are not finite.")
            # Rounded as the pipeline does it, but where the numbers are: a quarter of the bytes to
            # copy, and the processor has nothing to compute while the device waits.
            numbers = pipe.image_processor.postprocess(decoded, output_type="pt")[0]
            pixels = (numbers.float() * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous()
        return Image.fromarray(pixels.cpu().numpy())

    # -- device

    @property
    def _chosen(self) -> DevicePlan:
        if self._plan is None:
            raise RuntimeError("load comes first")
        return self._plan

    @property
    def _placement(self) -> Placement:
        if self._weights is None:
            raise RuntimeError("load comes first")
        return self._weights

    @property
    def _device(self) -> torch.device:
        return torch.device(self._chosen.device)

    def close(self) -> None:
        """Drop the weights; what the driver keeps goes with the process."""
        self._pipe = self._weights = self._loras = None
        self._embeddings.clear()
        gc.collect()
