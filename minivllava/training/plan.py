"""What a recipe will take, before it runs: records, steps, tokens, arithmetic, and the memory that weights need."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from minivllava.checkpoints.backbones import part_config, with_frames
from minivllava.config import LanguageConfig, ModelConfig, VisionConfig
from minivllava.flops import decoder_flops, encoder_depth, encoder_flops, projector_flops
from minivllava.models.vllava import VideoLLaVA
from minivllava.run_config import Preset, TrainingConfig
from minivllava.training.loop import check_precision
from minivllava.training.lora import adapted_layers
from minivllava.training.recipe import Recipe, cut_after, recipe_preset, stage_records, stage_training
from minivllava.training.recompute import check_recomputation

CHARACTERS_PER_TOKEN = 4  # of English text, about
PARTS = ("image_encoder", "video_encoder", "projector", "language_model")


@dataclass(frozen=True)
class StagePlan:
    """What a stage will take."""

    stage: str  # "stage1" or "stage2"
    records: int
    images: int
    clips: int
    missing: int  # files that are not there
    steps: int
    batch_size: int
    tokens: float  # of a record, on average
    flops: float
    hours: float
    memory: int  # bytes of weights, gradients and AdamW's moments; activations are not counted


@dataclass(frozen=True)
class RecipePlan:
    """What a recipe will take."""

    parameters: dict[str, int]  # of each part
    image_tokens: int
    clip_tokens: int
    elsewhere: tuple[str, ...]  # parts that are no folder here: the preset's sizes stand in for theirs
    stages: tuple[StagePlan, ...]


def plan_recipe(
    recipe: Recipe, root: str | Path, changes: tuple[str, ...] = (), lora: bool = False, skip_missing: bool = False,
    skip_broken: bool = False, tflops: float = 300.0,
) -> RecipePlan:  # fmt: skip
    """What each stage takes. Sizes are those of the recipe's parts if their folders are here, otherwise the preset's;
    nothing is downloaded, and the media need not be there: the JSON files are enough.

    tflops: what the machine sustains, for the hours (an H100 at 30 % of its bf16 peak: 300). Lengths of texts are
    estimates, and so is everything that follows from them. Raises ConfigError for parts and numbers that training
    would refuse.
    """
    base = recipe_preset(recipe, tuple(changes), lora)
    check_precision(base, ("stage1", "stage2"))
    base, elsewhere = _with_parts(base, recipe)
    with torch.device("meta"):
        model = VideoLLaVA(base.model)
    check_recomputation(model.language_model, base.stage2)
    stages = []
    for name in ("stage1", "stage2"):
        training = getattr(base, name)
        missing_media = "skip" if skip_missing else "keep"
        records, missing, _ = stage_records(recipe, name, root, training.seed, missing_media, skip_broken)
        training = stage_training(recipe, base, name, len(records), tuple(changes))
        stages.append(_plan_stage(name, model, training, records, recipe, len(missing), tflops))
    return RecipePlan(
        parameters={name: _count(getattr(model, name)) for name in PARTS},
        image_tokens=base.model.visual_tokens("image"),
        clip_tokens=base.model.visual_tokens("video", base.model.video.frames),
        elsewhere=tuple(elsewhere),
        stages=tuple(stages),
    )


def _plan_stage(
    name: str, model: VideoLLaVA, training: TrainingConfig, records, recipe: Recipe, missing: int, tflops: float
) -> StagePlan:
    config = model.config
    images, clips = (np.array([len(row) for row in records[kind]]) for kind in ("images", "videos"))
    visual = images * config.visual_tokens("image") + clips * config.visual_tokens("video", config.video.frames)
    words, learned = (
        np.array([sum(len(t["value"]) for t in row if t["from"] in kept) for row in records["conversations"]])
        / CHARACTERS_PER_TOKEN
        for kept in (("human", "gpt"), ("gpt",))
    )
    room = np.maximum(cut_after(recipe, model) - visual, 0)  # words beyond it are cut, questions and answers alike
    learned, words = learned * np.minimum(1, room / np.maximum(words, 1)), np.minimum(words, room)
    tokens, learned = float((visual + words).mean()), float(learned.mean())
    images, clips, visual = int(images.sum()), int(clips.sum()), int(visual.sum())
    backward = 2 if name == "stage2" and not training.lora_rank else 1
    flops = recipe.epochs * (
        len(records) * _language_flops(model.language_model, config.language, tokens, learned, backward)
        + images * _encoder_flops(model.image_encoder, config, "image")
        + clips * _encoder_flops(model.video_encoder, config, "video")
        + projector_flops(config, visual, learns=True)
    )
    return StagePlan(
        stage=name, records=len(records), images=images, clips=clips, missing=missing, steps=training.steps,
        batch_size=training.batch_size, tokens=tokens, flops=flops, hours=flops / tflops / 1e12 / 3600,
        memory=weight_memory(model, training, name),
    )  # fmt: skip


def _with_parts(base: Preset, recipe: Recipe) -> tuple[Preset, list[str]]:
    """The preset with the sizes of those parts of a recipe that are folders here, and the names of the other parts.

    Both encoders must be here for that: they fit each other, but one of them need not fit the preset's other one.
    """
    parts = {"image": recipe.image_encoder, "video": recipe.video_encoder, "language": recipe.language_model}
    here = {kind: name for kind, name in parts.items() if (Path(name) / "config.json").is_file()}
    if not {"image", "video"} <= set(here):
        here = {kind: name for kind, name in here.items() if kind == "language"}
    sizes = {kind: part_config(name, kind) for kind, name in here.items()}
    if "video" in sizes:
        sizes["video"] = with_frames(sizes["video"], base.model.video.frames)  # as `assemble_backbones` does
    model = replace(base.model, **sizes)
    return replace(base, model=model), list(dict.fromkeys(name for kind, name in parts.items() if kind not in here))


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _language_flops(model: nn.Module, config, tokens: float, learned: float, backward: int) -> float:
    """FLOPs of one record, with logits at its learned tokens. backward: as in `decoder_flops`. Attention is not counted
    in a language model of `transformers`."""
    if isinstance(config, LanguageConfig):
        return decoder_flops(config, tokens, learned, backward, attention_backward=2)
    names, _ = adapted_layers(model)
    layers = sum(model.get_submodule(name).weight.numel() for name in names)
    return 2 * (tokens * layers + learned * config.width * config.vocab_size) * (1 + backward)


def _encoder_flops(model: nn.Module, config: ModelConfig, kind: str) -> float:
    """FLOPs of the frozen encoder on one image or clip. Attention is not counted in a tower of `transformers`."""
    encoder = getattr(config, kind)
    frames = encoder.frames if kind == "video" else 1
    if isinstance(encoder, VisionConfig):
        return encoder_flops(encoder, frames, encoder_depth(encoder, config.select_layer))
    return 2 * _count(model) * encoder.patches * frames


def weight_memory(model: VideoLLaVA, training: TrainingConfig, stage: str) -> int:
    """Bytes that training keeps beside activations: four for each weight, which mixed precision keeps in float32, and
    twelve more for each weight that learns (its gradient and AdamW's two moments). stage: "stage1" or "stage2"."""
    learned, language, adapters = _count(model.projector), model.language_model, 0
    if stage == "stage2" and training.lora_rank:
        names, _ = adapted_layers(language)
        adapters = sum(training.lora_rank * sum(language.get_submodule(name).weight.shape) for name in names)
    elif stage == "stage2":
        learned += _count(language)
    return 4 * (_count(model) + adapters) + 12 * (learned + adapters)
