"""A study in one figure: every seed of every arm, and the paper's direction beside ours."""

from collections.abc import Mapping, Sequence

import numpy as np

from minivllava.figures.evaluation import BASELINES, LABELS
from minivllava.figures.style import WIDTH, Inks, clean, name_axes, new_figure, wrapped

SIGNS = {"agrees": "✓ agrees", "disagrees": "✗ disagrees", "undecided": "? undecided", "not asked": ""}
ROW = 0.42  # inches


def study_figure(results: dict, titles: Mapping[str, str], said: Sequence[str]):
    """Above: scores of each arm, one panel a metric. Below: differences that claims are about, with the paper's.

    results: the JSON of a study's results; titles: of its metrics; said: each claim's difference in words. Dots are
    seeds. Returns a matplotlib Figure; `ablations.results.study_chart` fills in the words.
    """
    arms, metrics, claims = results["arms"], results["metrics"], results["claims"]
    columns = min(len(metrics), 3)
    lines = -(-len(metrics) // columns)
    above, below = lines * (0.75 + ROW * len(arms)) + 0.6, 0.8 + 1.35 * ROW * len(claims) if claims else 0
    ink, figure = new_figure(WIDTH, above + below)
    top, bottom = figure.subfigures(2, 1, height_ratios=(above, below)) if claims else (figure, None)
    panels = top.subplots(lines, columns, squeeze=False)
    for number, axes in enumerate(panels.flat):
        if number < len(metrics):
            _draw_scores(axes, ink, arms, metrics[number], titles, results["reference"], number % columns == 0)
        else:
            axes.set_axis_off()
    _legend(top, ink, results)
    if claims:
        labels = {arm["name"]: arm["label"] for arm in arms}
        _draw_claims(bottom.subplots(), ink, claims, said, labels, titles)
    return figure


def _draw_scores(axes, ink: Inks, arms: list[dict], metric: str, titles, reference: str, named: bool):
    clean(axes, ink, grid="x")
    for y, arm in enumerate(arms):
        summary = arm["metrics"][metric]
        if summary is None:
            continue
        _draw_spread(axes, ink, y, summary["values"], summary, ink.model)
        for view, scores in arm["baselines"].items():
            if scores[metric] is not None:
                axes.plot(scores[metric]["mean"], y, **_marker(view, ink), zorder=2)
    axes.set_yticks(range(len(arms)), [_lines(arm["label"], 2.3) for arm in arms] if named else [])
    for label, arm in zip(axes.get_yticklabels(), arms, strict=False):
        label.set_fontweight("bold" if arm["name"] == reference else "normal")
    axes.tick_params(axis="y", labelsize=9.5, labelcolor=ink.text)
    axes.set_ylim(len(arms) - 0.5, -0.5)
    name_axes(axes, ink, titles[metric], "per cent")


def _draw_spread(axes, ink: Inks, y: float, by_seed: dict, summary: dict, colour: str, caps: bool = False):
    """Dots for seeds, a bar for the mean, a line for its interval: with caps for Student's t, without for bootstrap."""
    values = list(by_seed.values())
    apart = np.linspace(-0.16, 0.16, len(values)) if len(values) > 1 else [0.0]
    axes.plot(values, y + np.array(apart), "o", color=ink.model_soft, markersize=5, zorder=3)
    if summary["interval"]:
        axes.plot(summary["interval"], (y, y), color=colour, linewidth=1.8 if caps else 2.2, zorder=4,
                  solid_capstyle="butt", marker="|" if caps else "", markersize=7, markeredgewidth=1.8)  # fmt: skip
    axes.plot(summary["mean"], y, "|", color=colour, markersize=13, markeredgewidth=2.6, zorder=5)


def _draw_claims(axes, ink: Inks, claims: list[dict], said, labels: dict[str, str], titles):
    clean(axes, ink, grid="x")
    axes.axvline(0, color=ink.muted, linewidth=1.2)
    for y, (claim, words) in enumerate(zip(claims, said, strict=True)):
        if claim["mean"] is not None:
            _draw_spread(axes, ink, y, claim["differences"], claim, ink.text, caps=True)
        if claim["direction"] == "=":
            axes.fill_betweenx((y - 0.4, y + 0.4), -claim["within"], claim["within"], color=ink.grid, zorder=1)
        if claim["points"] is not None:
            axes.plot(claim["points"], y, "*", color=ink.page, markeredgecolor=ink.text, markersize=13,
                      markeredgewidth=1.4, zorder=6)  # fmt: skip
        colour = {"agrees": ink.right, "disagrees": ink.wrong}.get(claim["verdict"], ink.muted)
        text, right = f"{SIGNS[claim['verdict']]}\n{words}", ("axes fraction", "data")
        axes.annotate(text, (1, y), (6, 0), xycoords=right, textcoords="offset points", va="center", fontsize=9,
                      color=colour, annotation_clip=False)  # fmt: skip
    sides = [f"{titles[c['metric']]}: {_side(labels[c['better']])} − {_side(labels[c['than']])}" for c in claims]
    axes.set_yticks(range(len(claims)), [_lines(side, 0.36 * WIDTH) for side in sides])
    axes.tick_params(axis="y", labelsize=9, labelcolor=ink.text)
    axes.set_ylim(len(claims) - 0.5, -0.5)
    marks = ["☆ the paper's"] if any(claim["points"] is not None for claim in claims) else []
    marks += ["shaded: counts as equal"] if any(claim["direction"] == "=" for claim in claims) else []
    name_axes(axes, ink, "Differences on the same seed, mean and 95 % paired t interval", "; ".join(["points", *marks]))


def _legend(figure, ink: Inks, results: dict):
    from matplotlib.lines import Line2D

    views = {view for arm in results["arms"] for view, scores in arm["baselines"].items() if any(scores.values())}
    handles = [
        Line2D([], [], color=ink.model_soft, marker="o", linestyle="none", markersize=5),
        Line2D([], [], color=ink.model, linewidth=2.2),
        *(Line2D([], [], **_marker(view, ink)) for view in BASELINES if view in views),
    ]
    mean = "mean, 95 % bootstrap interval (too narrow with few seeds)"
    labels = ["one seed", mean, *(LABELS[view] for view in BASELINES if view in views)]
    figure.legend(handles, labels, loc="outside upper left", ncols=3, frameon=False,
                  fontsize=9, labelcolor=ink.text, columnspacing=1.2, handletextpad=0.5)  # fmt: skip


def _marker(view: str, ink: Inks) -> dict:
    """The marker that figures of accuracies use for a baseline."""
    shape, colour = BASELINES[view]
    return {"marker": shape, "linestyle": "none", "color": colour or ink.text, "markersize": 7, "markeredgewidth": 1.5}


def _side(label: str) -> str:
    """An arm's label as one side of a difference: "joint, same total" becomes "joint (same total)"."""
    name, comma, more = label.partition(", ")
    return f"{name} ({more})" if comma else name


def _lines(text: str, width: float) -> str:
    """A label on at most three lines of `width` inches."""
    return "\n".join(wrapped(text, width, 9)[:3])
