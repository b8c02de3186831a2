"""The engine ``zimage``: Z-Image on diffusers.

Loads a folder (or what lies in the hub's cache) and never downloads. The starter model and
the whole family go through this same code: Turbo, base, fine-tunes, a transformer in one file.
Everything a picture depends on is fixed here: the sigmas, the generator, the dtype, and guidance
(0, unless the model takes it and the job asks); so one request gives the same pixels whenever
it runs on the same kind of device.

How a model gets here, and what is done when memory is short, is in ``local.py``. Beside it:
``trials.py`` (attention, compiling), ``embeddings.py`` (prompts that were encoded before),
``latents.py`` (where a picture begins and what of it stays).
"""

import functools
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from watcher.engine import BadPicture, EngineInfo, EngineRequest, EngineSettings, Report, Result
from watcher.engines.embeddings import set_apart
from watcher.engines.files import is_single_file
from watcher.engines.latents import Origin, levels_of, noise_of, pooled, predicted, sigmas_of
from watcher.engines.local import LocalEngine, picture_of
from watcher.engines.plan import DevicePlan
from watcher.engines.preview import PreviewMap
from watcher.engines.shortage import sparing_memory
from watcher.engines.trials import choose_attention, compile_if_faster
from watcher.errors import SteadyError
from watcher.limits import Card
from watcher.models.tokens import MAX_TOKENS, cut_by

_KEPT = 24  #: encoded prompts, of at most 2.6 MB each
_COUNTS = Card()  #: how Z-Image counts, and the words for what it does


