"""Small tokenizers with the structure of the released ones.

`byte_level` is like SmolVLM's: byte-level BPE, single digits, no normaliser, no post-processor.
`legacy_llama` is like Idefics 1's: every segment between special tokens gets a "▁"; bytes are the last resort.
`mistral` is like Idefics 2's: the same, and the file itself puts `<s>` in front.
"""

import json

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

FAKE_IMAGE_TOKEN, IMAGE_TOKEN, END_OF_UTTERANCE = "<fake_token_around_image>", "<image>", "<end_of_utterance>"
TRAINING_TEXTS = [
    "User: What is on the table? Assistant: There is a red ball and two green cubes on the table.",
    "User: Describe the picture. Assistant: A dog is sitting beside a blue vase in the garden.",
    "This is an image of a cat. This is an image of a tower at night. How many flowers are there? Four.",
    "User:Can you tell me a very short story based on the image?\n\nOnce upon a time, a puppy found a bed.\n",
    *["A cat.\n\n"] * 4,  # byte-level BPE joins line breaks at the end of a text only
]


def train_byte_level_tokenizer(rows=6, columns=6, base=400, has_tile_tokens=True):
    """SmolVLM's: its three first specials, then `<global-img>`, the tile tags, fake, image and turn end.

    Without `has_tile_tokens` like SmolVLM-Instruct 2.2B and Idefics3-8B, which write the tags as plain text.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=base,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TRAINING_TEXTS, trainer)
    tiles = [f"<row_{r}_col_{c}>" for r in range(1, rows + 1) for c in range(1, columns + 1)]
    added = ["<global-img>", *tiles] if has_tile_tokens else []
    tokenizer.add_special_tokens(
        [AddedToken(t, normalized=False) for t in [*added, FAKE_IMAGE_TOKEN, IMAGE_TOKEN, END_OF_UTTERANCE]]
    )
    return tokenizer


def train_llama_tokenizer(has_end_of_utterance=True, base=500, corpus=TRAINING_TEXTS):
    """Idefics 1's: `<unk>`, `<s>`, `</s>`, 256 bytes, merges; fake, image, and (instruct only) turn end."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = _llama_normalizer()
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=base, special_tokens=["<unk>", "<s>", "</s>", *bytes_], show_progress=False
    )
    trained.train_from_iterator(corpus, trainer)
    model = json.loads(trained.to_str())["model"]
    return make_llama_tokenizer(
        model["vocab"], [tuple(pair) for pair in model["merges"]], has_end_of_utterance=has_end_of_utterance
    )


def train_mistral_tokenizer(turn_end=True, **training_options):
    """Idefics 2's."""
    tokenizer = train_llama_tokenizer(turn_end, **training_options)
    begin = [("<s>", tokenizer.token_to_id("<s>"))]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=begin)
    return tokenizer


def make_llama_tokenizer(vocab, merges, *, has_end_of_utterance=True):
    """The tokenizer.json of Idefics 1 around a vocabulary and its merges."""
    tokenizer = Tokenizer(
        models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = _llama_normalizer()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    added = [
        "<unk>",
        "<s>",
        "</s>",
        FAKE_IMAGE_TOKEN,
        IMAGE_TOKEN,
        *([END_OF_UTTERANCE] if has_end_of_utterance else []),
    ]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in added])
    return tokenizer


def _llama_normalizer():
    return normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


def write_tokenizer(tokenizer, folder):
    """Saves as a checkpoint folder has it, and returns the folder."""
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
