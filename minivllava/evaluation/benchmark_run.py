"""A model's answers to the questions of a benchmark: in batches, by several processes, continued where they stopped.

A run's folder holds
    run.json               the benchmark, the model and all settings; another run cannot continue here
    parts/RANK.jsonl       what each process has answered so far, a line at once
    predictions.jsonl      all answers in the questions' order, once none is missing or doubled
    submission.json        what the benchmark's server wants, if it wants something (MMBench: submission.xlsx)
    results.json           the scores, where the true answers are at hand
"""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch

from minivllava.checkpoints.devices import usable_device
from minivllava.checkpoints.loading import need_tokenizer
from minivllava.errors import ContextLengthError, DataError, MediaError
from minivllava.evaluation.answering import Answerer, Asked
from minivllava.evaluation.benchmarks import Benchmark
from minivllava.evaluation.benchmarks.judge import Judge
from minivllava.evaluation.predictions import Problems, Question, open_log, read_json, read_log
from minivllava.files import json_hash, write_json, write_text
from minivllava.models.generate import Sampling
from minivllava.models.vllava import VideoLLaVA
from minivllava.provenance import environment


def run_benchmark(
    checkpoint: str | Path, benchmark: Benchmark, root: str | Path, out: str | Path, *, batch_size: int = 8,
    limit: int | None = None, temperature: float = 0.0, top_p: float = 1.0, max_new_tokens: int | None = None,
    seed: int = 0, device: str | None = None, dtype: torch.dtype | str = torch.float32, skip_broken: bool = False,
    judge: Judge | None = None, progress: bool = True,
) -> dict:  # fmt: skip
    """Asks a model all questions of a benchmark under `root`, and scores the answers where the truth is at hand.

    The same call continues a run that was stopped; of several processes (RANK, WORLD_SIZE) each takes its share,
    and the first one checks, merges and scores. limit: only the first so many questions. skip_broken: questions
    whose image or clip is missing or broken, or that are too long for the model, are left out, and listed in the
    results.

    Returns what results.json holds (in every process but the first an empty dict). Raises MediaError with the list
    of missing files before the model is loaded, and whatever reading the files raises.
    """
    root, out = Path(root), Path(out)
    benchmark.check_judge(judge)
    if not root.is_dir():
        raise DataError(f"{root} is no folder: name the one that holds {benchmark.title}'s files.")
    everything = benchmark.questions(root)
    questions = everything[:limit]
    missing = {file: None for q in questions if (file := _file(q)) is not None and not os.path.isfile(file)}
    if missing and not skip_broken:
        listed = "\n  ".join(missing)
        raise MediaError(
            f"{len(missing):,} file(s) of {benchmark.title} are missing:\n  {listed}\n"
            "Download them, or leave out what is asked about them with --skip-broken."
        )
    rank, world, device, barrier = _processes(device)
    sampling = Sampling(max_new_tokens or benchmark.max_new_tokens, temperature, top_p)
    settings = {
        "benchmark": benchmark.name, "checkpoint": str(checkpoint), "weights": _weights(checkpoint),
        "root": str(root), "prompts": json_hash([(q.key, q.prompt) for q in everything]), "seed": seed,
        "dtype": str(dtype), "temperature": temperature, "top_p": top_p, "max_new_tokens": sampling.max_new_tokens,
    }  # fmt: skip
    _check_settings(out / "run.json", settings, write=rank == 0)
    answered = {line["key"] for _, line in _lines(out) if "answer" in line}
    # by position, whoever has answered what: so no process needs to know how far another one is
    mine = [q for q in questions[rank::world] if q.key not in answered and _file(q) not in missing]
    if mine:
        model = VideoLLaVA.from_pretrained(checkpoint, device=device, dtype=dtype)
        need_tokenizer(model.tokenizer, checkpoint)
        _answer_all(_answerer(model, benchmark, seed, sampling), mine, benchmark, out / f"parts/{rank}.jsonl",
                    batch_size, skip_broken, progress and rank == 0)  # fmt: skip
    barrier()
    if rank != 0:
        return {}
    return _finish(benchmark, root, out, questions, missing, settings, limit, judge)


def model_name(checkpoint: str | Path) -> str:
    """What to call a checkpoint: its folder's name, or that of the run that "model" lies in (runs/NAME/model)."""
    path = Path(checkpoint).absolute()
    return path.parent.name if path.name == "model" else path.name


def _file(question: Question) -> str | None:
    """The file that a question is about; None for text alone, or an image that came with the question."""
    return str(question.media[1]) if question.media and isinstance(question.media[1], Path) else None


