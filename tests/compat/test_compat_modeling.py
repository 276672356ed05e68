"""`forward` against transformers' on tiny models of every family, and against itself: batches, caches, stages."""

import pytest
import torch

from compat.models_tiny import (
    CONFIG_BY_FAMILY,
    FAMILIES,
    assert_close,
    make_batch,
    make_our_model,
    make_reference_and_model,
    select_rows,
)
from idefics.compat import IdeficsForVisionText2Text, IdeficsModel
from idefics.compat.kv_cache import KeyValueCache
from idefics.errors import BadPrompt, BadSetting, IdeficsError
from models import tiny

SCENES = ("tt1ttttt1ttttt", "tttt", "t1tttett")
each_family = pytest.mark.parametrize("family", FAMILIES)
IMAGE_INPUTS = ("pixel_values", "pixel_attention_mask", "image_attention_mask")


@pytest.fixture(params=FAMILIES)
def model(request):
    return make_our_model(request.param)


@pytest.fixture
def cross_attention_model():
    return make_our_model("idefics")


def without_image_inputs(inputs):
    return {name: value for name, value in inputs.items() if name not in IMAGE_INPUTS}


@each_family
def test_logits_and_all_that_comes_with_them_are_the_references(family, tmp_path):
    reference, model = make_reference_and_model(tmp_path, CONFIG_BY_FAMILY[family])
    reference.set_attn_implementation("eager")  # its only one that gives attentions
    inputs = make_batch(model, *SCENES)
    real = inputs["attention_mask"].bool()
    inputs["position_ids"] = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    asked = {"output_hidden_states": True, "output_attentions": True, "use_cache": True}
    with torch.no_grad():
        expected, out = reference(**inputs, **asked), model(**inputs, **asked)
    assert_close(out.logits[real], expected.logits[real])
    assert len(out.hidden_states) == len(expected.hidden_states)
    assert_close(out.hidden_states[-1][real], expected.hidden_states[-1][real])
    assert_close(model.lm_head(out.hidden_states[-1]), out.logits)
    # The first one is the embeddings, as released, with the pictures in them where they are read in the text.
    text = real & (inputs["input_ids"] != CONFIG_BY_FAMILY[family].get("image_token_id"))
    assert_close(out.hidden_states[0][text], input_embeddings(model, inputs)[text])
    for one, other in list(zip(out.hidden_states, expected.hidden_states, strict=True))[1:]:
        assert_close(one[real], other[real])
    for one, other in zip(out.attentions, expected.attentions, strict=True):
        assert one.shape == other.shape
        assert_close(one.transpose(1, 2)[real], other.transpose(1, 2)[real])
    for ours_, theirs_ in zip(out.past_key_values, expected.past_key_values.layers, strict=True):
        for one, other in zip(ours_, (theirs_.keys, theirs_.values), strict=True):
            last = other.shape[2]  # theirs forgets what lies beyond a sliding window
            assert_close(
                one[:, :, -last:].transpose(1, 2)[real[:, -last:]], other.transpose(1, 2)[real[:, -last:]]
            )
    if family != "smolvlm":  # 5.23 gives the tower's output there
        assert_close(out.image_hidden_states.flatten(0, -2), expected.image_hidden_states.flatten(0, -2))


def input_embeddings(model, inputs):
    return model.get_input_embeddings()(inputs["input_ids"])


def test_rows_padded_on_either_side_are_the_rows_alone(model):
    inputs = make_batch(model, *SCENES)
    with torch.no_grad():
        together = model(**inputs).logits
        for row, scene in enumerate(SCENES):
            alone = make_batch(model, scene)
            length = alone["input_ids"].shape[1]
            assert_close(model(**alone).logits[0], together[row, -length:])
            turned = {**inputs}
            for name in ("input_ids", "attention_mask", "image_attention_mask"):
                if name in inputs:
                    turned[name] = inputs[name].roll(
                        length, dims=1
                    )  # wrong for the others, right for this one
            assert_close(model(**turned).logits[row, :length], together[row, -length:])


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_every_way_to_attend_gives_the_same(model, implementation):
    inputs = make_batch(model, *SCENES)
    with torch.no_grad():
        expected = model(**inputs, output_attentions=True)
        model.set_attn_implementation(implementation)
        assert model.attn_implementation == implementation
        out = model(**inputs)
    assert_close(out.logits, expected.logits)
    assert out.attentions is None
    for weights in expected.attentions:
        real = inputs["attention_mask"].bool()
        assert_close(weights.sum(-1).transpose(1, 2)[real], torch.ones(int(real.sum()), weights.shape[1]))


