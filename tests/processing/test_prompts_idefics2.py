"""Prompts of Idefics 2: marks of split and whole pictures, shared fakes, blanks as `tokenizer.json` has them."""

import dataclasses
import json
import random
import warnings

import numpy as np
import PIL.Image
import pytest

from idefics.config import PromptStyle
from idefics.errors import BadPrompt, BadSetting, UnsupportedModel
from idefics.messages import Picture, assistant, user
from idefics.models.idefics2 import prompt as style_of
from idefics.processing.fetch import Fetcher
from idefics.processing.processor import Processor
from idefics.processing.tokenizer import Tokenizer
from processing.test_images_idefics2 import SPLIT, WHOLE
from processing.tokenizers_tiny import FAKE, IMAGE, TURN_END, mistral

TOKENS = 3
TOKENIZER = Tokenizer(mistral().to_str())
STYLE = style_of("", TOKENIZER.added)
WHOLES, SPLITS = (
    Processor(TOKENIZER, dataclasses.replace(plan, tokens=TOKENS), STYLE, Fetcher(policy="off"))
    for plan in (WHOLE, SPLIT)
)
each_way = pytest.mark.parametrize(
    ("processor", "frames"), [(WHOLES, 1), (SPLITS, 5)], ids=["whole", "split"]
)
SQUARE = np.full((50, 50, 3), 9, np.uint8)
WIDE = np.full((20, 80, 3), 200, np.uint8)


def ids_of(text):
    """The text as `tokenizer.json` alone has it, with its `<s>`."""
    return tuple(TOKENIZER.encode(text, adds_special=True))


def marks(frames, pictures=1):
    """Neighbouring frames share a fake, whether of one picture or of two."""
    return f"{FAKE}{IMAGE * TOKENS}" * (frames * pictures) + FAKE


@each_way
def test_a_picture_in_the_text(processor, frames):
    prompt = processor.raw(["User: ", SQUARE, "What?"])
    assert prompt.ids == ids_of(f"User: {marks(frames)}What?")
    assert len(prompt.pictures[0].frames) == frames
    assert len(prompt.places[0]) == frames * TOKENS
    assert {prompt.ids[place] for place in prompt.places[0]} == {TOKENIZER.token_id(IMAGE)}


@each_way
@pytest.mark.parametrize("pictures", [2, 5])
def test_neighbouring_pictures_share_a_fake(processor, frames, pictures):
    prompt = processor.raw([SQUARE, WIDE, SQUARE, WIDE, SQUARE][:pictures])
    assert prompt.ids == ids_of(marks(frames, pictures))
    assert [len(places) for places in prompt.places] == [frames * TOKENS] * pictures


@each_way
def test_a_split_picture_is_five_times_the_tokens_and_six_fakes(processor, frames):
    assert processor.tokens_of(Picture(SQUARE)) == frames * TOKENS + frames + 1


def test_a_picture_too_small_to_split_is_one_frame():
    prompt = SPLITS.raw([np.zeros((1, 9, 3), np.uint8), SQUARE])
    assert prompt.ids == ids_of(marks(6))
    assert [len(places) for places in prompt.places] == [TOKENS, 5 * TOKENS]
    assert SPLITS.tokens_of(Picture(np.zeros((1, 9, 3), np.uint8))) == TOKENS + 2


@pytest.mark.parametrize("between", ["", f"{FAKE}", f"{FAKE}{FAKE}"])
def test_fakes_are_shared_wherever_they_come_from(between):
    """The released processor writes one for two in the whole text: two of four are left."""
    count = {0: 1, 1: 2, 2: 2}[between.count(FAKE)]
    picture = f"{FAKE}{IMAGE * TOKENS}"
    prompt = WHOLES.raw([SQUARE, between, SQUARE])
    assert prompt.ids == ids_of(f"{picture}{FAKE * (count - 1)}{picture}{FAKE}")


@pytest.mark.parametrize("between", [" ", "\n", "and"])
def test_text_between_pictures_parts_them(between):
    assert WHOLES.raw([SQUARE, between, SQUARE]).ids == ids_of(f"{marks(1)}{between}{marks(1)}")


@each_way
def test_a_conversation(processor, frames):
    """A turn that begins with a picture has no blank after its colon; the template writes no beginning."""
    turns = [user(Picture(SQUARE), Picture(WIDE), "What?"), assistant("A wall."), user("And ", Picture(WIDE))]
    prompt = processor.chat(turns)
    assert prompt.ids == ids_of(
        f"User:{marks(frames, 2)}What?{TURN_END}\nAssistant: A wall.{TURN_END}\n"
        f"User: And {marks(frames)}{TURN_END}\nAssistant:"
    )
    assert prompt.ids.count(TOKENIZER.token_id("<s>")) == 1


def test_forged_fakes_are_characters_and_are_not_shared():
    prompt = WHOLES.chat([user(Picture(SQUARE), f"{FAKE}{FAKE}{IMAGE}", Picture(SQUARE))])
    assert prompt.ids.count(TOKENIZER.token_id(FAKE)) == 4
    assert TOKENIZER.decode(prompt.ids, hidden=()).count(FAKE) == 6


def test_a_turn_ends_with_a_blank_of_its_own():
    """`<end_of_utterance>`, "▁", a line break: the separator that the checkpoints were trained with."""
    ids = WHOLES.chat([user("a")]).ids
    end = ids.index(TOKENIZER.token_id(TURN_END))
    assert list(ids[end + 1 : end + 3]) == [TOKENIZER.token_id("▁"), TOKENIZER.token_id("\n")]


def test_items_are_joined_as_they_are():
    assert WHOLES.raw([" a ", " b"]).ids == ids_of(" a  b")
    with pytest.raises(BadSetting):
        WHOLES.raw(["a"], add_end_of_utterance_token=True)


