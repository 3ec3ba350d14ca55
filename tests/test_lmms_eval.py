"""The adapter to lmms-eval, against a stub of the interface that it needs: it cannot be installed everywhere."""

import gc
import importlib
import runpy
import sys
import weakref
from types import SimpleNamespace

import pytest
import torch
from benchmark_files import clip
from PIL import Image
from tiny import square, tiny_vllava

from minivllava.data.write_media import write_image, write_video
from minivllava.errors import ConfigError, DataError


@pytest.fixture
def adapter(monkeypatch):
    """The adapter, imported against a stub of the interface that it needs."""

    class LMM:
        def __init__(self):
            self._rank, self._world_size, self.task_dict = 0, 1, {}
            self.partial = []
            self.cache_hook = SimpleNamespace(add_partial=lambda *row: self.partial.append(row))

        def clean(self):
            for name, value in list(vars(self).items()):
                if isinstance(value, torch.nn.Module):
                    delattr(self, name)

    known = {}

    def register_model(*names):
        def register(cls):
            for name in names:
                assert name not in known, f"Model named '{name}' conflicts with existing model!"
                known[name] = cls
            return cls

        return register

    stubs = {
        "lmms_eval": SimpleNamespace(),
        "lmms_eval.api": SimpleNamespace(),
        "lmms_eval.api.model": SimpleNamespace(lmms=LMM),
        "lmms_eval.api.registry": SimpleNamespace(register_model=register_model),
        "lmms_eval.models": SimpleNamespace(AVAILABLE_MODELS={}),
        "lmms_eval.models.registry_v2": SimpleNamespace(ModelManifest=lambda name, **paths: (name, paths)),
    }
    for name, stub in stubs.items():
        monkeypatch.setitem(sys.modules, name, stub)
    monkeypatch.delitem(sys.modules, "minivllava.evaluation.lmms_eval", raising=False)
    import minivllava.evaluation.lmms_eval as module

    yield SimpleNamespace(module=module, known=known, stubs=stubs)
    sys.modules.pop("minivllava.evaluation.lmms_eval", None)


def request(context, options, visuals, number):
    arguments = (context, options, lambda doc: doc["visuals"], number, "task", "test")
    return SimpleNamespace(args=arguments), {"visuals": visuals}


def test_lmms_eval_gets_answers_in_order(adapter, tmp_path):
    tiny_vllava().save_pretrained(tmp_path / "model")
    lmm = adapter.known["minivllava"](str(tmp_path / "model"), device="cpu", batch_size="2", max_batch_size=None)
    write_video(tmp_path / "clip.mp4", clip("red"))
    image = Image.fromarray(square("blue", 3))
    write_image(tmp_path / "same.png", square("blue", 3))
    kinds = [
        ("What colour?", {"max_new_tokens": 5, "until": ["\n\n"]}, [image]),
        ("Which way?", {"max_new_tokens": 3}, [str(tmp_path / "clip.mp4")]),
        ("Why?", {"max_new_tokens": 5, "until": ["\n\n"]}, []),
        ("<image> and <image>: same?", {"max_new_tokens": 3, "do_sample": False, "temperature": 1}, [image, image]),
    ]
    requests, documents = zip(*(request(*kind, number) for number, kind in enumerate(kinds)), strict=True)
    lmm.task_dict = {"task": {"test": documents}}
    answers = lmm.generate_until(list(requests))
    assert len(answers) == 4 and all(isinstance(answer, str) for answer in answers)
    by_chat = lmm.model.chat("What colour?", images=[tmp_path / "same.png"], max_new_tokens=5)
    assert answers[0] == by_chat.split("\n\n")[0].strip()
    assert answers[1] == lmm.model.chat("Which way?", videos=[tmp_path / "clip.mp4"], max_new_tokens=3)
    both = [tmp_path / "same.png"] * 2
    greedy = lmm.model.chat("<image> and <image>: same?", images=both, max_new_tokens=3)
    assert answers[3] == greedy, "do_sample=False outweighs a temperature"
    assert [row[1][0] for row in sorted(lmm.partial, key=lambda row: row[1][0])] == sorted(k[0] for k in kinds)


def test_lmms_eval_says_what_it_cannot(adapter):
    lmm = adapter.known["minivllava"](tiny_vllava(), device="cpu")
    for method in (lmm.loglikelihood, lmm.generate_until_multi_round):
        with pytest.raises(NotImplementedError, match="generate_until"):
            method([])
    ask, document = request("?", {"num_beams": 3}, [], 0)
    lmm.task_dict = {"task": {"test": [document]}}
    with pytest.raises(NotImplementedError, match="no beam search"):
        lmm.generate_until([ask])
    ask, document = request("<image>?", {}, [], 0)
    lmm.task_dict = {"task": {"test": [document]}}
    with pytest.raises(DataError, match="document 0"):
        lmm.generate_until([ask])
    with pytest.raises(ConfigError, match="no option attn"):
        adapter.known["minivllava"](tiny_vllava(), device="cpu", attn="flash")


def test_lmms_eval_finds_the_model_whichever_registry_it_has(adapter):
    adapter.module.register()
    assert adapter.stubs["lmms_eval.models"].AVAILABLE_MODELS["minivllava"] == adapter.module.PATH
    taken = []
    adapter.stubs["lmms_eval.models"].MODEL_REGISTRY_V2 = SimpleNamespace(
        register_manifest=lambda manifest, overwrite: taken.append(manifest)
    )
    adapter.module.register()
    assert taken == [("minivllava", {"simple_class_path": adapter.module.PATH})] == [adapter.module.manifest()]
    module, _, name = adapter.module.PATH.rpartition(".")
    assert getattr(sys.modules[module], name) is adapter.known["minivllava"]


def test_run_as_a_script_the_model_is_registered_once(adapter, monkeypatch):
    """Older versions of lmms-eval refuse a name that is registered twice: by the script, and by its import."""
    sys.modules.pop("minivllava.evaluation.lmms_eval")
    adapter.known.clear()
    models = adapter.stubs["lmms_eval.models"]

    def evaluate():
        module, _, name = models.AVAILABLE_MODELS["minivllava"].rpartition(".")
        assert getattr(importlib.import_module(module), name) is adapter.known["minivllava"]
        return 3

    monkeypatch.setitem(sys.modules, "lmms_eval.__main__", SimpleNamespace(cli_evaluate=evaluate))
    with pytest.raises(SystemExit) as end:
        runpy.run_module("minivllava.evaluation.lmms_eval", run_name="__main__")
    assert end.value.code == 3


def test_cleaning_lets_the_model_go(adapter):
    lmm = adapter.known["minivllava"](tiny_vllava(), device="cpu")
    model = weakref.ref(lmm.model)
    lmm.clean()
    gc.collect()
    assert model() is None


def test_without_lmms_eval_the_adapter_says_how_to_get_it():
    sys.modules.pop("minivllava.evaluation.lmms_eval", None)
    with pytest.raises(ImportError, match="pip install lmms-eval"):
        import minivllava.evaluation.lmms_eval  # noqa: F401
