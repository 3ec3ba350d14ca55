"""Figures of the lessons on patches, time and alignment show the numbers that they are given, and name them."""

import io

import matplotlib
import numpy as np
import pytest
import torch
from einops import rearrange
from matplotlib.figure import Figure
from PIL import Image

from minivllava import figures
from minivllava.evaluation.retrieval import modality_gap, principal_plane

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 255, (16, 16, 3), dtype=np.uint8)
CLIP = RNG.integers(0, 255, (5, 16, 16, 3), dtype=np.uint8)


def words(figure) -> list[str]:
    figure.canvas.draw()
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_visible()]


def images(figure) -> list[np.ndarray]:
    return [np.asarray(image.get_array()) for axes in figure.axes for image in axes.images]


def test_number_tables_show_every_number_and_tint_groups_alike():
    table, group = np.array([[1.5, -2.0], [0.25, 7.0]]), np.array([[0, 1], [1, 0]])
    figure = figures.number_tables({"left": table, "right": table.T}, {"left": group}, signs=["="])
    shown = words(figure)
    assert shown.count("1.50") == shown.count("-2.00") == shown.count("7.00") == 2
    assert {"left", "right", "="} <= set(shown)
    tints = [patch.get_facecolor() for patch in figure.axes[0].patches]
    assert tints[0] == tints[3] != tints[1] == tints[2]
    darkest = min(figure.axes[1].patches, key=lambda patch: sum(patch.get_facecolor()))
    assert tuple(darkest.get_xy()[0]) == (1, 1)  # 7.0, the largest


def test_shares_are_in_per_cent_beside_chance():
    figure = figures.shares({"a": 0.25, "b": 1.0}, "who is right?", chance=0.5)
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == [25, 100]
    assert axes.lines[0].get_xdata()[0] == 50 and axes.get_xlabel() == "share (%)"
    assert {"a", "b", "25", "100", "chance", "who is right?"} <= set(words(figure))


def test_patches_stand_in_raster_order():
    figure = figures.patch_sequence(IMAGE, grid=4)
    whole, *patches = images(figure)
    np.testing.assert_array_equal(whole, IMAGE)
    np.testing.assert_array_equal(np.stack(patches), rearrange(IMAGE, "(h i) (w j) c -> (h w) i j c", h=4, w=4))
    assert words(figure).count("16") == 2  # in the image and under the patch


def test_maps_of_places_and_tokens_keep_rows_and_columns():
    similarity = RNG.uniform(-0.5, 0.5, (9, 9)) + np.eye(9)
    small = images(figures.place_similarity(similarity, grid=3))[:9]
    np.testing.assert_allclose(np.stack(small), rearrange(similarity, "n (h w) -> n h w", h=3))
    values = RNG.uniform(0, 1, (4, 4))
    figure = figures.token_similarity(IMAGE, {"after layer 1": values}, marked=(0, 3))
    np.testing.assert_allclose(images(figure)[1], values)
    frame = figure.axes[1].lines[0].get_xydata()
    assert frame[:, 0].min() > 2 and frame[:, 1].max() < 1  # column 3, row 0


def test_attention_reach_counts_what_it_colours():
    figure = figures.attention_reach(frames=3, grid=2)
    shown = "\n".join(words(figure))
    for cost in ("3 x 4² = 48", "4 x 3² = 36", "12² = 144"):
        assert cost in shown
    blue = matplotlib.colors.to_rgba(figures.LIGHT.model)
    reached = [sum(patch.get_facecolor() == blue for patch in axes.patches) for axes in figure.axes]
    assert [sum(reached[row : row + 3]) for row in (0, 3, 6)] == [3, 2, 11]  # without the one that asks


def test_clips_spreads_and_patterns():
    figure = figures.clip_strips({"first": CLIP, "second": CLIP[::-1]})
    np.testing.assert_array_equal(np.stack(images(figure)), np.concatenate([CLIP, CLIP[::-1]]))
    assert {"first", "second", "frame, in order of time"} <= set(words(figure))
    (axes,) = figures.spreads({"a": [0.0, 0.2, 1.0], "b": [0.5]}, "distance").axes
    np.testing.assert_allclose(axes.lines[0].get_xdata(), [0.0, 0.2, 1.0])
    assert axes.lines[1].get_xdata()[0] == 0.2 and axes.get_xlabel() == "distance"
    pattern = RNG.dirichlet(np.ones(4), 4)
    figure = figures.time_patterns({"layer 1": pattern})
    np.testing.assert_allclose(images(figure)[0], pattern)
    assert {"frame read", "frame that reads"} <= set(words(figure))


