"""From a model's folder to a pipeline in memory, or a word about what is wrong with it."""

import contextlib
import fcntl
import importlib.metadata
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from watcher.engines.files import PARTS, header, weight_files
from watcher.engines.plan import DevicePlan
from watcher.engines.shortage import is_out_of_memory, is_poison
from watcher.errors import SteadyError


def read_pipeline(folder: Path, chosen: DevicePlan) -> Any:
    """The pipeline in main memory (quantised parts: on the device).

    Raises SteadyError ``model_damaged``, ``extra_missing``.
    """
    import diffusers.utils.logging
    import transformers.utils.logging
    from diffusers import ZImagePipeline
    from safetensors import SafetensorError

    diffusers.utils.logging.disable_progress_bar()  # their bars are noise in a log
    transformers.utils.logging.disable_progress_bar()

    more = {} if chosen.quantize == "none" else {"quantization_config": _quantization(chosen)}
    try:
        with _one_at_a_time(folder):
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
        if is_out_of_memory(error) or is_poison(error):
            raise
        words = " ".join(str(error).split())[:300]
        if re.search(r"\b(cuda|cudnn|hip|gpu)", words, re.IGNORECASE):
            raise  # the device's fault, not the files'
        raise SteadyError("model_damaged", words) from error
    for part in PARTS:
        _must_be_whole(part, getattr(pipe, part), folder / part)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Workers of one machine read one after another: each takes main memory while it does."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _must_be_whole(name: str, module: torch.nn.Module, folder: Path) -> None:
    """The libraries fill weights that are absent with noise, and only mention it."""
    stored: set[str] = set()
    for path in weight_files(folder):
        stored |= {key.removeprefix("model.") for key in header(path)[0]}
    absent = [
        key for key, _ in module.named_parameters() if key.removeprefix("model.") not in stored
    ]
    if absent:
        words = f"{name} lacks {len(absent)} of its weights, {absent[0]} for one."
        raise SteadyError("model_damaged", words)


def _quantization(chosen: DevicePlan) -> Any:
    """diffusers' own configuration for bitsandbytes; the optional extra ``quantize``."""
    from diffusers import PipelineQuantizationConfig

    try:
        importlib.metadata.version("bitsandbytes")
    except importlib.metadata.PackageNotFoundError:
        raise SteadyError(
            "extra_missing", "`quantize` needs the extra `quantize` (bitsandbytes)."
        ) from None
    return PipelineQuantizationConfig(
        quant_backend="bitsandbytes_4bit",
        quant_kwargs={
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_compute_dtype": getattr(torch, chosen.dtype),
        },
        components_to_quantize=["transformer", "text_encoder"],
    )
