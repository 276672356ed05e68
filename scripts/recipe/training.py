"""The two stages: the vision tower alone names what it sees, then everything learns to answer."""

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
from picturebook import MIX, sample
from picturebook.things import COLORS, GROUNDS

from .attention import PointingAttn, TrainingAttn
from .batches import NUMBER_OF_KINDS, Batch, Labels, batches, frames_of, labels_of
from .checkpoints import Recipe, copy_settings, write_settings, write_weights
from .encoding import Encoder
from .names import Names, Pointers
from .optimizer import optimizers, set_rate

ROWS = 16
VISION_PICTURES = 32
MOST_TO_SEE = 8  # things in a picture of the first stage: three times as much to learn from as in the second
SIMPLE_STEPS = 1_500
SIMPLE_MIX = {"caption": 1.0, "question": 6.0, "classify/names": 1.5, "readout": 1.0}
VISION_WEIGHT = 0.3
POINTING_WEIGHT = 3.0  # beside that of vision: shares that are nearly right still miscount
DECAY = 0.5
SAVE_EVERY = 250
ALIKE_HEADS = 3
HEAD_STEPS = 300  # for the heads alone, which no checkpoint holds, where training goes on from one


class CellHeads(nn.Module):
    """What is asked of the vectors of the nine cells of a picture."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.kinds = nn.Linear(width, NUMBER_OF_KINDS)
        self.colors = nn.Linear(width, len(COLORS))
        self.sizes = nn.Linear(width, 3)
        self.places = nn.Linear(width, 9)
        self.alike = nn.Linear(width, 1 + MOST_TO_SEE)
        self.kin = nn.Linear(width, 1 + MOST_TO_SEE)
        self.turns = nn.Linear(width, 1 + MOST_TO_SEE)

    def loss(self, cells: Tensor, labels: Labels) -> tuple[Tensor, float]:
        """(P, 9, D) -> the summed loss of the seven questions, and the share of filled cells named right."""
        named = self.kinds(cells)
        places = torch.arange(9).expand(len(cells), 9)
        colors = cross_entropy(self.colors(cells).flatten(0, 1), labels.colors.flatten(), reduction="sum")
        losses = (
            cross_entropy(named.flatten(0, 1), labels.kinds.flatten())
            + colors / (labels.colors >= 0).sum().clamp(min=1)
            + cross_entropy(self.sizes(cells).flatten(0, 1), labels.sizes.flatten())
            + cross_entropy(self.places(cells).flatten(0, 1), places.flatten())
            + cross_entropy(self.alike(cells).flatten(0, 1), labels.alike.flatten())
            + cross_entropy(self.kin(cells).flatten(0, 1), labels.kin.flatten())
            + cross_entropy(self.turns(cells).flatten(0, 1), labels.turns.flatten())
        )
        filled = labels.kinds > 0
        return losses, (named.argmax(-1) == labels.kinds)[filled].float().mean().item()


class PatchHeads(nn.Module):
    """What the vision tower is asked beside the text: each cell, and the ground."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cells = CellHeads(4 * width)
        self.grounds = nn.Linear(width, 2 * len(GROUNDS))

    def loss(self, patches: Tensor, labels: Labels) -> tuple[Tensor, float]:
        """(P, S, D) patches of the tower, a class vector in front or not."""
        patches = patches[:, -36:]
        blocks = patches.unflatten(1, (3, 2, 3, 2)).transpose(2, 3).flatten(3).flatten(1, 2)  # (P, 9, 4D)
        loss, named = self.cells.loss(blocks, labels)
        return loss + cross_entropy(self.grounds(patches.mean(1)), labels.grounds), named