def test_flash_attention_names_the_way_out(model):
    with pytest.raises(BadSetting, match="sdpa"):
        model.set_attn_implementation("flash_attention_2")
    with pytest.raises(BadSetting, match="eager"):
        model.set_attn_implementation("paged")


@pytest.mark.parametrize("cut", [1, 6, -4, -1])
def test_reading_on_from_a_cache_is_reading_all(model, cut):
    inputs = make_batch(model, *SCENES)
    if cut > 0 and "image_attention_mask" not in inputs:
        cut = -2  # pictures in the text are read at once
    cut %= inputs["input_ids"].shape[1]
    with torch.no_grad():
        whole = model(**inputs)
        along = {
            name: inputs[name]
            for name in ("input_ids", "attention_mask", "image_attention_mask")
            if name in inputs
        }
        first = model(**{**inputs, **{name: value[:, :cut] for name, value in along.items()}}, use_cache=True)
        kept = first.past_key_values
        lengths = kept.get_seq_length()
        last = {
            **inputs,
            **{name: value[:, cut:] for name, value in along.items()},
            "attention_mask": inputs["attention_mask"],
        }
        second = model(**last, past_key_values=kept)
    assert_close(first.logits, whole.logits[:, :cut])
    assert_close(second.logits, whole.logits[:, cut:])
    assert kept.get_seq_length() == lengths == cut, "the first cache can be read on from again"
    assert second.past_key_values.get_seq_length() == inputs["input_ids"].shape[1]


def test_new_tokens_see_what_the_last_one_saw(model):
    """Neither pictures nor their mask are given again, and are ignored where they are."""
    inputs = make_batch(model, *SCENES)
    new = torch.tensor([[5, 7], [9, 11], [13, 15]])
    mask = torch.cat((inputs["attention_mask"], torch.ones_like(new)), dim=1)
    longer = {**inputs, "input_ids": torch.cat((inputs["input_ids"], new), dim=1), "attention_mask": mask}
    if "image_attention_mask" in inputs:
        seen = inputs["image_attention_mask"]
        longer["image_attention_mask"] = torch.cat((seen, seen[:, -1:].expand(-1, 2, -1)), dim=1)
    with torch.no_grad():
        expected = model(**longer).logits[:, -2:]
        cache = model(**inputs, use_cache=True).past_key_values
        assert_close(model(input_ids=new, attention_mask=mask, past_key_values=cache).logits, expected)
        again = {name: value for name, value in inputs.items() if name in IMAGE_INPUTS}
        out = model(input_ids=new, attention_mask=mask, past_key_values=cache, **again)
        assert_close(out.logits, expected)
        assert out.image_hidden_states is None
        steps = []
        for step in range(2):
            grown = mask[:, : mask.shape[1] - 1 + step]
            out = model(
                input_ids=new[:, step : step + 1], attention_mask=grown, past_key_values=cache, use_cache=True
            )
            steps.append(out.logits)
            cache = out.past_key_values
        assert_close(torch.cat(steps, dim=1), expected)


def test_rows_of_a_cache_are_reordered_and_repeated(model):
    inputs = make_batch(model, *SCENES)
    picked = torch.tensor([2, 0, 0, 1])
    new = torch.tensor([[5], [9], [13]])
    mask = torch.cat((inputs["attention_mask"], torch.ones_like(new)), dim=1)
    with torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
        expected = model(input_ids=new, attention_mask=mask, past_key_values=cache).logits[picked]
        assert cache.reorder_cache(picked) is cache
        out = model(input_ids=new[picked], attention_mask=mask[picked], past_key_values=cache)
    assert_close(out.logits, expected)


def test_a_cache_is_the_tuple_of_pairs(model):
    inputs = make_batch(model, "t1ttt", "tt")
    cache = model(**inputs, use_cache=True).past_key_values
    assert isinstance(cache, KeyValueCache)
    assert len(cache) == len(list(cache)) == model.layout.num_layers
    keys, values = cache[0]
    shape = (2, model.layout.num_kv_heads, inputs["input_ids"].shape[1], model.layout.head_size)
    assert keys.shape == values.shape == shape
    assert cache.to_legacy_cache()[-1][1] is cache[-1].values


