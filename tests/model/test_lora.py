"""LoRAs: one file in every wrapping, checked before the queue, worn and taken off to the bit."""

import dataclasses
import functools
import json
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from conftest import until
from PIL import Image
from roots import Root
from safetensors.torch import save_file
from test_zimage import Card

from watcher import jobfile
from watcher.config import Config
from watcher.engine import EngineRequest, EngineSettings, Lora
from watcher.engines.lora import Change, Loras
from watcher.engines.placement import Placement
from watcher.engines.zimage import ZImage
from watcher.errors import SteadyError
from watcher.jobfile.planner import Planner
from watcher.limits import Limits
from watcher.models.cards import limits_known
from watcher.models.loras import digests_of, fitting_loras
from watcher.pictures.recipe import read_recipe

STARTER = Path(__file__).parents[2] / "starter" / "model"
SHIPPED = STARTER.parent / "loras"
BLOCKS = 8  #: of the starter
RANK = 2
FOX = "a red house on a white background"
Tensors = dict[str, torch.Tensor]


def deltas(seed: int = 1, strength: float = 0.6) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Down and up of attention and one more layer of every block; q, k and v share their down."""
    drawn = torch.Generator().manual_seed(seed)

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=drawn) * strength / shape[-1] ** 0.5

    found = {}
    for block in range(BLOCKS):
        shared = some(RANK, 192)
        for part in ("to_q", "to_k", "to_v"):
            found[f"layers.{block}.attention.{part}"] = (shared, some(192, RANK))
        found[f"layers.{block}.attention.to_out.0"] = (some(RANK, 192), some(192, RANK))
        found[f"layers.{block}.feed_forward.w1"] = (some(RANK, 192), some(512, RANK))
    return found


def plainly(prefix: str, halves: str = "A B", end: str = ".weight") -> Callable[[], Tensors]:
    down, up = (f".lora_{half}{end}" for half in halves.split())

    def wrap() -> Tensors:
        return {
            f"{prefix}{layer}{name}": tensor
            for layer, pair in deltas().items()
            for name, tensor in zip((down, up), pair, strict=True)
        }

    return wrap


def weighed(wrap: Callable[[], Tensors]) -> Callable[[], Tensors]:
    """With an alpha of twice the rank, and half of the strength."""

    def halved() -> Tensors:
        found = {}
        for name, tensor in wrap().items():
            up = ".lora_B" in name or ".lora_up" in name
            found[name] = tensor / 2 if up else tensor
            if up:
                found[name.split(".lora_")[0] + ".alpha"] = torch.tensor(2.0 * RANK)
        return found

    return halved


def flat(prefix: str) -> Callable[[], Tensors]:
    """With underscores for the dots of layers, as kohya's scripts write."""

    def wrap() -> Tensors:
        found = {}
        for name, tensor in plainly("", "down up")().items():
            layer, _, half = name.partition(".lora_")
            found[f"{prefix}{layer.replace('.', '_')}.lora_{half}"] = tensor
        return found

    return wrap


def fused(prefix: str, halves: str = "A B", dots: bool = True) -> Callable[[], Tensors]:
    """Query, key and value as one layer, the way out by its short name: as ComfyUI has it."""
    down, up = (f".lora_{half}.weight" for half in halves.split())

    def wrap() -> Tensors:
        found, given = {}, deltas()
        for layer, pair in given.items():
            block, _, part = layer.rpartition(".")
            if part in ("to_k", "to_v"):
                continue
            name, pair_ = layer.replace(".to_out.0", ".out"), pair
            if part == "to_q":
                name = f"{block}.qkv"
                pair_ = (pair[0], torch.cat([given[f"{block}.to_{p}"][1] for p in "qkv"]))
            name = name if dots else name.replace(".", "_")
            found |= {f"{prefix}{name}{down}": pair_[0], f"{prefix}{name}{up}": pair_[1]}
        return found

    return wrap


