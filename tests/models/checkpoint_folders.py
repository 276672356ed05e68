"""Folders of tiny checkpoints, laid out as the hub has the released ones and as transformers 5 saves them.

`as_on_the_hub` writes one, `as_saved_by_5` changes its small files, `with_old_names` the names of its weights and
`in_pieces` the number of files that they are in. Transformers is not asked.
"""

import json
import re

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, processors

from models import tiny
from models.released import END_OF_UTTERANCE, FAKE_IMAGE_TOKEN, shrink_config, small_tile_settings
from processing import tokenizers_tiny

WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"


def write_hub_layout(folder, released):
    """A checkpoint of random weights, tiny, with the fields and files of the released one; weights in one file."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(released)
    raw = make_tiny_config(released, tokenizer)
    model = tiny.make_random_model(raw)
    dtype = getattr(torch, raw["torch_dtype"])
    names = {id(weight): name for name, weight in reversed(list(model.named_parameters()))}  # tied ones once
    save_file(
        {
            name: weight.detach().to(dtype)
            for name, weight in model.named_parameters()
            if names[id(weight)] == name
        },
        folder / WEIGHTS_FILE,
    )
    tokenizers_tiny.write_tokenizer(tokenizer, folder)
    files = {
        "config.json": raw,
        "generation_config.json": replace_token_ids(released.generation_config, released, tokenizer),
        "preprocessor_config.json": released.preprocessor | small_preprocessor_sizes(raw),
        "processor_config.json": released.processor
        and released.processor | {"image_seq_len": tokens_per_frame(raw)},
        "tokenizer_config.json": released.tokenizer,
        "special_tokens_map.json": {
            "additional_special_tokens": released.tokenizer["additional_special_tokens"]
        },
        "added_tokens.json": {token: tokenizer.token_to_id(token) for token in released.token_by_id.values()},
    }
    if released.template_in.endswith(".jinja"):
        (folder / released.template_in).write_text(released.template)
    elif released.template:
        files[released.template_in] = {
            **files.get(released.template_in, {}),
            "chat_template": released.template,
        }
    for name, content in files.items():
        if content:
            write_json(folder / name, content)
    return folder


def make_tokenizer(released):
    """A small tokenizer of the released one's kind, with all tokens that its files name."""
    if released.token_by_id.get(0) == "<unk>":
        tokenizer = tokenizers_tiny.train_llama_tokenizer(
            has_end_of_utterance=END_OF_UTTERANCE in released.token_by_id.values()
        )
    else:
        tokenizer = tokenizers_tiny.train_byte_level_tokenizer(
            has_tile_tokens="<global-img>" in released.token_by_id.values()
        )
    missing = [
        token
        for token in (*released.token_by_id.values(), FAKE_IMAGE_TOKEN)
        if tokenizer.token_to_id(token) is None
    ]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in missing])
    if (begin := "<|begin_of_text|>") in missing:
        special = [(begin, tokenizer.token_to_id(begin))]
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{begin} $A", special_tokens=special)
    return tokenizer


def make_tiny_config(released, tokenizer):
    """config.json, tiny, with the ids of this tokenizer."""
    rows = tokenizer.get_vocab_size() - released.spare_tokens
    raw = shrink_config(released.config, rows - released.config.get("additional_vocab_size", 0))
    return replace_token_ids(raw, released, tokenizer)


def replace_token_ids(content, released, tokenizer):
    """`content` with the ids of released tokens turned into this tokenizer's. Ids of tokens that nobody names stay."""
    if isinstance(content, dict):
        return {
            key: replace_token_ids(value, released, tokenizer)
            if key.endswith(("token_id", "_ids", "_config"))
            else value
            for key, value in content.items()
        }
    if isinstance(content, list):
        return [replace_token_ids(value, released, tokenizer) for value in content]
    if isinstance(content, int) and not isinstance(content, bool) and content in released.token_by_id:
        return tokenizer.token_to_id(released.token_by_id[content])
    return content


def small_preprocessor_sizes(raw):
    """The sizes of preprocessor_config.json that belong to a tiny config.json."""
    side = raw["vision_config"]["image_size"] if "vision_config" in raw else raw["vision_image_size"]
    if raw["model_type"] == "idefics":
        return {"image_size": side}
    if raw["model_type"] == "idefics2":
        return {"size": {"longest_edge": side, "shortest_edge": 20}}
    return small_tile_settings(side)


