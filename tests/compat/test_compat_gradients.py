"""Training: the loss and the gradient of every parameter against transformers', and what makes training possible."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from compat.models_tiny import (
    CONFIG_BY_FAMILY,
    FAMILIES,
    assert_close,
    make_batch,
    make_our_model,
    make_reference_and_model,
)
from idefics.compat import AutoModelForImageTextToText, IdeficsConfig, IdeficsForVisionText2Text
from idefics.errors import BadSetting
from models import tiny

SCENES = ("tt1ttttt1ttttt", "tttt", "t1tttett")
UNFROZEN_CONFIG = {"freeze_text_layers": False, "freeze_vision_layers": False}


@pytest.fixture(params=FAMILIES)
def model(request):
    return make_our_model(request.param).train()


def reference_loss(logits, labels, mask):
    """That of transformers 4.51, whose later versions cannot compute it where there are additional tokens."""
    stands = mask[:, 1:] != 0
    return cross_entropy(logits[:, :-1][stands], labels[:, 1:][stands])


def gradients_by_name(model):
    return {name: weight.grad for name, weight in model.named_parameters()}


def backward_pass(model, inputs, labels):
    """One backward pass: -> the loss and all gradients."""
    model.zero_grad()
    loss = model(**inputs, labels=labels).loss
    loss.backward()
    return loss.detach(), {
        name: None if grad is None else grad.clone() for name, grad in gradients_by_name(model).items()
    }


def assert_same_gradients(one, other, atol=1e-4):
    assert one.keys() == other.keys()
    for name, grad in one.items():
        expected = other[name]
        if grad is None or expected is None:  # a part that had nothing to do
            assert all(x is None or not x.any() for x in (grad, expected)), name
        else:
            scale = max(1.0, float(expected.abs().max()))
            torch.testing.assert_close(
                grad / scale, expected / scale, atol=atol, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scenes", [SCENES, ("t1ttt1t",)], ids=["padded", "alone"])
def test_loss_and_gradients_are_the_references(family, scenes, tmp_path):
    reference, model = make_reference_and_model(tmp_path, CONFIG_BY_FAMILY[family])
    reference.train()
    model.train()
    inputs = make_batch(model, *scenes)
    labels = inputs["input_ids"].clone()
    labels[labels % 5 == 0] = -100
    if family == "idefics":
        expected = reference_loss(reference(**inputs).logits, labels, inputs["attention_mask"])
    else:
        labels = labels.masked_fill(inputs["attention_mask"] == 0, -100)
        positions = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        expected = reference(**inputs, labels=labels, position_ids=positions).loss
    expected.backward()
    loss, ours_ = backward_pass(model, inputs, labels)
    assert_close(loss, expected.detach())
    assert_same_gradients(ours_, gradients_by_name(reference))
    assert sum(grad is not None and bool(grad.any()) for grad in ours_.values()) > 0.9 * len(ours_)


@pytest.mark.parametrize("options", [None, {"use_reentrant": False}])
def test_checkpointing_changes_no_gradient(model, options):
    inputs = make_batch(model, *SCENES)
    plain = backward_pass(model, inputs, inputs["input_ids"])
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    model.gradient_checkpointing_enable()  # twice is once
    assert model.is_gradient_checkpointing
    calls = []
    layers = model.model.layers if model.config.model_type == "idefics" else model.model.text_model.layers
    layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    checkpointed = backward_pass(model, inputs, inputs["input_ids"])
    assert len(calls) == 2, "computed once more on the way back"
    assert_close(checkpointed[0], plain[0])
    assert_same_gradients(checkpointed[1], plain[1], atol=1e-6)
    assert "past_key_values" not in model(**inputs)
    names = set(model.state_dict())
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing
    assert set(model.state_dict()) == names
    calls.clear()
    backward_pass(model, inputs, inputs["input_ids"])
    assert len(calls) == 1


def test_adapters_get_gradients_through_frozen_embeddings(model):
    model.requires_grad_(False)
    model.enable_input_require_grads()
    inputs = make_batch(model, *SCENES)
    assert model(**inputs).logits.requires_grad
    model.disable_input_require_grads()
    assert not model(**inputs).logits.requires_grad


def test_autocast(model):
    inputs = make_batch(model, *SCENES)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(**inputs, labels=inputs["input_ids"], use_cache=True)
    out.loss.backward()
    assert out.logits.dtype == torch.bfloat16
    assert out.loss.dtype == torch.float32
    plain = model(**inputs, labels=inputs["input_ids"]).loss
    assert abs(out.loss - plain) < 0.1 * plain
    assert all(grad is None or grad.isfinite().all() for grad in gradients_by_name(model).values())


def test_a_step_makes_the_loss_smaller(model):
    inputs = make_batch(model, *SCENES)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(4):
        loss = model(**inputs, labels=inputs["input_ids"]).loss
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]


def test_half_precision_learns(model):
    model.to(torch.bfloat16)
    inputs = make_batch(model, *SCENES)
    out = model(**inputs, labels=inputs["input_ids"])
    out.loss.backward()
    assert out.logits.dtype == torch.bfloat16


def trainable_parameters(model):
    return {name for name, weight in model.named_parameters() if weight.requires_grad}


FREEZE_CONFIGS = [
    {},
    UNFROZEN_CONFIG,
    {**UNFROZEN_CONFIG, "freeze_text_layers": True},
    {**UNFROZEN_CONFIG, "freeze_vision_layers": True},
    {**UNFROZEN_CONFIG, "freeze_lm_head": True},
    {
        "freeze_text_module_exceptions": ["Linear"],
        "freeze_vision_module_exceptions": ["LayerNorm", "Embedding"],
    },
]


@pytest.mark.parametrize("freezes", FREEZE_CONFIGS, ids=lambda f: "-".join(f) or "default")
def test_what_is_frozen_is_what_the_reference_freezes(freezes):
    transformers = pytest.importorskip("transformers")
    raw = {name: value for name, value in tiny.IDEFICS1.items() if not name.startswith("freeze")} | freezes
    reference = transformers.IdeficsForVisionText2Text(transformers.IdeficsConfig.from_dict(raw))
    model = IdeficsForVisionText2Text(IdeficsConfig.from_dict(raw))
    assert trainable_parameters(model) == trainable_parameters(reference)


def test_freezing_survives_loading(tmp_path):
    model = make_our_model("idefics")
    model.save_pretrained(tmp_path)
    frozen = IdeficsForVisionText2Text.from_pretrained(tmp_path, freeze_text_layers=True)
    assert not any(w.requires_grad for w in frozen.model.layers.parameters())
    assert frozen.model.embed_tokens.additional_embedding.weight.requires_grad
    assert frozen.lm_head.weight.requires_grad


def test_kinds_that_cannot_be_excepted():
    config = IdeficsConfig.from_dict(
        {**tiny.IDEFICS1, "freeze_text_layers": True, "freeze_text_module_exceptions": ["Conv2d"]}
    )
    with pytest.raises(BadSetting, match=r"Conv2d.*LayerNorm, Linear, Embedding"):
        IdeficsForVisionText2Text(config)


def test_dropout_is_for_training_alone():
    plain, dropping = make_our_model("idefics"), make_our_model("idefics", dropout=0.5)
    dropping.load_state_dict(plain.state_dict())
    inputs = make_batch(plain, *SCENES)
    assert_close(dropping(**inputs).logits, plain(**inputs).logits)
    dropping.train()
    one, other = dropping(**inputs).logits, dropping(**inputs).logits
    assert (one - other).abs().max() > 0.1


@pytest.mark.parametrize("kind", ["float", "vector"])
@pytest.mark.parametrize(
    ("initializer", "spread", "expected"),
    [
        ("zeros", 0.0, 0.0),
        ("ones", 0.0, 1.0),
        ("normal", 0.0, 0.0),
        ("gaussian", 0.5, None),
        ("random", 0.5, None),
    ],
)
def test_gates_begin_as_the_config_says(kind, initializer, spread, expected):
    config = IdeficsConfig.from_dict(
        {
            **tiny.IDEFICS1,
            "alpha_type": kind,
            "alpha_initializer": initializer,
            "alphas_initializer_range": spread,
        }
    )
    gates = [
        g
        for b in IdeficsForVisionText2Text(config).model.gated_cross_attn_layers
        for g in (b.alpha_cross_attn, b.alpha_dense)
    ]
    assert {tuple(gate.shape) for gate in gates} == {(1, 1, 48) if kind == "vector" else (1,)}
    if expected is None:
        spreads = torch.cat([gate.flatten() for gate in gates])
        assert 0 < spreads.std() < 2.5 * spread
    else:
        assert all((gate == expected).all() for gate in gates)


def test_unknown_gates():
    with pytest.raises(BadSetting, match="alpha_initializer is 'twos'"):
        IdeficsForVisionText2Text(IdeficsConfig.from_dict({**tiny.IDEFICS1, "alpha_initializer": "twos"}))


def test_first_weights_have_the_spread_that_the_config_names():
    torch.manual_seed(0)
    model = IdeficsForVisionText2Text(IdeficsConfig.from_dict({**tiny.IDEFICS1, "initializer_range": 0.3}))
    assert abs(model.model.layers[0].mlp.up_proj.weight.std() - 0.3) < 0.02
    assert abs(model.model.embed_tokens.weight.std() - 0.3) < 0.02
    assert (model.model.norm.weight == 1).all()
    assert (model.model.vision_model.encoder.layers[0].mlp.fc1.bias == 0).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_config_asks_for_checkpointing(family):
    config = make_our_model(family).config
    config.gradient_checkpointing = True
    model = AutoModelForImageTextToText.from_config(config)
    assert model.is_gradient_checkpointing
    assert model.gradient_checkpointing
    assert model.model.gradient_checkpointing
    assert "gradient_checkpointing" not in model.config.to_dict()
    model.gradient_checkpointing_disable()
    assert not model.model.gradient_checkpointing
