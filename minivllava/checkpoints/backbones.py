"""Published parts: vision towers and language models from a folder or the hub, and a Video-LLaVA made of them."""

import json
import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from minivllava.checkpoints.hub import Source
from minivllava.checkpoints.huggingface import language_config, refuse_unless
from minivllava.checkpoints.layouts import Layout, layout_of
from minivllava.checkpoints.loading import described, load_language, load_languagebind, need_tokenizer, own_config
from minivllava.checkpoints.memory import require_memory
from minivllava.checkpoints.original import modality, tower_config
from minivllava.checkpoints.storage import read_card
from minivllava.checkpoints.weights import CONSTANTS, Weights, not_floating, raise_problems
from minivllava.config import (
    CLIP_MEAN,
    CLIP_STD,
    CausalLMConfig,
    LanguageConfig,
    ModelConfig,
    VisionConfig,
    VisionTowerConfig,
)
from minivllava.data.tokenizer import Tokenizer
from minivllava.errors import CheckpointError, ConfigError, short_reason
from minivllava.models.languagebind import LanguageBindConfig
from minivllava.models.projector import build_projector
from minivllava.models.transformers_language import TransformersLanguageModel, built, check_interface
from minivllava.models.transformers_vision import VisionTower
from minivllava.models.vllava import VideoLLaVA

# of a config, what says nothing about the model itself
NOTES = (
    "dtype",
    "torch_dtype",
    "transformers_version",
    "_name_or_path",
    "architectures",
    "_attn_implementation_autoset",
)
TEXT_PARTS = ("text_model.", "text_projection.", "visual_projection.", "logit_scale", "logit_bias")


def load_any_language(path: str | Path) -> tuple[nn.Module, Tokenizer]:
    """(language model, tokenizer) of a folder or hub id: a LLaMA (SmolLM2, Vicuna, Llama 3) becomes our decoder; one
    that our decoder cannot be (biases, another width of heads or scaling of positions) and any other causal language
    model of `transformers` stays what it is, behind our decoder's interface.

    Raises CheckpointError for what cannot be read, ConfigError for a model that does not fit the interface.
    """
    source = Source.find(path)
    if layout_of(source.card).writer == "minivllava" or _is_our_decoder(source.card, source.folder / "config.json"):
        language, tokenizer = load_language(path)
        return language, need_tokenizer(tokenizer, source.folder)
    return load_causal_lm(path)


def _is_our_decoder(card: dict, where: Path) -> bool:
    if layout_of(card) != Layout("language", "transformers"):
        return False
    try:
        language_config(card, where)
    except CheckpointError:
        return False
    except (ConfigError, KeyError, TypeError, ValueError):  # nobody's; said when it is read
        return True
    return True


def load_causal_lm(path: str | Path) -> tuple[TransformersLanguageModel, Tokenizer]:
    """Any causal language model of `transformers`, LLaMA or not, behind our decoder's interface, in eval mode."""
    from transformers import AutoModelForCausalLM

    source = Source.find(path)
    folder = source.weights_folder()
    model = _read(AutoModelForCausalLM, folder)
    context = _context(model.config, folder)
    _note_untied(model)
    stop = getattr(model.generation_config, "eos_token_id", None)
    stop = stop if isinstance(stop, list) else [] if stop is None else [stop]
    wrong = f"its generation_config.json or config.json has eos_token_id {stop}, and whole numbers are needed"
    refuse_unless(all(type(token) is int for token in stop), folder, wrong)
    rows, width = model.get_input_embeddings().weight.shape
    config = CausalLMConfig(
        model=_card(model.config), vocab_size=rows, context=context, width=width,
        stop=tuple(stop),
    )  # fmt: skip
    language = TransformersLanguageModel(config, model).eval()
    check_interface(language)
    tokenizer = Tokenizer.from_pretrained(folder)
    if len(tokenizer) > rows:
        raise CheckpointError(
            f"{folder}: its tokenizer has {len(tokenizer)} tokens and the model's vocabulary holds {rows}: copy the "
            "tokenizer that belongs to the model."
        )
    return language, tokenizer


def load_encoder(path: str | Path, kind: str) -> nn.Module:
    """The encoder of images (`kind` "image") or clips ("video") of a folder or hub id, frozen, in eval mode.

    LanguageBind's, or bound encoders of our own layout, become our encoders; a CLIP or SigLIP tower of
    `transformers` stays what it is, and sees clips frame by frame. Raises CheckpointError, ConfigError.
    """
    source = Source.find(path)
    layout = layout_of(source.card)
    if layout.writer == "minivllava" or layout.kind == "languagebind":
        bound, _ = load_languagebind(path)
        if kind not in bound.encoders:
            raise ConfigError(f"{path} holds an encoder for {', '.join(bound.encoders)}, and none for {kind}.")
        return bound.encoders[kind].requires_grad_(False)
    return load_tower(path).requires_grad_(False)


