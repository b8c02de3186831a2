"""The engine ``diffusers``: any text-to-image folder of that library, through its Auto pipelines.

What a model takes (guidance, a negative prompt, a picture, a mask) is read from the signatures of
its pipelines, not from a list of names. Files of this machine alone, no pickles, no code that
comes with a model. Devices, tiers and shortage of memory are those of the engine ``zimage``; what
only that one can do (attention, compiling, remembered prompts) is no option here.
"""

import inspect
import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from watcher.engine import BadPicture, EngineRequest, EngineSettings, Report, Result
from watcher.engines.local import LocalEngine, picture_of
from watcher.engines.plan import DevicePlan
from watcher.errors import SteadyError
from watcher.jobs import Feature
from watcher.models.tokens import cut_by

_LEAST = 0.001  #: strength: one of the thousand steps that a model was trained for
#: Schedulers by the names that people know; one that is not here is left out of recipes.
_SAMPLERS = {
    "DDIMScheduler": "DDIM",
    "DPMSolverMultistepScheduler": "DPM++ 2M",
    "EulerAncestralDiscreteScheduler": "Euler a",
    "EulerDiscreteScheduler": "Euler",
    "FlowMatchEulerDiscreteScheduler": "Euler",
    "HeunDiscreteScheduler": "Heun",
    "LCMScheduler": "LCM",
    "PNDMScheduler": "PLMS",
    "UniPCMultistepScheduler": "UniPC",
}


