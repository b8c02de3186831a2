"""Any folder of diffusers: four other families, tiny, drawn as that library draws them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES, write
from PIL import Image
from roots import Root

from watcher.engine import Cancelled, EngineRequest, EngineSettings, Lora, ModelMissing
from watcher.engines.diffusers import AnyPipeline
from watcher.errors import SteadyError
from watcher.pictures.recipe import DETAILS, read_recipe


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    home = tmp_path_factory.mktemp("models")

    def of(name: str) -> Path:
        return home / name if (home / name).is_dir() else write(name, home / name)

    return of


def ask(**more: Any) -> EngineRequest:
    asked: dict[str, Any] = {"width": 64, "height": 64, "num_inference_steps": 4, "seed": 3}
    return EngineRequest(**{"prompt": "a fox"} | asked | more)


def nothing(done: int, total: int, preview: object = None) -> None:
    """A step nobody watches."""


class Small(AnyPipeline):
    """Decodes in small tiles."""

    tile = 32


def loaded(folder: Path, kind: type[AnyPipeline] = AnyPipeline, **options: Any) -> AnyPipeline:
    engine = kind(EngineSettings(str(folder), "cpu", options={"warm_up": False, **options}))
    engine.load()
    return engine


def bare(
    folder: Path, task: str = "Text2Image", lora: Any = None, **call: Any
) -> np.ndarray[Any, Any]:
    """The library's own pipeline, called as its users call it."""
    import diffusers

    kind = getattr(diffusers, f"AutoPipelineFor{task}")
    pipe = kind.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    if lora is not None:
        pipe.load_lora_weights(lora)
    seed = torch.Generator("cpu").manual_seed(3)
    size = {"width": 64, "height": 64, "num_inference_steps": 4}
    return np.asarray(pipe(prompt="a fox", generator=seed, **size, **call).images[0])