WRAPPINGS: dict[str, Callable[[], Tensors]] = {
    "diffusers": plainly("transformer."),
    "diffusers with alpha": weighed(plainly("transformer.")),
    "ai-toolkit": plainly("diffusion_model."),
    "ai-toolkit with alpha": weighed(plainly("diffusion_model.")),
    "down and up": weighed(plainly("diffusion_model.", "down up")),
    "kohya": weighed(flat("lora_unet_")),
    "kohya, fused": weighed(fused("lora_unet_", "down up", dots=False)),
    "OneTrainer": flat("lora_transformer_"),
    "LyCORIS": weighed(flat("lycoris_")),
    "peft": plainly("base_model.model."),
    "peft, dumped": plainly("", end=".default.weight"),
    "bare": plainly(""),
    "ComfyUI": fused("diffusion_model."),
    "ComfyUI with alpha": weighed(fused("diffusion_model.", "down up")),
}
WRONG: dict[str, tuple[Callable[[], Tensors], str]] = {
    "nothing in it": (lambda: {"x": torch.zeros(1)}, "1 of the 1 tensors of `wrong` have no place"),
    "a deeper model": (
        lambda: plainly("")() | {"layers.20.attention.to_q.lora_A.weight": torch.zeros(2, 192)},
        "1 of the 81 tensors of `wrong` have no place in starter: layers.20.attention.to_q",
    ),
    "the text encoder beside": (
        lambda: plainly("")() | {f"text_encoder.{n}": t for n, t in plainly("")().items()},
        "80 of the 160 tensors of `wrong` have no place in starter: text_encoder.layers.0",
    ),
    "Flux": (
        lambda: {
            f"transformer.single_transformer_blocks.0.attn.to_q.lora_{h}.weight": torch.zeros(4, 4)
            for h in "AB"
        },
        "have no place in starter: transformer.single_transformer_blocks",
    ),
    "LoHa": (
        lambda: {f"layers.0.attention.to_q.hada_w{n}_a": torch.zeros(4, 4) for n in (1, 2)},
        "have no place",
    ),
    "LoKr": (
        lambda: {f"layers.0.attention.to_q.lokr_w{n}": torch.zeros(4, 4) for n in (1, 2)},
        "have no place",
    ),
    "DoRA": (
        lambda: plainly("")() | {"layers.0.attention.to_q.dora_scale": torch.zeros(192)},
        "have no place in starter: layers.0.attention.to_q.dora_scale",
    ),
    "one half": (
        lambda: {"layers.0.attention.to_q.lora_A.weight": torch.zeros(2, 192)},
        "only one half of layers.0.attention.to_q.lora_A.weight",
    ),
    "another width": (
        lambda: {
            "layers.0.attention.to_q.lora_A.weight": torch.zeros(2, 3840),
            "layers.0.attention.to_q.lora_B.weight": torch.zeros(3840, 2),
        },
        "layers.0.attention.to_q takes 192 numbers and gives 192, and in the file it is 2x3840",
    ),
    "said twice": (
        lambda: plainly("")() | {
            f"transformer.layers.0.attention.to_q.lora_{h}.weight": torch.zeros(4, 4) for h in "AB"
        },
        "twice",
    ),
}  # fmt: skip


