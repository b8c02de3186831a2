"""From a model's folder to a pipeline in memory, or a word about what is wrong with it."""

import contextlib
import fcntl
import importlib
import importlib.metadata
import json
import math
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from watcher.engines.files import header, model_parts, role_of
from watcher.engines.plan import DevicePlan
from watcher.engines.shortage import is_out_of_memory, is_poison
from watcher.errors import SteadyError
from watcher.program import extra_missing

#: A model's turn to be read comes after this long, whoever else reads: half of a load's time.
_TURN_SECONDS = 300.0
#: Words of a library that failed on the device; its other RuntimeErrors are of the files.
_DEVICE = re.compile(r"\b(cuda|cudnn|cublas|hip|rocblas|nvml|mps|gpu)", re.IGNORECASE)


def read_pipeline(
    folder: Path,
    chosen: DevicePlan,
    *,
    kind: str = "ZImagePipeline",
    transformer: Path | None = None,
) -> Any:
    """The pipeline in main memory (quantised parts: on the device).

    ``kind``: the class of diffusers that puts the parts together. ``transformer``: a single file
    that stands in for the folder's own. Raises ModelMissing, SteadyError ``model_damaged``,
    ``extra_missing``.
    """
    import diffusers
    import diffusers.utils.logging
    import transformers.utils.logging
    from safetensors import SafetensorError

    diffusers.utils.logging.disable_progress_bar()  # their bars are noise in a log
    transformers.utils.logging.disable_progress_bar()

    try:
        with _one_at_a_time():
            parts = _read_parts(folder, chosen, transformer)
            pipe = getattr(diffusers, kind).from_pretrained(folder, **_how(chosen), **parts)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, SafetensorError) as error:
        words = " ".join(str(error).split())[:300]
        raise SteadyError("model_damaged", f"{type(error).__name__}: {words}") from error
    except RuntimeError as error:
        if is_out_of_memory(error) or is_poison(error):
            raise
        words = " ".join(str(error).split())[:300]
        if _DEVICE.search(words):
            raise  # the device's fault, not the files'
        raise SteadyError("model_damaged", words) from error
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _how(chosen: DevicePlan) -> dict[str, Any]:
    """Files of this machine alone, no pickles, no code that comes with a model."""
    number = getattr(torch, chosen.dtype)
    return {"dtype": number, "local_files_only": True, "use_safetensors": True}


def _read_parts(folder: Path, chosen: DevicePlan, single: Path | None) -> dict[str, Any]:
    """The parts with weights, one by one: so each tells what its files lack.

    The libraries fill weights that are absent with noise, and only mention it.
    """
    index = json.loads((folder / "model_index.json").read_bytes())
    parts = {}
    for part in model_parts(folder, index):
        library, name = index[part]
        if part == "transformer" and single is not None:
            parts[part] = _read_single(folder, chosen, single, name)
        elif library in ("diffusers", "transformers"):  # else the pipeline reads its own
            home = importlib.import_module(library)
            more = {}
            if chosen.quantize != "none" and role_of(part) != "vae":
                more = {"quantization_config": _quantization(home, chosen)}
            parts[part], told = getattr(home, name).from_pretrained(
                folder / part, output_loading_info=True, **_how(chosen), **more
            )
            absent = sorted(told["missing_keys"])
            if absent:
                words = f"{part} lacks {len(absent)} of its weights, {absent[0]} for one."
                raise SteadyError("model_damaged", words)
    return parts


def _read_single(folder: Path, chosen: DevicePlan, file: Path, name: str) -> Any:
    """A transformer of one file, as the folder's configuration describes it."""
    import diffusers

    kind = getattr(diffusers, name)
    how = _how(chosen)
    if file.suffix == ".gguf":
        how["quantization_config"] = _gguf(how["dtype"])
    with torch.device("meta"):
        wanted = kind.from_config(kind.load_config(folder, subfolder="transformer"))
    size, held = sum(p.numel() for p in wanted.parameters()), _numbers_in(file)
    if held != size:
        words = f"{file.name} does not fit: it holds {held} numbers, the transformer has {size}."
        raise SteadyError("model_damaged", words, remedy="Name a file with the transformer alone.")
    try:
        return kind.from_single_file(str(file), config=str(folder), subfolder="transformer", **how)
    except NotImplementedError as error:  # of a weight that was never read
        words = f"{file.name} lacks weights of this transformer, or calls them otherwise."
        raise SteadyError("model_damaged", words) from error


def _numbers_in(file: Path) -> int:
    """How many numbers a single file gives to the transformer."""
    if file.suffix == ".gguf":
        from gguf import GGUFReader

        counts = {str(t.name): int(t.n_elements) for t in GGUFReader(file).tensors}
    else:
        counts = {key: math.prod(entry["shape"]) for key, entry in header(file)[0].items()}
    return sum(n for key, n in counts.items() if not key.endswith("norm_final.weight"))  # unused


def _gguf(number: torch.dtype) -> Any:
    """diffusers' own configuration for GGUF; the optional extra ``gguf``."""
    from diffusers import GGUFQuantizationConfig

    _needs("gguf", "gguf", "A .gguf file")
    return GGUFQuantizationConfig(compute_dtype=number)


def _needs(package: str, extra: str, what: str) -> None:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise extra_missing(what, package, extra) from None


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Workers of one machine read one after another: each takes main memory while it does.

    Nobody waits for ever: one that is stuck in its driver holds the lock, and a load has a limit.
    """
    descriptor = os.open(Path(__file__).parent, os.O_RDONLY)  # whatever models they read
    deadline = time.monotonic() + _TURN_SECONDS
    try:
        while time.monotonic() < deadline:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.2)
            except OSError:  # a file system without locks
                break
            else:
                break
        yield
    finally:
        os.close(descriptor)


def _quantization(library: Any, chosen: DevicePlan) -> Any:
    """A library's own configuration for bitsandbytes; the optional extra ``quantize``."""
    _needs("bitsandbytes", "quantize", "`quantize`")
    return library.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=getattr(torch, chosen.dtype),
    )
