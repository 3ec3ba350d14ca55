"""One image inside the image encoder: its patches, what is learned about them, how alike their tokens are."""

from collections.abc import Sequence

import numpy as np
from einops import rearrange

from minivllava.figures.frames import draw_frames
from minivllava.figures.style import ORANGE, VERMILLION, WIDTH, Page, quiet_bar


def patch_sequence(image: np.ndarray, grid: int):
    """An image under its patch grid, and the sequence of its patches in raster order.

    image: uint8 (h, w, 3), sides multiples of `grid`, the number of patches along a side.
    """
    side, gap = 2.5, 0.45
    columns = -(-(grid**2) // 2) if grid**2 <= 24 else 2 * grid
    rows = -(-(grid**2) // columns)
    step = (WIDTH - side - gap) / columns
    page = Page(WIDTH, max(side, rows * (step + 0.22)) + 0.42)
    page.text(0, 0.02, f"an image, cut {grid} x {grid}", side, 10, fontweight="bold")
    page.text(side + gap, 0.02, f"a sequence of {grid**2} patches", WIDTH - side - gap, 10, fontweight="bold")
    axes = page.axes(0, 0.34, side, side)
    draw_frames(axes, image[None], 1)
    for line in np.arange(1, grid) / grid:
        axes.axhline(line, color="white", linewidth=1)
        axes.axvline(line, color="white", linewidth=1)
    patches = rearrange(image, "(h i) (w j) c -> (h w) i j c", h=grid, w=grid)
    size = 9 if grid < 7 else 6
    for number, patch in enumerate(patches):
        y, x = np.divmod(number, grid)
        axes.text((x + 0.08) / grid, (y + 0.07) / grid, str(number + 1), color="white", fontsize=size, va="top")
        row, column = divmod(number, columns)
        left, top = side + gap + column * step, 0.34 + row * (step + 0.24)
        draw_frames(page.axes(left, top, 0.92 * step, 0.92 * step), patch[None], 1)
        page.figure.text((left + 0.46 * step) / page.width, 1 - (top + 0.95 * step) / page.height, str(number + 1),
                         ha="center", va="top", fontsize=size, color=page.ink.muted)  # fmt: skip
    page.figure.text((side + gap / 2) / page.width, 1 - (0.34 + side / 2) / page.height, "→", ha="center",
                     va="center", fontsize=18, color=page.ink.text)  # fmt: skip
    return page.figure


def place_similarity(similarity: np.ndarray, grid: int):
    """For each patch's place a small map: how alike its position embedding is to that of every place.

    similarity: cosines (n, n), n = grid * grid. The scale ends at the strongest of two different places: a place with
    itself, 1, lies above it.
    """
    side = 4.6
    page = Page(side + 1.25, side + 0.34)
    page.text(0, 0.02, "alikeness of position embeddings; ring: the place itself", side + 1.2, 10, fontweight="bold")
    outer, limit = side / grid, np.abs(similarity[~np.eye(len(similarity), dtype=bool)]).max()
    for number, row in enumerate(similarity):
        y, x = divmod(number, grid)
        axes = page.axes(x * outer, 0.34 + y * outer, 0.94 * outer, 0.94 * outer)
        shown = axes.imshow(rearrange(row, "(h w) -> h w", h=grid), cmap="PuOr_r", vmin=-limit, vmax=limit)
        axes.plot(x, y, "o", markerfacecolor="none", markeredgecolor="white", markeredgewidth=1.6, markersize=28 / grid)
        axes.set_axis_off()
    bar = page.figure.colorbar(shown, cax=page.axes(side + 0.15, 0.34 + 0.2 * side, 0.13, 0.6 * side), extend="max")
    quiet_bar(bar, page.ink, "cosine")
    return page.figure


def token_similarity(image: np.ndarray, maps: dict[str, np.ndarray], marked: tuple[int, int]):
    """An image with one patch marked, then how alike each patch's token is to the marked one's.

    image: uint8 (h, w, 3). maps: title -> cosines (h, w) over the patch grid, on one scale. marked: row, column.
    """
    each = (WIDTH - 0.9 - 0.12 * len(maps)) / (1 + len(maps))
    page = Page(WIDTH, each + 0.34)
    grid = len(next(iter(maps.values())))
    left = 0.0
    low = min(0.0, *(values.min() for values in maps.values()))
    for title, values in ({"the image": None} | maps).items():
        page.text(left, 0.02, title, each, 9.5, fontweight="bold")
        axes = page.axes(left, 0.34, each, each)
        if values is None:
            axes.imshow(image, extent=(-0.5, grid - 0.5, grid - 0.5, -0.5))
        else:
            shown = axes.imshow(values, cmap="cividis", vmin=low, vmax=1)
            for (y, x), value in np.ndenumerate(values):
                axes.text(x, y, f"{value:.1f}".replace("-0.0", "0.0"), ha="center", va="center", fontsize=7.5,
                          color="black" if value > 0.5 * (1 + low) else "white")  # fmt: skip
        y, x = marked
        axes.plot(np.array([-0.46, 0.46, 0.46, -0.46, -0.46]) + x, np.array([-0.46, -0.46, 0.46, 0.46, -0.46]) + y,
                  color=ORANGE, linewidth=2.5)  # fmt: skip
        axes.set_axis_off()
        left += each + 0.12
    bar = page.figure.colorbar(shown, cax=page.axes(left + 0.02, 0.34, 0.12, each))
    quiet_bar(bar, page.ink, "cosine")
    return page.figure


def attention_spread(rows: dict[str, Sequence[float]]):
    """Rows of attention weights as bars, each row in a panel of its own, on one scale: even, or all on one?"""
    page = Page(WIDTH, 1.95)
    each = (WIDTH - 0.55 - 0.35 * (len(rows) - 1)) / len(rows)
    for number, (title, weights) in enumerate(rows.items()):
        left = 0.55 + number * (each + 0.35)
        page.text(left, 0.02, title, each, 10, fontweight="bold")
        axes = page.axes(left, 0.36, each, 1.1)
        colours = [VERMILLION if weight == max(weights) else page.ink.model for weight in weights]
        axes.bar(range(1, len(weights) + 1), weights, color=colours, width=0.75)
        axes.set_ylim(0, 1)
        axes.set_facecolor(page.ink.page)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(page.ink.grid)
        axes.tick_params(length=0, labelsize=9, labelcolor=page.ink.muted)
        axes.set_yticks([0, 0.5, 1])
        axes.set_xlabel("key", color=page.ink.muted, fontsize=9.5)
        if number == 0:
            axes.set_ylabel("weight", color=page.ink.muted, fontsize=9.5)
    return page.figure
