"""The language model inside: a layer, RMSNorm, rotary positions, gates, the KV cache."""

from collections.abc import Sequence

import numpy as np

from minivllava.figures.style import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    WIDTH,
    Inks,
    Page,
    clean,
    name_axes,
    new_figure,
)

PARTS = (BLUE, ORANGE, GREEN, PURPLE, SKY)
MARKERS = ("o", "s", "^", "D", "v")


def decoder_layer(notes: dict[str, str] | None = None):
    """One decoder layer as boxes along the residual stream.

    notes: what to write below a box, by its name: "RMSNorm", "attention", "SwiGLU".
    """
    page = Page(WIDTH, 2.05)
    ink, notes = page.ink, notes or {}
    axes = page.axes(0, 0, WIDTH, 2.05)
    axes.set_axis_off()
    axes.set_xlim(0, 9)
    axes.set_ylim(2.05, 0)
    stream, branch = 1.72, 0.5
    arrow = {"arrowstyle": "-|>", "color": ink.text, "linewidth": 1.6, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", (8.95, stream), (0.05, stream), arrowprops=arrow | {"linewidth": 2.6})
    axes.text(0.05, stream - 0.12, "x", fontsize=11, color=ink.text, va="bottom", style="italic")
    axes.text(4.5, stream + 0.12, "the residual stream: each branch reads a copy and adds its result", fontsize=9.5,
              color=ink.muted, ha="center", va="top")  # fmt: skip
    for left, names in ((0.5, ("RMSNorm", "attention")), (4.8, ("RMSNorm", "SwiGLU"))):
        places = (left + 0.35, left + 1.75)
        axes.plot([left, left, places[0]], [stream, branch, branch], color=ink.text, linewidth=1.6)
        for place, name, across in zip(places, names, (1.05, 1.55), strict=True):
            colour = {"RMSNorm": ink.grid, "attention": BLUE, "SwiGLU": ORANGE}[name]
            letters = {"RMSNorm": ink.text, "attention": "#ffffff", "SwiGLU": "#111111"}[name]
            _rounded(axes, (place, branch - 0.28, across, 0.56), colour)
            axes.text(place + across / 2, branch, name, ha="center", va="center", fontsize=11, color=letters)
            axes.text(place + across / 2, branch + 0.36, notes.get(name, ""), ha="center", va="top", fontsize=8.5,
                      color=ink.muted, linespacing=1.25)  # fmt: skip
        axes.annotate("", (places[1], branch), (places[0] + 1.05, branch), arrowprops=arrow)
        end = places[1] + 1.55
        axes.plot([end, end + 0.3], [branch, branch], color=ink.text, linewidth=1.6)
        axes.annotate("", (end + 0.3, stream - 0.12), (end + 0.3, branch), arrowprops=arrow)
        axes.plot(end + 0.3, stream, "o", markersize=15, color=ink.page, markeredgecolor=ink.text)
        axes.text(end + 0.3, stream, "+", ha="center", va="center_baseline", fontsize=14, color=ink.text)
    return page.figure


def parameter_shares(models: dict[str, dict[str, int]]):
    """Where the parameters of models are: one bar each, divided into parts. models: name -> part -> count."""
    ink, figure = new_figure(WIDTH, 0.85 + 0.5 * len(models))
    axes = figure.subplots()
    clean(axes, ink, grid="x")
    names = list(dict.fromkeys(part for parts in models.values() for part in parts))
    for y, parts in enumerate(models.values()):
        total, left = sum(parts.values()), 0.0
        for part, count in parts.items():
            share = 100 * count / total
            colour = PARTS[names.index(part) % len(PARTS)]
            axes.barh(y, share, left=left, height=0.62, color=colour, edgecolor=ink.page, linewidth=1)
            if share > 6:
                letters = "#111111" if colour in (ORANGE, SKY, PURPLE) else "#ffffff"
                axes.text(left + share / 2, y, f"{share:.0f} %", ha="center", va="center", fontsize=9.5, color=letters)
            left += share
    labels = [f"{name} ({_large(sum(parts.values()))})" for name, parts in models.items()]
    axes.set_yticks(range(len(models)), labels)
    axes.tick_params(axis="y", labelsize=10, labelcolor=ink.text)
    axes.set_ylim(len(models) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of the parameters (%)", color=ink.muted, fontsize=10)
    _part_legend(figure, ink, names)
    return figure


def norm_before_after(panels: dict[str, np.ndarray], radius: float):
    """Vectors of two channels as points, before and after each of some norms, numbered alike.

    panels: title -> float (n, 2). radius: of the circle that is drawn in every panel but the first.
    """
    ink, figure = new_figure(WIDTH, WIDTH / len(panels) + 0.3)
    angles = np.linspace(0, 2 * np.pi, 200)
    for number, (axes, (title, points)) in enumerate(
        zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True)
    ):
        clean(axes, ink, grid="both")
        if number:
            axes.plot(radius * np.cos(angles), radius * np.sin(angles), color=ink.muted, linewidth=1, linestyle="--")
        for i, (x, y) in enumerate(points):
            colour, marker = PARTS[i % len(PARTS)], MARKERS[i % len(MARKERS)]
            axes.plot([0, x], [0, y], color=colour, linewidth=1.2)
            axes.plot(x, y, marker, color=colour, markersize=9, markeredgecolor=ink.page)
        reach = 1.15 * max(np.abs(points).max(), radius)
        axes.set_xlim(-reach, reach)
        axes.set_ylim(-reach, reach)
        axes.set_aspect("equal")
        name_axes(axes, ink, title, "channel 1")
    figure.axes[0].set_ylabel("channel 2", color=ink.muted, fontsize=10)
    return figure


def rotation_dials(angles: np.ndarray, names: Sequence[str]):
    """Clock dials: how far each pair of channels is turned at each position. angles: radians (pair, position)."""
    pairs, positions = angles.shape
    ink, figure = new_figure(WIDTH, 0.75 + 0.82 * WIDTH / (positions + 1.5) * pairs)
    axes = figure.subplots()
    axes.set_facecolor(ink.page)
    circle = np.linspace(0, 2 * np.pi, 60)
    for row in range(pairs):
        colour = PARTS[row % len(PARTS)]
        for column in range(positions):
            axes.plot(column + 0.4 * np.cos(circle), row + 0.4 * np.sin(circle), color=ink.grid, linewidth=1)
            turn = angles[row, column]
            tip = (column + 0.38 * np.cos(turn), row - 0.38 * np.sin(turn))
            axes.annotate("", tip, (column, row), arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": 2,
                                                              "shrinkA": 0, "shrinkB": 0})  # fmt: skip
    axes.set_xlim(-0.6, positions - 0.4)
    axes.set_ylim(pairs - 0.5, -0.5)
    axes.set_aspect("equal")
    axes.set_xticks(range(positions))
    axes.set_yticks(range(pairs), names)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=10, labelcolor=ink.muted)
    axes.tick_params(axis="y", labelcolor=ink.text)
    axes.set_xlabel("position in the sequence", color=ink.muted, fontsize=10)
    return figure


