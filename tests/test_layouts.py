"""Other people's checkpoints give what the code that they were made for gives: `transformers` is asked here, and
test_golden.py holds the figures of the original code."""

import inspect
import json
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign import fast_tokenizer
from safetensors.torch import load_file, save_file
from tiny import tiny_config, tiny_languagebind, tiny_vllava
from torch import nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
)

from minivllava import VideoLLaVA
from minivllava.checkpoints.convert import convert, losses, save_port
from minivllava.checkpoints.hub import Source
from minivllava.checkpoints.huggingface import model_config
from minivllava.checkpoints.layouts import layout_of
from minivllava.checkpoints.loading import load_language, load_languagebind, load_vllava
from minivllava.checkpoints.original import Original
from minivllava.checkpoints.saving import save_model
from minivllava.cli import app
from minivllava.config import CLIP_MEAN, CLIP_STD, RopeScaling, VisionConfig
from minivllava.data.conversation import VISUAL
from minivllava.data.dataset import load_pixels
from minivllava.data.media import frame_indices
from minivllava.data.tokenizer import Tokenizer
from minivllava.data.write_media import write_video
from minivllava.errors import CheckpointError, ConfigError
from minivllava.models.generate import Sampling, generate
from minivllava.models.language import LanguageModel
from minivllava.models.languagebind import LanguageBind

GOLDEN = Path(__file__).parent / "golden"
IMAGE, VIDEO = 100, 101  # the port's placeholder ids
CLOSE = {"rtol": 0, "atol": 1e-4}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Whatever lies in folders is read without a single connection."""

    def refuse(*_):
        raise AssertionError("a connection was made")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def shaken(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights large enough that every part shows in the result."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = torch.randn(parameter.shape, generator=generator) * (0.2 if parameter.ndim > 1 else 0.1)
            parameter.copy_(spread + ("norm" in name and name.endswith("weight")))
    return model.eval()


def edited(folder: Path, **fields) -> Path:
    """The folder, with other values in its config.json; `None` takes a field out."""
    file = folder / "config.json"
    card = json.loads(file.read_text())
    for name, value in fields.items():
        inner = card
        *path, name = name.split("__")
        for key in path:
            inner = inner[key]
        inner[name] = value
        if value is None:
            del inner[name]
    file.write_text(json.dumps(card))
    return folder


def refused(load, folder, *words):
    with pytest.raises(CheckpointError) as error:
        load(folder)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


# the port of Video-LLaVA to transformers


def port_model(**changes) -> VideoLlavaForConditionalGeneration:
    vision = CLIPVisionConfig(
        hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=2, image_size=28, patch_size=14,
        hidden_act=changes.pop("hidden_act", "quick_gelu"),
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=110, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, pad_token_id=0,
    )  # fmt: skip
    sizes = {"image_seq_length": 4, "video_seq_length": 40, "image_token_index": IMAGE, "video_token_index": VIDEO}
    return shaken(
        VideoLlavaForConditionalGeneration(
            VideoLlavaConfig(vision_config=vision, text_config=text, **(sizes | changes))
        )
    )


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    """The port's model, and the folder that it saved itself in."""
    model, folder = port_model(), tmp_path_factory.mktemp("port") / "saved"
    model.save_pretrained(folder)
    return model, folder


def respelt(folder: Path, out: Path, spelling: str) -> Path:
    """The same weights under the names of the hub, or of the model in memory."""
    shutil.copytree(folder, out)
    stored = load_file(folder / "model.safetensors")
    if spelling == "hub":
        changes = [("image_tower.", "image_tower.vision_model."), ("video_tower.", "video_tower.vision_model.")]
    else:
        changes = [("language_model.model.", "model.language_model."), ("language_model.lm_head.", "lm_head.")]
        changes += [(name, f"model.{name}") for name in ("image_tower.", "video_tower.", "multi_modal_projector.")]
    for old, new in changes:
        stored = {new + n.removeprefix(old) if n.startswith(old) else n: t for n, t in stored.items()}
    save_file(stored, out / "model.safetensors", metadata={"format": "pt"})
    return out


def row(*parts) -> list[int]:
    """Ids: a number is a token, "image" the places of an image, "video3" those of a clip of 3 frames."""
    ids = []
    for part in parts:
        kind, count = (part[:5], int(part[5:] or 1)) if isinstance(part, str) else (None, 0)
        ids += {"image": [IMAGE] * 4, "video": [VIDEO] * 5 * count, None: [part]}[kind]
    return ids


def theirs(port, rows: list[list[int]], visuals: list[torch.Tensor], pad_left: bool = False, **generation):
    """The port's logits of each row, or what it generates."""
    width = max(len(ids) for ids in rows)
    pads = [[0] * (width - len(ids)) for ids in rows]
    ids = torch.tensor([pad + ids if pad_left else ids + pad for ids, pad in zip(rows, pads, strict=True)])
    mask = (ids != 0).long()
    images, clips = ([v for v in visuals if v.ndim == axes] for axes in (3, 4))
    name = "pixel_values" if "pixel_values" in inspect.signature(port.forward).parameters else "pixel_values_images"
    media = ({name: torch.stack(images)} if images else {}) | (
        {"pixel_values_videos": torch.stack(clips)} if clips else {}
    )
    with torch.no_grad():
        if generation:
            made = port.generate(input_ids=ids, attention_mask=mask, **media, do_sample=False, **generation)
            return made[:, width:].tolist()
        logits = port(input_ids=ids, attention_mask=mask, **media).logits
    return [scores[kept.bool()] for scores, kept in zip(logits, mask, strict=True)]