def test_a_learned_prefix_is_seen_by_all(model):
    """As adapters give it (transformers issue 33852): tuples, a mask that counts them, and pictures at once."""
    inputs = make_batch(model, "t1ttt", "tt")
    layout, prefix = model.layout, 3
    shape = (2, layout.num_kv_heads, prefix, layout.head_size)
    past = tuple((torch.randn(shape), torch.randn(shape)) for _ in range(layout.num_layers))
    mask = torch.cat((torch.ones(2, prefix, dtype=torch.long), inputs["attention_mask"]), dim=1)
    with torch.no_grad():
        plain = model(**inputs).logits
        out = model(**{**inputs, "attention_mask": mask}, past_key_values=past, use_cache=True)
        as_cache = model(**{**inputs, "attention_mask": mask}, past_key_values=KeyValueCache.from_past(past))
    assert (out.logits - plain)[inputs["attention_mask"].bool()].abs().min(dim=-1).values.max() > 1e-3
    assert_close(out.logits, as_cache.logits)
    assert out.past_key_values.get_seq_length() == prefix + inputs["input_ids"].shape[1]


@each_family
def test_a_learned_prefix_is_the_references(family, tmp_path):
    transformers = pytest.importorskip("transformers")
    reference, model = make_reference_and_model(tmp_path, CONFIG_BY_FAMILY[family])
    inputs = make_batch(model, "t1ttt", "tt")
    layout = model.layout
    past = [
        tuple(torch.randn(2, layout.num_kv_heads, 3, layout.head_size) for _ in "kv")
        for _ in range(layout.num_layers)
    ]
    inputs["attention_mask"] = torch.cat(
        (torch.ones(2, 3, dtype=torch.long), inputs["attention_mask"]), dim=1
    )
    inputs["position_ids"] = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)[:, 3:]
    with torch.no_grad():
        expected = reference(**inputs, past_key_values=transformers.DynamicCache(past)).logits
        out = model(**inputs, past_key_values=past).logits
    real = inputs["attention_mask"][:, 3:].bool()
    assert_close(out[real], expected[real])


def test_embeddings_in_place_of_ids(model):
    inputs = make_batch(model, *SCENES)
    x = input_embeddings(model, inputs)
    assert x.shape == (*inputs["input_ids"].shape, 48)
    expected = model(**inputs).logits
    del inputs["input_ids"]
    assert_close(model(**inputs, inputs_embeds=x).logits, expected)


def test_positions_are_counted_unless_given(model):
    inputs = make_batch(model, *SCENES)
    counted = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    expected, real = model(**inputs).logits, inputs["attention_mask"].bool()
    assert_close(model(**inputs, position_ids=counted).logits[real], expected[real])
    shifted = model(**inputs, position_ids=counted * 2).logits
    assert (shifted - expected)[0].abs().max() > 1e-3
    one = make_batch(model, "tttt")
    del one["attention_mask"]
    row = torch.arange(one["input_ids"].shape[1])[None]
    assert_close(model(**one, position_ids=row).logits, model(**one).logits)


def test_text_alone_is_enough(model):
    inputs = without_image_inputs(make_batch(model, "ttttt"))
    out = model(**inputs)
    assert out.image_hidden_states is None
    assert_close(out.logits, model(input_ids=inputs["input_ids"]).logits)


def test_only_the_last_logits_where_no_more_are_wanted(model):
    inputs = make_batch(model, *SCENES)
    assert_close(model(**inputs, logits_to_keep=2).logits, model(**inputs).logits[:, -2:])
    with pytest.raises(BadSetting, match="labels"):
        model(**inputs, logits_to_keep=2, labels=inputs["input_ids"])


def test_stages_of_cross_attention_models(cross_attention_model):
    inputs = make_batch(cross_attention_model, *SCENES)
    expected = cross_attention_model(**inputs)
    pixels = inputs.pop("pixel_values")
    patches = cross_attention_model.model.vision_model(pixels.flatten(0, 1)).last_hidden_state.unflatten(
        0, pixels.shape[:2]
    )
    for stage in (
        {"image_encoder_embeddings": patches},
        {"perceiver_embeddings": expected.image_hidden_states},
    ):
        out = cross_attention_model(**inputs, **stage)
        assert_close(out.logits, expected.logits)
        assert_close(out.image_hidden_states, expected.image_hidden_states)
    with pytest.raises(BadPrompt, match="one of pixel_values"):
        cross_attention_model(
            **inputs, pixel_values=pixels, perceiver_embeddings=expected.image_hidden_states
        )


