"""Small processors of every family: ours, and those of transformers around the same tokenizers.

The reference's own tokenizer classes rebuild tokenizer.json and lose blanks after special tokens; the generic one
takes the file literally.
"""

import warnings

import numpy as np
import PIL.Image
import pytest

from idefics.compat.image_processing_idefics import IdeficsImageProcessor
from idefics.compat.image_processing_in_text import Idefics2ImageProcessor, Idefics3ImageProcessor
from idefics.compat.processing_idefics import IdeficsProcessor
from idefics.compat.processing_in_text import Idefics2Processor, Idefics3Processor
from idefics.compat.tokenization import PreTrainedTokenizer
from idefics.processing.tokenizer import Tokenizer
from processing.test_chat import SMOLVLM
from processing.tokenizers_tiny import TURN_END, byte_level, legacy_llama

DIALOGUE = SMOLVLM.removeprefix("<|im_start|>")
LLAMA = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
BYTES = {"bos_token": "<|im_start|>", "eos_token": TURN_END, "pad_token": "<|im_end|>"}
IDEFICS = {"image_size": 8}
IDEFICS2 = {"size": {"shortest_edge": 8, "longest_edge": 20}, "do_image_splitting": True}
IDEFICS3 = {"size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 8}}
FRAME_TOKENS = 3


def photo(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


WIDE, TALL, SMALL = photo(32, 16), photo(11, 25, 1), photo(5, 5, 2)


def llama(turn_end=True):
    return PreTrainedTokenizer(Tokenizer(legacy_llama(turn_end).to_str()), **LLAMA)


def smol():
    return PreTrainedTokenizer(Tokenizer(byte_level().to_str()), **BYTES, chat_template=SMOLVLM)


def idefics(turn_end=True):
    return IdeficsProcessor(IdeficsImageProcessor(**IDEFICS), llama(turn_end))


def idefics2():
    return Idefics2Processor(Idefics2ImageProcessor(**IDEFICS2), llama(), FRAME_TOKENS)


def idefics3():
    return Idefics3Processor(Idefics3ImageProcessor(**IDEFICS3), smol(), FRAME_TOKENS)


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
            "idefics": IdeficsProcessor(IdeficsImageProcessorPil(**IDEFICS), generic(legacy_llama(), LLAMA)),
            "idefics2": Idefics2Processor(
                Idefics2ImageProcessorPil(**IDEFICS2),
                generic(legacy_llama(), LLAMA),
                image_seq_len=FRAME_TOKENS,
                chat_template=DIALOGUE,
            ),
            "idefics3": Idefics3Processor(
                Idefics3ImageProcessorPil(**IDEFICS3),
                generic(byte_level(), BYTES),
                image_seq_len=FRAME_TOKENS,
                chat_template=SMOLVLM,
            ),
        }


def same(ours, theirs):
    """Whether two batches hold the same entries: equal ids and masks, pixels within rounding."""
    assert set(ours) == set(theirs)
    for name, value in ours.items():
        assert value.shape == theirs[name].shape, name
        assert value.dtype == theirs[name].dtype, name
        np.testing.assert_allclose(
            value.numpy(), theirs[name].numpy(), rtol=0, atol=1e-6 if name == "pixel_values" else 0
        )
