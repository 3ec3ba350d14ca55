"""This project's models in lmms-eval (github EvolvingLMMs-Lab/lmms-eval), where a user has it installed.

    python -m minivllava.evaluation.lmms_eval --model minivllava \\
        --model_args pretrained=LanguageBind/Video-LLaVA-7B,dtype=bfloat16 --tasks pope,activitynetqa --batch_size 8

takes all options of lmms-eval's own command line. Versions that look for plugins find the model by themselves
(entry point "lmms_eval.models"). A request's arguments are (context, generation options, doc_to_visual, document id,
task, split); visuals are Pillow images or paths. Answers are generated; log-likelihoods are not computed.
"""

import io
import sys
from collections.abc import Sequence
from importlib import import_module
from itertools import groupby

import torch

from minivllava.checkpoints.loading import need_tokenizer
from minivllava.data.conversation import placeholders
from minivllava.data.media import media_kind
from minivllava.errors import ConfigError, DataError
from minivllava.evaluation.answering import Answerer, Asked
from minivllava.models.generate import Sampling
from minivllava.models.vllava import VideoLLaVA

NAME, PATH = "minivllava", "minivllava.evaluation.lmms_eval.Minivllava"

try:
    # by name: lmms-eval is no dependency of this package, not even of an extra
    _lmms = import_module("lmms_eval.api.model").lmms
    _register = import_module("lmms_eval.api.registry").register_model
except ImportError as error:
    raise ImportError(
        "lmms-eval is not installed: pip install lmms-eval (github EvolvingLMMs-Lab/lmms-eval), then run this again."
    ) from error


class Minivllava(_lmms):
    """lmms-eval's model interface around a VideoLLaVA.

    pretrained: a checkpoint folder or hub id, or a model. Of several processes that `accelerate launch` started
    each has its own copy on its own GPU.
    """

    is_simple = True  # takes contexts and visuals, not chat messages

    def __init__(
        self, pretrained: str | VideoLLaVA, device: str | None = None, dtype: str = "float32",
        batch_size: int | str = 1, max_new_tokens: int = 1024, **unknown,
    ):  # fmt: skip
        super().__init__()
        unknown.pop("max_batch_size", None)  # lmms-eval passes it to every model
        if unknown:
            raise ConfigError(f"minivllava has no option {', '.join(unknown)}: leave it out of --model_args.")
        from accelerate import Accelerator

        # lmms-eval gathers the results of several processes through `accelerator` and `device`
        self.accelerator = Accelerator(cpu=device == "cpu")
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        if isinstance(pretrained, VideoLLaVA):
            self.model = pretrained.eval()
        else:
            self.model = VideoLLaVA.from_pretrained(
                pretrained, device=device if device and self._world_size == 1 else self.accelerator.device, dtype=dtype
            )
            need_tokenizer(self.model.tokenizer, pretrained)
        if not str(batch_size).isdecimal():
            raise ConfigError(f"batch_size {batch_size!r}: give a whole number, there is no automatic one here.")
        self.batch_size = int(batch_size)
        self.max_new_tokens = max_new_tokens
        self._answer = Answerer(self.model)

    @property
    def device(self) -> torch.device:
        return self.model.device

    def clean(self):
        """Lets go of the model, as lmms-eval asks for once it has all answers."""
        self._answer = None  # which holds the model, too
        super().clean()

    def generate_until(self, requests: Sequence) -> list[str]:
        """The answer to each request, in their order, cut at the first of its `until` strings."""
        from tqdm.auto import tqdm

        arguments = [request.args for request in requests]
        # batches share their generation options
        order = sorted(range(len(arguments)), key=lambda i: (repr(sorted(arguments[i][1].items())), i))
        answers = [""] * len(arguments)
        with tqdm(total=len(order), desc=NAME, disable=self._rank != 0) as bar:
            for _, same in groupby(order, key=lambda i: repr(sorted(arguments[i][1].items()))):
                chosen = list(same)
                for first in range(0, len(chosen), self.batch_size):
                    batch = chosen[first : first + self.batch_size]
                    replies = self._batch([arguments[i] for i in batch])
                    for i, reply in zip(batch, replies, strict=True):
                        answers[i] = reply
                        self.cache_hook.add_partial("generate_until", (arguments[i][0], arguments[i][1]), reply)
                    bar.update(len(batch))
        return answers

    def _batch(self, batch: list[tuple]) -> list[str]:
        options = batch[0][1]
        if options.get("num_beams") not in (None, 1):
            raise NotImplementedError("minivllava has no beam search: leave num_beams out of the task's options.")
        until = options.get("until") or []
        temperature = float(options.get("temperature") or 0) if options.get("do_sample", True) else 0.0
        replies = self._answer(
            [self._asked(*arguments) for arguments in batch],
            Sampling(
                max_new_tokens=int(options.get("max_new_tokens") or self.max_new_tokens),
                temperature=temperature,
                top_p=float(options.get("top_p") or 1.0),
            ),
        )
        return [_cut(reply, [until] if isinstance(until, str) else until) for reply in replies]

    def _asked(self, context: str, _options, doc_to_visual, doc_id, task, split) -> Asked:
        visuals = doc_to_visual(self.task_dict[task][split][doc_id]) or []
        visuals = [_visual(visual) for visual in (visuals if isinstance(visuals, list | tuple) else [visuals])]
        marked = placeholders(context)
        if marked and marked != [kind for kind, _ in visuals]:
            raise DataError(
                f"{task}, document {doc_id}: the context names {marked} and the document has "
                f"{[kind for kind, _ in visuals]}: choose a variant of the task without placeholders."
            )
        return Asked(context, visuals)

    def loglikelihood(self, requests: Sequence):
        """Not computed: raises NotImplementedError."""
        raise NotImplementedError(
            "minivllava computes no log-likelihoods for lmms-eval: choose tasks that generate (output_type: "
            "generate_until)."
        )

    def generate_until_multi_round(self, requests: Sequence):
        """Not there: raises NotImplementedError."""
        raise NotImplementedError(
            "minivllava answers single rounds in lmms-eval: choose tasks of output_type generate_until."
        )


if __name__ != "__main__":  # a script's class is not the one that lmms-eval imports, and a name is registered once
    _register(NAME)(Minivllava)


def _cut(reply: str, until: Sequence[str]) -> str:
    for stop in until:
        reply = reply.split(stop)[0] if stop else reply
    return reply.strip()


def _visual(visual) -> tuple[str, str | bytes]:
    """What a task's doc_to_visual gives as (kind, path or bytes): a path, or a Pillow image."""
    if isinstance(visual, str):
        return media_kind(visual), visual
    if hasattr(visual, "save") and hasattr(visual, "size"):
        data = io.BytesIO()
        visual.convert("RGB").save(data, "PNG")
        return "image", data.getvalue()
    raise DataError(f"A visual of type {type(visual).__name__}: minivllava sees Pillow images and paths of media.")


def manifest():
    """What lmms-eval's plugin registry asks an entry point for."""
    return import_module("lmms_eval.models.registry_v2").ModelManifest(NAME, simple_class_path=PATH)


def register():
    """Makes `--model minivllava` known to lmms-eval's command line, whichever registry its version has."""
    models = import_module("lmms_eval.models")
    if hasattr(models, "MODEL_REGISTRY_V2"):
        models.MODEL_REGISTRY_V2.register_manifest(manifest(), overwrite=True)
    else:
        models.AVAILABLE_MODELS[NAME] = PATH


if __name__ == "__main__":
    register()
    sys.exit(import_module("lmms_eval.__main__").cli_evaluate())
