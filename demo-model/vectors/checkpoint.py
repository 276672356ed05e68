"""Tiny checkpoints of every family whose weights are computed by a hash: independent of any random generator.

As in trained models, weights are small for embeddings and for projections into the residual stream, and large
elsewhere, so that the epsilon of a norm, a rotary angle and a mask all change the logits.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from idefics import models
from vectors.tokenizer import (
    END_OF_UTTERANCE,
    IMAGE_TOKEN,
    byte_level_tokenizer,
    id_by_token,
    llama_tokenizer,
)

FRAME_SIZE, PATCH_SIZE = 16, 4  # of frames, in pixels
TEXT_CONFIG = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
}
VISION_CONFIG = {
    "image_size": FRAME_SIZE,
    "intermediate_size": 40,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "patch_size": PATCH_SIZE,
}
CHAT_TEMPLATE = (  # that of the SmolVLM processors
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{{ ':' if message['content'][0]['type'] == 'image' else ': ' }}"
    "{% for part in message['content'] %}{{ part['text'] if part['type'] == 'text' else '<image>' }}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{{ 'Assistant:' if add_generation_prompt else '' }}"
)


@dataclass(frozen=True, kw_only=True)
class TinyCheckpoint:
    """The JSON files of a checkpoint; its weights follow from names and shapes.

    Attributes:
        config_json: config.json.
        tokenizer_json: tokenizer.json.
        preprocessor_json: preprocessor_config.json.
        chat_template: the template of chat_template.json, or "".
    """

    config_json: dict[str, Any]
    tokenizer_json: dict[str, Any]
    preprocessor_json: dict[str, Any] = field(default_factory=dict)
    chat_template: str = ""

    def write(self, folder: Path) -> Path:
        """Writes all files that `idefics.load` needs, and returns the folder."""
        files = {
            "config.json": self.config_json,
            "tokenizer.json": self.tokenizer_json,
            "preprocessor_config.json": self.preprocessor_json,
            "chat_template.json": {"chat_template": self.chat_template},
        }
        for name, content in files.items():
            (folder / name).write_text(json.dumps(content), encoding="utf-8")
        shapes = {
            name: tuple(weight.shape)
            for name, weight in models.build_on_meta_device(models.read_checkpoint(folder)).named_parameters()
        }
        weights = {
            name: make_weight(
                name,
                shape,
                is_followed_by_norm=name.replace("_proj", "_layer_norm") in shapes.keys() - {name},
            )
            for name, shape in shapes.items()
        }
        save_file(weights, folder / "model.safetensors")
        return folder


def make_weight(name: str, shape: tuple[int, ...], *, is_followed_by_norm: bool) -> NDArray[np.float32]:
    """The weight for a name and shape. `is_followed_by_norm`: it is small, so that the norm's epsilon matters."""
    values = hashed_uniform(name, int(np.prod(shape))).reshape(shape)
    part, kind = name.split(".")[-2:]
    if part == "pre_layrnorm":  # the beginning of the residual stream
        return (np.float32(kind == "weight") + values * np.float32(0.3)) * np.float32(0.02)
    if "norm" in part or part == "ln":
        return np.float32(kind == "weight") + values * np.float32(0.3 if kind == "weight" else 0.1)
    if kind.startswith("alpha_"):
        return values + np.float32(1)  # open gates, all different
    if "embedding" in name or "embed_tokens" in name or kind == "latents":
        return values * np.float32(0.02)
    if (
        part in {"o_proj", "out_proj", "output_proj", "down_proj", "fc2", "c_proj", "proj"}
        or kind == "bias"
        or is_followed_by_norm
    ):
        return values * np.float32(0.02)
    return values * np.float32(2 * np.prod(shape[1:]) ** -0.5)


def hashed_uniform(name: str, count: int) -> NDArray[np.float32]:
    """`count` numbers in [-1, 1), each a multiple of 2**-23: exact in float32, the same on every machine.

    SplitMix64 (doi 10.1145/2714064.2660195, constants of Vigna's splitmix64.c), started with the CRC-32 of the name.
    """
    state = np.uint64(crc32(name.encode())) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(
        0x9E3779B97F4A7C15
    )
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    state ^= state >> np.uint64(31)
    return ((state >> np.uint64(40)).astype(np.float32) - np.float32(2**23)) / np.float32(2**23)


