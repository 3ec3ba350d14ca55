"""Evaluation: accuracies beside the baselines."""

from collections.abc import Sequence

from minivllava.figures.style import ORANGE, PURPLE, VERMILLION, WIDTH, Inks, clean, name_axes, new_figure

KINDS = {"image": "Images", "video": "Clips", "text": "Text"}

# Marker and colour of each baseline; the model is a bar.
BASELINES = {
    "majority": ("|", None),
    "blind": ("o", ORANGE),
    "single frame": ("^", PURPLE),
    "shuffled frames": ("D", VERMILLION),
}
LABELS = {"model": "model", "majority": "majority answer", "blind": "blind (no image or clip)",
          "single frame": "middle frame only", "shuffled frames": "shuffled frames"}  # fmt: skip
TYPES = {"order": "which came first", "needs order": "all that need order", "others": "all others"}
FEW = 10  # a share of fewer questions is drawn pale


def accuracy_by_type(rows: Sequence[dict], width: float = WIDTH, dark: bool = False, figure=None):
    """Exact match by type of question: the model as bars, what each baseline reaches as markers.

    rows: as `evaluation.evaluate.table` makes them: `kind`, `type`, `n`, and each view's share or None. Beside each
    row are the model's share and, where the width allows it, the number of questions; a row of fewer than FEW is pale.
    figure: a Figure or sub-figure to draw into, instead of a new one.
    """
    kinds = [kind for kind in KINDS if any(row["kind"] == kind for row in rows)]
    types = _ordered_types(rows)
    beside = width > 4.9
    counted = not beside or width > 6
    ink, figure = new_figure(width, 1.15 + 0.31 * len(types) * (1 if beside else len(kinds)), dark, figure)
    shape = (1, len(kinds)) if beside else (len(kinds), 1)
    heights = None if beside else [1 + sum(row["kind"] == kind for row in rows) for kind in kinds]
    panels = figure.subplots(*shape, squeeze=False, sharey=beside, height_ratios=heights).flat
    for number, (axes, kind) in enumerate(zip(panels, kinds, strict=True)):
        found = {row["type"]: row for row in rows if row["kind"] == kind}
        shown = types if beside else [name for name in types if name in found]
        clean(axes, ink, grid="x")
        for y, name in enumerate(shown):
            _accuracy_line(axes, ink, y, found.get(name), counted)
        axes.set_yticks(range(len(shown)), [type_label(name) for name in shown])
        for label in axes.get_yticklabels()[:1]:  # none in the second of two panels
            label.set_fontweight("bold")
        axes.tick_params(axis="y", labelsize=10.5, labelcolor=ink.text, labelleft=not beside or number == 0,
                         pad=8)  # fmt: skip
        axes.set_ylim(len(shown) - 0.4, -0.7)
        axes.set_xlim(0, 100)
        axes.set_xticks([0, 25, 50, 75, 100])
        axes.spines["bottom"].set_visible(False)
        axes.axhline(0.5, color=ink.grid, linewidth=1)
        title = KINDS[kind]
        if counted:
            axes.annotate("n", (100, -0.7), (66, 2), textcoords="offset points", ha="right", fontsize=9,
                          color=ink.muted, annotation_clip=False)  # fmt: skip
        else:
            title += f" (n = {found.get('all', {}).get('n', 0):,})"
        last = beside or number == len(kinds) - 1
        name_axes(axes, ink, title, "exact match (%)" if last else "")
    _accuracy_legend(figure, ink, rows, 5 if width > 7 else 3 if beside else 2)
    return figure


def type_label(name: str) -> str:
    """What figures and the report call a type of question, or a group of types."""
    return TYPES.get(name, name.replace("/", ", "))


def _ordered_types(rows: Sequence[dict]) -> list[str]:
    """Totals first, then types by the alphabet, those of images before those of clips alone."""
    names = {row["type"] for row in rows} - {"all", "needs order"}
    of_images = {row["type"] for row in rows if row["kind"] == "image"}
    last = {row["type"] for row in rows} & {"needs order"}
    return ["all", *sorted(names, key=lambda name: (name not in of_images, name)), *last]


def _accuracy_line(axes, ink: Inks, y: int, row: dict | None, counted: bool):
    if row is None:
        axes.text(2, y, "not asked", va="center", fontsize=9, color=ink.muted, style="italic")
        return
    total = row["type"] == "all"
    share, alpha = 100 * row["model"], 1.0 if row["n"] >= FEW else 0.35
    axes.barh(y, share, height=0.58, color=ink.model if total else ink.model_soft, zorder=2, alpha=alpha)
    beside = {"textcoords": "offset points", "ha": "right", "va": "center"}
    axes.annotate(f"{share:.0f}", (100, y), (33, 0), **beside, fontsize=10.5, alpha=alpha,
                  color=ink.text, fontweight="bold" if total else "normal")  # fmt: skip
    if counted:
        axes.annotate(f"{row['n']:,}", (100, y), (66, 0), **beside, fontsize=9, color=ink.muted)
    for view in BASELINES:
        if row.get(view) is not None:
            look = _marker(view, ink) | {"alpha": alpha, "zorder": 3 + (view == "majority"), "clip_on": False}
            axes.plot(100 * row[view], y, **look)


def _marker(view: str, ink: Inks) -> dict:
    shape, colour = BASELINES[view]
    look = {"marker": shape, "linestyle": "none"}
    if view == "majority":
        return look | {"color": ink.text, "markersize": 15, "markeredgewidth": 2.2}
    size = 7 if shape == "D" else 8  # a diamond looks larger than a circle as wide
    return look | {"color": colour, "markersize": size, "markeredgecolor": ink.page, "markeredgewidth": 0.9}


def _accuracy_legend(figure, ink: Inks, rows: Sequence[dict], columns: int):
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    views = [view for view in BASELINES if any(row.get(view) is not None for row in rows)]
    handles = [Patch(color=ink.model), *(Line2D([], [], **_marker(view, ink)) for view in views)]
    labels = [LABELS[view] for view in ("model", *views)]
    figure.legend(handles, labels, loc="outside upper left", ncols=columns, frameon=False, fontsize=10,
                  labelcolor=ink.text, handlelength=1.1, columnspacing=1.5, handletextpad=0.6)  # fmt: skip


def intervals(panels: dict[str, dict[str, tuple[float, float, float]]], unit: str = "exact match (%)"):
    """Estimates with their 95 % intervals, a panel for each group: title -> name -> (value, low, high), in %."""
    rows = max(len(estimates) for estimates in panels.values())
    ink, figure = new_figure(WIDTH, 0.95 + 0.34 * rows)
    for axes, (title, estimates) in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels.items(),
                                        strict=True):  # fmt: skip
        clean(axes, ink, grid="x")
        for y, (value, low, high) in enumerate(estimates.values()):
            axes.plot([low, high], [y, y], color=ink.model_soft, linewidth=5, solid_capstyle="round", zorder=2)
            axes.plot(value, y, "o", color=ink.model, markersize=7, markeredgecolor=ink.page, zorder=3)
            axes.annotate(f"{value:.0f}", (high, y), (7, 0), textcoords="offset points", va="center",
                          color=ink.text, fontsize=10)  # fmt: skip
        axes.set_yticks(range(len(estimates)), estimates)
        axes.tick_params(axis="y", labelsize=10.5, labelcolor=ink.text)
        axes.set_ylim(len(estimates) - 0.4, -0.6)
        axes.set_xlim(0, 108)
        axes.set_xticks([0, 25, 50, 75, 100])
        axes.spines["bottom"].set_visible(False)
        name_axes(axes, ink, title, unit)
    return figure
