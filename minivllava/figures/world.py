"""The embedded world: examples with answers, and a sheet of the world itself."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from minivllava.figures.frames import draw_frames, frames_height
from minivllava.figures.style import WIDTH, Page


def gallery(
    examples: Sequence[tuple[np.ndarray, dict]], width: float = WIDTH, figure=None,
    height: float | None = None, margin: float = 0.0,
):  # fmt: skip
    """Images and clips, each with a question about it, the answer given, and the true one where it differs.

    examples: (frames uint8 (t, h, w, 3), prediction), where a prediction is one of `evaluate`'s dicts; t = 1
    for an image. figure: a sub-figure of `width` by `height` inches to draw into, instead of a new Figure;
    margin: inches that stay free on all its sides.
    """
    inner = width - 2 * margin
    columns = 4 if width > 6 else 2
    gap, text, below = 0.15, 0.95, 0.7
    side = (inner - gap * (columns - 1)) / columns
    images = [example for example in examples if len(example[0]) == 1]
    clips = [example for example in examples if len(example[0]) > 1]
    strips = [frames_height(frames, inner, len(frames)) for frames, _ in clips]
    lines = -(-len(images) // columns)
    total = lines * (side + text) + sum(strips) + below * len(strips) + 2 * margin
    page = Page(width, height or total or 1.0, figure=figure)
    for number, (frames, prediction) in enumerate(images):
        row, column = divmod(number, columns)
        left, top = margin + column * (side + gap), margin + row * (side + text)
        draw_frames(page.axes(left, top, side, side), frames, 1, anchor="SW")
        page.answer(left, top + side + 0.07, side, prediction)
    top = margin + lines * (side + text)
    for (frames, prediction), strip in zip(clips, strips, strict=True):
        draw_frames(page.axes(margin, top, inner, strip), frames, len(frames))
        page.answer(margin, top + strip + 0.05, inner, prediction)
        top += strip + below
    return page.figure


def example_sheet(world: str | Path):
    """A sheet of the embedded world: 24 training images and 6 clips with captions and one question each.

    world: a folder that `build_world` made. The first of each in its (shuffled) files are taken.
    """
    from minivllava.data.media import read_image, read_video

    world = Path(world)
    files = (world / "stage1.json", world / "stage2.json")
    captions, talks = (json.loads(file.read_text(encoding="utf-8")) for file in files)
    asked = {record["id"]: record["conversations"] for record in talks}
    images = [record for record in captions if "image" in record][:24]
    clips = [record for record in captions if "video" in record][:6]
    lines = -(-len(images) // 4)
    page = Page(12.8, 0.2 + 1.6 * lines + 1.12 * len(clips))
    places = [(0.1 + 3.2 * (i % 4), 0.1 + 1.6 * (i // 4), 1.45, 1.6) for i in range(len(images))]
    places += [(0.1, 0.15 + 1.6 * lines + 1.12 * i, 8.4, 4.1) for i in range(len(clips))]
    for record, (left, top, across, words) in zip(images + clips, places, strict=True):
        if "image" in record:
            draw_frames(page.axes(left, top, across, across), read_image(world / record["image"])[None], 1)
        else:
            draw_frames(page.axes(left, top, across, 1.05), read_video(world / record["video"]), 8)
        question, answer = (turn["value"].rsplit("\n", 1)[-1] for turn in asked[record["id"]][:2])
        left += across + 0.08
        end = page.text(left, top, record["conversations"][1]["value"], words, 8.5)
        end = page.text(left, end + 0.05, question, words, 8.5, color=page.ink.muted)
        page.text(left, end + 0.02, answer, words, 8.5, fontweight="bold")
    return page.figure