def make_idefics1(*, is_instruct: bool) -> TinyCheckpoint:
    """Idefics 1: like 9b-instruct, or a base checkpoint with the other options of config.json.

    Args:
        is_instruct: vector gates, norms of queries and keys, `<end_of_utterance>`; else scalar gates and none of these.
    """
    tokenizer = llama_tokenizer(has_end_of_utterance=is_instruct)
    num_additional_tokens = 3 if is_instruct else 2
    vision = {**VISION_CONFIG, "embed_dim": 24, "hidden_act": "gelu"}
    config = {
        **TEXT_CONFIG,
        "num_hidden_layers": 4,
        "additional_vocab_size": num_additional_tokens,
        "alpha_type": "vector" if is_instruct else "float",
        "cross_layer_interval": 2,
        "eos_token_id": 2,
        "model_type": "idefics",
        "perceiver_config": {
            "qk_layer_norms_perceiver": is_instruct,
            "resampler_depth": 2,
            "resampler_head_dim": 12,
            "resampler_n_heads": 2,
            "resampler_n_latents": 3,
        },
        "qk_layer_norms": is_instruct,
        "rms_norm_eps": 1e-6,
        "use_resampler": True,
        "vision_config": vision,
        "vocab_size": len(id_by_token(tokenizer)) - num_additional_tokens,
    }
    return TinyCheckpoint(
        config_json=config, tokenizer_json=tokenizer, preprocessor_json={"image_size": FRAME_SIZE}
    )


def make_idefics2(*, does_split_images: bool) -> TinyCheckpoint:
    """Idefics2: frames of native size, up to 24 pixels; Mistral's window is shorter than prompts."""
    tokenizer = llama_tokenizer(has_end_of_utterance=True, adds_bos=True)
    config = {
        "eos_token_id": 2,
        "image_token_id": id_by_token(tokenizer)[IMAGE_TOKEN],
        "model_type": "idefics2",
        "perceiver_config": {
            "num_key_value_heads": 2,
            "resampler_depth": 2,
            "resampler_head_dim": 12,
            "resampler_n_heads": 4,
            "resampler_n_latents": 3,
        },
        "text_config": {
            **TEXT_CONFIG,
            "model_type": "mistral",
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-5,
            "sliding_window": 24,
            "vocab_size": len(id_by_token(tokenizer)),
        },
        "vision_config": {**VISION_CONFIG, "hidden_size": 24, "image_size": 24},
    }
    size = {"shortest_edge": 12, "longest_edge": 24}
    return TinyCheckpoint(
        config_json=config,
        tokenizer_json=tokenizer,
        preprocessor_json={"do_image_splitting": does_split_images, "size": size},
    )


def make_idefics3(*, model_type: str, has_tile_tokens: bool, **text_config_changes: Any) -> TinyCheckpoint:
    """Idefics3, SmolVLM and SmolVLM2: tiles of a picture up to 48 pixels long.

    Args:
        has_tile_tokens: whether row, column and global tags are tokens of the vocabulary.
        text_config_changes: keys of text_config that differ from plain Llama.
    """
    tokenizer = byte_level_tokenizer(has_tile_tokens=has_tile_tokens)
    config = {
        "eos_token_id": id_by_token(tokenizer)[END_OF_UTTERANCE],
        "image_token_id": id_by_token(tokenizer)[IMAGE_TOKEN],
        "model_type": model_type,
        "scale_factor": 2,
        "text_config": {
            **TEXT_CONFIG,
            "model_type": "llama",
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-5,
            "vocab_size": len(id_by_token(tokenizer)),
            **text_config_changes,
        },
        "tie_word_embeddings": has_tile_tokens,
        "vision_config": {**VISION_CONFIG, "hidden_size": 24},
    }
    preprocessor: dict[str, Any] = {
        "max_image_size": {"longest_edge": FRAME_SIZE},
        "size": {"longest_edge": 3 * FRAME_SIZE},
    }
    if model_type == "smolvlm":
        video = {"fps": 1, "max_frames": 4, "video_size": {"longest_edge": 2 * FRAME_SIZE}}
        preprocessor["video_sampling"] = video
    return TinyCheckpoint(
        config_json=config,
        tokenizer_json=tokenizer,
        preprocessor_json=preprocessor,
        chat_template=CHAT_TEMPLATE,
    )


LLAMA3_ROPE = {  # Llama 3.1's scaling, for frequencies below one turn in 64 positions
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}
CHECKPOINT_BY_NAME = {
    "idefics1": make_idefics1(is_instruct=True),
    "idefics1-scalar": make_idefics1(is_instruct=False),
    "idefics2": make_idefics2(does_split_images=False),
    "idefics2-split": make_idefics2(does_split_images=True),
    "idefics3": make_idefics3(model_type="idefics3", has_tile_tokens=False, **LLAMA3_ROPE),
    "smolvlm": make_idefics3(model_type="idefics3", has_tile_tokens=True, rope_theta=100000.0),
    "smolvlm2": make_idefics3(model_type="smolvlm", has_tile_tokens=True, rope_theta=100000.0),
}