def test_without_a_resampler_there_is_no_perceiver_stage(tmp_path):
    reference, model = make_reference_and_model(
        tmp_path, tiny.IDEFICS1, use_resampler=False, qk_layer_norms=False
    )
    inputs = make_batch(model, *SCENES)
    real = inputs["attention_mask"].bool()
    out = model(**inputs)
    assert_close(out.logits[real], reference(**inputs).logits[real])
    assert out.image_hidden_states.shape == (3, 2, 17, 32)  # 16 patches and the class vector
    del inputs["pixel_values"]
    assert_close(model(**inputs, image_encoder_embeddings=out.image_hidden_states).logits, out.logits)
    with pytest.raises(BadPrompt, match="use_resampler"):
        model(**inputs, perceiver_embeddings=out.image_hidden_states)


def test_a_token_may_see_several_pictures(tmp_path):
    reference, model = make_reference_and_model(tmp_path, tiny.IDEFICS1)
    inputs = make_batch(model, *SCENES)
    inputs["image_attention_mask"][0, 4:] = 1
    real = inputs["attention_mask"].bool()
    expected = reference(**inputs).logits
    assert_close(model(**inputs).logits[real], expected[real])
    inputs["image_attention_mask"][:] = 1
    expected = reference(**inputs).logits
    del inputs["image_attention_mask"]  # every token sees every picture
    assert_close(model(**inputs).logits[real], expected[real])


@pytest.mark.parametrize("size", [(40, 40), (32, 64), (64, 48)])
def test_interpolated_positions_are_the_references(size, tmp_path):
    reference, model = make_reference_and_model(tmp_path, tiny.IDEFICS1)
    inputs = make_batch(model, "t1tt")
    inputs["pixel_values"] = torch.randn(1, 1, 3, *size)
    with torch.no_grad():
        expected = reference(**inputs, interpolate_pos_encoding=True).logits
        assert_close(model(**inputs, interpolate_pos_encoding=True).logits, expected)
    with pytest.raises(BadPrompt, match="interpolate_pos_encoding"):
        model(**inputs)


def test_the_model_without_a_head(cross_attention_model, tmp_path):
    cross_attention_model.save_pretrained(tmp_path)
    bare = IdeficsModel.from_pretrained(tmp_path)
    assert set(bare.state_dict()) == set(cross_attention_model.model.state_dict())
    inputs = make_batch(cross_attention_model, *SCENES)
    asked = {"output_hidden_states": True, "output_attentions": True, "use_cache": True}
    out, whole = bare(**inputs, **asked), cross_attention_model(**inputs, **asked)
    assert list(out) == [
        "last_hidden_state",
        "past_key_values",
        "hidden_states",
        "attentions",
        "image_hidden_states",
    ]
    assert_close(cross_attention_model.lm_head(out.last_hidden_state), whole.logits)
    assert_close(out.last_hidden_state, whole.hidden_states[-1])
    assert isinstance(bare(**inputs, return_dict=False), tuple)


def test_the_vision_tower_can_be_brought_along(cross_attention_model):
    other = make_our_model("idefics")
    model = IdeficsForVisionText2Text(cross_attention_model.config, vision_model=other.model.vision_model)
    assert model.model.vision_model is other.model.vision_model


def test_native_sizes_and_their_padding(tmp_path):
    reference, model = make_reference_and_model(tmp_path, CONFIG_BY_FAMILY["idefics2"])
    inputs = make_batch(model, "t1tt1t", "t1t")
    sizes = inputs["pixel_attention_mask"].any(2).sum(-1)
    assert len(set(sizes.flatten().tolist())) > 2, "pictures of several sizes"
    real = inputs["attention_mask"].bool()
    assert_close(model(**inputs).logits[real], reference(**inputs).logits[real])
    whole = {name: value for name, value in inputs.items() if name != "pixel_attention_mask"}
    assert_close(model(**whole).logits[real], reference(**whole).logits[real])


def test_features_in_place_of_pictures_in_the_text():
    model = make_our_model("idefics3")
    inputs = make_batch(model, *SCENES)
    expected = model(**inputs)
    pixels = inputs.pop("pixel_values")
    out = model(**inputs, image_hidden_states=expected.image_hidden_states)
    assert_close(out.logits, expected.logits)
    with pytest.raises(BadPrompt, match="not both"):
        model(**inputs, pixel_values=pixels, image_hidden_states=expected.image_hidden_states)


