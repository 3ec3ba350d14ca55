"""The architecture: attention, encoders, language model, splicing, sizes."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from tiny import VISION, tiny_config, tiny_languagebind, tiny_vllava
from torch.nn.utils.rnn import pad_sequence

from minivllava.config import LanguageConfig, VisionConfig
from minivllava.data.conversation import IGNORE, VISUAL
from minivllava.data.tokenizer import pad_rows
from minivllava.errors import ConfigError, DataError
from minivllava.models.generate import Sampling, generate, sample
from minivllava.models.kv_cache import KVCache
from minivllava.models.language import LanguageModel, RMSNorm
from minivllava.models.languagebind import info_nce
from minivllava.models.layers import Attention, attention_weights
from minivllava.models.rotary import rotary_angles
from minivllava.models.text import TextEncoder
from minivllava.models.vision import ImageEncoder, VideoEncoder, drop_patches
from minivllava.models.vllava import VideoLLaVA
from minivllava.presets import preset

CLOSE = {"rtol": 0, "atol": 1e-5}
TEMPORAL = dataclasses.replace(VISION, temporal=True)
VOCABULARY = 300
MODALITIES = {"image": (3, 16, 16), "video": (4, 3, 16, 16)}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def visual(kind: str, frames: int = 4) -> torch.Tensor:
    return torch.randn(3, 16, 16) if kind == "image" else torch.randn(frames, 3, 16, 16)


def language_model(**changes) -> LanguageModel:
    return LanguageModel(dataclasses.replace(tiny_config().language, **changes)).eval()


def shaken(model):
    """The model with every parameter random, norms and biases too, so that none hides behind a 0 or a 1."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


# attention


def loops(query, key, value, causal: bool):
    """Attention as its formula reads, one query and one key at a time."""
    batch, heads, length, width = query.shape
    mixed = torch.zeros_like(query)
    for b in range(batch):
        for k in range(heads):
            for i in range(length):
                seen = range(i + 1) if causal else range(length)
                scores = torch.stack([query[b, k, i] @ key[b, k, j] / width**0.5 for j in seen]).exp()
                for j, weight in zip(seen, scores / scores.sum(), strict=True):
                    mixed[b, k, i] += weight * value[b, k, j]
    return mixed


@torch.no_grad()
@pytest.mark.parametrize("causal", [False, True])
def test_loops_einops_and_sdpa_attend_alike(causal):
    attention = shaken(Attention(width=12, heads=3, causal=causal))
    x = torch.randn(2, 5, 12)
    query, key, value = (
        rearrange(linear(x), "b n (k e) -> b k n e", k=3)
        for linear in (attention.query, attention.key, attention.value)
    )
    naive = loops(query, key, value, causal)
    by_weights = attention.weights(x) @ value
    torch.testing.assert_close(by_weights, naive, **CLOSE)
    expected = attention.output(rearrange(naive, "b k n e -> b n (k e)"))
    torch.testing.assert_close(attention(x), expected, **CLOSE)


@torch.no_grad()
def test_attention_is_scaled_by_the_head_width_not_the_model_width():
    attention = Attention(width=8, heads=4)  # heads 2 wide
    for linear in (attention.query, attention.key, attention.value, attention.output):
        linear.weight.copy_(torch.eye(8))
        linear.bias.zero_()
    x = torch.zeros(1, 2, 8)
    x[0, 0, :2] = torch.tensor([3.0, 1.0])
    x[0, 1, :2] = torch.tensor([1.0, 2.0])
    scores = torch.tensor([10.0, 5.0]) / 2**0.5  # of the first query, in the first head
    torch.testing.assert_close(attention.weights(x)[0, 0, 0], scores.softmax(0))
    torch.testing.assert_close(attention(x)[0, 0, :2], scores.softmax(0) @ x[0, :, :2])
    query = torch.randn(1, 4, 6, 2)
    expected = F.scaled_dot_product_attention(query, query, query, scale=2**-0.5)
    torch.testing.assert_close(attention_weights(query, query, causal=False) @ query, expected, **CLOSE)


