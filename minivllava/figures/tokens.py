"""Tokens: where each of a sequence comes from, which are learned, how visual ones are spliced in.

A token's source is an integer: PADDING, TEXT, IMAGE, or FRAME + the number of a clip's frame, from 0.
"""

from collections.abc import Sequence
from itertools import groupby

import numpy as np

from minivllava.figures.style import BLUE, GREEN, SKY, VERMILLION, WIDTH, Inks, Page, clean, new_figure

PADDING, TEXT, IMAGE, FRAME = 0, 1, 2, 3
LEARNED = VERMILLION


def token_words(ids: Sequence[int], tokenizer) -> list[str]:
    """Each id's piece of text: spaces as "·", line ends as "↵", special tokens by name; visual ones as "▦"."""
    special = {tokenizer.pad: "<pad>", tokenizer.bos: "<s>", tokenizer.eos: "</s>"}
    words = [special.get(int(i)) or (tokenizer.decode([int(i)]) if i >= 0 else "▦") for i in ids]
    return [word.replace(" ", "·").replace("\n", "↵") for word in words]


def token_boxes(
    words: Sequence[str],
    sources: Sequence[int],
    learned: Sequence[bool] | None = None,
    targets: Sequence[str] | None = None,
):
    """A sequence as boxes in lines of text, coloured by source; learned tokens are underlined.

    words: what stands in each box. learned: which have a label. targets: what to write below each box, e.g.
    the token that is predicted there; "" for nothing.
    """
    size, height, gap = 9.5, 0.27, 0.04
    letter = 0.61 * size / 72  # inches that a letter of the monospaced face takes
    below = 0.2 if targets is not None else 0.06
    places, left, top = [], 0.0, 0.0
    for i, word in enumerate(words):
        longest = max(len(word), len(targets[i]) if targets is not None else 0)
        across = longest * letter + 0.1
        if left + across > WIDTH:
            left, top = 0.0, top + height + below + 0.08
        places.append((left, top, across))
        left += across + gap
    kinds = list(dict.fromkeys(min(s, FRAME) for s in sources))
    bottom = top + height + below
    page = Page(WIDTH, bottom + 0.42)
    axes = page.axes(0, 0, WIDTH, bottom)
    axes.set_axis_off()
    axes.set_xlim(0, WIDTH)
    axes.set_ylim(bottom, 0)
    for i, (left, top, across) in enumerate(places):
        _box(axes, page.ink, (left, top, across, height), sources[i])
        style = {"ha": "center", "va": "center", "family": "monospace", "fontsize": size}
        axes.text(left + across / 2, top + height / 2, words[i], color=_on(sources[i], page.ink), **style)
        if learned is not None and learned[i]:
            axes.plot([left, left + across], [top + height + 0.03] * 2, color=LEARNED, linewidth=3.2, clip_on=False)
        if targets is not None and targets[i]:
            axes.text(left + across / 2, top + height + 0.1, targets[i], color=page.ink.wrong,
                      fontweight="bold", **style)  # fmt: skip
    handles, labels = _legend(kinds, page.ink, learned is not None, targets is not None)
    page.figure.legend(handles, labels, loc="lower left", bbox_to_anchor=(-0.008, -0.01), ncols=6, frameon=False,
                       fontsize=9.5, labelcolor=page.ink.text, handlelength=1.2, columnspacing=1.4)  # fmt: skip
    return page.figure


def batch_strips(sources: np.ndarray, learned: np.ndarray, names: Sequence[str]):
    """A batch, one row for each sample, as strips coloured by source; below each, what is learned.

    sources: int (b, s). learned: bool (b, s). names: what to call each row.
    """
    rows, length = sources.shape
    ink, figure = new_figure(WIDTH, 0.95 + 0.55 * rows)
    axes = figure.subplots()
    clean(axes, ink, grid="x")
    for y, (row, marks) in enumerate(zip(sources, learned, strict=True)):
        for code, start, count in runs(row):
            _box(axes, ink, (start, y, count, 0.6), code)
            if code >= FRAME and count > 6:
                label = f"f{code - FRAME + 1}" if length > 150 else f"frame {code - FRAME + 1}"
                axes.text(start + count / 2, y + 0.3, label, color=_on(code, ink), fontsize=8.5, ha="center",
                          va="center")  # fmt: skip
        for code, start, count in runs(marks):
            if code:
                axes.broken_barh([(start, count)], (y + 0.64, 0.12), color=LEARNED, linewidth=0)
    axes.set_xlim(0, length)
    axes.set_ylim(rows - 0.1, -0.1)
    axes.set_yticks(np.arange(rows) + 0.3, names)
    axes.tick_params(axis="y", labelsize=10, labelcolor=ink.text)
    axes.set_xlabel("position in the sequence (tokens)", color=ink.muted, fontsize=10)
    kinds = sorted({min(int(code), FRAME) for code in sources.flat} - {PADDING}) + [PADDING]
    handles, labels = _legend([k for k in kinds if k in sources or k == FRAME], ink, True, False)
    figure.legend(handles, labels, loc="outside upper left", ncols=5, frameon=False, fontsize=9.5,
                  labelcolor=ink.text, handlelength=1.2, columnspacing=1.4)  # fmt: skip
    return figure


def embedding_rows(rows: dict[str, np.ndarray], sources: Sequence[int], channels: int = 16):
    """Matrices of token vectors under each other, one column for each position: a splice, before and after.

    rows: title -> float (s, d); rows of NaN are places where nothing stands. The first `channels` are drawn,
    on a scale that is logarithmic beyond a fiftieth of the largest value.
    sources: (s,), the colour above each column.
    """
    from matplotlib.colors import SymLogNorm

    ink, figure = new_figure(WIDTH, 0.5 + 1.15 * len(rows))
    panels = list(figure.subplots(len(rows), 1, squeeze=False)[:, 0])
    values = np.concatenate([matrix.ravel() for matrix in rows.values()])
    reach = np.nanmax(np.abs(values))
    for axes, (title, matrix) in zip(panels, rows.items(), strict=True):
        axes.set_facecolor(ink.page)
        for code, start, count in runs(sources):
            _box(axes, ink, (start, -3.2, count, 2.4), code)
        image = axes.imshow(
            matrix[:, :channels].T, cmap="PuOr", norm=SymLogNorm(reach / 50, vmin=-reach, vmax=reach), aspect="auto",
            interpolation="nearest",
            extent=(0, len(matrix), channels, 0),
        )  # fmt: skip
        axes.set_xlim(0, len(matrix))
        axes.set_ylim(channels, -3.4)
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0, labelsize=9, labelcolor=ink.muted)
        axes.set_title(title, loc="left", fontsize=10, color=ink.text)
        axes.set_ylabel(f"{channels} of {matrix.shape[1]}\nchannels", fontsize=8.5, color=ink.muted)
        if axes is not panels[-1]:
            axes.set_xticklabels([])
    axes.set_xlabel("position in the sequence (tokens)", color=ink.muted, fontsize=10)
    bar = figure.colorbar(image, ax=panels, shrink=0.6, aspect=25, pad=0.01)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=9, labelcolor=ink.muted, length=0)
    ticks = [tick for tick in (-10, -1, -0.1, 0, 0.1, 1, 10) if reach / 50 <= abs(tick) <= reach or not tick]
    bar.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    bar.ax.minorticks_off()
    bar.set_label("value (logarithmic)", fontsize=9, color=ink.muted)
    return figure


