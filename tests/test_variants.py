"""The model variants that ablations compare: projectors, masked autoencoder, silenced time."""

from dataclasses import replace

import pytest
import torch
from tiny import VISION, tiny_config, tiny_languagebind, tiny_vllava

from minivllava.ablations.parts import in_time, silence_time
from minivllava.checkpoints.loading import load_vllava
from minivllava.config import PROJECTORS, ModelConfig
from minivllava.errors import ConfigError
from minivllava.models.encoders import build_encoder
from minivllava.models.projector_variants import pool_clip
from minivllava.models.vision import ImageEncoder
from minivllava.overrides import from_dict, to_dict
from minivllava.training.mae import MaskedAutoencoder
from minivllava.training.stages import features_fingerprint


def mixed_features(model, lengths=(("image", 1), ("video", 4), ("image", 1), ("video", 4))):
    torch.manual_seed(1)
    images, clips = torch.randn(2, 3, 16, 16), torch.randn(2, 4, 3, 16, 16)
    found = {"image": list(model.features(images)), "video": list(model.features(clips))}
    return [found[kind].pop(0) for kind, _ in lengths], lengths


@pytest.mark.parametrize("keep_cls", (False, True))
@pytest.mark.parametrize("name", PROJECTORS)
def test_every_projector_gives_as_many_tokens_as_the_config_says_in_order(name, keep_cls):
    model = tiny_vllava(projector=name, keep_cls_image=keep_cls, keep_cls_video=keep_cls, projector_queries=3)
    visuals, kinds = mixed_features(model)
    tokens = model.encode_visuals(visuals)
    counts = [model.config.visual_tokens(kind, frames) for kind, frames in kinds]
    assert tokens.shape == (sum(counts), model.config.language.width)
    for visual, alone in zip(visuals, tokens.split(counts), strict=True):
        torch.testing.assert_close(model.encode_visuals([visual]), alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(*tokens.split(counts)[::2]), "two images, two sets of tokens"


@pytest.mark.parametrize("name", PROJECTORS)
def test_every_projector_learns_on_mixed_batches_and_bears_text_alone(name):
    model = tiny_vllava(projector=name)
    visuals, _ = mixed_features(model)
    model.encode_visuals(visuals).square().sum().backward()
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0
        for n, p in model.projector.named_parameters()
        if "key.bias" not in n
    )
    nothing = model.encode_visuals([])
    assert nothing.shape == (0, model.config.language.width)
    model.zero_grad()
    nothing.sum().backward()
    assert all(p.grad is not None for p in model.projector.parameters()), "all-reduce needs a gradient of zero"


def test_each_modality_has_a_projector_of_its_own_or_shares_one():
    model = tiny_vllava(projector="per-modality")
    visuals, _ = mixed_features(model)
    before = model.encode_visuals(visuals)
    with torch.no_grad():
        model.projector.video.linear2.bias += 1
    moved = (model.encode_visuals(visuals) - before).abs().sum(1) > 0.5
    is_image = torch.tensor([True] * 4 + [False] * 16 + [True] * 4 + [False] * 16)
    assert torch.equal(moved, ~is_image)


def test_clips_that_could_be_taken_for_images_are_refused():
    image = replace(VISION, image_size=32)  # 16 patches: four frames of four
    assert tiny_config(image=image).projector == "mlp" and tiny_config(video=image, projector="per-modality")
    with pytest.raises(ConfigError, match="A clip of 4 frames would have as many features as an image, 16"):
        tiny_config(image=image, projector="per-modality")


def test_pooling_averages_over_patches_then_over_frames():
    features = torch.randn(2, 4, 5, 8)
    pooled = pool_clip(features)
    torch.testing.assert_close(pooled[:, 1], features[:, 1].mean(1))
    torch.testing.assert_close(pooled[:, 4 + 2], features[:, :, 2].mean(1))
    shuffled = features[:, [2, 0, 3, 1]]
    torch.testing.assert_close(pool_clip(shuffled)[:, 4:], pooled[:, 4:])  # what each place holds, at any time


def test_checkpoints_remember_their_projector_and_old_ones_have_the_papers(tmp_path):
    model = tiny_vllava(projector="resampler", projector_queries=3)
    model.save_pretrained(tmp_path / "new")
    again = load_vllava(tmp_path / "new")
    visuals, _ = mixed_features(model)
    assert torch.equal(again.encode_visuals(visuals), model.encode_visuals(visuals))
    old = {key: value for key, value in to_dict(ModelConfig()).items() if not key.startswith("projector")}
    assert from_dict(ModelConfig, old).projector == "mlp"
    with pytest.raises(ConfigError, match="resampler"):
        tiny_config(projector="qformer")


