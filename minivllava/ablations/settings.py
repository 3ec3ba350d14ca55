"""Settings: all that decides the numbers of a cell, except its seed and the weights it starts from.

A study's arms are changes to one base (see overrides.py); FIELD*=FACTOR suits every preset.
"""

import dataclasses
import math
from dataclasses import dataclass, replace

from minivllava.config import ModelConfig
from minivllava.data import build
from minivllava.errors import ConfigError, check_choice
from minivllava.fields import check_range, check_types
from minivllava.files import json_hash
from minivllava.presets import preset
from minivllava.run_config import TrainingConfig, WorldConfig

VERSION = 1  # raise it when a cell's numbers change with the same settings: every cell is then computed again

CHOICES = {
    "image_encoder": ("bound", "contrastive", "mae"),
    "encoders": ("shipped", "trained"),
    "language_model": ("shipped", "trained"),
    "depth": ("", "bound", "mae", "rgb", "image"),
}


@dataclass(frozen=True)
class Mixture:
    """What a stage learns from: shares of the world's training images and clips, and for how long."""

    images: float = 1.0
    clips: float = 1.0
    budget: float = 1.0  # times the steps that this many records get; 0 leaves the stage out

    def __post_init__(self):
        check_types(self)
        check_range(self, 0, 1, "images", "clips")
        check_range(self, 0, math.inf, "budget")
        if self.budget and not self.images + self.clips:
            raise ConfigError("images and clips are both 0, which leaves nothing to learn from: set budget to 0, too.")


@dataclass(frozen=True)
class Settings:
    """What an arm may change. `stage1.steps` and `stage2.steps` are those of an arm that uses all records."""

    model: ModelConfig
    world: WorldConfig
    stage1: TrainingConfig
    stage2: TrainingConfig
    align_image: TrainingConfig  # of encoders that are trained for a study; MAE and depth encoders train as long
    align_video: TrainingConfig
    language: TrainingConfig
    data1: Mixture = Mixture()
    data2: Mixture = Mixture()
    image_encoder: str = "bound"  # or "contrastive": to a text encoder of its own; or "mae": without words
    encoders: str = "shipped"  # or "trained": image and video encoder, bound to text here
    language_model: str = "shipped"  # or "trained": pre-trained on text here
    temporal: bool = True  # False: temporal attention is silenced, as the Hugging Face port lost it
    depth: str = ""  # what reads depth maps in the finished model's image encoder: see parts.py
    depth_tuning: float = 0.0  # share of stage 2 that projector and language model are then tuned on depth
    baselines: bool = False  # also score the blind model, single and shuffled frames, the majority answer

    def __post_init__(self):
        check_types(self)
        check_range(self, 0, 1, "depth_tuning")
        for name, choices in CHOICES.items():
            check_choice(name, getattr(self, name), choices)
        if self.encoders == "trained" and self.image_encoder != "bound":
            raise ConfigError("encoders=trained binds the image encoder, too: leave image_encoder as it is.")


def base_settings(name: str) -> Settings:
    """What every study starts from at a preset's size: its model and recipes, with a budget of minutes a cell.

    Raises ConfigError for a preset without such a budget.
    """
    recipe = preset(name)
    if name == "tiny":  # at most 3 minutes a cell on two CPU cores
        world = replace(recipe.world, images=2500, clips=2500, test=160)
        stage1 = replace(recipe.stage1, steps=60, batch_size=32)
        stage2 = replace(recipe.stage2, steps=160, batch_size=32)
    elif name == "small":  # minutes a cell on one GPU
        world = replace(recipe.world, images=12_000, clips=12_000, test=300)
        stage1, stage2 = replace(recipe.stage1, steps=450), replace(recipe.stage2, steps=1200)
    elif name == "sample":  # seconds: to see that all of it runs
        world, stage1, stage2 = replace(recipe.world, test=6), recipe.stage1, recipe.stage2
    else:
        check_choice("budget of the ablations for the preset", name, ("sample", "tiny", "small"))
    return Settings(recipe.model, world, stage1, stage2, recipe.align_image, recipe.align_video, recipe.language)


def train_world(world: WorldConfig) -> WorldConfig:
    """The part of a world that stages 1 and 2 and the tests need."""
    return replace(world, align_images=0, align_clips=0, text_documents=0, validation=0, compositional=0)


def align_world(world: WorldConfig, depth: bool = False) -> WorldConfig:
    """The part that alignment needs: images and clips, or with `depth` images and their depth maps."""
    clips = 0 if depth else world.align_clips
    none = {"images": 0, "clips": 0, "text_documents": 0, "validation": 0, "test": 0, "compositional": 0}
    return replace(world, align_clips=clips, depth=depth, **none)


def text_world(world: WorldConfig) -> WorldConfig:
    """The part that language pre-training needs."""
    none = {"images": 0, "clips": 0, "align_images": 0, "align_clips": 0, "validation": 0, "test": 0}
    return replace(world, compositional=0, **none)


def digest(*things) -> str:
    """A hash of JSON types and config dataclasses."""
    return json_hash([_sparse(thing) for thing in things], sort_keys=True)


def _sparse(thing):
    """A config without the fields that have their default, so that a new field leaves old hashes as they are."""
    if isinstance(thing, tuple | list):
        return [_sparse(item) for item in thing]
    if not dataclasses.is_dataclass(thing):
        return thing
    fields = {f.name: (getattr(thing, f.name), f.default) for f in dataclasses.fields(thing)}
    return {name: _sparse(value) for name, (value, default) in fields.items() if value != default}


def cell_key(settings: Settings, seed: int, weights: str) -> str:
    """A cell's name: the hash of all that its numbers follow from. weights: of the shipped parts, hashed.

    Recipes that these settings never use are left out, so that changing them computes nothing again.
    """
    return digest(VERSION, build.VERSION, used(settings), seed, weights)


def used(settings: Settings) -> dict:
    """The fields that matter with these settings and differ from their defaults, as plain JSON types."""
    bound_here = settings.encoders == "trained"
    images = bound_here or settings.image_encoder != "bound" or settings.depth in ("bound", "mae")
    world = train_world(settings.world)
    world = replace(world, align_images=settings.world.align_images if images else 0)
    world = replace(world, align_clips=settings.world.align_clips if bound_here else 0)
    texts = settings.world.text_documents if settings.language_model == "trained" else 0
    kept = {
        "align_image": images,
        "align_video": bound_here,
        "language": settings.language_model == "trained",
        "stage1": settings.data1.budget,
        "stage2": settings.data2.budget or settings.depth_tuning,
    }
    values = _sparse(replace(settings, world=replace(world, text_documents=texts)))
    return {name: value for name, value in values.items() if kept.get(name, True)}
