"""The layouts of `transformers`: LLaMA models, and its port of Video-LLaVA, read and written.

The port (`model_type: video_llava`) has no temporal attention, keeps the CLS of clips, and runs the activation
that its config names, quick_gelu on the hub. Loaded here it gives what `transformers` gives.
"""

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch

from minivllava.checkpoints.names import LLAMA, VISION, names_under
from minivllava.checkpoints.storage import read_card
from minivllava.config import CLIP_MEAN, CLIP_STD, LanguageConfig, ModelConfig, RopeScaling, VisionConfig
from minivllava.errors import CheckpointError
from minivllava.models.layers import ACTIVATIONS

# what `transformers` takes for fields that a config.json leaves out
CLIP_VISION = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "image_size": 224, "patch_size": 32, "num_channels": 3, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
}  # fmt: skip
LLAMA_DEFAULTS = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "hidden_act": "silu", "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0, "tie_word_embeddings": False,
}  # fmt: skip
PROJECTOR = {"linear1": "linear_1", "linear2": "linear_2"}
# The spellings there are, of the hub, of `save_pretrained` and of `state_dict`, brought to one.
SPELLINGS = [
    (r"^model\.(?=(image_tower|video_tower|multi_modal_projector)\.)", ""),
    (r"^((?:image|video)_tower)\.vision_model\.", r"\1."),
    (r"^model\.language_model\.", "language_model.model."),
    (r"^lm_head\.", "language_model.lm_head."),
]


def vision_config(card: dict, where: str | Path, **more) -> VisionConfig:
    """The encoder that a CLIP `vision_config` describes. Raises CheckpointError for what this one cannot be."""
    card = CLIP_VISION | {name: value for name, value in card.items() if value is not None}
    size, patch = card["image_size"], card["patch_size"]
    sides = size if isinstance(size, list) else [size, size]
    if isinstance(patch, list):
        refuse_unless(len(set(map(str, patch))) == 1, where, f"patch_size {patch}: only square patches are supported")
        patch = patch[0]
    square = len(sides) == 2 and sides[0] == sides[1]
    refuse_unless(square, where, f"image_size {size!r}: only square images are supported")
    refuse_unless(card["num_channels"] == 3, where, f"num_channels {card['num_channels']}: only 3 are supported")
    refuse_unless(card["hidden_act"] in ACTIVATIONS, where, f"hidden_act {card['hidden_act']!r} is unknown here")
    return VisionConfig(
        image_size=sides[0], patch_size=patch, width=card["hidden_size"], layers=card["num_hidden_layers"],
        heads=card["num_attention_heads"], mlp_width=card["intermediate_size"], activation=card["hidden_act"],
        norm_eps=card["layer_norm_eps"], **more,
    )  # fmt: skip


