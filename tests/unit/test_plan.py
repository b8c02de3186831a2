"""What is chosen for which device, from recorded descriptions of real ones."""

import ast
import re
from pathlib import Path

import pytest

from watcher.engines.plan import DeviceDescription, DevicePlan, Options, Weights, plan as plan_for
from watcher.errors import SteadyError

HOUSE = Path(__file__).parents[2]
GB = 10**9


def card(name: str, capability: tuple[int, int], total: float, free: float) -> DeviceDescription:
    """A CUDA device as ``describe`` reports it; memory in GB."""
    return DeviceDescription(
        "cuda:0", name, capability, int(total * GB), int(free * GB), host_free=64 * GB
    )


H100 = card("NVIDIA H100 80GB HBM3", (9, 0), 85.0, 84.4)
RTX_4090 = card("NVIDIA GeForce RTX 4090", (8, 9), 25.3, 24.9)
RTX_4080 = card("NVIDIA GeForce RTX 4080", (8, 9), 16.8, 16.2)
RTX_5070 = card("NVIDIA GeForce RTX 5070", (12, 0), 12.5, 11.9)
RTX_3050 = card("NVIDIA GeForce RTX 3050", (8, 6), 8.4, 8.0)
TESLA_T4 = card("Tesla T4", (7, 5), 15.6, 15.5)
V100 = card("Tesla V100-SXM2-32GB", (7, 0), 34.0, 33.7)
MAC = DeviceDescription("mps", "Apple", None, 34 * GB, 25 * GB, 25 * GB)
CPU = DeviceDescription("cpu", "x86_64", None, 25 * GB, 20 * GB, 20 * GB)
STARTER = Weights(transformer=5_130_000, text_encoder=610_000, vae=1_800_000)
Z_IMAGE_TURBO = Weights(transformer=6_155_000_000, text_encoder=4_022_000_000, vae=84_000_000)


def plan(
    description: DeviceDescription,
    options: Options,
    dtype: str = "auto",
    weights: Weights = Z_IMAGE_TURBO,
) -> DevicePlan:
    return plan_for(description, options, dtype, weights)


@pytest.mark.parametrize(
    ("description", "dtype", "tier", "attention"),
    [
        (H100, "bfloat16", "resident", ("_flash_3", "native")),
        (RTX_4090, "bfloat16", "resident", ("native",)),
        (RTX_4080, "bfloat16", "offload", ("native",)),
        (RTX_5070, "bfloat16", "stream", ("native",)),
        (RTX_3050, "bfloat16", "stream", ("native",)),
        (TESLA_T4, "float32", "stream", ("native",)),
        (V100, "float32", "offload", ("native",)),
        (MAC, "bfloat16", "resident", ("native",)),
        (CPU, "float32", "resident", ("native",)),
    ],
    ids=lambda v: v.name if isinstance(v, DeviceDescription) else None,
)
def test_the_real_model_on_known_devices(
    description: DeviceDescription, dtype: str, tier: str, attention: tuple[str, ...]
) -> None:
    chosen = plan(description, Options())
    assert (chosen.dtype, chosen.tier, chosen.attention) == (dtype, tier, attention)
    assert chosen.dtype != "float16"
    assert len(chosen.because) >= 2


@pytest.mark.parametrize("description", [RTX_3050, TESLA_T4, CPU], ids=lambda d: d.name)
def test_a_small_model_is_resident_everywhere(description: DeviceDescription) -> None:
    wide = DeviceDescription(**{**vars(description), "free": 7 * GB})
    assert plan(wide, Options(), weights=STARTER).tier == "resident"


def test_a_desktop_that_uses_its_card_gets_the_next_tier() -> None:
    busy = DeviceDescription(**{**vars(RTX_4090), "free": 21 * GB})
    chosen = plan(busy, Options())
    assert chosen.tier == "offload"
    words = "offload: 21.0 GB are free, 15.5 are needed for all but the text encoder."
    assert words in chosen.because


def test_what_just_fits_is_not_left_to_the_last_hundred_megabytes() -> None:
    """Two equal machines must not differ in tiles: an A10G gives its text encoder's place."""
    a10g = card("NVIDIA A10G", (8, 6), 23.8, 23.2)
    assert plan(a10g, Options()).tier == "offload"
    assert plan(RTX_4090, Options()).tier == "resident"


def test_tf32_is_for_float32_on_cuda_alone() -> None:
    assert plan(V100, Options()).tf32
    assert not plan(V100, Options(tf32=False)).tf32
    assert not plan(H100, Options()).tf32
    assert not plan(CPU, Options()).tf32


def test_tiles_begin_where_memory_ends_and_never_at_the_native_size() -> None:
    native = 1024 * 1024
    limits = [plan(d, Options()).tile_above for d in (RTX_3050, RTX_4090, H100)]
    assert limits[0] >= native
    assert limits[0] < limits[2]
    assert all(limit >= native for limit in limits)
    assert plan(H100, Options(tile_above=0)).tile_above == 0


