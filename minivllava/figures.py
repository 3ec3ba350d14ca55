"""Every drawing: each function takes data and returns a matplotlib Figure.

Colours are Okabe and Ito's, which colour-blind readers tell apart; markers differ in shape too, for print. A
figure's `width` is in inches, at 100 pixels each: 9 for a page, 4 for a phone. `dark` suits a dark page.
All sizes and colours are set on the artists themselves, so drawing changes no setting of matplotlib.
"""

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

BLUE, ORANGE, GREEN, SKY = "#0072B2", "#E69F00", "#009E73", "#56B4E9"
VERMILLION, PURPLE = "#D55E00", "#CC79A7"

TITLES = {
    "language": "Language pre-training",
    "languagebind-image": "Alignment: image and text",
    "languagebind-video": "Alignment: video to text",
    "stage1": "Stage 1: projector",
    "model": "Stage 2: instruction tuning",
}
LINE = 1.32  # from one line of text to the next, in font sizes
KINDS = {"image": "Pictures", "video": "Clips", "text": "Text"}

# Marker, colour and filling of each baseline; the model is a bar.
BASELINES = {
    "majority": ("|", None, True),
    "blind": ("o", ORANGE, True),
    "single frame": ("^", PURPLE, True),
    "shuffled frames": ("D", VERMILLION, False),
}
LABELS = {"model": "model", "majority": "majority answer", "blind": "blind (no picture or clip)",
          "single frame": "a single frame", "shuffled frames": "shuffled frames"}  # fmt: skip


class Inks(NamedTuple):
    """The colours of a light or a dark page."""

    page: str
    text: str
    muted: str
    grid: str
    model: str
    model_soft: str
    right: str
    wrong: str


LIGHT = Inks("#ffffff", "#1b1f24", "#5b6470", "#d9dde2", BLUE, "#8fc1e3", "#00795a", "#b84a00")
DARK = Inks("#16191d", "#e8eaed", "#9aa4af", "#363c44", SKY, "#2f6288", "#2fc79a", "#ff8a3d")


