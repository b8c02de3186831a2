"""Which settings suit which device: a pure function from a description to a plan.

No torch here: a description can be recorded on one machine and planned for on another.
Evidence: bf16 weights are 12.3 GB transformer + 8.0 GB text encoder + 0.2 GB VAE; 24 GB cards
hold all of it, 16 GB cards all but the text encoder, smaller ones a few layers at a time. Plain
fp16 makes black pictures with this model and is never chosen; 8-bit weights are not offered
since bitsandbytes computes them in fp16.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from watcher.engines.options import EngineOptions
from watcher.errors import SteadyError

#: From fastest to smallest. resident: everything on the device. offload: the text encoder
#: comes over layer by layer, and only for a prompt that is new. stream: the transformer too.
TIERS = ("resident", "offload", "stream")

#: Bytes a decode takes per pixel and byte of the dtype (estimate: the widest layers at full size).
DECODE_PER_PIXEL = 1300
#: Room beside bfloat16 weights for one picture of 1024 x 1024; its decode takes the most.
ROOM = DECODE_PER_PIXEL * 2 * 1024 * 1024 * 11 // 10
#: Main memory that streaming wants, as a multiple of the weights, to lock them in it.
_LOCKED = 1.1

#: bytes per weight of the quantised parts (transformer, text encoder), scales included
_QUANTIZED = {"none": 0.0, "nf4": 0.6}
_DTYPE_BYTES = {"bfloat16": 2, "float32": 4}
_Text = Annotated[str, Field(min_length=1)]


@dataclass(frozen=True)
class DeviceDescription:
    """What a device is. Memory in bytes; ``free`` as found before anything was loaded."""

    device: str  #: cuda:0, mps or cpu
    name: str = ""
    capability: tuple[int, int] | None = None  #: CUDA compute capability
    total: int | None = None
    free: int | None = None
    host_free: int | None = None  #: main memory that could be had
    rocm: bool = False  #: an AMD card, whose capability means something else

    @property
    def kind(self) -> str:
        """``cuda`` of ``cuda:1``."""
        return self.device.partition(":")[0]


@dataclass(frozen=True)
class Weights:
    """Numbers of weights (not bytes) in the model's parts."""

    transformer: int
    text_encoder: int
    vae: int


class Options(EngineOptions):
    """``engine_options`` of our own engines on a device."""

    model_config = ConfigDict(strict=True)

    tier: Literal["auto", "resident", "offload", "stream"] = "auto"
    quantize: Literal["none", "nf4"] = "none"  #: nf4: on CUDA, needs bitsandbytes
    attention: _Text = "auto"  #: auto, native, fastest, or a backend diffusers knows
    tf32: bool = True  #: for float32 on CUDA
    compile: bool = False  #: regional torch.compile, kept only if a trial is faster
    tile_above: Annotated[int, Field(ge=0)] | None = None  #: pixels; larger: decoded in tiles
    warm_up: bool = True  #: one tiny picture at load, drawn twice
    threads: Annotated[int, Field(gt=0)] | None = None  #: CPU threads of one operation
    revision: _Text | None = None  #: of a model from the hub's cache
    transformer: _Text | None = None  #: a file that stands in for the model's own transformer
    base: _Text | None = None  #: the folder or hub name of all else, where the model is such a file
    guidance: bool | None = None  #: does the model take guidance? unset: yes


@dataclass(frozen=True)
class DevicePlan:
    """How to run on a device. ``because`` says it to a person, a sentence each."""

    device: str
    dtype: str
    tier: str
    quantize: str
    attention: tuple[str, ...]  #: to be tried in this order; the first that works is used
    race: bool  #: no, the fastest of them
    tf32: bool
    compile: bool
    locked: bool  #: what is streamed lies in locked main memory, which is faster to copy
    tile_above: int  #: pixels
    because: tuple[str, ...]

    def below(self, tier: str) -> str | None:
        """The next smaller tier that exists on this device; None below the last."""
        if not self.device.startswith("cuda") or self.quantize != "none":
            return None
        return TIERS[TIERS.index(tier) + 1] if tier != TIERS[-1] else None


