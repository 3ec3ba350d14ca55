"""Any checkpoint in: a folder or hub id, in our own layout or another.

In our own layout a folder holds `config.json`, `model.safetensors` (or shards) and `tokenizer.json`; tensors that are
equal (the video encoder's spatial weights are the image encoder's) are stored once. saving.py writes it.

Other layouts are recognised by their config.json and need no conversion: original.py has the published ones,
huggingface.py those of `transformers`; convert.py writes the latter.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from minivllava.checkpoints import huggingface
from minivllava.checkpoints.devices import as_dtype, usable_device
from minivllava.checkpoints.filling import StoredPart, WithoutFirstWeights, count_weights, fill
from minivllava.checkpoints.hub import Source
from minivllava.checkpoints.layouts import FORMAT, LLAMAS, Layout, layout_of
from minivllava.checkpoints.memory import require_memory
from minivllava.checkpoints.original import Original, languagebind_config, languagebind_parts
from minivllava.checkpoints.weights import Weights
from minivllava.config import LanguageConfig, ModelConfig, TextConfig, VisionConfig
from minivllava.data.tokenizer import Tokenizer
from minivllava.errors import CheckpointError, ConfigError
from minivllava.models.language import LanguageModel
from minivllava.models.languagebind import LanguageBind, LanguageBindConfig
from minivllava.models.transformers_language import TransformersLanguageModel, check_vectors
from minivllava.models.vllava import VideoLLaVA
from minivllava.overrides import from_dict

# What differs between the paper, the original code and its port, and can be chosen at load.
SWITCHES = (
    "keep_cls_image", "keep_cls_video", "template", "stage1_template", "aspect", "stage1_aspect", "antialias",
    "clip_resize", "frame_sampling",
)  # fmt: skip
# Fields that every config.json has had from the beginning. A later field may be missing: its default is what
# was done before there was a choice.
FIRST_FIELDS = {
    VisionConfig: "image_size patch_size width layers heads mlp_width activation norm_eps temporal frames",
    TextConfig: "vocab_size context width layers heads mlp_width activation norm_eps",
    LanguageConfig: "vocab_size context width layers heads kv_heads mlp_width norm_eps rope_theta tie_embeddings",
    ModelConfig: "image video text language embed_dim select_layer keep_cls_image keep_cls_video template "
    "stage1_template aspect",
    LanguageBindConfig: "encoders text embed_dim",
}


def load_vllava(
    path: str | Path, device: str | torch.device | None = "cpu", dtype: torch.dtype | str = torch.float32,
    image_encoder: str | Path | None = None, video_encoder: str | Path | None = None, quantize: str | None = None,
    **switches,
) -> VideoLLaVA:  # fmt: skip
    """Reads a Video-LLaVA, in eval mode: a folder or hub id, in this project's layout, in the original's, or in that
    of the port to `transformers`.

    device: None for a GPU if there is one. dtype: of all weights, whatever the files have. image_encoder,
    video_encoder: LanguageBind folders or hub ids to take the encoders from, for the original layout; else they come
    from the checkpoint, from folders beside it with the names that its config.json gives, or from the hub. quantize:
    "int8" or "int4" rounds the language model's weights, layer by layer on their way to the device (see quantize.py).
    switches: any of SWITCHES, e.g. `keep_cls_video=False` for the tokens of the paper and its 2023 code.

    Raises CheckpointError for whatever is wrong with the checkpoint or is too large for the device's memory.
    """
    source = Source.find(path)
    config, tokenizer, parts = _vllava(source, image_encoder, video_encoder)
    if quantize is not None:
        from minivllava.checkpoints.quantize import quantize as round_weights
        from minivllava.checkpoints.quantize import require_rounded_memory, require_torchao

        require_torchao(quantize)
    config = _switched(config, switches)
    _check_placeholders(tokenizer, config, source)
    _check_vocabulary(tokenizer, config.language.vocab_size, source)
    if quantize is not None:  # on the CPU first, so that a device needs memory for the rounded weights alone
        device = usable_device(device)
        _fitting(source, lambda: require_rounded_memory(config, quantize, as_dtype(dtype), device, source.name))
        model = _build(VideoLLaVA, config, source, parts, "cpu", dtype, tokenizer=tokenizer)
        round_weights(model.language_model, quantize, device)
        model.to(device)
    else:
        model = _build(VideoLLaVA, config, source, parts, device, dtype, tokenizer=tokenizer)
    if isinstance(model.language_model, TransformersLanguageModel) and as_dtype(dtype) != torch.float32:
        check_vectors(model.language_model)  # in float32 that was done when it was taken
    model.freeze_encoders()
    return model


def vllava_config(
    path: str | Path, image_encoder: str | Path | None = None, video_encoder: str | Path | None = None, **switches
) -> ModelConfig:
    """The config that `load_vllava` would give a model; no weights are read. Raises CheckpointError."""
    return _switched(_vllava(Source.find(path), image_encoder, video_encoder)[0], switches)


def _vllava(source: Source, image_encoder, video_encoder) -> tuple[ModelConfig, Tokenizer | None, Callable]:
    """The config, the tokenizer and the parts of a Video-LLaVA in any layout. Raises CheckpointError."""
    layout = layout_of(source.card)
    if (image_encoder or video_encoder) and layout.writer != "original":
        raise ConfigError(f"{source.name} brings its encoders: leave image_encoder and video_encoder out.")
    if layout.writer == "minivllava":
        return _ours(source, "video-llava", ModelConfig)
    if layout == Layout("video-llava", "original"):
        original = described(source, lambda: Original(source, image_encoder, video_encoder))
        return original.config, _tokenizer(source), original.parts
    if layout == Layout("video-llava", "transformers"):
        config = described(source, lambda: huggingface.model_config(source.card, source.folder / "config.json"))
        return config, _tokenizer(source), _parts(source, huggingface.names, huggingface.spelling)
    raise _unknown(source, "video-llava", "or the original code's 'llava', or the port's 'video_llava'")


def _switched(config: ModelConfig, switches: dict) -> ModelConfig:
    unknown = set(switches) - set(SWITCHES)
    if unknown:
        raise ConfigError(f"There is no option {', '.join(sorted(unknown))}; there are {', '.join(SWITCHES)}.")
    return replace(config, **switches)


def load_languagebind(
    path: str | Path, device="cpu", dtype: torch.dtype | str = torch.float32
) -> tuple[LanguageBind, Tokenizer | None]:
    """Reads bound encoders, in eval mode: a folder or hub id, in this project's layout or in LanguageBind's (image,
    video, depth; a LoRA is folded into the weights). Raises CheckpointError."""
    source = Source.find(path)
    layout = layout_of(source.card)
    if layout.writer == "minivllava":
        config, tokenizer, parts = _ours(source, "languagebind", LanguageBindConfig)
    elif layout == Layout("languagebind", "original"):
        config, tokenizer = described(source, lambda: languagebind_config(source)), _tokenizer(source)

        def parts(names):
            return languagebind_parts(source, names)
    else:
        raise _unknown(source, "languagebind", "or LanguageBind's own")
    _check_vocabulary(tokenizer, config.text.vocab_size, source)
    return _build(LanguageBind, config, source, parts, device, dtype), tokenizer


def load_language(
    path: str | Path, device="cpu", dtype: torch.dtype | str = torch.float32
) -> tuple[LanguageModel, Tokenizer | None]:
    """Reads a language model, in eval mode: a folder or hub id, in this project's layout or a LLaMA in that of
    `transformers` (Vicuna, TinyLlama, SmolLM2, Llama 3, Mistral). Raises CheckpointError."""
    source = Source.find(path)
    layout = layout_of(source.card)
    if layout.writer == "minivllava":
        config, tokenizer, parts = _ours(source, "language", LanguageConfig)
    elif layout == Layout("language", "transformers"):
        file = source.folder / "config.json"
        config = described(source, lambda: huggingface.language_config(source.card, file))
        tokenizer, parts = _tokenizer(source), _parts(source, huggingface.language_names)
    else:
        raise _unknown(source, "language", f"or one of transformers' {', '.join(LLAMAS)}")
    _check_vocabulary(tokenizer, config.vocab_size, source)
    return _build(LanguageModel, config, source, parts, device, dtype), tokenizer


def _build(model_type, config, source: Source, parts: Callable, device, dtype, **arguments) -> nn.Module:
    """Builds a model on the meta device, asks for the memory, checks shapes, then puts the weights in."""
    dtype, device = as_dtype(dtype), usable_device(device)
    with torch.device("meta"), WithoutFirstWeights():
        model = _fitting(source, lambda: model_type(config, **arguments))
    require_memory(count_weights(model), dtype, device, source.name)
    return fill(model, parts(model.state_dict()), device, dtype)


def need_tokenizer(tokenizer: Tokenizer | None, path: str | Path) -> Tokenizer:
    """The tokenizer that came with a checkpoint. Raises CheckpointError if none did."""
    if tokenizer is None:
        raise CheckpointError(f"{path} holds no tokenizer: copy tokenizer.json beside its weights.")
    return tokenizer


def own_config(source: Source, kind: str, config_type: type):
    """The config of a folder in our own layout. Raises CheckpointError."""
    card = source.card
    if card.get("format") != FORMAT or card.get("kind") != kind:
        raise _unknown(source, kind, "")
    return described(source, lambda: _complete(config_type, card["config"]))


def _ours(source: Source, kind: str, config_type: type):
    """The config, the tokenizer and the parts of a folder in our own layout. Raises CheckpointError."""
    config, file = own_config(source, kind, config_type), source.folder / "tokenizer.json"
    tokenizer = None if source.card.get("tokenizer") is False else Tokenizer.load(file)
    return config, tokenizer, _parts(source, lambda names: {name: name for name in names})


def _complete(config_type: type, values: dict):
    """A config that says all that the first configs said. Raises ConfigError."""
    config = from_dict(config_type, values)

    def check(config, values):
        needed = FIRST_FIELDS.get(type(config), "").split()
        missing = [name for name in needed if name not in values]
        if missing:
            raise ConfigError(f"{type(config).__name__} lacks the field {', '.join(missing)}.")
        for name, value in values.items():
            if isinstance(value, dict):
                part = getattr(config, name) if not isinstance(config, dict) else config[name]
                check(part, value)

    check(config, values)
    return config


def _parts(source: Source, names: Callable[[Iterable[str]], dict], spelling: Callable[[str], str] = str) -> Callable:
    return lambda ours: [StoredPart(Weights(source.weights_folder(), spelling), names(ours))]


def described(source: Source, read: Callable):
    """The config that a config.json describes. Raises CheckpointError that names the file."""
    try:
        return read()
    except CheckpointError:
        raise
    except (ConfigError, KeyError, TypeError, ValueError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise _unfit(source, reason) from error


def _fitting(source: Source, build: Callable):
    """What is built from a config. Raises CheckpointError that names the file for parts that refuse their config."""
    try:
        return build()
    except (ConfigError, RuntimeError) as error:  # torch has limits, too
        raise _unfit(source, error) from error


def _unfit(source: Source, reason) -> CheckpointError:
    return CheckpointError(f"{source.folder / 'config.json'} does not fit this version: {reason}")


def _unknown(source: Source, kind: str, others: str) -> CheckpointError:
    found = source.card.get("kind", source.card.get("model_type"))
    needed = f"a {FORMAT} {kind!r} one {others}".strip()
    return CheckpointError(
        f"{source.folder / 'config.json'} describes a {found!r} checkpoint; {needed} is needed here."
    )


TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")


def _tokenizer(source: Source) -> Tokenizer | None:
    """The tokenizer of somebody else's folder; None if it holds none."""
    if not any((source.folder / name).is_file() for name in TOKENIZER_FILES):
        return None
    return Tokenizer.from_pretrained(source.folder)


def _check_vocabulary(tokenizer: Tokenizer | None, room: int, source: Source):
    if tokenizer is not None and len(tokenizer) > room:
        raise CheckpointError(
            f"{source.folder / 'tokenizer.json'} has {len(tokenizer)} tokens and the model's vocabulary holds {room}: "
            "copy the tokenizer that belongs to the model."
        )


def _check_placeholders(tokenizer: Tokenizer | None, config: ModelConfig, source: Source):
    """The port's placeholders must be in the tokenizer with the ids that config.json names."""
    for text, token in (("<image>", config.image_token), ("<video>", config.video_token)):
        if None not in (tokenizer, token) and huggingface.token_id(tokenizer, text) != token:
            raise CheckpointError(
                f"{source.folder}: its tokenizer has no {text} with the id {token}, which config.json gives: copy the "
                "tokenizer that belongs to the model."
            )
