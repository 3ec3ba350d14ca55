"""Frames of images and clips, plain or under heat: what other figures are built from."""

import numpy as np

from minivllava.figures.style import WIDTH, Page


def frame_strip(frames: np.ndarray):
    """The frames of a clip side by side, in order of time. frames: uint8 (t, h, w, 3)."""
    height = frames_height(frames, WIDTH, len(frames))
    page = Page(WIDTH, height + 0.5)
    axes = page.axes(0, 0, WIDTH, height)
    draw_frames(axes, frames, len(frames))
    axes.set_xlabel("frame, in order of time", color=page.ink.muted, fontsize=10)
    axes.set_xticks(np.arange(len(frames)) + 0.5, range(1, len(frames) + 1))
    axes.tick_params(axis="x", length=0, labelsize=10, labelcolor=page.ink.muted)
    return page.figure


def draw_frames(axes, frames: np.ndarray, columns: int, weights: np.ndarray | None = None, anchor="NW"):
    """Frames in a grid, one unit wide each; with weights (t, h, w) in grey, under heat. Returns the heat."""
    aspect, gap = frames.shape[1] / frames.shape[2], 0.035 if len(frames) > 1 else 0.0
    heat = None
    for number, frame in enumerate(frames):
        row, column = divmod(number, columns)
        box = (column, column + 1 - gap, (row + 1) * aspect - gap, row * aspect)
        if weights is None:
            axes.imshow(frame, extent=box, interpolation="nearest")
            continue
        axes.imshow(frame.mean(-1), extent=box, cmap="gray", vmin=0, vmax=255)
        heat = axes.imshow(100 * weights[number], extent=box, cmap=heat_colours(), vmin=0,
                           vmax=100 * weights.max(), interpolation="nearest")  # fmt: skip
    axes.set_xlim(0, columns - gap)
    axes.set_ylim(-(-len(frames) // columns) * aspect - gap, 0)
    axes.set_aspect("equal", anchor=anchor)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.patch.set_visible(False)
    return heat


def frames_height(frames: np.ndarray, width: float, columns: int) -> float:
    """Inches that frames take which `draw_frames` lays out in `width` inches."""
    return width / columns * -(-len(frames) // columns) * frames.shape[1] / frames.shape[2]


def heat_colours():
    """From nothing over orange to yellow, ever less transparent."""
    from matplotlib.colors import LinearSegmentedColormap

    stops = [(0.84, 0.37, 0, 0), (0.84, 0.37, 0, 0.45), (0.90, 0.62, 0, 0.7), (0.98, 0.92, 0.30, 0.8)]
    return LinearSegmentedColormap.from_list("heat", stops)
