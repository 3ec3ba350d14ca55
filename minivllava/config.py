"""Sizes and recipes: one frozen dataclass per part; presets.py fills them in.

Vary a preset with `dataclasses.replace`, or with `override(preset, "stage2.steps=500")`.
"""

import dataclasses
import json
import typing
from dataclasses import dataclass
from dataclasses import replace as with_changes

from minivllava.data.build import WorldConfig
from minivllava.errors import ConfigError


def _check_heads(width: int, heads: int):
    if width % heads:
        raise ConfigError(f"width {width} is not a multiple of heads {heads}.")


@dataclass(frozen=True)
class VisionConfig:
    """A pre-LN ViT. With `temporal`, the video encoder: the same ViT plus temporal attention (PAPER 1.2)."""

    image_size: int = 224
    patch_size: int = 14
    width: int = 1024
    layers: int = 24
    heads: int = 16
    mlp_width: int = 4096
    activation: str = "gelu"  # the Hugging Face port runs "quick_gelu"
    norm_eps: float = 1e-5
    temporal: bool = False
    frames: int = 8  # length of the learned temporal embedding; other lengths are interpolated
    patch_dropout: float = 0.0  # share of patches hidden while training (LanguageBind: 0.3 for video)

    @property
    def grid(self) -> int:
        """Patches along one side of a frame."""
        return self.image_size // self.patch_size

    def __post_init__(self):
        if self.image_size % self.patch_size:
            raise ConfigError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}.")
        _check_heads(self.width, self.heads)


@dataclass(frozen=True)
class TextConfig:
    """CLIP's text encoder: a causal pre-LN transformer pooled at the end-of-text token."""

    vocab_size: int = 49408
    context: int = 77
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_width: int = 3072
    activation: str = "gelu"
    norm_eps: float = 1e-5

    def __post_init__(self):
        _check_heads(self.width, self.heads)


@dataclass(frozen=True)
class LanguageConfig:
    """A LLaMA decoder; the defaults are Vicuna-7B v1.5."""

    vocab_size: int = 32000
    context: int = 4096
    width: int = 4096
    layers: int = 32
    heads: int = 32
    kv_heads: int = 32
    mlp_width: int = 11008
    norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    tie_embeddings: bool = False

    def __post_init__(self):
        _check_heads(self.width, self.heads)
        if self.heads % self.kv_heads:
            raise ConfigError(f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}.")


@dataclass(frozen=True)
class ModelConfig:
    """Video-LLaVA: two encoders bound to one text encoder, a shared projector, a language model."""

    image: VisionConfig = VisionConfig()
    video: VisionConfig = VisionConfig(temporal=True)
    text: TextConfig = TextConfig()
    language: LanguageConfig = LanguageConfig()
    embed_dim: int = 768  # the joint space of LanguageBind
    select_layer: int = -2  # hidden states that the projector reads: the layer before the last
    keep_cls_image: bool = False
    keep_cls_video: bool = False  # the paper says patch features only; the public code since 2024 keeps it
    template: str = "v1"
    stage1_template: str = "plain"
    aspect: str = "pad"  # pictures: "pad" to a square as in stage 2 of the paper, or "square" (centre crop)

    def visual_tokens(self, kind: str, frames: int = 1) -> int:
        """Tokens that one picture, or one clip of `frames` frames, takes in the language model's context."""
        if kind == "image":
            return self.image.grid**2 + self.keep_cls_image
        return frames * (self.video.grid**2 + self.keep_cls_video)


@dataclass(frozen=True)
class TrainingConfig:
    """One training run: AdamW, cosine schedule after a linear warm-up, gradient clipping."""

    steps: int = 1000
    batch_size: int = 32  # over all processes and accumulation steps
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.0
    warmup: float = 0.03  # share of the steps
    clip_norm: float = 1.0
    accumulation: int = 1
    precision: str = "no"  # accelerate's mixed precision: "no", "bf16", "fp16"
    checkpoint_every: int = 500  # steps
    log_every: int = 10
    seed: int = 0


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


def to_dict(config) -> dict:
    """A config dataclass as plain JSON types."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(kind: type, values: dict):
    """The inverse of `to_dict`. Raises ConfigError that names any unknown or missing field."""
    hints = typing.get_type_hints(kind)
    unknown = set(values) - set(hints)
    if unknown:
        raise ConfigError(f"{kind.__name__} has no field {', '.join(sorted(unknown))}.")
    arguments = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(hints[name]):
            value = from_dict(hints[name], value)
        elif typing.get_origin(hints[name]) is dict:
            value = {key: from_dict(typing.get_args(hints[name])[1], item) for key, item in value.items()}
        elif isinstance(value, list):
            value = tuple(value)
        arguments[name] = value
    return kind(**arguments)


def override(config, *assignments: str):
    """A copy of a config with dotted fields changed, e.g. `override(preset("tiny"), "stage2.steps=500")`.

    Raises ConfigError when a field does not exist or a value has the wrong type.
    """
    for assignment in assignments:
        path, sign, text = assignment.partition("=")
        if not sign:
            raise ConfigError(f"{assignment!r} is no assignment; write FIELD=VALUE, e.g. stage2.steps=500.")
        config = _override(config, path.split("."), text, assignment)
    return config


def _override(config, path: list[str], text: str, assignment: str):
    names = [f.name for f in dataclasses.fields(config)] if dataclasses.is_dataclass(config) else []
    if path[0] not in names:
        raise ConfigError(f"{assignment!r}: there is no field {path[0]!r}; choose one of {', '.join(names)}.")
    old = getattr(config, path[0])
    if len(path) > 1:
        return with_changes(config, **{path[0]: _override(old, path[1:], text, assignment)})
    if isinstance(old, str):
        return with_changes(config, **{path[0]: text})
    try:
        new = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{assignment!r}: {text!r} is no {type(old).__name__}.") from error
    fits = isinstance(new, type(old)) or (isinstance(old, float) and isinstance(new, int))
    if isinstance(old, tuple):
        new, fits = (tuple(new), True) if isinstance(new, list) else (new, False)
    if not fits or (isinstance(new, bool) and not isinstance(old, bool)):
        raise ConfigError(f"{assignment!r}: {text!r} is no {type(old).__name__}.")
    return with_changes(config, **{path[0]: new})


def __getattr__(name: str):
    """`preset` and `PRESETS` can be imported from here as well; they live in presets.py, which needs this module."""
    if name in ("preset", "PRESETS"):
        from minivllava import presets

        return getattr(presets, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
