"""The two demo checkpoints as folders: configuration in the released layout, tokenizer, template, weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import nn

from idefics.models.family import DEFAULT_CHAT_TEMPLATE

from .tokenizer_training import (
    END_OF_UTTERANCE,
    FAKE_IMAGE_TOKEN,
    IMAGE_TOKEN,
    train_byte_level_tokenizer,
    train_llama_tokenizer,
)

IMAGE_SIZE = 96  # a picture is 3 x 3 cells of 32 pixels


@dataclass(frozen=True)
class CheckpointRecipe:
    """How one demo checkpoint is configured and trained.

    Attributes:
        folder: its folder in `src/idefics/demo`.
        make_config: tokenizer -> config.json.
        train_tokenizer: trains the tokenizer.
        make_generation_config: tokenizer -> generation_config.json.
        json_by_filename: the other json files by name.
        num_vision_steps: steps of the first stage, which trains the vision tower alone.
        has_raw_prompts: whether prompts without a template are trained too (the released 9b-instruct reads both).
    """

    folder: str
    make_config: Callable[[Tokenizer], dict[str, Any]]
    train_tokenizer: Callable[[], Tokenizer]
    make_generation_config: Callable[[Tokenizer], dict[str, Any]]
    json_by_filename: dict[str, dict[str, Any]]
    has_raw_prompts: bool
    num_vision_steps: int


def make_idefics3_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """A tiny config.json with the fields of SmolVLM's."""
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
    """A tiny config.json with the fields of idefics-9b-instruct's."""
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
    """Trains the tokenizer and writes all files of a checkpoint but its weights."""
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
    """Copies all files of another checkpoint but its weights."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True)


def write_weights(model: nn.Module, folder: Path) -> None:
    """Writes model.safetensors in bfloat16, as the released checkpoints are stored."""
    tensors = {
        name: tensor.detach().to(torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()
    }
    path = folder / "model.safetensors"
    save_file(tensors, path.with_suffix(".new"), metadata={"format": "pt"})
    path.with_suffix(".new").replace(path)  # readers of the folder always find a complete file
