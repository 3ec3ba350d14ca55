"""What all figures share: colours, a page to write on, clean axes.

Colours are Okabe and Ito's, which colour-blind readers tell apart; where colour says something, shape or text says it
too, for print. All sizes and colours are set on the artists themselves, so drawing changes no setting of matplotlib.
"""

import io
import logging
import textwrap
from typing import NamedTuple

# It tells on stderr how its cache of fonts fares, below whichever figure is drawn first.
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)

BLUE, ORANGE, GREEN, SKY = "#0072B2", "#E69F00", "#009E73", "#56B4E9"
VERMILLION, PURPLE = "#D55E00", "#CC79A7"

WIDTH = 9.0  # of a figure on a page, in inches
LINE = 1.32  # from one line of text to the next, in font sizes


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


def wrapped(text: str, width: float, size: float) -> list[str]:
    """The lines of a text that stands `size` points high in `width` inches."""
    letters = max(8, int(width * 72 / (0.55 * size)))  # 0.55: a letter's mean width
    return textwrap.wrap(text.replace(" %", "\N{NO-BREAK SPACE}%"), letters, break_on_hyphens=False) or [""]


class Page:
    """A Figure, or a sub-figure, on which things stand at places in inches from the top left corner."""

    def __init__(self, width: float, height: float, dark: bool = False, figure=None):
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
        lines = wrapped(text, width, size)
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


def new_figure(width: float, height: float, dark: bool = False, figure=None):
    """(the page's colours, a new Figure, or the one given)."""
    from matplotlib.figure import Figure

    ink = DARK if dark else LIGHT
    if figure is None:
        figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
        figure.get_layout_engine().set(h_pad=0.08)
    figure.set_facecolor(ink.page)
    return ink, figure


def chart_png(figure) -> bytes:
    """A figure as a PNG of 128 colours: a chart looks the same in a third of the bytes; a photograph would not."""
    from PIL import Image

    whole, small = io.BytesIO(), io.BytesIO()
    figure.savefig(whole, format="png", dpi=100)
    few = Image.open(whole).convert("RGB").quantize(128, Image.Quantize.MAXCOVERAGE)  # which keeps rare colours
    few.save(small, format="PNG", optimize=True)
    return small.getvalue()


def clean(axes, ink: Inks, grid: str):
    """No box, a quiet grid, quiet ticks."""
    axes.set_facecolor(ink.page)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(ink.grid)
    axes.grid(axis=grid, color=ink.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, labelsize=10, labelcolor=ink.muted)


def name_axes(axes, ink: Inks, title: str, below: str):
    """A title at the left, and what the horizontal axis counts below."""
    axes.set_title(title, loc="left", color=ink.text, fontsize=11, fontweight="bold")
    axes.set_xlabel(below, color=ink.muted, fontsize=10)


def quiet_bar(bar, ink: Inks, label: str):
    """A colour bar without a box, with quiet ticks and a label."""
    bar.ax.tick_params(labelsize=9, labelcolor=ink.muted, length=2)
    bar.outline.set_visible(False)
    bar.set_label(label, color=ink.muted, fontsize=9.5)