def test_attention_spread_has_one_panel_for_each_row():
    figure = figures.attention_spread({"even": [0.5, 0.5], "one": [0.1, 0.9]})
    assert [[bar.get_height() for bar in axes.patches] for axes in figure.axes] == [[0.5, 0.5], [0.1, 0.9]]


def test_similarities_are_shown_pair_by_pair():
    cosines = RNG.uniform(-1, 1, (3, 3))
    figure = figures.scored_pairs([IMAGE] * 3, ["a cat", "a dog", "a cow"], cosines)
    assert {f"{value:.2f}" for value in cosines.flat} <= set(words(figure))
    assert "2. a dog" in words(figure)
    figure = figures.similarity_matrices({"before": cosines, "after": cosines.T})
    np.testing.assert_allclose(images(figure)[0], cosines)
    np.testing.assert_allclose(images(figure)[1], cosines.T)


def test_recall_curves_stand_beside_chance():
    (axes,) = figures.recall_curves({"one": [0.1, 0.5]}, ks=(1, 10), candidates=50).axes
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [10, 50])
    np.testing.assert_allclose(axes.lines[1].get_ydata(), [2, 20])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["one", "chance"]


def test_joint_maps_join_points_of_one_scene():
    kinds = {kind: RNG.normal(size=(4, 2)) for kind in ("image", "clip", "caption")}
    first, second = figures.joint_maps({"before": kinds, "after": kinds}, highlighted=2).axes
    triangle = first.lines[2].get_xydata()
    np.testing.assert_allclose(triangle, [kinds[k][2] for k in ("image", "clip", "caption", "image")])
    assert first.lines[2].get_linewidth() > first.lines[0].get_linewidth()
    assert first.get_xlim() == second.get_xlim() and first.get_title(loc="left") == "before"


def test_circle_pull_draws_before_and_after():
    texts = np.array([[1.0, 0.0], [0.0, 1.0]])
    figure = figures.circle_pull(texts[::-1], texts, texts)
    before, after = figure.axes
    assert [tuple(line.get_xydata()[0]) for line in before.lines[3:7:3]] == [(0.0, 1.0), (1.0, 0.0)]
    assert [tuple(line.get_xydata()[0]) for line in after.lines[3:7:3]] == [(1.0, 0.0), (0.0, 1.0)]


@pytest.mark.parametrize("dark", [False, True])
def test_both_pages(dark):
    page = (figures.DARK if dark else figures.LIGHT).page
    for figure in (
        figures.loss_curves({"stage1": [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]}, dark=dark),
        figures.accuracy_by_type([{"kind": "image", "type": "all", "n": 1, "model": 0.5}], dark=dark),
        figures.attention_overlay(IMAGE[None], {"a": np.full((1, 2, 2), 0.25)}, dark=dark),
    ):
        assert isinstance(figure, Figure) and figure.get_facecolor() == matplotlib.colors.to_rgba(page)


def test_a_chart_of_few_colours_looks_the_same_and_is_smaller():
    """A colour that is rare on the page stays, where a palette of the commonest would lose it."""
    panels = {"x": {name: (50.0, 40.0, 60.0) for name in ("one", "two", "three")}}
    figure = figures.intervals(panels)
    figure.axes[0].plot([45], [0], "o", color="#E69F00", markersize=4)
    whole = io.BytesIO()
    figure.savefig(whole, format="png", dpi=100)
    small = figures.chart_png(figure)
    assert len(small) < 0.6 * len(whole.getvalue())
    one, other = (np.asarray(Image.open(file).convert("RGB"), dtype=int) for file in (whole, io.BytesIO(small)))
    assert np.abs(one - other).max() <= 16, "of 255"


def test_settings_of_matplotlib_stay():
    settings = dict(matplotlib.rcParams)
    figures.scored_pairs([IMAGE], ["a"], np.ones((1, 1)))
    figures.time_patterns({"layer 1": np.eye(3)})
    assert dict(matplotlib.rcParams) == settings


def test_plane_and_gap_of_clouds():
    """Three directions of falling spread: the plane holds the first two, turned the same way each time."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(6, 3, generator=generator)).Q
    cloud = torch.randn(400, 3, generator=generator) @ torch.diag(torch.tensor([9.0, 3.0, 0.1])) @ directions.T + 5
    centre, axes = principal_plane(cloud)
    torch.testing.assert_close(centre, cloud.mean(0))
    torch.testing.assert_close((axes * directions[:, :2]).sum(0).abs(), torch.ones(2), atol=0.02, rtol=0)
    assert (axes.gather(0, axes.abs().argmax(0, keepdim=True)) > 0).all()
    assert modality_gap(cloud, cloud.flip(0)) == pytest.approx(0, abs=1e-5)
    assert modality_gap(cloud, cloud + 2 * directions[:, 0]) == pytest.approx(2, rel=1e-4)