def test_pictures_written_as_text_are_counted():
    with pytest.raises(BadPrompt, match="holds 1 <image> of its own"):
        WHOLES.raw([SQUARE, IMAGE])


def test_endings_are_tokenised_with_their_prompt():
    messages = [user(Picture(SQUARE), Picture(WIDE), "What is it?")]
    prompt, endings = SPLITS.chat_endings(messages, ["cat", "a red ball"])
    for label, ending in zip(["cat", "a red ball"], endings, strict=True):
        assert prompt.ids + ending == SPLITS.chat(messages, answer_start=label).ids
    assert [len(places) for places in prompt.places] == [5 * TOKENS] * 2


def test_marks_are_never_answered():
    assert WHOLES.mark_ids == {TOKENIZER.token_id(FAKE), TOKENIZER.token_id(IMAGE)}


# Base, instruct and chatty


def test_a_checkpoint_with_turn_ends_chats_with_or_without_a_template_file():
    assert (STYLE.kind, STYLE.turn_end, STYLE.adds_special) == ("chat", TURN_END, True)
    assert style_of("a template", TOKENIZER.added).template == "a template"


def test_base_has_no_row_for_the_turn_end_of_its_tokenizer():
    """32002 rows for 32003 tokens: it continues documents, and has no dialogue of its own."""
    rows = TOKENIZER.token_id(TURN_END)
    base = style_of("", TOKENIZER.added_below(rows))
    assert base == PromptStyle(
        kind="base",
        template="",
        turn_end="",
        marks="frames",
        strip_items=False,
        start="",
        adds_special=True,
    )
    with pytest.raises(UnsupportedModel, match="no chat template"):
        Processor(TOKENIZER, WHOLE, base, Fetcher()).chat([user("a")])


# Against transformers


@pytest.fixture(scope="module")
def library():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers talks about torchvision
        transformers = pytest.importorskip("transformers")
        from transformers.models.idefics2.image_processing_pil_idefics2 import Idefics2ImageProcessorPil
        from transformers.models.idefics2.processing_idefics2 import Idefics2Processor
    return transformers, Idefics2ImageProcessorPil, Idefics2Processor


def reference(library, tokenizer, plan):
    _, image_processor, processor = library
    size = {"longest_edge": plan.longest, "shortest_edge": plan.shortest}
    made = image_processor(size=size, do_image_splitting=plan.splitting)
    return processor(made, tokenizer, image_seq_len=TOKENS, chat_template=STYLE.template)


def literal(library):
    """transformers' generic tokenizer class, which takes tokenizer.json as it is."""
    return library[0].PreTrainedTokenizerFast(tokenizer_object=mistral(), bos_token="<s>", pad_token="<unk>")


@pytest.mark.parametrize("processor", [WHOLES, SPLITS], ids=["whole", "split"])
@pytest.mark.parametrize("seed", range(10))
def test_ids_and_frames_are_those_of_transformers(library, processor, seed):
    """Texts that do not begin with a letter: before one, its processor writes a blank of its own after a picture."""
    choice = random.Random(seed)
    texts = ["\nUser:", " a cat ", "\nAssistant: yes", " ", "", TURN_END, FAKE, "\n日"]
    items = [choice.choice([*texts, SQUARE, WIDE]) for _ in range(choice.randint(1, 8))]
    text = "".join(IMAGE if isinstance(item, np.ndarray) else item for item in items)
    pictures = [PIL.Image.fromarray(item) for item in items if isinstance(item, np.ndarray)]
    theirs = reference(library, literal(library), processor.plan)(text=text, images=pictures or None)
    ours = processor.raw(items if text else ["\n"])
    assert list(ours.ids) == (theirs["input_ids"][0] if text else list(ids_of("\n")))
    frames = [frame for picture in ours.pictures for frame in picture.frames]
    if frames:
        padded, real = theirs["pixel_values"][0], theirs["pixel_attention_mask"][0]
        for frame, pixels, mask in zip(frames, padded, real, strict=True):
            height, width = mask[:, 0].sum(), mask[0].sum()
            np.testing.assert_allclose(frame, pixels[:, :height, :width], rtol=0, atol=1e-6)


def test_transformers_writes_a_blank_after_a_picture(library):
    """Since 5.0, to make up for the blank that its own tokenizer class loses there; `tokenizer.json` needs none."""
    text = f"User:{IMAGE}What?"
    theirs = reference(library, literal(library), WHOLE)(text=text, images=[PIL.Image.fromarray(SQUARE)])
    ours = WHOLES.raw(["User:", SQUARE, "What?"])
    assert tuple(theirs["input_ids"][0]) == ids_of(f"User:{marks(1)} What?") != ours.ids


def test_transformers_loses_the_blanks_after_special_tokens(library, tmp_path):
    """Its Llama class rebuilds tokenizer.json; where the settings say `legacy: false`, it prepends "▁" only once."""
    mistral().save(str(tmp_path / "tokenizer.json"))
    settings = {"tokenizer_class": "LlamaTokenizer", "legacy": False, "bos_token": "<s>", "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, "add_bos_token": True}))
    theirs = library[0].AutoTokenizer.from_pretrained(tmp_path)
    text = f"User: a{TURN_END}\nAssistant:"
    ours = list(WHOLES.chat([user("a")]).ids)
    assert ours == list(ids_of(text))
    blank = ours.index(TOKENIZER.token_id(TURN_END)) + 1
    assert ours[blank] == TOKENIZER.token_id("▁")
    assert theirs(text)["input_ids"] == ours[:blank] + ours[blank + 1 :]
