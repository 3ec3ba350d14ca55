"""The embedded world and other people's files: data."""

import json
import shutil
from pathlib import Path
from typing import Annotated

import typer

from minivllava.cli.app import Changes, Preset, app, writable
from minivllava.errors import ConfigError, DataError


@app.command()
def data(
    preset: Preset = "tiny",
    change: Changes = [],  # noqa: B006
    out: Annotated[Path | None, typer.Option(help="Also copy the world's folder to this new one.")] = None,
    sheet: Annotated[Path | None, typer.Option(help="Also draw a sheet of examples into this PNG.")] = None,
    inspect: Annotated[Path | None, typer.Option(help="Check and count a LLaVA-format JSON file instead.")] = None,
    media: Annotated[Path | None, typer.Option(help="With --inspect: where its paths start.")] = None,
):
    """Make the embedded world "Shapes in Motion", or inspect any LLaVA-format file."""
    if inspect is not None:
        from minivllava.data.records import broken_media, check_folder, load_records, unique_files

        check_folder(media)
        records = load_records(inspect, media)
        broken = broken_media(records)
        turns = sum(len(row["conversations"]) // 2 for row in records)
        images, clips = (len(unique_files(records, kind)) for kind in ("image", "video"))
        print(f"{len(records)} records, {turns} answers, {images} images, {clips} clips, {len(broken)} broken files")
        for reason in broken.values():
            print(f"broken: {reason}")
        if broken:
            raise typer.Exit(2)
        return
    if media is not None:
        raise ConfigError("--media is for your own files: name their JSON with --inspect.")
    if out is not None and out.exists():
        raise DataError(f"{out} is there already: name a new folder, or delete that one.")
    if sheet is not None and sheet.suffix.lower() != ".png":
        raise ConfigError(f"{sheet} is no name of a PNG: end it in .png.")
    if out is not None:
        writable(out, folder=True)
    if sheet is not None:
        writable(sheet, "--sheet")
    from minivllava.checkpoints.storage import write_folder
    from minivllava.data.build import build_world
    from minivllava.overrides import override
    from minivllava.presets import preset as named_preset

    world = build_world(override(named_preset(preset), *change).world)
    print(f"Shapes in Motion: {world}")
    for file in sorted(set(world.glob("*.json")) - {world / "config.json"}):
        records = json.loads(file.read_text(encoding="utf-8"))
        print(f"  {file.name}: {len(records)} records")
    if out is not None:
        write_folder(out, lambda folder: shutil.copytree(world, folder, dirs_exist_ok=True))
    if sheet is not None:
        from minivllava.figures import example_sheet

        sheet.parent.mkdir(parents=True, exist_ok=True)
        example_sheet(world).savefig(sheet)
        print(f"Examples: {sheet}")
