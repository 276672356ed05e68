"""A tiny checkpoint that writes one page as DocTags, whatever it is asked: constructed, not trained.

Its tokenizer marks most tags special, as Granite-Docling's does, and its template has the shape of that one's. Each
token determines the next one; `<fcel>`, which stands twice, looks at how many of them there are.
"""

import json
from itertools import pairwise

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken

from models import tiny
from processing import tokenizers_tiny

PAGE_TEXT = "<doctag><text><loc_1><loc_2>hi</text><otsl><fcel>a<fcel>b<nl></otsl></doctag>"
ORDINARY_CHARACTERS = "<loc_1><loc_2>hiab"  # the same without the tokens that are marked special
SPECIAL_TOKENS = [
    "<doctag>",
    "<text>",
    "<otsl>",
    "<fcel>",
    "<nl>",
    "</doctag>",
    "</text>",
    "</otsl>",
    "<formula>",
    "<code>",
]
LOCATION_TOKENS = ["<loc_1>", "<loc_2>"]  # not marked special
ROLE_TOKENS = ["<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"]
END_OF_TEXT = "<|end_of_text|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|start_of_role|>' + message['role'] + '<|end_of_role|>' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% else %}{{ '<image>' }}{% endif %}{% endfor %}{{ '<|end_of_text|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}"
)


def make_tokenizer():
    library = tokenizers_tiny.train_byte_level_tokenizer()
    library.add_special_tokens(
        [AddedToken(token, normalized=False) for token in [*ROLE_TOKENS, *SPECIAL_TOKENS]]
    )
    library.add_tokens([AddedToken(token, normalized=False) for token in LOCATION_TOKENS])
    return library


def write_checkpoint(folder, **generation_config):
    """The folder. `generation_config` are more fields of its generation_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    library = make_tokenizer()
    raw = tiny.merge_config(
        tiny.IDEFICS3,
        image_token_id=library.token_to_id(tokenizers_tiny.IMAGE_TOKEN),
        text_config={"vocab_size": library.get_vocab_size(), "max_position_embeddings": 1024},
    )
    model = tiny.make_random_model(raw)
    with torch.no_grad():
        _set_weights(model, library)
    save_file(
        {name: weight.detach() for name, weight in model.named_parameters()}, folder / "model.safetensors"
    )
    side = raw["vision_config"]["image_size"]
    files = {
        "config": raw,
        "generation_config": {"eos_token_id": library.token_to_id(END_OF_TEXT)} | generation_config,
        "preprocessor_config": {"max_image_size": {"longest_edge": side}, "size": {"longest_edge": side}},
        "tokenizer_config": {
            "chat_template": CHAT_TEMPLATE,
            "eos_token": END_OF_TEXT,
            "pad_token": END_OF_TEXT,
        },
    }
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return tokenizers_tiny.write_tokenizer(library, folder)


def _set_weights(model, library):
    """Layers that add nothing, but for one head that counts tags: a token's embedding goes to the next one's logit."""
    ids = library.encode(PAGE_TEXT + END_OF_TEXT).ids
    column = {id: number for number, id in enumerate(dict.fromkeys(ids))}
    other, table_cells, pages = len(column), len(column) + 1, len(column) + 2  # further columns
    weights = dict(model.named_parameters())
    for name, weight in weights.items():
        if "text_model" in name and "norm" in name:
            weight.fill_(1)
        elif any(part in name for part in ("text_model.layers", "connector", "lm_head")):
            weight.zero_()
    embeddings, head = weights["model.text_model.embed_tokens.weight"], weights["lm_head.weight"]
    embeddings.zero_()
    for id in range(len(embeddings)):
        embeddings[id, column.get(id, other)] = 1
    fcel, first = library.token_to_id("<fcel>"), ids[0]
    head[first, other] = 1
    for id, following in pairwise(ids):
        head[following, column[id]] = 1
    # The mean over all tokens so far of "is a cell" and "is a page" goes into columns of their own.
    layer = "model.text_model.layers.0.self_attn"
    for row, (id, sum_column) in enumerate([(fcel, table_cells), (first, pages)]):
        weights[f"{layer}.v_proj.weight"][row, column[id]] = 1
        weights[f"{layer}.o_proj.weight"][sum_column, row] = 1
    a, b = (following for id, following in pairwise(ids) if id == fcel)
    for following, sign in ((a, -1), (b, 1)):
        head[following, table_cells], head[following, pages] = sign * 0.05, -sign * 0.075
    head *= 200  # beyond doubt