def load_tower(path: str | Path) -> VisionTower:
    """The vision tower of a CLIP or SigLIP of `transformers`, with the colours it was trained on, in eval mode."""
    import transformers

    source = Source.find(path)
    folder = source.weights_folder()
    kind = str(source.card.get("model_type"))
    kinds = {"clip": "CLIP", "clip_vision_model": "CLIP", "siglip": "Siglip", "siglip_vision_model": "Siglip"}
    if kind not in kinds:
        raise ConfigError(f"{folder / 'config.json'} describes a {kind!r}; a CLIP or SigLIP is needed here.")
    model = _read(getattr(transformers, f"{kinds[kind]}VisionModel"), folder)
    mean, std = (CLIP_MEAN, CLIP_STD) if kinds[kind] == "CLIP" else ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    file = folder / "preprocessor_config.json"
    if file.is_file():
        card = read_card(file, "copy it again")
        mean, std = _colours(card, "image_mean", mean, file), _colours(card, "image_std", std, file)
        refuse_unless(min(std) > 0, file, f"image_std {card.get('image_std')!r}: numbers above 0 are needed")
    config = VisionTowerConfig(tower=_card(model.config), mean=mean, std=std)
    return VisionTower(config, model).eval()


def _colours(card: dict, name: str, usual: tuple[float, ...], file: Path) -> tuple[float, ...]:
    """Three numbers for red, green and blue; one number stands for all three, and none for the usual ones."""
    found = card.get(name)
    if found is None:
        return usual
    values = tuple(found) if isinstance(found, list) else (found,) * 3
    numbers = all(type(value) in (int, float) and math.isfinite(value) for value in values)
    refuse_unless(numbers and len(values) == 3, file, f"{name} {found!r}: three numbers are needed")
    return values


def part_config(folder: str | Path, kind: str):
    """The config of the "image" or "video" encoder or of the "language" model in a folder, without its weights.

    Raises CheckpointError, ConfigError.
    """
    source = Source.find(folder)
    card, layout, where = source.card, layout_of(source.card), source.folder / "config.json"
    if layout.writer == "minivllava":
        if kind == "language":
            return own_config(source, "language", LanguageConfig)
        encoders = own_config(source, "languagebind", LanguageBindConfig).encoders
        if kind not in encoders:
            raise ConfigError(f"{folder} holds an encoder for {', '.join(encoders)}, and none for {kind}.")
        return encoders[kind]
    if kind != "language":
        if layout.kind == "languagebind":
            seen = modality(card)
            if seen != kind:
                raise ConfigError(f"{folder} holds an encoder for {seen}, and none for {kind}.")
            return described(source, lambda: tower_config(source))
        return VisionTowerConfig(tower=_card(_their_config(source.folder, vision=True)))
    if _is_our_decoder(card, where):
        return described(source, lambda: language_config(card, where))
    theirs = _their_config(source.folder)
    text, context = theirs.get_text_config(), _context(theirs, source.folder)
    return CausalLMConfig(_card(theirs), text.vocab_size, context, text.hidden_size)


def with_frames(video: VisionConfig | VisionTowerConfig, frames: int) -> VisionConfig | VisionTowerConfig:
    """The config of a video encoder for clips of `frames` frames. Raises ConfigError if its temporal embedding has
    another length."""
    if video.temporal and video.frames != frames:
        raise ConfigError(
            f"model.video.frames is {frames}, and the video encoder attends over {video.frames}: set the same."
        )
    return replace(video, frames=frames)


def assemble_backbones(
    config: ModelConfig, image: nn.Module, video: nn.Module, language: nn.Module, tokenizer
) -> VideoLLaVA:
    """A Video-LLaVA of these encoders and this language model; its projector is new (seed 0).

    Sizes are the parts' own; the rest, such as the frames of a clip, is the config's. Raises ConfigError when the parts
    do not fit each other, or a temporal embedding is not as long as the config's clips.
    """
    video.config = with_frames(video.config, config.video.frames)
    config = replace(config, image=image.config, video=video.config, language=language.config)
    with torch.device("meta"):
        model = VideoLLaVA(config, tokenizer)
    model.image_encoder, model.video_encoder, model.language_model = image, video, language
    torch.manual_seed(0)
    model.projector = build_projector(config).to(next(language.parameters()))
    model.freeze_encoders()
    return model.eval()


