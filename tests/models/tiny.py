"""Tiny random checkpoints of every family, and prompts for them.

`IDEFICS1`, `IDEFICS2` and `IDEFICS3` are config.json files as the hub has them; `merge_config` makes others of them.
`make_reference_and_model` gives the model of transformers and ours with the same weights, which went through a folder
that transformers wrote. `write_checkpoint` makes a folder without transformers, `write_complete_checkpoint` one with a
tokenizer too. `make_random_prompt` draws a prompt from a scene such as "tt1tt"; `compute_logits` and
`compute_reference_logits` read prompts with either model.
"""

import json
from itertools import accumulate
from zlib import crc32

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import scaled_dot_product_attention

from idefics.engine.encoder_cache import encode_frames
from idefics.models import build_on_meta_device, family_for, load_weights, read_checkpoint
from idefics.nn.attention import DenseAttn
from idefics.prompt import PreprocessedImage, Prompt
from processing import tokenizers_tiny

END_OF_DOCUMENT = 2

IDEFICS1 = {
    "additional_vocab_size": 2,
    "alpha_type": "float",
    "cross_layer_interval": 2,
    "eos_token_id": END_OF_DOCUMENT,
    "freeze_text_layers": False,
    "freeze_vision_layers": False,
    "hidden_act": "silu",
    "hidden_size": 48,
    "intermediate_size": 80,
    "max_position_embeddings": 512,
    "model_type": "idefics",
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "pad_token_id": 0,
    "perceiver_config": {
        "qk_layer_norms_perceiver": True,
        "resampler_depth": 2,
        "resampler_head_dim": 12,
        "resampler_n_heads": 2,
        "resampler_n_latents": 5,
        "use_resampler": True,
    },
    "qk_layer_norms": True,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "use_resampler": True,
    "vision_config": {
        "embed_dim": 32,
        "hidden_act": "gelu",
        "image_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "patch_size": 8,
    },
    "vocab_size": 50,
}
IDEFICS2 = {
    "image_token_id": 63,
    "model_type": "idefics2",
    "perceiver_config": {
        "model_type": "idefics2",
        "num_key_value_heads": 2,
        "resampler_depth": 2,
        "resampler_head_dim": 12,
        "resampler_n_heads": 4,
        "resampler_n_latents": 5,
    },
    "text_config": {
        "hidden_size": 48,
        "intermediate_size": 80,
        "max_position_embeddings": 512,
        "model_type": "mistral",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-5,
        "sliding_window": 8,  # smaller than most prompts
        "vocab_size": 64,
    },
    "tie_word_embeddings": False,
    "vision_config": {
        "hidden_size": 32,
        "image_size": 56,
        "intermediate_size": 64,
        "model_type": "idefics2",
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "patch_size": 8,
    },
}
IDEFICS3 = {
    "image_token_id": 63,  # the last of the vocabulary: `prompt` relies on it
    "model_type": "idefics3",
    "scale_factor": 2,
    "text_config": {
        "hidden_size": 48,
        "intermediate_size": 80,
        "max_position_embeddings": 512,
        "model_type": "llama",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-5,
        "rope_theta": 5000.0,
        "vocab_size": 64,
    },
    "tie_word_embeddings": False,
    "vision_config": {
        "hidden_size": 32,
        "image_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "patch_size": 8,
    },
}
ARCHITECTURES = {
    "idefics": ("IdeficsConfig", "IdeficsForVisionText2Text"),
    "idefics2": ("Idefics2Config", "Idefics2ForConditionalGeneration"),
    "idefics3": ("Idefics3Config", "Idefics3ForConditionalGeneration"),
    "smolvlm": ("SmolVLMConfig", "SmolVLMForConditionalGeneration"),
}


def merge_config(raw, **changes):
    """`raw` with other values; those of a nested dict are merged into it, and None takes a key out."""
    merged = {**raw}
    for key, value in changes.items():
        merged[key] = merge_config(raw[key], **value) if isinstance(value, dict) and key in raw else value
    return {key: value for key, value in merged.items() if value is not None}


def randomize_weights(model):
    """Weights that let every part be felt in the logits: sharp attention, open gates, norms away from one."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_()
            if weight.dim() == 1 and name.endswith(".weight"):  # a norm's
                weight.mul_(0.3).add_(1)
            elif weight.dim() == 1 and name.endswith(".bias"):
                weight.mul_(0.3)
            elif weight.dim() in (2, 4) and "embedding.weight" not in name and "embed_tokens" not in name:
                weight.mul_(1.5 * weight[0].numel() ** -0.5)
    return model.eval()


def make_random_model(raw):
    """Our model of `raw` with random weights, without a folder."""
    family = family_for(raw["model_type"])
    return randomize_weights(family.build(family.read_config(raw, {})))


def write_checkpoint(folder, raw, generation=None):
    """A folder with `raw` as its config.json and random weights; transformers is not asked."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: weight.detach() for name, weight in make_random_model(raw).named_parameters()}
    save_file(weights, folder / "model.safetensors")
    _write_json(folder / "config.json", raw)
    if generation:
        _write_json(folder / "generation_config.json", generation)
    return folder