def tokens_per_frame(raw):
    """How many places a frame takes in the text."""
    if raw["model_type"] == "idefics2":
        return 64
    return (
        raw["vision_config"]["image_size"] // raw["vision_config"]["patch_size"] // raw["scale_factor"]
    ) ** 2


def convert_to_transformers5_layout(folder):
    """The small files as transformers 5 saves them: other words, other files, the weights as they were."""
    config = modernize_config(read_json(folder / "config.json"))
    write_json(folder / "config.json", config)
    tokenizer = read_json(folder / "tokenizer_config.json")
    tokenizer["extra_special_tokens"] = tokenizer.pop("additional_special_tokens")
    write_json(folder / "tokenizer_config.json", {**tokenizer, "backend": "tokenizers", "is_local": False})
    processor = {"processor_class": tokenizer["processor_class"]}
    if (folder / "processor_config.json").exists():
        processor = read_json(folder / "processor_config.json")
    template = processor.pop("chat_template", "")
    if (folder / "chat_template.json").exists():
        template = read_json(folder / "chat_template.json")["chat_template"]
    if template:
        (folder / "chat_template.jinja").write_text(template)
    image_processor = read_json(folder / "preprocessor_config.json")
    write_json(folder / "processor_config.json", {**processor, "image_processor": image_processor})
    for name in ("preprocessor_config", "chat_template", "special_tokens_map", "added_tokens"):
        (folder / f"{name}.json").unlink(missing_ok=True)
    return folder


def modernize_config(raw):
    """config.json in the words of transformers 5: `dtype`, and `rope_parameters` for the two that were before."""
    new = {key: modernize_config(value) if key == "text_config" else value for key, value in raw.items()}
    if "torch_dtype" in new:
        new["dtype"] = new.pop("torch_dtype")
    if {"rope_theta", "rope_scaling"} & new.keys():
        scaling = new.pop("rope_scaling", None) or {"rope_type": "default"}
        new["rope_parameters"] = {"rope_theta": new.pop("rope_theta"), **scaling}
    return new


def split_into_shards(folder, count=3):
    """The weights in several files with an index; neighbours are torn apart."""
    weights = load_file(folder / WEIGHTS_FILE)
    (folder / WEIGHTS_FILE).unlink()
    names = [f"model-{number + 1:05}-of-{count:05}.safetensors" for number in range(count)]
    where = {key: names[number % count] for number, key in enumerate(weights)}
    for name in names:
        save_file({key: weight for key, weight in weights.items() if where[key] == name}, folder / name)
    write_json(folder / INDEX_FILE, {"metadata": {"total_size": 0}, "weight_map": where})
    return folder


OLD_NAMES = {
    "idefics": ((r"^lm_head\.additional_fc\.", "additional_fc."),),
    "idefics2": (
        (r"^model\.connector\.", "model."),
        (r"^model\.text_model\.", "model."),
    ),
    "idefics3": (
        (r"^model\.connector\.", "model."),
        (r"^model\.text_model\.", "model."),
    ),
}
OLD_NAMES["smolvlm"] = OLD_NAMES["idefics3"]
# Tables that were two: the last rows stood apart.
OLD_TABLES = {
    "model.embed_tokens.weight": "model.embed_tokens.additional_embedding.weight",
    "lm_head.weight": "additional_fc.weight",
}
# What old files hold in addition to the weights: buffers that are computed, and an unused head.
OLD_EXTRAS = (
    "model.layers.0.self_attn.rotary_emb.inv_freq",
    "model.vision_model.embeddings.position_ids",
)
UNUSED_HEAD = "model.vision_model.head.probe"


def rename_to_old_keys(folder):
    """The weights under the names of the code that the checkpoints were trained with."""
    raw = read_json(folder / "config.json")
    uses_cross_attention = raw["model_type"] == "idefics"
    weights = {}
    for name, weight in load_file(folder / WEIGHTS_FILE).items():
        for pattern, replacement in OLD_NAMES[raw["model_type"]]:
            name = re.sub(pattern, replacement, name)
        weights[name] = weight
    for table, more in {} if uses_cross_attention else OLD_TABLES.items():
        if table in weights:
            whole = weights[table]
            weights[table], weights[more] = whole[:-3].clone(), whole[-3:].clone()
    extras = OLD_EXTRAS if uses_cross_attention else (*OLD_EXTRAS, UNUSED_HEAD)
    save_file(weights | {name: torch.full((1, 9), 7.0).bfloat16() for name in extras}, folder / WEIGHTS_FILE)
    return folder


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path, content):
    path.write_text(json.dumps(content), encoding="utf-8")
