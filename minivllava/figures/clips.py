"""Time: clips beside each other, who attends to whom, what reversing a clip changes."""

from collections.abc import Sequence

import numpy as np

from minivllava.figures.frames import draw_frames, frames_height
from minivllava.figures.style import LINE, ORANGE, WIDTH, Page, clean, new_figure, quiet_bar, wrapped


def clip_strips(clips: dict[str, np.ndarray], columns: str = "frame, in order of time"):
    """Clips below each other, each under its title. clips: title -> uint8 (t, h, w, 3). columns: what these are."""
    size = 10
    titles = [len(wrapped(title, WIDTH, size)) * size * LINE / 72 + 0.06 for title in clips]
    strips = [frames_height(frames, WIDTH, len(frames)) for frames in clips.values()]
    page = Page(WIDTH, sum(titles) + sum(strips) + 0.12 * len(clips) + 0.3)
    top = 0.0
    for (title, frames), above, strip in zip(clips.items(), titles, strips, strict=True):
        page.text(0, top + 0.02, title, WIDTH, size, fontweight="bold")
        axes = page.axes(0, top + above, WIDTH, strip)
        draw_frames(axes, frames, len(frames))
        top += above + strip + 0.12
    axes.set_xticks(np.arange(len(frames)) + 0.48, range(1, len(frames) + 1))
    axes.set_xlabel(columns, color=page.ink.muted, fontsize=10)
    axes.tick_params(axis="x", length=0, labelsize=10, labelcolor=page.ink.muted)
    return page.figure


def attention_reach(frames: int, grid: int):
    """Which patches of a clip one patch attends to: in its frame, through time, or everywhere; and the cost."""
    n = grid**2
    query = (frames // 2, grid // 2, grid // 2 - 1)
    inside, through = np.zeros((2, frames, grid, grid), bool)
    inside[query[0]] = True
    through[:, query[1], query[2]] = True
    kinds = {
        f"spatial: the {n} patches of its own frame": (inside, f"{frames} x {n}² = {frames * n**2:,} weights"),
        f"temporal: its own place in the {frames} frames": (through, f"{n} x {frames}² = {n * frames**2:,} weights"),
        f"joint: all {frames * n} patches (not used)": (
            np.ones_like(inside),
            f"{frames * n}² = {(frames * n) ** 2:,} weights",
        ),
    }
    label = 2.55
    strip = (WIDTH - label) / frames
    row = strip + 0.14
    page = Page(WIDTH, len(kinds) * row + 0.1)
    for number, (title, (reached, cost)) in enumerate(kinds.items()):
        top = number * row
        end = page.text(0, top + 0.12, title, label - 0.15, 10, fontweight="bold")
        page.text(0, end + 0.03, cost, label - 0.1, 9.5, color=page.ink.muted)
        for t in range(frames):
            axes = page.axes(label + t * strip, top, 0.93 * strip, 0.93 * strip)
            axes.set_axis_off()
            axes.set_xlim(-0.03, grid)
            axes.set_ylim(grid, -0.03)
            for y, x in np.ndindex(grid, grid):
                colour = ORANGE if (t, y, x) == query else page.ink.model if reached[t, y, x] else page.ink.grid
                axes.fill([x, x + 0.9, x + 0.9, x], [y, y, y + 0.9, y + 0.9], color=colour, linewidth=0)
                if (t, y, x) == query:
                    axes.text(x + 0.45, y + 0.5, "?", ha="center", va="center", fontsize=9, fontweight="bold")
    return page.figure


def spreads(values: dict[str, Sequence[float]], label: str, seed: int = 0):
    """Each clip a dot, each way of reading clips a line of dots; a bar marks the median.

    seed: of the dots' vertical jitter, which means nothing.
    """
    ink, figure = new_figure(WIDTH, 0.8 + 0.5 * len(values))
    axes = figure.subplots()
    clean(axes, ink, grid="x")
    rng = np.random.default_rng(seed)
    for y, found in enumerate(values.values()):
        axes.plot(found, y + rng.uniform(-0.22, 0.22, len(found)), "o", color=ink.model, markersize=4.5, alpha=0.55,
                  markeredgewidth=0, clip_on=False)  # fmt: skip
        axes.plot([np.median(found)] * 2, [y - 0.34, y + 0.34], color=ink.text, linewidth=2.5)
    axes.set_yticks(range(len(values)), values)
    axes.tick_params(axis="y", labelsize=10.5, labelcolor=ink.text)
    axes.set_ylim(len(values) - 0.45, -0.55)
    axes.set_xlim(left=-0.02 * max(max(found) for found in values.values()))
    axes.set_xlabel(label, color=ink.muted, fontsize=10)
    return figure


def time_patterns(patterns: dict[str, np.ndarray]):
    """Temporal attention, layer by layer: how much a frame (row) reads from each frame (column).

    patterns: title -> (t, t), rows that sum to 1.
    """
    ink, figure = new_figure(WIDTH, 0.75 + (WIDTH - 1) / len(patterns))
    panels = figure.subplots(1, len(patterns), squeeze=False)[0]
    high = max(pattern.max() for pattern in patterns.values())
    for number, (axes, (title, pattern)) in enumerate(zip(panels, patterns.items(), strict=True)):
        image = axes.imshow(pattern, cmap="cividis", vmin=0, vmax=high)
        ticks = range(0, len(pattern), 2 if len(pattern) > 5 else 1)
        axes.set_xticks(ticks, [tick + 1 for tick in ticks])
        axes.set_yticks(ticks, [tick + 1 for tick in ticks] if number == 0 else [])
        axes.tick_params(length=0, labelsize=9, labelcolor=ink.muted)
        axes.spines[:].set_visible(False)
        axes.set_title(title, loc="left", color=ink.text, fontsize=10, fontweight="bold")
        axes.set_xlabel("frame read", color=ink.muted, fontsize=9.5)
        if number == 0:
            axes.set_ylabel("frame that reads", color=ink.muted, fontsize=9.5)
    quiet_bar(figure.colorbar(image, ax=list(panels), fraction=0.03, pad=0.015), ink, "weight")
    return figure
