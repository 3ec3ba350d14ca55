"""Figures of tokens, of the language model's parts and of where it looks: they show what they were given."""

import io

import numpy as np
from matplotlib.colors import to_hex
from tiny import tiny_tokenizer

from minivllava.figures import attention, decoder, tokens
from minivllava.figures.style import BLUE, GREEN, SKY
from minivllava.figures.tokens import FRAME, IMAGE, PADDING, TEXT


def words(figure) -> list[str]:
    """All texts that stand in a figure, after drawing it: legends and axes too."""
    from matplotlib.text import Text

    figure.savefig(io.BytesIO())
    return [text.get_text() for text in figure.findobj(Text) if text.get_text() and text.get_visible()]


def boxes(axes, colour: str) -> list[tuple[float, float]]:
    """(left, width) of the rectangles of one colour."""
    return [
        (patch.get_x(), patch.get_width()) for patch in axes.patches if to_hex(patch.get_facecolor()) == colour.lower()
    ]


def test_runs():
    assert tokens.runs([1, 1, 2, 1]) == [(1, 0, 2), (2, 2, 1), (1, 3, 1)]
    assert tokens.runs([]) == []


def test_token_words():
    tokenizer = tiny_tokenizer()
    ids = [tokenizer.bos, *tokenizer.encode("red square\n"), -200, tokenizer.eos]
    found = tokens.token_words(ids, tokenizer)
    assert found[0] == "<s>" and found[-2:] == ["▦", "</s>"] and "".join(found[1:-2]) == "red·square↵"


def test_token_boxes_show_every_word_and_mark_what_is_learned():
    labels = [f"w{i}" for i in range(30)]
    sources = [TEXT] * 10 + [IMAGE] * 4 + [FRAME, FRAME + 1] * 8
    learned = [i % 7 == 0 for i in range(30)]
    figure = tokens.token_boxes(labels, sources, learned)
    assert [text for text in words(figure) if text[0] == "w"] == labels
    axes = figure.axes[0]
    assert len(axes.lines) == sum(learned)
    assert all(left + across <= 9 + 1e-6 for left, across in boxes(axes, GREEN) + boxes(axes, BLUE))
    assert len(boxes(axes, GREEN)) == 4 and len(boxes(axes, BLUE)) == len(boxes(axes, SKY)) == 8
    shown = words(tokens.token_boxes(labels, sources, targets=[""] * 29 + ["next"]))
    assert "next" in shown and "below: what this position must predict" in shown


def test_batch_strips_are_as_long_as_their_sources():
    sources = np.array(
        [[TEXT] * 2 + [IMAGE] * 4 + [TEXT] * 3 + [PADDING] * 13, [TEXT] * 4 + [FRAME] * 8 + [FRAME + 1] * 10]
    )
    figure = tokens.batch_strips(sources, sources == TEXT, ["image", "clip"])
    shown = words(figure)
    assert {"image", "clip", "padding", "learned", "frame 1", "frame 2"} <= set(shown)
    axes = figure.axes[0]
    assert boxes(axes, GREEN) == [(2, 4)] and boxes(axes, BLUE) == [(4, 8)] and boxes(axes, SKY) == [(12, 10)]


def test_embedding_rows_keep_empty_places_empty():
    matrix = np.random.default_rng(0).normal(size=(6, 20))
    matrix[2:4] = np.nan
    figure = tokens.embedding_rows(
        {"one": matrix, "two": np.nan_to_num(matrix)}, [TEXT] * 2 + [IMAGE] * 2 + [TEXT] * 2, 5
    )
    assert {"one", "two"} <= set(words(figure))
    drawn = figure.axes[0].images[0].get_array()
    assert drawn.shape == (5, 6) and np.isnan(np.ma.filled(drawn, np.nan)[:, 2:4]).all()


def test_attention_matrix_leaves_the_future_white():
    pattern = np.tril(np.full((8, 8), 0.2))
    figure = tokens.attention_matrix({"layer 1": pattern, "layer 2": pattern}, [TEXT] * 3 + [FRAME] * 5)
    assert {"layer 1", "layer 2", "0.1 %", "100 %"} <= set(words(figure))
    drawn = figure.axes[0].images[0].get_array()
    assert np.array_equal(np.ma.getmaskarray(drawn), pattern == 0)


def test_token_budget():
    figure = tokens.token_budget([("tiny, a clip", FRAME, 128, 1024), ("7B, an image", IMAGE, 256, 4096)])
    assert {"tiny, a clip", "7B, an image", "128 of 1,024", "256 of 4,096"} <= set(words(figure))
    assert [round(width, 2) for _, width in boxes(figure.axes[0], BLUE)] == [12.5]


