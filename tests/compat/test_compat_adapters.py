"""Adapters of peft: around a model and inside it, trained, saved, reloaded and merged; and on four-bit weights."""

import pytest
import torch

from compat import models_tiny
from compat.models_tiny import CONFIG_BY_FAMILY, FAMILIES, assert_close, make_our_model
from idefics import compat
from idefics.errors import BadRequest, BadSetting, UnsupportedModel

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning",
    "ignore:.*pin_memory.*:UserWarning",
    "ignore:Already found a `peft_config`:UserWarning",  # peft's, of a second adapter
    "ignore:Merge lora module to 4-bit:UserWarning",
)

TARGET_MODULES = r".*(layers|gated_cross_attn_layers)\.\d+\.(self_attn|cross_attn)\.(q|v)_proj"
# Four-bit weights stand in blocks of 64; a width of 80 ends within a block.
WIDE_CONFIG = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128}


def make_lora_config(**options):
    return peft.LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules=TARGET_MODULES, **options)


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def saved_checkpoint(family, tmp_path):
    make_our_model(family).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def load_model(folder, **options):
    return compat.AutoModelForImageTextToText.from_pretrained(folder, **options)


def train_steps(model, inputs, steps=4):
    """A few steps on one batch: the losses."""
    model.train()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=2e-2)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    losses = []
    for _ in range(steps):
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    model.eval()
    return losses


def test_an_adapter_for_causal_language_models(saved_checkpoint, tmp_path):
    model = load_model(saved_checkpoint)
    inputs = models_tiny.make_batch(model, "t1ttt", "tt")
    before = model(**inputs).logits
    wrapped = peft.get_peft_model(model, make_lora_config(task_type="CAUSAL_LM"))
    assert type(wrapped) is peft.PeftModelForCausalLM
    losses = train_steps(wrapped, inputs)
    assert losses[-1] < losses[0]
    after = wrapped(**inputs).logits
    assert (after - before).abs().max() > 1e-3
    prompt = models_tiny.make_batch(model, "t1ttt")
    answer = wrapped.generate(**prompt, max_new_tokens=5)
    wrapped.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(load_model(saved_checkpoint), tmp_path / "adapter")
    assert_close(again(**inputs).logits, after)
    assert again.generate(**prompt, max_new_tokens=5).tolist() == answer.tolist()
    merged = wrapped.merge_and_unload()
    assert_close(merged(**inputs).logits, after)
    merged.save_pretrained(tmp_path / "merged")
    assert_close(load_model(tmp_path / "merged")(**inputs).logits, after)


@pytest.mark.parametrize("kind", [peft.PromptTuningConfig, peft.PrefixTuningConfig])
def test_learned_prompts_are_read_by_generate(kind):
    # peft looks for the embedding by its size: it may be nothing else's
    model = make_our_model(
        "idefics3", text_config={**CONFIG_BY_FAMILY["idefics3"]["text_config"], "vocab_size": 71}
    )
    heads = model.config.text_config.num_key_value_heads
    config = kind(
        task_type="CAUSAL_LM",
        num_virtual_tokens=3,
        token_dim=heads * model.config.text_config.head_dim if kind is peft.PrefixTuningConfig else 48,
        num_layers=2,
        num_attention_heads=heads,
    )
    wrapped = peft.get_peft_model(model, config)
    ids = torch.tensor([[5, 6, 7, 8]])
    expected = wrapped(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, -1].argmax(-1)
    answer = wrapped.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=3)
    assert answer[0, 4] == expected[0]
    longer = wrapped(input_ids=answer[:, :6], attention_mask=torch.ones(1, 6, dtype=torch.long))
    assert answer[0, 6] == longer.logits[0, -1].argmax()
    plain = model(ids).logits[:, -1]
    learned = wrapped(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, -1]
    assert (plain - learned).abs().max() > 1e-3