@torch.no_grad()
def test_language_model_attention_equals_loops():
    model = shaken(language_model())
    attention, x = model.layers[0].attention, torch.randn(2, 6, 32)
    cos, sin = rotary_angles(torch.arange(6)[None], 8, model.config.rope_theta)
    tokens = rearrange(x, "b s d -> (b s) d")
    query, key, value = attention.queries_keys_values(tokens, cos, sin)
    key, value = (repeat(y, "b k s e -> b (k group) s e", group=2) for y in (key, value))
    naive = loops(query, key, value, True)
    torch.testing.assert_close(attention.weights(tokens, cos, sin) @ value, naive, **CLOSE)
    expected = attention.output(rearrange(naive, "b k s e -> (b s) (k e)"))
    torch.testing.assert_close(attention(tokens, cos, sin), expected, **CLOSE)
    patterns: list = []
    model(x, on_attention=patterns.append)
    assert [tuple(p.shape) for p in patterns] == [(2, 4, 6, 6)] * 2
    torch.testing.assert_close(patterns[0].sum(-1), torch.ones(2, 4, 6), **CLOSE)
    assert patterns[0].triu(1).abs().max() == 0


@torch.no_grad()
def test_the_future_cannot_change_the_past():
    layers = shaken(TextEncoder(tiny_config().text)).layers
    model = shaken(language_model())

    def text(x):
        for layer in layers:
            x = layer(x)
        return x

    for run, width in ((text, 16), (model, 32)):
        x = torch.randn(2, 9, width)
        changed = x.clone()
        changed[:, 5:] += torch.randn(2, 4, width)
        before, after = run(x), run(changed)
        torch.testing.assert_close(before[:, :5], after[:, :5], rtol=0, atol=1e-6)
        assert (before[:, 5] - after[:, 5]).abs().max() > 1e-2


@torch.no_grad()
def test_text_is_pooled_at_its_end_and_padding_changes_nothing():
    encoder = shaken(TextEncoder(tiny_config(VOCABULARY).text))
    end = VOCABULARY - 1
    alone = encoder(torch.tensor([[1, 40, 50, end]]))
    padded = encoder(torch.tensor([[1, 40, 50, end, 0, 0], [1, 40, 50, 60, 70, end]]))
    torch.testing.assert_close(padded[:1], alone, **CLOSE)
    assert (padded[0] - padded[1]).abs().max() > 1e-2


# language model


@torch.no_grad()
def test_rms_norm_has_its_epsilon_under_the_root():
    norm = RMSNorm(4, eps=1.0)
    norm.weight.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    x = torch.tensor([1.0, -1.0, 1.0, -1.0])
    torch.testing.assert_close(norm(x), x * norm.weight / 2**0.5)


@torch.no_grad()
def test_rotary_positions_are_relative():
    model = shaken(language_model(layers=1))
    attention, x = model.layers[0].attention, torch.randn(7, 32)
    patterns = []
    for start in (0, 40):
        cos, sin = rotary_angles(torch.arange(start, start + 7)[None], 8, 10_000.0)
        patterns.append(attention.weights(x, cos, sin))
    torch.testing.assert_close(*patterns, rtol=0, atol=1e-4)
    same = x[:1].expand_as(x)
    pattern = attention.weights(same, *rotary_angles(torch.arange(7)[None], 8, 10_000.0))[0, 0, 6]
    assert pattern.std() > 1e-4, "equal tokens at different distances must weigh differently"


@torch.no_grad()
def test_kv_cache_gives_what_no_cache_gives():
    """Prefill, then one token at a time, in a batch of different lengths, right-padded."""
    model = shaken(language_model())
    lengths, new = torch.tensor([3, 8, 5]), 4
    rows = [torch.randn(length + new, 32) for length in lengths]
    prompts = pad_sequence([row[:length] for row, length in zip(rows, lengths, strict=True)], batch_first=True)
    cache = KVCache.empty(model.config, 3, 8 + new, like=prompts)
    hidden = model(prompts, cache=cache)
    for row, length, got in zip(rows, lengths, hidden, strict=True):
        torch.testing.assert_close(got[:length], model(row[None, :length])[0], **CLOSE)
    for step in range(new):
        tokens = torch.stack([row[length + step] for row, length in zip(rows, lengths, strict=True)])
        got = model(tokens[:, None], (lengths + step)[:, None], cache)[:, 0]
        expected = [model(row[None, : length + step + 1])[0, -1] for row, length in zip(rows, lengths, strict=True)]
        torch.testing.assert_close(got, torch.stack(expected), **CLOSE)


def test_sampling_keeps_to_the_nucleus():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().expand(2000, -1)

    def drawn(**options):
        return sample(logits, Sampling(generator=torch.Generator().manual_seed(0), **options))

    assert set(sample(logits, Sampling()).tolist()) == {0}
    assert set(drawn(temperature=1.0, top_p=0.7).tolist()) == {0, 1}
    assert set(drawn(temperature=1.0, top_p=1e-9).tolist()) == {0}
    shares = drawn(temperature=1.0, top_p=1.0).bincount(minlength=4) / 2000
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.3, 0.15, 0.05]), rtol=0, atol=0.05)
    assert drawn(temperature=0.1, top_p=1.0).eq(0).float().mean() > 0.98


