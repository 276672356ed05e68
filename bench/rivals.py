"""transformers and llama.cpp on the weights that ours has, called as their own guides do."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from checkpoints import CACHE
from harness import Run
from idefics.prompt import Prompt


class Transformers:
    """`generate` of transformers in one dtype; `cache` is the word for its kind of cache ("static")."""

    def __init__(
        self, folder: Path, dtype: torch.dtype, *, device: str = "cpu", cache: str | None = None
    ) -> None:
        from transformers import AutoModelForImageTextToText, logging

        logging.set_verbosity_error()
        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype).eval().to(device)
        self.device, self.dtype, self.cache = device, dtype, cache

    def inputs(self, prompts: list[Prompt]) -> dict[str, torch.Tensor]:
        """Prompts of one length, each with as many frames as the others, in the words of `forward`."""
        ids = torch.tensor([prompt.ids for prompt in prompts])
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        frames = [
            np.stack([frame for tiles in prompt.pictures for frame in tiles.frames])
            for prompt in prompts
            if prompt.pictures
        ]
        if frames:
            given["pixel_values"] = torch.from_numpy(np.stack(frames)).to(self.dtype)
        if frames and self.model.config.model_type == "idefics":
            sees, pictures = torch.tensor([prompt.sees for prompt in prompts]), len(prompts[0].pictures)
            given["image_attention_mask"] = (sees[..., None] == torch.arange(pictures)).long()
        elif self.model.config.model_type == "idefics":  # it asks for pictures always: one that no token sees
            side = self.model.config.vision_config.image_size
            given["pixel_values"] = torch.zeros(len(prompts), 1, 3, side, side, dtype=self.dtype)
            given["image_attention_mask"] = torch.zeros(*ids.shape, 1, dtype=torch.long)
        return {name: tensor.to(self.device) for name, tensor in given.items()}

    @classmethod
    def hollow(cls, folder: Path, dtype: torch.dtype, device: str) -> Self:
        """With weights drawn where they lie: a folder without them is enough."""
        from transformers import AutoConfig, AutoModelForImageTextToText, logging

        logging.set_verbosity_error()
        made = cls.__new__(cls)
        with torch.device(device):
            model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder), dtype=dtype)
        made.model, made.device, made.dtype, made.cache = model.eval(), device, dtype, None
        return made

    @torch.inference_mode()
    def run(self, prompts: list[Prompt], tokens: int) -> Run:
        """Exactly `tokens` greedy tokens for each prompt; frames are at hand already, as for ours."""
        given, stamps = self.inputs(prompts), []

        def stamp(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            ids[0, -1].item()  # on a GPU a token is there when the host has it
            stamps.append(time.perf_counter())
            return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

        began = time.perf_counter()
        self.model.generate(
            **given,
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            do_sample=False,
            use_cache=True,
            stopping_criteria=[stamp],
            **({"cache_implementation": self.cache} if self.cache else {}),
        )
        return Run(stamps[0] - began, stamps[-1] - stamps[0], len(prompts) * (len(stamps) - 1))

    @torch.inference_mode()
    def score(self, prompt: Prompt, ending: list[int]) -> float:
        """The log-probability of an ending after a prompt: all of it in one pass, as a loop over labels does."""
        whole = (*prompt.ids, *ending)
        sees = prompt.sees + (len(prompt.pictures) - 1,) * len(ending)
        given = self.inputs([Prompt(whole, prompt.pictures, prompt.places, sees)])
        logits = self.model(**given).logits[0, len(prompt) - 1 : -1].float()
        chosen = logits.log_softmax(-1).gather(1, torch.tensor([ending], device=logits.device).T)
        return chosen.sum().item()


class LlamaCpp:
    """llama.cpp through its C interface: one call a step, the most likely id taken from the logits."""

    def __init__(self, file: Path, threads: int, context: int = 2048) -> None:
        import llama_cpp

        self.api = llama_cpp
        llama_cpp.llama_log_set(_silent(), ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(
            str(file).encode(), llama_cpp.llama_model_default_params()
        )
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = context, context, 512
        settings.n_threads = settings.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, settings)
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.bytes = file.stat().st_size

    def logits(self, ids: list[int]) -> np.ndarray:
        """(V,) float32: what it says after some ids more; the array is its own, overwritten by the next call."""
        held = (ctypes.c_int32 * len(ids))(*ids)
        if self.api.llama_decode(self.context, self.api.llama_batch_get_one(held, len(ids))):
            raise RuntimeError("llama.cpp could not read the ids")
        return np.ctypeslib.as_array(self.api.llama_get_logits_ith(self.context, -1), (self.vocabulary,))

    def forget(self) -> None:
        """Empties the cache."""
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)

    def run(self, prompts: list[Prompt], tokens: int) -> Run:
        """Exactly `tokens` greedy tokens after one prompt of text."""
        (prompt,) = prompts
        self.forget()
        stamps, ids = [time.perf_counter()], list(prompt.ids)
        for _ in range(tokens):
            ids = [int(self.logits(ids).argmax())]
            stamps.append(time.perf_counter())
        return Run(stamps[1] - stamps[0], stamps[-1] - stamps[1], tokens - 1)


@cache
def _silent() -> Callable[..., None]:
    """What takes its log and drops it; kept, for C calls it later."""
    import llama_cpp

    return llama_cpp.llama_log_callback(lambda *_: None)


def gguf(folder: Path, kind: str) -> Path:
    """The decoder of a SmolVLM as a GGUF file of a kind ("f16", "q8_0", "q4_0"), written once.

    llama.cpp's own tool quantises, as it does for its users: at widths that are no multiple of 256 its q4_0 keeps the
    head in q8_0.
    """
    file = CACHE / f"{folder.name}-{kind}.gguf"
    if file.exists():
        return file
    part = file.with_suffix(".part")
    if kind == "f16":
        _write_f16(folder, part)
    else:
        import llama_cpp

        settings = llama_cpp.llama_model_quantize_default_params()
        settings.ftype = {
            "q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
            "q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
        }[kind]
        source, wanted = str(gguf(folder, "f16")).encode(), str(part).encode()
        if llama_cpp.llama_model_quantize(source, wanted, ctypes.byref(settings)):
            raise RuntimeError(f"llama.cpp could not write {file}")
    part.rename(file)
    return file


NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def _write_f16(folder: Path, file: Path) -> None:
    from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
    from safetensors import safe_open

    from idefics.models import read_checkpoint

    text = read_checkpoint(folder).config.text
    writer = GGUFWriter(file, "llama")
    writer.add_context_length(text.max_positions)
    writer.add_embedding_length(text.width)
    writer.add_block_count(text.layers)
    writer.add_feed_forward_length(text.inner)
    writer.add_head_count(text.heads)
    writer.add_head_count_kv(text.kv_heads)
    writer.add_key_length(text.head_size)
    writer.add_value_length(text.head_size)
    writer.add_rope_dimension_count(text.head_size)
    writer.add_rope_freq_base(text.rope.theta)
    writer.add_layer_norm_rms_eps(text.norm_epsilon)
    writer.add_vocab_size(text.vocabulary)
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(LlamaFileType.MOSTLY_F16)
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as weights:
            for name in weights.keys():  # noqa: SIM118  # not a dict
                called = _called(name)
                if not called:
                    continue
                tensor = weights.get_tensor(name).float()
                heads = {"attn_q": text.heads, "attn_k": text.kv_heads}.get(called.split(".")[-2], 0)
                if heads:  # its rotation takes neighbours for a pair, ours the two halves of a head
                    tensor = (
                        tensor.unflatten(0, (heads, 2, text.head_size // 2)).transpose(1, 2).flatten(0, 2)
                    )
                data = tensor.numpy() if tensor.ndim == 1 else tensor.half().numpy()
                kind = GGMLQuantizationType.F32 if tensor.ndim == 1 else GGMLQuantizationType.F16
                writer.add_tensor(called, np.ascontiguousarray(data), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _called(name: str) -> str:
    """What GGUF calls a weight of the decoder; "" for any other."""
    outside = {
        "model.text_model.embed_tokens.weight": "token_embd.weight",
        "model.text_model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    if name in outside:
        return outside[name]
    prefix = "model.text_model.layers."
    if not name.startswith(prefix):
        return ""
    number, _, rest = name.removeprefix(prefix).partition(".")
    return f"blk.{number}.{NAMES[rest.removesuffix('.weight')]}.weight"
