"""Ids, frames and masks equal those of transformers' processors, where these have no bugs."""

import random
import warnings

import numpy as np
import PIL.Image
import pytest

from idefics.messages import Picture, assistant, user
from processing.test_chat import SMOLVLM
from processing.test_processor import (
    CROSS_ATTENTION_CONFIG,
    CROSS_ATTENTION_PROCESSOR,
    SQUARE_PICTURE,
    TEXT_TAGS_PROCESSOR,
    TILES_CONFIG,
    TILES_PROCESSOR,
    WIDE_PICTURE,
)
from processing.tokenizers_tiny import train_byte_level_tokenizer, train_llama_tokenizer

PICTURES = [PIL.Image.fromarray(array) for array in (WIDE_PICTURE, SQUARE_PICTURE)]


@pytest.fixture(scope="module")
def reference():
    """(Idefics 1's, and the tiles' with and without tags in the vocabulary) as transformers has them.

    Its own tokenizer classes rebuild tokenizer.json and lose the blanks after special tokens; the generic one
    takes the file literally.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers talks about torchvision
        pytest.importorskip("transformers")
        from transformers import PreTrainedTokenizerFast
        from transformers.models.idefics.image_processing_pil_idefics import IdeficsImageProcessorPil
        from transformers.models.idefics.processing_idefics import IdeficsProcessor
        from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
        from transformers.models.idefics3.processing_idefics3 import Idefics3Processor

        llama = PreTrainedTokenizerFast(
            tokenizer_object=train_llama_tokenizer(), bos_token="<s>", eos_token="</s>", pad_token="<unk>"
        )
        beside = IdeficsProcessor(
            IdeficsImageProcessorPil(
                image_size=CROSS_ATTENTION_CONFIG.frame_size,
                image_mean=list(CROSS_ATTENTION_CONFIG.mean),
                image_std=list(CROSS_ATTENTION_CONFIG.std),
            ),
            llama,
        )
        tiles = [
            Idefics3Processor(
                Idefics3ImageProcessorPil(
                    size={"longest_edge": TILES_CONFIG.longest_edge},
                    max_image_size={"longest_edge": TILES_CONFIG.frame_size},
                ),
                PreTrainedTokenizerFast(
                    tokenizer_object=train_byte_level_tokenizer(has_tile_tokens=tags), pad_token="<|im_end|>"
                ),
                image_seq_len=TILES_CONFIG.tokens_per_frame,
                chat_template=SMOLVLM,
            )
            for tags in (True, False)
        ]
    return beside, *tiles


def prompt_frames(prompt):
    return [frame for picture in prompt.pictures for frame in picture.frames]


@pytest.mark.parametrize("seed", range(12))
def test_raw_prompts_of_cross_attention_models(reference, seed):
    choice = random.Random(seed)
    texts = ["User:", " a cat ", "\nAssistant: yes", " ", "", "<end_of_utterance>", "</s>", "日\n"]
    items = [choice.choice([*texts, *PICTURES]) for _ in range(choice.randint(1, 9))]
    # The switch is given: transformers 5 no longer finds the token by itself.
    theirs = reference[0](text=[items], add_end_of_utterance_token=True)
    ours = CROSS_ATTENTION_PROCESSOR.encode_raw(items, add_end_of_utterance_token=True)
    assert list(ours.ids) == theirs["input_ids"][0].tolist()
    mask = theirs["image_attention_mask"][0].numpy()  # (tokens, pictures), one-hot or zero
    assert list(ours.image_index) == [int(row.argmax()) if row.any() else -1 for row in mask]
    if ours.pictures:
        np.testing.assert_allclose(
            np.stack(prompt_frames(ours)), theirs["pixel_values"][0], rtol=0, atol=1e-6
        )


@pytest.mark.parametrize("tags", [True, False])
def test_chats_with_tiles(reference, tags):
    ours, theirs = (TILES_PROCESSOR, reference[1]) if tags else (TEXT_TAGS_PROCESSOR, reference[2])
    turns = [
        user(Picture(PICTURES[0]), "What is this?"),
        assistant("A wall."),
        user("And that: ", Picture(PICTURES[1]), Picture(PICTURES[0])),
    ]
    dicts = [
        {
            "role": turn.role,
            "content": [
                {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
                for part in turn.parts
            ],
        }
        for turn in turns
    ]
    text = theirs.apply_chat_template(dicts, add_generation_prompt=True)
    expected = theirs(text=text, images=[PICTURES[0], PICTURES[1], PICTURES[0]])
    prompt = ours.encode_chat(turns)
    assert list(prompt.ids) == expected["input_ids"][0]
    np.testing.assert_allclose(
        np.stack(prompt_frames(prompt)), expected["pixel_values"][0], rtol=0, atol=1e-6
    )