def test_adapters_inside_the_model(saved_checkpoint, tmp_path):
    model = load_model(saved_checkpoint)
    inputs = models_tiny.make_batch(model, "t1ttt", "tt")
    before = model(**inputs).logits
    model.add_adapter(make_lora_config())
    assert model.active_adapters() == ["default"]
    assert {name.split(".")[-3] for name, w in model.named_parameters() if w.requires_grad} == {
        "lora_A",
        "lora_B",
    }
    train_steps(model, inputs)
    after = model(**inputs).logits
    assert (after - before).abs().max() > 1e-3
    model.disable_adapters()
    assert_close(model(**inputs).logits, before)
    model.enable_adapters()
    assert_close(model(**inputs).logits, after)
    model.save_pretrained(tmp_path / "adapter")
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    for again in (load_model(saved_checkpoint), type(model).from_pretrained(saved_checkpoint)):
        again.load_adapter(tmp_path / "adapter")
        assert_close(again(**inputs).logits, after)
        assert not any(weight.requires_grad for name, weight in again.named_parameters() if "lora_" in name)
    reread = peft.PeftModel.from_pretrained(
        load_model(saved_checkpoint), tmp_path / "adapter"
    )  # peft reads what we write
    assert_close(reread(**inputs).logits, after)
    model.add_adapter(make_lora_config(), "second")
    assert_close(model(**inputs).logits, before)
    model.set_adapter("default")
    assert_close(model(**inputs).logits, after)
    model.delete_adapter("second")
    with pytest.raises(BadSetting, match="no adapter 'second'"):
        model.set_adapter("second")


def test_an_adapter_can_be_trained_on(saved_checkpoint, tmp_path):
    model = load_model(saved_checkpoint)
    model.add_adapter(make_lora_config())
    model.save_pretrained(tmp_path)
    again = load_model(saved_checkpoint)
    again.load_adapter(tmp_path, is_trainable=True, adapter_name="mine")
    assert again.active_adapters() == ["mine"]
    assert sum(weight.requires_grad for weight in again.parameters()) > 0


def test_the_folder_of_an_adapter_loads_its_model(saved_checkpoint, tmp_path):
    model = load_model(saved_checkpoint)
    inputs = models_tiny.make_batch(model, "t1ttt")
    model.add_adapter(make_lora_config())
    train_steps(model, inputs)
    model.save_pretrained(tmp_path / "adapter")
    for load_ in (load_model, type(model).from_pretrained):
        assert_close(
            load_(tmp_path / "adapter", torch_dtype="float32")(**inputs).logits, model(**inputs).logits
        )


def test_what_is_no_adapter_of_the_model(tmp_path):
    model = make_our_model("idefics3")
    with pytest.raises(BadSetting, match="the model has no adapter"):
        model.active_adapters()
    with pytest.raises(BadSetting, match="no adapter is given"):
        model.load_adapter()
    with pytest.raises(BadSetting, match="config of peft"):
        model.add_adapter({"r": 4})
    model.add_adapter(make_lora_config())
    with pytest.raises(BadSetting, match="'default' already"):
        model.add_adapter(make_lora_config())
    model.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match="not an adapter of this model"):
        make_our_model("idefics3", text_config={"num_hidden_layers": 1}).load_adapter(tmp_path)


@pytest.mark.parametrize("safe", [False, True])
@pytest.mark.parametrize("how", ["merge_adapter", "merge_and_unload"])
@pytest.mark.parametrize(
    "few_bits",
    [
        {"load_in_8bit": True},
        {"quantization_config": compat.QuantoConfig(weights="int8")},
        {"quantization_config": compat.QuantoConfig(weights="int4")},
    ],
    ids=str,
)
def test_quantized_weights_take_no_adapter_in_and_say_what_to_do(tmp_path, few_bits, safe, how):
    """Cast to eight bits the changes would be nothing, and the merged model the old one."""
    make_our_model("smolvlm").save_pretrained(tmp_path / "base")
    model = load_model(tmp_path / "base", **few_bits)
    inputs = models_tiny.make_batch(model, "t1ttt")
    before = model(**inputs).logits
    options = {"task_type": "CAUSAL_LM", "init_lora_weights": False}
    wrapped = peft.get_peft_model(model, make_lora_config(**options)).eval()
    after = wrapped(**inputs).logits
    assert (after - before).abs().max() > 1e-3
    wrapped.save_pretrained(tmp_path / "adapter")
    with pytest.raises(
        BadRequest, match=r"load the model without quantize=.*merge there.*quantise"
    ) as caught:
        getattr(wrapped, how)(safe_merge=safe)
    assert "\n" not in str(caught.value)
    assert_close(wrapped(**inputs).logits, after)
    whole = peft.PeftModel.from_pretrained(
        load_model(tmp_path / "base"), tmp_path / "adapter"
    ).merge_and_unload()
    whole.save_pretrained(tmp_path / "merged")
    merged = load_model(tmp_path / "merged", **few_bits)(**inputs).logits
    assert (merged - after).abs().mean() < 0.5 * (
        before - after
    ).abs().mean()  # rounded after merging, not before


