"""Tiny checkpoints of every family, made by arithmetic: no random generator decides a weight.

Weights are small where numbers are added up (embeddings, and all that a block adds to its input) and large between, as
in trained models: so a norm's epsilon, an angle and a mask are all felt in the logits.
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
from vectors.tokenizer import IMAGE, TURN_END, byte_level, ids, llama

SIDE, PATCH = 16, 4  # of frames, in pixels
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
}
VISION = {
    "image_size": SIDE,
    "intermediate_size": 40,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "patch_size": PATCH,
}
TEMPLATE = (  # that of the SmolVLM processors
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{{ ':' if message['content'][0]['type'] == 'image' else ': ' }}"
    "{% for part in message['content'] %}{{ part['text'] if part['type'] == 'text' else '<image>' }}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{{ 'Assistant:' if add_generation_prompt else '' }}"
)


@dataclass(frozen=True, kw_only=True)
class Tiny:
    """The files of a checkpoint, but for its weights.

    Attributes:
        config: config.json.
        tokenizer: tokenizer.json.
        preprocessor: preprocessor_config.json.
        template: of chat_template.json, or "".
    """

    config: dict[str, Any]
    tokenizer: dict[str, Any]
    preprocessor: dict[str, Any] = field(default_factory=dict)
    template: str = ""

    def write(self, folder: Path) -> Path:
        """Writes all that `idefics.load` wants; the folder."""
        files = {
            "config.json": self.config,
            "tokenizer.json": self.tokenizer,
            "preprocessor_config.json": self.preprocessor,
            "chat_template.json": {"chat_template": self.template},
        }
        for name, content in files.items():
            (folder / name).write_text(json.dumps(content), encoding="utf-8")
        shapes = {
            name: tuple(weight.shape)
            for name, weight in models.build(models.read_checkpoint(folder)).named_parameters()
        }
        weights = {
            name: weight_of(
                name, shape, normed=name.replace("_proj", "_layer_norm") in shapes.keys() - {name}
            )
            for name, shape in shapes.items()
        }
        save_file(weights, folder / "model.safetensors")
        return folder


def weight_of(name: str, shape: tuple[int, ...], *, normed: bool) -> NDArray[np.float32]:
    """A weight that its name and shape decide; `normed`: a norm follows, which feels its epsilon in small numbers."""
    numbers = uniform(name, int(np.prod(shape))).reshape(shape)
    part, kind = name.split(".")[-2:]
    if part == "pre_layrnorm":  # what blocks add to begins here
        return (np.float32(kind == "weight") + numbers * np.float32(0.3)) * np.float32(0.02)
    if "norm" in part or part == "ln":
        return np.float32(kind == "weight") + numbers * np.float32(0.3 if kind == "weight" else 0.1)
    if kind.startswith("alpha_"):
        return numbers + np.float32(1)  # gates that are open, none like another
    if "embedding" in name or "embed_tokens" in name or kind == "latents":
        return numbers * np.float32(0.02)
    if (
        part in {"o_proj", "out_proj", "output_proj", "down_proj", "fc2", "c_proj", "proj"}
        or kind == "bias"
        or normed
    ):
        return numbers * np.float32(0.02)
    return numbers * np.float32(2 * np.prod(shape[1:]) ** -0.5)


def uniform(name: str, count: int) -> NDArray[np.float32]:
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


def idefics1(*, instructed: bool) -> Tiny:
    """Idefics: the 9b-instruct's kind, and one of the other options that config.json has, which continues documents.

    Args:
        instructed: vector gates, norms of queries and keys, `<end_of_utterance>`; else scalar gates and none of these.
    """
    tokenizer = llama(turn_end=instructed)
    additional = 3 if instructed else 2
    vision = {**VISION, "embed_dim": 24, "hidden_act": "gelu"}
    config = {
        **TEXT,
        "num_hidden_layers": 4,
        "additional_vocab_size": additional,
        "alpha_type": "vector" if instructed else "float",
        "cross_layer_interval": 2,
        "eos_token_id": 2,
        "model_type": "idefics",
        "perceiver_config": {
            "qk_layer_norms_perceiver": instructed,
            "resampler_depth": 2,
            "resampler_head_dim": 12,
            "resampler_n_heads": 2,
            "resampler_n_latents": 3,
        },
        "qk_layer_norms": instructed,
        "rms_norm_eps": 1e-6,
        "use_resampler": True,
        "vision_config": vision,
        "vocab_size": len(ids(tokenizer)) - additional,
    }
    return Tiny(config=config, tokenizer=tokenizer, preprocessor={"image_size": SIDE})


def idefics2(*, splitting: bool) -> Tiny:
    """Idefics2: frames of native size, up to 24 pixels; Mistral's window is shorter than prompts."""
    tokenizer = llama(turn_end=True, starts=True)
    config = {
        "eos_token_id": 2,
        "image_token_id": ids(tokenizer)[IMAGE],
        "model_type": "idefics2",
        "perceiver_config": {
            "num_key_value_heads": 2,
            "resampler_depth": 2,
            "resampler_head_dim": 12,
            "resampler_n_heads": 4,
            "resampler_n_latents": 3,
        },
        "text_config": {
            **TEXT,
            "model_type": "mistral",
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-5,
            "sliding_window": 24,
            "vocab_size": len(ids(tokenizer)),
        },
        "vision_config": {**VISION, "hidden_size": 24, "image_size": 24},
    }
    size = {"shortest_edge": 12, "longest_edge": 24}
    return Tiny(
        config=config, tokenizer=tokenizer, preprocessor={"do_image_splitting": splitting, "size": size}
    )


def idefics3(*, model_type: str, tags: bool, **changes: Any) -> Tiny:
    """Idefics3, SmolVLM and SmolVLM2: tiles of a picture up to 48 pixels long.

    Args:
        tags: whether the marks of tiles are tokens of the vocabulary.
        changes: keys of text_config that are not as in plain Llama.
    """
    tokenizer = byte_level(tags=tags)
    config = {
        "eos_token_id": ids(tokenizer)[TURN_END],
        "image_token_id": ids(tokenizer)[IMAGE],
        "model_type": model_type,
        "scale_factor": 2,
        "text_config": {
            **TEXT,
            "model_type": "llama",
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-5,
            "vocab_size": len(ids(tokenizer)),
            **changes,
        },
        "tie_word_embeddings": tags,
        "vision_config": {**VISION, "hidden_size": 24},
    }
    preprocessor: dict[str, Any] = {
        "max_image_size": {"longest_edge": SIDE},
        "size": {"longest_edge": 3 * SIDE},
    }
    if model_type == "smolvlm":
        video = {"fps": 1, "max_frames": 4, "video_size": {"longest_edge": 2 * SIDE}}
        preprocessor["video_sampling"] = video
    return Tiny(config=config, tokenizer=tokenizer, preprocessor=preprocessor, template=TEMPLATE)


LLAMA3 = {  # Llama 3.1's scaling, for angles that turn less than once in 64 positions
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}
CHECKPOINTS = {
    "idefics1": idefics1(instructed=True),
    "idefics1-scalar": idefics1(instructed=False),
    "idefics2": idefics2(splitting=False),
    "idefics2-split": idefics2(splitting=True),
    "idefics3": idefics3(model_type="idefics3", tags=False, **LLAMA3),
    "smolvlm": idefics3(model_type="idefics3", tags=True, rope_theta=100000.0),
    "smolvlm2": idefics3(model_type="smolvlm", tags=True, rope_theta=100000.0),
}
