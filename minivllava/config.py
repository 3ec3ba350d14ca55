"""The sizes of the model: one frozen dataclass per part; presets.py fills them in, run_config.py has the recipes.

Vary a preset with `dataclasses.replace`, or with `overrides.override(preset, "stage2.steps=500")`.
"""

import math
from dataclasses import dataclass

from minivllava.errors import ConfigError, check_choice
from minivllava.fields import check_range, check_types, fits

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of pixels between 0 and 1, each colour's
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
VISION_TOWERS = ("clip_vision_model", "siglip_vision_model")  # what a VisionTowerConfig may hold
PROJECTORS = ("mlp", "linear", "per-modality", "resampler", "pooling")  # models/projector_variants.py says what each is
TOWER_SIZES = (
    "image_size", "patch_size", "hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size",
)  # fmt: skip
MOST_LAYERS = 10_000  # building more takes minutes, before a checkpoint's weights can be compared with them
ACTIVATIONS = ("gelu", "quick_gelu")  # models/layers.py
FRAME_SAMPLINGS = ("linspace", "arange", "opencv")  # data/media.py
TEMPLATES = ("v1", "llava_v1", "short", "plain", "chat")  # data/conversation.py


def _check_heads(width: int, heads: int):
    if width % heads:
        raise ConfigError(f"width {width} is not a multiple of heads {heads}.")


def _check_layers(part: str, values: dict):
    """Raises ConfigError for more layers than any model has, in a config of `transformers`."""
    layers = values.get("num_hidden_layers")
    if fits(int, layers) and layers > MOST_LAYERS:
        raise ConfigError(f"The {part}'s num_hidden_layers is {layers}: use {MOST_LAYERS} at most.")


@dataclass(frozen=True)
class VisionConfig:
    """A pre-LN ViT. With `temporal`, the video encoder: the same ViT plus temporal attention."""

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
    patch_dropout: float = 0.0  # share of patches hidden while training (LanguageBind: 0.3 for video, 0.5 for depth)
    masked: float = 0.0  # share hidden at inference too, as `transformers` runs the ablation's masked autoencoder

    @property
    def mean(self) -> tuple[float, ...]:
        """Of the pixels, each colour's."""
        return CLIP_MEAN

    @property
    def std(self) -> tuple[float, ...]:
        return CLIP_STD

    @property
    def grid(self) -> int:
        """Patches along one side of a frame."""
        return self.image_size // self.patch_size

    @property
    def patches(self) -> int:
        """Patches of a frame that the encoder gives features of: all, but for those that are `masked`."""
        return max(1, round(self.grid**2 * (1 - self.masked)))

    def __post_init__(self):
        check_types(self)
        sizes = ("image_size", "patch_size", "width", "layers", "heads", "mlp_width", "frames")
        check_range(self, 1, math.inf, *sizes)
        check_range(self, 1, MOST_LAYERS, "layers")
        check_range(self, 0, math.inf, "norm_eps")
        check_range(self, 0, 0.99, "patch_dropout", "masked")
        if self.image_size % self.patch_size:
            raise ConfigError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}.")
        _check_heads(self.width, self.heads)
        check_choice("activation", self.activation, ACTIVATIONS)


@dataclass(frozen=True)
class VisionTowerConfig:
    """A CLIP or SigLIP vision tower of `transformers` where our image encoder, or our video encoder, stands."""

    tower: dict  # its own config, as `transformers` writes it
    temporal: bool = False  # clips: with our temporal attention before each layer; else frame by frame
    frames: int = 8  # length of the learned temporal embedding
    mean: tuple[float, ...] = CLIP_MEAN  # of the pixels that it was trained on
    std: tuple[float, ...] = CLIP_STD

    @property
    def image_size(self) -> int:
        return self.tower["image_size"]

    @property
    def patch_size(self) -> int:
        return self.tower["patch_size"]

    @property
    def width(self) -> int:
        return self.tower["hidden_size"]

    @property
    def heads(self) -> int:
        return self.tower["num_attention_heads"]

    @property
    def layers(self) -> int:
        return self.tower.get("num_hidden_layers", 12)  # as many as `transformers` gives one that does not say

    @property
    def grid(self) -> int:
        return self.image_size // self.patch_size

    @property
    def patches(self) -> int:
        return self.grid**2

    @property
    def masked(self) -> float:
        return 0.0

    @property
    def has_cls(self) -> bool:
        """CLIP's towers have a CLS token before the patches, SigLIP's have none."""
        return self.tower["model_type"] == "clip_vision_model"

    def __post_init__(self):
        check_types(self)
        check_range(self, 1, math.inf, "frames")
        missing = {"model_type", "image_size", "patch_size", "hidden_size", "num_attention_heads"} - set(self.tower)
        if missing:
            raise ConfigError(f"The tower's config lacks {', '.join(sorted(missing))}.")
        for name, size in self.tower.items():
            if name in TOWER_SIZES and not (fits(int, size) and size >= 1):
                raise ConfigError(f"The tower's {name} is {size!r}: use a whole number of at least 1.")
        _check_layers("tower", self.tower)
        check_choice("vision tower", self.tower["model_type"], VISION_TOWERS)


