"""Training on real data: recipe."""

from pathlib import Path
from typing import Annotated

import typer

from minivllava.cli.app import Changes, Device, app, main_goes_on, run_folder


@app.command()
def recipe(
    name: Annotated[str, typer.Argument(metavar="RECIPE", help="smol, paper, or a TOML file like theirs.")],
    root: Annotated[Path, typer.Option(help="The folder that the recipe's paths start from.")],
    run: Annotated[
        str | None, typer.Option("--name", help="The run's folder under runs/; by default the recipe's name.")
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only say what it will take; of the data, the JSON files are enough.")
    ] = False,
    tflops: Annotated[
        float, typer.Option(min=0.1, help="With --plan: what the machine sustains, for the hours.")
    ] = 300,
    lora: Annotated[
        bool, typer.Option("--lora", help="Stage 2 with LoRA, as the original's script: rank 128, alpha 256.")
    ] = False,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave out records whose images or clips are not there.")
    ] = False,
    skip_broken: Annotated[
        bool, typer.Option("--skip-broken", help="Leave out records that break the format.")
    ] = False,
    change: Changes = [],  # noqa: B006
    device: Device = None,
):
    """Train both stages on real data, from published encoders and a published language model.

    That files are there is checked first; that each decodes, by `minivllava data --inspect FILE.json --media ROOT`. A
    broken file stops the run, which continues once it is mended.

    Example: minivllava recipe smol --root /data/video-llava --skip-missing
    """
    from minivllava.training.recipe import read_recipe, train_recipe

    told = read_recipe(name)
    if plan:
        from minivllava.training.plan import plan_recipe

        made = plan_recipe(told, root, tuple(change), lora, skip_missing, skip_broken, tflops)
        _print_plan(made, told.preset, tflops)
        return
    folder = run_folder(run or Path(name).stem)
    _, left_out = train_recipe(told, root, folder, tuple(change), lora, skip_missing, skip_broken, device=device)
    if not main_goes_on():
        return
    if left_out:
        print(f"Left out {len(left_out)} missing file(s) and broken record(s), such as: {left_out[0]}")
    print(f"The model is in {folder / 'model'}: minivllava ask {folder / 'model'} FILE... 'question'")


def _print_plan(plan, preset: str, tflops: float):
    counts = ", ".join(f"{name} {count / 1e6:,.1f} M" for name, count in plan.parameters.items())
    print(f"parameters: {counts}; an image is {plan.image_tokens} tokens, a clip {plan.clip_tokens}")
    if plan.elsewhere:
        print(f"sizes of the preset {preset}, for {', '.join(plan.elsewhere)}: not a folder here")
    for stage in plan.stages:
        print(
            f"{stage.stage}: {stage.records:,} records, {stage.images:,} images, {stage.clips:,} clips "
            f"({stage.missing:,} files missing); {stage.steps:,} steps of {stage.batch_size}, about "
            f"{stage.tokens:,.0f} tokens a record"
        )
        print(
            f"{stage.stage}: {stage.flops:.2e} FLOPs, {_duration(stage.hours)} at {tflops:g} TFLOP/s; weights, "
            f"gradients and AdamW {stage.memory / 2**30:.1f} GiB, activations not counted"
        )


def _duration(hours: float) -> str:
    """In hours; below a tenth of an hour in minutes, and below a tenth of a minute in seconds."""
    if hours >= 0.1:
        return f"{hours:,.1f} hours"
    return f"{60 * hours:.1f} minutes" if 60 * hours >= 0.1 else f"{3600 * hours:.2g} seconds"
