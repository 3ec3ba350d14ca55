"""Checkpoints in other layouts: convert."""

from pathlib import Path
from typing import Annotated

import typer

from minivllava.cli.app import app


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="A checkpoint folder in any layout, or a hub id.")],
    out: Annotated[Path, typer.Argument(help="The new folder.")],
    layout: Annotated[str, typer.Option(help="minivllava, or huggingface for transformers.")] = "minivllava",
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; by default as stored.")] = None,
    lossy: Annotated[bool, typer.Option("--lossy", help="Drop what the port has no place for.")] = False,
    image_encoder: Annotated[str | None, typer.Option(help="LanguageBind folder, for the original layout.")] = None,
    video_encoder: Annotated[str | None, typer.Option(help="The same for the video encoder.")] = None,
):
    """Write a checkpoint as safetensors: for this project, or as transformers' Video-LLaVA or LLaMA.

    Reads the published Video-LLaVA and LanguageBind, LLaMA models, the port to transformers, and our own folders.

    Example: minivllava convert LanguageBind/Video-LLaVA-7B video-llava-7b --dtype bfloat16
    """
    from minivllava.checkpoints.convert import convert as convert_checkpoint

    encoders = {"image_encoder": image_encoder, "video_encoder": video_encoder}
    given = {name: folder for name, folder in encoders.items() if folder is not None}
    report = convert_checkpoint(source, out, layout, dtype, lossy, **given)
    for lost in report.lost:
        print(f"Lost: {lost}.")
    print(f"{out}: a {report.kind} checkpoint of {report.tensors} tensors, layout {layout}.")