class ZImage(LocalEngine):
    """One Z-Image pipeline on one device (see watcher.engine for the protocol).

    Attributes:
        counters: how many ``encodes``, ``forwards``, ``decodes`` and ``previews`` since load, for
            cancelled and failed pictures too.
    """

    folder_kind = pipeline_kind = "ZImagePipeline"

    def __init__(self, settings: EngineSettings) -> None:
        super().__init__(settings)
        self._guided = self._options.guidance is not False  #: has guidance an effect?
        self._map: PreviewMap | None = None
        self._encode = functools.lru_cache(maxsize=_KEPT)(self._encode_anew)
        self.counters = {"encodes": 0, "forwards": 0, "decodes": 0, "previews": 0}

    # -- load

    def load(self) -> EngineInfo:
        """As every engine here; what was drawn on trial is forgotten."""
        info = super().load()
        self._encode.cache_clear()
        self.counters.update(encodes=0, forwards=0, decodes=0, previews=0)
        named = f"{info.model}@{info.revision}"
        self._map = PreviewMap(self._denoiser.in_channels, self._settings.keep, named)
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

    def _made_ready(self, chosen: DevicePlan) -> Mapping[str, Any]:
        transformer = self._denoiser
        transformer.register_forward_pre_hook(self._counting("forwards"))
        self._pipe.text_encoder.register_forward_pre_hook(self._counting("encodes"))
        attention = choose_attention(transformer, chosen.attention, self._try_out, race=chosen.race)
        compiled = self._placement.compiles and chosen.compile
        compiled = compiled and compile_if_faster(transformer, self._try_out)
        self._details |= {"compiled": compiled, "tile_above": chosen.tile_above}
        guidance = ("guidance", "negative_prompt") if self._guided else ()
        return {
            "attention": attention,
            "accepts": ("image", "mask", "lora", "preview", *guidance),
            "sampler": _COUNTS.sampler,
            "schedule": _COUNTS.schedule,
        }

    def _counting(self, name: str) -> Callable[..., None]:
        """A hook that counts the calls of a part, whatever makes them."""

        def count(*_: Any) -> None:
            self.counters[name] += 1

        return count

    def _try_out(self, side: int = 64, forwards: int = 1) -> Image.Image:
        """Draw a small picture and throw it away."""
        request = EngineRequest(
            prompt="", width=side, height=side, num_inference_steps=forwards + 1, seed=0,
            guidance_scale=4.0,
        )  # fmt: skip
        latents = self._denoise(
            request, [self._encode("")[0]], lambda done, total, preview=None: None
        )
        return self._decode(latents)

    def _drawn_anew(self) -> Image.Image:
        self._encode.cache_clear()
        return self._try_out(64 if self._device.type == "cpu" else 256)

    # -- generate

    def generate(self, request: EngineRequest, report: Report) -> Result:
        """As every engine here, of sizes that the model can draw."""
        self._check(request.width, request.height)
        return super().generate(request, report)

    def _pixels(self, request: EngineRequest) -> int:
        both = 2 if self._guidance_of(request) else 1  # with guidance two pictures at once
        return super()._pixels(request) * both

    def _guidance_of(self, request: EngineRequest) -> float:
        return (request.guidance_scale or 0.0) if self._guided else 0.0

    def _check(self, width: int, height: int) -> None:
        """On a device a wrong index kills the context, so no bad size gets there."""
        limit = 16 * min(self._pipe.transformer.config.axes_lens[1:])
        if not all(16 <= side <= limit and side % 16 == 0 for side in (width, height)):
            raise ValueError(f"{width}x{height}: sides must be multiples of 16, 16 to {limit}")

    def _draw(self, request: EngineRequest, report: Report) -> Result:
        before = self.counters["forwards"]
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
        size = (request.width, request.height)
        image, tiled = self._placement.whole_or_tiled(size, lambda: self._decode(latents))
        if self._map is not None:
            self._map.learn(latents, image)
        clock.append(time.perf_counter())
        names = ("encode", "denoise", "decode")
        spans = [round(b - a, 6) for a, b in itertools.pairwise(clock)]
        cut = self._cut(request.prompt) if tokens >= MAX_TOKENS else None
        facts = {
            "forwards": self.counters["forwards"] - before,
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

    def _encode_anew(self, prompt: str) -> tuple[torch.Tensor, int]:
        """The prompt as the transformer reads it, and its length in tokens.

        Remembered as ``_encode``: the largest part of a picture that a repeat need not pay again.
        """
        with torch.no_grad():  # without, the whole autograd graph would stay alive
            (made,), _ = self._pipe.encode_prompt(
                prompt=prompt, do_classifier_free_guidance=False, max_sequence_length=MAX_TOKENS
            )
        return set_apart(made), int(made.shape[0])

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
        latents, _ = self._placement.whole_or_tiled(image.size, lambda: self._into_latents(image))
        mask = None if request.mask is None else pooled(request.mask).to(self._device)
        return Origin(latents, noise, mask)

    def _into_latents(self, image: Image.Image) -> torch.Tensor:
        """The middle of what the encoder sees in ``image``, so that no seed has a part in it."""
        vae = self._pipe.vae
        with torch.no_grad():
            pixels = self._pipe.image_processor.preprocess(image).to(self._device, vae.dtype)
            latents = vae.encode(pixels).latent_dist.mode().float()
        latents = (latents - vae.config.shift_factor) * vae.config.scaling_factor
        return torch.as_tensor(latents)

    def _decode(self, latents: torch.Tensor) -> Image.Image:
        """As the pipeline itself does it, with a look at the numbers in between."""
        pipe = self._pipe
        vae = pipe.vae
        self.counters["decodes"] += 1
        with torch.no_grad():
            latents = latents.to(vae.dtype)
            latents = (latents / vae.config.scaling_factor) + vae.config.shift_factor
            decoded = vae.decode(latents, return_dict=False)[0]
            if not bool(torch.isfinite(decoded).all()):
                raise BadPicture("non_finite", "The picture's numbers are not finite.")
            return picture_of(pipe.image_processor.postprocess(decoded, output_type="pt")[0])

    @property
    def _denoiser(self) -> Any:
        return self._pipe.transformer

    def close(self) -> None:
        """Drop the weights, and the prompts that were encoded."""
        self._encode.cache_clear()
        super().close()