def loss_curves(logs: dict[str, Sequence[dict]], width: float = 9.0, dark: bool = False):
    """The loss of each training step that has a log, in the order in which they are trained.

    logs: by TITLES' keys, lines of `step`, `loss` (nats; mean since the line before) and `seconds`.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    names = [name for name in [*TITLES, *sorted(logs.keys() - TITLES.keys())] if logs.get(name)]
    columns = min(len(names), 3 if width > 6 else 1) or 1
    rows = -(-len(names) // columns) or 1
    ink, figure = _figure(width, 0.35 + 2.35 * rows, dark)
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    for axes, name in zip(panels, names, strict=False):
        log = logs[name]
        steps, losses = ([line[key] for line in log] for key in ("step", "loss"))
        _clean(axes, ink, grid="both")
        axes.plot(steps, losses, color=ink.model, linewidth=1.4, solid_capstyle="round")
        axes.plot(steps[-1], losses[-1], "o", color=ink.model, markersize=5, clip_on=False)
        axes.text(0.98, 0.95, f"ends at {losses[-1]:.3g}", transform=axes.transAxes, ha="right", va="top",
                  color=ink.text, fontsize=10)  # fmt: skip
        if min(losses) > 0:
            axes.set_yscale("log")
            if max(losses) / min(losses) < 100:  # else decades alone are enough
                axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_locator(NullLocator())
        axes.set_xlim(0, steps[-1])
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=(1, 2, 2.5, 5, 10)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        took = duration(sum(line.get("seconds", 0) for line in log))
        contrastive = name.startswith("languagebind")
        _name(axes, ink, TITLES.get(name, name), f"step ({took})")
        axes.set_ylabel("InfoNCE loss (nats)" if contrastive else "loss (nats per token)", color=ink.muted)
    return figure


def _name(axes, ink: Inks, title: str, below: str):
    axes.set_title(title, loc="left", color=ink.text, fontsize=11, fontweight="bold")
    axes.set_xlabel(below, color=ink.muted, fontsize=10)


def duration(seconds: float) -> str:
    """Seconds as a reader says them: "80 s", "15 min", "2.5 h"."""
    minutes, hours = seconds / 60, seconds / 3600
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if hours < 2 else f"{hours:.1f} h"


def accuracy_by_type(rows: Sequence[dict], width: float = 9.0, dark: bool = False, figure=None):
    """Exact match by type of question: the model as bars, what each baseline reaches as markers.

    rows: as `evaluation.evaluate.table` makes them: `kind`, `type`, `n`, and each view's share or None.
    figure: a Figure or sub-figure to draw into, instead of a new one.
    """
    kinds = [kind for kind in KINDS if any(row["kind"] == kind for row in rows)]
    types = _ordered_types(rows)
    beside = width > 4.9
    ink, figure = _figure(width, 1.15 + 0.31 * len(types) * (1 if beside else len(kinds)), dark, figure)
    shape = (1, len(kinds)) if beside else (len(kinds), 1)
    heights = None if beside else [1 + sum(row["kind"] == kind for row in rows) for kind in kinds]
    panels = figure.subplots(*shape, squeeze=False, sharey=beside, height_ratios=heights).flat
    for number, (axes, kind) in enumerate(zip(panels, kinds, strict=True)):
        found = {row["type"]: row for row in rows if row["kind"] == kind}
        shown = types if beside else [name for name in types if name in found]
        _clean(axes, ink, grid="x")
        for y, name in enumerate(shown):
            _accuracy_line(axes, ink, y, found.get(name))
        axes.set_yticks(range(len(shown)), [name.replace("/", ", ") for name in shown])
        for label in axes.get_yticklabels()[:1]:  # none in the second of two panels
            label.set_fontweight("bold")
        axes.tick_params(axis="y", labelsize=10.5, labelcolor=ink.text, labelleft=not beside or number == 0)
        axes.set_ylim(len(shown) - 0.4, -0.7)
        axes.set_xlim(0, 100)
        axes.set_xticks([0, 25, 50, 75, 100])
        axes.spines["bottom"].set_visible(False)
        axes.axhline(0.5, color=ink.grid, linewidth=1)
        count = found.get("all", {}).get("n", 0)
        last = beside or number == len(kinds) - 1
        _name(axes, ink, f"{KINDS[kind]} (n = {count:,})", "exact match (%)" if last else "")
    _accuracy_legend(figure, ink, rows, 5 if width > 7 else 3 if beside else 2)
    return figure


def _ordered_types(rows: Sequence[dict]) -> list[str]:
    """Totals first, then types by the alphabet, those of pictures before those of clips alone."""
    names = {row["type"] for row in rows} - {"all", "needs order"}
    pictured = {row["type"] for row in rows if row["kind"] == "image"}
    last = {row["type"] for row in rows} & {"needs order"}
    return ["all", *sorted(names, key=lambda name: (name not in pictured, name)), *last]


def _accuracy_line(axes, ink: Inks, y: int, row: dict | None):
    if row is None:
        axes.text(2, y, "not asked", va="center", fontsize=9, color=ink.muted, style="italic")
        return
    total = row["type"] == "all"
    share = 100 * row["model"]
    axes.barh(y, share, height=0.58, color=ink.model if total else ink.model_soft, zorder=2)
    axes.annotate(f"{share:.0f}", (100, y), (32, 0), textcoords="offset points", ha="right", va="center",
                  fontsize=10.5, color=ink.text, fontweight="bold" if total else "normal")  # fmt: skip
    for view in BASELINES:
        if row.get(view) is not None:
            axes.plot(100 * row[view], y, **_marker(view, ink), zorder=3 + (view == "majority"), clip_on=False)


def _marker(view: str, ink: Inks) -> dict:
    shape, colour, filled = BASELINES[view]
    look = {"marker": shape, "linestyle": "none"}
    if view == "majority":
        return look | {"color": ink.text, "markersize": 15, "markeredgewidth": 2.2}
    if filled:
        return look | {"color": colour, "markersize": 8, "markeredgecolor": ink.page, "markeredgewidth": 0.9}
    return look | {"color": ink.page, "markersize": 6, "markeredgecolor": colour, "markeredgewidth": 1.8}


def _accuracy_legend(figure, ink: Inks, rows: Sequence[dict], columns: int):
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    views = [view for view in BASELINES if any(row.get(view) is not None for row in rows)]
    handles = [Patch(color=ink.model), *(Line2D([], [], **_marker(view, ink)) for view in views)]
    labels = [LABELS[view] for view in ("model", *views)]
    figure.legend(handles, labels, loc="outside upper left", ncols=columns, frameon=False, fontsize=10,
                  labelcolor=ink.text, handlelength=1.1, columnspacing=1.5, handletextpad=0.6)  # fmt: skip


def frame_strip(frames: np.ndarray, width: float = 9.0, dark: bool = False):
    """The frames of a clip side by side, in order of time. frames: uint8 (t, h, w, 3)."""
    columns = len(frames) if width > 6 else -(-len(frames) // 2)
    height = _frames_height(frames, width, columns)
    page = _Page(width, height + 0.5, dark)
    axes = page.axes(0, 0, width, height)
    _draw_frames(axes, frames, columns)
    axes.set_xlabel("frames, in order of time", color=page.ink.muted, fontsize=10)
    if columns == len(frames):
        axes.set_xticks(np.arange(columns) + 0.5, range(1, columns + 1))
        axes.tick_params(axis="x", length=0, labelsize=10, labelcolor=page.ink.muted)
    return page.figure


def gallery(
    examples: Sequence[tuple[np.ndarray, dict]], width: float = 9.0, dark: bool = False, figure=None,
    height: float | None = None, margin: float = 0.0,
):  # fmt: skip
    """Pictures and clips, each with a question about it, the answer given, and the true one where it differs.

    examples: (frames uint8 (t, h, w, 3), prediction), where a prediction is one of `evaluate`'s dicts; t = 1
    for a picture. figure: a sub-figure of `width` by `height` inches to draw into, instead of a new Figure;
    margin: inches that stay free on all its sides.
    """
    inner = width - 2 * margin
    columns = 4 if width > 6 else 2
    gap, text, below = 0.15, 0.95, 0.7
    side = (inner - gap * (columns - 1)) / columns
    pictures = [example for example in examples if len(example[0]) == 1]
    clips = [example for example in examples if len(example[0]) > 1]
    strips = [_frames_height(frames, inner, len(frames)) for frames, _ in clips]
    lines = -(-len(pictures) // columns)
    total = lines * (side + text) + sum(strips) + below * len(strips) + 2 * margin
    page = _Page(width, height or total or 1.0, dark, figure)
    for number, (frames, prediction) in enumerate(pictures):
        row, column = divmod(number, columns)
        left, top = margin + column * (side + gap), margin + row * (side + text)
        _draw_frames(page.axes(left, top, side, side), frames, 1, anchor="SW")
        page.answer(left, top + side + 0.07, side, prediction)
    top = margin + lines * (side + text)
    for (frames, prediction), strip in zip(clips, strips, strict=True):
        _draw_frames(page.axes(margin, top, inner, strip), frames, len(frames))
        page.answer(margin, top + strip + 0.05, inner, prediction)
        top += strip + below
    return page.figure


def attention_overlay(
    frames: np.ndarray, maps: dict[str, np.ndarray], width: float = 9.0, dark: bool = False
):  # fmt: skip
    """A picture or a clip, then the same in grey under the heat of each map, patch by patch.

    frames: uint8 (t, h, w, 3). maps: title -> share of the attention on each patch, (t, h, w) of the patch
    grid. Each map has its own scale, which starts at zero.
    """
    from matplotlib.ticker import MaxNLocator

    still = len(frames) == 1
    columns = len(frames) if still or width > 6 else -(-len(frames) // 2)
    panels = {"what the model sees": None} | maps
    each = (width - 0.15 * (len(panels) - 1)) / len(panels) if still else width
    height, size = _frames_height(frames, each, columns), 10 if width > 6 else 8.5
    title = 0.08 + max(len(_wrapped(text, each, size)) for text in panels) * size * LINE / 72
    line, scale = title + height, 0.58
    page = _Page(width, line + scale if still else line * len(panels) + scale * (len(panels) - 1) + 0.1, dark)
    left, top = 0.0, 0.0
    for text, weights in panels.items():
        page.text(left, top + 0.02, text, each, size)
        heat = _draw_frames(page.axes(left, top + title, each, height), frames, columns, weights)
        if heat is not None:
            strip = page.axes(left + 0.15, top + line + 0.05, min(each, 3) - 0.3, 0.09)
            strip.set_facecolor("#4a4a4a")
            ticks = MaxNLocator(3 if each < 2 else 4)
            bar = page.figure.colorbar(heat, cax=strip, orientation="horizontal", ticks=ticks)
            bar.ax.tick_params(labelsize=9, labelcolor=page.ink.muted, length=2, pad=1)
            bar.outline.set_visible(False)
            bar.set_label("attention (%)", color=page.ink.muted, fontsize=9, labelpad=1)
        if still:
            left += each + 0.15
        else:
            top += line + (0.1 if heat is None else scale)
    return page.figure


def _heat_colours():
    """From nothing over orange to yellow, ever less transparent."""
    from matplotlib.colors import LinearSegmentedColormap

    stops = [(0.84, 0.37, 0, 0), (0.84, 0.37, 0, 0.45), (0.90, 0.62, 0, 0.7), (0.98, 0.92, 0.30, 0.8)]
    return LinearSegmentedColormap.from_list("heat", stops)


def _draw_frames(axes, frames: np.ndarray, columns: int, weights: np.ndarray | None = None, anchor="NW"):
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
        heat = axes.imshow(100 * weights[number], extent=box, cmap=_heat_colours(), vmin=0,
                           vmax=100 * weights.max(), interpolation="nearest")  # fmt: skip
    axes.set_xlim(0, columns - gap)
    axes.set_ylim(-(-len(frames) // columns) * aspect - gap, 0)
    axes.set_aspect("equal", anchor=anchor)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.patch.set_visible(False)
    return heat


def _frames_height(frames: np.ndarray, width: float, columns: int) -> float:
    """Inches that frames take which `_draw_frames` lays out in `width` inches."""
    return width / columns * -(-len(frames) // columns) * frames.shape[1] / frames.shape[2]


def example_sheet(world: str | Path):
    """A sheet of the embedded world: 24 training pictures and 6 clips with captions and one question each.

    world: a folder that `build_world` made. The first of each in its (shuffled) files are taken.
    """
    from minivllava.data.media import read_image, read_video

    world = Path(world)
    captions, talks = (json.loads((world / f"{name}.json").read_text()) for name in ("stage1", "stage2"))
    asked = {record["id"]: record["conversations"] for record in talks}
    pictures = [record for record in captions if "image" in record][:24]
    clips = [record for record in captions if "video" in record][:6]
    lines = -(-len(pictures) // 4)
    page = _Page(12.8, 0.2 + 1.6 * lines + 1.12 * len(clips), False)
    places = [(0.1 + 3.2 * (i % 4), 0.1 + 1.6 * (i // 4), 1.45, 1.6) for i in range(len(pictures))]
    places += [(0.1, 0.15 + 1.6 * lines + 1.12 * i, 8.4, 4.1) for i in range(len(clips))]
    for record, (left, top, across, words) in zip(pictures + clips, places, strict=True):
        if "image" in record:
            _draw_frames(page.axes(left, top, across, across), read_image(world / record["image"])[None], 1)
        else:
            _draw_frames(page.axes(left, top, across, 1.05), read_video(world / record["video"]), 8)
        question, answer = (turn["value"].rsplit("\n", 1)[-1] for turn in asked[record["id"]][:2])
        left += across + 0.08
        end = page.text(left, top, record["conversations"][1]["value"], words, 8.5)
        end = page.text(left, end + 0.05, question, words, 8.5, color=page.ink.muted)
        page.text(left, end + 0.02, answer, words, 8.5, fontweight="bold")
    return page.figure


def _wrapped(text: str, width: float, size: float) -> list[str]:
    """The lines of a text that stands `size` points high in `width` inches."""
    return textwrap.wrap(text, max(8, int(width * 72 / (0.55 * size)))) or [""]  # 0.55: a letter's mean width


class _Page:
    """A Figure, or a sub-figure, on which things stand at places in inches from the top left corner."""

    def __init__(self, width: float, height: float, dark: bool, figure=None):
        from matplotlib.figure import Figure

        self.ink = DARK if dark else LIGHT
        self.width, self.height = width, height
        self.figure = figure or Figure(figsize=(width, height), dpi=100)
        self.figure.set_facecolor(self.ink.page)

    def axes(self, left: float, top: float, width: float, height: float):
        box = (left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(box)

    def text(self, left: float, top: float, text: str, width: float, size: float, **style) -> float:
        """Writes text, wrapped to `width`. Returns where it ends, in inches from the top."""
        lines = _wrapped(text, width, size)
        style = {"color": self.ink.text, "linespacing": 1.2, "va": "top", "fontsize": size} | style
        self.figure.text(left / self.width, 1 - top / self.height, "\n".join(lines), **style)
        return top + len(lines) * size * LINE / 72

    def answer(self, left: float, top: float, width: float, prediction: dict):
        """The question and, below, the answer with a tick or a cross."""
        right = prediction["correct"]
        answer = f"✓ {prediction['answer']}"
        if not right:
            answer = f"✗ {prediction['answer'] or '(nothing)'} (true: {prediction['truth']})"
        end = self.text(left, top, prediction["question"], width, 10)
        colour = self.ink.right if right else self.ink.wrong
        self.text(left, end, answer, width, 10, color=colour, fontweight="bold")


def _figure(width: float, height: float, dark: bool, figure=None):
    """(the page's colours, a new Figure, or the one given)."""
    from matplotlib.figure import Figure

    ink = DARK if dark else LIGHT
    if figure is None:
        figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
        figure.get_layout_engine().set(h_pad=0.08)
    figure.set_facecolor(ink.page)
    return ink, figure


def _clean(axes, ink: Inks, grid: str):
    """No box, a quiet grid, quiet ticks."""
    axes.set_facecolor(ink.page)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(ink.grid)
    axes.grid(axis=grid, color=ink.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, labelsize=10, labelcolor=ink.muted)
