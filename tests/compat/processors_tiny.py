"""Small processors of every family: ours, and those of transformers around the same tokenizers.

The reference's own tokenizer classes rebuild tokenizer.json and lose blanks after special tokens; the generic one
takes the file literally.
"""

import warnings

import numpy as np
import PIL.Image
import pytest

from idefics.compat.image_processing_idefics import IdeficsImageProcessor
from idefics.compat.image_processing_inline import Idefics2ImageProcessor, Idefics3ImageProcessor
from idefics.compat.processing_idefics import IdeficsProcessor
from idefics.compat.processing_inline import Idefics2Processor, Idefics3Processor
from idefics.compat.tokenization import PreTrainedTokenizer
from idefics.processing.tokenizer import Tokenizer
from processing.test_chat import SMOLVLM
from processing.tokenizers_tiny import END_OF_UTTERANCE, train_byte_level_tokenizer, train_llama_tokenizer

DIALOGUE_TEMPLATE = SMOLVLM.removeprefix("<|im_start|>")
LLAMA_SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
BYTE_LEVEL_SPECIAL_TOKENS = {
    "bos_token": "<|im_start|>",
    "eos_token": END_OF_UTTERANCE,
    "pad_token": "<|im_end|>",
}
IDEFICS_SETTINGS = {"image_size": 8}
IDEFICS2_SETTINGS = {"size": {"shortest_edge": 8, "longest_edge": 20}, "do_image_splitting": True}
IDEFICS3_SETTINGS = {"size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 8}}
FRAME_TOKENS = 3


def random_photo(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


WIDE, TALL, SMALL = random_photo(32, 16), random_photo(11, 25, 1), random_photo(5, 5, 2)


def make_llama_tokenizer(turn_end=True):
    return PreTrainedTokenizer(Tokenizer(train_llama_tokenizer(turn_end).to_str()), **LLAMA_SPECIAL_TOKENS)


def make_smolvlm_tokenizer():
    return PreTrainedTokenizer(
        Tokenizer(train_byte_level_tokenizer().to_str()), **BYTE_LEVEL_SPECIAL_TOKENS, chat_template=SMOLVLM
    )


def make_idefics_processor(turn_end=True):
    return IdeficsProcessor(IdeficsImageProcessor(**IDEFICS_SETTINGS), make_llama_tokenizer(turn_end))


def make_idefics2_processor():
    return Idefics2Processor(
        Idefics2ImageProcessor(**IDEFICS2_SETTINGS), make_llama_tokenizer(), FRAME_TOKENS
    )


def make_idefics3_processor():
    return Idefics3Processor(
        Idefics3ImageProcessor(**IDEFICS3_SETTINGS), make_smolvlm_tokenizer(), FRAME_TOKENS
    )


@pytest.fixture(scope="session")
def reference():
    """The reference's processors, by the names of the families."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers talks about torchvision
        pytest.importorskip("transformers")
        from transformers import PreTrainedTokenizerFast
        from transformers.models.idefics.image_processing_pil_idefics import IdeficsImageProcessorPil
        from transformers.models.idefics.processing_idefics import IdeficsProcessor
        from transformers.models.idefics2.image_processing_pil_idefics2 import Idefics2ImageProcessorPil
        from transformers.models.idefics2.processing_idefics2 import Idefics2Processor
        from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
        from transformers.models.idefics3.processing_idefics3 import Idefics3Processor

        def generic(tokenizer, tokens):
            return PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", **tokens)

        return {
            "idefics": IdeficsProcessor(
                IdeficsImageProcessorPil(**IDEFICS_SETTINGS),
                generic(train_llama_tokenizer(), LLAMA_SPECIAL_TOKENS),
            ),
            "idefics2": Idefics2Processor(
                Idefics2ImageProcessorPil(**IDEFICS2_SETTINGS),
                generic(train_llama_tokenizer(), LLAMA_SPECIAL_TOKENS),
                image_seq_len=FRAME_TOKENS,
                chat_template=DIALOGUE_TEMPLATE,
            ),
            "idefics3": Idefics3Processor(
                Idefics3ImageProcessorPil(**IDEFICS3_SETTINGS),
                generic(train_byte_level_tokenizer(), BYTE_LEVEL_SPECIAL_TOKENS),
                image_seq_len=FRAME_TOKENS,
                chat_template=SMOLVLM,
            ),
        }


def is_same_batch(ours, theirs):
    """Whether two batches hold the same entries: equal ids and masks, pixels within rounding."""
    assert set(ours) == set(theirs)
    for name, value in ours.items():
        assert value.shape == theirs[name].shape, name
        assert value.dtype == theirs[name].dtype, name
        np.testing.assert_allclose(
            value.numpy(), theirs[name].numpy(), rtol=0, atol=1e-6 if name == "pixel_values" else 0
        )
