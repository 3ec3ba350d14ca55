"""Zero-shot retrieval and classification in LanguageBind's joint space: retrieve."""

import json
from pathlib import Path
from typing import Annotated

import typer

from minivllava.cli.app import PARTS, Changes, Device, Preset, app, writable
from minivllava.errors import ConfigError


@app.command()
def retrieve(
    parts: Annotated[
        Path, typer.Argument(help="Bound encoders: a folder of pretrained parts, or a LanguageBind folder or hub id.")
    ] = PARTS,
    modality: Annotated[str, typer.Option(help="image, video or depth: which encoder.")] = "image",
    preset: Preset = "tiny",
    change: Changes = [],  # noqa: B006
    data: Annotated[
        Path | None,
        typer.Option(help="Pairs of your own: JSON records of a path under the modality's name, and caption or label."),
    ] = None,
    media: Annotated[Path | None, typer.Option(help="Where their paths start; by default the JSON's folder.")] = None,
    template: Annotated[
        list[str], typer.Option(help='A prompt for labels, e.g. "a photo of a {}."; may be repeated, and is averaged.')
    ] = [],  # noqa: B006
    batch_size: Annotated[int, typer.Option(min=1)] = 64,
    device: Device = None,
    out: Annotated[Path | None, typer.Option(help="Also write the results to this JSON file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
):
    """Find captions by images or clips and the other way round, and name classes, without training for either.

    Recall@1, 5 and 10 both ways over the embedded world's test scenes, and top-1 accuracy over scenes of one thing;
    or over pairs of your own with --data. Ties count against the model.
    """
    from minivllava.checkpoints.devices import usable_device
    from minivllava.checkpoints.loading import load_languagebind, need_tokenizer
    from minivllava.evaluation.pairs import FOLDERS, read_pairs, world_pairs
    from minivllava.evaluation.retrieval import (
        TEMPLATES,
        class_accuracy,
        embed_classes,
        embed_files,
        embed_texts,
        retrieval,
    )
    from minivllava.files import write_json

    if data is None and modality not in FOLDERS:
        raise ConfigError(f"The embedded world has no {modality}; choose one of {', '.join(FOLDERS)}, or name --data.")
    if out is not None:
        writable(out)
    folder = parts / "languagebind" if (parts / "languagebind").is_dir() else parts
    model, tokenizer = load_languagebind(folder, usable_device(device))
    need_tokenizer(tokenizer, folder)
    if modality not in model.config.encoders:
        bound = ", ".join(model.config.encoders)
        raise ConfigError(f"{folder} has no {modality} encoder; it binds {bound}: choose one of these with --modality.")
    if data is None:
        pairs = world_pairs(_world(preset, change, modality), modality)
    else:
        pairs = read_pairs(data, modality, media, template or TEMPLATES.get(modality, ("{}",)))
    visuals = embed_files(model, modality, pairs.files, batch_size)
    results: dict = {"parts": str(folder), "modality": modality, "files": len(pairs.files)}
    if pairs.captions:
        texts = embed_texts(model, tokenizer, pairs.captions)
        results["captions"] = len(pairs.captions)
        results["retrieval"] = retrieval(visuals, texts, pairs.owners)
    results["classification"] = {}
    for name, task in pairs.tasks.items():
        classes = embed_classes(model, tokenizer, task.classes, task.templates)
        chosen = list(task.of)
        accuracy = class_accuracy(visuals[chosen], classes, list(task.of.values()))
        results["classification"][name] = {"n": len(chosen), "classes": len(task.classes)} | accuracy
    print(json.dumps(results, indent=1) if as_json else "\n".join(_lines(results)))
    if out is not None:
        write_json(out, results, indent=1)


def _world(preset: str, change: list[str], modality: str) -> Path:
    """The folder of the embedded world's held-out splits; depth maps are made where they are asked for."""
    from dataclasses import replace

    from minivllava.data.build import build_world, evaluation_only
    from minivllava.overrides import override
    from minivllava.presets import preset as named_preset

    config = evaluation_only(override(named_preset(preset), *change).world)
    return build_world(replace(config, depth=config.depth or modality == "depth"))


def _lines(results: dict):
    yield f"{results['files']} {results['modality']} files, {results.get('captions', 0)} captions"
    for way, recalls in results.get("retrieval", {}).items():
        yield f"{way:<16}" + "  ".join(f"{name} {value:5.1f} %" for name, value in recalls.items())
    for name, task in results["classification"].items():
        shares = "  ".join(f"{k} {task[k]:5.1f} %" for k in task if k.startswith("top"))
        yield f"{name:<16}{shares}  of {task['n']} among {task['classes']} (chance {100 / task['classes']:.1f} %)"
