"""The two demo checkpoints as folders: configs as the released files write them, tokenizers, chat template."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import nn

from idefics.models.family import DEFAULT_CHAT_TEMPLATE
from picturebook import iterate_texts

IMAGE_SIZE = 96  # a picture is 3 x 3 cells of 32 pixels
FAKE_IMAGE_TOKEN, IMAGE_TOKEN, GLOBAL_IMAGE_TOKEN, END_OF_UTTERANCE = (
    "<fake_token_around_image>", "<image>", "<global-img>", "<end_of_utterance>",
)  # fmt: skip
NUM_CORPUS_SAMPLES = 60_000  # samples; every word of the world occurs often
VOCAB_SIZE = 2_000  # enough that nearly every word is one token


@dataclass(frozen=True)
class CheckpointRecipe:
    """What one demo checkpoint is.

    Attributes:
        folder: its name below `src/idefics/demo`.
        make_config: tokenizer -> config.json.
        train_tokenizer: trains the tokenizer.
        make_generation_config: tokenizer -> generation_config.json.
        json_by_filename: the other json files by name.
        num_vision_steps: of the first stage, in which it learns to see before it learns to speak.
        has_raw_prompts: whether prompts without a template are trained too (the released 9b-instruct reads both).
    """

    folder: str
    make_config: Callable[[Tokenizer], dict[str, Any]]
    train_tokenizer: Callable[[], Tokenizer]
    make_generation_config: Callable[[Tokenizer], dict[str, Any]]
    json_by_filename: dict[str, dict[str, Any]]
    has_raw_prompts: bool
    num_vision_steps: int


def iterate_corpus() -> Iterator[str]:
    """What tokenizers are trained on."""
    yield from iterate_texts(NUM_CORPUS_SAMPLES, seed=1)


def train_byte_level_tokenizer() -> Tokenizer:
    """As SmolVLM's: byte-level BPE, digits one by one, nothing added by itself, picture marks at the end."""
    tokenizer = Tokenizer(models.BPE())
    split = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        min_frequency=3,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((f"User:{text} {text}\nAssistant:" for text in iterate_corpus()), trainer)
    special_tokens = [GLOBAL_IMAGE_TOKEN, FAKE_IMAGE_TOKEN, IMAGE_TOKEN, END_OF_UTTERANCE]
    tokenizer.add_special_tokens(
        [AddedToken(mark, special=True, normalized=False) for mark in special_tokens]
    )
    return tokenizer


def train_llama_tokenizer() -> Tokenizer:
    """As Llama's: "▁" for a space and before every segment, single bytes for what has no piece."""
    specials = ["<unk>", "<s>", "</s>"]
    piece_trainer = Tokenizer(models.BPE())
    piece_trainer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    piece_trainer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.Split("▁", "merged_with_next"),
            pre_tokenizers.Punctuation("isolated"),
        ]
    )
    trainer = trainers.BpeTrainer(vocab_size=VOCAB_SIZE, min_frequency=3, show_progress=False)
    piece_trainer.train_from_iterator(
        (f"{text}\nUser: {text}\nAssistant:" for text in iterate_corpus()), trainer
    )
    trained_model = json.loads(piece_trainer.to_str())["model"]
    pieces = [*specials, *(f"<0x{byte:02X}>" for byte in range(256)), *trained_model["vocab"]]
    merges = [tuple(merge) for merge in trained_model["merges"]]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece: index for index, piece in enumerate(pieces)},
            merges=merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = piece_trainer.normalizer
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special_tokens = [*specials, FAKE_IMAGE_TOKEN, IMAGE_TOKEN, END_OF_UTTERANCE]
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in special_tokens]
    )
    return tokenizer


def make_idefics3_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """As SmolVLM's config.json, at tiny size."""
    return {
        "architectures": ["Idefics3ForConditionalGeneration"],
        "image_token_id": tokenizer.token_to_id(IMAGE_TOKEN),
        "model_type": "idefics3",
        "scale_factor": 2,
        "text_config": {
            "head_dim": 32,
            "hidden_size": 160,
            "intermediate_size": 448,
            "max_position_embeddings": 1024,
            "model_type": "llama",
            "num_attention_heads": 5,
            "num_hidden_layers": 5,
            "num_key_value_heads": 5,
            "pad_token_id": 2,
            "rms_norm_eps": 1e-5,
            "rope_theta": 100000.0,
            "vocab_size": tokenizer.get_vocab_size(),
        },
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vision_config": {
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": 160,
            "image_size": IMAGE_SIZE,
            "intermediate_size": 480,
            "model_type": "idefics3",
            "num_attention_heads": 5,
            "num_hidden_layers": 4,
            "patch_size": 16,
        },
        "vocab_size": tokenizer.get_vocab_size(),
    }