def llama_weights(state: dict) -> dict:
    """Our name for each tensor of a transformers LLaMA."""
    names = {
        "model.embed_tokens": "token_embedding", "model.norm": "norm",
        "lm_head": "head", "model.layers": "layers",
        "self_attn.q_proj": "attention.query", "self_attn.k_proj": "attention.key",
        "self_attn.v_proj": "attention.value", "self_attn.o_proj": "attention.output",
        "input_layernorm": "attention_norm", "post_attention_layernorm": "mlp_norm",
        "gate_proj": "gate", "up_proj": "up", "down_proj": "down",
    }  # fmt: skip
    renamed = {}
    for name, tensor in state.items():
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        renamed[name] = tensor
    return renamed


@torch.no_grad()
def test_parity_with_transformers_llama():
    """Same logits and the same greedy tokens as the trusted implementation, with grouped-query attention."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LanguageConfig(
        vocab_size=97, context=64, width=48, layers=3, heads=6, kv_heads=2, mlp_width=80, norm_eps=1e-4,
        rope_theta=500.0,
    )  # fmt: skip
    theirs = shaken(
        LlamaForCausalLM(
            LlamaConfig(
                vocab_size=97,
                hidden_size=48,
                intermediate_size=80,
                num_hidden_layers=3,
                num_attention_heads=6,
                num_key_value_heads=2,
                max_position_embeddings=64,
                rms_norm_eps=1e-4,
                rope_parameters={"rope_type": "default", "rope_theta": 500.0},
                tie_word_embeddings=False,
            )  # fmt: skip
        )
    )
    ours = LanguageModel(config).eval()
    ours.load_state_dict(llama_weights(theirs.state_dict()))
    ids = torch.randint(3, 97, (2, 20))
    torch.testing.assert_close(ours.logits(ours(ours.embed(ids))), theirs(ids).logits, rtol=0, atol=1e-4)
    answers = generate(ours, ours.embed(ids), torch.tensor([20, 20]), stop=(), sampling=Sampling(24))
    for _ in range(24):
        ids = torch.cat([ids, theirs(ids).logits[:, -1:].argmax(-1)], dim=1)
    assert answers == ids[:, 20:].tolist()


def test_tied_embeddings_share_their_weights():
    model = language_model(tie_embeddings=True)
    assert model.head.weight is model.token_embedding.weight
    assert len(list(model.parameters())) == len(list(language_model().parameters())) - 1


# encoders


def silence_temporal(encoder: VideoEncoder, embedding: bool = True):
    with torch.no_grad():
        for layer in encoder.layers:
            layer.temporal_attention.output.weight.zero_()
            layer.temporal_attention.output.bias.zero_()
            if embedding:
                layer.temporal_embedding.zero_()


@torch.no_grad()
def test_a_video_encoder_without_its_temporal_branch_is_the_image_encoder():
    image_encoder = shaken(ImageEncoder(VISION))
    video_encoder = VideoEncoder.from_image_encoder(TEMPORAL, image_encoder).eval()
    silence_temporal(video_encoder, embedding=False)  # with one frame the embedding is not added
    pixels = torch.randn(2, 3, 16, 16)
    image, video = image_encoder(pixels), video_encoder(rearrange(pixels, "b c h w -> b 1 c h w"))
    torch.testing.assert_close(video.pooled, image.pooled, **CLOSE)
    for ours, theirs in zip(video.hidden, image.hidden, strict=True):
        torch.testing.assert_close(ours[:, 0], theirs, **CLOSE)
    silence_temporal(video_encoder)
    clip = torch.randn(1, 4, 3, 16, 16)  # and each frame of a clip goes through alone
    torch.testing.assert_close(video_encoder(clip).hidden[-1][0], image_encoder(clip[0]).hidden[-1], **CLOSE)


@pytest.mark.parametrize("field, value", [("layers", 3), ("heads", 4), ("image_size", 32)])
def test_a_video_encoder_begins_from_an_image_encoder_of_its_sizes(field, value):
    other = dataclasses.replace(TEMPORAL, **{field: value})
    with pytest.raises(ConfigError, match=f"video.{field} is {value}, image.{field} is .*: set them alike"):
        VideoEncoder.from_image_encoder(other, ImageEncoder(VISION))


@torch.no_grad()
def test_a_reversed_clip_looks_different_only_to_the_temporal_branch():
    encoder = shaken(VideoEncoder(TEMPORAL))
    clip = torch.randn(1, 4, 3, 16, 16)
    reversed_clip = clip.flip(1)
    change = (encoder(clip).pooled - encoder(reversed_clip).pooled).abs().max()
    assert change > 1e-3, f"reversing the frames changes the pooled vector by {change} only"
    for layer in encoder.layers:  # attention alone, without embeddings, cannot tell the order
        layer.temporal_embedding.zero_()
    torch.testing.assert_close(encoder(clip).pooled, encoder(reversed_clip).pooled, **CLOSE)
    silence_temporal(encoder)
    torch.testing.assert_close(encoder(clip).pooled, encoder(reversed_clip).pooled, **CLOSE)
    torch.testing.assert_close(encoder(clip).hidden[-1], encoder(reversed_clip).hidden[-1].flip(1), **CLOSE)


@torch.no_grad()
def test_frames_of_one_clip_talk_and_those_of_two_do_not():
    encoder = shaken(VideoEncoder(TEMPORAL))
    clips = torch.randn(2, 4, 3, 16, 16)
    changed = clips.clone()
    changed[0, 3] += 1
    before, after = encoder(clips).hidden[-1], encoder(changed).hidden[-1]
    assert (before[0, 0] - after[0, 0]).abs().max() > 1e-4
    torch.testing.assert_close(before[1], after[1], rtol=0, atol=0)


@torch.no_grad()
def test_any_number_of_frames_runs():
    model = shaken(tiny_vllava())
    for frames in range(1, 33):
        clip = visual("video", frames)
        output = model.video_encoder(clip[None])
        assert output.hidden[-1].shape == (1, frames, 5, 16) and output.pooled.shape == (1, 16)
        assert output.pooled.isfinite().all()
        assert len(model.encode_visuals([clip])) == model.config.visual_tokens("video", frames) == 4 * frames


@torch.no_grad()
def test_temporal_embedding_is_exact_at_its_own_length_and_interpolated_elsewhere():
    layer = VideoEncoder(TEMPORAL).layers[0]
    own = layer.temporal_embedding
    assert torch.equal(layer.interpolated_embedding(4), own)
    seven = layer.interpolated_embedding(7)
    torch.testing.assert_close(seven[:, ::2], own, **CLOSE)
    torch.testing.assert_close(seven[:, 1], (own[:, 0] + own[:, 1]) / 2, **CLOSE)
    torch.testing.assert_close(layer.interpolated_embedding(2), own[:, [0, 3]], **CLOSE)


def test_temporal_parts_begin_as_copies_of_the_spatial_ones():
    image_encoder = shaken(ImageEncoder(VISION))
    encoder = VideoEncoder.from_image_encoder(TEMPORAL, image_encoder)
    spatial = image_encoder.state_dict()
    for name, tensor in encoder.state_dict().items():
        source = name.replace("temporal_attention", "attention").replace("temporal_norm", "norm1")
        if "temporal_embedding" not in name:
            assert torch.equal(tensor, spatial[source]), name
    layer = encoder.layers[0]
    assert layer.temporal_attention.query.weight is not layer.attention.query.weight
    names = {name for name, p in encoder.named_parameters() if any(p is t for t in encoder.temporal_parameters())}
    assert names == set(encoder.state_dict()) - set(spatial)


def test_patch_dropout_hides_the_same_patches_in_all_frames():
    grid = torch.arange(2 * 3 * 11, dtype=torch.float).reshape(6, 11, 1).expand(-1, -1, 4)  # 2 clips, 3 frames
    kept = drop_patches(grid, frames=3, share=0.4)
    assert kept.shape == (6, 7, 4)
    places = kept[:, :, 0] - grid[:, :1, 0]
    assert places[:, 0].eq(0).all(), "CLS stays"
    places = rearrange(places, "(b t) n -> b t n", t=3).long()
    assert (places == places[:, :1]).all(), "all frames of a clip lose the same patches"
    assert places[:, 0, 1:].min() >= 1 and all(len(set(row.tolist())) == 7 for row in places[:, 0])
    chosen = {
        tuple(sorted(row.tolist()))
        for _ in range(20)
        for row in rearrange(drop_patches(grid, 3, 0.4)[:, :, 0] - grid[:, :1, 0], "(b t) n -> b t n", t=3)[:, 0]
    }
    assert len(chosen) > 10, "which patches go is drawn anew"


def test_patch_dropout_is_off_in_eval():
    encoder = VideoEncoder(dataclasses.replace(TEMPORAL, patch_dropout=0.5))
    clip = torch.randn(2, 4, 3, 16, 16)
    assert encoder.train()(clip).hidden[0].shape == (2, 4, 3, 16)
    whole = encoder.eval()(clip)
    assert whole.hidden[0].shape == (2, 4, 5, 16)
    torch.testing.assert_close(encoder(clip).pooled, whole.pooled, rtol=0, atol=0)


@torch.no_grad()
def test_info_nce_by_hand():
    visual, text = torch.eye(2), torch.tensor([[0.6, 0.8], [0.0, 1.0]])
    scale = torch.tensor(2.0).log()
    scores = 2 * visual @ text.T
    by_row = -scores.log_softmax(1).diagonal().mean()
    by_column = -scores.log_softmax(0).diagonal().mean()
    torch.testing.assert_close(info_nce(visual, text, scale), (by_row + by_column) / 2)
    model = tiny_languagebind()
    embedded = model.embed("video", torch.randn(2, 4, 3, 16, 16))
    torch.testing.assert_close(embedded.norm(dim=-1), torch.ones(2))


# splicing


def test_select_layer_and_cls_switches():
    model = shaken(tiny_vllava())
    images, clips = torch.randn(2, 3, 16, 16), torch.randn(2, 4, 3, 16, 16)
    hidden = model.image_encoder(images).hidden
    assert len(hidden) == 3
    torch.testing.assert_close(model.features(images), hidden[1][:, 1:])
    expected = rearrange(model.video_encoder(clips).hidden[1][:, :, 1:], "b t n d -> b (t n) d")
    torch.testing.assert_close(model.features(clips), expected)
    with_cls = VideoLLaVA(
        dataclasses.replace(model.config, keep_cls_video=True, keep_cls_image=True, select_layer=-1)
    ).eval()
    with_cls.load_state_dict(model.state_dict())
    torch.testing.assert_close(with_cls.features(images), hidden[2])
    assert with_cls.features(clips).shape == (2, 4 * 5, 16)
    assert with_cls.config.visual_tokens("video", 4) == 20 and with_cls.config.visual_tokens("image") == 5


@torch.no_grad()
def test_spliced_positions_hold_the_visual_vectors():
    model = shaken(tiny_vllava())
    image, clip = visual("image"), visual("video", 3)
    ids = torch.tensor([[1, 5, *[VISUAL] * 12, 6, *[VISUAL] * 4, 7], [1, 8, 9] + [0] * 17])
    embeddings = model.embed(ids, [clip, image])
    torch.testing.assert_close(embeddings[0, 2:14], model.projector(model.features(clip[None])[0]), **CLOSE)
    torch.testing.assert_close(embeddings[0, 15:19], model.projector(model.features(image[None])[0]), **CLOSE)
    for row, place in ((0, 0), (0, 1), (0, 14), (0, 19), (1, 1), (1, 5)):
        expected = model.language_model.embed(ids[row, place])
        torch.testing.assert_close(embeddings[row, place], expected, rtol=0, atol=0)
    with pytest.raises(DataError, match="16 places.*4"):
        model.embed(ids, [image])


MIXED = (  # (ids with one "image" or "video" where a visual stands, kinds)
    (["image", 40, 41, 42], ["image"]),
    ([50, "video", "image", 51], ["video", "image"]),
    ([60, 61], []),
    (["image", 70, "video"], ["image", "video"]),
)


def mixed_sample(model, pieces, kinds):
    sizes = {kind: model.config.visual_tokens(kind, 4) for kind in MODALITIES}
    ids = [1]
    for piece in pieces:
        ids += [VISUAL] * sizes[piece] if piece in sizes else [piece]
    return ids, [visual(kind) for kind in kinds]


@torch.no_grad()
def test_a_mixed_batch_gives_what_its_samples_give_alone():
    """Images, clips and text in one right-padded batch: no sample's logits or loss change."""
    model = shaken(tiny_vllava())
    samples = [mixed_sample(model, *pieces) for pieces in MIXED]
    ids = pad_rows([ids for ids, _ in samples], 0)
    logits = model(ids, [v for _, visuals in samples for v in visuals])
    total = tokens = 0
    for (row, visuals), got in zip(samples, logits, strict=True):
        alone = model(torch.tensor([row]), visuals)
        torch.testing.assert_close(got[: len(row)], alone[0], **CLOSE)
        loss = model(torch.tensor([row]), visuals, labelled(row))
        total, tokens = total + loss.total, tokens + loss.tokens
    labels = pad_rows([labelled(row)[0] for row, _ in samples], IGNORE)
    loss = model(ids, [v for _, visuals in samples for v in visuals], labels)
    torch.testing.assert_close(loss.total, total, rtol=0, atol=1e-4)
    assert loss.tokens == tokens