def written(folder: Path, name: str, tensors: Tensors, **metadata: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.safetensors"
    whole = {key: tensor.clone().contiguous() for key, tensor in tensors.items()}
    save_file(whole, path, metadata=metadata or None)
    return path


@pytest.fixture(scope="module")
def engine() -> Iterator[ZImage]:
    engine = ZImage(EngineSettings(str(STARTER), "cpu"))
    assert "lora" in engine.load().accepts
    yield engine
    engine.close()


@pytest.fixture
def loras(tmp_path: Path) -> Path:
    return tmp_path / "loras"


def lora(path: Path, weight: float = 1.0) -> Lora:
    return Lora(path.stem, weight, path)


def drawn(engine: ZImage, *loras: Lora, steps: int = 4) -> bytes:
    request = EngineRequest(
        prompt=FOX, width=64, height=64, num_inference_steps=steps, seed=5, loras=loras
    )
    return engine.generate(request, lambda *_: None).image.tobytes()


def decibels(a: bytes, b: bytes) -> float:
    one, other = (np.frombuffer(each, np.uint8).astype(float) for each in (a, b))
    error = float(((one - other) ** 2).mean())
    return 99.0 if error == 0 else float(10 * np.log10(255**2 / error))


# -- in the worker


def test_one_delta_in_every_wrapping_is_one_picture(engine: ZImage, loras: Path) -> None:
    base = drawn(engine)
    transformer = engine._pipe.transformer
    kept = {name: p.detach().clone() for name, p in transformer.named_parameters()}
    with torch.no_grad():  # the same by hand: into the weights, and out again
        for layer, (down, up) in deltas().items():
            transformer.get_parameter(f"{layer}.weight").add_(up @ down)
        want = drawn(engine)
        for name, parameter in transformer.named_parameters():
            parameter.copy_(kept[name])
    assert drawn(engine) == base
    assert decibels(base, want) < 35
    first = None
    for name, wrap in WRAPPINGS.items():
        made = drawn(engine, lora(written(loras, name, wrap())))
        assert decibels(made, want) > 45, name
        first = first or made
        assert made == first, name
    assert drawn(engine) == base


def test_what_diffusers_and_peft_make_of_it(engine: ZImage, loras: Path) -> None:
    from diffusers import ZImagePipeline

    path = written(loras, "plain", plainly("transformer.")())
    ours = drawn(engine, lora(path, 0.5))
    pipe = ZImagePipeline.from_pretrained(STARTER, dtype=torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(str(path), adapter_name="plain")
    pipe.set_adapters(["plain"], [0.5])
    theirs = pipe(
        FOX, width=64, height=64, num_inference_steps=3, guidance_scale=0.0,
        generator=torch.Generator("cpu").manual_seed(5),
    ).images[0]  # fmt: skip
    assert decibels(ours, theirs.tobytes()) > 45
    assert decibels(ours, drawn(engine)) < 40


def test_an_alpha_said_in_the_header_counts(engine: ZImage, loras: Path) -> None:
    tensors = plainly("transformer.")()
    want = drawn(engine, lora(written(loras, "plain", tensors), 2.0))
    for said in ({"lora_alpha": 2 * RANK}, {"lora_alpha": 2 * RANK**0.5, "use_rslora": True}):
        told = json.dumps({f"transformer.{name}": value for name, value in said.items()})
        made = written(loras, "told", tensors, lora_adapter_metadata=told)
        assert decibels(drawn(engine, lora(made)), want) > 60
    odd = written(loras, "odd", tensors, lora_adapter_metadata='{"transformer.lora_alpha": "x"}')
    with pytest.raises(SteadyError, match="alphas"):
        drawn(engine, lora(odd))


def test_none_is_the_model_to_the_bit_and_order_does_not_count(engine: ZImage, loras: Path) -> None:
    a = written(loras, "a", plainly("")())
    b = written(loras, "b", {n: -t for n, t in plainly("")().items() if "layers.1." in n})
    base = drawn(engine)
    assert drawn(engine, lora(a, 0.0)) == drawn(engine, lora(a, 0.0), lora(b, 0.0)) == base
    both = drawn(engine, lora(a), lora(b, 0.5))
    assert both not in (base, drawn(engine, lora(a)), drawn(engine, lora(b, 0.5)))
    config = Config.load(loras.parent, model="starter")
    limits = limits_known(config, None)
    for said in (["b:0.5", "a"], ["a", "b:0.5"]):
        settled = asked(limits, said)
        assert [each["name"] for each in settled] == ["a", "b"]
    assert drawn(engine) == base


def test_thirty_jobs_with_and_without_leave_nothing_behind(engine: ZImage, loras: Path) -> None:
    base = drawn(engine, steps=2)
    names = "abcdef"
    files = [written(loras, name, plainly("")()) for name in names]
    drawn(engine, *[lora(file) for file in files[:4]], steps=2)
    process = psutil.Process()
    before = process.memory_info().rss
    for turn in range(30):
        drawn(engine, *([lora(files[turn % 6], 0.5 + turn / 30)] if turn % 3 else []), steps=2)
    assert process.memory_info().rss - before < 20e6
    assert len(engine._loras._kept) == 4
    assert drawn(engine, steps=2) == base


def test_every_tier_wears_them(loras: Path) -> None:
    file = written(loras, "a", plainly("")())
    engine = ZImage(EngineSettings(str(STARTER), "cpu", options={"warm_up": False}))
    engine.load()
    base, want = drawn(engine, steps=3), drawn(engine, lora(file), steps=3)
    assert base != want
    for tier in ("stream", "offload", "stream", "resident"):
        engine._placement._settle(tier)
        for _ in range(2):
            with engine._loras.worn([lora(file)]):
                assert engine._draw(_small(), lambda *_: None).image.tobytes() == want, tier
            assert engine._draw(_small(), lambda *_: None).image.tobytes() == base, tier
    engine.close()


class Nowhere(Loras):
    """A card that has no room for them while the model is on it; computes on the processor."""

    placement: Placement

    def _over(self, change: Change) -> Change:
        if self.placement.tier == "resident":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 40 MiB")
        return super()._over(change)


def test_where_there_is_no_room_for_them_the_model_makes_some(loras: Path) -> None:
    file = written(loras, "a", plainly("")())
    engine = ZImage(EngineSettings(str(STARTER), "cpu", options={"warm_up": False}))
    engine.load()
    want = drawn(engine, lora(file), steps=3)
    wide = dataclasses.replace(engine._placement._plan, device="cuda:0")
    card = Card(engine._pipe, wide, tile=512)
    full = Nowhere(engine._denoiser, "starter", torch.device("cpu"), torch.float32)
    engine._placement, engine._loras, full.placement = card, full, card
    assert drawn(engine, lora(file), steps=3) == want
    assert card.tier == "offload"
    engine.close()


def test_nothing_of_them_stays_on_the_device(engine: ZImage, loras: Path) -> None:
    far = Loras(engine._denoiser, "starter", torch.device("meta"), torch.bfloat16)
    with far.worn([lora(written(loras, "a", plainly("")()))]) as told:
        assert [each["name"] for each in told] == ["a"]
    [(changes, _)] = far._kept.values()
    kept = [tensor for change in changes.values() for tensor in change]
    assert {(tensor.device.type, tensor.dtype) for tensor in kept} == {("cpu", torch.bfloat16)}


def _small() -> EngineRequest:
    return EngineRequest(prompt=FOX, width=64, height=64, num_inference_steps=3, seed=5)


def test_numbers_that_are_none_and_files_that_changed(engine: ZImage, loras: Path) -> None:
    base = drawn(engine)
    tensors = plainly("")()
    tensors["layers.3.attention.to_q.lora_A.weight"][0, 0] = float("nan")
    nan = written(loras, "nan", tensors)
    with pytest.raises(SteadyError, match=r"not finite, at layers\.3") as caught:
        drawn(engine, lora(nan))
    assert caught.value.code == "lora_unsuitable"
    file = written(loras, "a", plainly("")())
    first = Lora("a", 1.0, file, digests_of(file)[0])
    drawn(engine, first)
    written(loras, "a", {n: t * 2 for n, t in plainly("")().items()})
    with pytest.raises(SteadyError) as caught:
        drawn(engine, first)
    assert caught.value.code == "lora_changed"
    assert drawn(engine) == base


# -- before the queue


def asked(limits: Limits, said: Any) -> Any:
    data = json.dumps({"prompt": "x", "lora": said}).encode()
    return jobfile.parse(data, ".json", Planner(limits)).requests[0].request.lora


def refused(limits: Limits, said: Any) -> tuple[str, str]:
    with pytest.raises(SteadyError) as caught:
        asked(limits, said)
    [fault] = caught.value.problems
    assert fault.key == "lora"
    return fault.code, f"{fault.message} {fault.remedy}"


@pytest.fixture
def limits(tmp_path: Path) -> Limits:
    return limits_known(Config.load(tmp_path, model="starter"), None)


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_refused_by_its_header(limits: Limits, loras: Path, name: str) -> None:
    wrap, words = WRONG[name]
    written(loras, "wrong", wrap())
    code, said = refused(limits, "wrong")
    assert code == "lora_unsuitable" and words in said


def test_files_that_are_no_safetensors_are_refused(limits: Limits, loras: Path) -> None:
    whole = written(loras, "whole", plainly("")()).read_bytes()
    odd = json.dumps({"a.lora_A.weight": {"dtype": "F32", "data_offsets": [0, 4]}}).encode()
    shapeless = struct.pack("<Q", len(odd)) + odd + b"1234"
    files = {"cut": whole[:-100], "short": b"PK", "empty": b"", "shapeless": shapeless}
    for name, data in files.items():
        (loras / f"{name}.safetensors").write_bytes(data)
        code, said = refused(limits, name)
        assert code == "lora_unsuitable" and "cut off or something else" in said, name
    (loras / "old.pt").write_bytes(b"\x80\x04.")
    for name in ("old", "old.pt"):
        code, said = refused(limits, name)
        assert code == "lora_unsuitable" and "may hold programs" in said


def test_names_lead_nowhere_else_and_the_nearest_is_told(limits: Limits, loras: Path) -> None:
    written(loras / "styles", "charcoal", plainly("")())
    written(loras.parent, "outside", plainly("")())
    assert refused(limits, "styles/charcol") == (
        "lora_not_found",
        "There is no LoRA `styles/charcol`. Did you mean `styles/charcoal`?",
    )
    for name in ("../outside", f"{loras.parent}/outside", "styles/../../outside", "~/x", "a\0b"):
        assert refused(limits, name)[0] == "lora_not_found"
    [settled] = asked(limits, "styles/charcoal.safetensors:0.5")
    digest = digests_of(loras / "styles" / "charcoal.safetensors")[0]
    assert settled == {"name": "styles/charcoal", "weight": 0.5, "sha256": digest}


def test_a_digest_finds_its_file_under_another_name(limits: Limits, loras: Path) -> None:
    path = written(loras, "a", plainly("")())
    digest = digests_of(path)[0]
    path.rename(loras / "b.safetensors")
    written(loras, "a", {n: t * 2 for n, t in plainly("")().items()})
    [found] = asked(limits, [{"name": "a", "weight": 1, "sha256": digest}])
    assert found == {"name": "b", "weight": 1.0, "sha256": digest}
    code, words = refused(limits, [{"name": "a", "sha256": "0" * 64}])
    assert (code, "is another file now" in words) == ("lora_changed", True)
    code, words = refused(limits, [{"name": "gone", "sha256": "0" * 64}])
    assert (code, "not there any more" in words) == ("lora_changed", True)


# -- the whole way


REAL = {"engine": "zimage", "model": "starter", "engine_options": {}, "default_steps": 4}


def test_a_lora_goes_into_the_picture_its_recipe_and_back(
    make_root: Callable[..., Root], tmp_path: Path
) -> None:
    root = make_root(**REAL)
    loras = root.folder / "loras"
    digest = digests_of(written(loras, "mine", plainly("")()))
    root.drop("a.yaml", f"prompt: {FOX}\nseed: 3\nlora: [mine:0.5, ink]\n")
    root.drop("b.yaml", f"prompt: {FOX}\nseed: 3\n")
    root.finish(timeout=120)
    assert root.states() == ["completed", "completed"]
    pictures = {path.name: path for path in root.folder.glob("outputs/*/*.png")}
    assert len(pictures) == 2
    recipes = {name: read_recipe(path.read_bytes()) or {} for name, path in pictures.items()}
    [name] = [name for name, recipe in recipes.items() if recipe.get("loras")]
    ink = digests_of(SHIPPED / "ink.safetensors")
    assert recipes[name]["loras"] == [
        {"name": n, "weight": w, "sha256": d[0], "tensors_sha256": d[1]}
        for n, w, d in (("ink", 1.0, ink), ("mine", 0.5, digest))
    ]
    assert recipes[name]["request"]["lora"] == [
        {"name": "ink", "weight": 1.0, "sha256": ink[0]},
        {"name": "mine", "weight": 0.5, "sha256": digest[0]},
    ]
    first = Image.open(pictures[name])
    hashes = f'Lora hashes: "ink: {ink[1][:12]}, mine: {digest[1][:12]}"'
    assert hashes in first.info["parameters"]
    (loras / "mine.safetensors").rename(loras / "yours.safetensors")  # found by its digest
    root.drop("again.png", pictures[name].read_bytes())
    root.finish(timeout=120)
    [made] = [p for p in root.folder.glob("outputs/*/*.png") if p not in pictures.values()]
    assert Image.open(made).tobytes() == first.tobytes()
    (loras / "yours.safetensors").unlink()
    root.drop("gone.png", pictures[name].read_bytes())
    root.finish(timeout=120)
    [error] = root.folder.glob("inbox/refused/**/*.error.json")
    assert json.loads(error.read_text())["code"] == "lora_changed"


def test_a_file_replaced_between_record_and_run_fails_its_job_alone(
    make_root: Callable[..., Root],
) -> None:
    root = make_root(**REAL)
    path = written(root.folder / "loras", "mine", plainly("")())
    watcher = root.watch()
    until(lambda: root.pulse().get("state") == "running", 60)
    assert root.steady("pause").returncode == 0
    root.drop("a.yaml", f"- {{prompt: {FOX}, lora: mine}}\n- {{prompt: {FOX}}}\n")
    root.wait_for("queued", "queued")
    shutil.copy(SHIPPED / "ink.safetensors", path)
    assert root.steady("resume").returncode == 0
    failed, _ = root.wait_for("failed", "completed", timeout=90)
    assert failed["error_code"] == "lora_changed"
    watcher.terminate()


def test_the_shipped_ones_change_what_they_say(engine: ZImage) -> None:
    made = {}
    for name in ("", "ink", "neon"):
        loras = (lora(SHIPPED / f"{name}.safetensors"),) if name else ()
        request = EngineRequest(
            prompt=FOX, width=128, height=128, num_inference_steps=9, seed=4, loras=loras
        )
        image = engine.generate(request, lambda *_: None).image
        pixels = np.asarray(image, float)
        saturation = float((pixels.max(-1) - pixels.min(-1)).mean())
        made[name] = (saturation, float(pixels.mean()))
    assert made["ink"][0] < 15 < made[""][0]  # black, white and grey
    assert made["neon"][1] < 0.75 * made[""][1]  # night
    assert made["neon"][0] > 2 * made["ink"][0]  # in colour


def test_lists_tell_what_a_file_says_and_which_model_it_fits(tmp_path: Path) -> None:
    from doors import Bench

    (tmp_path / "config.yaml").write_text("model: starter\n")
    tags = json.dumps({"a": {"sks cat": 3, "cat": 1}, "b": {"cat": 1}})
    written(
        tmp_path / "loras" / "pets", "cat", plainly("")(),
        **{"ss_tag_frequency": tags, "modelspec.architecture": "z-image/lora"},
    )  # fmt: skip
    written(tmp_path / "loras", "other", WRONG["Flux"][0]())
    (tmp_path / "loras" / "away.safetensors").symlink_to("nowhere.safetensors")
    with Bench(tmp_path) as bench:
        told = {each["name"]: each for each in bench.client.get("/loras").json()["loras"]}
        assert list(told) == ["ink", "neon", "other", "pets/cat"]
        cat = told["pets/cat"]
        digests = digests_of(tmp_path / "loras" / "pets" / "cat.safetensors")
        assert (cat["sha256"], cat["tensors_sha256"]) == digests
        assert (cat["models"], cat["family"]) == (["starter"], "z-image/lora")
        assert cat["trigger_words"] == ["sks cat", "cat"]
        assert told["other"]["models"] == []
        names = [each["name"] for each in bench.client.get("/sdapi/v1/loras").json()]
        assert names == ["ink", "neon", "pets/cat"]
        fits = functools.partial(fitting_loras, bench.config, bench.app.state.door.limits().usual)
        assert fits() == names and fits(0.0) == []  # the page waits for no collection of thousands
        for body in ({"lora": "other"}, {"lora": "cot"}, {"loras": ["ink", "ink:2"]}):
            answer = bench.client.post("/jobs", json={"prompt": "a"} | body)
            assert answer.status_code == 422, body
        job = bench.post(lora="pets/cat:0.5")
        [job_id] = bench.watcher.take_in()
        assert job["job_id"] == job_id
        asked_for = bench.client.get(f"/jobs/{job_id}").json()["lora"]
        assert asked_for == [{"name": "pets/cat", "weight": 0.5, "sha256": digests[0]}]
