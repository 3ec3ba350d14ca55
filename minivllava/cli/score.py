"""Scoring predictions from anywhere: score."""

import json
import re
from pathlib import Path
from typing import Annotated

import typer

from minivllava.cli.app import app, writable
from minivllava.evaluation.benchmarks import BENCHMARKS
from minivllava.evaluation.benchmarks import benchmark as named_benchmark

JudgeModel = Annotated[
    str | None, typer.Option("--judge", help="A judge's model name, e.g. gpt-3.5-turbo-0125; the key: $OPENAI_API_KEY.")
]
JudgeUrl = Annotated[
    str, typer.Option("--judge-url", help="Any OpenAI-compatible endpoint, e.g. http://localhost:8000/v1.")
]
Verdicts = Annotated[
    Path | None, typer.Option(help="Where the judge's verdicts are kept, and continued; by default beside the answers.")
]
Workers = Annotated[int, typer.Option("--judge-workers", min=1, help="Questions that a judge is asked at once.")]
HELP = """Score a file of predictions: the benchmark's own metrics, without a model.

Files are JSON lines, a JSON list, or what the list below says; ids join them, never positions. What is wrong with a
file is reported with its line, and nothing is scored, unless --keep-going.
"""


def formats() -> str:
    """What each benchmark's files hold, for `--help`; those that hold the same stand together."""
    names: dict[tuple[str, str], list[str]] = {}
    for known in BENCHMARKS.values():
        names.setdefault((known.questions_format, known.answers_format), []).append(known.name)
    return "\n\n".join(
        f"**{', '.join(same)}**  \n--questions {_plain(questions)}  \n--answers {_plain(answers)}"
        for (questions, answers), same in names.items()
    )


def _plain(text: str) -> str:
    return re.sub(r"([\[\]*_<>|])", r"\\\1", text)  # as it is, in Markdown


@app.command(help=HELP, epilog=formats())
def score(
    benchmark: Annotated[str, typer.Argument(metavar="BENCHMARK", help="One of those listed below.")],
    questions: Annotated[Path, typer.Option(help="The benchmark's questions, with their true answers.")],
    answers: Annotated[Path, typer.Option(help="The predictions.")],
    truth: Annotated[Path | None, typer.Option(help="The true answers, if they are in a file of their own.")] = None,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Score despite problems, and list them: missing answers are wrong.")
    ] = False,
    judge: JudgeModel = None,
    judge_url: JudgeUrl = "",
    verdicts: Verdicts = None,
    judge_workers: Workers = 8,
    out: Annotated[Path | None, typer.Option(help="Also write the results to this JSON file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
):
    from minivllava.evaluation.predictions import Problems
    from minivllava.files import write_json

    chosen = named_benchmark(benchmark)
    if out is not None:
        writable(out)
    advice = "Mend them, or add --keep-going to score what is there; missing answers then count as wrong."
    problems = Problems(keep_going, advice=advice)
    asked = judged_by(judge, judge_url, verdicts or beside(answers, judge), judge_workers)
    results = {"benchmark": chosen.name, "questions": str(questions), "answers": str(answers)}
    results |= chosen.scores(questions, answers, problems, asked, truth)
    results["problems"] = problems.found
    if as_json:
        print(json.dumps(results, indent=1, ensure_ascii=False))
    else:
        print_scores(chosen.title, results)
    if out is not None:
        write_json(out, results, indent=1)


def beside(answers: Path, judge: str | None) -> Path:
    """Where a judge's verdicts on a file of answers are kept."""
    return answers.with_name(f"{answers.stem}-verdicts-{re.sub('[^A-Za-z0-9.-]', '-', judge or '')}.jsonl")


def judged_by(model: str | None, url: str, verdicts: Path, workers: int):
    """The judge that the options name, or None."""
    if model is None:
        return None
    from minivllava.evaluation.benchmarks.judge import Judge

    return Judge(model, verdicts, url, workers)


def print_scores(title: str, results: dict):
    """Tables of a benchmark's metrics with their 95 % intervals, of its groups, then notes and problems."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.width = max(console.width, 110)
    table = Table(title=f"{title}: {results['n']:,} questions", title_justify="left")
    table.add_column("metric")
    table.add_column("%, or as named", justify="right")
    table.add_column("95 % interval", justify="right")
    for name, value in results["metrics"].items():
        interval = results["intervals"].get(name)
        table.add_row(name, _number(value), f"{interval[0]:.2f} to {interval[1]:.2f}" if interval else "")
    console.print(table)
    for field, groups in results["groups"].items():
        columns = list(dict.fromkeys(column for figures in groups.values() for column in figures))
        table = Table(title=f"by {field}", title_justify="left")
        table.add_column(field)
        for column in columns:
            table.add_column(column, justify="right")
        for group, figures in groups.items():
            table.add_row(group, *(_number(figures.get(column)) for column in columns))
        console.print(table)
    for note in results["notes"]:
        console.print(note, markup=False)
    for problem in results.get("problems", []):
        console.print(f"problem: {problem}", markup=False)


def _number(value: float | int | None) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.2f}"
