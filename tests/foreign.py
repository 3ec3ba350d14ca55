"""Tiny random models and tokenizers of `transformers`, in the layout of published ones."""

from pathlib import Path

import torch

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start|>' + message['role'] + '<|sep|>\n' "
    "+ message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant<|sep|>\n' }}{% endif %}"
)
LLAMA2 = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}{{ ' ' + message['content'] + ' ' + eos_token }}"
    "{% endif %}{% endfor %}"
)
TEXTS = ["What colour is the square? red green blue", "system user assistant", "Which way does it move? left"] * 10


def fast_tokenizer(specials: list[str], bos: str | None, eos: str, chat: str | None = None, **options):
    """A byte-level BPE of `transformers`, as Llama 3's, SmolLM2's and Qwen's are."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(vocab_size=320, special_tokens=specials, initial_alphabet=alphabet, show_progress=False),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=bos, eos_token=eos, chat_template=chat, **options
    )


def smollm_tokenizer():
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return fast_tokenizer(specials, "<|im_start|>", "<|im_end|>", CHATML)


def language_config(kind: str, vocabulary: int = 320):
    """A config of two layers; `kind` is a class name without "Config"."""
    import transformers

    sizes = {"vocab_size": vocabulary, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 128}
    if kind == "GPT2":
        sizes = {
            "vocab_size": vocabulary,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 128,
            "bos_token_id": 1,
        }
    if kind == "CTRL":
        sizes = {"vocab_size": vocabulary, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "dff": 48}
    if kind == "GPTJ":
        sizes = {"vocab_size": vocabulary, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "rotary_dim": 4}
    if kind == "GPTNeo":
        sizes = {"vocab_size": vocabulary, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 48}
        sizes |= {"max_position_embeddings": 128, "attention_types": [[["global"], 2]]}
    if kind == "Gemma3Text":
        sizes |= {"head_dim": 16, "sliding_window": 4, "num_hidden_layers": 6}
    if kind == "Phi3":
        rope = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [9.0] * 4}
        sizes |= {"rope_parameters": rope, "original_max_position_embeddings": 32}
    if kind == "XGLM":
        sizes = {"vocab_size": vocabulary, "d_model": 32, "attention_heads": 4, "num_layers": 2, "ffn_dim": 48}
    if kind == "Mistral":
        sizes |= {"sliding_window": 4}
    return getattr(transformers, f"{kind}Config")(**sizes, eos_token_id=2, pad_token_id=0)


def write_language_model(folder: Path, kind: str = "Qwen2", seed: int = 0) -> Path:
    """A folder with a random language model, large weights so that every difference shows, and SmolLM2's tokenizer."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(language_config(kind))
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.generation_config.eos_token_id = [2, 7]
    model.save_pretrained(folder)
    smollm_tokenizer().save_pretrained(folder)
    return folder


def write_tower(folder: Path, kind: str = "CLIP", seed: int = 0) -> Path:
    """A folder with a random vision tower: 4 patches of 8 pixels, CLIP's with a CLS token, SigLIP's without."""
    import transformers

    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = getattr(transformers, f"{kind}VisionConfig")(**sizes, image_size=16, patch_size=8)
    getattr(transformers, f"{kind}VisionModel")(config).save_pretrained(folder)
    return folder