def labelled(row: list[int]) -> torch.Tensor:
    return torch.tensor([[token if token > 40 else IGNORE for token in row]])


@torch.no_grad()
def test_cached_features_stand_for_pixels():
    model = shaken(tiny_vllava())
    ids, (clip, image) = mixed_sample(model, ["video", 50, "image"], ["video", "image"])
    features = [model.features(clip[None])[0], model.features(image[None])[0]]
    expected = model(torch.tensor([ids]), [clip, image])
    torch.testing.assert_close(model(torch.tensor([ids]), features), expected, **CLOSE)
    torch.testing.assert_close(model(torch.tensor([ids]), [clip, features[1]]), expected, **CLOSE)


@torch.no_grad()
def test_the_loss_reads_learned_positions_alone():
    model = shaken(tiny_vllava())
    ids, visuals = mixed_sample(model, ["image", 40, 41, 42, 43], ["image"])
    ids, labels = torch.tensor([ids + [0, 0]]), torch.full((1, 11), IGNORE)
    labels[0, 7:9] = ids[0, 7:9]
    logits = model(ids, visuals)
    expected = F.cross_entropy(logits[0, 6:8], ids[0, 7:9], reduction="sum")  # i predicts i + 1
    loss = model(ids, visuals, labels)
    torch.testing.assert_close(loss.total, expected)
    assert loss.tokens == 2


