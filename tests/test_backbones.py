"""Parts of `transformers` behind our interfaces: same numbers, same answers, saved and loaded like our own."""

import json
import math
import sys
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import pytest
import torch
from foreign import write_language_model, write_tower
from tiny import tiny_config, tiny_languagebind, tiny_tokenizer, tiny_vllava, training, write_records
from torch import nn

from minivllava.chat import Conversation, answer_prompts
from minivllava.checkpoints import loading, memory
from minivllava.checkpoints import quantize as quantization
from minivllava.checkpoints.backbones import (
    assemble_backbones,
    load_any_language,
    load_causal_lm,
    load_encoder,
    load_tower,
    part_config,
)
from minivllava.checkpoints.saving import save_model
from minivllava.config import ModelConfig
from minivllava.data.records import load_records
from minivllava.data.tokenizer import Tokenizer
from minivllava.errors import CheckpointError, ConfigError
from minivllava.models.generate import Sampling, generate
from minivllava.models.language import LanguageModel
from minivllava.models.languagebind import LanguageBind, LanguageBindConfig
from minivllava.models.transformers_language import TransformersLanguageModel
from minivllava.models.transformers_vision import VisionTower
from minivllava.models.vllava import VideoLLaVA
from minivllava.overrides import from_dict, to_dict
from minivllava.run_config import TrainingConfig
from minivllava.training.lora import lora, lora_recipe
from minivllava.training.recompute import check_recomputation
from minivllava.training.stages import stage2

KINDS = ["Qwen2", "GPT2", "Llama", "Mistral", "Gemma3Text"]


@pytest.fixture(scope="module", params=KINDS)
def language(request, tmp_path_factory):
    folder = write_language_model(tmp_path_factory.mktemp(request.param), request.param)
    return load_causal_lm(folder)[0]


def test_logits_are_those_of_transformers(language):
    ids = torch.randint(3, 320, (2, 9))
    with torch.no_grad():
        theirs = language.model(input_ids=ids).logits
        ours = language.logits(language(language.embed(ids)))
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_conversations_of_different_lengths_are_continued_as_alone_and_as_transformers_does(language):
    ids, lengths = torch.randint(3, 320, (3, 9)), torch.tensor([9, 3, 6])
    embeddings = language.embed(ids)
    together = generate(language, embeddings, lengths, stop=(2,), sampling=Sampling(8))
    for row, length in enumerate(lengths.tolist()):
        alone = generate(language, embeddings[row : row + 1, :length], lengths[row : row + 1], (2,), Sampling(8))
        theirs = language.model.generate(
            ids[row : row + 1, :length],
            attention_mask=torch.ones(1, length, dtype=torch.long),
            max_new_tokens=8,
            do_sample=False,
            eos_token_id=2,
        )[0, length:].tolist()
        theirs = theirs[: theirs.index(2)] if 2 in theirs else theirs
        assert together[row] == alone[0] == theirs


def test_patterns_are_causal_and_sum_to_one(language):
    patterns = []
    embeddings = language.embed(torch.randint(3, 320, (1, 6)))
    hidden = language(embeddings, on_attention=patterns.append)
    assert len(patterns) == language.model.config.get_text_config().num_hidden_layers
    assert torch.allclose(patterns[0].sum(-1), torch.ones(1, 4, 6), atol=1e-5)
    assert torch.allclose(hidden, language(embeddings), atol=1e-4)


def test_a_llama_becomes_our_decoder_and_others_stay_what_they_are(tmp_path):
    ours, tokenizer = load_any_language(write_language_model(tmp_path / "llama", "Llama"))
    theirs, _ = load_causal_lm(tmp_path / "llama")
    ids = torch.randint(3, 320, (1, 7))
    assert isinstance(ours, LanguageModel) and len(tokenizer) <= 320 and ours.config.stop == (2, 7)
    assert torch.allclose(ours.logits(ours(ours.embed(ids))), theirs.logits(theirs(theirs.embed(ids))), atol=1e-4)
    other, _ = load_any_language(write_language_model(tmp_path / "qwen", "Qwen2"))
    assert isinstance(other, TransformersLanguageModel) and other.config.stop == (2, 7)


