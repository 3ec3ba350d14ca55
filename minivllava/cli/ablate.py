"""Ablations: ablate."""

from pathlib import Path
from typing import Annotated

import typer

from minivllava.ablations import RESULTS, STUDY_PARTS
from minivllava.cli.app import RUNS, Device, app, writable
from minivllava.errors import ConfigError


@app.command()
def ablate(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[STUDY]...", help="Studies, .toml files of your own, or `all`.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of every arm.")] = 5,
    preset: Annotated[str, typer.Option(help="Sizes and budget: sample (seconds), tiny or small.")] = "tiny",
    parts: Annotated[Path, typer.Option(help="The encoders and language model that arms start from.")] = STUDY_PARTS,
    out: Annotated[
        Path | None,
        typer.Option(help="Where results go; by default data/results, runs/ablations for your own studies and sizes."),
    ] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Processes that share the cells; by default 1, on a GPU one a seed.")
    ] = None,
    change: Annotated[
        list[str], typer.Option("--set", metavar="FIELD=VALUE", help="Change every arm, e.g. stage2.steps=500.")
    ] = [],  # noqa: B006
    list_: Annotated[bool, typer.Option("--list", help="List the studies and stop.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be computed, and what it costs.")] = False,
    device: Device = None,
):
    """Run a study of the paper: arms, seeds, intervals, a figure, and the paper's direction beside ours.

    Example: minivllava ablate alignment

    An interrupted study continues; finished cells are never computed again, whoever asks for them. For the same
    reason cells of shipped results are read, not run: give --out a new folder to see every one of them made.
    """
    from minivllava.ablations.study import load_study, study_names

    if list_:
        _list([load_study(name) for name in study_names()])
        return
    if not names:
        raise ConfigError(f"Name a study: {', '.join(study_names())}, or all.")
    from minivllava.ablations.parts import Parts
    from minivllava.ablations.run_study import compute, prepare, publish
    from minivllava.ablations.runner import stand_alone
    from minivllava.ablations.settings import base_settings
    from minivllava.overrides import override

    rank, _ = stand_alone()
    studies = [load_study(name) for name in (study_names() if names == ["all"] else names)]
    settings = override(base_settings(preset), *change)
    usual = preset == "tiny" and parts == STUDY_PARTS and not change and not any(study.file for study in studies)
    out = out or (RESULTS if usual else RUNS / "ablations" / "results" / preset)
    found = Parts(parts, RUNS / "ablations", device, progress=rank == 0)
    if dry_run:
        if rank == 0:
            _print_plans(studies, settings, seeds, found, out)
        return
    writable(out, folder=True)
    options = [word for text in change for word in ("--set", text)]
    options += [] if parts == STUDY_PARTS else ["--parts", str(parts)]
    for study in studies:
        run = prepare(study, settings, seeds, found, out)
        if rank == 0:
            _print_known(run)
        cells = compute(run, found, processes)
        if rank == 0:
            results, file = publish(run, cells, preset, options)
            _print_results(results)
            print(f"The page: {file}, with {study.name}.png and {study.name}.json beside it.")


def _print_known(run):
    name = run.study.name
    if run.replaces:
        print(f"{name}: {run.out / name}.json has other settings or parts than today's and will be replaced.")
    if run.read:
        print(f"{name}: {run.read} finished cells are read from the results in {run.out}; --out elsewhere runs them.")


def _print_results(results: dict):
    from rich.markup import escape
    from rich.table import Table

    from minivllava.ablations.results import claim_text, difference, score
    from minivllava.ablations.study import METRICS

    names = [METRICS[metric] for metric in results["metrics"]]
    title = f"{results['title']} (per cent, {len(results['seeds'])} seed(s), 95 % bootstrap intervals)"
    scores = Table("arm", *names, title=title, title_justify="left")
    for arm in results["arms"]:
        for label, row in {arm["label"]: arm["metrics"], **arm["baselines"]}.items():
            label = label if label == arm["label"] else f"  {label}"
            scores.add_row(escape(label), *(score(row[metric], values=False) for metric in results["metrics"]))
    claims = Table("claim", "on", "the paper", "here", "verdict")
    labels = {arm["name"]: arm["label"] for arm in results["arms"]}
    for claim in results["claims"]:
        paper = "-" if claim["points"] is None else f"{claim['points']:+.1f}"
        on = METRICS[claim["metric"]]
        claims.add_row(escape(claim_text(claim, labels)), on, paper, difference(claim), claim["verdict"])
    console = _console()
    console.print(scores)
    if results["claims"]:
        console.print(claims)


def _console():
    from rich.console import Console

    console = Console()
    console.width = max(console.width, 110)  # a pipe counts as 80 columns, which would cut the tables
    return console


def _list(studies: list):
    from rich.table import Table

    table = Table("study", "arms", "questions", "what it asks")
    for study in studies:
        table.add_row(study.name, str(len(study.arms)), ", ".join(map(str, study.questions)), study.title)
    _console().print(table)


def _print_plans(studies: list, settings, seeds: int, parts, out: Path):
    from rich.table import Table

    from minivllava.ablations.plan import measured_rate, plan_study
    from minivllava.ablations.results import finished_cells, shared_cells

    console = _console()
    rate = measured_rate(settings.model.language, parts.device)
    total, counted = 0.0, set()
    for study in studies:
        known = shared_cells(out) | finished_cells(out / f"{study.name}.json")
        plan = plan_study(study, settings, seeds, parts, rate, known, counted)
        total += plan.minutes
        shown = Table("arm", "steps", "cells", "finished", "minutes a cell", "GiB", title_justify="left",
                      title=f"{plan.name}: {plan.title}")  # fmt: skip
        for arm in plan.arms:
            steps = " + ".join(map(str, arm.steps)) or "none"
            cells = str(arm.cells) if arm.cells else "of others"
            shown.add_row(arm.label, steps, cells, str(arm.finished), f"{arm.minutes:.1f}", f"{arm.gib:.1f}")
        console.print(shown)
        kinds = sorted({name.rpartition("-")[0] for name in plan.parts})
        for kind in kinds:
            costs = [minutes for name, minutes in plan.parts.items() if name.rpartition("-")[0] == kind]
            console.print(f"  before: {len(costs)} x {kind}, {sum(costs):.1f} minutes", highlight=False)
        left = f"  left: {plan.minutes:.0f} minutes by one process on {parts.device}, {plan.gib:.1f} GiB (estimates)\n"
        console.print(left, highlight=False)
    console.print(f"All: {total:.0f} minutes by one process.", highlight=False)
