"""The architecture equals the original code's: its figures, at a tiny size with random weights.

The original checkpoint names are mapped onto ours; every stored output must come out again within 1e-4.
"""

import json
import re
from pathlib import Path

import pytest
import torch
from einops import rearrange
from safetensors.torch import load_file

from minivllava.config import LanguageConfig, ModelConfig, TextConfig, VisionConfig
from minivllava.data.conversation import IGNORE, VISUAL
from minivllava.data.tokenizer import pad_rows
from minivllava.models.languagebind import LanguageBind, LanguageBindConfig, info_nce
from minivllava.models.vllava import VideoLLaVA

FOLDER = Path(__file__).parent / "golden"
TOLERANCE = {"rtol": 0, "atol": 1e-4}

# the original's names -> ours, for a LanguageBind tower, a text tower, and a LLaMA
ATTENTION = [(r"q_proj", "query"), (r"k_proj", "key"), (r"v_proj", "value"), (r"(out|o)_proj", "output")]
VISION = [
    (r"embeddings\.class_embedding", "embedding.cls"),
    (r"embeddings\.patch_embedding", "embedding.projection"),
    (r"embeddings\.position_embedding\.weight", "embedding.position"),
    (r"pre_layrnorm", "pre_norm"),
    (r"post_layernorm", "post_norm"),
    (r"encoder\.layers", "layers"),
    (r"temporal_attn", "temporal_attention"),
    (r"temporal_layer_norm1", "temporal_norm"),
    (r"self_attn", "attention"),
    (r"layer_norm(\d)", r"norm\1"),
    (r"mlp\.fc1", "mlp.up"),
    (r"mlp\.fc2", "mlp.down"),
    *ATTENTION,
]
TEXT = [
    (r"embeddings\.token_embedding", "token_embedding"),
    (r"embeddings\.position_embedding\.weight", "position"),
    (r"final_layer_norm", "post_norm"),
    *VISION,
]
LLAMA = [
    (r"model\.embed_tokens", "token_embedding"),
    (r"model\.norm", "norm"),
    (r"lm_head", "head"),
    (r"model\.layers", "layers"),
    (r"self_attn", "attention"),
    (r"post_attention_layernorm", "mlp_norm"),
    (r"input_layernorm", "attention_norm"),
    (r"(gate|up|down)_proj", r"\1"),
    *ATTENTION,
]
PROJECTOR = [(r"^0", "linear1"), (r"^2", "linear2")]


def rename(state: dict, prefix: str, rules: list, ours: str = "") -> dict:
    """The tensors under `prefix`, under our names; constant buffers are left out."""
    renamed = {}
    for name, tensor in state.items():
        if name.startswith(prefix) and not name.endswith(("inv_freq", "position_ids")):
            name = name[len(prefix) :]
            for old, new in rules:
                name = re.sub(old, new, name)
            renamed[ours + name] = tensor
    return renamed


def read(folder: str) -> tuple[dict, dict]:
    """(config, weights) of a folder in the original's layout."""
    card = json.loads((FOLDER / folder / "config.json").read_text())
    return card, torch.load(FOLDER / folder / "pytorch_model.bin", weights_only=True)


def vision_config(card: dict) -> VisionConfig:
    return VisionConfig(
        image_size=card["image_size"], patch_size=card["patch_size"], width=card["hidden_size"],
        layers=card["num_hidden_layers"], heads=card["num_attention_heads"],
        mlp_width=card["intermediate_size"], activation=card["hidden_act"], norm_eps=card["layer_norm_eps"],
        temporal=card["add_time_attn"], frames=card["num_frames"],
    )  # fmt: skip


def text_config(card: dict) -> TextConfig:
    return TextConfig(
        vocab_size=card["vocab_size"], context=card["max_position_embeddings"], width=card["hidden_size"],
        layers=card["num_hidden_layers"], heads=card["num_attention_heads"],
        mlp_width=card["intermediate_size"], activation=card["hidden_act"], norm_eps=card["layer_norm_eps"],
    )  # fmt: skip


def original_languagebind(folder: str, modality: str) -> LanguageBind:
    card, state = read(folder)
    model = LanguageBind(
        LanguageBindConfig(
            {modality: vision_config(card["vision_config"])},
            text_config(card["text_config"]),
            card["projection_dim"],
        )
    )
    weights = rename(state, "vision_model.", VISION, f"encoders.{modality}.")
    weights |= rename(state, "text_model.", TEXT, "text_encoder.")
    weights |= rename(state, "visual_projection.", [], f"projections.{modality}.")
    weights |= rename(state, "text_projection.", [], "text_projection.")
    weights["logit_scale"] = state["logit_scale"]
    model.load_state_dict(weights)
    return model.eval()


