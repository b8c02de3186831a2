"""Captions as the text encoder sees them: the tokenizer, the chat template, fixed-length batches.

The tokenizer is a real `Qwen2Tokenizer` with a small vocabulary in which every word of the world is
one token; any other text falls back to bytes. `extend` adds words to a trained one without moving a
single old number, so that a model that was trained with it can go on learning.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2Tokenizer

from starter import world

#: Words people put around what they want; they change nothing in the picture.
FILLERS = (
    "masterpiece",
    "sharp focus",
    "beautiful",
    "highly detailed",
    "4k",
    "digital art",
    "flat vector art",
    "simple",
    "colorful",
    "best quality",
    "minimalist",
    "trending",
    "soft light",
)

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n {{ m['content'] | trim | lower }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def template(caption: str) -> str:
    """The text the pipeline makes of a prompt, by the model's own chat template."""
    return f"<|im_start|>user\n {caption.strip().lower()}<|im_end|>\n<|im_start|>assistant\n"


def corpus(number: int) -> list[str]:
    """Captions of the training scenes, lower case, and the filler words."""
    captions = []
    for seed in range(number):
        rng = Random(f"words {seed}")
        scene = world.sample_scene(rng)
        captions.append(world.caption(scene, rng).lower())
    return captions + [f"picture, {filler}" for filler in FILLERS for _ in range(3)]


def _words(captions: list[str]) -> list[str]:
    counts: dict[str, int] = {}
    for text in captions:
        for word in re.findall(r"[a-z]+", text):
            counts[word] = counts.get(word, 0) + 1
    return sorted((w for w, n in counts.items() if n >= 3), key=lambda w: (-counts[w], w))


def extend(folder: Path, target: Path, captions: list[str]) -> list[tuple[int, list[int]]]:
    """Copy a tokenizer and make every word of some captions one token.

    Args:
        folder: of the trained tokenizer.
        target: where the extended one is written.
        captions: lower-case captions.

    Returns:
        For each new number, the old numbers of the pieces it is made of.
    """
    target.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        shutil.copyfile(file, target / file.name)
    data = json.loads((folder / "tokenizer.json").read_text())
    vocab: dict[str, int] = data["model"]["vocab"]
    merges: list[Any] = data["model"]["merges"]
    old: Any = Qwen2Tokenizer.from_pretrained(folder)
    names = {number: token for token, number in vocab.items()}
    fresh: list[tuple[int, list[int]]] = []
    made: dict[str, list[int]] = {}
    for word in _words(captions):
        pieces = [names[n] for n in old(" " + word)["input_ids"]]
        while len(pieces) > 1:
            joined = pieces[0] + pieces[1]
            if joined not in vocab:
                vocab[joined] = 1 + max(vocab.values())
                parts = [made.get(p, [vocab[p]]) for p in pieces[:2]]
                made[joined] = [*parts[0], *parts[1]]
                fresh.append((vocab[joined], made[joined]))
            if [pieces[0], pieces[1]] not in merges:
                merges.append([pieces[0], pieces[1]])
            pieces = [joined, *pieces[2:]]
    (target / "tokenizer.json").write_text(json.dumps(data, ensure_ascii=False))
    return fresh


def train(target: Path, captions: list[str]) -> None:
    """Train a tokenizer from nothing on lower-case captions and write it."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    raw = Tokenizer(models.BPE())
    raw.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4000,
        min_frequency=3,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Each word stands after a space, as it will in the chat template.
    raw.train_from_iterator(
        [" " + text for text in captions] + ["assistant user system"] * 9, trainer
    )
    learned = json.loads(raw.to_str())["model"]
    built: Any = Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=[tuple(pair) for pair in learned["merges"]],
        unk_token="<|endoftext|>",  # noqa: S106
        pad_token="<|endoftext|>",  # noqa: S106
        eos_token="<|im_end|>",  # noqa: S106
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        model_max_length=1024,
        padding_side="right",
    )
    built.chat_template = CHAT_TEMPLATE
    built.save_pretrained(target)


def encode(tokenizer: Any, captions: list[str], length: int) -> tuple[Tensor, Tensor]:
    """Captions as tokens.

    Args:
        tokenizer: a `Qwen2Tokenizer`.
        captions: as written; they are put into the chat template here.
        length: of the result; longer captions lose their end, as in the pipeline.

    Returns:
        Token numbers [batch, length], padded on the right, and the real lengths [batch], both int64.
    """
    rows = tokenizer([template(c) for c in captions])["input_ids"]
    numbers = torch.full((len(rows), length), tokenizer.pad_token_id, dtype=torch.long)
    lengths = torch.zeros(len(rows), dtype=torch.long)
    for row, tokens in enumerate(rows):
        tokens = tokens[:length]
        numbers[row, : len(tokens)] = torch.tensor(tokens)
        lengths[row] = len(tokens)
    return numbers, lengths


def features(encoder: Any, numbers: Tensor, lengths: Tensor) -> Tensor:
    """What the pipeline hands the transformer: the encoder's last state but one.

    Args:
        encoder: a `Qwen3Model`.
        numbers: tokens [batch, tokens].
        lengths: real lengths [batch].

    Returns:
        Features [batch, tokens, width].
    """
    mask = (torch.arange(numbers.shape[1])[None] < lengths[:, None]).long()
    states = encoder(
        input_ids=numbers, attention_mask=mask, output_hidden_states=True, use_cache=False
    )
    result: Tensor = states.hidden_states[-2]
    return result