def write_complete_checkpoint(folder, raw, **tokenizer_options):
    """A folder that `idefics.load` takes: tokenizer, template and picture settings as well.

    `raw` is a config of any family; its vocabulary becomes the tokenizer's, whose `tokenizer_options` may be another.
    """
    if raw["model_type"] == "idefics":
        tokenizer = tokenizers_tiny.train_llama_tokenizer(
            raw["additional_vocab_size"] == 3, **tokenizer_options
        )
        sizes = {"vocab_size": tokenizer.get_vocab_size() - raw["additional_vocab_size"]}
        preprocessor, stop = {"image_size": raw["vision_config"]["image_size"]}, END_OF_DOCUMENT
    elif raw["model_type"] == "idefics2":
        tokenizer = tokenizers_tiny.train_mistral_tokenizer(**tokenizer_options)
        image, turn_end = map(
            tokenizer.token_to_id, (tokenizers_tiny.IMAGE_TOKEN, tokenizers_tiny.END_OF_UTTERANCE)
        )
        sizes = {"image_token_id": image, "text_config": {"vocab_size": tokenizer.get_vocab_size()}}
        size = {"shortest_edge": 20, "longest_edge": raw["vision_config"]["image_size"]}
        stop = [id for id in (END_OF_DOCUMENT, turn_end) if id is not None]
        preprocessor = {"do_image_splitting": True, "size": size}
    else:
        tokenizer = tokenizers_tiny.train_byte_level_tokenizer(**tokenizer_options)
        image, stop = map(
            tokenizer.token_to_id, (tokenizers_tiny.IMAGE_TOKEN, tokenizers_tiny.END_OF_UTTERANCE)
        )
        sizes = {"image_token_id": image, "text_config": {"vocab_size": tokenizer.get_vocab_size()}}
        side = raw["vision_config"]["image_size"]
        preprocessor = {"max_image_size": {"longest_edge": side}, "size": {"longest_edge": 2 * side}}
        _write_json(folder / "chat_template.json", {"chat_template": CHAT_TEMPLATE})
    write_checkpoint(folder, merge_config(raw, **sizes), {"eos_token_id": stop})
    _write_json(folder / "preprocessor_config.json", preprocessor)
    return tokenizers_tiny.write_tokenizer(tokenizer, folder)


# As the SmolVLM processors have it.
CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% else %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def load_checkpoint(folder, dtype=torch.float32, **options):
    """Our model, as the package loads it; `options` are those of `load_weights`."""
    checkpoint = read_checkpoint(folder)
    model = build_on_meta_device(checkpoint)
    load_weights(
        model,
        folder,
        checkpoint.family.key_rules,
        dtype=dtype,
        device=torch.device("cpu"),
        checkpoint_quantization=checkpoint.quantization,
        **options,
    )
    return model


def make_reference_and_model(folder, raw):
    """transformers' model of `raw` with random weights, and ours, loaded from what transformers saved in `folder`."""
    transformers = pytest.importorskip("transformers")
    config, architecture = (getattr(transformers, name) for name in ARCHITECTURES[raw["model_type"]])
    reference = randomize_weights(architecture(config.from_dict(raw)))
    reference.save_pretrained(folder)
    return reference, load_checkpoint(folder)


def make_random_prompt(model, scene):
    """A random prompt for one of our models.

    `scene` is a letter a token: "t" a text token, "e" the end of a document; a digit is a picture of so many frames.
    """
    config, rng = model.config, np.random.default_rng(crc32(scene.encode()))
    image_token_id = model.layout.vocab_size - 1  # never a text token
    frame_tokens = tokens_per_frame(config)
    ids, image_index, pictures, image_token_positions, current_image = [], [], [], [], -1
    for letter in scene:
        if letter.isdigit():
            frames = [
                rng.normal(size=random_frame_shape(config, rng)).astype(np.float32)
                for _ in range(int(letter))
            ]
            current_image, new_ids = len(pictures), [image_token_id] * (len(frames) * frame_tokens)
            pictures.append(PreprocessedImage(tuple(frames), 0, 0, content_hash=str(rng.random())))
            image_token_positions.append(tuple(range(len(ids), len(ids) + len(new_ids))))
        else:
            new_ids = [END_OF_DOCUMENT if letter == "e" else int(rng.integers(3, image_token_id))]
        ids += new_ids
        image_index += [current_image] * len(new_ids)
        current_image = -1 if letter == "e" else current_image
    return Prompt(tuple(ids), tuple(pictures), tuple(image_token_positions), tuple(image_index))


