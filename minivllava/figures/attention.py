"""Where a model looks: maps over patches, laid on what the model sees, and how such maps compare."""

from collections.abc import Sequence

import numpy as np

from minivllava.figures.frames import draw_frames, frames_height, heat_colours
from minivllava.figures.style import (
    BLUE,
    GREEN,
    LINE,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    WIDTH,
    Page,
    clean,
    name_axes,
    new_figure,
    wrapped,
)  # fmt: skip

OUTLINE = "#00e5ff"  # cyan, with a dark rim: seen on grey frames, under heat, and by colour-blind readers
SERIES = (BLUE, ORANGE, GREEN, PURPLE, SKY)


def attention_overlay(
    frames: np.ndarray, maps: dict[str, np.ndarray], width: float = WIDTH, dark: bool = False,
    label: str = "attention (%)", outline: np.ndarray | None = None, plain: bool = True,
):  # fmt: skip
    """An image or a clip, then the same in grey under the heat of each map, patch by patch.

    frames: uint8 (t, h, w, 3). maps: title -> share of the attention on each patch, (t, h, w) of the patch
    grid; nothing is drawn where a map is negative. Each map has its own scale, which starts at zero, and
    `label` says what it shows, in %. outline: bool (t, h, w), patches to draw a line around in every map.
    plain: whether what the model sees stands there too, without heat.
    """
    from matplotlib.ticker import MaxNLocator

    still = len(frames) == 1
    columns = len(frames) if still or width > 6 else -(-len(frames) // 2)
    panels = ({"what the model sees": None} if plain else {}) | maps
    each = (width - 0.15 * (len(panels) - 1)) / len(panels) if still else width
    height, size = frames_height(frames, each, columns), 10 if width > 6 else 8.5
    title = 0.08 + max(len(wrapped(text, each, size)) for text in panels) * size * LINE / 72
    line, scale = title + height, 0.58
    page = Page(width, line + scale if still else line * len(panels) + scale * (len(panels) - 1) + 0.1, dark)
    left, top = 0.0, 0.0
    for text, weights in panels.items():
        page.text(left, top + 0.02, text, each, size)
        axes = page.axes(left, top + title, each, height)
        heat = draw_frames(axes, frames if weights is None else _flattened(frames), columns, weights)
        if not still:
            _number_frames(axes, len(frames), columns, frames.shape[1] / frames.shape[2])
        if heat is not None:
            if outline is not None:
                _draw_outline(axes, outline, columns, frames.shape[1] / frames.shape[2])
            strip = page.axes(left + 0.15, top + line + 0.05, min(each, 3) - 0.3, 0.09)
            strip.set_facecolor("#4a4a4a")
            ticks = MaxNLocator(3 if each < 2 else 4)
            bar = page.figure.colorbar(heat, cax=strip, orientation="horizontal", ticks=ticks)
            bar.ax.tick_params(labelsize=9, labelcolor=page.ink.muted, length=2, pad=1)
            bar.outline.set_visible(False)
            bar.set_label(label, color=page.ink.muted, fontsize=9, labelpad=1)
        if still:
            left += each + 0.15
        else:
            top += line + (0.1 if heat is None else scale)
    return page.figure


def numbered_patches(frames: np.ndarray, numbers: np.ndarray, width: float = WIDTH):
    """Frames cut into patches, each with the number of its token. numbers: int (t, h, w)."""
    columns = len(frames) if len(frames) < 4 else 4
    height = frames_height(frames, width, columns)
    page = Page(width, height + 0.05)
    axes = page.axes(0, 0, width, height)
    draw_frames(axes, _flattened(frames), columns)
    t, rows, across = numbers.shape
    aspect, gap = frames.shape[1] / frames.shape[2], 0.035 if t > 1 else 0.0
    plate = {"boxstyle": "round,pad=0.15", "fc": "#000000a0", "ec": "none"}
    style = {"ha": "center", "va": "center", "fontsize": 9.5, "color": "#ffffff"}
    for frame in range(t):
        line, place = divmod(frame, columns)
        for row in range(rows):
            for column in range(across):
                x = place + (column + 0.5) / across * (1 - gap)
                y = line * aspect + (row + 0.5) / rows * (aspect - gap)
                axes.text(x, y, str(numbers[frame, row, column]), bbox=plate, **style)
        for i in range(1, across):
            x = place + i / across * (1 - gap)
            axes.plot([x, x], [line * aspect, (line + 1) * aspect - gap], color="#ffffff80", linewidth=0.8)
        for i in range(1, rows):
            y = line * aspect + i / rows * (aspect - gap)
            axes.plot([place, place + 1 - gap], [y, y], color="#ffffff80", linewidth=0.8)
    return page.figure


def head_maps(frames: np.ndarray, weights: np.ndarray):
    """Every layer's and head's map on one frame, small, with the share of attention that goes to patches.

    frames: uint8 (1, h, w, 3). weights: (layer, k, 1, h, w), shares of the attention.
    """
    layers, heads = weights.shape[:2]
    ink, figure = new_figure(6.5, 0.3 + heads * (5.85 / layers + 0.2))
    grey = np.repeat(_flattened(frames)[0].mean(-1, keepdims=True), 3, axis=-1).astype(np.uint8)
    panels = figure.subplots(heads, layers, squeeze=False)
    for layer in range(layers):
        for head in range(heads):
            axes, heat = panels[head, layer], weights[layer, head, 0]
            axes.imshow(grey, extent=(0, 1, 1, 0))
            axes.imshow(heat, extent=(0, 1, 1, 0), cmap=heat_colours(), vmin=0, vmax=max(heat.max(), 1e-9),
                        interpolation="nearest")  # fmt: skip
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
            axes.set_title(f"{100 * heat.sum():.0f} %", fontsize=8.5, color=ink.muted, pad=2)
            if head == heads - 1:
                axes.set_xlabel(f"layer {layer + 1}", fontsize=10, color=ink.text)
            if layer == 0:
                axes.set_ylabel(f"head {head + 1}", fontsize=10, color=ink.text)
    return figure


def frame_bars(panels: dict[str, dict[str, np.ndarray]], labels: Sequence[str]):
    """Values for each frame, as bars side by side. panels: title -> series -> (t,). labels: each panel's unit."""
    ink, figure = new_figure(WIDTH, 0.36 * WIDTH)
    for axes, (title, series), label in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), labels, strict=True
    ):
        clean(axes, ink, grid="y")
        thick = 0.8 / len(series)
        for number, (name, values) in enumerate(series.items()):
            places = np.arange(len(values)) + 1 + (number - (len(series) - 1) / 2) * thick
            axes.bar(places, values, width=0.92 * thick, color=SERIES[number], label=name,
                     hatch=("", "///", "...")[number % 3], edgecolor=ink.page, linewidth=0)  # fmt: skip
        axes.axhline(0, color=ink.grid, linewidth=1)
        axes.set_xticks(range(1, len(values) + 1))
        name_axes(axes, ink, title, "frame")
        axes.set_ylabel(label, color=ink.muted, fontsize=10)
        if len(series) > 1:
            axes.legend(frameon=False, fontsize=9.5, labelcolor=ink.text, loc="lower right", handlelength=1.2,
                        bbox_to_anchor=(1.02, 0.98), ncols=len(series), columnspacing=1.2)  # fmt: skip
    return figure