class TestFourBits:
    """What the published notebooks do: four-bit weights, prepared, an adapter on top, the Trainer."""

    @pytest.fixture(params=[("idefics", 64), ("idefics2", 64), ("smolvlm", 64), ("smolvlm", 80)], ids=str)
    def base(self, request, tmp_path):
        pytest.importorskip("bitsandbytes")
        family, width = request.param
        raw, wide = CONFIG_BY_FAMILY[family], {**WIDE_CONFIG, "hidden_size": width}
        changes = {"text_config": {**raw.get("text_config", {}), **wide}}
        if family == "idefics":
            changes = {**wide, "vision_config": {**raw["vision_config"], "embed_dim": width}}
        model = make_our_model(family, **changes)
        model.save_pretrained(tmp_path / "base")
        return tmp_path / "base"

    def small(self, base):
        config = compat.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        )
        return load_model(base, quantization_config=config)

    def test_what_trainers_ask(self, base):
        model = self.small(base)
        assert model.is_quantized
        assert model.is_loaded_in_4bit
        assert not model.is_loaded_in_8bit
        assert model.quantization_method == "bitsandbytes"
        assert model.hf_quantizer.is_trainable
        assert model.hf_quantizer.quantization_config.load_in_4bit
        eight = load_model(base, load_in_8bit=True)
        assert eight.is_loaded_in_8bit
        assert not eight.is_loaded_in_4bit
        whole = load_model(base)
        assert whole.hf_quantizer is None
        assert not whole.is_loaded_in_4bit
        prepared = peft.prepare_model_for_kbit_training(model)
        assert prepared.is_gradient_checkpointing

    def test_it_is_trained_merged_and_reloaded(self, base, tmp_path):
        import bitsandbytes

        from compat.test_compat_trainers import logged_losses, make_trainer

        model = peft.prepare_model_for_kbit_training(self.small(base))
        wrapped = peft.get_peft_model(model, make_lora_config(task_type="CAUSAL_LM"))
        adapted = [m for m in wrapped.modules() if isinstance(m, peft.tuners.lora.bnb.Linear4bit)]
        assert adapted
        made = make_trainer(wrapped, tmp_path / "run", max_steps=4)
        made.train()
        assert logged_losses(made)[-1] < logged_losses(made)[0]
        made.save_model(tmp_path / "adapter")
        wrapped.eval()
        inputs = models_tiny.make_batch(model, "t1ttt")
        after = wrapped(**inputs).logits
        again = peft.PeftModel.from_pretrained(self.small(base), tmp_path / "adapter").eval()
        assert_close(again(**inputs).logits, after, atol=1e-3)
        prompt = {**inputs, "max_new_tokens": 3}
        assert again.generate(**prompt).tolist() == wrapped.generate(**prompt).tolist()
        before = self.small(base)(**inputs).logits
        merged = wrapped.merge_and_unload()
        assert any(isinstance(module, bitsandbytes.nn.Linear4bit) for module in merged.modules())
        gap = (merged(**inputs).logits - after).abs().mean()
        assert gap < 0.8 * (before - after).abs().mean()  # merged weights are rounded to four bits again
        whole = peft.PeftModel.from_pretrained(load_model(base), tmp_path / "adapter").merge_and_unload()
        whole.save_pretrained(tmp_path / "merged")
        assert_close(load_model(tmp_path / "merged")(**inputs).logits, whole(**inputs).logits)

    def test_a_quantized_model_alone_is_not_trained(self, base, tmp_path):
        from compat.test_compat_trainers import make_trainer

        with pytest.raises(ValueError, match="attach trainable adapters"):
            make_trainer(self.small(base), tmp_path)