def test_a_llama_that_our_decoder_cannot_be_stays_what_it_is(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = write_language_model(tmp_path, "Llama")
    config = LlamaConfig.from_pretrained(folder, attention_bias=True)
    LlamaForCausalLM(config).save_pretrained(folder)
    language, _ = load_any_language(folder)
    assert isinstance(language, TransformersLanguageModel)


@pytest.mark.parametrize(
    "kind, told",
    [
        ("FalconH1", "'falcon_h1' cannot be used here: 'full_attention'"),
        ("Gemma4Text", "'gemma4_text' cannot read visual tokens in torch.float32"),
    ],
)
def test_models_that_would_answer_wrongly_or_not_at_all_are_refused(tmp_path, kind, told):
    with pytest.raises(ConfigError, match=told):
        load_any_language(write_language_model(tmp_path, kind))


def test_windows_that_are_counted_from_the_longest_row_are_refused(tmp_path):
    file = write_language_model(tmp_path, "GPTNeo") / "config.json"
    layers = {"attention_types": [[["global", "local"], 1]], "attention_layers": ["global", "local"]}
    file.write_text(json.dumps(json.loads(file.read_text()) | layers))
    with pytest.raises(ConfigError, match="'gpt_neo' has layers that see only the last tokens"):
        load_any_language(tmp_path)


def test_a_dtype_that_a_language_model_cannot_have(tmp_path):
    foreign_vllava(tmp_path, "XGLM").save_pretrained(tmp_path / "saved")
    VideoLLaVA.from_pretrained(tmp_path / "saved")
    with pytest.raises(ConfigError, match="'xglm' cannot read visual tokens in torch.bfloat16"):
        VideoLLaVA.from_pretrained(tmp_path / "saved", dtype="bfloat16")


def test_the_context_is_that_in_which_longrope_is_the_same_for_all_rows(tmp_path):
    language, _ = load_any_language(write_language_model(tmp_path, "Phi3"))
    assert language.config.context == part_config(tmp_path, "language").context == 32


@pytest.mark.parametrize("kind", ("language", "tower"))
def test_what_is_too_large_for_the_memory_is_refused_before_it_is_loaded(tmp_path, monkeypatch, kind):
    write, load = {
        "language": (lambda: write_language_model(tmp_path, "Qwen2"), load_causal_lm),
        "tower": (lambda: write_tower(tmp_path), load_tower),
    }[kind]
    folder = write()
    monkeypatch.setattr(memory, "free_memory", lambda device: 1000)
    with pytest.raises(CheckpointError, match="1,000|free on cpu"):
        load(folder)


def test_a_config_that_asks_for_more_than_the_files_hold_is_refused_before_it_is_built(tmp_path, monkeypatch):
    """What transformers would make room for first: gigabytes, here."""
    for write, load in ((lambda: write_language_model(tmp_path / "a", "Qwen2"), load_causal_lm),
                        (lambda: write_tower(tmp_path / "b", "Siglip"), load_tower)):  # fmt: skip
        folder = write()
        card = json.loads((folder / "config.json").read_text())
        sizes = card.get("vision_config", card)
        sizes["hidden_size"] = 2**15
        sizes["intermediate_size"] = 2**17
        (folder / "config.json").write_text(json.dumps(card))
        with pytest.raises(CheckpointError, match="config.json describes [0-9,]+ weights and the files hold"):
            load(folder)


@pytest.mark.parametrize(
    "field, value",
    [
        ("rope_parameters", "linear"),
        ("rope_scaling", [2.0]),
        ("max_position_embeddings", "128"),
        ("num_key_value_heads", 3),
        ("num_key_value_heads", 0),
        ("hidden_size", "32"),
    ],
)
def test_a_llama_that_nobody_can_build_is_refused_by_the_name_of_its_folder(tmp_path, field, value):
    folder = write_language_model(tmp_path / "model", "Llama")
    card = json.loads((folder / "config.json").read_text())
    card.pop("rope_parameters") if field == "rope_scaling" else None
    (folder / "config.json").write_text(json.dumps(card | {field: value}))
    for load in (load_any_language, lambda folder: part_config(folder, "language")):
        with pytest.raises((CheckpointError, ConfigError), match=str(folder)):
            load(folder)


def test_models_that_are_no_decoders_are_refused(tmp_path):
    from transformers import MambaConfig, MambaForCausalLM

    folder = write_language_model(tmp_path, "Llama")
    MambaForCausalLM(
        MambaConfig(vocab_size=320, hidden_size=16, num_hidden_layers=1, max_position_embeddings=9)
    ).save_pretrained(folder)
    with pytest.raises(ConfigError, match="'mamba' cannot be used here"):
        load_causal_lm(folder)


def test_what_is_missing_is_named(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = write_language_model(tmp_path, "Qwen2")
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="missing model.norm.weight"):
        load_causal_lm(folder)
    with pytest.raises(ConfigError, match="'qwen2'.*CLIP or SigLIP"):
        load_encoder(folder, "image")


@pytest.mark.parametrize("stop", [2.5, "2", ["</s>"], [2, None], True])
def test_a_stop_token_that_is_no_number_is_refused(tmp_path, stop):
    file = write_language_model(tmp_path, "Qwen2") / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": stop}))
    with pytest.raises(CheckpointError, match=f"{tmp_path}: .*eos_token_id"):
        load_causal_lm(tmp_path)


@pytest.mark.parametrize(
    "tensor, words",
    [
        (torch.ones(31), r"model.norm.weight is \(31,\), not \(32,\)"),
        (torch.ones(32, dtype=torch.int64), "model.norm.weight is quantised"),
        (torch.ones(32, dtype=torch.complex64), "model.norm.weight is quantised"),
    ],
)
def test_what_is_misshapen_or_no_weight_is_named(tmp_path, tensor, words):
    from safetensors.torch import load_file, save_file

    folder = write_language_model(tmp_path, "Qwen2")
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = tensor
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=words):
        load_causal_lm(folder)


