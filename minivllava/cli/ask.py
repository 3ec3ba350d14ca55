"""Asking a model: ask."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from minivllava.cli.app import app
from minivllava.errors import DataError


@app.command()
def ask(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint folder, e.g. data/pretrained/tiny.")],
    files_and_question: Annotated[
        list[str], typer.Argument(metavar="[FILE]... QUESTION", help="Pictures and clips, then the question.")
    ],
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token each time.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Draw among the likeliest tokens up to this share.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 128,
    frames: Annotated[int | None, typer.Option(min=1, help="Frames the model sees of a clip; by default 8.")] = None,
    seed: Annotated[int, typer.Option(help="For temperatures above 0.")] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print question, files and answer as one JSON object.")
    ] = False,
):
    """Ask a model about pictures and clips; the answer streams as it is made.

    Example: minivllava ask data/pretrained/tiny picture.png clip.mp4 "What colour is the circle?"

    In the question, <image> and <video> may say where each file belongs.
    """
    *files, question = files_and_question
    if os.path.isfile(question):  # unlike Path.is_file, this is False for a question too long to be a path
        raise DataError(f"{question} is a file: put a question after it.")
    import torch

    from minivllava.chat import by_kind
    from minivllava.models.checkpoint import load_vllava

    images, videos = by_kind(files)
    model = load_vllava(checkpoint)
    answer = model.chat(
        question, images, videos, frames=frames, temperature=temperature, top_p=top_p,
        max_new_tokens=max_new_tokens, generator=torch.Generator().manual_seed(seed),
        on_text=None if as_json else lambda text: print(text, end="", flush=True),
    )  # fmt: skip
    if as_json:
        answer = json.dumps({"question": question, "files": files, "answer": answer})
    print(answer if as_json else "")