def _weights(checkpoint: str | Path) -> str | None:
    """Tells a folder's weights from those of the same name trained later; None for a hub id."""
    files = sorted(path for kind in ("*.safetensors", "*.bin") for path in Path(checkpoint).glob(kind))
    return json_hash([(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]) if files else None


def _processes(device: str | None) -> tuple[int, int, str, Callable[[], None]]:
    """(this process, how many, its device, a barrier) under torchrun or accelerate launch, or alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0, 1, usable_device(device), lambda: None
    from accelerate import PartialState

    # some shares take hours longer than others
    state = PartialState(cpu=device == "cpu", timeout=timedelta(days=30))
    return state.process_index, state.num_processes, str(state.device), state.wait_for_everyone


def _check_settings(file: Path, settings: dict, write: bool):
    """Writes run.json, or raises DataError if another run's is there."""
    if file.is_file():
        before = read_json(file)
        for name, value in settings.items():
            if not _same(before.get(name), value):
                raise DataError(
                    f"{file.parent} holds answers of another run ({name} {before.get(name)!r}, not {value!r}): "
                    "name a new folder with --out, or delete that one."
                )
    elif write:
        write_json(file, settings | {"made_with": environment()}, indent=1)


def _same(before, now) -> bool:
    """Whether two settings are equal, or name the same file or folder."""
    if before == now or not (isinstance(before, str) and isinstance(now, str)):
        return before == now
    return os.path.exists(now) and os.path.realpath(before) == os.path.realpath(now)


def _lines(out: Path) -> Iterator[tuple[str, dict]]:
    """Where it stands, and what it says: each line that any process has written so far."""
    for part in sorted((out / "parts").glob("*.jsonl")):
        yield from ((f"{part}:{number}", line) for number, line in enumerate(read_log(part), start=1))


def _answerer(model: VideoLLaVA, benchmark: Benchmark, seed: int, sampling: Sampling) -> Answerer:
    config = model.config
    if benchmark.centre_crop and config.aspect == "pad":
        config = replace(config, aspect="square")
    name = "llava_v1" if benchmark.llava_v1 and config.template == "v1" else None
    return Answerer(model, name, config, seed, sampling)


def _answer_all(answerer, questions, benchmark: Benchmark, part: Path, batch_size: int, skip_broken: bool, progress):
    """Appends a line for each question: its key and the answer, or with `skip_broken` why there is none."""
    from tqdm.auto import tqdm

    with open_log(part) as log, tqdm(total=len(questions), desc=benchmark.name, disable=not progress) as bar:
        for first in range(0, len(questions), batch_size):
            batch = questions[first : first + batch_size]
            asked = [Asked(q.prompt, [q.media] if q.media else []) for q in batch]
            try:
                replies = answerer(asked)
            except (MediaError, ContextLengthError):
                if not skip_broken:
                    raise
                replies = [_one(answerer, question) for question in asked]
            for question, reply in zip(batch, replies, strict=True):
                line = {"key": question.key}
                line |= {"answer": reply} if isinstance(reply, str) else {"broken": str(reply)}
                log.write(json.dumps(line, ensure_ascii=False) + "\n")
            bar.update(len(batch))


def _one(answerer: Answerer, question: Asked) -> str | MediaError | ContextLengthError:
    try:
        return answerer([question])[0]
    except (MediaError, ContextLengthError) as error:
        return error


def _finish(benchmark: Benchmark, root, out: Path, questions, missing, settings, limit, judge) -> dict:
    """Merges the parts, checks them, writes predictions, submission and results."""
    problems = Problems()
    answers: dict[str, str] = {}
    broken = {question.key: _file(question) for question in questions if _file(question) in missing}
    for where, line in _lines(out):
        if "broken" in line:
            broken[line["key"]] = line["broken"]
        elif line["key"] in answers:
            problems.add(f"{where}: {line['key']} was answered twice, by two runs at once: delete this line")
        else:
            answers[line["key"]] = line["answer"]
    asked = questions
    questions = [question for question in questions if question.key in answers or question.key not in broken]
    for question in questions:
        if question.key not in answers:
            problems.add(f"{out / 'parts'}: {question.key} has no answer: run the same command again")
    problems.check()
    answers = {question.key: answers[question.key] for question in questions}
    left_out = [f"{key}: {name}" for key, name in broken.items() if key not in answers]
    model = {"model_id": model_name(settings["checkpoint"])}
    rows = (question.row | {benchmark.answer_field: answers[question.key]} | model for question in questions)
    write_text(out / "predictions.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    results = settings | {"answered": len(answers), "left_out": sorted(left_out)}
    if benchmark.submission is not None:
        results["submission"] = _submit(benchmark, root, out, answers, asked)
    truth = benchmark.truth(root)
    if truth is None:
        advice = "add them and run again" if benchmark.submission is None else "upload the submission"
        results["unscored"] = f"{benchmark.title}'s true answers are not under {root}: {advice}."
    elif benchmark.judge == "only" and judge is None:
        results["unscored"] = f"{benchmark.title} is scored by a judge: run again with --judge MODEL."
    else:
        problems = Problems(partial=limit is not None or bool(left_out))
        results |= benchmark.scores(truth, out / "predictions.jsonl", problems, judge)
    write_json(out / "results.json", results, indent=1)
    return results


def _submit(benchmark: Benchmark, root: Path, out: Path, answers: dict[str, str], questions: list[Question]) -> str:
    """Writes the file to upload and returns its name, or what is missing to write it.

    Servers and scripts want an answer to every question: what was left out gets an empty one.
    """
    content = benchmark.submission(root, {q.key: answers.get(q.key, "") for q in questions}, questions)
    if not benchmark.spreadsheet:
        write_json(out / "submission.json", content)
        return str(out / "submission.json")
    try:
        import openpyxl
        from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE
    except ImportError:
        return "not written: its server wants a spreadsheet; pip install openpyxl, then run this again"
    book = openpyxl.Workbook()
    book.active.append(list(content[0]))
    for row in content:  # control characters, which a model may write, are no part of a spreadsheet
        book.active.append([ILLEGAL_CHARACTERS_RE.sub("", v) if isinstance(v, str) else v for v in row.values()])
    book.save(out / "submission.xlsx")
    return str(out / "submission.xlsx")