def test_decoder_layer_and_parameters():
    assert words(decoder.decoder_layer({"SwiGLU": "gated"})).count("RMSNorm") == 2
    assert "gated" in words(decoder.decoder_layer({"SwiGLU": "gated"}))
    shown = words(decoder.parameter_shares({"a": {"x": 750_000, "y": 250_000}, "b": {"x": 2_000_000_000, "y": 10}}))
    assert {"a (1 M)", "b (2 B)", "75 %", "25 %", "100 %"} <= set(shown)


def test_norms_and_rotations():
    points = np.array([[3.0, 4.0], [0.0, 1.0]])
    figure = decoder.norm_before_after({"before": points, "after": points / 5}, radius=1.0)
    first, second = figure.axes
    assert first.get_xlim()[1] > 4 and second.get_xlim()[1] < 2
    dials = decoder.rotation_dials(np.array([[0.0, np.pi / 2]]), ["pair 1"])
    _, up = [text for text in dials.axes[0].texts if text.arrow_patch]
    assert up.xyann == (1, 0) and np.allclose(up.xy, (1, -0.38))  # counter-clockwise, as angles are
    figure = decoder.relative_scores(np.arange(16.0).reshape(4, 4), queries=(1, 3))
    line = figure.axes[1].lines[1]
    assert list(line.get_xdata()) == [3, 2, 1, 0] and list(line.get_ydata()) == [12, 13, 14, 15]


def test_gates_cache_and_times():
    gates = np.linspace(-1, 1, 5)
    assert {"SiLU", "value 2"} <= set(words(decoder.gate_curves(gates, {"SiLU": gates}, {"value 2": 2 * gates})))
    figure = decoder.cache_work(prompt=3, steps=4)
    shown = words(figure)
    assert "without a cache: 18 positions computed" in shown and "with a KV cache: 6 positions computed" in shown
    filled = [patch for patch in figure.axes[1].patches if to_hex(patch.get_facecolor()) != "#ffffff"]
    assert len(filled) == 6 and len(figure.axes[0].patches) == len(figure.axes[1].patches) == 18
    assert "with" in words(decoder.time_per_token([1, 2], {"without": [1.0, 2.0], "with": [1.0, 1.0]}))


def test_numbered_patches_count_frame_by_frame():
    frames = np.zeros((8, 32, 32, 3), np.uint8)
    figure = attention.numbered_patches(frames, np.arange(32).reshape(8, 2, 2))
    at = {text.get_text(): text.get_position() for text in figure.axes[0].texts}
    assert at["1"][0] > at["0"][0] and at["1"][1] == at["0"][1] and at["2"][1] > at["0"][1]
    assert 1 < at["4"][0] < 2 and at["16"][1] > 1  # the second frame beside the first, the fifth below it


def test_outline_goes_around_the_object():
    frames, inside = np.zeros((1, 32, 32, 3), np.uint8), np.zeros((1, 4, 4), bool)
    inside[0, 1, 1:4] = True
    heat = np.ones((1, 4, 4)) / 16
    figure = attention.attention_overlay(frames, {"a": heat}, outline=inside, label="share (%)")
    ends = np.array([line.get_xydata() for axes in figure.axes for line in axes.lines if len(line.get_xydata()) == 2])
    across = ends[:, 0, 1] == ends[:, 1, 1]
    assert across.sum() == 12 and len(ends) == 16  # three patches wide and one high; each line lies on a rim
    assert (ends.min((0, 1)) == (0.25, 0.25)).all() and (ends.max((0, 1)) == (1.0, 0.5)).all()
    assert "share (%)" in words(figure)


def test_heads_frames_and_overlaps():
    weights = np.full((3, 2, 1, 4, 4), 1 / 32)
    weights[2, 1] = 0
    shown = words(attention.head_maps(np.zeros((1, 16, 16, 3), np.uint8), weights))
    assert shown.count("50 %") == 5 and shown.count("0 %") == 1 and {"layer 3", "head 2"} <= set(shown)
    figure = attention.frame_bars(
        {"a": {"x": np.arange(4), "y": -np.arange(4)}, "b": {"": np.arange(4)}}, ["%", "nats"]
    )
    assert [patch.get_height() for patch in figure.axes[0].patches] == [0, 1, 2, 3, 0, -1, -2, -3]
    assert {"x", "y", "nats"} <= set(words(figure))
    maps = {"attention": (np.array([0.2, 0.4]), np.array([0.2, 0.2])), "occlusion": (np.array([0.9, 0.7]), np.zeros(2))}
    figure = attention.overlap_chart({"Images": maps}, [0.1])
    assert {"Images (n = 2)", "chance", "attention", "occlusion"} <= set(words(figure))
    means = [line.get_xdata() for line in figure.axes[0].lines if len(line.get_xdata()) == 2]
    assert any(np.allclose(pair, (80, 0)) for pair in means) and any(np.allclose(pair, (30, 20)) for pair in means)