def test_a_masked_autoencoder_sees_nothing_of_what_it_paints():
    torch.manual_seed(0)
    model = MaskedAutoencoder(replace(VISION, image_size=32))
    pixels, seen = torch.randn(2, 3, 32, 32), torch.tensor([[0, 5, 6, 15], [1, 2, 3, 4]])
    encoded = model.encode(pixels, seen)
    hidden = pixels.clone()
    hidden[0, :, :8, 8:16] += 1  # patch 1: hidden in the first image, seen in the second
    hidden[1, :, :8, 8:16] += 1
    changed_by = (model.encode(hidden, seen) - encoded).abs().amax((1, 2))
    assert changed_by[0] == 0 and changed_by[1] > 0
    painted = model.paint(encoded, seen)
    assert painted.shape == (2, 16, 8 * 8 * 3)
    swapped = model.paint(model.encode(pixels, seen.flip(1)), seen.flip(1))
    torch.testing.assert_close(swapped, painted, rtol=1e-3, atol=1e-4)  # whatever the order in which it sees


def test_a_masked_autoencoder_learns():
    torch.manual_seed(0)
    model = MaskedAutoencoder(replace(VISION, image_size=32))
    pixels = torch.randn(8, 3, 1, 1).expand(8, 3, 32, 32).contiguous()  # one colour: the seen patches tell the rest
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        loss = model(pixels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()) / len(pixels))
    assert losses[-1] < 0.3 * losses[0]


def test_a_masked_encoder_shows_a_quarter_of_the_patches_the_same_ones_each_time():
    config = replace(VISION, image_size=32)
    whole, masked = ImageEncoder(config).eval(), build_encoder(replace(config, masked=0.75)).eval()
    masked.load_state_dict(whole.state_dict())
    pixels = torch.randn(3, 3, 32, 32)
    features = masked.features(pixels)
    assert features.shape == (3, 4, 16)
    torch.testing.assert_close(masked.features(pixels[1:2]), features[1:2], rtol=1e-4, atol=1e-5)
    model_config = replace(tiny_config(), image=masked.config)
    assert model_config.visual_tokens("image") == 4 and model_config.visual_tokens("video", 2) == 8
    first = whole.pre_norm(whole.embedding(pixels))[:, 1:]  # before the first layer nothing is mixed
    shown = masked(pixels).hidden[0][:, 1:]
    places = [[int((first[b] - row).abs().sum(-1).argmin()) for row in shown[b]] for b in range(3)]
    assert all(len(set(row)) == 4 for row in places) and len({tuple(row) for row in places}) > 1


def test_silenced_time_leaves_the_image_encoder_frame_by_frame():
    bound = tiny_languagebind()
    image, video = bound.encoders["image"], bound.encoders["video"]
    video.load_state_dict(image.state_dict(), strict=False)
    clip = torch.randn(2, 4, 3, 16, 16)
    frames = image.features(clip.flatten(0, 1)).unflatten(0, (2, 4))
    assert not torch.allclose(video.features(clip), frames, atol=1e-3)
    silence_time(video)
    torch.testing.assert_close(video.features(clip), frames, rtol=1e-4, atol=1e-5)


def test_a_video_encoder_for_other_numbers_of_frames_is_the_same_encoder_interpolated():
    video = tiny_languagebind().encoders["video"]
    other = type(video)(replace(video.config, frames=7)).eval()
    other.load_state_dict(in_time(video.state_dict(), other.config))
    clip = torch.randn(1, 7, 3, 16, 16)
    torch.testing.assert_close(other.features(clip), video.features(clip))


def test_features_are_another_cache_where_they_would_differ():
    model, pooled = tiny_vllava(), tiny_vllava(projector="pooling")
    assert features_fingerprint(model, "image") == features_fingerprint(pooled, "image")
    assert features_fingerprint(model, "video") != features_fingerprint(pooled, "video")
    half = tiny_vllava().half()  # weights that float16 has, computed in float32 and in float16
    assert features_fingerprint(tiny_vllava().half().float(), "image") != features_fingerprint(half, "image")
    masked = tiny_vllava(image=replace(VISION, masked=0.75))
    assert features_fingerprint(model, "image") != features_fingerprint(masked, "image")
