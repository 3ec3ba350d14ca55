"""Asking a model: ask, chat."""

import json
import os
import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from minivllava.cli.app import Device, app
from minivllava.errors import DataError, MinivllavaError

Checkpoint = Annotated[
    str, typer.Argument(help="A checkpoint folder or hub id, e.g. data/pretrained/tiny or LanguageBind/Video-LLaVA-7B.")
]
Temperature = Annotated[float, typer.Option(min=0, help="0 takes the likeliest token each time.")]
TopP = Annotated[float, typer.Option(min=0, max=1, help="Draw among the likeliest tokens up to this share.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Where an answer is cut off.")]
Frames = Annotated[int | None, typer.Option(min=1, help="Frames the model sees of a clip; by default 8.")]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="For temperatures above 0.")]
Dtype = Annotated[
    str | None,
    typer.Option(help="float32, bfloat16 or float16; by default float32 on a CPU, bfloat16 on a GPU."),
]
Quantize = Annotated[str | None, typer.Option(help="int8 or int4: store the language model's weights in fewer bits.")]
Compiled = Annotated[
    bool,
    typer.Option(
        "--compiled",
        help="Decode through torch.compile: pays for long answers on a GPU. The first answer compiles, about a minute.",
    ),
]
ImageEncoder = Annotated[str | None, typer.Option(help="Of an original checkpoint: a LanguageBind folder or hub id.")]
VideoEncoder = Annotated[str | None, typer.Option(help="As --image-encoder.")]


def load_model(
    checkpoint: str, device: str | None = None, dtype: str | None = None, quantize: str | None = None,
    image_encoder: str | None = None, video_encoder: str | None = None,
):  # fmt: skip
    """The Video-LLaVA that these options name. Raises ConfigError for a device that is not there, CheckpointError."""
    import torch

    from minivllava.checkpoints.devices import usable_device
    from minivllava.checkpoints.loading import need_tokenizer
    from minivllava.models.vllava import VideoLLaVA

    device = usable_device(device)
    dtype = dtype or ("float32" if torch.device(device).type == "cpu" else "bfloat16")
    model = VideoLLaVA.from_pretrained(
        checkpoint, device=device, dtype=dtype, quantize=quantize, image_encoder=image_encoder,
        video_encoder=video_encoder,
    )  # fmt: skip
    need_tokenizer(model.tokenizer, checkpoint)
    return model


def _generator(model, seed: int):
    import torch

    return torch.Generator(model.device).manual_seed(seed)


def _show(text: str):
    print(text, end="", flush=True)


@app.command()
def ask(
    checkpoint: Checkpoint,
    files_and_question: Annotated[
        list[str], typer.Argument(metavar="[FILE]... QUESTION", help="Images and clips, then the question.")
    ],
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    max_new_tokens: MaxNewTokens = 128,
    frames: Frames = None,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = None,
    quantize: Quantize = None,
    compiled: Compiled = False,
    image_encoder: ImageEncoder = None,
    video_encoder: VideoEncoder = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print question, files and answer as one JSON object.")
    ] = False,
):
    """Ask a model about images and clips; the answer streams as it is made.

    Example: minivllava ask data/pretrained/tiny image.png clip.mp4 "What colour is the circle?"

    In the question, `<image>` and `<video>` may say where each file belongs.
    """
    *files, question = files_and_question
    question = os.fsencode(question).decode(errors="replace")  # a shell may give bytes that are no UTF-8
    if os.path.isfile(question):  # unlike Path.is_file, this is False for a question too long to be a path
        raise DataError(f"{question} is a file: put a question after it.")
    from minivllava.chat import by_kind
    from minivllava.data.media import names_media

    if names_media(question):
        raise DataError(f"{question} is not there, and no question comes after it: check the path, then ask one.")

    images, videos = by_kind(files)
    model = load_model(checkpoint, device, dtype, quantize, image_encoder, video_encoder)
    answer = model.chat(
        question, images, videos, frames=frames, on_text=None if as_json else _show,
        max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, generator=_generator(model, seed),
        compiled=compiled,
    )  # fmt: skip
    if as_json:
        answer = json.dumps({"question": question, "files": files, "answer": answer})
    print(answer if as_json else "")


HELP = """\
Type a question. Or:
/image PATH    show an image with the next question
/video PATH    show a clip with the next question
/reset         forget all that was said and shown
/quit          end (so does the end of the input)"""


@app.command()
def chat(
    checkpoint: Checkpoint,
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FILE]...", help="Images and clips to show with the first question."),
    ] = None,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    max_new_tokens: MaxNewTokens = 256,
    frames: Frames = None,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = None,
    quantize: Quantize = None,
    compiled: Compiled = False,
    image_encoder: ImageEncoder = None,
    video_encoder: VideoEncoder = None,
):
    """Talk with a model about images and clips, turn by turn.

    Each line is a question; /image PATH and /video PATH show files with the next one, /reset starts over, /quit ends.
    Ctrl-C stops an answer. What cannot be done is said, and the conversation goes on. Reads a pipe, too:

    printf '/video clip.mp4\\nWhat moves?\\nWhere to?\\n' | minivllava chat data/pretrained/tiny
    """
    from minivllava.chat import Conversation, by_kind
    from minivllava.models.generate import Sampling

    shown = {kind: list(paths) for kind, paths in zip(("image", "video"), by_kind(files or []), strict=True)}
    for kind, paths in shown.items():
        for path in paths:
            _check(kind, path)
    model = load_model(checkpoint, device, dtype, quantize, image_encoder, video_encoder)
    sampling = Sampling(max_new_tokens, temperature, top_p, _generator(model, seed))
    conversation = Conversation(model, frames, sampling, compiled)
    for line in _lines():
        command, _, rest = line.partition(" ")
        try:
            if command == "/quit":
                return
            if command == "/reset":
                conversation.reset()
                shown = {"image": [], "video": []}
            elif command in ("/image", "/video"):
                path = os.path.expanduser(rest.strip().strip("'\""))
                _check(command[1:], path)
                shown[command[1:]].append(path)
            elif command == "/help":
                print(HELP)
            elif command.startswith("/"):
                raise DataError(f"There is no command {command}: /help lists what there is.")
            elif line:
                conversation.ask(line, shown["image"], shown["video"], on_text=_show)
                shown = {"image": [], "video": []}  # not before: what fails leaves them for the next try
                print()
        except MinivllavaError as error:
            print(f"minivllava: {error}", file=sys.stderr, flush=True)
        except KeyboardInterrupt:
            print(" (stopped)")


def _check(kind: str, path: str):
    """Raises MediaError for a file that cannot be shown, before a question about it is asked."""
    from minivllava.data.media import read_image, read_video

    if not path:
        raise DataError(f"/{kind} needs the path of a file.")
    (read_image if kind == "image" else read_video)(path)


def _lines() -> Iterator[str]:
    """What is typed, or comes through a pipe, line by line, until the end or Ctrl-C at the prompt."""
    if sys.stdin is None:  # closed by whoever started this
        return
    sys.stdin.reconfigure(errors="replace")  # bytes that are no UTF-8
    if not sys.stdin.isatty():
        yield from (line.strip() for line in sys.stdin)
        return
    print(HELP)
    while True:
        try:
            yield input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