def relative_scores(scores: np.ndarray, queries: Sequence[int]):
    """A matrix of scores query x key, and some of its rows against the distance to the key: they coincide.

    scores: float (s, s). queries: which rows to draw.
    """
    ink, figure = new_figure(WIDTH, 0.42 * WIDTH)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.5))
    reach = np.abs(scores).max()
    signed = {"cmap": "PuOr", "vmin": -reach, "vmax": reach} if scores.min() < 0 else {"cmap": "cividis"}
    image = left.imshow(scores, interpolation="nearest", **signed)
    left.spines[:].set_visible(False)
    left.tick_params(length=0, labelsize=9, labelcolor=ink.muted)
    name_axes(left, ink, "score of each query and key", "position of the key")
    left.set_ylabel("position of the query", color=ink.muted, fontsize=10)
    bar = figure.colorbar(image, ax=left, shrink=0.7, aspect=22)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=9, labelcolor=ink.muted, length=0)
    clean(right, ink, grid="both")
    for number, query in enumerate(queries):
        distances = query - np.arange(query + 1)
        look = {"color": PARTS[number], "marker": MARKERS[number], "markersize": 12 - 3 * number}
        right.plot(distances, scores[query, : query + 1], linewidth=1.2, markerfacecolor="none", markeredgewidth=1.6,
                   label=f"query at {query}", **look)  # fmt: skip
    right.legend(frameon=False, fontsize=9.5, labelcolor=ink.text)
    name_axes(right, ink, "the same scores by distance", "distance from the key to the query (tokens)")
    return figure


