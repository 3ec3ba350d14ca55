"""The smallest model, tokenizer and data that still have every part: what most tests are run on."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from minivllava.config import LanguageConfig, ModelConfig, TextConfig, VisionConfig
from minivllava.data.tokenizer import Tokenizer
from minivllava.data.write_media import write_image, write_video
from minivllava.models.languagebind import LanguageBind, LanguageBindConfig
from minivllava.models.vllava import VideoLLaVA
from minivllava.run_config import TrainingConfig

COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (40, 60, 220), "white": (240, 240, 240)}
TEXTS = ["What colour is the square? red green blue white", "Which way does the square move? left right"] * 20
VISION = VisionConfig(image_size=16, patch_size=8, width=16, layers=2, heads=2, mlp_width=32, frames=4)


def tiny_tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 300)


def tiny_config(vocabulary: int = 300, **changes) -> ModelConfig:
    """4 patches a frame, 4 frames, 2 layers everywhere, grouped-query attention."""
    config = ModelConfig(
        image=VISION,
        video=replace(VISION, temporal=True),
        text=TextConfig(vocab_size=vocabulary, context=24, width=16, layers=2, heads=2, mlp_width=32),
        language=LanguageConfig(
            vocab_size=vocabulary, context=128, width=32, layers=2, heads=4, kv_heads=2, mlp_width=48
        ),
        embed_dim=16,
        template="short",
        aspect="square",
    )
    return replace(config, **changes)


def tiny_vllava(seed: int = 0, **changes) -> VideoLLaVA:
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer()
    return VideoLLaVA(tiny_config(len(tokenizer), **changes), tokenizer).eval()


def tiny_languagebind(seed: int = 0) -> LanguageBind:
    torch.manual_seed(seed)
    config = tiny_config(len(tiny_tokenizer()))
    encoders = {"image": config.image, "video": config.video}
    return LanguageBind(LanguageBindConfig(encoders, config.text, config.embed_dim)).eval()


def training(**changes) -> TrainingConfig:
    """A short run without warm-up surprises: 4 steps of 4 samples."""
    usual = {"steps": 4, "batch_size": 4, "learning_rate": 1e-2, "log_every": 1, "checkpoint_every": 1000}
    return TrainingConfig(**(usual | changes))


def square(colour: str, left: int, size: int = 32) -> np.ndarray:
    """An image of a coloured square, uint8 (h, w, 3)."""
    image = np.zeros((size, size, 3), np.uint8)
    image[8:20, left : left + 12] = COLOURS[colour]
    return image


def write_records(folder: Path) -> Path:
    """A LLaVA-format JSON of 4 images, 4 clips and 1 text, with their PNG and MP4 files beside it."""
    records = []
    for colour in COLOURS:
        write_image(folder / f"{colour}.png", square(colour, 10))
        records.append(_record(f"{colour}.png", "image", "What colour is the square?", colour))
        places = range(0, 20, 3) if colour in ("red", "white") else range(18, -1, -3)
        write_video(folder / f"{colour}.mp4", np.stack([square(colour, left) for left in places]))
        answer = "right" if colour in ("red", "white") else "left"
        records.append(_record(f"{colour}.mp4", "video", "Which way does the square move?", answer))
    records.append(_record(None, None, "Which colours are there?", ", ".join(COLOURS)))
    file = folder / "records.json"
    file.write_text(json.dumps(records))
    return file


def _record(name: str | None, kind: str | None, question: str, answer: str) -> dict:
    placeholder = f"<{kind}>\n" if kind else ""
    turns = [{"from": "human", "value": placeholder + question}, {"from": "gpt", "value": answer}]
    return {"id": str(name), "conversations": turns} | ({kind: name} if kind else {})