# in what a video encoder may differ from the image encoder whose weights its spatial ones are
NOT_SPATIAL = ("temporal", "frames", "patch_dropout", "masked", "mean", "std")


def check_same_vit(image: VisionConfig | VisionTowerConfig, video: VisionConfig | VisionTowerConfig):
    """Raises ConfigError unless a video encoder can begin with all of an image encoder's weights."""

    def spatial(config) -> dict:
        values = {name: value for name, value in vars(config).items() if name not in NOT_SPATIAL}
        return values.pop("tower", {}) | values

    begin, wanted = spatial(image), spatial(video)
    unlike = [name for name in begin | wanted if begin.get(name) != wanted.get(name)]
    if unlike:
        told = "; ".join(f"video.{name} is {wanted.get(name)}, image.{name} is {begin.get(name)}" for name in unlike)
        raise ConfigError(f"The video encoder begins with the image encoder's weights, but {told}: set them alike.")


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
        check_types(self)
        check_range(self, 1, math.inf, "vocab_size", "context", "width", "layers", "heads", "mlp_width")
        check_range(self, 1, MOST_LAYERS, "layers")
        check_range(self, 0, math.inf, "norm_eps")
        _check_heads(self.width, self.heads)
        check_choice("activation", self.activation, ACTIVATIONS)


@dataclass(frozen=True)
class RopeScaling:
    """Rotary positions stretched beyond the context of pre-training.

    "linear" slows every frequency by `factor` (Vicuna's 16k models); "llama3" slows those whose wavelength is
    longer than the pre-training context / `low_freq_factor`, keeps those shorter than it / `high_freq_factor`,
    and blends in between (Llama 3.1).
    """

    kind: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192

    def __post_init__(self):
        check_types(self)
        check_choice("rope scaling", self.kind, ("linear", "llama3"))
        check_range(self, 1e-6, math.inf, "factor", "low_freq_factor", "high_freq_factor")
        check_range(self, 1, math.inf, "original_context")
        if self.kind == "llama3" and self.high_freq_factor <= self.low_freq_factor:
            raise ConfigError(f"high_freq_factor {self.high_freq_factor} is not above {self.low_freq_factor}.")


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
    rope_scaling: RopeScaling | None = None
    stop: tuple[int, ...] = ()  # ids that end an answer, beside the tokenizer's end of sequence

    def __post_init__(self):
        check_types(self)
        sizes = ("vocab_size", "context", "width", "layers", "heads", "kv_heads", "mlp_width")
        check_range(self, 1, math.inf, *sizes, "rope_theta")
        check_range(self, 1, MOST_LAYERS, "layers")
        check_range(self, 0, math.inf, "norm_eps")
        _check_heads(self.width, self.heads)
        if self.heads % self.kv_heads:
            raise ConfigError(f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}.")
        if self.width // self.heads % 2:
            raise ConfigError(f"width {self.width} / heads {self.heads} is odd: rotary positions need an even width.")


@dataclass(frozen=True)
class CausalLMConfig:
    """A causal language model of `transformers` where our decoder stands."""

    model: dict  # its own config, as `transformers` writes it
    vocab_size: int
    context: int
    width: int
    stop: tuple[int, ...] = ()  # ids that end an answer, beside the tokenizer's end of sequence

    def __post_init__(self):
        check_types(self)
        check_range(self, 1, math.inf, "vocab_size", "context", "width")
        if "model_type" not in self.model:
            raise ConfigError("The language model's config lacks model_type.")
        _check_layers("language model", self.model)


