"""Toys: small tables of numbers, and shares beside what chance gives."""

from collections.abc import Sequence

import numpy as np

from minivllava.figures.style import WIDTH, Inks, Page, clean, new_figure

# Light enough for dark numbers on them; neighbours differ for colour-blind readers too.
TINTS = ("#a8d3ef", "#f5d190", "#a5dccb", "#e8c3d9", "#d9dde2", "#f0e9a0", "#efb89a", "#bcc4f0")


def number_tables(
    tables: dict[str, np.ndarray],
    groups: dict[str, np.ndarray] | None = None,
    labels: dict[str, tuple[Sequence[str], Sequence[str]]] | None = None,
    signs: Sequence[str] = (),
    digits: int = 2,
    cell: float = 0.46,
    width: float = WIDTH,
):
    """Tables of numbers side by side, e.g. a product and its factors.

    tables: title -> (rows, columns). groups: title -> the same shape, integers; cells of one group share a
    tint, elsewhere a larger number has a deeper one. labels: title -> (of rows, of columns). signs: what stands
    between a table and the next. cell: its side in inches.
    """
    groups, labels = groups or {}, labels or {}
    signs = [*signs, *[""] * len(tables)]
    margins = [0.12 + 0.075 * max((len(row) for row in labels.get(title, ((), ()))[0]), default=0) for title in tables]
    across = sum(np.shape(table)[1] for table in tables.values()) * cell + sum(margins)
    gap = max(0.32, min(1.0, (width - across) / max(1, len(tables) - 1)))
    height = 0.62 + cell * max(len(table) for table in tables.values())
    page = Page(max(width, across + gap * (len(tables) - 1)), height)
    left = 0.0
    for number, (title, table) in enumerate(tables.items()):
        left += margins[number]
        rows, columns = np.shape(table)
        top = 0.56 + (height - 0.62 - rows * cell) / 2
        axes = page.axes(left, top, columns * cell, rows * cell)
        _table(axes, page.ink, np.asarray(table), groups.get(title), digits, labels.get(title, ((), ())))
        named = 0.2 if labels.get(title, ((), ()))[1] else 0.0
        middle = (left + columns * cell / 2) / page.width
        page.figure.text(middle, 1 - (top - named - 0.06) / height, title, ha="center", va="bottom",
                         color=page.ink.text, fontsize=10, fontweight="bold")  # fmt: skip
        left += columns * cell
        page.figure.text((left + gap / 2) / page.width, 1 - (top + rows * cell / 2) / height, signs[number],
                         ha="center", va="center", color=page.ink.text, fontsize=13)  # fmt: skip
        left += gap
    return page.figure


def _table(axes, ink: Inks, table: np.ndarray, group, digits: int, labels):
    rows, columns = table.shape
    finite = table[np.isfinite(table)] if np.issubdtype(table.dtype, np.number) else np.zeros(1)
    low, high = (finite.min(), finite.max()) if len(finite) else (0, 1)
    for (row, column), value in np.ndenumerate(table):
        if group is not None:
            tint = TINTS[int(group[row, column]) % len(TINTS)]
        elif np.issubdtype(table.dtype, np.number):
            depth = 0.62 * float(np.nan_to_num((value - low) / ((high - low) or 1)))
            tint = (0.945 - 0.70 * depth, 0.957 - 0.31 * depth, 0.969 - 0.04 * depth)
        else:
            tint = "#ffffff"
        axes.fill([column, column + 1, column + 1, column], [row, row, row + 1, row + 1], facecolor=tint,
                  edgecolor=ink.page, linewidth=1.5)  # fmt: skip
        text = f"{value:.{digits}f}" if np.issubdtype(table.dtype, np.floating) else str(value)
        axes.text(column + 0.5, row + 0.52, text, ha="center", va="center", color="#1b1f24", fontsize=9.5)
    axes.set_xlim(0, columns)
    axes.set_ylim(rows, 0)
    axes.patch.set_visible(False)
    axes.spines[:].set_visible(False)
    axes.set_yticks(np.arange(len(labels[0])) + 0.5, labels[0])
    axes.set_xticks(np.arange(len(labels[1])) + 0.5, labels[1])
    axes.xaxis.tick_top()
    axes.tick_params(length=0, labelsize=9, labelcolor=ink.muted, pad=2)


def shares(values: dict[str, float], title: str, chance: float | None = None, width: float = WIDTH):
    """Shares from 0 to 1 as bars in per cent; a dashed line where chance lies."""
    line = None if chance is None else ("chance", 100 * chance)
    return amounts({name: 100 * share for name, share in values.items()}, title, "share (%)", line, 100, width)


def amounts(
    values: dict[str, float], title: str, unit: str, line: tuple[str, float] | None = None, top: float | None = None,
    width: float = WIDTH,
):  # fmt: skip
    """Numbers from 0 up as bars. line: a name and where to draw it, dashed; top: where the axis ends, if fixed."""
    ink, figure = new_figure(width, 0.95 + 0.36 * len(values))
    axes = figure.subplots()
    clean(axes, ink, grid="x")
    for y, value in enumerate(values.values()):
        axes.barh(y, value, height=0.58, color=ink.model, zorder=2)
        axes.annotate(f"{value:.0f}", (value, y), (5, 0), textcoords="offset points", va="center",
                      color=ink.text, fontsize=10.5, zorder=4,
                      bbox={"boxstyle": "square,pad=0.1", "fc": ink.page, "ec": "none"})  # fmt: skip
    if line is not None:
        axes.axvline(line[1], color=ink.text, linewidth=1.4, linestyle=(0, (4, 3)), zorder=3)
        axes.annotate(line[0], (line[1], len(values) - 0.45), (0, 0), textcoords="offset points", ha="center",
                      va="top", color=ink.text, fontsize=9, annotation_clip=False)  # fmt: skip
    axes.set_yticks(range(len(values)), values)
    axes.tick_params(axis="y", labelsize=10.5, labelcolor=ink.text)
    axes.set_ylim(len(values) - 0.5, -0.6)
    highest = top or max(values.values())
    axes.set_xlim(0, 1.06 * highest)
    if top is not None:
        axes.set_xticks([0, top / 4, top / 2, 3 * top / 4, top])
    axes.tick_params(axis="x", pad=14 if line is not None else 4)
    axes.spines["bottom"].set_visible(False)
    axes.set_title(title, loc="left", color=ink.text, fontsize=11, fontweight="bold")
    axes.set_xlabel(unit, color=ink.muted, fontsize=10)
    return figure