def attention_matrix(patterns: dict[str, np.ndarray], sources: Sequence[int]):
    """Attention patterns side by side, rows look at columns, with each position's source on both sides.

    patterns: title -> float (s, s). The colour is logarithmic, from 0.1 % to all of a row's attention.
    """
    from matplotlib.colors import LogNorm

    each = WIDTH / len(patterns)
    ink, figure = new_figure(WIDTH, 0.92 * each + 0.75)
    panels = figure.subplots(1, len(patterns), squeeze=False)[0]
    length = len(sources)
    edge = length / 30
    for axes, (title, pattern) in zip(panels, patterns.items(), strict=True):
        axes.set_facecolor(ink.page)
        image = axes.imshow(
            np.ma.masked_less_equal(pattern, 0), cmap="cividis", norm=LogNorm(1e-3, 1), interpolation="nearest",
            extent=(0, length, length, 0),
        )  # fmt: skip
        for code, start, count in runs(sources):
            _box(axes, ink, (start, -1.6 * edge, count, 1.2 * edge), code)
            _box(axes, ink, (-1.6 * edge, start, 1.2 * edge, count), code)
        axes.set_xlim(-1.8 * edge, length)
        axes.set_ylim(length, -1.8 * edge)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0, labelsize=9, labelcolor=ink.muted)
        axes.set_title(title, loc="left", fontsize=10.5, color=ink.text)
        axes.set_xlabel("is looked at (position)", color=ink.muted, fontsize=10)
    panels[0].set_ylabel("looks (position)", color=ink.muted, fontsize=10)
    bar = figure.colorbar(image, ax=list(panels), shrink=0.75, aspect=28, pad=0.01)
    bar.outline.set_visible(False)
    bar.ax.set_yticks([1e-3, 1e-2, 1e-1, 1], ["0.1 %", "1 %", "10 %", "100 %"])
    bar.ax.minorticks_off()
    bar.ax.tick_params(labelsize=9, labelcolor=ink.muted, length=0)
    bar.set_label("share of the row's attention", fontsize=9, color=ink.muted)
    handles, labels = _legend(sorted({min(int(s), FRAME) for s in sources}), ink, False, False)
    figure.legend(handles, labels, loc="outside lower left", ncols=5, frameon=False, fontsize=9.5,
                  labelcolor=ink.text, handlelength=1.2, columnspacing=1.4)  # fmt: skip
    return figure


def token_budget(rows: Sequence[tuple[str, int, int, int]]):
    """How much of the context one image or one clip takes. rows: (name, source, tokens, context)."""
    ink, figure = new_figure(WIDTH, 0.55 + 0.34 * len(rows))
    axes = figure.subplots()
    clean(axes, ink, grid="x")
    for y, (_, source, tokens, context) in enumerate(rows):
        share = 100 * tokens / context
        axes.barh(y, 100, height=0.62, color="none", edgecolor=ink.grid, linewidth=1)
        axes.barh(y, share, height=0.62, color=_colour(source, ink))
        axes.text(share + 1, y, f"{tokens:,} of {context:,}", va="center", fontsize=9.5, color=ink.text)
    axes.set_yticks(range(len(rows)), [row[0] for row in rows])
    axes.tick_params(axis="y", labelsize=10, labelcolor=ink.text)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of the language model's context (%)", color=ink.muted, fontsize=10)
    return figure


def runs(values: Sequence[int]) -> list[tuple[int, int, int]]:
    """(value, where it starts, how often it stands there in a row) for each stretch of equal values."""
    found, start = [], 0
    for value, group in groupby(int(v) for v in values):
        count = len(list(group))
        found.append((value, start, count))
        start += count
    return found


def _colour(source: int, ink: Inks) -> str:
    if source == PADDING:
        return ink.page
    if source == TEXT:
        return ink.grid
    return GREEN if source == IMAGE else (BLUE, SKY)[(source - FRAME) % 2]


def _on(source: int, ink: Inks) -> str:
    """The colour of letters on a source's box."""
    dark_letters = "#111111"
    return {PADDING: ink.muted, TEXT: ink.text, IMAGE: "#ffffff"}.get(
        source, ("#ffffff", dark_letters)[(source - FRAME) % 2]
    )


def _box(axes, ink: Inks, box: tuple[float, float, float, float], source: int):
    from matplotlib.patches import Rectangle

    left, top, across, height = box
    hatch = "////" if source == PADDING else None
    axes.add_patch(Rectangle((left, top), across, height, facecolor=_colour(source, ink), linewidth=0.6,
                             edgecolor=ink.grid if source == PADDING else ink.page, hatch=hatch))  # fmt: skip


def _legend(kinds: Sequence[int], ink: Inks, learned: bool, targets: bool):
    """Handles and labels of the sources there are."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles, labels = [], []
    for kind in kinds:
        hatch = {"hatch": "////", "edgecolor": ink.grid} if kind == PADDING else {}
        handles.append(Patch(facecolor=_colour(kind, ink), **hatch))
        labels.append({PADDING: "padding", TEXT: "text", IMAGE: "image token"}.get(kind, "clip token (by frame)"))
    if learned:
        handles.append(Line2D([], [], color=LEARNED, linewidth=3.2))
        labels.append("learned")
    if targets:
        handles.append(Line2D([], [], color=ink.wrong, marker="$a$", linestyle="none"))
        labels.append("below: what this position must predict")
    return handles, labels
