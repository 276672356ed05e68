"""Trains the tokenizers of the two demo checkpoints on texts of the picture book."""

from __future__ import annotations

import json
from collections.abc import Iterator

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from picturebook import iterate_texts

FAKE_IMAGE_TOKEN, IMAGE_TOKEN, GLOBAL_IMAGE_TOKEN, END_OF_UTTERANCE = (
    "<fake_token_around_image>", "<image>", "<global-img>", "<end_of_utterance>",
)  # fmt: skip
NUM_CORPUS_SAMPLES = 60_000  # every word of the picture book occurs often
VOCAB_SIZE = 2_000  # nearly every word is one token


def iterate_corpus() -> Iterator[str]:
    """The texts that tokenizers are trained on."""
    yield from iterate_texts(NUM_CORPUS_SAMPLES, seed=1)


def train_byte_level_tokenizer() -> Tokenizer:
    """Like SmolVLM's: byte-level BPE, single digits, no prefix space, image tokens at the end of the vocabulary."""
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
    """Like Llama's: "▁" for a space and before every segment, byte fallback."""
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