#: What a job's guidance and negative prompt are in each family's own call; calls a step; CFG scale.
OWN: dict[str, tuple[dict[str, Any], int, float]] = {
    "sdxl": ({"guidance_scale": 3.0, "negative_prompt": "blue"}, 1, 3.0),
    "sd3": ({"guidance_scale": 3.0, "negative_prompt": "blue"}, 1, 3.0),
    "flux": ({"guidance_scale": 3.0}, 1, 1.0),  # read by the model: nothing is drawn twice
    "qwen": ({"true_cfg_scale": 3.0, "negative_prompt": "blue"}, 2, 3.0),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_draws_as_its_own_pipeline_does(
    folders: Callable[[str], Path], family: str
) -> None:
    folder = folders(family)
    call, calls, scale = OWN[family]
    engine = AnyPipeline(EngineSettings(str(folder), "cpu"))
    info = engine.load()  # and drew twice the same
    negative = {"negative_prompt"} if "negative_prompt" in call else set()
    assert set(info.accepts) == {"image", "mask", "guidance", "lora"} | negative
    assert info.sampler == "Euler"
    steps: list[tuple[int, int]] = []
    job = ask(guidance_scale=3.0, negative_prompt="blue")
    made = engine.generate(job, lambda done, total, preview=None: steps.append((done, total)))
    assert np.array_equal(np.asarray(made.image), bare(folder, **call))
    assert steps == [(n, 4) for n in range(1, 5)]
    facts = made.facts
    assert (facts["forwards"], facts["cfg_scale"]) == (4, scale)
    assert facts["details"]["calls"] == 4 * calls
    no_pixel = {"device_name", "because", "pipeline", "calls"}
    assert facts["details"].keys() - no_pixel <= set(DETAILS), "all else is in every recipe"
    plain = engine.generate(ask(), nothing).image.tobytes()

    source = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    begun = job.model_copy(update={"image": source, "strength": 0.5})
    more = {"image": source, "strength": 0.5}
    changed = engine.generate(begun, nothing)
    assert np.array_equal(np.asarray(changed.image), bare(folder, "Image2Image", **call, **more))
    assert changed.facts["forwards"] == 2
    painted = engine.generate(begun.model_copy(update={"mask": mask}), nothing)
    want = bare(folder, "Inpainting", **call, **more, mask_image=mask)
    assert np.array_equal(np.asarray(painted.image), want)
    assert engine.generate(ask(), nothing).image.tobytes() == plain


@pytest.mark.parametrize("family", FAMILIES)
def test_a_lora_does_what_the_library_s_own_loader_makes_of_it(
    folders: Callable[[str], Path], family: str, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    folder = folders(family)
    part = "unet" if family == "sdxl" else "transformer"
    [weights] = (folder / part).glob("*.safetensors")
    torch.manual_seed(1)
    delta = {}
    for name, tensor in load_file(weights).items():
        layer = name.removesuffix(".weight")
        if layer.endswith((".to_q", ".to_v", ".to_out.0")):
            delta[f"{part}.{layer}.lora_A.weight"] = torch.randn(4, tensor.shape[1])
            delta[f"{part}.{layer}.lora_B.weight"] = torch.randn(tensor.shape[0], 4)
    assert delta
    save_file(delta, tmp_path / "own.safetensors")
    engine = loaded(folder)
    plain = engine.generate(ask(), nothing).image.tobytes()
    loras = (Lora("own", 1.0, tmp_path / "own.safetensors"),)
    guided = ask(guidance_scale=3.0, negative_prompt="blue", loras=loras)
    made = engine.generate(guided, nothing)
    assert [each["name"] for each in made.facts["loras"]] == ["own"]
    want = bare(folder, lora=delta, **OWN[family][0]).astype(float)
    apart = np.abs(np.asarray(made.image, float) - want).mean()
    assert apart < 0.5  # of 255: sums in another order
    without = guided.model_copy(update={"loras": ()})
    assert made.image.tobytes() != engine.generate(without, nothing).image.tobytes()
    assert engine.generate(ask(), nothing).image.tobytes() == plain


@pytest.mark.parametrize(
    ("steps", "strength"), [(4, 0.2), (1, 0.6), (3, 0.3), (1, 1 / 49), (4, 1e-12)]
)
def test_a_picture_is_redrawn_by_one_step_at_least(
    folders: Callable[[str], Path], steps: int, strength: float
) -> None:
    engine = loaded(folders("sdxl"))
    source = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
    job = ask(image=source, strength=strength, num_inference_steps=steps)
    assert engine.generate(job, nothing).facts["forwards"] == 1


def test_a_decode_without_room_is_done_in_tiles_that_are_smaller_than_the_picture(
    folders: Callable[[str], Path],
) -> None:
    engine = loaded(folders("sdxl"), Small)
    vae = engine._pipe.vae
    decode, tried = vae.decode, []

    def tight(latents: torch.Tensor, *rest: Any, **more: Any) -> Any:
        tried.append((vae.use_tiling, latents.shape[-1] > vae.tile_latent_min_size))
        if not vae.use_tiling:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(latents, *rest, **more)

    vae.decode = tight
    for _ in range(2):
        assert engine.generate(ask(), nothing).facts["details"]["tiled"] is True
    assert tried == [(False, True), (True, True), (True, True)]  # known the second time


def test_a_pipeline_that_tells_nobody_of_its_steps_is_watched_and_cancelled(
    folders: Callable[[str], Path],
) -> None:
    engine = loaded(folders("pixart"))
    told: list[tuple[int, int]] = []
    made = engine.generate(ask(), lambda done, total, preview=None: told.append((done, total)))
    assert told == [(n, 4) for n in range(4)]  # before each
    assert made.facts["forwards"] == 4

    def second(done: int, total: int, preview: object = None) -> None:
        if done == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        engine.generate(ask(), second)
    assert engine.generate(ask(), nothing).image.tobytes() == made.image.tobytes()


def test_a_prompt_longer_than_the_model_reads_is_told(folders: Callable[[str], Path]) -> None:
    engine = loaded(folders("sdxl"))
    facts = engine.generate(ask(prompt="a fox " * 60 + "and an owl"), nothing).facts
    [said] = facts["warnings"]
    assert facts["prompt_truncated"] and said.startswith("The prompt is longer than this model")
    assert ": 77 tokens of " in said and said.endswith('a fox …"')
    assert engine.generate(ask(), nothing).facts["prompt_truncated"] is False


def test_a_cancel_leaves_the_pipeline_as_it_was(folders: Callable[[str], Path]) -> None:
    engine = loaded(folders("flux"))
    whole = engine.generate(ask(), nothing).image.tobytes()

    def second(done: int, total: int, preview: object = None) -> None:
        if done == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        engine.generate(ask(), second)
    assert engine.generate(ask(), nothing).image.tobytes() == whole


def test_models_that_cannot_be_used_are_told_in_words(
    folders: Callable[[str], Path], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    folder = write("flux", tmp_path / "flux")
    with pytest.raises(SteadyError, match="`compile` is no engine option"):
        loaded(folder, compile=True)
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    save_file({k: torch.full_like(v, float("nan")) for k, v in tensors.items()}, weights)
    with pytest.raises(SteadyError, match="cannot compute here") as caught:
        loaded(folder, warm_up=True)
    assert caught.value.code == "model_unfit"
    save_file(dict(list(tensors.items())[1:]), weights)
    with pytest.raises(SteadyError, match="transformer lacks 1 of its weights"):
        loaded(folder)
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ModelMissing, match=r"transformer/\*\.safetensors is missing"):
        loaded(folder)
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace("FluxPipeline", "WanPipeline"))
    save_file(tensors, weights)
    with pytest.raises(SteadyError, match="WanPipeline"):
        loaded(folder)


@pytest.mark.timeout(600)  # on a busy machine the libraries take a minute to import
def test_the_recipe_is_true_and_makes_the_same_pixels(
    folders: Callable[[str], Path], make_root: Callable[..., Root]
) -> None:
    """All families in one service, each picture once more from itself alone."""
    root = make_root(
        engine="diffusers", model=str(folders("sdxl")), device="cpu", engine_options={},
        models={name: str(folders(name)) for name in FAMILIES},
    )  # fmt: skip
    root.watch()
    said = {"prompt": "a fox", "width": 64, "height": 64, "num_inference_steps": 4, "seed": 3}
    done: list[str] = []

    def made() -> Path:
        done.append("completed")
        return root.folder / "outputs" / root.wait_for(*done, timeout=280)[-1]["path"]

    for name in FAMILIES:
        call, _, scale = OWN[name]
        negative = {k: v for k, v in call.items() if k == "negative_prompt"}
        job = said | negative | {"model": name, "guidance_scale": 3.0}
        root.drop(f"{name}.json", json.dumps(job))
        path = made()
        with Image.open(path) as image:
            pixels, text = image.tobytes(), image.text["parameters"]  # type: ignore[attr-defined]
        assert text == (
            f"a fox\n{'Negative prompt: blue' if negative else ''}\nSteps: 4, Sampler: Euler, "
            f"{'' if name == 'sdxl' else 'Schedule type: Simple, '}CFG scale: {scale:g}, Seed: 3, "
            f"Size: 64x64, Model: {name}, Version: SteadyDiffusion"
        ).replace("\n\n", "\n")
        recipe = read_recipe(path.read_bytes())
        assert recipe is not None
        assert (recipe["model"], recipe["forwards"], recipe["device"]) == (name, 4, "cpu")
        root.drop(f"{name}.png", path.read_bytes())
        with Image.open(made()) as image:
            assert image.tobytes() == pixels