class Trainer:
    """One checkpoint's training; its state can be saved after any step and taken up again.

    Args:
        start: a checkpoint whose weights it begins with, in place of the first stage and of simple topics.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        total: int,
        seed: int,
        report: Callable[[str], None],
        start: Path | None = None,
    ) -> None:
        self.recipe, self.folder, self.total, self.report = recipe, folder, total, report
        if start:
            copy_settings(start, folder)  # a tokenizer trained anew would have other ids
        elif not (folder / "config.json").exists():
            write_settings(recipe, folder)
        checkpoint = read_checkpoint(folder)
        torch.manual_seed(seed)
        self.model: Any = checkpoint.family.build(checkpoint.config).train()
        initialise(self.model)
        self.plan = checkpoint.family.images(checkpoint.config, recipe.settings["preprocessor_config.json"])
        vision, parts = checkpoint.config.vision, self.model.model
        if checkpoint.config.resampler:
            self.bridge, self.words, width = parts.perceiver_resampler, parts.embed_tokens, vision.width
        else:
            self.bridge, self.words = parts.connector, parts.text_model.embed_tokens
            width = checkpoint.config.text.width
        self.heads = nn.ModuleDict({"patches": PatchHeads(vision.width), "features": CellHeads(width)})
        seeing = nn.ModuleDict({"tower": parts.vision_model, "bridge": self.bridge, "words": self.words})
        self.optimizers = optimizers(self.model, self.heads)
        self.vision_optimizers = optimizers(seeing, self.heads)
        places = 0 if checkpoint.config.cross else self.plan.tokens
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.encoder, self.names = Encoder(tokenizer, places), Names(tokenizer)
        self.pointers = Pointers(tokenizer, checkpoint.config.text.layers)
        self.seed, self.step, self.start = seed, 0, start
        self.state = folder / "training-state.pt"
        if self.state.exists():
            self._resume()

    def run(self) -> None:
        """To the last step; the checkpoint in the folder is written every few minutes and at the end."""
        if self.step == 0:
            self._begin()
            self._save()
        mix = dict(
            MIX if self.recipe.raw else {kind: weight for kind, weight in MIX.items() if kind != "raw"}
        )
        simple = 0 if self.start else min(SIMPLE_STEPS, self.total)
        for stage_mix, end in ((SIMPLE_MIX, simple), (mix, self.total)):
            rng = random.Random(f"{self.seed} {self.step}")
            stream = batches(self.encoder, self.plan, rng, stage_mix, ROWS)
            while self.step < end:
                self._train_step(next(stream))
        self._save()

    def _begin(self) -> None:
        if self.start is None:
            self._learn_to_see(self.recipe.vision_steps)
            return
        self.model.load_state_dict(load_file(self.start / "model.safetensors"))
        self.model.requires_grad_(False)
        self._learn_to_see(HEAD_STEPS)
        self.model.requires_grad_(True)

    def _learn_to_see(self, steps: int) -> None:
        rng, began = random.Random(f"{self.seed} vision"), time.monotonic()
        for step in range(steps):
            for optimizer in self.vision_optimizers:
                set_rate(optimizer, step, steps, DECAY)
            scenes = [sample(rng, "train", rng.randint(1, MOST_TO_SEE)) for _ in range(VISION_PICTURES)]
            _, loss, named = self._see(frames_of(scenes, self.plan), labels_of(scenes))
            self._update(self.vision_optimizers, loss)
            if step % 50 == 49:
                seconds = time.monotonic() - began
                self.report(
                    f"seeing {step + 1}/{steps}  loss {loss.item():.3f}  named {named:.2f}  {seconds:.0f} s"
                )
        self.vision_optimizers.clear()

    def _train_step(self, batch: Batch) -> None:
        began = time.monotonic()
        for optimizer in self.optimizers:
            set_rate(optimizer, self.step, self.total, DECAY)
        loss, vision_loss, named, right = self._losses(batch)
        self._update(self.optimizers, loss + VISION_WEIGHT * vision_loss)
        self.step += 1
        if self.step % 25 == 0:
            seconds = time.monotonic() - began
            self.report(
                f"step {self.step}/{self.total}  loss {loss.item():.3f}  right {right:.3f}  "
                f"vision {vision_loss.item():.3f}  named {named:.2f}  {seconds:.2f} s"
            )
        if self.step % SAVE_EVERY == 0:
            self._save()

    def _see(self, frames: Tensor, labels: Labels) -> tuple[Tensor, Tensor, float]:
        """Features as the decoder reads them, what seeing costs, and the share of cells named right at the end.

        Nine features stand for the nine cells: all that the connector makes, or the first of the resampler's latents,
        which would else mix the cells and leave the decoder with a bag of attributes.
        """
        patches = self.model.model.vision_model(frames)
        loss, _ = self.heads["patches"].loss(patches, labels)
        features = self.bridge(patches)
        cells = features[:, :9]
        cell_loss, named = self.heads["features"].loss(cells, labels)
        return features, loss + cell_loss + self.names.loss(cells, self.words, labels), named

    def _losses(self, batch: Batch) -> tuple[Tensor, Tensor, float, float]:
        features, vision_loss, named = self._see(batch.frames, batch.labels)
        x = self.model.embed(batch.ids)
        if self.model.layout.cross_layers:
            attn: TrainingAttn | PointingAttn = TrainingAttn(
                batch.rows, self.model.memory(features), batch.sees, self.pointers(batch)
            )
        else:
            x = x.index_put((batch.ids.eq(self.encoder.image).nonzero(as_tuple=True)), features.flatten(0, 1))
            marks = (batch.ids == self.encoder.image).nonzero().flatten()[::9] - 1
            attn = PointingAttn(batch.rows, self.pointers(batch), marks % (len(batch.ids) // batch.rows))
        positions = torch.arange(len(batch.ids) // batch.rows).repeat(batch.rows)
        hidden = self.model(x, positions, attn)
        learned = batch.targets >= 0
        logits, targets = self.model.logits(hidden[learned]), batch.targets[learned]
        right = (logits.argmax(-1) == targets).float().mean().item()
        weights = batch.weights[learned]
        loss = (cross_entropy(logits, targets, reduction="none") * weights).sum() / weights.sum()
        return loss, vision_loss + POINTING_WEIGHT * attn.loss, named, right

    def _update(self, optimizers: list[torch.optim.Optimizer], loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_([p for p in self.model.parameters() if p.grad is not None], 1.0)
        for optimizer in optimizers:
            optimizer.step()
        self.model.zero_grad()
        self.heads.zero_grad()

    def _save(self) -> None:
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        torch.save(state, self.state.with_suffix(".new"))
        self.state.with_suffix(".new").replace(self.state)
        write_weights(self.model, self.folder)

    def _resume(self) -> None:
        state = torch.load(self.state)
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.report(f"resumed at step {self.step}")


def initialise(model: Any) -> None:
    """Matrices keep the size of what passes; what adds to the stream starts smaller; gates are half open.

    Embeddings and positions are as large as what is added to them, else they drown. Gates would start at zero beside
    a pretrained text model; here there is none. Most heads begin as a search for what is alike, queries and keys
    being one matrix (arXiv 2305.09828): a word then finds the cell that shows it from the first step.
    """
    layers = sum(name.endswith(("o_proj.weight", "down_proj.weight")) for name, _ in model.named_parameters())
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
            scale = 1 / math.sqrt(layers) if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
            nn.init.normal_(parameter, std=scale / math.sqrt(parameter[0].numel()))
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
    alike = ALIKE_HEADS * model.config.text.head_size
    for name, module in model.named_modules():
        if name.endswith(("self_attn", "cross_attn")) and "vision_model" not in name:
            module.q_proj.weight.data[:alike] = module.k_proj.weight.data[:alike]