def original_vllava() -> VideoLLaVA:
    card, state = read("Video-LLaVA-tiny")
    image, video = (
        vision_config(read(f"LanguageBind_{name}")[0]["vision_config"]) for name in ("Image", "Video_merge")
    )
    language = LanguageConfig(
        vocab_size=card["vocab_size"], context=card["max_position_embeddings"], width=card["hidden_size"],
        layers=card["num_hidden_layers"], heads=card["num_attention_heads"],
        kv_heads=card["num_key_value_heads"], mlp_width=card["intermediate_size"],
        norm_eps=card["rms_norm_eps"],
    )  # fmt: skip
    model = VideoLLaVA(ModelConfig(image=image, video=video, language=language, keep_cls_video=True))
    weights = rename(state, "model.mm_projector.", PROJECTOR, "projector.")
    for modality in ("image", "video"):
        prefix = f"model.{modality}_tower.{modality}_tower."
        weights |= rename(state, prefix, VISION, f"{modality}_encoder.")
    rest = {
        name: tensor for name, tensor in state.items() if "tower" not in name and "mm_projector" not in name
    }
    model.load_state_dict(weights | rename(rest, "", LLAMA, "language_model."))
    return model.eval()


@pytest.fixture(scope="module")
def golden() -> dict:
    return load_file(FOLDER / "golden.safetensors")


@pytest.fixture(scope="module")
def bound() -> dict[str, LanguageBind]:
    return {
        "image": original_languagebind("LanguageBind_Image", "image"),
        "video": original_languagebind("LanguageBind_Video_merge", "video"),
    }


@pytest.fixture(scope="module")
def vllava() -> VideoLLaVA:
    return original_vllava()


def pixels(golden: dict, kind: str) -> torch.Tensor:
    """Pictures (b, c, h, w) or clips (b, t, c, h, w); the original puts a clip's channels first."""
    stored = golden[f"{kind}.pixels"]
    return stored if kind == "image" else rearrange(stored, "b c t h w -> b t c h w")


@torch.no_grad()
@pytest.mark.parametrize("kind", ["image", "video"])
def test_every_layer_of_the_encoders(golden, bound, vllava, kind):
    encoders = bound[kind].encoders[kind], getattr(vllava, f"{kind}_encoder")
    for encoder in encoders:
        hidden = encoder(pixels(golden, kind)).hidden
        expected = [golden[f"{kind}.hidden.{k}"] for k in range(len(hidden))]
        assert f"{kind}.hidden.{len(hidden)}" not in golden
        torch.testing.assert_close(hidden, expected, **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["image", "video"])
def test_joint_embeddings(golden, bound, kind):
    torch.testing.assert_close(
        bound[kind].embed(kind, pixels(golden, kind)), golden[f"{kind}.embed"], **TOLERANCE
    )


@torch.no_grad()
def test_text_embeddings(golden, bound):
    torch.testing.assert_close(
        bound["video"].embed_text(golden["text.ids"]), golden["text.embed"], **TOLERANCE
    )


@torch.no_grad()
def test_contrastive_loss(golden, bound):
    model = bound["video"]
    loss = model("video", pixels(golden, "video"), golden["text.ids"][:2])
    torch.testing.assert_close(loss[None], golden["contrastive.loss"], **TOLERANCE)
    loss = info_nce(golden["video.embed"], golden["text.embed"][:2], model.logit_scale)
    torch.testing.assert_close(loss[None], golden["contrastive.loss"], **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["image", "video"])
def test_visual_tokens(golden, vllava, kind):
    expected = golden[f"{kind}.projected"]
    tokens = vllava.projector(vllava.features(pixels(golden, kind)))
    if kind == "video":
        tokens = rearrange(tokens, "b (t n) d -> b t n d", t=expected.shape[1])
    torch.testing.assert_close(tokens, expected, **TOLERANCE)


def expanded(row: torch.Tensor, labels: torch.Tensor, kinds: list[str], config: ModelConfig):
    """The original's one -200 per picture and per frame, as one per visual token; labels to match."""
    sizes = [size for kind in kinds for size in
             ([config.visual_tokens("image")] if kind == "image" else
              [config.visual_tokens("video")] * config.video.frames)]  # fmt: skip
    ids, targets = [], []
    for token, label in zip(row.tolist(), labels.tolist(), strict=True):
        run = sizes.pop(0) if token == VISUAL else 1
        ids += [token] * run
        targets += [label] * run
    assert not sizes
    return ids, targets


@torch.no_grad()
@pytest.mark.parametrize("case", ["image", "video", "mixed"])
def test_logits_and_loss(golden, vllava, case):
    chosen = json.loads((FOLDER / "cases.json").read_text())[case]
    visuals = [pixels(golden, kind)[number] for kind, number in chosen]
    frames = vllava.config.video.frames
    rows, kinds = [], [kind for kind, _ in chosen]
    for number, mask in enumerate(golden[f"{case}.mask"]):
        row, labels = (golden[f"{case}.{name}"][number][mask.bool()] for name in ("input_ids", "labels"))
        slots, own = int((row == VISUAL).sum()), []
        while slots:
            own.append(kinds.pop(0))
            slots -= 1 if own[-1] == "image" else frames
        rows.append(expanded(row, labels, own, vllava.config))
    assert not kinds
    ids = pad_rows([ids for ids, _ in rows], 0)
    labels = pad_rows([labels for _, labels in rows], IGNORE)

    logits = vllava(ids, visuals)
    assert logits.shape == golden[f"{case}.logits"].shape
    for ours, theirs, (real, _) in zip(logits, golden[f"{case}.logits"], rows, strict=True):
        torch.testing.assert_close(ours[: len(real)], theirs[: len(real)], **TOLERANCE)
    loss = vllava(ids, visuals, labels)
    torch.testing.assert_close((loss.total / loss.tokens)[None], golden[f"{case}.loss"], **TOLERANCE)