def test_what_is_said_is_what_is_done() -> None:
    chosen = plan(H100, Options(tier="stream", attention="sage", compile=True), dtype="float32")
    assert (chosen.tier, chosen.attention, chosen.compile) == ("stream", ("sage", "native"), True)
    assert chosen.dtype == "float32"
    assert "float32: as configured." in chosen.because


def test_the_ladder_goes_down_once_per_rung() -> None:
    chosen = plan(H100, Options())
    assert chosen.below("resident") == "offload"
    assert chosen.below("offload") == "stream"
    assert chosen.below("stream") is None
    assert plan(CPU, Options()).below("resident") is None


def test_quantised_weights_fit_smaller_cards() -> None:
    chosen = plan(RTX_5070, Options(quantize="nf4"))
    assert (chosen.tier, chosen.quantize) == ("resident", "nf4")
    assert plan(RTX_3050, Options(quantize="nf4")).tier == "resident"  # read there, they stay
    assert chosen.below("resident") is None


def test_attention_is_raced_only_when_asked() -> None:
    assert not plan(H100, Options()).race
    raced = plan(RTX_4090, Options(attention="fastest"))
    assert raced.race and raced.attention[-1] == "native" and len(raced.attention) == 4
    assert plan(CPU, Options(attention="fastest")).attention == ("native",)
    amd = DeviceDescription(**{**vars(H100), "rocm": True})
    assert plan(amd, Options()).attention == ("native",)


def test_main_memory_is_locked_where_there_is_enough() -> None:
    assert plan(RTX_5070, Options()).locked
    tight = plan(DeviceDescription(**{**vars(RTX_5070), "host_free": 21 * GB}), Options())
    assert not tight.locked
    assert any("slower copies" in sentence for sentence in tight.because)


def test_loading_that_will_swap_is_said() -> None:
    small_host = DeviceDescription(**{**vars(RTX_4080), "host_free": 8 * GB})
    assert any("swap" in s for s in plan(small_host, Options()).because)
    assert not any("swap" in s for s in plan(RTX_4080, Options()).because)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"teir": "offload"}, "`teir` is no engine option. Did you mean `tier`?"),
        ({"tier": "huge"}, "`tier`: it must be 'auto', 'resident', 'offload' or 'stream'"),
        ({"tf32": 1}, "`tf32`: it must be true or false"),
        ({"tile_above": -1}, "`tile_above`: it must be at least 0"),
        ({"tile_above": True}, "`tile_above`: it must be a whole number"),
        ({"threads": 0}, "`threads`: it must be above 0"),
        ({"quantize": ["nf4"]}, "`quantize`: it must be 'none' or 'nf4'"),
        ({"quantize": "int8"}, "`quantize`: it must be 'none' or 'nf4'"),
        ({"attention": ""}, "`attention`: it is empty"),
    ],
)
def test_wrong_options_are_refused_in_words(given: dict[str, object], words: str) -> None:
    with pytest.raises(SteadyError) as caught:
        Options.of(given)
    assert caught.value.code == "bad_config"
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("description", "options", "dtype"),
    [
        (CPU, Options(quantize="nf4"), "auto"),
        (CPU, Options(tier="offload"), "auto"),
        (H100, Options(quantize="nf4", tier="stream"), "auto"),
        (H100, Options(), "float16"),
    ],
)
def test_what_cannot_be_is_refused(
    description: DeviceDescription, options: Options, dtype: str
) -> None:
    with pytest.raises(SteadyError) as caught:
        plan(description, options, dtype)
    assert caught.value.code == "bad_config"


def test_every_check_that_needs_a_card_is_listed() -> None:
    listed = set(re.findall(r"(tests/\w+/\w+\.py)::(\w+)", (HOUSE / "CONTRIBUTING.md").read_text()))
    marked = set()
    for path in sorted((HOUSE / "tests").glob("*/test_*.py")):
        tree = ast.parse(path.read_text())
        whole = any(
            isinstance(n, ast.Assign)
            and ast.unparse(n.targets[0]) == "pytestmark"
            and "mark.gpu" in ast.unparse(n.value)
            for n in tree.body
        )
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                own = any("mark.gpu" in ast.unparse(d) for d in node.decorator_list)
                if whole or own:
                    marked.add((f"tests/{path.parent.name}/{path.name}", node.name))
    assert len(marked) >= 10
    assert listed == marked


def test_the_page_on_cards_lists_every_option() -> None:
    page = (HOUSE / "docs" / "gpu.md").read_text()
    block = page.partition("engine_options:")[2].partition("\n\n")[0]
    assert set(re.findall(r"^ {2}(\w+):", block, re.M)) == set(Options.model_fields)
