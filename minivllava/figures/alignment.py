"""Alignment: similarity matrices, retrieval, and maps of the joint space."""

from collections.abc import Sequence

import numpy as np

from minivllava.figures.frames import draw_frames
from minivllava.figures.style import (
    BLUE,
    GREEN,
    ORANGE,
    VERMILLION,
    WIDTH,
    Page,
    clean,
    name_axes,
    new_figure,
    quiet_bar,
)

MARKS = {"image": ("o", BLUE), "clip": ("D", ORANGE), "caption": ("^", GREEN)}  # marker and colour
LINES = (("o", ORANGE, ":"), ("s", VERMILLION, "--"), ("D", BLUE, "-"), ("^", GREEN, "-."))


def scored_pairs(images: Sequence[np.ndarray], captions: Sequence[str], similarity: np.ndarray):
    """Images as rows, captions as columns, their similarity in each cell; the right pair is framed.

    images: uint8 (h, w, 3) each. similarity: cosines (images, captions), pair i on the diagonal.
    """
    count, side = len(images), 0.62
    left, top = 0.12 + side, 0.3
    page = Page(WIDTH, top + side * count + 0.45)
    axes = page.axes(left, top, side * count, side * count)
    shown = axes.imshow(similarity, cmap="cividis", vmin=min(0.0, similarity.min()), vmax=1, aspect="auto")
    for (y, x), value in np.ndenumerate(similarity):
        axes.text(x, y, f"{value:.2f}".replace("-0.00", "0.00"), ha="center", va="center", fontsize=9,
                  color="black" if value > 0.5 else "white")  # fmt: skip
    axes.set_xticks(range(count), [f"caption {i + 1}" for i in range(count)])
    axes.set_yticks([])
    axes.xaxis.tick_top()
    axes.tick_params(length=0, labelsize=8, labelcolor=page.ink.muted, pad=2)
    axes.spines[:].set_visible(False)
    for i, image in enumerate(images):
        draw_frames(page.axes(0.03, top + side * i + 0.02, side - 0.04, side - 0.04), image[None], 1)
        axes.plot(np.array([-0.45, 0.45, 0.45, -0.45, -0.45]) + i, np.array([-0.45, -0.45, 0.45, 0.45, -0.45]) + i,
                  color=ORANGE, linewidth=2)  # fmt: skip
    line, end = left + side * count + 0.3, top - 0.05
    for i, caption in enumerate(captions):
        end = page.text(line, max(end, top + side * i + 0.08), f"{i + 1}. {caption}", WIDTH - line, 9.5) + 0.04
    bar = page.figure.colorbar(shown, cax=page.axes(left, top + side * count + 0.1, side * count, 0.1),
                               orientation="horizontal")  # fmt: skip
    quiet_bar(bar, page.ink, "")
    page.text(line, top + side * count + 0.06, "cosine; orange frame: the right pair", WIDTH - line, 9,
              color=page.ink.muted)  # fmt: skip
    return page.figure