@torch.no_grad()
def ours(model: VideoLLaVA, rows, visuals, places: int | None = None) -> list[torch.Tensor]:
    """Our logits of each row; `places` is written in place of the placeholder ids."""
    rows = [[places if places and i in (IMAGE, VIDEO) else i for i in ids] for ids in rows]
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(r) for r in rows], batch_first=True)
    return [scores[: len(r)] for scores, r in zip(model(ids, visuals), rows, strict=True)]


def image(seed: int) -> torch.Tensor:
    return torch.randn(3, 28, 28, generator=torch.Generator().manual_seed(seed))


def clip(seed: int, frames: int = 3) -> torch.Tensor:
    return torch.randn(frames, 3, 28, 28, generator=torch.Generator().manual_seed(seed))


CASES = {
    "image": ([row(1, 5, "image", 9, 7)], [image(0)]),
    "video": ([row(1, "video3", 8, 9)], [clip(1)]),
    "mixed": ([row(1, "video3", 6, "image", 9)], [clip(2), image(3)]),
    "padded": (
        [row(1, "image", 9), row(1, 4, "video3", 7, 11), row(1, 2, 3), row(1, "image", 8, "video3")],
        [image(4), clip(5), image(6), clip(7)],
    ),
}


@pytest.mark.parametrize("spelling", ["saved", "hub", "memory"])
def test_the_ports_logits(port, tmp_path, spelling):
    model, folder = port
    loaded = VideoLLaVA.from_pretrained(folder if spelling == "saved" else respelt(folder, tmp_path / "x", spelling))
    for rows, visuals in CASES.values():
        expected = theirs(model, rows, visuals)
        torch.testing.assert_close(ours(loaded, rows, visuals), expected, **CLOSE)
        torch.testing.assert_close(ours(loaded, rows, visuals, places=VISUAL), expected, **CLOSE)
    assert max(float(scores.std()) for scores in expected) > 0.1, "the test would not see much"


@torch.no_grad()
def test_the_ports_greedy_tokens(port):
    model, folder = port
    loaded = load_vllava(folder)
    rows, visuals = CASES["padded"]
    expected = theirs(model, rows, visuals, pad_left=True, max_new_tokens=6, eos_token_id=None)
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(r) for r in rows], batch_first=True)
    lengths = torch.tensor([len(r) for r in rows])
    made = generate(loaded.language_model, loaded.embed(ids, visuals), lengths, stop=(), sampling=Sampling(6))
    assert made == expected


@pytest.mark.parametrize(
    "changes",
    [
        {"vision_feature_select_strategy": "full", "vision_feature_layer": -1},
        {"hidden_act": "gelu", "vision_feature_layer": -3},
        {"vision_feature_layer": 1},
    ],
)
def test_the_ports_switches(tmp_path, changes):
    with_cls = changes.get("vision_feature_select_strategy") == "full"
    model = port_model(**changes)
    model.save_pretrained(tmp_path)
    loaded = load_vllava(tmp_path)
    rows, visuals = [row(1, "image", 7)], [image(0)]
    if with_cls:
        rows[0].insert(1, IMAGE)
    torch.testing.assert_close(ours(loaded, rows, visuals), theirs(model, rows, visuals), **CLOSE)
    torch.testing.assert_close(ours(loaded, *CASES["video"]), theirs(model, *CASES["video"]), **CLOSE)


def test_encoders_of_another_kind_are_refused():
    """Swapped, the video encoder's temporal attention would be gone without a word."""
    image, video, depth = (GOLDEN / f"LanguageBind_{name}" for name in ("Image", "Video_merge", "Depth"))
    for encoders, words in (
        ({"image_encoder": video, "video_encoder": image}, ("sees videos", "image_encoder=")),
        ({"image_encoder": depth}, ("sees depths", "LanguageBind's of images")),
        ({"video_encoder": image}, ("sees images", "LanguageBind's of videos")),
    ):
        refused(lambda folder, given=encoders: load_vllava(folder, **given), GOLDEN / "Video-LLaVA-tiny", *words)


def test_a_device_that_is_not_there_is_said_before_anything_is_read(monkeypatch):
    monkeypatch.setattr("minivllava.checkpoints.quantize.require_torchao", lambda kind: None)
    for options in ({}, {"quantize": "int8"}):
        with pytest.raises(ConfigError, match="The device foo cannot be used here"):
            load_vllava(GOLDEN / "Video-LLaVA-tiny", device="foo", **options)


SCALINGS = [None, RopeScaling("linear", 4.0), RopeScaling("llama3", 8.0, 1.0, 4.0, 16)]