def overlap_chart(panels: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]], chance: Sequence[float]):
    """How much of each kind of map lies on the object: for the question asked, and for a question about another.

    panels: title -> kind of map -> (overlaps for the question asked (n,), for the other question (n,)), each
    0..1. Drawn are means with 95 % intervals (1.96 standard errors). chance: each panel's, as a line.
    """
    kinds = len(next(iter(panels.values())))
    ink, figure = new_figure(WIDTH, 1.0 + 0.55 * kinds)
    axes_row = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, (title, found), even in zip(axes_row, panels.items(), chance, strict=True):
        clean(axes, ink, grid="x")
        axes.axvline(100 * even, color=ink.muted, linewidth=1.4, linestyle="--")
        axes.text(100 * even, -0.62, "chance", color=ink.muted, fontsize=9, ha="center", va="bottom")
        for y, pair in enumerate(found.values()):
            means = [100 * values.mean() for values in pair]
            axes.plot(means, [y, y], color=ink.grid, linewidth=4, solid_capstyle="round")
            for mean, values, look in zip(means, pair, ((BLUE, "o", 0.12), (VERMILLION, "D", -0.12)), strict=True):
                colour, marker, shift = look
                error = 196 * values.std(ddof=1) / len(values) ** 0.5
                axes.errorbar(mean, y - shift, xerr=error, color=colour, marker=marker, markersize=8, linewidth=1.6,
                              markerfacecolor=colour if marker == "o" else ink.page, markeredgewidth=1.8)  # fmt: skip
        count = len(next(iter(found.values()))[0])
        axes.set_yticks(range(kinds), list(found))
        axes.tick_params(axis="y", labelsize=10, labelcolor=ink.text)
        axes.set_ylim(kinds - 0.5, -0.6)
        axes.set_xlim(0, 100)
        axes.set_title(f"{title} (n = {count})", loc="left", color=ink.text, fontsize=11, fontweight="bold", pad=16)
        axes.set_xlabel("share of the map on the object (%)", color=ink.muted, fontsize=10)
    _question_legend(figure, ink)
    return figure


