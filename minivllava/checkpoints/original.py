"""The layouts of the original code: LanguageBind, and Video-LLaVA as it was published (`model_type: llava`).

A Video-LLaVA checkpoint holds its towers, which the original code ignores: it downloads LanguageBind's instead.
Here a tower comes from the folder that the caller names, else from the checkpoint, else from a LanguageBind
folder beside it, else from the hub. The tower's config is LanguageBind's in each case.
"""

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from minivllava.checkpoints.filling import StoredPart
from minivllava.checkpoints.hub import Source
from minivllava.checkpoints.huggingface import language_config, refuse_unless, section, vision_config
from minivllava.checkpoints.layouts import layout_of
from minivllava.checkpoints.names import LLAMA, TEXT, VISION, names_under
from minivllava.checkpoints.weights import Weights
from minivllava.config import ModelConfig, TextConfig, VisionConfig
from minivllava.errors import CheckpointError
from minivllava.models.languagebind import LanguageBindConfig
from minivllava.models.layers import ACTIVATIONS

CLIP_TEXT = {  # what LanguageBind takes for fields that a config.json leaves out
    "vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12,
    "num_attention_heads": 8, "max_position_embeddings": 77, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
}  # fmt: skip
PROJECTOR = {"linear1": "0", "linear2": "2"}
TOWERS = {"image": "LanguageBind/LanguageBind_Image", "video": "LanguageBind/LanguageBind_Video_merge"}
# peft wraps the encoder, and newer versions of it the adapted layer too
SPELLINGS = [(r"\.base_model\.model\.", "."), (r"\.base_layer\.", "."), (r"(\.lora_[AB])\.[^.]+\.", r"\1.")]


def spelling(name: str) -> str:
    """A LanguageBind tensor's name without what peft put around it."""
    for pattern, replacement in SPELLINGS:
        name = re.sub(pattern, replacement, name)
    return name


# LanguageBind


def tower_config(source: Source) -> VisionConfig:
    """The encoder of a LanguageBind folder. Raises CheckpointError."""
    where, card = source.folder / "config.json", source.card
    bound = layout_of(card).kind == "languagebind"
    refuse_unless(bound, where, f"model_type {card.get('model_type')!r} is no LanguageBind encoder")
    vision = section(card, "vision_config", where)
    temporal = bool(vision.get("add_time_attn"))
    config = vision_config(vision, where, temporal=temporal, patch_dropout=vision.get("force_patch_dropout") or 0.0)
    return replace(config, frames=vision["num_frames"]) if temporal else config


def languagebind_config(source: Source) -> LanguageBindConfig:
    """The encoder and the text encoder of a LanguageBind folder. Raises CheckpointError."""
    card, where = source.card, source.folder / "config.json"
    text = section(card, "text_config", where)
    text = CLIP_TEXT | {name: value for name, value in text.items() if value is not None}
    refuse_unless(text["hidden_act"] in ACTIVATIONS, where, f"hidden_act {text['hidden_act']!r} is unknown here")
    return LanguageBindConfig(
        encoders={modality(card): tower_config(source)},
        text=TextConfig(
            vocab_size=text["vocab_size"], context=text["max_position_embeddings"], width=text["hidden_size"],
            layers=text["num_hidden_layers"], heads=text["num_attention_heads"],
            mlp_width=text["intermediate_size"], activation=text["hidden_act"], norm_eps=text["layer_norm_eps"],
        ),
        embed_dim=card.get("projection_dim", 512),
    )  # fmt: skip


def modality(card: dict) -> str:
    """What a LanguageBind checkpoint's encoder sees: "image", "video", "depth", ..."""
    return card["model_type"].removeprefix("LanguageBind").lower()


def languagebind_parts(source: Source, ours: Iterable[str]) -> list[StoredPart]:
    """Where a LanguageBind model's tensors are."""
    ours, kind = list(ours), modality(source.card)
    names = names_under(ours, "text_encoder.", "text_model.", TEXT)
    names |= {f"projections.{kind}.weight": "visual_projection.weight"}
    names |= {"text_projection.weight": "text_projection.weight", "logit_scale": "logit_scale"}
    names |= names_under(ours, f"encoders.{kind}.", "vision_model.", VISION)
    return [_with_lora(StoredPart(Weights(source.weights_folder(), spelling), names), source)]


def tower_part(source: Source, ours: Iterable[str], prefix: str) -> StoredPart:
    """Where the tensors of one encoder are, in a LanguageBind folder; `prefix` is the encoder's in our names."""
    names = names_under(ours, prefix, "vision_model.", VISION)
    others = ("text_model.", "visual_projection.", "text_projection.", "logit_scale")
    return _with_lora(StoredPart(Weights(source.weights_folder(), spelling), names, elsewhere=others), source)


def _with_lora(part: StoredPart, source: Source) -> StoredPart:
    """Adds the adapters that a folder holds beside the weights, as LanguageBind_Depth does.

    A projection that has one in any layer must have one in every layer.
    """
    stored = part.weights.entries
    adapted = {_row(name.split(".lora_")[0]) for name in stored if ".lora_" in name}
    for ours, name in part.names.items():
        stem = name.removesuffix(".weight")
        if _row(stem) in adapted and name.endswith(".weight"):
            part.lora[ours] = (f"{stem}.lora_A.weight", f"{stem}.lora_B.weight")
    if part.lora:
        where = source.folder / "config.json"
        vision = section(source.card, "vision_config", where)
        first = stored.get(next(iter(part.lora.values()))[0])
        rank = vision.get("lora_r") or (first.shape[0] if first and first.shape else 1)
        alpha = 16 if vision.get("lora_alpha") is None else vision["lora_alpha"]
        refuse_unless(type(rank) is int and rank > 0, where, f"lora_r {rank!r}: a whole number above 0 is needed")
        refuse_unless(type(alpha) in (int, float), where, f"lora_alpha {alpha!r}: a number is needed")
        part.lora_rank, part.lora_scale = rank, alpha / rank
    return part