@pytest.mark.parametrize("scaling", SCALINGS)
def test_a_language_model_is_written_for_transformers_and_read_again(tmp_path, scaling):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = tiny_vllava()
    model.language_model = LanguageModel(replace(model.config.language, rope_scaling=scaling)).eval()
    save_model(model.language_model, tmp_path / "ours", "language", tokenizer=model.tokenizer)
    report = convert(tmp_path / "ours", tmp_path / "llama", "huggingface")
    assert (report.kind, report.lost) == ("language", [])
    theirs, again = AutoModelForCausalLM.from_pretrained(tmp_path / "llama"), load_language(tmp_path / "llama")[0]
    ids = torch.tensor([[1, 7, 20, 33, 5]])
    with torch.no_grad():
        expected = model.language_model.logits(model.language_model(model.language_model.embed(ids)))
        torch.testing.assert_close(theirs(input_ids=ids).logits, expected, **CLOSE)
        torch.testing.assert_close(again.logits(again(again.embed(ids))), expected, **CLOSE)
    words = AutoTokenizer.from_pretrained(tmp_path / "llama")("a red square").input_ids
    assert words == [model.tokenizer.bos, *model.tokenizer.encode("a red square")]
    card = json.loads((tmp_path / "llama/tokenizer_config.json").read_text())
    assert card["tokenizer_class"] == "PreTrainedTokenizerFast", "version 4 knows no other name for it"
    assert not {"is_local", "local_files_only", "name_or_path"} & set(card)
    rope = json.loads((tmp_path / "llama/config.json").read_text())["rope_scaling"]
    assert rope is scaling or rope["type"] == scaling.kind
    assert not (scaling and scaling.kind == "linear") or set(rope) == {"type", "factor"}, "as version 4.42 wants it"


def test_what_the_port_is(port):
    config = load_vllava(port[1]).config
    assert not config.video.temporal and config.video.activation == config.image.activation == "quick_gelu"
    assert config.keep_cls_video and not config.keep_cls_image and config.video.frames == 8
    assert (config.image_token, config.video_token) == (IMAGE, VIDEO)
    assert (config.template, config.aspect, config.frame_sampling) == ("short", "square", "arange")
    chosen = load_vllava(port[1], keep_cls_video=False, aspect="pad", frame_sampling="linspace").config
    assert (chosen.keep_cls_video, chosen.aspect, chosen.frame_sampling) == (False, "pad", "linspace")
    with pytest.raises(ConfigError, match="keep_cls.*keep_cls_image"):
        load_vllava(port[1], keep_cls=True)
    with pytest.raises(ConfigError, match="image_encoder"):
        load_vllava(port[1], image_encoder=GOLDEN / "LanguageBind_Image")


def test_answers_end_where_generation_config_says(tmp_path, port):
    folder = shutil.copytree(port[1], tmp_path / "x")
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 50]}')
    model = load_vllava(folder)
    assert model.config.language.stop == (2, 50)
    save_port(model, tmp_path / "again", lossy=True)
    assert load_vllava(tmp_path / "again").config == model.config
    model.save_pretrained(tmp_path / "own")
    assert load_vllava(tmp_path / "own").config == model.config
    (folder / "generation_config.json").write_text('{"eos_token_id": "</s>"}')
    refused(load_vllava, folder, "generation_config.json", "eos_token_id", "token ids are needed")


def test_fields_that_the_hub_leaves_out(tmp_path, port):
    """The port's config.json on the hub says little: the rest is what `transformers` takes for granted."""
    folder = shutil.copytree(port[1], tmp_path / "x")
    left_out = (
        "projector_hidden_act",
        "vision_feature_layer",
        "vision_feature_select_strategy",
        "text_config__rms_norm_eps",
    )
    left_out += ("vision_config__hidden_act", "vision_config__layer_norm_eps", "text_config__rope_parameters")
    edited(folder, **dict.fromkeys(left_out), text_config__rope_theta=10_000.0)
    torch.testing.assert_close(ours(load_vllava(folder), *CASES["mixed"]), theirs(port[0], *CASES["mixed"]), **CLOSE)