def _flattened(frames: np.ndarray) -> np.ndarray:
    """Frames whose background, all that is nearly their median colour, has one colour: files are half as large."""
    background = np.median(frames, axis=(0, 1, 2))
    near = np.abs(frames - background).max(-1, keepdims=True) < 14
    return np.where(near, background, frames).astype(np.uint8)


def _number_frames(axes, count: int, columns: int, aspect: float):
    """A frame's number, from 1, in its top left corner, as `draw_frames` lays frames out."""
    plate = {"boxstyle": "round,pad=0.15", "fc": "#000000a0", "ec": "none"}
    for number in range(count):
        row, column = divmod(number, columns)
        axes.text(column + 0.04, row * aspect + 0.05, str(number + 1), ha="left", va="top", fontsize=8.5,
                  color="#ffffff", bbox=plate)  # fmt: skip


def _question_legend(figure, ink):
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=BLUE, marker="o", markersize=8, linestyle="none"),
               Line2D([], [], color=VERMILLION, marker="D", markersize=7, markerfacecolor=ink.page,
                      markeredgewidth=1.8, linestyle="none")]  # fmt: skip
    labels = ["asked about this object", "asked about another object (shuffled questions)"]
    figure.legend(handles, labels, loc="outside lower left", ncols=2, frameon=False, fontsize=10, labelcolor=ink.text)


def _draw_outline(axes, inside: np.ndarray, columns: int, aspect: float):
    """A line around the patches of `inside` (t, h, w), on frames as `draw_frames` lays them out."""
    t, rows, across = inside.shape
    gap = 0.035 if t > 1 else 0.0
    padded = np.pad(inside, ((0, 0), (1, 1), (1, 1)))
    segments = []
    for frame, row, column in np.argwhere(inside):
        line, place = divmod(int(frame), columns)
        x, y = place + column / across * (1 - gap), line * aspect + row / rows * (aspect - gap)
        right, below = x + (1 - gap) / across, y + (aspect - gap) / rows
        sides = {(-1, 0): ((x, right), (y, y)), (1, 0): ((x, right), (below, below)),
                 (0, -1): ((x, x), (y, below)), (0, 1): ((right, right), (y, below))}  # fmt: skip
        segments += [ends for (h, w), ends in sides.items() if not padded[frame, row + 1 + h, column + 1 + w]]
    for colour, thickness in (("#000000", 3.4), (OUTLINE, 2.0)):  # all of the rim first, so that none covers the line
        for ends in segments:
            axes.plot(*ends, color=colour, linewidth=thickness, solid_capstyle="projecting")
