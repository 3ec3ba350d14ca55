"""What the port to transformers lost."""

from collections.abc import Sequence

from minivllava.figures.evaluation import type_label
from minivllava.figures.style import VERMILLION, WIDTH, clean, name_axes, new_figure

NOTHING = 1e-5  # a relative change of features below it is rounding


def port_lost(rows: Sequence[dict], permutation: Sequence[dict], with_it: str, without: str):
    """Exact match with temporal attention and without it, by what is asked; and how features change with the order.

    rows: `asked`, `n` and a share for each of the two views; permutation: of each clip, a distance for each view.
    """
    ink, figure = new_figure(WIDTH, 0.34 * len(rows) + 1.2)
    left, right = figure.subplots(1, 2, width_ratios=(2.1, 1))
    looks = {
        with_it: {"marker": "o", "color": ink.model, "markersize": 9},
        without: {"marker": "D", "color": VERMILLION, "markersize": 7, "fillstyle": "none", "markeredgewidth": 1.8},
    }
    clean(left, ink, grid="x")
    for y, row in enumerate(rows):
        shares = [100 * row[with_it], 100 * row[without]]
        left.plot(shares, [y, y], color=ink.grid, linewidth=3, zorder=2)
        for name, share in zip(looks, shares, strict=True):
            left.plot(share, y, **looks[name], linestyle="none", zorder=3, label=name if y == 0 else None)
    left.set_yticks(range(len(rows)), [f"{type_label(row['asked'])} ({row['n']})" for row in rows])
    for label in left.get_yticklabels()[:1]:
        label.set_fontweight("bold")
    left.tick_params(axis="y", labelsize=10, labelcolor=ink.text)
    left.set_ylim(len(rows) - 0.4, -0.6)
    left.set_xlim(-2, 102)
    left.set_xticks([0, 25, 50, 75, 100])
    name_axes(left, ink, "Questions about clips", "exact match (%)")
    clean(right, ink, grid="y")
    for number, name in enumerate(looks):
        distances = [clip[name] for clip in permutation]
        places = [number + 0.5 * ((i + 0.5) / len(distances) - 0.5) for i in range(len(distances))]
        right.plot(places, distances, **looks[name], linestyle="none", alpha=0.8, clip_on=False)
        largest = f"{max(distances):.2g} at most" if max(distances) >= NOTHING else "below 1e-5"
        right.annotate(largest, (number, max(distances)), (0, 9), textcoords="offset points",
                       ha="center", fontsize=9.5, color=ink.text)  # fmt: skip
    right.set_xticks([0, 1], ["with", "without"])
    right.tick_params(axis="x", labelsize=10, labelcolor=ink.text)
    right.set_xlim(-0.5, 1.5)
    top = max(clip[name] for clip in permutation for name in looks) or 1.0
    right.set_ylim(-0.07 * top, 1.15 * top)
    name_axes(right, ink, "Frames in reverse", "temporal attention")
    right.set_ylabel("relative change of features", color=ink.muted, fontsize=10)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False,
                  labelcolor=ink.text, fontsize=10)  # fmt: skip
    return figure