def make_idefics1_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """As idefics-9b-instruct's config.json, at tiny size."""
    num_additional_tokens = 3
    return {
        "additional_vocab_size": num_additional_tokens,
        "alpha_initializer": "zeros",
        "alpha_type": "float",
        "architectures": ["IdeficsForVisionText2Text"],
        "bos_token_id": 1,
        "cross_layer_interval": 1,
        "eos_token_id": 2,
        "freeze_text_layers": False,
        "freeze_vision_layers": False,
        "hidden_act": "silu",
        "hidden_size": 160,
        "intermediate_size": 448,
        "max_position_embeddings": 1024,
        "model_type": "idefics",
        "num_attention_heads": 5,
        "num_hidden_layers": 4,
        "pad_token_id": 0,
        "perceiver_config": {
            "model_type": "idefics",
            "qk_layer_norms_perceiver": True,
            "resampler_depth": 1,
            "resampler_head_dim": 32,
            "resampler_n_heads": 5,
            "resampler_n_latents": 32,
            "use_resampler": True,
        },
        "qk_layer_norms": True,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_resampler": True,
        "vision_config": {
            "embed_dim": 160,
            "hidden_act": "gelu",
            "image_size": IMAGE_SIZE,
            "intermediate_size": 480,
            "model_type": "idefics",
            "num_attention_heads": 5,
            "num_hidden_layers": 4,
            "patch_size": 16,
        },
        "vocab_size": tokenizer.get_vocab_size() - num_additional_tokens,
    }


CHAT_TEMPLATE = "<|im_start|>" + DEFAULT_CHAT_TEMPLATE

IDEFICS3_RECIPE = CheckpointRecipe(
    folder="idefics3",
    make_config=make_idefics3_config,
    train_tokenizer=train_byte_level_tokenizer,
    make_generation_config=lambda tokenizer: {
        "bos_token_id": 1,
        "eos_token_id": tokenizer.token_to_id(END_OF_UTTERANCE),
        "pad_token_id": 2,
    },
    json_by_filename={
        "chat_template.json": {"chat_template": CHAT_TEMPLATE},
        "preprocessor_config.json": {
            "do_convert_rgb": True,
            "do_image_splitting": False,
            "do_normalize": True,
            "do_pad": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_processor_type": "Idefics3ImageProcessor",
            "image_std": [0.5, 0.5, 0.5],
            "max_image_size": {"longest_edge": IMAGE_SIZE},
            "processor_class": "Idefics3Processor",
            "resample": 1,
            "rescale_factor": 1 / 255,
            "size": {"longest_edge": IMAGE_SIZE},
        },
        "processor_config.json": {"image_seq_len": 9, "processor_class": "Idefics3Processor"},
        "tokenizer_config.json": {
            "additional_special_tokens": [FAKE_IMAGE_TOKEN, IMAGE_TOKEN, END_OF_UTTERANCE],
            "bos_token": "<|im_start|>",
            "clean_up_tokenization_spaces": False,
            "eos_token": END_OF_UTTERANCE,
            "pad_token": "<|im_end|>",
            "tokenizer_class": "GPT2Tokenizer",
            "unk_token": "<|endoftext|>",
        },
    },
    has_raw_prompts=False,
    num_vision_steps=2000,
)
IDEFICS1_RECIPE = CheckpointRecipe(
    folder="idefics1",
    make_config=make_idefics1_config,
    train_tokenizer=train_llama_tokenizer,
    make_generation_config=lambda tokenizer: {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
    json_by_filename={
        "preprocessor_config.json": {
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_num_channels": 3,
            "image_processor_type": "IdeficsImageProcessor",
            "image_size": IMAGE_SIZE,
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "processor_class": "IdeficsProcessor",
        },
        "tokenizer_config.json": {
            "additional_special_tokens": [FAKE_IMAGE_TOKEN, IMAGE_TOKEN, END_OF_UTTERANCE],
            "bos_token": "<s>",
            "clean_up_tokenization_spaces": False,
            "eos_token": "</s>",
            "legacy": True,
            "pad_token": "<unk>",
            "padding_side": "left",
            "processor_class": "IdeficsProcessor",
            "tokenizer_class": "LlamaTokenizer",
            "unk_token": "<unk>",
        },
    },
    has_raw_prompts=True,
    num_vision_steps=3000,
)
RECIPE_BY_NAME = {"demo": IDEFICS3_RECIPE, "demo-idefics1": IDEFICS1_RECIPE}


def write_settings(recipe: CheckpointRecipe, folder: Path) -> None:
    """Everything of a checkpoint but its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = recipe.train_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    files = {
        **recipe.json_by_filename,
        "config.json": recipe.make_config(tokenizer),
        "generation_config.json": recipe.make_generation_config(tokenizer),
    }
    for name, content in files.items():
        text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
        (folder / name).write_text(text + "\n", encoding="utf-8")


def copy_settings(source: Path, folder: Path) -> None:
    """Everything of another checkpoint but its weights."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True)


def write_weights(model: nn.Module, folder: Path) -> None:
    """The weights in bfloat16, as the released checkpoints store theirs."""
    tensors = {
        name: tensor.detach().to(torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()
    }
    path = folder / "model.safetensors"
    save_file(tensors, path.with_suffix(".new"), metadata={"format": "pt"})
    path.with_suffix(".new").replace(path)  # whoever reads the folder meanwhile finds a whole file
