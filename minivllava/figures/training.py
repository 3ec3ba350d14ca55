"""Training: the loss of each step."""

from collections.abc import Sequence

from minivllava.figures.style import BLUE, GREEN, ORANGE, PURPLE, WIDTH, clean, name_axes, new_figure

TITLES = {
    "language": "Language pre-training",
    "languagebind-image": "Alignment: image and text",
    "languagebind-video": "Alignment: video to text",
    "stage1": "Stage 1: projector",
    "model": "Stage 2: instruction tuning",
}


def loss_curves(logs: dict[str, Sequence[dict]], width: float = WIDTH, dark: bool = False):
    """The loss of each training step that has a log, in the order in which they are trained; the last one as a number.

    logs: by TITLES' keys, lines of `step`, `loss` (nats; mean since the line before) and `seconds`.
    """
    from matplotlib.ticker import FuncFormatter

    names = [name for name in [*TITLES, *sorted(logs.keys() - TITLES.keys())] if logs.get(name)]
    columns = min(len(names), 3 if width > 6 else 1) or 1
    rows = -(-len(names) // columns) or 1
    ink, figure = new_figure(width, 0.35 + 2.35 * rows, dark)
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    for axes, name in zip(panels, names, strict=False):
        log = logs[name]
        steps, losses = ([line[key] for line in log] for key in ("step", "loss"))
        clean(axes, ink, grid="both")
        axes.plot(steps, losses, color=ink.model, linewidth=1.4, solid_capstyle="round")
        axes.plot(steps[-1], losses[-1], "o", color=ink.model, markersize=5, clip_on=False)
        axes.annotate(f"{losses[-1]:.3g}", (steps[-1], losses[-1]), (7, 0), textcoords="offset points", va="center",
                      color=ink.text, fontsize=10, annotation_clip=False)  # fmt: skip
        scale = _logarithmic(axes, losses) if min(losses) > 0 else ""
        axes.set_xlim(0, steps[-1])
        axes.xaxis.set_major_locator(_whole_steps())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        seconds = sum(line.get("seconds", 0) for line in log)
        contrastive = name.startswith("languagebind")
        name_axes(axes, ink, TITLES.get(name, name), f"step (whole run: {duration(seconds)})" if seconds else "step")
        unit = "InfoNCE loss (nats" if contrastive else "loss (nats per token"
        axes.set_ylabel(f"{unit}{scale})", color=ink.muted)
    return figure


def _whole_steps():
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(4, integer=True, steps=(1, 2, 2.5, 5, 10))


def _logarithmic(axes, values: Sequence[float]) -> str:
    """A logarithmic scale for positive values, with a few ticks at round ones. Returns what the axis's unit adds."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    axes.set_yscale("log")
    spread = max(values) / min(values)
    if spread < 2:
        axes.yaxis.set_major_locator(MaxNLocator(4))
    elif spread < 100:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if spread > 5 else (1, 1.5, 2, 3, 4, 5, 7)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    return ", log scale"


def duration(seconds: float) -> str:
    """Seconds as a reader says them: "80 s", "15 min", "2.5 h"."""
    minutes, hours = seconds / 60, seconds / 3600
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if hours < 2 else f"{hours:.1f} h"


def compare_runs(panels: dict[str, dict[str, Sequence[dict]]], key: str = "loss", unit: str = "nats per token",
                 width: float = WIDTH):  # fmt: skip
    """One quantity of several runs over their steps, a panel for each comparison, on one logarithmic scale.

    panels: title -> run -> log lines with `step` and `key`. Runs of the same name look alike in all panels.
    """
    looks = [(BLUE, "-", "o"), (ORANGE, "--", "s"), (GREEN, ":", "^"), (PURPLE, "-.", "D")]
    names = list(dict.fromkeys(name for runs in panels.values() for name in runs))
    everything = [entry[key] for runs in panels.values() for log in runs.values() for entry in log]
    ink, figure = new_figure(width, 3.2)
    for axes, (title, runs) in zip(figure.subplots(1, len(panels), squeeze=False, sharey=True).flat, panels.items(),
                                   strict=True):  # fmt: skip
        clean(axes, ink, grid="both")
        for name, log in runs.items():
            colour, line, marker = looks[names.index(name) % len(looks)]
            steps, values = ([entry[field] for entry in log] for field in ("step", key))
            axes.plot(steps, values, line, color=colour, linewidth=1.6, marker=marker, markersize=4, label=name)
        scale = _logarithmic(axes, everything)
        axes.xaxis.set_major_locator(_whole_steps())
        name_axes(axes, ink, title, "step")
    figure.axes[0].set_ylabel(f"{key.replace('_', ' ')} ({unit}{scale})", color=ink.muted)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=len(names), frameon=False, fontsize=10,
                  labelcolor=ink.text)  # fmt: skip
    return figure
