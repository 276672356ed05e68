"""QLoRA: 4-bit base weights, double quantisation; losses equal those of peft and bitsandbytes driven by hand."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from idefics.models import read_checkpoint
from idefics.train.settings import TrainSettings
from idefics.train.trainee import load_trainee
from idefics.train.trainer import Trainer
from models import tiny
from train.row_makers import Rows, row_of_prompt

bitsandbytes = pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:transformers")
RAW_BY_FAMILY = {"idefics": tiny.IDEFICS1, "idefics3": tiny.IDEFICS3}
SCENES = ("tt1ttt", "1ttttttttt", "ttttt", "1tttt", "tttt1tttttt", "t1ttttttttttttttttt")
TOKENS = 3  # learned, at the end of a row


def settings_for(folder, **changes):
    fields = {"quantize": "nf4", "rank": 2, "alpha": 4, "steps": 6, "batch_size": 3, "learning_rate": 0.01}
    return TrainSettings(
        data="x", model=str(folder), out=folder.with_name("out"), **{**fields, "warmup_steps": 2, **changes}
    )


def quantize_by_hand(model, names):
    """Replaces linear layers by those of bitsandbytes."""
    for name in names:
        old = model.get_submodule(name)
        layer = bitsandbytes.nn.Linear4bit(
            old.in_features, old.out_features, bias=False, compute_dtype=torch.float32, quant_type="nf4"
        )
        layer.weight = bitsandbytes.nn.Params4bit(
            old.weight.detach(), requires_grad=False, quant_type="nf4", compress_statistics=True, blocksize=64
        ).to("cpu")
        layer.support_avx512bf16_for_cpu = False
        model.set_submodule(name, layer)


@pytest.mark.parametrize("family", RAW_BY_FAMILY)
def test_losses_equal_those_of_peft_and_bitsandbytes(family, tmp_path):
    peft = pytest.importorskip("peft")
    folder = tmp_path / "model"
    reference, plain = tiny.make_reference_and_model(folder, RAW_BY_FAMILY[family])
    settings = settings_for(folder)
    trainee = load_trainee(read_checkpoint(folder), settings)
    prompts = [tiny.make_random_prompt(plain, scene) for scene in SCENES]
    rows = Rows(row_of_prompt(one, TOKENS, str(number)) for number, one in enumerate(prompts))
    trainer = Trainer(trainee.model, trainee.learned, rows, settings, tmp_path / "training")

    names = [name.removesuffix(".lora_A.weight") for name in trainee.learned.by_name if "lora_A" in name]
    reference.requires_grad_(False)
    quantize_by_hand(reference, names)
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=trainee.learned.adapter_config.target_modules)
    wrapped = peft.get_peft_model(reference, config)
    parameters = {
        name.removeprefix("base_model.model.").replace(".default", ""): one
        for name, one in wrapped.named_parameters()
    }
    learned = {name: parameters[name].requires_grad_() for name in trainee.learned.by_name}
    with torch.no_grad():
        for name, one in learned.items():
            one.copy_(trainee.learned.by_name[name])
    groups = [
        {"params": [one for one in learned.values() if (one.dim() > 1) == decays], "weight_decay": decay}
        for decays, decay in ((True, settings.weight_decay), (False, 0.0))
    ]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]])
    for step in range(1, 7):
        record = trainer.run_step(step, trainer.prepare_step(step))
        some = [prompts[index] for index in trainer.schedule.rows_of_step(step)]
        inputs = tiny.make_reference_inputs(reference, some)
        logits = wrapped(**inputs).logits[:, -TOKENS - 1 : -1].flatten(0, 1)
        loss = cross_entropy(logits, inputs["input_ids"][:, -TOKENS:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned.values(), settings.max_gradient_norm)
        for group in optimizer.param_groups:
            group["lr"] = trainer.schedule.learning_rate(step)
        optimizer.step()
        optimizer.zero_grad()
        assert record.loss == pytest.approx(loss.item(), abs=1e-3)
    assert any("lora_B" in name and one.abs().max() > 0.01 for name, one in learned.items())


def test_only_the_decoder_is_quantised_and_the_rest_keeps_its_dtype(tmp_path):
    folder = tmp_path / "model"
    reference, _ = tiny.make_reference_and_model(folder, tiny.IDEFICS3)
    reference.bfloat16().save_pretrained(folder)
    model = load_trainee(read_checkpoint(folder), settings_for(folder)).model
    kinds = {
        name: type(module) is bitsandbytes.nn.Linear4bit
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    assert {name for name, is_quantised in kinds.items() if is_quantised} == {
        name for name in kinds if name.startswith("model.text_model.layers.")
    }
    state = model.get_submodule("model.text_model.layers.0.mlp.down_proj").base_layer.weight.quant_state
    assert (state.quant_type, state.nested) == ("nf4", True)
    stored = {
        name: weight.dtype
        for name, weight in model.named_parameters()
        if name.endswith(("proj.weight", "fc1.weight", "fc2.weight", "embed_tokens.weight", "lm_head.weight"))
        and "base_layer" not in name
    }
    assert len(stored) > 10 and set(stored.values()) == {torch.bfloat16}
    assert {one.dtype for name, one in model.named_parameters() if "lora" in name} == {torch.float32}