def _read(kind, folder: Path) -> nn.Module:
    """A model of `transformers`, all of it, in float32, on the CPU.

    Raises CheckpointError that names what is missing or does not fit, and for a model that is too large for the memory,
    before any of it is loaded.
    """
    stored = [entry for name, entry in Weights(folder).entries.items() if not name.startswith(TEXT_PARTS)]
    weights = sum(torch.Size(entry.shape).numel() for entry in stored)
    described, whole = _described_weights(kind, folder)
    raise_problems(not_floating(entry for entry in stored if entry.name not in whole), folder)
    if described > 1.5 * weights:  # names differ between versions of transformers, so all are compared at load
        raise CheckpointError(
            f"{folder} does not fit its config: config.json describes {described:,} weights and the files hold "
            f"{weights:,}: copy it again."
        )
    require_memory(max(weights, described), torch.float32, "cpu", folder)
    try:
        model, told = kind.from_pretrained(
            folder, output_loading_info=True, dtype=torch.float32, trust_remote_code=False, ignore_mismatched_sizes=True
        )
    except Exception as error:  # of many types
        raise CheckpointError(
            f"{folder} cannot be read by transformers ({short_reason(error)}): copy it again."
        ) from error
    problems = [f"missing {key}" for key in told["missing_keys"]]
    problems += [f"{key} is {tuple(is_)}, not {tuple(wanted)}" for key, is_, wanted in told["mismatched_keys"]]
    unexpected = (key for key in told["unexpected_keys"] if not CONSTANTS.search(key))
    problems += [f"unexpected {key}" for key in unexpected if not key.startswith(TEXT_PARTS)]
    if problems:
        raise CheckpointError(f"{folder} does not fit its config: {'; '.join(sorted(problems))}: copy it again.")
    return model


def _note_untied(model: nn.Module):
    """Writes into a model's config that its head is not the token embedding, if they were stored as different numbers.

    `transformers` keeps such weights apart whatever the config says, and says nothing.
    """
    head = model.get_output_embeddings()
    if head is not None and head.weight.data_ptr() != model.get_input_embeddings().weight.data_ptr():
        for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
            if getattr(config, "tie_word_embeddings", False):
                config.tie_word_embeddings = False
        model.tie_weights()  # which notes that nothing is tied any more


def _described_weights(kind, folder: Path) -> tuple[int, set[str]]:
    """How many weights a config.json asks for, and the names of those tensors that are whole numbers."""
    config = _their_config(folder, vision=kind.__name__.endswith("VisionModel"))
    try:
        with torch.device("meta"):
            model = built(lambda: kind.from_config(config) if hasattr(kind, "from_config") else kind(config))
        model.tie_weights()
    except Exception as error:  # of many types
        raise CheckpointError(
            f"{folder} cannot be read by transformers ({short_reason(error)}): name another model, or copy it again."
        ) from error
    whole = {name for name, tensor in model.state_dict().items() if not tensor.is_floating_point()}
    return sum(p.numel() for p in model.parameters()), whole


def _their_config(folder: Path, vision: bool = False):
    """A config of `transformers`; of a model that sees and reads, that of its vision tower."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # of many types
        raise CheckpointError(
            f"{folder} cannot be read by transformers ({short_reason(error)}): name another model, or copy it again."
        ) from error
    if getattr(config, "quantization_config", None):
        raise ConfigError(
            f"The weights of {folder} are quantised: name the model in full precision, and quantise it at load."
        )
    return getattr(config, "vision_config", config) if vision else config


def _context(config, folder: Path) -> int:
    """How many positions a language model of `transformers` has; with "longrope", as many as it was first trained on:
    beyond them the frequencies of a row depend on the longest row of its batch. Raises ConfigError."""
    text = config.get_text_config()
    context, rope = getattr(text, "max_position_embeddings", None), getattr(text, "rope_parameters", None) or {}
    if type(context) is not int or context < 1:
        raise ConfigError(
            f"{folder / 'config.json'} does not say how long the context is: max_position_embeddings is {context!r}."
        )
    ropes = [rope, *(part for part in rope.values() if isinstance(part, dict))]  # some have one for each kind of layer
    first = [r["original_max_position_embeddings"] for r in ropes if r.get("rope_type") == "longrope"]
    return min(context, *first) if first else context


def _card(config) -> dict:
    """A config of `transformers` as plain JSON types, from which it can be built again."""
    card = json.loads(json.dumps(config.to_dict()))
    return {key: value for key, value in card.items() if key not in NOTES}