def _row(name: str) -> str:
    return re.sub(r"\.\d+\.", ".#.", name)


# Video-LLaVA


class Original:
    """A published Video-LLaVA: its config, and where its tensors are. Raises CheckpointError."""

    def __init__(self, source: Source, image_encoder=None, video_encoder=None):
        self.source, card = source, source.card
        where = source.folder / "config.json"
        self.named = {"image": image_encoder, "video": video_encoder}
        self.towers = {kind: self._tower(kind) for kind in TOWERS}
        encoders = {kind: self._tower_config(kind, tower) for kind, tower in self.towers.items()}
        for kind, config in encoders.items():
            refuse_unless(
                config.width == card.get("mm_hidden_size", config.width), where,
                f"mm_hidden_size {card.get('mm_hidden_size')!r}, and the {kind} encoder's width is {config.width}",
            )  # fmt: skip
        projector = card.get("mm_projector_type", "mlp2x_gelu")
        refuse_unless(
            projector == "mlp2x_gelu", where, f"mm_projector_type {projector!r}: only mlp2x_gelu is supported"
        )
        aspect = card.get("image_aspect_ratio")
        known = aspect in (None, "pad", "square")
        refuse_unless(known, where, f"image_aspect_ratio {aspect!r}: only pad and square are supported")
        feature = card.get("mm_vision_select_feature")
        known = feature in (None, "patch", "cls_patch")
        refuse_unless(known, where, f"mm_vision_select_feature {feature!r}: only patch and cls_patch are supported")
        for name in ("mm_use_im_start_end", "mm_use_im_patch_token"):
            refuse_unless(not card.get(name), where, f"{name} is set, and tokens around visuals are not supported")
        self.config = ModelConfig(
            **encoders,
            language=language_config(card, where),
            select_layer=card.get("mm_vision_select_layer", -2),
            keep_cls_image=feature == "cls_patch",
            keep_cls_video=True,  # whatever mm_vision_select_feature says, in the public code since 2024
            template="v1",
            aspect="pad" if aspect == "pad" else "square",
            antialias=False,
        )

    def _tower(self, kind: str) -> Source | None:
        """The LanguageBind folder of a tower: the one named by the caller, or one at hand."""
        if self.named[kind] is not None:
            return Source.find(self.named[kind])
        name = self._name(kind)
        here = self.source.folder
        beside = [
            parent / way
            for parent in (here.absolute().parent, here.resolve().parent)
            for way in (Path(name).name, name)
        ]
        for folder in (*beside, Path(name)):
            if (folder / "config.json").is_file():
                return Source(str(folder), folder)
        return None

    def _name(self, kind: str) -> str:
        """What config.json calls a tower."""
        name = self.source.card.get(f"mm_{kind}_tower")
        where = self.source.folder / "config.json"
        named = isinstance(name, str) and Path(name).name
        refuse_unless(named, where, f"mm_{kind}_tower {name!r} names no encoder: give {kind}_encoder=FOLDER")
        return name

    def _tower_config(self, kind: str, tower: Source | None) -> VisionConfig:
        if tower is not None:
            return self._fitting(kind, tower)
        published = VisionConfig(temporal=kind == "video")
        if self._name(kind) == TOWERS[kind] and self.source.card.get("mm_hidden_size") == published.width:
            return published
        return self._fitting(kind, self._from_hub(kind))

    def _fitting(self, kind: str, tower: Source) -> VisionConfig:
        """A tower's config, if it is one of this kind."""
        config, where = tower_config(tower), tower.folder / "config.json"
        seen = modality(tower.card)
        refuse_unless(seen == kind, where, f"this encoder sees {seen}s; give {kind}_encoder= LanguageBind's of {kind}s")
        return config

    def _from_hub(self, kind: str) -> Source:
        name = self._name(kind)
        try:
            return Source.find(name)
        except CheckpointError as error:
            raise CheckpointError(
                f"{self.source.folder} needs its {kind} encoder {name}, which is not beside it: give "
                f"{kind}_encoder=FOLDER, or put {Path(name).name} beside it. {error}"
            ) from error

    def parts(self, ours: Iterable[str]) -> list[StoredPart]:
        """Where the model's tensors are."""
        ours = list(ours)
        weights = Weights(self.source.weights_folder())
        names = names_under(ours, "language_model.", "", LLAMA)
        names |= names_under(ours, "projector.", "model.mm_projector.", PROJECTOR)
        own, parts = StoredPart(weights, names), []
        for kind in TOWERS:
            prefix = f"model.{kind}_tower."
            if self.named[kind] is None and any(name.startswith(prefix) for name in weights.entries):
                own.names |= names_under(ours, f"{kind}_encoder.", f"{prefix}{kind}_tower.", VISION)
            else:
                own.elsewhere += (prefix,)
                parts.append(tower_part(self.towers[kind] or self._from_hub(kind), ours, f"{kind}_encoder."))
        return [own, *parts]