def similarity_matrices(matrices: dict[str, np.ndarray]):
    """Similarities of all rows with all columns on one scale; true pairs lie on the diagonal.

    matrices: title -> cosines (b, b).
    """
    ink, figure = new_figure(WIDTH, 0.7 + (WIDTH - 1) / len(matrices))
    panels = figure.subplots(1, len(matrices), squeeze=False)[0]
    low = min(0.0, *(matrix.min() for matrix in matrices.values()))
    for number, (axes, (title, matrix)) in enumerate(zip(panels, matrices.items(), strict=True)):
        shown = axes.imshow(matrix, cmap="cividis", vmin=low, vmax=1, interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        name_axes(axes, ink, title, "captions")
        if number == 0:
            axes.set_ylabel("clips", color=ink.muted, fontsize=10)
    quiet_bar(figure.colorbar(shown, ax=list(panels), fraction=0.03, pad=0.015), ink, "cosine")
    return figure


def recall_curves(recalls: dict[str, Sequence[float]], ks: Sequence[int], candidates: int):
    """Recall@k of several models over k, beside chance, which is k / candidates.

    recalls: name -> shares from 0 to 1, one for each k.
    """
    ink, figure = new_figure(WIDTH, 3.1)
    axes = figure.subplots()
    clean(axes, ink, grid="y")
    for (name, values), (marker, colour, line) in zip(recalls.items(), LINES, strict=False):
        colour = ink.model if colour == BLUE else colour
        axes.plot(ks, 100 * np.array(values), marker=marker, color=colour, linestyle=line, linewidth=1.8, label=name,
                  markersize=7, clip_on=False)  # fmt: skip
    axes.plot(ks, [100 * k / candidates for k in ks], color=ink.text, linewidth=1.4, linestyle=(0, (2, 2)),
              label="chance")  # fmt: skip
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylim(0, 106)  # room for whole marks on the line of 100, below the title
    axes.set_xlim(0, max(ks))
    axes.set_xticks(list(ks))
    name_axes(axes, ink, f"the right one of {candidates} is among the first k", "k")
    axes.set_ylabel("recall@k (%)", color=ink.muted, fontsize=10)
    axes.legend(frameon=False, fontsize=10, labelcolor=ink.text, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def joint_maps(maps: dict[str, dict[str, np.ndarray]], highlighted: int = 0):
    """Images, clips and captions as points of a plane; lines join those of one scene.

    maps: title -> kind ("image", "clip", "caption") -> (scenes, 2). All panels share their scale.
    highlighted: a scene whose points and lines stand out.
    """
    from matplotlib.lines import Line2D

    ink, figure = new_figure(WIDTH, 0.75 + WIDTH / len(maps))
    panels = figure.subplots(1, len(maps), squeeze=False, sharex=True, sharey=True).flat
    for axes, (title, kinds) in zip(panels, maps.items(), strict=True):
        clean(axes, ink, grid="both")
        points = np.stack(list(kinds.values()))  # kind, scene, 2
        for scene in range(points.shape[1]):
            strong = scene == highlighted
            around = [*points[:, scene], points[0, scene]] if len(points) > 2 else points[:, scene]
            axes.plot(*np.array(around).T, color=ink.text if strong else ink.muted, linewidth=2 if strong else 0.7,
                      alpha=1 if strong else 0.5, zorder=4 if strong else 1)  # fmt: skip
        for kind, found in kinds.items():
            marker, colour = MARKS[kind]
            axes.plot(*found.T, marker, color=colour, markersize=6.5, markeredgecolor=ink.page, markeredgewidth=0.7,
                      zorder=3)  # fmt: skip
            axes.plot(*found[highlighted], marker, color=colour, markersize=10, markeredgecolor=ink.text,
                      markeredgewidth=1.5, zorder=5)  # fmt: skip
        axes.set_xticklabels([])
        axes.set_yticklabels([])
        axes.set_aspect("equal")
        name_axes(axes, ink, title, "first component")
    figure.axes[0].set_ylabel("second component", color=ink.muted, fontsize=10)
    shown = list(next(iter(maps.values())))
    handles = [Line2D([], [], marker=MARKS[kind][0], color=MARKS[kind][1], linestyle="none") for kind in shown]
    handles.append(Line2D([], [], color=ink.muted, linewidth=1))
    figure.legend(handles, [*(f"{kind}s" for kind in shown), "same scene"], loc="outside upper left",
                  ncols=len(handles), frameon=False, fontsize=10, labelcolor=ink.text)  # fmt: skip
    return figure


def circle_pull(before: np.ndarray, after: np.ndarray, texts: np.ndarray):
    """Unit vectors of the plane: where visuals stood before and after training, and the texts they belong to.

    Each of shape (b, 2), pair i in row i; texts are frozen.
    """
    ink, figure = new_figure(WIDTH, 0.55 + WIDTH / 2.6)
    for number, (title, visuals) in enumerate({"before": before, "after": after}.items()):
        axes = figure.add_subplot(1, 2, number + 1)
        angles = np.linspace(0, 2 * np.pi, 200)
        axes.plot(np.cos(angles), np.sin(angles), color=ink.grid, linewidth=1)
        for i, (visual, text) in enumerate(zip(visuals, texts, strict=True)):
            axes.plot(*np.array([visual, text]).T, color=ink.muted, linewidth=1)
            axes.plot(*text, "^", color=GREEN, markersize=10, markeredgecolor=ink.page)
            axes.plot(*visual, "o", color=ink.model, markersize=7, markeredgecolor=ink.page)
            axes.text(*(1.17 * text), str(i + 1), color=ink.text, ha="center", va="center", fontsize=10)
        axes.set_xlim(-1.3, 1.3)
        axes.set_ylim(-1.3, 1.3)
        axes.set_aspect("equal")
        axes.set_axis_off()
        axes.set_title(title, color=ink.text, fontsize=11, fontweight="bold")
    figure.axes[0].plot([], [], "^", color=GREEN, label="text, frozen")
    figure.axes[0].plot([], [], "o", color=ink.model, label="visual, learns")
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=10, labelcolor=ink.text)
    return figure
