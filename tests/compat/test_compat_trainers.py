"""transformers' `Trainer` and `Seq2SeqTrainer` on our models: they train, checkpoint, resume, and save what loads."""

import json
import math

import pytest
import torch

import idefics
from compat import models_tiny
from compat.models_tiny import FAMILIES, assert_close, make_our_model
from idefics import compat, demo
from idefics.compat.modeling import TRANSFORMERS_MODULE

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*pin_memory.*:UserWarning")


class RepeatedRowDataset(torch.utils.data.Dataset):
    """One row twice as often as it takes to learn it."""

    def __init__(self, model, scene="t1ttt", length=8):
        torch.manual_seed(1)
        self.batch = models_tiny.make_batch(model, scene)
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return index

    def collate(self, indices):
        rows = {name: value.repeat_interleave(len(indices), 0) for name, value in self.batch.items()}
        return {**rows, "labels": rows["input_ids"]}


def make_trainer(model, folder, kind=None, **options):
    rows = RepeatedRowDataset(model)
    seq2seq = kind is transformers.Seq2SeqTrainer
    arguments = (transformers.Seq2SeqTrainingArguments if seq2seq else transformers.TrainingArguments)(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        report_to=[],
        use_cpu=True,
        remove_unused_columns=False,
        disable_tqdm=True,
        logging_steps=1,
        **{"max_steps": 3, "save_strategy": "no", **options},
    )
    return (kind or transformers.Trainer)(
        model=model, args=arguments, train_dataset=rows, eval_dataset=rows, data_collator=rows.collate
    )


def logged_losses(made):
    return [entry["loss"] for entry in made.state.log_history if "loss" in entry]


@pytest.fixture(params=FAMILIES)
def model(request):
    return make_our_model(request.param).train()


def test_it_trains_and_saves_a_folder_that_loads(model, tmp_path):
    made = make_trainer(model, tmp_path / "run")
    made.train()
    assert logged_losses(made)[-1] < logged_losses(made)[0]
    made.save_model(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["architectures"] == [
        type(model).__name__
    ]
    again = compat.AutoModelForImageTextToText.from_pretrained(tmp_path / "saved")
    inputs = models_tiny.make_batch(model, "t1ttt")
    assert_close(again(**inputs).logits, model.eval()(**inputs).logits)


def test_the_saved_folder_is_a_model_of_the_library(tmp_path):
    model = compat.AutoModelForImageTextToText.from_pretrained("demo", torch_dtype=torch.float32)
    processor = compat.AutoProcessor.from_pretrained("demo")
    picture = next(iter(demo.pictures()))
    inputs = processor(text="<image>A picture of a cat", images=[picture.as_posix()], return_tensors="pt")
    made = transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(
            output_dir=str(tmp_path / "run"),
            max_steps=1,
            report_to=[],
            use_cpu=True,
            save_strategy="no",
            remove_unused_columns=False,
            disable_tqdm=True,
            learning_rate=1e-6,
        ),
        train_dataset=[0],
        data_collator=lambda rows: {**inputs, "labels": inputs["input_ids"]},
    )
    made.train()
    made.save_model(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    loaded = idefics.load(tmp_path / "saved")
    prompt = loaded.prompt(["A picture of"])
    assert_close(loaded.logits(prompt), model.eval()(torch.tensor([prompt.ids])).logits[0], atol=1e-3)


@pytest.mark.parametrize("family", ["idefics", "smolvlm"])
@pytest.mark.parametrize("tied", [False, True])
def test_it_checkpoints_and_resumes(family, tied, tmp_path):
    def started():
        torch.manual_seed(0)
        return make_our_model(family, tie_word_embeddings=tied).train()

    whole = make_trainer(started(), tmp_path / "whole", max_steps=4)
    whole.train()
    make_trainer(started(), tmp_path / "half", max_steps=2, save_strategy="steps", save_steps=2).train()
    assert (tmp_path / "half" / "checkpoint-2" / "config.json").is_file()
    resumed = make_trainer(started(), tmp_path / "half", max_steps=4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "half" / "checkpoint-2"))
    assert resumed.state.global_step == 4
    for one, other in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert_close(one, other, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"gradient_checkpointing_kwargs": {"use_reentrant": False}}])
def test_it_checkpoints_activations(options, tmp_path):
    torch.manual_seed(0)
    plain = make_trainer(make_our_model("idefics3").train(), tmp_path)
    plain.train()
    torch.manual_seed(0)
    model = make_our_model("idefics3").train()
    saving = make_trainer(model, tmp_path, gradient_checkpointing=True, **options)
    saving.train()
    assert model.is_gradient_checkpointing
    assert logged_losses(saving) == pytest.approx(logged_losses(plain), abs=1e-4)


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path):
    """Rows of unequal length: the loss is the mean over all tokens, not over the means of the parts."""
    model = make_our_model("smolvlm").train()
    batches = [
        {
            **batch,
            "labels": batch["input_ids"].index_fill(1, torch.tensor([0]), -100),
        }  # the trainer counts labels
        for batch in (models_tiny.make_batch(model, "t"), models_tiny.make_batch(model, "t1tttttt"))
    ]
    expected = sum(float(model(**batch, num_items_in_batch=1).loss.detach()) for batch in batches) / sum(
        batch["labels"].shape[1] - 1 for batch in batches
    )
    made = make_trainer(model, tmp_path, max_steps=1, gradient_accumulation_steps=2)
    made.args.per_device_train_batch_size = 1
    made._train_batch_size = 1
    made.train_dataset = [0, 1]
    made.data_collator = lambda rows: batches[rows[0]]
    made.train()
    assert logged_losses(made)[0] == pytest.approx(expected, abs=2e-3)


def test_answers_are_predicted(tmp_path):
    model = make_our_model("smolvlm")
    made = make_trainer(
        model, tmp_path, transformers.Seq2SeqTrainer, predict_with_generate=True, generation_max_length=None
    )
    out = made.predict(made.eval_dataset, max_new_tokens=4)
    prompts = models_tiny.make_batch(model, "t1ttt")
    expected = model.generate(**prompts, max_new_tokens=4)
    assert out.predictions[0].tolist()[: expected.shape[1]] == expected[0].tolist()  # padded to 20
    assert math.isfinite(out.metrics["test_loss"])


def test_instances_count_as_those_of_transformers(monkeypatch):
    model = make_our_model("smolvlm")
    assert isinstance(model, transformers.PreTrainedModel)
    assert isinstance(model.model, transformers.PreTrainedModel)
    assert isinstance(model, compat.SmolVLMForConditionalGeneration)
    assert not isinstance(model.model.vision_model, transformers.PreTrainedModel)
    assert type(model) is compat.SmolVLMForConditionalGeneration
    assert transformers.PreTrainedModel not in type(model).__mro__
    assert model.__class__.__name__ == type(model).__name__
    monkeypatch.delitem(__import__("sys").modules, TRANSFORMERS_MODULE)
    assert model.__class__ is type(model)


def test_what_save_pretrained_does_not_do(tmp_path):
    model = make_our_model("smolvlm")
    model.save_pretrained(tmp_path, save_function=torch.save, push_to_hub=False, token=None)
    with pytest.raises(idefics.IdeficsError, match="hf upload"):
        model.save_pretrained(tmp_path, push_to_hub=True)
    with pytest.raises(TypeError, match="safe_serialisation"):
        model.save_pretrained(tmp_path, safe_serialisation=True)