def test_a_batch_of_text_alone_still_reaches_the_projector():
    model = tiny_vllava().train()
    loss = model(torch.tensor([[1, 50, 51]]), (), torch.tensor([[IGNORE, 50, 51]]))
    loss.total.backward()
    assert all(p.grad is not None and p.grad.eq(0).all() for p in model.projector.parameters())


def test_training_mode_leaves_the_encoders_in_eval():
    model = tiny_vllava().train()
    assert model.projector.training and model.language_model.training
    assert not model.image_encoder.training and not model.video_encoder.training
    assert not any(p.requires_grad for e in (model.image_encoder, model.video_encoder) for p in e.parameters())
    assert model.features(torch.randn(1, 3, 16, 16)).grad_fn is None


# sizes


def millions(*parameters) -> float:
    return round(sum(p.numel() for p in parameters) / 1e6, 2)


def test_paper_preset_has_the_papers_sizes():
    config = preset("paper").model
    with torch.device("meta"):
        model = VideoLLaVA(config)
    assert millions(*model.image_encoder.parameters()) == pytest.approx(303.2, abs=0.05)
    temporal = model.video_encoder.temporal_parameters()
    assert millions(*temporal) == pytest.approx(101.0, abs=0.05)
    spatial = millions(*model.video_encoder.parameters()) - millions(*temporal)
    assert spatial == pytest.approx(303.2, abs=0.05)
    assert millions(*model.projector.parameters()) == 20.98
    assert millions(*model.language_model.parameters()) == pytest.approx(6738, abs=2)
    assert config.visual_tokens("image") == 256 and config.visual_tokens("video", 8) == 2048
    assert dataclasses.replace(config, keep_cls_video=True).visual_tokens("video", 8) == 2056
    with torch.device("meta"):
        text = TextEncoder(config.text)
    assert millions(*text.parameters()) == pytest.approx(123.1, abs=0.2)


def test_small_preset_has_at_least_25_million_parameters():
    config = preset("small").model
    with torch.device("meta"):
        model = VideoLLaVA(config)
    assert millions(*model.parameters()) >= 25 and config.image.image_size >= 64


@torch.no_grad()
@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_activation_is_the_configs(activation):
    config = VisionConfig(image_size=16, patch_size=8, width=16, layers=1, heads=2, mlp_width=32, activation=activation)
    mlp = ImageEncoder(config).layers[0].mlp
    x = torch.randn(3, 16)
    hidden = mlp.up(x)
    expected = F.gelu(hidden) if activation == "gelu" else hidden * torch.sigmoid(1.702 * hidden)
    torch.testing.assert_close(mlp(x), mlp.down(expected))
