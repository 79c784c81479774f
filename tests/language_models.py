"""Small language models in float64 whose weights are large enough for updates to matter."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any, cast

import tokenizers as hf
import torch
from safetensors.torch import save

from nested.exported import ABOUT, CONFIG, FORMAT, WEIGHTS, sha256
from nested.levels import Level
from nested.memory.window_attention import WindowAttention
from nested.models.language import Block, LanguageModel

V, WINDOW = 11, 6
TEXT = "The cat says: héllo ☃!\n\x00"


def reading(eta: float = 1.0, chunk: int = 3, **more: Any) -> tuple[Level, ...]:
    """The one level of TTT-E2E."""
    given = {"gather": "mean", "clip_norm": 1.0, "eta": eta, **more}
    return (Level("reading", ("*.prime.mlp.*",), chunk, "token", **given),)


def small(
    levels: tuple[Level, ...] = (), seed: int = 1, window: int | None = WINDOW, length: int = 12, **more: Any
) -> LanguageModel:
    """Three blocks, the last two with prime MLPs; weights ten times the usual."""
    torch.manual_seed(seed)
    given = {
        "mixer": partial(WindowAttention, window=window),
        "width": 8,
        "depth": 3,
        "heads": 2,
        "hidden": 12,
        "prime": 2,
    }
    of_text = {"vocabulary": V, "per_position": True, "token_levels": levels}
    model = LanguageModel((length,), V, **of_text, **{**given, **more}).double()
    if "warm_start" in more:
        return model
    with torch.no_grad():
        for p in model.parameters():
            p *= 10 if p.ndim > 1 else 1
    return model


def some(tokens: int, batch: int = 2, seed: int = 0) -> torch.Tensor:
    """Random tokens (batch, tokens)."""
    return torch.randint(V, (batch, tokens), generator=torch.Generator().manual_seed(seed))


def exported(model: LanguageModel, folder: Path, **about: Any) -> str:
    """An export of a model of windows, in float32, as a run would have written it; `about` more of its stream."""
    first, last = (cast(Block, model.blocks[i]) for i in (0, -1))
    mixer = {"_target_": f"{WindowAttention.__module__}.WindowAttention"}
    mixer |= {name: getattr(first.mixer, name) for name in ("window", "theta")}
    section = {"_target_": f"{LanguageModel.__module__}.LanguageModel", "mixer": mixer, "heads": first.mixer.heads}
    section |= {"width": model.embedding.embedding_dim, "hidden": len(last.feedforward.mlp.w1.weight)}
    section |= {"depth": len(model.blocks), "prime": sum(cast(Block, b).prime is not None for b in model.blocks)}
    files = {WEIGHTS: save(model.float().state_dict())}
    files[CONFIG] = json.dumps({"model": section, "levels": {"all": {"params": "rest", "period_steps": 1}}}).encode()
    stream = {"sample_shape": [model.length], "n_outputs": V, "vocabulary": V, "per_position": True, **about}
    digests = {name: sha256(data) for name, data in files.items()}
    files[ABOUT] = json.dumps({"format": FORMAT, "stream": stream, "components": {}, "files": digests}).encode()
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return str(folder)


def byte_level(where: Path) -> Path:
    """The file of a byte-level tokenizer that would cut its texts short and fill them up, if it were let."""
    made = hf.Tokenizer(hf.models.BPE())
    made.pre_tokenizer, made.decoder = hf.pre_tokenizers.ByteLevel(add_prefix_space=False), hf.decoders.ByteLevel()
    alphabet = hf.pre_tokenizers.ByteLevel.alphabet()
    trainer = hf.trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=["<|end|>"], show_progress=False
    )
    made.train_from_iterator([TEXT, "the cat says the cat"], trainer)
    made.enable_truncation(4)
    made.enable_padding(length=40)
    made.save(str(where / "bytes.json"))
    return where / "bytes.json"
