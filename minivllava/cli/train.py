"""Training: demo, train, export."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from minivllava.cli.app import PARTS, Changes, Device, Preset, app, main_goes_on, run_folder
from minivllava.cli.ask import load_model
from minivllava.cli.results import print_results
from minivllava.errors import ConfigError, DataError


@app.command()
def demo(
    name: Annotated[str, typer.Option(help="The run's folder under runs/.")] = "demo",
    change: Changes = [],  # noqa: B006  (typer reads the default, nothing changes it)
):
    """Train a small Video-LLaVA from the shipped parts, evaluate it, and write its report."""
    train(preset="demo", name=name, change=change)


@app.command()
def train(
    preset: Preset = "tiny",
    name: Annotated[
        str | None, typer.Option(help="The run's folder under runs/; by default the preset's name.")
    ] = None,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Train language model and encoders too.")
    ] = False,
    init: Annotated[
        Path | None, typer.Option(help="Start: pretrained parts (what it lacks is trained); with --data, a checkpoint.")
    ] = None,
    more_text: Annotated[
        bool, typer.Option("--more-text", help="Pre-train the language model of --init further before all else.")
    ] = False,
    data: Annotated[
        list[Path], typer.Option(help="Your own LLaVA-format JSON of images, clips or text; may be repeated.")
    ] = [],  # noqa: B006
    media: Annotated[
        Path | None, typer.Option(help="The folder that its paths start from; by default the JSON's.")
    ] = None,
    skip_broken: Annotated[
        bool, typer.Option("--skip-broken", help="Leave out records whose media is broken.")
    ] = False,
    epochs: Annotated[float, typer.Option(min=0, help="With --data: passes over your records.")] = 3.0,
    lora: Annotated[
        bool, typer.Option("--lora", help="Stage 2 with LoRA, as the original's script: rank 128, alpha 256.")
    ] = False,
    change: Changes = [],  # noqa: B006
    device: Device = None,
):
    """Train on the embedded world, then evaluate and report; or with --data tune a checkpoint on your own files.

    An interrupted run continues where it stopped when the same command is given again.
    """
    from minivllava.overrides import override
    from minivllava.presets import preset as named_preset

    if from_scratch and (data or init):
        raise ConfigError("--from-scratch starts from nothing: leave out --init and --data, or --from-scratch.")
    if more_text and (data or from_scratch):
        raise ConfigError("--more-text goes on with pretrained parts: leave out --data and --from-scratch.")
    if (media or skip_broken) and not data:
        raise ConfigError("--media and --skip-broken are for your own files: name their JSON with --data.")
    recipe = named_preset(preset)
    if lora:
        from minivllava.training.lora import lora_recipe

        recipe = replace(recipe, stage2=lora_recipe(recipe.stage2))
    recipe = override(recipe, *change)
    for field in (one.partition("=")[0].strip() for one in change if data):
        if not field.startswith("stage2.") or field == "stage2.steps":
            raise ConfigError(f"--set {field}: with --data only stage2 counts, and --epochs says for how long.")
    folder = run_folder(name or preset)
    if data:
        if init is None:
            raise DataError("--data needs --init CHECKPOINT, e.g. --init data/pretrained/tiny.")
        _finetune(init, data, media, recipe.stage2, epochs, folder, skip_broken, device)
        return
    if preset in ("smol", "paper"):
        raise ConfigError(f"The preset {preset} is for real data: minivllava recipe {preset} --root FOLDER.")
    from minivllava.training.run import train_video_llava

    train_video_llava(recipe, folder, None if from_scratch else init or PARTS, more_text, device=device)
    if main_goes_on():
        _evaluate_and_report(folder, recipe, device)


def _finetune(init, data, media, training, epochs, folder, skip_broken, device):
    from minivllava.training.run import finetune

    _, skipped = finetune(init, data, media, training, epochs, folder, skip_broken, device=device)
    if not main_goes_on():
        return
    if skipped:
        print(f"Left out {len(skipped)} broken file(s): {', '.join(skipped)}")
    print(f"The tuned model is in {folder / 'model'}: minivllava ask {folder / 'model'} FILE... 'question'")


def _evaluate_and_report(folder: Path, recipe, device: str | None):
    from minivllava.data.build import build_world
    from minivllava.evaluation.evaluate import evaluate_world, known_results
    from minivllava.report import write_report

    world = build_world(recipe.world)
    model, file = load_model(str(folder / "model"), device, "float32"), folder / "evaluation.json"
    print_results(known_results(model, world, file) or evaluate_world(model, world, file))
    if recipe.world.test:
        print(f"The report: {write_report(folder)}")


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="The folder of a run from scratch, e.g. runs/tiny.")],
    out: Annotated[Path, typer.Argument(help="Where the parts and the finished model go.")],
):
    """Copy a run's parts and finished model, in half precision: this fills data/pretrained."""
    from minivllava.training.run import export as copy_models

    copy_models(run, out)