def test_what_no_port_here_can_be(tmp_path, port):
    for number, (field, value, word) in enumerate(
        [
            ("vision_feature_layer", [-2, -1], "vision_feature_layer"),
            ("projector_hidden_act", "relu", "relu"),
            ("multimodal_projector_bias", False, "biases"),
            ("quantization_config", {"quant_method": "bitsandbytes"}, "full precision"),
            ("text_config__quantization_config", {"quant_method": "gptq"}, "full precision"),
            ("text_config__model_type", "qwen2", "qwen2"),
            ("vision_config__model_type", "siglip_vision_model", "siglip"),
            ("vision_config__hidden_act", "swish", "swish"),
            ("vision_config__image_size", [28, 14], "square"),
            ("vision_config__image_size", [28], "image_size [28]"),
            ("video_seq_length", "x", "video_seq_length 'x'"),
            ("text_config__num_hidden_layers", 100_000_000, "layers"),
            ("vision_config__num_attention_heads", 5, "heads"),
            ("vision_config__hidden_size", "24", "config.json"),
            ("vision_config__patch_size", [14, 7], "square patches"),
            ("vision_config__layer_norm_eps", "1e-5", "norm_eps"),
            ("vision_feature_layer", True, "select_layer"),
            ("text_config__rms_norm_eps", float("nan"), "norm_eps"),
            ("text_config__rope_parameters", {"rope_type": "default", "rope_theta": "1e4"}, "rope_theta"),
            ("text_config__rope_parameters", {"rope_type": "linear", "rope_theta": 1e4, "factor": 0}, "factor"),
            ("text_config__max_position_embeddings", 2.5, "context"),
            ("tie_word_embeddings", "false", "tie_embeddings"),
            ("image_token_index", -5, "image_token"),
            ("image_token_index", 99999, "image_token"),
            ("image_token_index", VIDEO, "both 101"),
        ]
    ):
        folder = shutil.copytree(port[1], tmp_path / str(number))
        refused(load_vllava, edited(folder, **{field: value}), "config.json", word)


def test_a_tokenizer_without_the_placeholders(tmp_path, port):
    folder = shutil.copytree(port[1], tmp_path / "x")
    Tokenizer.train(["a b c"], 100).save(folder / "tokenizer.json")
    refused(load_vllava, folder, "tokenizer", "<image>", str(IMAGE))


# language models