@dataclass(frozen=True)
class ModelConfig:
    """Video-LLaVA: two encoders bound to one text encoder, a shared projector, a language model."""

    image: VisionConfig | VisionTowerConfig = VisionConfig()
    video: VisionConfig | VisionTowerConfig = VisionConfig(temporal=True)
    text: TextConfig = TextConfig()
    language: LanguageConfig | CausalLMConfig = LanguageConfig()
    embed_dim: int = 768  # the joint space of LanguageBind
    select_layer: int = -2  # hidden states that the projector reads: the layer before the last
    keep_cls_image: bool = False
    keep_cls_video: bool = False  # the paper says patch features only; the public code since 2024 keeps it
    template: str = "v1"
    stage1_template: str = "plain"
    aspect: str = "pad"  # images: "pad" to a square as in stage 2 of the paper, or "square" (centre crop)
    stage1_aspect: str = "square"
    antialias: bool = True  # of images made smaller; the original resized tensors, and torchvision 0.15 did not
    clip_resize: str = "bilinear"  # of a clip's frames, not antialiased: as the original; the port's is "bicubic"
    frame_sampling: str = "linspace"  # of a clip: as the original; "arange", the port's; "opencv", its other reader's
    image_token: int | None = None  # ids that stand for visual tokens beside -200, in the port's vocabulary
    video_token: int | None = None
    projector: str = "mlp"  # one of PROJECTORS; the paper's is the shared `mlp2x_gelu`
    projector_queries: int = 16  # of the "resampler": tokens of each image or clip

    def __post_init__(self):
        check_types(self)
        check_range(self, 1, math.inf, "embed_dim", "projector_queries")
        check_choice("projector", self.projector, PROJECTORS)
        check_choice("template", self.template, TEMPLATES)
        check_choice("stage1_template", self.stage1_template, TEMPLATES)
        check_choice("aspect", self.aspect, ("pad", "square"))
        check_choice("stage1_aspect", self.stage1_aspect, ("pad", "square"))
        check_choice("clip_resize", self.clip_resize, ("bilinear", "bicubic"))
        check_choice("frame_sampling", self.frame_sampling, FRAME_SAMPLINGS)
        if self.image.temporal:
            raise ConfigError("image.temporal is on: an image has one frame, so only video.temporal can be.")
        if self.video.masked:
            raise ConfigError("video.masked: only the image encoder of the ablation runs masked; set it to 0.")
        for name in ("image_token", "video_token"):
            token, vocabulary = getattr(self, name), self.language.vocab_size
            if token is not None and not 0 <= token < vocabulary:
                raise ConfigError(f"{name} is {token!r}: use an id of the vocabulary, from 0 to {vocabulary - 1}.")
        if self.image_token is not None and self.image_token == self.video_token:
            raise ConfigError(f"image_token and video_token are both {self.image_token}: give each its own.")
        for name, layers in (("image", self.image.layers), ("video", self.video.layers)):
            if not -1 - layers <= self.select_layer <= layers:
                raise ConfigError(
                    f"select_layer is {self.select_layer} and the {name} encoder has {layers} layers: choose from "
                    f"{-layers - 1} to {layers}."
                )
        if self.image.width != self.video.width:
            raise ConfigError(
                f"The image encoder's width {self.image.width} is not the video encoder's {self.video.width}: "
                "they share one projector, so give both the same width."
            )
        of_image, of_frame = self.visual_tokens("image"), self.video.patches + self.keep_cls_video
        if self.projector == "per-modality" and of_image > of_frame and of_image % of_frame == 0:
            raise ConfigError(
                f"A clip of {of_image // of_frame} frames would have as many features as an image, {of_image}, and "
                "projector per-modality tells them apart by that: give both encoders the same grid."
            )
        kept = [(name, getattr(self, f"keep_cls_{name}"), getattr(self, name)) for name in ("image", "video")]
        for name, keep, tower in kept:
            if keep and not getattr(tower, "has_cls", True):
                raise ConfigError(f"keep_cls_{name}: the {name} encoder has no CLS token to keep; set it to false.")

    @property
    def ids_of_placeholders(self) -> dict[str, int]:
        """Ids of the placeholders that are tokens, as in the port."""
        named = {"<image>": self.image_token, "<video>": self.video_token}
        return {text: token for text, token in named.items() if token is not None}

    def vision(self, kind: str) -> "VisionConfig | VisionTowerConfig":
        """The encoder of "image" or "video"."""
        return self.image if kind == "image" else self.video

    def visual_tokens(self, kind: str, frames: int = 1) -> int:
        """Tokens that one image, or one clip of `frames` frames, takes in the language model's context."""
        if self.projector == "resampler":
            return self.projector_queries
        if kind == "image":
            return self.image.patches + self.keep_cls_image
        of_frame = self.video.patches + self.keep_cls_video
        return frames + of_frame if self.projector == "pooling" else frames * of_frame
