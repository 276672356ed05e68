"""Adapters of tiny models, made by peft or by hand, with values that are felt in the logits."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from idefics.demo import __path__ as DEMO
from idefics.weights.adapter_config import ADAPTER_WEIGHTS, AdapterConfig
from idefics.weights.adapter_files import write_adapter
from models import tiny


def save_peft_adapter(folder, reference, **options):
    """Wraps transformers' model with a random adapter of peft and saves that; returns the wrapped model."""
    peft = pytest.importorskip("peft")
    options = {"r": 3, "lora_alpha": 6, "init_lora_weights": False, **options}
    wrapped = peft.get_peft_model(reference, peft.LoraConfig(**options)).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if "lora_magnitude_vector" in name:
                weight.mul_(1 + 0.5 * torch.rand(weight.shape))
            elif weight.requires_grad:
                weight.copy_(0.2 * torch.randn(weight.shape))
    wrapped.save_pretrained(folder)
    return wrapped


def write_random_adapter(folder, model, targets, *, rank=2, alpha=3, scale=0.2, seed=2, **options):
    """Writes an adapter of our model with random factors for the modules that end with one of `targets`.

    Parameters of the names in `modules_to_save` are replaced.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, weight in model.state_dict().items():
        module = name.removesuffix(".weight")
        if weight.dim() == 2 and any(f".{module}".endswith(f".{target}") for target in targets):
            out, inner = weight.shape
            tensors[f"{module}.lora_A.weight"] = torch.randn(rank, inner, generator=generator)
            tensors[f"{module}.lora_B.weight"] = scale * torch.randn(out, rank, generator=generator)
        if name.rpartition(".")[2] in options.get("modules_to_save", ()):
            tensors[name] = torch.randn(weight.shape, generator=generator)
    write_adapter(
        folder, tensors, AdapterConfig(rank=rank, alpha=alpha, target_modules=tuple(targets), **options)
    )
    return folder


def edit_tensors(folder, edit):
    """Changes the tensors of an adapter: `edit` takes the dict of them."""
    tensors = load_file(folder / ADAPTER_WEIGHTS)
    edit(tensors)
    save_file(tensors, folder / ADAPTER_WEIGHTS)


def write_demo_adapter(folder, name="idefics3", *, targets=("q_proj", "down_proj"), scale=0.05, **options):
    """Writes an adapter of a demo checkpoint with random factors, which change its answers."""
    model = tiny.load_checkpoint(Path(DEMO[0], name))
    return write_random_adapter(folder, model, targets, scale=scale, **options)