def llama(**changes) -> LlamaConfig:
    sizes = {
        "vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 4, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
    }  # fmt: skip
    return LlamaConfig(**(sizes | changes))


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMAS = {
    "vicuna": llama(),
    "vicuna-16k": llama(rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0}),
    "tinyllama": llama(num_key_value_heads=2),
    "smollm2": llama(num_key_value_heads=1, tie_word_embeddings=True),
    "llama3": llama(
        rope_parameters=LLAMA3 | {"original_max_position_embeddings": 16, "rope_theta": 500_000.0},
        num_key_value_heads=2, tie_word_embeddings=True,
    ),
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("name", LLAMAS)
def test_llamas(tmp_path, name):
    model = shaken(LlamaForCausalLM(LLAMAS[name]))
    model.save_pretrained(tmp_path, max_shard_size="20kB")
    loaded = LanguageModel.from_pretrained(tmp_path)
    assert (loaded.head.weight is loaded.token_embedding.weight) == LLAMAS[name].tie_word_embeddings
    ids = torch.randint(1, 60, (2, 50), generator=torch.Generator().manual_seed(0))
    embedded = loaded.embed(ids)
    torch.testing.assert_close(loaded.logits(loaded(embedded)), model(ids).logits, **CLOSE)
    made = generate(loaded, embedded, torch.tensor([50, 50]), stop=(), sampling=Sampling(5))
    expected = model.generate(ids, max_new_tokens=5, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert made == expected[:, 50:].tolist()


@torch.no_grad()
def test_configs_of_older_versions(tmp_path):
    """transformers 4 wrote `rope_theta` and `rope_scaling`, LLaMA's first checkpoints "type" for "rope_type"."""
    model = shaken(LlamaForCausalLM(LLAMAS["vicuna-16k"]))
    model.save_pretrained(tmp_path)
    edited(tmp_path, rope_parameters=None, rope_theta=10_000.0, rope_scaling={"type": "linear", "factor": 4.0})
    edited(tmp_path, head_dim=None, attention_bias=None, mlp_bias=None)
    stored = load_file(tmp_path / "model.safetensors")
    stored |= {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.ones(4) for n in range(2)}
    torch.save(stored, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    loaded, _ = load_language(tmp_path)
    ids = torch.arange(60)[None]
    torch.testing.assert_close(loaded.logits(loaded(loaded.embed(ids))), model(ids).logits, **CLOSE)


@torch.no_grad()
def test_mistral_up_to_its_window(tmp_path):
    model = shaken(MistralForCausalLM(MistralConfig(**llama(num_key_value_heads=2).to_diff_dict(), sliding_window=24)))
    model.save_pretrained(tmp_path)
    loaded, _ = load_language(tmp_path)
    assert loaded.config.context == 24
    ids = torch.arange(24)[None]
    torch.testing.assert_close(loaded.logits(loaded(loaded.embed(ids))), model(ids).logits, **CLOSE)


def test_a_mistral_beyond_its_window_is_no_llama(tmp_path):
    for window in (24, None):
        sizes = llama(num_key_value_heads=2).to_diff_dict()
        MistralForCausalLM(MistralConfig(**sizes, sliding_window=window)).save_pretrained(tmp_path / f"{window}")
    assert not convert(tmp_path / "None", tmp_path / "whole", "huggingface").lost
    refused(lambda folder: convert(folder, tmp_path / "x", "huggingface"), tmp_path / "24", "sliding window", "--lossy")
    assert "sliding window" in convert(tmp_path / "24", tmp_path / "x", "huggingface", lossy=True).lost[0]


def test_what_no_llama_here_can_be(tmp_path):
    LlamaForCausalLM(llama()).save_pretrained(tmp_path / "llama")
    yarn = {"rope_type": "yarn", "factor": 2.0}
    for number, (field, value, word) in enumerate(
        [
            ("model_type", "qwen2", "'qwen2'"),
            ("attention_bias", True, "attention_bias"),
            ("mlp_bias", True, "mlp_bias"),
            ("quantization_config", {"quant_method": "gptq"}, "full precision"),
            ("head_dim", 16, "head_dim"),
            ("hidden_size", "64", "hidden_size '64'"),
            ("rope_parameters", yarn, "yarn"),
            ("rope_parameters", LLAMA3 | {"factor": None}, "config.json"),
            ("hidden_act", "gelu", "gelu"),
            ("num_key_value_heads", 3, "kv_heads"),
        ]
    ):
        folder = shutil.copytree(tmp_path / "llama", tmp_path / str(number))
        refused(load_language, edited(folder, **{field: value}), "config.json", word)


def test_a_head_beside_the_embedding_that_it_is_tied_to(tmp_path):
    model = shaken(LlamaForCausalLM(LLAMAS["smollm2"]))
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    stored["lm_head.weight"] = stored["model.embed_tokens.weight"].clone()
    save_file(stored, tmp_path / "model.safetensors", metadata={"format": "pt"})
    load_language(tmp_path)
    stored["lm_head.weight"][3, 4] += 1
    save_file(stored, tmp_path / "model.safetensors", metadata={"format": "pt"})
    refused(load_language, tmp_path, "lm_head.weight", "tie")


# LanguageBind


def golden_copy(tmp_path: Path, name: str) -> tuple[Path, dict]:
    """A fixture to change: its folder, and its weights."""
    folder = shutil.copytree(GOLDEN / name, tmp_path / name)
    return folder, torch.load(folder / "pytorch_model.bin", weights_only=True)


@torch.no_grad()
def test_lora_is_folded_in(tmp_path):
    """On temporal attention as LanguageBind_Video has it, in the spelling of newer peft."""
    folder, stored = golden_copy(tmp_path, "LanguageBind_Video_merge")
    plain = LanguageBind.from_pretrained(folder).encoders["video"].layers
    generator = torch.Generator().manual_seed(0)
    renamed = {}
    for name, tensor in stored.items():
        name = name.replace("vision_model.encoder.", "vision_model.encoder.base_model.model.")
        if "temporal_attn" in name and name.endswith("proj.weight"):
            stem = name.removesuffix("weight")
            renamed[f"{stem}lora_A.default.weight"] = torch.randn(3, 48, generator=generator)
            renamed[f"{stem}lora_B.default.weight"] = torch.randn(48, 3, generator=generator)
        if "temporal_attn" in name:
            name = name.replace("proj.", "proj.base_layer.")
        renamed[name] = tensor
    torch.save(renamed, folder / "pytorch_model.bin")
    edited(folder, vision_config__lora_r=3, vision_config__lora_alpha=12)
    folded = LanguageBind.from_pretrained(folder).encoders["video"].layers
    for number, (before, after) in enumerate(zip(plain, folded, strict=True)):
        stem = f"vision_model.encoder.base_model.model.layers.{number}.temporal_attn.v_proj.lora_"
        added = 12 / 3 * renamed[f"{stem}B.default.weight"] @ renamed[f"{stem}A.default.weight"]
        value = before.temporal_attention.value.weight + added
        torch.testing.assert_close(after.temporal_attention.value.weight, value, rtol=0, atol=1e-6)
        assert torch.equal(before.attention.value.weight, after.attention.value.weight)


def test_lora_that_is_not_whole(tmp_path):
    folder, stored = golden_copy(tmp_path, "LanguageBind_Depth")
    stem = "vision_model.encoder.base_model.model.layers.1.self_attn.q_proj."
    del stored[f"{stem}lora_A.default.weight"], stored[f"{stem}lora_B.default.weight"]
    torch.save(stored, folder / "pytorch_model.bin")
    refused(load_languagebind, folder, "missing", "layers.1.self_attn.q_proj.lora_A", "q_proj.lora_B")
    stem = stem.replace("layers.1", "layers.0")
    torch.save(
        stored | {f"{stem}lora_A.default.weight": torch.ones(2, 48, dtype=torch.int8)}, folder / "pytorch_model.bin"
    )
    refused(load_languagebind, folder, "layers.0.self_attn.q_proj.lora_A", "quantised")
    edited(shutil.copytree(GOLDEN / "LanguageBind_Depth", tmp_path / "rank"), vision_config__lora_r=4)
    refused(load_languagebind, tmp_path / "rank", "lora_A", "(2, 48)", "(4, 48)")
    for field, value in (("lora_alpha", "16"), ("lora_r", "2"), ("lora_r", -1)):
        folder = shutil.copytree(GOLDEN / "LanguageBind_Depth", tmp_path / f"{field} {value}")
        refused(load_languagebind, edited(folder, **{f"vision_config__{field}": value}), "config.json", field)


def test_token_masking_of_the_depth_encoder(tmp_path):
    folder, _ = golden_copy(tmp_path, "LanguageBind_Depth")
    encoder = LanguageBind.from_pretrained(edited(folder, vision_config__force_patch_dropout=0.5)).encoders["depth"]
    pixels = torch.randn(2, 3, 28, 28)
    assert encoder(pixels).hidden[0].shape == (2, 17, 48)
    assert encoder.train()(pixels).hidden[0].shape == (2, 9, 48)


def test_languagebind_of_another_kind(tmp_path):
    folder, _ = golden_copy(tmp_path, "LanguageBind_Image")
    refused(load_languagebind, edited(folder, model_type="bert"), "config.json", "'bert'")
    refused(
        load_languagebind, edited(folder, model_type="LanguageBindAudio", vision_config__image_size=[7, 28]), "square"
    )


# the published Video-LLaVA


@pytest.fixture
def alone(tmp_path) -> Path:
    """The published layout, and nothing beside it."""
    return shutil.copytree(GOLDEN / "Video-LLaVA-tiny", tmp_path / "alone/Video-LLaVA-tiny")


TOWERS = {"image_encoder": GOLDEN / "LanguageBind_Image", "video_encoder": GOLDEN / "LanguageBind_Video_merge"}


def without_towers(folder: Path) -> Path:
    stored = torch.load(folder / "pytorch_model.bin", weights_only=True)
    torch.save({name: t for name, t in stored.items() if "tower" not in name}, folder / "pytorch_model.bin")
    return folder


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_the_towers_own_folders(alone):
    whole = load_vllava(GOLDEN / "Video-LLaVA-tiny")
    assert whole.config.video.temporal and whole.config.keep_cls_video and whole.config.aspect == "pad"
    assert not whole.config.antialias and load_vllava(GOLDEN / "Video-LLaVA-tiny", antialias=True).config.antialias
    refused(load_vllava, alone, "LanguageBind/LanguageBind_Image", "image_encoder=")
    assert same(load_vllava(alone, **TOWERS), whole)
    edited(without_towers(alone), mm_image_tower=None, mm_video_tower=None)
    assert same(load_vllava(alone, **TOWERS), whole), "nothing of them need be in the checkpoint"
    shutil.copy(GOLDEN / "Video-LLaVA-tiny/config.json", alone)
    for folder in TOWERS.values():
        shutil.copytree(folder, alone.parent / folder.name)
    assert same(load_vllava(alone), whole), "they lie beside it under the names that config.json gives"


def test_a_named_tower_comes_before_the_checkpoints_own(alone, tmp_path):
    folder, stored = golden_copy(tmp_path, "LanguageBind_Image")
    stored["vision_model.pre_layrnorm.bias"] += 1
    torch.save(stored, folder / "pytorch_model.bin")
    own, named = load_vllava(alone, **TOWERS), load_vllava(alone, **(TOWERS | {"image_encoder": folder}))
    torch.testing.assert_close(named.image_encoder.pre_norm.bias, own.image_encoder.pre_norm.bias + 1)


def test_the_published_sizes_need_no_other_folder(alone):
    edited(alone, mm_hidden_size=1024)
    config = Original(Source.find(alone)).config
    assert config.image == VisionConfig() and config.video == VisionConfig(temporal=True)


def test_temporal_tensors_are_missed(alone):
    stored = torch.load(alone / "pytorch_model.bin", weights_only=True)
    torch.save({name: t for name, t in stored.items() if "temporal" not in name}, alone / "pytorch_model.bin")
    lost = [name for name in stored if "temporal" in name]
    assert len(lost) == 33
    for folder in TOWERS.values():
        shutil.copytree(folder, alone.parent / folder.name)
    refused(load_vllava, alone, *lost)


def test_what_no_original_here_can_be(tmp_path):
    for number, (field, value, word) in enumerate(
        [
            ("mm_projector_type", "linear", "linear"),
            ("mm_use_im_start_end", True, "mm_use_im_start_end"),
            ("mm_hidden_size", 64, "64"),
            ("mm_hidden_size", "48", "mm_hidden_size '48'"),
            ("mm_vision_select_feature", "cls", "mm_vision_select_feature 'cls'"),
            ("mm_image_tower", "", "mm_image_tower ''"),
            ("model_type", "llava_mpt", "'llava_mpt'"),
            ("mm_image_tower", None, "image_encoder="),
        ]
    ):
        (tmp_path / str(number)).mkdir()
        folder = shutil.copytree(GOLDEN / "Video-LLaVA-tiny", tmp_path / str(number) / "x")
        for tower in TOWERS.values():
            shutil.copytree(tower, folder.parent / tower.name)
        refused(load_vllava, edited(folder, **{field: value}), "config.json", word)


# the hub


def test_hub_ids(monkeypatch, tmp_path):
    """Small files come first, and the weights in one format."""
    import huggingface_hub

    asked = []

    def snapshot(name, allow_patterns):
        assert name == "someone/Video-LLaVA"
        asked.append(allow_patterns)
        return str(GOLDEN / "Video-LLaVA-tiny")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert load_vllava("someone/Video-LLaVA", **TOWERS).config.video.temporal
    assert not any("bin" in pattern or "safetensors" in pattern for pattern in asked[0])
    assert asked[1:] == [["model*.safetensors"], ["pytorch_model*.bin"]]


def test_hub_ids_without_a_network(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    refused(load_vllava, "someone/no-such-model", "someone/no-such-model", "hub", "name the folder")
    (tmp_path / "runs").mkdir()
    refused(load_vllava, "runs/no-such-run", "no checkpoint folder")


# out again


def written_for_the_port(folder: Path) -> VideoLlavaForConditionalGeneration:
    loaded, info = VideoLlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return loaded.eval()


def test_round_trip_of_the_port(port, tmp_path):
    report = convert(port[1], tmp_path / "ours")
    assert report.tensors == len(load_file(port[1] / "model.safetensors")) and not report.lost
    assert json.loads((tmp_path / "ours/config.json").read_text())["format"] == "minivllava/1"
    convert(tmp_path / "ours", tmp_path / "back", "huggingface")
    for name in CASES:
        torch.testing.assert_close(
            theirs(written_for_the_port(tmp_path / "back"), *CASES[name]), theirs(port[0], *CASES[name]), rtol=0, atol=0
        )


def test_a_model_made_here_for_the_port(tmp_path):
    """Its vocabulary has no placeholders: they are added, and are never the likeliest token."""
    model = shaken(tiny_vllava(keep_cls_video=True))
    size = model.config.language.vocab_size
    model.save_pretrained(tmp_path / "ours")
    refused(lambda source: convert(source, tmp_path / "no", "huggingface"), tmp_path / "ours", "22 tensors", "--lossy")
    assert not (tmp_path / "no").exists()
    report = convert(tmp_path / "ours", tmp_path / "port", "huggingface", lossy=True)
    assert "22 tensors" in report.lost[0]
    made, again = written_for_the_port(tmp_path / "port"), load_vllava(tmp_path / "port")
    assert made.config.image_token_id == size and made.config.get_text_config().vocab_size == size + 3
    ids, visual = [1, 5] + [size] * 4 + [9], torch.randn(1, 3, 16, 16)
    expected = ours(model, [[VISUAL if i == size else i for i in ids]], visual)[0]
    found = theirs(made, [ids], [visual[0]])[0]
    torch.testing.assert_close(found[:, :size], expected, **CLOSE)
    assert (found.argmax(-1) < size).all()
    torch.testing.assert_close(again(torch.tensor([ids]), visual)[0], found, **CLOSE)

    from transformers import AutoTokenizer, VideoLlavaImageProcessor

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "port")
    text = "red<image> left"
    assert tokenizer(text).input_ids == [
        model.tokenizer.bos, *model.tokenizer.encode("red"), size, *model.tokenizer.encode(" left")
    ]  # fmt: skip
    assert tokenizer.pad_token == "<pad>" and tokenizer.eos_token_id == model.tokenizer.eos
    assert tokenizer.padding_side == "left"
    assert VideoLlavaImageProcessor.from_pretrained(tmp_path / "port").crop_size["height"] == 16

    convert(tmp_path / "port", tmp_path / "again")
    shutil.copy(tmp_path / "ours/tokenizer.json", tmp_path / "again")
    refused(load_vllava, tmp_path / "again", "tokenizer", "<image>", str(size))


def test_placeholders_that_a_tokenizer_has_already(tmp_path):
    tokenizer = fast_tokenizer(["<unk>", "<s>", "</s>", "<pad>", "<image>"], "<s>", "</s>", pad_token="<pad>")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    tokenizer = Tokenizer.from_pretrained(tmp_path / "tokenizer")
    model = VideoLLaVA(tiny_config(len(tokenizer)), tokenizer).eval()
    save_port(model, tmp_path / "port", lossy=True)
    again = load_vllava(tmp_path / "port")
    assert (again.config.image_token, again.config.video_token) == (4, len(tokenizer))
    assert again.tokenizer.pad == 3 and len(again.tokenizer) == again.config.language.vocab_size == len(tokenizer) + 1


def test_what_the_port_cannot_be(tmp_path):
    model = tiny_vllava(projector="linear")
    refused(lambda folder: save_port(model, folder, lossy=True), tmp_path / "x", "linear")
    with pytest.raises(CheckpointError, match="22 tensors.*without CLS"):
        save_port(tiny_vllava(), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_what_the_port_leaves_to_its_reader():
    """Its config.json says neither which frames of a clip are taken nor how a prompt is written."""
    plain = model_config({"model_type": "video_llava", "text_config": {"vocab_size": 32064}}, "config.json")
    assert losses(plain) == []
    assert "'v1'" in losses(replace(plain, template="v1"))[0]
    assert "'linspace'" in losses(replace(plain, frame_sampling="linspace"))[0]


def test_what_cannot_be_converted_is_said_before_its_weights_are_read(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "config.json").write_text('{"model_type": "qwen2_vl"}')
    refused(lambda folder: convert(folder, tmp_path / "out"), tmp_path / "x", "config.json", "'qwen2_vl'", "converted")
    LlamaForCausalLM(llama()).save_pretrained(tmp_path / "window")
    edited(tmp_path / "window", model_type="mistral", sliding_window=8)
    tiny_vllava(keep_cls_video=True).save_pretrained(tmp_path / "ours")
    for name, word in (("window", "sliding window"), ("ours", "22 tensors")):
        (tmp_path / name / "model.safetensors").unlink()
        refused(lambda folder: convert(folder, tmp_path / "out", "huggingface"), tmp_path / name, word, "--lossy")


def test_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "out"
    refused(lambda folder: convert(folder, out), GOLDEN / "LanguageBind_Image", str(out), "cannot be written")


def test_convert_on_the_command_line(tmp_path, capsys):
    from typer.testing import CliRunner

    run = CliRunner().invoke(app, ["convert", str(GOLDEN / "LanguageBind_Depth"), str(tmp_path / "depth")])
    assert run.exit_code == 0 and "languagebind" in run.output, run.output
    depth, _ = load_languagebind(tmp_path / "depth")
    assert same(depth, load_languagebind(GOLDEN / "LanguageBind_Depth")[0])
    out = str(tmp_path / "half")
    arguments = ["convert", str(GOLDEN / "Video-LLaVA-tiny"), out, "--dtype", "bfloat16"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert {t.dtype for t in load_file(tmp_path / "half/model.safetensors").values()} == {torch.bfloat16}
    assert CliRunner().invoke(app, arguments).exception.args[0].startswith(f"{out} is there already")


def test_our_other_kinds_can_be_converted(tmp_path):
    bound = tiny_languagebind()
    save_model(bound, tmp_path / "bound", "languagebind")
    convert(tmp_path / "bound", tmp_path / "half", dtype="float16")
    assert load_languagebind(tmp_path / "half")[0].config == bound.config
    with pytest.raises(ConfigError, match="holds bound encoders"):
        convert(tmp_path / "bound", tmp_path / "x", "huggingface")
    with pytest.raises(ConfigError, match="gguf"):
        convert(tmp_path / "bound", tmp_path / "x", "gguf")


@pytest.mark.parametrize(
    "card, layout",
    [
        ({"format": "minivllava/1", "kind": "language"}, ("language", "minivllava")),
        ({"model_type": "LanguageBindDepth"}, ("languagebind", "original")),
        ({"model_type": "llava"}, ("video-llava", "original")),
        ({"model_type": "llava", "text_config": {}}, ("llava", None)),  # of transformers: images alone
        ({"model_type": "video_llava", "text_config": {}}, ("video-llava", "transformers")),
        ({"model_type": "mistral"}, ("language", "transformers")),
        ({}, (None, None)),
    ],
)
def test_a_layout_is_told_by_its_config(card, layout):
    assert layout_of(card) == layout


# switches that are no weights


def test_frame_sampling(tmp_path):
    """The original's first reader, the port's example, and the original's other reader."""
    expected = {
        "linspace": [0, 4, 8, 13, 17, 22, 26, 31],
        "arange": [0, 4, 8, 12, 16, 20, 24, 28],
        "opencv": [0, 3, 7, 11, 15, 19, 23, 27],
    }
    assert {name: frame_indices(32, 8, name).tolist() for name in expected} == expected
    for name, total in ((name, total) for name in expected for total in range(1, 60)):
        indices = frame_indices(total, 8, name)
        assert len(indices) == 8 and indices.min() == 0 and indices.max() < total
    for total in range(1, 200):  # as in the port's README
        assert frame_indices(total, 8, "arange").tolist() == np.arange(0, total, total / 8).astype(int)[:8].tolist()
    with pytest.raises(ConfigError, match="backwards"):
        frame_indices(32, 8, "backwards")
    grey = np.arange(0, 160, 5, dtype=np.uint8)
    write_video(tmp_path / "x.mp4", np.broadcast_to(grey[:, None, None, None], (32, 16, 16, 3)).copy())
    config = tiny_vllava(frame_sampling="arange").config
    pixels = load_pixels(str(tmp_path / "x.mp4"), "video", config, 8)[:, 0].mean((1, 2)) * CLIP_STD[0] + CLIP_MEAN[0]
    assert np.abs(pixels.numpy() * 255 - grey[expected["arange"]]).max() < 3


def test_switches_that_do_not_exist():
    for change in ({"aspect": "stretch"}, {"frame_sampling": "random"}, {"image": VisionConfig(width=48, heads=4)}):
        with pytest.raises(ConfigError, match="stretch|random|width 48"):
            tiny_vllava(**change)


def test_a_temperature_that_passed_its_bound_comes_back():
    model = tiny_languagebind().train()
    with torch.no_grad():
        model.logit_scale.fill_(6.0)
    pixels, ids = torch.randn(4, 3, 16, 16), torch.arange(4)[:, None] + torch.arange(3)  # four wrong guesses at most
    model("image", pixels, ids).backward()
    assert model.logit_scale.item() == pytest.approx(np.log(100)) and model.logit_scale.grad.abs() > 0
    with torch.no_grad():
        model.logit_scale.fill_(6.0)
    model.eval()("image", pixels, ids)
    assert model.logit_scale.item() == 6.0, "looking at a model does not change it"