@pytest.mark.parametrize(
    "kind, attention",
    [
        ("GPT2", "transformer.h.1.attn"),
        ("GPTJ", "transformer.h.1.attn"),
        ("GPTNeo", "transformer.h.1.attn.attention"),
        ("GPTNeoX", "gpt_neox.layers.1.attention"),
    ],
)
def test_constants_that_old_checkpoints_hold_beside_the_weights(tmp_path, kind, attention):
    from safetensors.torch import load_file, save_file

    folder = write_language_model(tmp_path, kind)
    before = load_causal_lm(folder)[0]
    weights = load_file(folder / "model.safetensors")
    weights |= {f"{attention}.bias": torch.ones(1, 1, 8, 8, dtype=torch.bool)}
    weights |= {f"{attention}.masked_bias": torch.tensor(-1e9)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    ids = torch.tensor([[5, 9, 11]])
    assert torch.equal(before.model(ids).logits, load_causal_lm(folder)[0].model(ids).logits)


def test_code_that_comes_with_a_model_is_never_run_and_never_asked_about(tmp_path, monkeypatch):
    folder = write_language_model(tmp_path / "model", "Qwen2")
    (folder / "theirs.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: ...\n")
    card = json.loads((folder / "config.json").read_text())
    card |= {"model_type": "theirs", "auto_map": {"AutoConfig": "theirs.Config"}}
    (folder / "config.json").write_text(json.dumps(card))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(CheckpointError, match="cannot be read by transformers"):
        load_causal_lm(folder)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(CheckpointError, match="no tokenizer that can be read"):
        Tokenizer.from_pretrained(folder)
    assert not (tmp_path / "ran").exists()


# vision towers


@pytest.mark.parametrize("kind, has_cls", [("CLIP", True), ("Siglip", False)])
def test_hidden_states_are_those_of_transformers(kind, has_cls, tmp_path):
    import transformers

    tower = load_tower(write_tower(tmp_path, kind))
    theirs = getattr(transformers, f"{kind}VisionModel").from_pretrained(tmp_path)
    clip = torch.randn(2, 3, 3, 16, 16)
    with torch.no_grad():
        output = theirs(clip[:, 0], output_hidden_states=True)
        images, clips = tower(clip[:, 0]), tower(clip)
    assert len(images.hidden) == 4
    for ours, their in zip(images.hidden, output.hidden_states, strict=True):
        assert torch.allclose(ours, their, atol=1e-5)
    assert torch.allclose(images.pooled, output.pooler_output, atol=1e-5)
    assert torch.allclose(clips.hidden[-2][:, 0], images.hidden[-2], atol=1e-5), "clips: frame by frame"
    assert tower.features(clip[:, 0]).shape == (2, 4, 16) and tower.features(clip).shape == (2, 3, 4, 16)
    assert tower.features(clip, keep_cls=True).shape == (2, 3, 4 + has_cls, 16)
    assert tower.config.mean == ((0.5, 0.5, 0.5) if kind == "Siglip" else tiny_config().image.mean)


def test_our_temporal_attention_stands_before_the_layers_of_a_tower(tmp_path):
    image = load_tower(write_tower(tmp_path))
    video = VisionTower.from_image_encoder(replace(image.config, temporal=True, frames=4), image).eval()
    clip = torch.randn(1, 4, 3, 16, 16)
    order = torch.tensor([2, 0, 3, 1])
    frames = image(clip).hidden[-2]
    assert torch.allclose(image(clip[:, order]).hidden[-2], frames[:, order], atol=1e-5)
    assert not torch.allclose(video(clip[:, order]).hidden[-2], video(clip).hidden[-2][:, order], atol=1e-2)
    names = {name for name, p in video.named_parameters() if any(p is q for q in video.temporal_parameters())}
    assert names and all(name.startswith("temporal.") for name in names)
    for part in video.temporal:  # silenced, what is left is the tower
        part.temporal_attention.output.weight.data.zero_()
        part.temporal_attention.output.bias.data.zero_()
        part.temporal_embedding.data.zero_()
    assert torch.allclose(video(clip).hidden[-2], frames, atol=1e-5)
    deeper = replace(video.config, tower=video.config.tower | {"num_hidden_layers": 5})
    with pytest.raises(ConfigError, match=r"video.num_hidden_layers is 5, image.num_hidden_layers is \d: set"):
        VisionTower.from_image_encoder(deeper, image)


def test_pixels_are_normalised_as_the_tower_was_trained(tmp_path):
    from minivllava.data.dataset import load_pixels

    write_records(tmp_path)
    tower = load_tower(write_tower(tmp_path / "tower", "Siglip"))
    config = ModelConfig(image=tower.config, video=tower.config, aspect="square")
    assert load_pixels(str(tmp_path / "white.png"), "image", config, 4).min() == pytest.approx(-1.0)
    clip = load_pixels(str(tmp_path / "white.mp4"), "video", config, 4)
    assert clip.shape == (4, 3, 16, 16) and clip.min() == pytest.approx(-1.0, abs=0.05)
    (tmp_path / "tower/preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0, 0, 0], "image_std": [1, 1, 1]})
    )
    assert load_tower(tmp_path / "tower").config.mean == (0, 0, 0)
    for card, mean in (({"image_mean": None, "image_std": None}, (0.5, 0.5, 0.5)), ({"image_mean": 0.25}, (0.25,) * 3)):
        (tmp_path / "tower/preprocessor_config.json").write_text(json.dumps(card))
        assert load_tower(tmp_path / "tower").config.mean == mean
    wrong = [{"image_mean": value} for value in ([0.5], [0.5] * 4, "x", ["a", "b", "c"], [True] * 3, {})]
    for card in (*wrong, {"image_std": [0, 1, 1]}, {"image_std": -1}, {"image_std": [math.inf] * 3}):
        (tmp_path / "tower/preprocessor_config.json").write_text(json.dumps(card))
        with pytest.raises(CheckpointError, match=f"preprocessor_config.json: {next(iter(card))} .* needed"):
            load_tower(tmp_path / "tower")
    (tmp_path / "tower/preprocessor_config.json").write_text('{"image_mean": [')
    with pytest.raises(CheckpointError, match="preprocessor_config.json is no JSON"):
        load_tower(tmp_path / "tower")


def test_the_config_of_a_bound_encoder_is_read_without_its_weights(tmp_path):
    tower = load_tower(write_tower(tmp_path / "tower")).config
    bound = tiny_languagebind()
    for name, encoders in (("ours", bound.config.encoders), ("towers", {"image": tower})):
        config = LanguageBindConfig(encoders, bound.config.text, bound.config.embed_dim)
        save_model(LanguageBind(config), tmp_path / name, "languagebind", tokenizer=tiny_tokenizer())
        assert part_config(tmp_path / name, "image") == encoders["image"]
    with pytest.raises(ConfigError, match="an encoder for image, and none for video"):
        part_config(tmp_path / "towers", "video")
    file = tmp_path / "ours/config.json"
    for broken, told in (("config", "no 'config'"), ("encoders", "lacks the field encoders"), ("width", "width")):
        card = json.loads(file.read_text())
        {"config": card, "encoders": card["config"]}.get(broken, card["config"]["encoders"]["image"]).pop(broken)
        (tmp_path / broken).mkdir()
        (tmp_path / broken / "config.json").write_text(json.dumps(card))
        with pytest.raises(CheckpointError, match=f"config.json does not fit this version: .*{told}"):
            part_config(tmp_path / broken, "image")
    (tmp_path / "video").mkdir()
    card = {"model_type": "LanguageBindVideo", "vision_config": {"add_time_attn": True}}
    (tmp_path / "video/config.json").write_text(json.dumps(card))
    with pytest.raises(CheckpointError, match="does not fit this version: no 'num_frames'"):
        part_config(tmp_path / "video", "video")


def test_a_vision_tower_is_no_language_model(tmp_path):
    with pytest.raises(ConfigError, match="does not say how long the context is"):
        part_config(write_tower(tmp_path), "language")


def test_a_cls_token_that_is_not_there_cannot_be_kept(tmp_path):
    tower = load_tower(write_tower(tmp_path, "Siglip"))
    with pytest.raises(ConfigError, match="keep_cls_image.*no CLS"):
        ModelConfig(image=tower.config, video=tower.config, keep_cls_image=True)


# the whole model


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> VideoLLaVA:
    return foreign_vllava(tmp_path_factory.mktemp("parts"))


def foreign_vllava(folder, kind="GPT2", tower="Siglip") -> VideoLLaVA:
    language, tokenizer = load_any_language(write_language_model(folder / kind, kind))
    encoder = load_encoder(write_tower(folder / tower, tower), "image")
    config = ModelConfig(template="chat", aspect="square")
    return assemble_backbones(config, encoder, load_encoder(folder / tower, "video"), language, tokenizer)


def test_a_model_of_such_parts_is_saved_and_loaded_like_any_other(model, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    again = VideoLLaVA.from_pretrained(tmp_path / "saved")
    assert again.config == model.config and from_dict(ModelConfig, to_dict(model.config)) == model.config
    for (name, ours), theirs in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    assert all(not buffer.is_meta for buffer in again.buffers())
    clip = torch.randn(8, 3, 16, 16)
    ids = torch.tensor([[5, *[-200] * 32, 9, 11]])
    assert torch.equal(model(ids, [clip]), again(ids, [clip]))
    inner = again.language_model.model
    assert inner.lm_head.weight is inner.get_input_embeddings().weight, "tied weights stay one"
    assert set(again.stop_tokens) == {2, 7}


def test_a_head_that_is_not_the_embedding_it_is_said_to_be_tied_to(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = write_language_model(tmp_path / "GPT2", "GPT2")
    stored = load_file(folder / "model.safetensors")
    stored["lm_head.weight"] = stored["transformer.wte.weight"] * 2 + 1
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    language, tokenizer = load_any_language(folder)
    assert not language.tied and not language.config.model["tie_word_embeddings"]
    encoder = load_encoder(write_tower(tmp_path / "tower"), "image")
    model = assemble_backbones(ModelConfig(template="chat"), encoder, encoder, language, tokenizer)
    model.save_pretrained(tmp_path / "saved")
    again = VideoLLaVA.from_pretrained(tmp_path / "saved")
    ids = torch.tensor([[5, 9, 11]])
    assert torch.equal(model(ids), again(ids))


def test_clips_have_as_many_frames_as_the_config_says(model):
    parts = (model.image_encoder, model.video_encoder, model.language_model, model.tokenizer)
    config = replace(model.config, video=replace(model.config.video, frames=4))
    assert assemble_backbones(config, *parts).config.video.frames == 4
    assert assemble_backbones(model.config, *parts).config == model.config
    temporal = tiny_vllava().video_encoder
    config = replace(model.config, video=replace(model.config.video, frames=temporal.config.frames + 1))
    with pytest.raises(ConfigError, match="model.video.frames is .* set the same"):
        assemble_backbones(config, model.image_encoder, temporal, model.language_model, model.tokenizer)


def test_it_answers_about_files(model, tmp_path):
    write_records(tmp_path)
    told = model.chat("What colour?", [tmp_path / "red.png"], [tmp_path / "red.mp4"], max_new_tokens=4)
    assert isinstance(told, str)


def recomputed_layers(language_model) -> int:
    """How many of its layers keep not all of their activations."""
    if isinstance(language_model, TransformersLanguageModel):
        model = language_model.model
        newer = hasattr(model, "is_activation_checkpointing")
        return 2 * (model.is_activation_checkpointing if newer else model.is_gradient_checkpointing)
    return sum("forward" in vars(layer) for layer in language_model.layers)


def test_a_language_model_that_cannot_recompute_says_so(tmp_path):
    model = foreign_vllava(tmp_path, "CTRL").language_model
    check_recomputation(model, training())
    with pytest.raises(ConfigError, match="recomputed_layers: .* 'ctrl': set it to 0"):
        check_recomputation(model, training(recomputed_layers=1))


@pytest.mark.parametrize("kind", ["ours", "Qwen2", "GPT2"])
@pytest.mark.parametrize("rank", [0, 2])
def test_recomputed_layers_train_the_same_model(kind, rank, tmp_path):
    if rank:
        pytest.importorskip("peft")
    records, trained, seen = load_records(write_records(tmp_path)), [], []
    for layers, elementwise in ((0, False), (2, False), (1, True)):
        model = tiny_vllava() if kind == "ours" else foreign_vllava(tmp_path, kind)
        model.language_model.register_forward_pre_hook(lambda module, _: seen.append(recomputed_layers(module)))
        recipe = training(recomputed_layers=layers, recompute_elementwise=elementwise, lora_rank=rank, lora_dropout=0.0)
        run = partial(stage2, model, records, recipe, tmp_path / f"{layers}", device="cpu", progress=False)
        if elementwise and kind != "ours":
            with pytest.raises(ConfigError, match="recompute_elementwise.*use recomputed_layers"):
                run()
            continue
        run()
        trained.append(model.state_dict())
        assert recomputed_layers(model.language_model) == 0
        assert set(seen) == {2 if elementwise else layers}
        seen.clear()
    for other in trained[1:]:
        for name, weight in trained[0].items():
            torch.testing.assert_close(other[name], weight, rtol=0, atol=1e-6, msg=name)


# LoRA


@pytest.mark.parametrize("kind", ["ours", "Qwen2", "GPT2"])
def test_lora_learns_beside_the_projector_and_is_merged(kind, tmp_path):
    pytest.importorskip("peft")
    model = tiny_vllava() if kind == "ours" else foreign_vllava(tmp_path, kind)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    recipe = training(lora_rank=2, lora_alpha=4, lora_dropout=0.0, projector_learning_rate=1e-4)
    records = load_records(write_records(tmp_path))
    stage2(model, records, recipe, tmp_path / "run", device="cpu", progress=False, cached=False)
    after = model.state_dict()
    assert list(before) == list(after), "no trace of the adapters is left"
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name for name in changed if name.startswith("projector.")}
    learned = {name for name in changed if not name.startswith("projector.")}
    assert learned and all(after[name].ndim == 2 for name in learned), "matrices alone"
    assert not {n for n in learned if "head" in n or "embed" in n or "wte" in n or "encoder" in n}
    for name in learned:  # an update of rank 2
        assert torch.linalg.matrix_rank(after[name] - before[name], rtol=1e-3) == 2, name
    moved = max((after[name] - before[name]).abs().max() for name in changed if name.startswith("projector."))
    assert moved < 5e-4, "4 steps at the projector's own rate of 1e-4"
    model.save_pretrained(tmp_path / "saved")
    again = VideoLLaVA.from_pretrained(tmp_path / "saved")
    outputs = [m.language_model(m.language_model.embed(torch.tensor([[4, 5]]))) for m in (model, again)]
    assert torch.allclose(*outputs, atol=1e-5)


def test_lora_resumes_to_the_same_weights(tmp_path):
    """In a new process, and on the very model that was interrupted, as in a notebook."""
    pytest.importorskip("peft")
    records = load_records(write_records(tmp_path))
    recipe = training(lora_rank=2, checkpoint_every=2)
    finished = {}
    for name in ("whole", "stopped", "same model"):
        model = tiny_vllava()
        if name != "whole":
            with pytest.raises(KeyboardInterrupt), stopped_after(3):
                stage2(model, records, recipe, tmp_path / name, device="cpu", progress=False)
            model = tiny_vllava() if name == "stopped" else model
        stage2(model, records, recipe, tmp_path / name, device="cpu", progress=False)
        finished[name] = model.state_dict()
    for name, weight in finished["whole"].items():
        assert torch.equal(weight, finished["stopped"][name]), name
        assert torch.equal(weight, finished["same model"][name]), name


@contextmanager
def stopped_after(steps: int):
    """Training is interrupted when it asks for the samples of step `steps`."""
    from minivllava.training import loop

    usual = loop.learning_rate

    def interrupted(step, config):
        if step == steps:
            raise KeyboardInterrupt
        return usual(step, config)

    loop.learning_rate = interrupted
    try:
        yield
    finally:
        loop.learning_rate = usual


def test_the_original_recipe_for_lora():
    recipe = lora_recipe(TrainingConfig(learning_rate=2e-5))
    assert (recipe.lora_rank, recipe.lora_alpha, recipe.learning_rate) == (128, 0, 2e-4)
    assert recipe.projector_learning_rate == 2e-5


# quantisation


@pytest.mark.parametrize("kind, most", [("int8", 0.02), ("int4", 0.25)])
def test_rounded_weights_give_nearly_the_same_logits(kind, most, tmp_path):
    pytest.importorskip("torchao")
    model = tiny_vllava()
    sizes = replace(model.config.language, width=64, mlp_width=96)
    torch.manual_seed(0)
    VideoLLaVA(replace(model.config, language=sizes), model.tokenizer).save_pretrained(tmp_path / "model")
    whole, rounded = (VideoLLaVA.from_pretrained(tmp_path / "model", quantize=q) for q in (None, kind))
    ids = torch.tensor([[1, *[-200] * 4, *range(20, 60)]])
    image = torch.randn(3, 16, 16)
    with torch.no_grad():
        logits, found = whole(ids, [image]), rounded(ids, [image])
    error = (found - logits).abs().mean() / logits.abs().mean()
    assert 0 < error < most
    assert torch.equal(whole.language_model.head.weight, rounded.language_model.head.weight)
    prompts = [[1, 30, 31], [1, 40]]
    assert [len(a) for a in answer_prompts(rounded, prompts, [[], []], Sampling(4))], "it answers batches"
    with pytest.raises(CheckpointError, match=f"rounded to {kind}"):
        rounded.save_pretrained(tmp_path / "again")


def test_rounded_weights_are_counted_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(quantization, "require_torchao", lambda kind: None)
    model = tiny_vllava()
    model.save_pretrained(tmp_path / "model")
    monkeypatch.setattr(loading, "_build", None)
    monkeypatch.setattr(memory, "free_memory", lambda device: 1000)
    with pytest.raises(CheckpointError, match=r"weights as int8, [0-9,]+ others\) and 0\.0 MB is free"):
        VideoLLaVA.from_pretrained(tmp_path / "model", quantize="int8")


def test_quantisation_that_is_not_there_says_what_to_install(tmp_path, monkeypatch):
    tiny_vllava().save_pretrained(tmp_path / "model")
    monkeypatch.setattr(loading, "_build", None)  # said before anything is loaded
    with pytest.raises(ConfigError, match="'int3'.*int8, int4"):
        VideoLLaVA.from_pretrained(tmp_path / "model", quantize="int3")
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(ConfigError, match="pip install torchao"):
        VideoLLaVA.from_pretrained(tmp_path / "model", quantize="int8")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match="pip install peft"), lora(nn.Linear(2, 2), training()):
        pass


def test_a_conversation_goes_on_from_its_cache(model, tmp_path):
    write_records(tmp_path)
    conversation = Conversation(model, sampling=Sampling(3))
    first = conversation.ask("What colour?", [tmp_path / "red.png"])
    second = conversation.ask("And <video> here?", videos=[tmp_path / "blue.mp4"])
    told = [("<image>\nWhat colour?", first)]
    files = {"images": [tmp_path / "red.png"], "videos": [tmp_path / "blue.mp4"]}
    assert second == model.chat("And <video> here?", **files, history=told, max_new_tokens=3)
    assert first == model.chat("What colour?", [tmp_path / "red.png"], max_new_tokens=3)
