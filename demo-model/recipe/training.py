"""The two stages of training: first the vision tower learns to name things, then the whole model learns to answer."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from idefics.models import read_checkpoint
from picturebook import WEIGHT_BY_KIND, sample_scene

from .attention import SupervisedCrossAttention, SupervisedSelfAttention
from .batches import CellLabels, TrainingBatch, compute_cell_labels, iterate_batches, render_frames
from .checkpoints import CheckpointRecipe, copy_settings, write_settings, write_weights
from .encoding import SampleEncoder
from .optimizer import make_optimizers, set_learning_rate
from .vision_heads import MAX_VISION_THINGS, CellHeads, VisionHeads
from .word_alignment import AttentionTargetFinder, WordFeatureLoss

BATCH_SIZE = 16
VISION_BATCH_SIZE = 32
NUM_SIMPLE_STEPS = 1_500
SIMPLE_KIND_WEIGHTS = {"caption": 1.0, "question": 6.0, "classify/names": 1.5, "readout": 1.0}
VISION_LOSS_WEIGHT = 0.3
ATTENTION_LOSS_WEIGHT = 3.0  # relative to the vision loss: attention that is nearly right still miscounts
DECAY_FRACTION = 0.5
STEPS_PER_SAVE = 250
NUM_MATCHING_HEADS = 3
NUM_HEAD_STEPS = 300  # for the heads alone, which no checkpoint holds, where training goes on from one


class DemoTrainer:
    """Trains one checkpoint. The state is saved regularly, and training resumes from it.

    Args:
        recipe: the checkpoint's configuration and tokenizer.
        folder: where checkpoint and state are written.
        num_steps: steps of the second stage.
        seed: of weights and samples.
        log: receives a line of progress every few steps.
        start_checkpoint: a checkpoint to start from; the first stage and the simple topics are then skipped.
    """

    def __init__(
        self,
        recipe: CheckpointRecipe,
        folder: Path,
        num_steps: int,
        seed: int,
        log: Callable[[str], None],
        start_checkpoint: Path | None = None,
    ) -> None:
        self.recipe, self.folder, self.num_steps, self.log = recipe, folder, num_steps, log
        if start_checkpoint:
            copy_settings(start_checkpoint, folder)  # a tokenizer trained anew would have other ids
        elif not (folder / "config.json").exists():
            write_settings(recipe, folder)
        checkpoint = read_checkpoint(folder)
        torch.manual_seed(seed)
        self.model: Any = checkpoint.family.build(checkpoint.config).train()
        initialize_weights(self.model)
        self.image_plan = checkpoint.family.read_image_config(
            checkpoint.config, recipe.json_by_filename["preprocessor_config.json"]
        )
        vision, inner_model = checkpoint.config.vision, self.model.model
        if checkpoint.config.resampler:
            self.connector, self.token_embedding, width = (
                inner_model.perceiver_resampler,
                inner_model.embed_tokens,
                vision.hidden_size,
            )
        else:
            self.connector, self.token_embedding = inner_model.connector, inner_model.text_model.embed_tokens
            width = checkpoint.config.text.hidden_size
        self.heads = nn.ModuleDict({"patches": VisionHeads(vision.hidden_size), "features": CellHeads(width)})
        vision_modules = nn.ModuleDict(
            {"tower": inner_model.vision_model, "bridge": self.connector, "words": self.token_embedding}
        )
        self.optimizers = make_optimizers(self.model, self.heads)
        self.vision_optimizers = make_optimizers(vision_modules, self.heads)
        tokens_per_image = 0 if checkpoint.config.cross_attention else self.image_plan.tokens_per_frame
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.encoder, self.word_feature_loss = (
            SampleEncoder(tokenizer, tokens_per_image),
            WordFeatureLoss(tokenizer),
        )
        self.target_finder = AttentionTargetFinder(tokenizer, checkpoint.config.text.num_layers)
        self.seed, self.step, self.start_checkpoint = seed, 0, start_checkpoint
        self.state_path = folder / "training-state.pt"
        if self.state_path.exists():
            self._load_state()

    def run(self) -> None:
        """Trains to the last step; writes the checkpoint every `STEPS_PER_SAVE` steps and at the end."""
        if self.step == 0:
            self._prepare_first_step()
            self._save_state()
        kind_weights = dict(
            WEIGHT_BY_KIND
            if self.recipe.has_raw_prompts
            else {kind: weight for kind, weight in WEIGHT_BY_KIND.items() if kind != "raw"}
        )
        num_simple_steps = 0 if self.start_checkpoint else min(NUM_SIMPLE_STEPS, self.num_steps)
        for stage_weights, end in ((SIMPLE_KIND_WEIGHTS, num_simple_steps), (kind_weights, self.num_steps)):
            rng = random.Random(f"{self.seed} {self.step}")
            stream = iterate_batches(self.encoder, self.image_plan, rng, stage_weights, BATCH_SIZE)
            while self.step < end:
                self._train_step(next(stream))
        self._save_state()

    def _prepare_first_step(self) -> None:
        if self.start_checkpoint is None:
            self._train_vision(self.recipe.num_vision_steps)
            return
        self.model.load_state_dict(load_file(self.start_checkpoint / "model.safetensors"))
        self.model.requires_grad_(False)
        self._train_vision(NUM_HEAD_STEPS)
        self.model.requires_grad_(True)

    def _train_vision(self, num_steps: int) -> None:
        rng, started = random.Random(f"{self.seed} vision"), time.monotonic()
        for step in range(num_steps):
            for optimizer in self.vision_optimizers:
                set_learning_rate(optimizer, step, num_steps, DECAY_FRACTION)
            scenes = [
                sample_scene(rng, "train", rng.randint(1, MAX_VISION_THINGS))
                for _ in range(VISION_BATCH_SIZE)
            ]
            _, loss, kind_accuracy = self._encode_frames(
                render_frames(scenes, self.image_plan), compute_cell_labels(scenes)
            )
            self._update_weights(self.vision_optimizers, loss)
            if step % 50 == 49:
                seconds = time.monotonic() - started
                self.log(
                    f"vision {step + 1}/{num_steps}  loss {loss.item():.3f}  kinds {kind_accuracy:.2f}  {seconds:.0f} s"
                )
        self.vision_optimizers.clear()

    def _train_step(self, batch: TrainingBatch) -> None:
        started = time.monotonic()
        for optimizer in self.optimizers:
            set_learning_rate(optimizer, self.step, self.num_steps, DECAY_FRACTION)
        loss, vision_loss, kind_accuracy, token_accuracy = self._compute_losses(batch)
        self._update_weights(self.optimizers, loss + VISION_LOSS_WEIGHT * vision_loss)
        self.step += 1
        if self.step % 25 == 0:
            seconds = time.monotonic() - started
            self.log(
                f"step {self.step}/{self.num_steps}  loss {loss.item():.3f}  tokens {token_accuracy:.3f}  "
                f"vision {vision_loss.item():.3f}  kinds {kind_accuracy:.2f}  {seconds:.2f} s"
            )
        if self.step % STEPS_PER_SAVE == 0:
            self._save_state()

    def _encode_frames(self, frames: Tensor, labels: CellLabels) -> tuple[Tensor, Tensor, float]:
        """The features that the decoder gets, the vision loss, and the share of filled cells classified right.

        Nine features stand for the nine cells: all outputs of the connector, or the first of the resampler's latents.
        Without this loss the resampler mixes the cells, and the decoder cannot tell which attributes belong together.
        """
        patches = self.model.model.vision_model(frames)
        loss, _ = self.heads["patches"].compute_loss(patches, labels)
        features = self.connector(patches)
        cells = features[:, :9]
        cell_loss, kind_accuracy = self.heads["features"].compute_loss(cells, labels)
        return (
            features,
            loss + cell_loss + self.word_feature_loss.compute_loss(cells, self.token_embedding, labels),
            kind_accuracy,
        )

    def _compute_losses(self, batch: TrainingBatch) -> tuple[Tensor, Tensor, float, float]:
        features, vision_loss, kind_accuracy = self._encode_frames(batch.frames, batch.labels)
        x = self.model.embed(batch.ids)
        if self.model.layout.num_cross_attention_layers:
            attention: SupervisedCrossAttention | SupervisedSelfAttention = SupervisedCrossAttention(
                batch.num_sequences,
                self.model.compute_cross_kv(features),
                batch.image_index,
                self.target_finder(batch),
            )
        else:
            x = x.index_put(
                (batch.ids.eq(self.encoder.image_token_id).nonzero(as_tuple=True)), features.flatten(0, 1)
            )
            rest_positions = (batch.ids == self.encoder.image_token_id).nonzero().flatten()[::9] - 1
            attention = SupervisedSelfAttention(
                batch.num_sequences,
                self.target_finder(batch),
                rest_positions % (len(batch.ids) // batch.num_sequences),
            )
        positions = torch.arange(len(batch.ids) // batch.num_sequences).repeat(batch.num_sequences)
        hidden = self.model(x, positions, attention)
        is_target = batch.targets >= 0
        logits, targets = self.model.logits(hidden[is_target]), batch.targets[is_target]
        token_accuracy = (logits.argmax(-1) == targets).float().mean().item()
        weights = batch.weights[is_target]
        loss = (cross_entropy(logits, targets, reduction="none") * weights).sum() / weights.sum()
        return loss, vision_loss + ATTENTION_LOSS_WEIGHT * attention.loss, kind_accuracy, token_accuracy

    def _update_weights(self, optimizers: list[torch.optim.Optimizer], loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_([p for p in self.model.parameters() if p.grad is not None], 1.0)
        for optimizer in optimizers:
            optimizer.step()
        self.model.zero_grad()
        self.heads.zero_grad()

    def _save_state(self) -> None:
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        torch.save(state, self.state_path.with_suffix(".new"))
        self.state_path.with_suffix(".new").replace(self.state_path)
        write_weights(self.model, self.folder)

    def _load_state(self) -> None:
        state = torch.load(self.state_path)
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.log(f"resumed at step {self.step}")


def initialize_weights(model: Any) -> None:
    """Draws all weights.

    Matrices preserve the variance of their inputs; projections into the residual stream are scaled down by the square
    root of their number. Embeddings and positions have a deviation of 0.5, comparable to what is added to them. Gates
    start at 0.7: they would start at 0 with a pretrained text model, and there is none here. The first
    `NUM_MATCHING_HEADS` heads of a layer start with equal query and key matrices (arXiv 2305.09828), so that a word
    attends to similar cells from the first step.
    """
    num_residual_matrices = sum(
        name.endswith(("o_proj.weight", "down_proj.weight")) for name, _ in model.named_parameters()
    )
    for name, parameter in model.named_parameters():
        if (
            ("embedding" in name and "patch" not in name)
            or "embed_tokens" in name
            or name.endswith("latents")
        ):
            nn.init.normal_(parameter, std=0.5)
        elif "alpha" in name:
            nn.init.constant_(parameter, 0.7)
        elif parameter.ndim >= 2:
            scale = (
                1 / math.sqrt(num_residual_matrices)
                if name.endswith(("o_proj.weight", "down_proj.weight"))
                else 1.0
            )
            nn.init.normal_(parameter, std=scale / math.sqrt(parameter[0].numel()))
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
    num_matching_rows = NUM_MATCHING_HEADS * model.config.text.head_size
    for name, module in model.named_modules():
        if name.endswith(("self_attn", "cross_attn")) and "vision_model" not in name:
            module.q_proj.weight.data[:num_matching_rows] = module.k_proj.weight.data[:num_matching_rows]