def gate_curves(gates: np.ndarray, curves: dict[str, np.ndarray], products: dict[str, np.ndarray]):
    """Activation functions of the gate, and what a gated channel lets through. All arrays (n,)."""
    ink, figure = new_figure(WIDTH, 0.36 * WIDTH)
    titles = ("the gate alone", "gate times value")
    styles = ("-", "--", ":", "-.")
    for axes, lines, title in zip(figure.subplots(1, 2), (curves, products), titles, strict=True):
        clean(axes, ink, grid="both")
        for number, (name, values) in enumerate(lines.items()):
            axes.plot(gates, values, color=PARTS[number], linestyle=styles[number % 4], linewidth=2, label=name)
        axes.legend(frameon=False, fontsize=9.5, labelcolor=ink.text)
        name_axes(axes, ink, title, "input of the gate")
    figure.axes[0].set_ylabel("output", color=ink.muted, fontsize=10)
    return figure


def cache_work(prompt: int, steps: int):
    """Which positions are computed in each step of an answer, without a KV cache and with one."""
    ink, figure = new_figure(WIDTH, 0.75 + 0.2 * (steps + 1))
    length = prompt + steps
    for axes, cached in zip(figure.subplots(1, 2), (False, True), strict=True):
        axes.set_facecolor(ink.page)
        for step in range(steps):
            seen = prompt + step
            for position in range(seen):
                new = not cached or step == 0 or position == seen - 1
                face = (BLUE if position < prompt else VERMILLION) if new else ink.page
                edge = ink.page if new else (BLUE if position < prompt else VERMILLION)
                axes.barh(step, 0.8, left=position + 0.1, height=0.72, color=face, edgecolor=edge, linewidth=0.9)
        axes.set_xlim(0, length)
        axes.set_ylim(steps - 0.4, -0.6)
        axes.set_yticks(range(steps), [f"{i + 1}" for i in range(steps)])
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0, labelsize=9, labelcolor=ink.muted)
        work = prompt + steps - 1 if cached else sum(prompt + i for i in range(steps))
        name = "with a KV cache" if cached else "without a cache"
        name_axes(axes, ink, f"{name}: {work} positions computed", "position in the sequence")
    figure.axes[0].set_ylabel("new token number", color=ink.muted, fontsize=10)
    _cache_legend(figure, ink)
    return figure


def time_per_token(lengths: Sequence[int], times: dict[str, Sequence[float]]):
    """Milliseconds for the next token against the length of what stands before it."""
    ink, figure = new_figure(WIDTH, 0.33 * WIDTH)
    axes = figure.subplots()
    clean(axes, ink, grid="both")
    for number, (name, values) in enumerate(times.items()):
        axes.plot(lengths, values, color=PARTS[number], marker=MARKERS[number], linewidth=1.8, label=name)
    axes.set_ylim(0)
    axes.legend(frameon=False, fontsize=10, labelcolor=ink.text)
    axes.set_xlabel("tokens before the new one", color=ink.muted, fontsize=10)
    axes.set_ylabel("one more token (ms)", color=ink.muted, fontsize=10)
    return figure


def _large(count: int) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= size:
            return f"{count / size:.3g} {letter}"
    return str(count)


def _rounded(axes, box: tuple[float, float, float, float], colour: str):
    from matplotlib.patches import FancyBboxPatch

    left, top, across, height = box
    axes.add_patch(FancyBboxPatch((left + 0.06, top + 0.06), across - 0.12, height - 0.12, facecolor=colour,
                                  boxstyle="round,pad=0.06", linewidth=0))  # fmt: skip


def _part_legend(figure, ink: Inks, names: Sequence[str]):
    from matplotlib.patches import Patch

    handles = [Patch(color=PARTS[i % len(PARTS)]) for i in range(len(names))]
    figure.legend(handles, names, loc="outside upper left", ncols=5, frameon=False, fontsize=10, labelcolor=ink.text,
                  handlelength=1.2, columnspacing=1.4)  # fmt: skip


def _cache_legend(figure, ink: Inks):
    from matplotlib.patches import Patch

    looks = {
        "prompt, computed": (BLUE, BLUE),
        "prompt, read from the cache": (ink.page, BLUE),
        "answer, computed": (VERMILLION, VERMILLION),
        "answer, read from the cache": (ink.page, VERMILLION),
    }
    handles = [Patch(facecolor=face, edgecolor=edge) for face, edge in looks.values()]
    figure.legend(handles, looks, loc="outside lower left", ncols=4, frameon=False, fontsize=9.5, labelcolor=ink.text,
                  handlelength=1.2, columnspacing=1.4)  # fmt: skip