def tokens_per_frame(config):
    """How many tokens stand for a frame."""
    if config.cross_attention:
        return 1
    return (
        config.perceiver.num_latents
        if config.perceiver
        else (config.vision.patches_per_side // config.pixel_shuffle_factor) ** 2
    )


def random_frame_shape(config, rng):
    """The shape of a frame: a square of the tower's side; of any size, in whole patches or not, for Idefics 2."""
    side, patch = config.vision.image_size, config.vision.patch_size
    return (3, *(rng.integers(patch, side + 1, 2) if config.perceiver else (side, side)))


class PackedAttention(DenseAttn):
    """Prompts of unequal length, packed one after another: none is padded."""

    def __init__(self, lengths, cross_kv=(), image_index=None, sliding_window=None):
        super().__init__(1, cross_kv, image_index)
        prompt_of_token = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
        self.causal_mask = (prompt_of_token[:, None] == prompt_of_token).tril()  # (N, N)
        if sliding_window:
            self.causal_mask = self.causal_mask.triu(1 - sliding_window)

    def self_attention(self, layer, q, k, v):
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        grouped = q.shape[1] != k.shape[1]
        out = scaled_dot_product_attention(q, k, v, attn_mask=self.causal_mask, enable_gqa=grouped)
        return out[0].transpose(0, 1)


@torch.inference_mode()
def compute_logits(model, prompts, make_attention=PackedAttention):
    """What our model makes of prompts, packed in one pass: (N, V) for each."""
    lengths = [len(p) for p in prompts]
    x = model.embed(torch.tensor([id for p in prompts for id in p.ids]))
    positions = torch.cat([torch.arange(length) for length in lengths])
    frames = [frame for p in prompts for tiles in p.pictures for frame in tiles.frames]
    cross_kv, image_index = (), None
    if frames:
        features = torch.stack(encode_frames(model, frames, max_batch_frames=16))
        if cross_kv := model.compute_cross_kv(features) or ():
            offsets = accumulate((len(p.pictures) for p in prompts), initial=0)  # pictures of earlier prompts
            indices = [
                s + n if s >= 0 else -1 for p, n in zip(prompts, offsets, strict=False) for s in p.image_index
            ]
            image_index = torch.tensor(indices)
        else:
            offsets = accumulate(lengths, initial=0)
            image_positions = [
                i + n
                for p, n in zip(prompts, offsets, strict=False)
                for rows in p.image_token_positions
                for i in rows
            ]
            x[image_positions] = features.flatten(0, 1)
    make_attention = make_attention(lengths, cross_kv, image_index, model.layout.sliding_window)
    return model.logits(model.forward(x, positions, make_attention)).split(lengths)


def make_reference_inputs(reference, prompts):
    """The same prompts for transformers' model: one batch, padded on the left.

    Rows with fewer frames get frames of zeros; smaller frames are padded with zeros at the bottom and on the right.
    """
    longest, config = max(map(len, prompts)), reference.config
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    frames = [[frame for tiles in p.pictures for frame in tiles.frames] for p in prompts]
    max_frames, side = max(map(len, frames)), config.vision_config.image_size
    sizes = [frame.shape[1:] for row in frames for frame in row] or [(side, side)]
    shape = len(prompts), max(max_frames, 1), 3, *map(max, zip(*sizes, strict=True))
    pixels = torch.zeros(shape, dtype=reference.dtype)
    pixel_mask = torch.zeros(len(prompts), max(max_frames, 1), *pixels.shape[3:], dtype=torch.long)
    image_attention_mask = torch.zeros(len(prompts), longest, max(max_frames, 1))
    for row, p in enumerate(prompts):
        ids[row, -len(p) :], mask[row, -len(p) :] = torch.tensor(p.ids), 1
        for column, frame in enumerate(frames[row]):
            height, width = frame.shape[1:]
            pixels[row, column, :, :height, :width] = torch.from_numpy(frame)
            pixel_mask[row, column, :height, :width] = 1
        for place, picture in enumerate(p.image_index, start=longest - len(p)):
            if picture >= 0:
                image_attention_mask[row, place, picture] = 1
    inputs = {"input_ids": ids, "attention_mask": mask}
    if config.model_type == "idefics":
        return {**inputs, "pixel_values": pixels, "image_attention_mask": image_attention_mask}
    if not max_frames:
        return inputs
    masks = {"pixel_attention_mask": pixel_mask} if config.model_type == "idefics2" else {}
    return {**inputs, "pixel_values": pixels, **masks}


@torch.inference_mode()
def compute_reference_logits(reference, prompts):
    """What transformers' model makes of the same prompts: (N, V) for each."""
    out = reference(**make_reference_inputs(reference, prompts)).logits
    return [rows[-len(p) :] for rows, p in zip(out, prompts, strict=True)]


def _write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