@pytest.mark.parametrize("family", ["idefics2", "idefics3"])
def test_more_or_fewer_pictures_than_places(family):
    model = make_our_model(family)
    each = 5 if family == "idefics2" else 4
    inputs = make_batch(model, "t1t1t")
    fewer = {**inputs, "pixel_values": inputs["pixel_values"][:, :1]}
    fewer.pop("pixel_attention_mask", None)
    with pytest.raises(BadPrompt, match=f"{2 * each} places .* fill {each}"):
        model(**fewer)
    with pytest.raises(BadPrompt, match=f"{2 * each} places .* fill {3 * each}"):
        model(**{**inputs, "pixel_values": torch.randn(1, 3, 3, 32, 32), "pixel_attention_mask": None})
    with pytest.raises(BadPrompt, match=f"0 places .* fill {2 * each}"):
        model(**{**inputs, "input_ids": torch.full_like(inputs["input_ids"], 5)})


def test_frames_that_are_no_squares():
    model = make_our_model("idefics3")
    inputs = make_batch(model, "t1t")
    with pytest.raises(BadPrompt, match="32 x 16"):
        model(**{**inputs, "pixel_values": torch.randn(1, 1, 3, 32, 16)})


def test_labels_left_out_of_the_loss(model):
    """The release: -100 anywhere, and padding whatever its label."""
    inputs = make_batch(model, *SCENES)
    logits, ids, mask = model(**inputs).logits, inputs["input_ids"], inputs["attention_mask"]
    labels = ids.masked_fill(ids % 5 == 0, -100)
    out = model(**inputs, labels=labels)
    assert list(out)[:2] == ["loss", "logits"]
    wanted = (labels[:, 1:] != -100) & mask[:, 1:].bool()
    chances = logits[:, :-1].log_softmax(-1)[wanted].gather(1, labels[:, 1:][wanted][:, None])
    assert_close(out.loss, -chances.mean())
    assert_close(model(**inputs, labels=labels.masked_fill(mask == 0, -100)).loss, out.loss)
    assert_close(model(**inputs, labels=labels.masked_fill(mask == 0, 7)).loss, out.loss)


def test_the_loss_knows_additional_tokens(cross_attention_model):
    inputs = make_batch(cross_attention_model, "t1t1t")
    assert (inputs["input_ids"] >= cross_attention_model.config.vocab_size).any()
    expected = cross_attention_model(**inputs).logits[0, :-1].log_softmax(-1)
    expected = -expected.gather(1, inputs["input_ids"][0, 1:, None]).mean()
    assert_close(cross_attention_model(**inputs, labels=inputs["input_ids"]).loss, expected)


def test_unknown_arguments_are_errors(model):
    with pytest.raises(TypeError, match="pixels"):
        model(input_ids=torch.ones(1, 2, dtype=torch.long), pixels=None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": None}, "either input_ids or inputs_embeds"),
        ({"inputs_embeds": torch.zeros(2, 4, 48)}, "either input_ids or inputs_embeds"),
        ({"input_ids": torch.ones(4, dtype=torch.long)}, r"\(4,\)"),
        ({"input_ids": torch.ones(2, 0, dtype=torch.long)}, r"\(2, 0\)"),
        ({"attention_mask": torch.ones(2, 3)}, r"\(2, 3\).*\(2, 4\)"),
        ({"position_ids": torch.ones(2, 3)}, "3 a row and the tokens 4"),
        ({"past_key_values": ((torch.ones(2, 4), torch.ones(2, 4)),)}, r"\(2, 4\)"),
        (
            {"past_key_values": ((torch.ones(3, 2, 1, 12), torch.ones(3, 2, 1, 12)),)},
            "3 rows and this batch 2",
        ),
    ],
)
def test_arguments_that_contradict_each_other(model, change, message):
    inputs = {"input_ids": torch.ones(2, 4, dtype=torch.long), **change}
    with pytest.raises(IdeficsError, match=message) as caught:
        model(**inputs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixel_values": torch.ones(1, 2, 3, 32, 32)}, "1 rows and tokens for 3"),
        ({"image_attention_mask": torch.ones(3, 2, 2)}, r"\(3, 2, 2\): give \(3, "),
        ({"image_attention_mask": torch.ones(3, 14, 5)}, r"\(3, 14, 5\): give \(3, 14, 2\)"),
    ],
)
def test_pictures_that_do_not_fit_the_rows(cross_attention_model, change, message):
    inputs = make_batch(cross_attention_model, *SCENES)
    with pytest.raises(BadPrompt, match=message):
        cross_attention_model(**{**inputs, **change})


def test_each_row_alone_through_the_helper(model):
    """The helper of these tests itself: rows of a batch are rows."""
    inputs = make_batch(model, *SCENES)
    some = select_rows(inputs, [1])
    assert some["attention_mask"].all()
    if "pixel_values" in some:
        assert not some["pixel_values"].any()
