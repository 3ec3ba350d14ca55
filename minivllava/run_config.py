"""What a run needs besides the model: the world, the recipe of each training step, and all of it as a preset."""

import math
from dataclasses import dataclass, fields

from minivllava.config import ModelConfig
from minivllava.errors import ConfigError, check_choice
from minivllava.fields import check_range, check_types


@dataclass(frozen=True)
class WorldConfig:
    """How much of the world to make. Scene i of a split is the same in every size of that split."""

    seed: int = 0
    size: int = 64  # side of images and clips in pixels
    frames: int = 15  # of a clip; data/world.py says why not 16
    fps: int = 8
    images: int = 8000  # training scenes
    clips: int = 8000
    turns: int = 6  # questions on a training scene of two things; half as many on one, half more on three
    align_images: int = 16000  # scenes, in families of four
    align_clips: int = 8000
    text_documents: int = 40000
    lists: float = 0.0  # share of the text documents that ask many questions about a list of things
    validation: int = 100  # images, and as many clips
    test: int = 400
    compositional: int = 200
    questions: int = 5  # on each scene of these three
    depth: bool = False  # a depth map beside each image

    def __post_init__(self):
        check_types(self)
        check_range(self, 0, math.inf, *(field.name for field in fields(self)))
        check_range(self, 0, 1, "lists")
        check_range(self, 1, math.inf, "fps")
        if self.size < 16 or self.size % 2:
            raise ConfigError(f"The world's size is {self.size} pixels: use an even number of at least 16.")
        if self.frames < 5:
            raise ConfigError(f"Clips of {self.frames} frames cannot hold two events: use at least 5.")


@dataclass(frozen=True)
class TrainingConfig:
    """One training run: AdamW, cosine schedule after a linear warm-up, gradient clipping."""

    steps: int = 1000
    batch_size: int = 32  # over all processes and accumulation steps
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.0
    warmup: float = 0.03  # share of the steps
    clip_norm: float = 1.0  # the largest norm of all gradients together; 0: they are not clipped
    accumulation: int = 1
    precision: str = "no"  # accelerate's mixed precision: "no", "bf16", "fp16"
    checkpoint_every: int = 500  # steps
    log_every: int = 10
    seed: int = 0
    projector_learning_rate: float = 0.0  # of the projector, if it has one of its own; 0: that of all else
    lora_rank: int = 0  # 0: all of the language model learns; else adapters of this rank on its linear layers
    lora_alpha: int = 0  # adapters count alpha / rank times; 0: twice the rank, as in the original's script
    lora_dropout: float = 0.05
    recomputed_layers: int = 0  # of the decoder, from the first on: activation checkpointing
    recompute_elementwise: bool = False  # in its other layers, all but matrix products and attention
    compiled: bool = False  # its layers run through torch.compile, which also recomputes what is elementwise

    def __post_init__(self):
        check_types(self)
        check_range(self, 1, math.inf, "batch_size", "accumulation", "log_every", "checkpoint_every")
        check_range(self, 0, math.inf, "steps", "learning_rate", "projector_learning_rate", "weight_decay")
        check_range(self, 0, math.inf, "clip_norm", "lora_rank", "lora_alpha", "recomputed_layers")
        check_range(self, 0, 1, "warmup", "lora_dropout")
        check_range(self, 0, 1e10, "seed")  # PyTorch's seeds have 64 bits; training/loop.py multiplies by about 1e9
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"betas is {self.betas}: use two numbers from 0 to less than 1.")
        check_choice("precision", self.precision, ("no", "bf16", "fp16"))
        if self.projector_learning_rate and not self.learning_rate:
            raise ConfigError("projector_learning_rate counts as a share of learning_rate, which is 0: use more.")


@dataclass(frozen=True)
class Preset:
    """Everything one full run needs: sizes, data, and the four training steps."""

    name: str
    model: ModelConfig
    world: WorldConfig
    language: TrainingConfig  # language pre-training, on text alone
    align_image: TrainingConfig  # image and text encoders, symmetric InfoNCE
    align_video: TrainingConfig  # video encoder onto the frozen text encoder
    stage1: TrainingConfig  # projector only, captions
    stage2: TrainingConfig  # projector and language model, conversations
    images_first: float = 0.0  # share of stage 2, from its start, without clips: short conversations teach to look

    def __post_init__(self):
        check_types(self)
        check_range(self, 0, 1, "images_first")