def dtype_for(description: DeviceDescription, dtype: str) -> tuple[str, str]:
    """The number format and why. ``dtype``: auto, bfloat16 or float32."""
    if dtype in _DTYPE_BYTES:
        return dtype, "as configured"
    if dtype != "auto":
        raise SteadyError("bad_config", "`dtype` must be auto, bfloat16 or float32.")
    if description.kind == "cuda":
        if description.capability is not None and description.capability >= (8, 0):
            return "bfloat16", "the card computes in it"
        return "float32", "the card has no bfloat16 (slow), and float16 makes black pictures"
    if description.kind == "mps":
        return "bfloat16", "the chip computes in it"
    return "float32", "processors are surest in it"


def plan(
    description: DeviceDescription, options: Options, dtype: str, weights: Weights
) -> DevicePlan:
    """The settings for this device. Raises SteadyError ``bad_config`` for what cannot be."""
    number, reason = dtype_for(description, dtype)
    because = [f"{number}: {reason}."]
    cuda = description.kind == "cuda"
    if options.quantize != "none" and not cuda:
        raise SteadyError("bad_config", "engine option `quantize` needs a CUDA device.")
    if options.tier not in ("auto", "resident") and not cuda:
        raise SteadyError("bad_config", f"engine option `tier: {options.tier}` needs CUDA.")
    if options.quantize != "none" and options.tier not in ("auto", "resident"):
        raise SteadyError("bad_config", "Quantised weights stay on the card: leave `tier` out.")

    each = _DTYPE_BYTES[number]
    small = _QUANTIZED[options.quantize] or each
    parts = [weights.transformer * small, weights.text_encoder * small, weights.vae * each]
    room = ROOM * each // 2
    held = {"resident": sum(parts), "offload": parts[0] + parts[2], "stream": parts[2]}
    tier, why = "resident", "there is one memory"
    host = description.host_free
    locked = host is None or host >= sum(parts) * _LOCKED
    if cuda:
        tier, why = _tier(options, description.free, held, room)
        if tier != "resident" and host is not None and host < sum(parts):
            because.append("Main memory is short of the weights: loading will swap.")
        elif tier != "resident" and not locked:
            because.append("Main memory is too short to lock the weights in it: slower copies.")
    because.append(f"{tier}: {why}.")

    tile_above = options.tile_above
    if tile_above is None:
        spare = max(0, (description.total or 0) - held[tier]) if cuda else _HOST_TILES
        tile_above = max(1024 * 1024, int(spare * 0.8) // (DECODE_PER_PIXEL * each))
    return DevicePlan(
        device=description.device,
        dtype=number,
        tier=tier,
        quantize=options.quantize,
        attention=_attention(description, options, number),
        race=options.attention == "fastest",
        tf32=cuda and options.tf32 and number == "float32",
        compile=options.compile,
        locked=locked,
        tile_above=tile_above,
        because=tuple(because),
    )


_HOST_TILES = 24_000_000_000  #: without a card of its own: tiles from about 2048 x 1792 on


def _tier(
    options: Options, free: int | None, held: Mapping[str, float], room: int
) -> tuple[str, str]:
    if options.tier != "auto":
        return options.tier, "as configured"
    if options.quantize != "none":
        return "resident", "quantised weights are read onto the card"
    if free is None:
        return "offload", "the free memory is not known"
    gigabytes = f"{free / 1e9:.1f} GB are free"
    whole, most = ((held[tier] + room) / 1e9 for tier in ("resident", "offload"))
    if free >= held["resident"] + room:
        return "resident", f"{gigabytes}, {whole:.1f} are needed for all of it"
    if free >= held["offload"] + room:
        return "offload", f"{gigabytes}, {most:.1f} are needed for all but the text encoder"
    return "stream", f"{gigabytes}, fewer than {most:.1f}"


def _attention(description: DeviceDescription, options: Options, dtype: str) -> tuple[str, ...]:
    half = description.kind == "cuda" and dtype == "bfloat16"
    if options.attention == "fastest":
        return ("_flash_3", "_native_cudnn", "_native_flash", "native") if half else ("native",)
    if options.attention not in ("auto", "native"):
        return (options.attention, "native")
    hopper = description.capability == (9, 0) and not description.rocm
    chosen = options.attention == "auto" and half and hopper
    return ("_flash_3", "native") if chosen else ("native",)
