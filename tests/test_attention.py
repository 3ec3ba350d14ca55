"""Where a model looks: places of tokens, rollout, occlusion, overlap with the truth."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import VISION, square, tiny_vllava

from minivllava.attention import (
    attention_patterns,
    hide_each,
    occlusion,
    onto_hidden,
    onto_patches,
    overlap,
    read_prompt,
    rollout,
    token_places,
    true_place,
    visual_attention,
)
from minivllava.data.conversation import VISUAL
from minivllava.data.render import render
from minivllava.data.world import Scene, Thing
from minivllava.data.write_media import write_image, write_video
from minivllava.errors import ConfigError, DataError

QUESTION = "What colour is the square?"


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    write_image(folder / "image.png", square("red", 4))
    write_video(folder / "clip.mp4", np.stack([square("green", left) for left in range(0, 20, 3)]))
    return folder


@pytest.fixture(scope="module")
def model():
    model = tiny_vllava(image=replace(VISION, image_size=16), keep_cls_video=True)
    for parameter in model.parameters():  # sharper attention and answers than fresh weights give
        parameter.data *= 1.5
    return model


@pytest.mark.parametrize("kind, frames", [("image", 1), ("video", 4), ("video", 3)])
def test_places_count_frames_rows_and_columns(model, kind, frames):
    places = token_places(model.config, kind, frames)
    assert len(places) == model.config.visual_tokens(kind, frames)
    patches = places[places[:, 1] >= 0]
    assert [tuple(place) for place in patches] == list(np.ndindex(frames, 2, 2))
    if kind == "video":  # the class token stands before its frame's patches
        assert [tuple(place) for place in places[::5]] == [(t, -1, -1) for t in range(frames)]


@pytest.mark.parametrize("file", ["image.png", "clip.mp4"])
def test_weights_are_laid_where_their_tokens_are(model, media, file):
    prompt = read_prompt(model, media / file, QUESTION)
    ids = prompt.ids[0].numpy()
    places = token_places(model.config, prompt.kind, len(prompt.frames))
    weights = np.zeros(len(ids))
    weights[ids == VISUAL] = np.arange(len(places)) + 1
    laid = onto_patches(weights, prompt, model.config)
    for number, (t, h, w) in enumerate(places):
        assert h < 0 or laid[t, h, w] == number + 1
    rows = attention_patterns(model, prompt)[:, :, -1]
    np.testing.assert_allclose(
        onto_patches(rows, prompt, model.config), visual_attention(model, media / file, QUESTION)[1], atol=1e-6
    )


def test_models_without_a_token_for_each_patch_say_so(model, media):
    prompt = read_prompt(model, media / "image.png", QUESTION)
    weights = np.zeros(prompt.ids.shape[1])
    resampling = replace(model.config, projector="resampler")
    hiding = replace(model.config, image=replace(model.config.image, masked=0.5))
    for config, why in ((resampling, "resampler"), (hiding, "hides")):
        with pytest.raises(ConfigError, match=why):
            onto_patches(weights, prompt, config)
        with pytest.raises(ConfigError, match="token for each patch"):
            token_places(config, "image")


def test_looking_keeps_one_row_of_each_pattern(model, media, monkeypatch):
    kept, stack = [], torch.stack
    monkeypatch.setattr(torch, "stack", lambda rows, *rest: (kept.append(rows), stack(rows, *rest))[1])
    visual_attention(model, media / "image.png", QUESTION)
    rows = next(rows for rows in kept if len(rows) == model.config.language.layers)
    assert all(row.untyped_storage().nbytes() == row.nbytes for row in rows)


def test_rollout_multiplies_layers_from_the_last_to_the_first():
    first = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0.0]])  # 2 reads 1, 1 reads 0
    second = np.eye(3)
    expected = (first + np.eye(3)) / 2
    np.testing.assert_allclose(rollout(np.stack([first, second])[:, None]), expected)
    chained = rollout(np.stack([first, first])[:, None])
    assert chained[2, 0] == 0.25  # 2 reads 1, which had read 0
    later = np.array([[1, 0, 0], [0, 1, 0], [0, 1, 0.0]])
    assert rollout(np.stack([first, later])[:, None])[2, 0] == 0.25
    assert rollout(np.stack([later, first])[:, None])[2, 0] == 0  # 1 had read nothing yet
    heads = np.random.default_rng(0).dirichlet(np.ones(4), (3, 2, 4))
    np.testing.assert_allclose(rollout(heads).sum(-1), 1)
    np.testing.assert_allclose(rollout(heads), rollout(heads.mean(1, keepdims=True)))


@pytest.mark.parametrize("file, grid, column", [("image.png", (1, 2, 2), 0), ("clip.mp4", (4, 2, 2), 1)])
def test_occlusion_is_what_painting_over_by_hand_costs(model, media, file, grid, column):
    prompt = read_prompt(model, media / file, QUESTION, "red")
    hide = np.zeros((3, *grid), dtype=bool)
    hide[1, -1, 1, column] = True  # part of the square in the last frame
    hide[2] = True
    falls = occlusion(model, media / file, QUESTION, "red", hide)
    assert falls.shape == (3,) and falls[0] == 0
    pixels = prompt.pixels.clone()
    flat = pixels if pixels.ndim == 4 else pixels[None]
    median = torch.stack([flat[:, c].flatten().median() for c in range(3)])
    flat[-1, :, 8:16, 8 * column : 8 * column + 8] = median[:, None, None]
    with torch.inference_mode():
        before, after = (model(prompt.ids, [p], prompt.labels).total.item() for p in (prompt.pixels, pixels))
    assert abs(after - before) > 1e-4
    np.testing.assert_allclose(falls[1], after - before, atol=1e-4)
    np.testing.assert_allclose(occlusion(model, media / file, QUESTION, "red", hide, batch_size=1), falls, atol=1e-4)


def test_what_to_hide():
    patches, places, frames = (hide_each((3, 2, 4), what) for what in ("patch", "place", "frame"))
    assert patches.shape == (24, 3, 2, 4) and (patches.sum((1, 2, 3)) == 1).all() and patches.any(0).all()
    assert patches[2 * 8 + 1 * 4 + 3, 2, 1, 3]
    assert places.shape == (8, 3, 2, 4) and (places.sum((1, 2, 3)) == 3).all() and places[7, :, 1, 3].all()
    assert frames.shape == (3, 3, 2, 4) and frames[1, 1].all() and not frames[1, [0, 2]].any()
    windows = hide_each((3, 2, 4), "window")
    assert windows.shape == (3, 3, 2, 4) and (windows.sum((1, 2, 3)) == 12).all()
    assert windows[1, :, :, 1:3].all() and not windows[1, :, :, [0, 3]].any()
    with pytest.raises(DataError, match="patch, place, window or frame"):
        hide_each((1, 2, 2), "corner")


def test_a_patch_gets_the_mean_fall_of_the_trials_that_hide_it():
    falls, hide = np.array([2.0, 4.0]), np.zeros((2, 1, 1, 4), dtype=bool)
    hide[0, 0, 0, :2] = hide[1, 0, 0, 1:3] = True
    assert onto_hidden(falls, hide).tolist() == [[[2, 3, 4, 0]]]
    patches = hide_each((2, 2, 2), "patch")
    np.testing.assert_array_equal(onto_hidden(np.arange(8.0), patches), np.arange(8.0).reshape(2, 2, 2))


@pytest.mark.parametrize("hide", [np.zeros((1, 2, 2), bool), np.zeros((1, 1, 4, 4), bool), np.zeros((1, 1, 2, 2))])
def test_what_is_hidden_must_fit_the_patches(model, media, hide):
    with pytest.raises(DataError, match=r"bool \(b, 1, 2, 2\)"):
        occlusion(model, media / "image.png", QUESTION, "red", hide)


def test_true_place_is_where_the_renderer_draws_it():
    mover = Thing("square", "red", "small", 0.5, 0.2, motion="moves right", reach=0.6)
    still = Thing("circle", "white", "large", 0.5, 0.75)
    scene = Scene((mover, still), seed=1, frames=15)
    frames = render(scene, 64)[np.linspace(0, 14, 8, dtype=int)].astype(float)
    red = (frames[..., 0] - frames[..., 1] > 90).reshape(8, 4, 16, 4, 16).mean((2, 4))
    white = (frames.min(-1) > 150).reshape(8, 4, 16, 4, 16).mean((2, 4))
    np.testing.assert_allclose(true_place(scene, mover, 8, 4), red, atol=0.08)
    np.testing.assert_allclose(true_place(scene, still, 8, 4), white, atol=0.08)
    image = Scene((still,), seed=1)
    assert true_place(image, still, 1, 4).shape == (1, 4, 4)
    np.testing.assert_allclose(true_place(image, still, 1, 4), true_place(scene, still, 1, 4))


def test_overlap_is_a_share_of_what_is_positive():
    place = np.zeros((2, 2, 2), dtype=bool)
    place[0, 0, 0] = True
    assert overlap(np.ones((2, 2, 2)), place) == place.mean() == 0.125
    weights = np.array([[[3.0, 1.0], [-7.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    assert overlap(weights, place) == 0.75
    assert overlap(-np.ones((2, 2, 2)), place) == 0
    np.testing.assert_allclose(overlap(np.stack([weights, 2 * weights]), place), [0.75, 0.75])
