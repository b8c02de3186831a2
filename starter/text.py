"""The text encoder: a real, tiny `Qwen3Model`, made from nothing or fitted to a larger vocabulary."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from starter import scenery, words, world
from starter.sprites import KINDS

WIDTH = 128  #: Of the features handed to the transformer.
VOCABULARY_MULTIPLE = 32  #: The embedding has a few unused rows, so that words can be added.


def _rows(tokenizer: Any) -> int:
    highest = max(tokenizer.get_vocab().values()) + 1
    return int(-(-highest // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE)


def fit(source: Path, target: Path, tokenizer: Any, fresh: list[tuple[int, list[int]]]) -> None:
    """Give a trained encoder the rows of an extended tokenizer.

    Args:
        source: folder of the encoder.
        target: where the fitted one is written, float32.
        tokenizer: the extended tokenizer.
        fresh: new numbers with the old numbers of their pieces, from `words.extend`.
    """
    from transformers import Qwen3Model

    encoder: Any = Qwen3Model.from_pretrained(source, dtype=torch.float32)
    old = encoder.embed_tokens.weight.detach().clone()
    encoder.resize_token_embeddings(_rows(tokenizer), mean_resizing=False)
    with torch.no_grad():
        for new, pieces in fresh:
            # Root of the number: a mean of independent rows would be too short a vector.
            encoder.embed_tokens.weight[new] = old[pieces].mean(0) * len(pieces) ** 0.5
    encoder.save_pretrained(target)


def _answers(scene: world.Scene) -> list[int]:
    first = scene.things[0] if scene.things else None
    second = scene.things[1] if len(scene.things) > 1 else None
    return [
        world.COLOUR_NAMES.index(scene.ground) + 1 if scene.ground else 0,
        scenery.TERRAINS.index(scene.land) + 1 if scene.land else 0,
        scenery.TIMES.index(scene.time),
        world.FEATURES.index(scene.feature),
        int(scene.snowy),
        world.COLOUR_NAMES.index(scene.blossom) + 1 if scene.blossom else 0,
        KINDS.index(first.kind) + 1 if first else 0,
        world.COLOUR_NAMES.index(first.colour) + 1 if first else 0,
        first.count if first else 0,
        KINDS.index(second.kind) + 1 if second else 0,
        world.COLOUR_NAMES.index(second.colour) + 1 if second else 0,
        world.RELATIONS.index(scene.relation) + 1 if scene.relation else 0,
        world.PLACES.index(scene.place) + 1 if scene.place else 0,
        ("", "small", "big").index(scene.size),
    ]


CHOICES = (13, 11, 5, 10, 2, 13, 1 + len(KINDS), 13, 4, 1 + len(KINDS), 13, 6, 5, 3)
#: How many answers each question of `_answers` has.


def pretrain(target: Path, tokenizer: Any, *, steps: int = 500, batch: int = 64) -> float:
    """Make an encoder from nothing that can tell from a caption what its scene holds.

    Linear heads on the last real token name everything about the scene; they are thrown away.

    Args:
        target: where the encoder is written, float32.
        tokenizer: the trained tokenizer.
        steps: of training.
        batch: captions in one step, all fresh.

    Returns:
        The share of right answers over the last 50 steps.
    """
    from transformers import Qwen3Config, Qwen3Model

    torch.set_num_threads(1)
    torch.manual_seed(3)
    config: Any = Qwen3Config(
        vocab_size=_rows(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=320,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        rope_theta=10000.0,
        tie_word_embeddings=True,
        use_cache=False,
    )
    encoder: Any = Qwen3Model(config)
    nn.init.normal_(encoder.embed_tokens.weight, std=0.5)
    head = nn.Sequential(nn.RMSNorm(WIDTH), nn.Linear(WIDTH, sum(CHOICES)))
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr=2e-3)
    rng = Random("text encoder")
    right: list[Tensor] = []
    for step in range(steps):
        scenes = [world.sample_scene(rng) for _ in range(batch)]
        numbers, lengths = words.encode(tokenizer, [world.caption(s, rng) for s in scenes], 64)
        last = words.features(encoder, numbers, lengths)[torch.arange(batch), lengths - 1]
        truth = torch.tensor([_answers(s) for s in scenes])
        parts = head(last).split(CHOICES, dim=1)
        loss = torch.stack([F.cross_entropy(p, truth[:, k]) for k, p in enumerate(parts)]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        right.append(
            torch.stack(
                [(p.argmax(1) == truth[:, k]).float().mean() for k, p in enumerate(parts)]
            ).mean()
        )
        if (step + 1) % 100 == 0:
            print(
                f"text encoder step {step + 1} right {torch.stack(right[-50:]).mean():.3f}",
                flush=True,
            )
    encoder.save_pretrained(target)
    return float(torch.stack(right[-50:]).mean())
