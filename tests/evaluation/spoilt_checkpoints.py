"""Copies of checkpoints in which one thing is wrong on purpose.

Each spoil changes tensors by their names in the file, or config.json, and returns whether the checkpoint has what it
spoils.
"""

import json
import re
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

import idefics

DEMO_FOLDERS = {
    name: Path(idefics.__file__).parent / "demo" / folder
    for name, folder in {"demo": "idefics3", "demo-idefics1": "idefics1"}.items()
}
LAYER = r"model\.(text_model\.)?layers\.{}\."


def layer_tensors(weights, number):
    """The names of the tensors of one decoder layer, by their last part: "self_attn.q_proj.weight"."""
    pattern = re.compile(LAYER.format(number))
    return {pattern.sub("", name): name for name in weights if pattern.match(name)}


def swap_gate(weights, config):
    names = layer_tensors(weights, 1)
    gate, up = names["mlp.gate_proj.weight"], names["mlp.up_proj.weight"]
    weights[gate], weights[up] = weights[up], weights[gate]
    return True


def transpose_projection(weights, config):
    names = layer_tensors(weights, 1)
    for part in ("self_attn.o_proj.weight", "self_attn.q_proj.weight"):
        weight = weights[names[part]]
        if weight.shape[0] == weight.shape[1]:
            weights[names[part]] = weight.T.contiguous()
            return True
    return False


def change_theta(weights, config):
    """Another base of the rotary embedding; Idefics 1 has a fixed one."""
    text = config.get("text_config")
    if text is None:
        return False
    text["rope_theta"] = 12345.0
    return True


def shift_rope(weights, config):
    """The dimensions of each query move on by one, so that they turn with another frequency than those of the keys."""
    name = layer_tensors(weights, 1)["self_attn.q_proj.weight"]
    weights[name] = weights[name].roll(1, 0)
    return True


def change_norm(weights, config):
    weights[layer_tensors(weights, 1)["input_layernorm.weight"]] *= 1.25
    return True


def zero_layer(weights, config):
    for name in layer_tensors(weights, 1).values():
        weights[name] = weights[name] * 0
    return True


def duplicate_layer(weights, config):
    first = layer_tensors(weights, 0)
    for part, name in layer_tensors(weights, 1).items():
        weights[name] = weights[first[part]].clone()
    return True


def tie_head(weights, config):
    """The embedding in the place of the head; a tied head is untied."""
    if config.get("tie_word_embeddings"):
        config["tie_word_embeddings"] = False
        config["text_config"].pop("tie_word_embeddings", None)
        return True
    [embedding] = [name for name in weights if name.endswith("embed_tokens.weight")]
    weights["lm_head.weight"] = weights[embedding].clone()
    return True


def exchange_halves(weights, config):
    name = layer_tensors(weights, 1)["self_attn.k_proj.weight"]
    weights[name] = weights[name].roll(len(weights[name]) // 2, 0)
    return True


def break_number(weights, config):
    weights[layer_tensors(weights, 1)["self_attn.v_proj.weight"]][0, 0] = float("nan")
    return True


SPOILS = {
    spoil.__name__: spoil
    for spoil in (
        *(swap_gate, transpose_projection, change_theta, shift_rope, change_norm, zero_layer),
        *(duplicate_layer, tie_head, exchange_halves, break_number),
    )
}
# What finds a spoil of a trained checkpoint without a record. The others need one.
FOUND_WITHOUT_RECORD = {
    "swap_gate": "gate and up",
    "transpose_projection": "orientation",
    "zero_layer": "finite numbers",
    "duplicate_layer": "copies",
    "tie_head": "copies",
    "break_number": "finite numbers",
}


def write_spoilt(source, folder, spoil):
    """A spoilt copy of a checkpoint in one file of weights; None if it has not what `spoil` spoils."""
    shutil.copytree(source, folder)
    weights, config = (
        load_file(folder / "model.safetensors"),
        json.loads((folder / "config.json").read_text()),
    )
    if not SPOILS[spoil](weights, config):
        return None
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder
