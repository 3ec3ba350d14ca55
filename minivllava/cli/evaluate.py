"""Evaluation: evaluate."""

from pathlib import Path
from typing import Annotated

import typer

from minivllava.cli.app import RUNS, Changes, Device, Preset, app, writable
from minivllava.cli.ask import load_model
from minivllava.cli.results import print_results
from minivllava.cli.score import JudgeModel, JudgeUrl, Workers, beside, judged_by, print_scores
from minivllava.errors import ConfigError
from minivllava.evaluation.benchmarks import BENCHMARKS
from minivllava.files import write_json

BENCHMARK, OWN = "A real benchmark", "Your own records"


@app.command()
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint folder, or with --benchmark also a hub id.")],
    preset: Preset = "tiny",
    out: Annotated[
        Path | None,
        typer.Option(help="Where the JSON goes (by default runs/evaluations/), or the benchmark's run folder."),
    ] = None,
    change: Changes = [],  # noqa: B006
    figure: Annotated[
        Path | None, typer.Option(help="A PNG to draw: held-out files with the model's answers, and accuracies.")
    ] = None,
    data: Annotated[
        list[Path],
        typer.Option(help="Instead, your own LLaVA-format JSON: the last question of each record. May be repeated.",
                     rich_help_panel=OWN),
    ] = [],  # noqa: B006
    media: Annotated[
        Path | None,
        typer.Option(help="The folder that its paths start from; by default the JSON's.", rich_help_panel=OWN),
    ] = None,
    benchmark: Annotated[
        str | None, typer.Option(help=f"Instead, a real one: {', '.join(BENCHMARKS)}.", rich_help_panel=BENCHMARK)
    ] = None,
    root: Annotated[
        Path | None, typer.Option(help="The folder with its questions and media.", rich_help_panel=BENCHMARK)
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only its first N questions.", rich_help_panel=BENCHMARK)
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions at once.", rich_help_panel=BENCHMARK)] = 8,
    temperature: Annotated[
        float, typer.Option(min=0, help="0 takes the likeliest token each time.", rich_help_panel=BENCHMARK)
    ] = 0.0,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="By default the original script's; with --data 64.", rich_help_panel=BENCHMARK),
    ] = None,
    seed: Annotated[int, typer.Option(help="For temperatures above 0.", rich_help_panel=BENCHMARK)] = 0,
    skip_broken: Annotated[
        bool,
        typer.Option("--skip-broken", help="Leave out questions that are too long, or whose media is missing or "
                     "broken.", rich_help_panel=BENCHMARK),
    ] = False,
    judge: JudgeModel = None,
    judge_url: JudgeUrl = "",
    judge_workers: Workers = 8,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.", rich_help_panel=BENCHMARK)] = "float32",
    device: Device = None,
):  # fmt: skip
    """Score a model on the held-out questions, beside the baselines: a table, and JSON.

    With --data: on your own records, by exact match.

    With --benchmark and --root: on a real benchmark. Answers are written as they come; the same command continues a
    run that was stopped, and under `torchrun --nproc_per_node N -m minivllava.cli evaluate ...` (or `accelerate
    launch`) N processes share the questions.
    """
    if (benchmark is None) != (root is None):
        raise ConfigError("--benchmark and --root belong together: name a benchmark and the folder of its files.")
    if benchmark is None and (judge or limit or temperature):
        raise ConfigError(
            "--judge, --limit and --temperature go with --benchmark: other questions are all answered, greedily."
        )
    if not (benchmark or data) and (max_new_tokens or skip_broken):
        raise ConfigError("--max-new-tokens and --skip-broken go with --benchmark and --data: leave them out.")
    if media and not data:
        raise ConfigError("--media is for your own records: name their JSON with --data.")
    if data and (benchmark or figure or change):
        raise ConfigError("--data has no benchmark, figure or preset: leave out --benchmark, --figure and --set.")
    if figure is not None and (benchmark or figure.suffix.lower() != ".png"):
        raise ConfigError(f"--figure {figure}: name a file ending in .png; a --benchmark has no figure.")
    from minivllava.evaluation.benchmark_run import model_name, run_benchmark

    if benchmark is not None:
        from minivllava.evaluation.benchmarks import benchmark as named_benchmark

        chosen = named_benchmark(benchmark)
        out = out or RUNS / "benchmarks" / model_name(checkpoint) / chosen.name
        results = run_benchmark(
            checkpoint, chosen, root, out, limit=limit, batch_size=batch_size, temperature=temperature,
            max_new_tokens=max_new_tokens, seed=seed, skip_broken=skip_broken, dtype=dtype, device=device,
            judge=judged_by(judge, judge_url, beside(out / "predictions.jsonl", judge), judge_workers),
        )  # fmt: skip
        if results:  # in the first of several processes
            _print_run(chosen.title, results, out)
        return
    from minivllava.data.build import build_world, evaluation_only
    from minivllava.evaluation.evaluate import evaluate_files, evaluate_world
    from minivllava.overrides import override
    from minivllava.presets import preset as named_preset

    out = out or RUNS / "evaluations" / f"{model_name(checkpoint)}{'-' + data[0].stem if data else ''}.json"
    writable(out)
    config = evaluation_only(override(named_preset(preset), *change).world)
    if figure is not None:
        writable(figure, "--figure")
        if not config.test:
            raise ConfigError("--figure shows files of the test split: leave it out, or --set world.test=0.")
    model = load_model(str(checkpoint), device, dtype)  # first: what cannot be loaded is said at once
    if data:
        results, skipped = evaluate_files(
            model, data, media or data[0].parent, max_new_tokens=max_new_tokens or 64, skip_broken=skip_broken
        )
        if skipped:
            print(f"Left out {len(skipped)} broken file(s): {', '.join(skipped)}")
    else:
        results = evaluate_world(model, build_world(config))
    print_results(results)
    write_json(out, results)
    print(f"All answers: {out}")
    if figure is not None:
        from minivllava.report import result_figure

        figure.parent.mkdir(parents=True, exist_ok=True)
        result_figure(results).savefig(figure)
        print(f"The figure: {figure}")


def _print_run(title: str, results: dict, out: Path):
    if "metrics" in results:
        print_scores(title, results)
    else:
        print(results["unscored"])
    for name in results["left_out"]:
        print(f"left out: {name}")
    print(f"{results['answered']:,} answers: {out / 'predictions.jsonl'}")
    if "submission" in results:
        print(f"Submission: {results['submission']}")