def language_config(card: dict, where: str | Path) -> LanguageConfig:
    """The decoder that a LLaMA config describes. Raises CheckpointError for what this one cannot be."""
    card = LLAMA_DEFAULTS | {name: value for name, value in card.items() if value is not None}
    rope = section(card, "rope_scaling", where) | section(card, "rope_parameters", where)
    heads, context = card["num_attention_heads"], card.get("max_sequence_length") or card["max_position_embeddings"]
    window = card.get("sliding_window")
    _refuse_quantised(card, where)
    for name in ("hidden_size", "num_attention_heads"):
        whole = type(card[name]) is int and card[name] > 0
        refuse_unless(whole, where, f"{name} {card[name]!r}: a whole number of at least 1 is needed")
    refuse_unless(card["hidden_act"] == "silu", where, f"hidden_act {card['hidden_act']!r}: only silu is supported")
    for bias in ("attention_bias", "mlp_bias"):
        refuse_unless(not card.get(bias), where, f"{bias} is set, and only layers without biases are supported")
    head_width = card.get("head_dim", card["hidden_size"] // heads)
    refuse_unless(
        head_width * heads == card["hidden_size"], where,
        f"head_dim {head_width} is not hidden_size {card['hidden_size']} / {heads} heads, as it must be",
    )  # fmt: skip
    return LanguageConfig(
        vocab_size=card["vocab_size"], context=min(context, window) if window else context,
        width=card["hidden_size"], layers=card["num_hidden_layers"], heads=heads,
        kv_heads=card.get("num_key_value_heads", heads), mlp_width=card["intermediate_size"],
        norm_eps=card["rms_norm_eps"], rope_theta=_number(rope.get("rope_theta", card["rope_theta"])),
        tie_embeddings=card["tie_word_embeddings"], rope_scaling=_rope_scaling(rope, card, where),
        stop=_stop(card, where),
    )  # fmt: skip


def _stop(card: dict, where: str | Path) -> tuple[int, ...]:
    """Ids that end an answer for `transformers`: those of generation_config.json, else config.json."""
    file = Path(where).with_name("generation_config.json")
    ends = (read_card(file, "copy it again") if file.is_file() else card).get("eos_token_id")
    ends = tuple(ends) if isinstance(ends, list) else () if ends is None else (ends,)
    fits = all(type(token) is int for token in ends)
    refuse_unless(fits, file if file.is_file() else where, f"eos_token_id {ends}: token ids are needed")
    return ends


def _rope_scaling(rope: dict, card: dict, where) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    partial = rope.get("partial_rotary_factor", card.get("partial_rotary_factor", 1.0))
    refuse_unless(partial == 1.0, where, f"partial_rotary_factor {partial}: only 1 is supported")
    if kind == "default":
        return None
    refuse_unless(kind in ("linear", "llama3"), where, f"rope scaling {kind!r}: only linear and llama3 are supported")
    if kind == "linear":
        return RopeScaling(kind, _number(rope["factor"]))
    context = rope.get("original_max_position_embeddings", card["max_position_embeddings"])
    return RopeScaling(
        kind, *(_number(rope[name]) for name in ("factor", "low_freq_factor", "high_freq_factor")), context
    )


def _number(value):
    """A whole number as a float; anything else as it is, for the config to judge."""
    return float(value) if type(value) is int else value


def _token(card: dict, kind: str, default: int) -> int:
    """The id of a placeholder, under the older of its names or the newer one."""
    named = (card.get(f"{kind}_token_{end}") for end in ("index", "id"))
    return next((token for token in named if token is not None), default)


def model_config(card: dict, where: str | Path) -> ModelConfig:
    """The Video-LLaVA that the port's config.json describes: without temporal attention."""
    _refuse_quantised(card, where)
    layer = card.get("vision_feature_layer", -2)
    layer = layer[0] if isinstance(layer, list) and len(layer) == 1 else layer
    refuse_unless(isinstance(layer, int), where, f"vision_feature_layer {layer}: only one layer is supported")
    strategy = card.get("vision_feature_select_strategy", "default")
    refuse_unless(
        strategy in ("default", "full"), where, f"vision_feature_select_strategy {strategy!r} is unknown here"
    )
    activation = card.get("projector_hidden_act", "gelu")
    refuse_unless(activation == "gelu", where, f"projector_hidden_act {activation!r}: only gelu is supported")
    refuse_unless(card.get("multimodal_projector_bias", True), where, "a projector without biases is not supported")
    kinds = [section(card, part, where).get("model_type", known) for part, known in _PARTS.items()]
    refuse_unless(kinds == list(_PARTS.values()), where, f"parts {kinds}: only {list(_PARTS.values())} are supported")
    vision = vision_config(section(card, "vision_config", where) or PORT_VISION, where)
    tokens = card.get("video_seq_length", 2056)
    refuse_unless(type(tokens) is int, where, f"video_seq_length {tokens!r}: a whole number is needed")
    frames, rest = divmod(tokens, vision.grid**2 + 1)
    text = section(card, "text_config", where)
    return ModelConfig(
        image=vision, video=replace(vision, frames=frames if frames and not rest else 8),
        language=language_config(text | {"tie_word_embeddings": card.get("tie_word_embeddings", False)}, where),
        select_layer=layer, keep_cls_image=strategy == "full", keep_cls_video=True,
        template="short", aspect="square", clip_resize="bicubic", frame_sampling="arange",
        image_token=_token(card, "image", 32000), video_token=_token(card, "video", 32001),
    )  # fmt: skip


_PARTS = {"text_config": "llama", "vision_config": "clip_vision_model"}
PORT_VISION = {  # the port's own, where its config.json describes no encoder at all
    "hidden_size": 1024, "intermediate_size": 4096, "patch_size": 14, "num_hidden_layers": 24,
    "num_attention_heads": 16,
}  # fmt: skip


def spelling(name: str) -> str:
    """A tensor's name in the one spelling that `names` uses."""
    for pattern, replacement in SPELLINGS:
        name = re.sub(pattern, replacement, name)
    return name


def names(ours: Iterable[str], tower: str = "") -> dict[str, str]:
    """{our name: the port's}. `tower` goes between an encoder's name and its tensors': "vision_model." on the hub."""
    ours = list(ours)
    return (
        names_under(ours, "image_encoder.", f"image_tower.{tower}", VISION)
        | names_under(ours, "video_encoder.", f"video_tower.{tower}", VISION)
        | names_under(ours, "projector.", "multi_modal_projector.", PROJECTOR)
        | names_under(ours, "language_model.", "language_model.", LLAMA)
    )


def port_card(config: ModelConfig, vocabulary: int, tokens: dict[str, int], dtype: torch.dtype) -> dict:
    """The config.json of `VideoLlavaForConditionalGeneration`."""
    dtype_name = str(dtype).removeprefix("torch.")
    return {
        "architectures": ["VideoLlavaForConditionalGeneration"],
        "model_type": "video_llava",
        "dtype": dtype_name,
        "torch_dtype": dtype_name,
        "image_token_index": tokens["<image>"],
        "video_token_index": tokens["<video>"],
        "image_seq_length": config.image.grid**2 + config.keep_cls_image,
        "video_seq_length": config.video.frames * (config.video.grid**2 + 1),
        "vision_feature_layer": config.select_layer,
        "vision_feature_select_strategy": "full" if config.keep_cls_image else "default",
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
        "tie_word_embeddings": config.language.tie_embeddings,
        "vision_config": vision_card(config.image, config.embed_dim),
        "text_config": language_card(config.language, vocabulary),
    }


def vision_card(config: VisionConfig, embed_dim: int) -> dict:
    return {
        "model_type": "clip_vision_model",
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "hidden_act": config.activation,
        "layer_norm_eps": config.norm_eps,
        "projection_dim": embed_dim,
    }


def language_card(config: LanguageConfig, vocabulary: int) -> dict:
    scaling = config.rope_scaling
    rope = {"rope_type": "default"} if scaling is None else {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling is not None and scaling.kind == "llama3":
        rope |= {
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_context,
        }
    # until its version 4.42, which knew no llama3, transformers took "type" and "factor" and no other field
    older = {"factor": rope["factor"]} if rope["rope_type"] == "linear" else rope
    return {
        "model_type": "llama",
        "vocab_size": vocabulary,
        "max_position_embeddings": config.context,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "intermediate_size": config.mlp_width,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,  # where transformers 4 looks for it, and for rope_scaling
        "rope_scaling": None if scaling is None else {"type": scaling.kind} | older,
        "rope_parameters": rope | {"rope_theta": config.rope_theta},
        "tie_word_embeddings": config.tie_embeddings,
    }


def processor_cards(config: ModelConfig) -> dict[str, dict]:
    """What the port's processors need to know: the size of images, and how many tokens each becomes."""
    side = config.image.image_size
    images = {
        "image_processor_type": "VideoLlavaImageProcessor",
        "do_convert_rgb": True, "do_resize": True, "size": {"shortest_edge": side}, "resample": 3,
        "do_center_crop": True, "crop_size": {"height": side, "width": side},
        "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": list(CLIP_MEAN), "image_std": list(CLIP_STD),
    }  # fmt: skip
    text = {
        "processor_class": "VideoLlavaProcessor",
        "patch_size": config.image.patch_size,
        "num_additional_image_tokens": 1,
        "vision_feature_select_strategy": "full" if config.keep_cls_image else "default",
    }
    return {"preprocessor_config": images, "processor_config": text}


def language_names(ours: Iterable[str]) -> dict[str, str]:
    """{our name: theirs} of a language model alone."""
    return names_under(ours, "", "", LLAMA)


def token_id(tokenizer, text: str) -> int | None:
    """The id of a token, of our own tokenizer or of one that `transformers` reads."""
    lookup = getattr(tokenizer.backend, "token_to_id", None) or tokenizer.backend.convert_tokens_to_ids
    return lookup(text)


def _refuse_quantised(card: dict, where: str | Path):
    refuse_unless(
        not card.get("quantization_config"), where,
        "quantization_config is set: name the model in full precision, and quantise it at load",
    )  # fmt: skip


def section(card: dict, name: str, where: str | Path) -> dict:
    """A part of a config.json that has fields of its own; an empty one if it is left out. Raises CheckpointError."""
    found = card.get(name) or {}
    refuse_unless(isinstance(found, dict), where, f"{name} is {found!r}, not an object of named fields")
    return found


def refuse_unless(fits: bool, where: str | Path, what: str):
    """Raises CheckpointError for a config.json that describes what no model here can be."""
    if not fits:
        raise CheckpointError(f"{where}: {what}.")