class AnyPipeline(LocalEngine):
    """One text-to-image pipeline of diffusers on one device (see watcher.engine)."""

    pipeline_kind = "AutoPipelineForText2Image"
    lacks = ("attention", "compile", "transformer", "base", "guidance")

    def __init__(self, settings: EngineSettings) -> None:
        super().__init__(settings)
        self._pipes: dict[str, Any] = {}  #: by what is drawn: text, image, mask
        self._calls = 0  #: of the part that denoises, in all
        self._each_call: Callable[[], None] = lambda: None  #: told of each, before it

    # -- load

    def _read(self, folder: Path, chosen: DevicePlan, single: Path | None) -> Any:
        pipe = super()._read(folder, chosen, single)
        self._pipes = {"text": pipe, **_siblings(pipe)}
        return pipe

    def _made_ready(self, chosen: DevicePlan) -> Mapping[str, Any]:
        self._denoiser.register_forward_pre_hook(self._count)
        self._details["pipeline"] = type(self._pipe).__name__
        return {"accepts": self._accepts(), **_words_of(self._pipe.scheduler)}

    def _accepts(self) -> tuple[Feature, ...]:
        """What has an effect: read from the signatures of the pipelines' calls."""
        takes = _parameters(self._pipe)
        found: list[Feature] = ["lora"]
        if "image" in self._pipes:
            found.append("image")
        if "mask" in self._pipes:
            found.append("mask")
        if self._scale_name is not None:
            found.append("guidance")
            if "negative_prompt" in takes and not self._guidance_is_read:
                found.append("negative_prompt")
        return tuple(found)

    @property
    def _denoiser(self) -> torch.nn.Module:
        components = self._pipe.components
        part = components.get("transformer") or components.get("unet")
        if not isinstance(part, torch.nn.Module):
            kind = type(self._pipe).__name__
            raise SteadyError("model_unfit", f"This kind of pipeline ({kind}) is not run here.")
        return part

    @property
    def _guidance_is_read(self) -> bool:
        """Does the model read the scale itself (as FLUX.1 dev), so that nothing is drawn twice?"""
        return bool(getattr(self._denoiser.config, "guidance_embeds", False))

    @property
    def _scale_name(self) -> str | None:
        """The argument that guidance goes by in this family."""
        takes = _parameters(self._pipe)
        if "true_cfg_scale" in takes and not self._guidance_is_read:
            return "true_cfg_scale"
        return "guidance_scale" if "guidance_scale" in takes else None

    def _count(self, *_: Any) -> None:
        self._calls += 1
        self._each_call()

    def _drawn_anew(self) -> Image.Image:
        side = 64 if self._device.type == "cpu" else 256
        request = EngineRequest(prompt="a", width=side, height=side, num_inference_steps=2, seed=0)
        return self._draw(request, lambda done, total, preview=None: None).image

    # -- generate

    def _draw(self, request: EngineRequest, report: Report) -> Result:
        size = (request.width, request.height)
        result, tiled = self._placement.whole_or_tiled(size, lambda: self._call(request, report))
        details = {**self._details, **result.facts["details"], "tiled": tiled}
        return replace(result, facts={**result.facts, "details": details})

    def _cut(self, prompt: str) -> str | None:
        """From which words on the prompt is not read, by the tokenizer that reads most of it."""
        parts = self._pipe.components
        found = [part for name, part in parts.items() if name.startswith("tokenizer") and part]
        words = max(found, key=lambda each: each.model_max_length, default=None)
        if words is None or not words.is_fast:
            return None
        stated = _parameters(self._pipe).get("max_sequence_length")
        most = min(words.model_max_length, stated.default if stated else words.model_max_length)

        def places(text: str) -> list[tuple[int, int]]:
            whole = words(
                text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
            )
            return list(whole["offset_mapping"])

        return cut_by(places, str, prompt, most - words.num_special_tokens_to_add())

    def _call(self, request: EngineRequest, report: Report) -> Result:
        began, before = time.perf_counter(), self._calls
        pipe = self._pipes["mask" if request.mask else "image" if request.image else "text"]
        takes = _parameters(pipe)
        steps = 0

        def each_call() -> None:  # where a pipeline does not tell of its steps
            nonlocal steps
            steps += 1
            report(steps - 1, max(steps, request.num_inference_steps))

        def after_step(ran: Any, index: int, _time: Any, kept: dict[str, Any]) -> dict[str, Any]:
            nonlocal steps
            steps = index + 1
            self._placement.wait()  # else the processor runs steps ahead: false progress
            report(steps, max(steps, getattr(ran, "num_timesteps", 0)))
            return kept

        given = self._arguments(request)
        asked = {name: value for name, value in given.items() if name in takes}
        said = []
        if "strength" in given.keys() - takes:
            said.append("`strength` has no effect on this model.")
        if "callback_on_step_end" in takes:
            asked["callback_on_step_end"] = after_step
        else:
            self._each_call = each_call
        try:
            with torch.no_grad():
                drawn = pipe(**asked, output_type="pt", return_dict=False)[0][0]
        finally:
            self._each_call = lambda: None
        if not bool(torch.isfinite(drawn).all()):
            raise BadPicture("non_finite", "The picture's numbers are not finite.")
        picture = picture_of(drawn)
        if cut := self._cut(request.prompt):
            said.append(cut)
        facts: dict[str, Any] = {
            "cfg_scale": self._cfg_scale(asked, takes),
            "prompt_truncated": cut is not None,
            "details": {"tier": self._placement.tier, "calls": self._calls - before},
            "forwards": steps,
            **({"warnings": said} if said else {}),
        }
        spent = {"draw": round(time.perf_counter() - began, 6)}
        return Result(picture, facts, spent)

    def _arguments(self, request: EngineRequest) -> dict[str, Any]:
        """What a job means, by the names that pipelines use; each takes of it what it knows."""
        given: dict[str, Any] = {
            "prompt": request.prompt,
            "width": request.width,
            "height": request.height,
            "num_inference_steps": request.num_inference_steps,
            # On the processor: the same noise on every device.
            "generator": torch.Generator("cpu").manual_seed(request.seed),
        }
        scale = request.guidance_scale
        if scale is not None and self._scale_name is not None:
            given[self._scale_name] = scale
        if not self._guidance_is_read and (
            request.negative_prompt is not None or self._scale_name == "true_cfg_scale"
        ):
            # Such pipelines draw without guidance unless there is a text to be guided from.
            given["negative_prompt"] = request.negative_prompt or " "
        if request.image is not None:
            strength = request.strength_used
            if "unet" in self._pipe.components:
                # These round their part of the steps down, to none of few; the others round up.
                strength = max(strength, _LEAST)
                steps = itertools.count(request.num_inference_steps)
                given["num_inference_steps"] = next(n for n in steps if int(n * strength))
            given |= {"image": request.image, "strength": strength}
        if request.mask is not None:
            given["mask_image"] = request.mask
        return given

    def _cfg_scale(self, asked: Mapping[str, Any], takes: Mapping[str, Any]) -> float | None:
        """The scale that was used, as the web UI counts it: 1 where nothing was drawn twice."""
        name = self._scale_name
        if name is None or self._guidance_is_read:
            return 1.0
        used = asked.get(name, takes[name].default)
        return max(1.0, float(used)) if isinstance(used, int | float) else None

    def close(self) -> None:
        """Drop the weights, and the pipelines that share them."""
        self._pipes = {}
        super().close()


def _parameters(pipe: Any) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(type(pipe).__call__).parameters


def _siblings(pipe: Any) -> dict[str, Any]:
    """The pipelines of the same family and weights that start from a picture, where there are any."""
    from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting

    found = {}
    kinds: dict[str, tuple[Callable[[Any], Any], set[str]]] = {
        "image": (AutoPipelineForImage2Image.from_pipe, {"image"}),
        "mask": (AutoPipelineForInpainting.from_pipe, {"image", "mask_image"}),
    }
    for what, (made_from, needs) in kinds.items():
        try:
            sibling = made_from(pipe)
        except ValueError:
            continue  # this family has none
        if needs <= _parameters(sibling).keys():
            sibling.set_progress_bar_config(disable=True)
            found[what] = sibling
    return found


def _words_of(scheduler: Any) -> dict[str, str | None]:
    """Sampler and schedule as people know them; None for what has no such name."""
    kind, config = type(scheduler).__name__, scheduler.config
    named = [word for word in ("karras", "exponential", "beta") if config.get(f"use_{word}_sigmas")]
    simple = "Simple" if kind.startswith("FlowMatch") else None
    return {
        "sampler": _SAMPLERS.get(kind),
        "schedule": named[0].capitalize() if named else simple,
    }
