"""transformers and llama.cpp on the same weights, called as their documentation shows."""

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
from harness import RunTiming
from idefics.prompt import Prompt


class TransformersBaseline:
    """`generate` of transformers in one dtype, optionally with another `cache_implementation` ("static")."""

    def __init__(
        self,
        folder: Path,
        dtype: torch.dtype,
        *,
        device: str = "cpu",
        cache_implementation: str | None = None,
    ) -> None:
        from transformers import AutoModelForImageTextToText, logging

        logging.set_verbosity_error()
        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype).eval().to(device)
        self.device, self.dtype, self.cache_implementation = device, dtype, cache_implementation

    def model_inputs(self, prompts: list[Prompt]) -> dict[str, torch.Tensor]:
        """The keyword arguments of `forward` for prompts of equal length and number of frames."""
        ids = torch.tensor([prompt.ids for prompt in prompts])
        model_kwargs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        frames = [
            np.stack([frame for tiles in prompt.pictures for frame in tiles.frames])
            for prompt in prompts
            if prompt.pictures
        ]
        if frames:
            model_kwargs["pixel_values"] = torch.from_numpy(np.stack(frames)).to(self.dtype)
        if frames and self.model.config.model_type == "idefics":
            image_index, num_images = (
                torch.tensor([prompt.image_index for prompt in prompts]),
                len(prompts[0].pictures),
            )
            model_kwargs["image_attention_mask"] = (image_index[..., None] == torch.arange(num_images)).long()
        elif self.model.config.model_type == "idefics":  # pictures are required: one that no token attends to
            image_size = self.model.config.vision_config.image_size
            model_kwargs["pixel_values"] = torch.zeros(
                len(prompts), 1, 3, image_size, image_size, dtype=self.dtype
            )
            model_kwargs["image_attention_mask"] = torch.zeros(*ids.shape, 1, dtype=torch.long)
        return {name: tensor.to(self.device) for name, tensor in model_kwargs.items()}

    @classmethod
    def from_config(cls, folder: Path, dtype: torch.dtype, device: str) -> Self:
        """With random weights, created on the device; the folder needs no weights."""
        from transformers import AutoConfig, AutoModelForImageTextToText, logging

        logging.set_verbosity_error()
        baseline = cls.__new__(cls)
        with torch.device(device):
            model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder), dtype=dtype)
        baseline.model, baseline.device, baseline.dtype, baseline.cache_implementation = (
            model.eval(),
            device,
            dtype,
            None,
        )
        return baseline

    @torch.inference_mode()
    def run(self, prompts: list[Prompt], num_tokens: int) -> RunTiming:
        """Generates exactly `num_tokens` greedy tokens for each prompt; frames are preprocessed already."""
        model_kwargs, token_times = self.model_inputs(prompts), []

        def record_token_time(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            ids[0, -1].item()  # on a GPU a token is there when the host has it
            token_times.append(time.perf_counter())
            return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

        started = time.perf_counter()
        self.model.generate(
            **model_kwargs,
            min_new_tokens=num_tokens,
            max_new_tokens=num_tokens,
            do_sample=False,
            use_cache=True,
            stopping_criteria=[record_token_time],
            **({"cache_implementation": self.cache_implementation} if self.cache_implementation else {}),
        )
        return RunTiming(
            token_times[0] - started, token_times[-1] - token_times[0], len(prompts) * (len(token_times) - 1)
        )

    @torch.inference_mode()
    def continuation_logprob(self, prompt: Prompt, continuation: list[int]) -> float:
        """The log-probability of a continuation after a prompt, in one forward pass, as a loop over labels does."""
        all_ids = (*prompt.ids, *continuation)
        image_index = prompt.image_index + (len(prompt.pictures) - 1,) * len(continuation)
        model_kwargs = self.model_inputs(
            [Prompt(all_ids, prompt.pictures, prompt.image_token_positions, image_index)]
        )
        logits = self.model(**model_kwargs).logits[0, len(prompt) - 1 : -1].float()
        token_logprobs = logits.log_softmax(-1).gather(
            1, torch.tensor([continuation], device=logits.device).T
        )
        return token_logprobs.sum().item()


class LlamaCppBaseline:
    """llama.cpp through its C API: one call a step, greedy."""

    def __init__(self, gguf_path: Path, num_threads: int, max_context: int = 2048) -> None:
        import llama_cpp

        self.api = llama_cpp
        llama_cpp.llama_log_set(_null_log_callback(), ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(
            str(gguf_path).encode(), llama_cpp.llama_model_default_params()
        )
        context_params = llama_cpp.llama_context_default_params()
        context_params.n_ctx, context_params.n_batch, context_params.n_ubatch = max_context, max_context, 512
        context_params.n_threads = context_params.n_threads_batch = num_threads
        self.context = llama_cpp.llama_init_from_model(self.model, context_params)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.file_bytes = gguf_path.stat().st_size

    def next_token_logits(self, ids: list[int]) -> np.ndarray:
        """Appends ids and returns the logits, (V,) float32; the array is overwritten by the next call."""
        id_array = (ctypes.c_int32 * len(ids))(*ids)
        if self.api.llama_decode(self.context, self.api.llama_batch_get_one(id_array, len(ids))):
            raise RuntimeError("llama.cpp could not read the ids")
        return np.ctypeslib.as_array(self.api.llama_get_logits_ith(self.context, -1), (self.vocab_size,))

    def clear_kv_cache(self) -> None:
        """Empties the KV cache."""
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)

    def run(self, prompts: list[Prompt], num_tokens: int) -> RunTiming:
        """Generates exactly `num_tokens` greedy tokens after one text prompt."""
        (prompt,) = prompts
        self.clear_kv_cache()
        token_times, ids = [time.perf_counter()], list(prompt.ids)
        for _ in range(num_tokens):
            ids = [int(self.next_token_logits(ids).argmax())]
            token_times.append(time.perf_counter())
        return RunTiming(token_times[1] - token_times[0], token_times[-1] - token_times[1], num_tokens - 1)


@cache
def _null_log_callback() -> Callable[..., None]:
    """A callback that drops log lines; cached, because C calls it later."""
    import llama_cpp

    return llama_cpp.llama_log_callback(lambda *_: None)


def write_gguf(folder: Path, quant_type: str) -> Path:
    """The decoder of a SmolVLM as a GGUF file ("f16", "q8_0", "q4_0"), written once.

    llama.cpp's own tool quantises; at widths that are no multiple of 256 its q4_0 keeps the head in q8_0.
    """
    file = CACHE / f"{folder.name}-{quant_type}.gguf"
    if file.exists():
        return file
    partial_file = file.with_suffix(".part")
    if quant_type == "f16":
        _write_f16_gguf(folder, partial_file)
    else:
        import llama_cpp

        quantize_params = llama_cpp.llama_model_quantize_default_params()
        quantize_params.ftype = {
            "q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
            "q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
        }[quant_type]
        source, target = str(write_gguf(folder, "f16")).encode(), str(partial_file).encode()
        if llama_cpp.llama_model_quantize(source, target, ctypes.byref(quantize_params)):
            raise RuntimeError(f"llama.cpp could not write {file}")
    partial_file.rename(file)
    return file


GGUF_NAME_BY_MODULE = {
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


def _write_f16_gguf(folder: Path, file: Path) -> None:
    from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
    from safetensors import safe_open

    from idefics.models import read_checkpoint

    text = read_checkpoint(folder).config.text
    writer = GGUFWriter(file, "llama")
    writer.add_context_length(text.max_positions)
    writer.add_embedding_length(text.hidden_size)
    writer.add_block_count(text.num_layers)
    writer.add_feed_forward_length(text.intermediate_size)
    writer.add_head_count(text.num_heads)
    writer.add_head_count_kv(text.num_kv_heads)
    writer.add_key_length(text.head_size)
    writer.add_value_length(text.head_size)
    writer.add_rope_dimension_count(text.head_size)
    writer.add_rope_freq_base(text.rope.theta)
    writer.add_layer_norm_rms_eps(text.norm_epsilon)
    writer.add_vocab_size(text.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(LlamaFileType.MOSTLY_F16)
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as weights:
            for name in weights.keys():  # noqa: SIM118  # not a dict
                gguf_name = _gguf_tensor_name(name)
                if not gguf_name:
                    continue
                tensor = weights.get_tensor(name).float()
                num_heads = {"attn_q": text.num_heads, "attn_k": text.num_kv_heads}.get(
                    gguf_name.split(".")[-2], 0
                )
                if num_heads:  # GGUF rotates neighbouring pairs, the checkpoint the two halves of a head
                    tensor = (
                        tensor.unflatten(0, (num_heads, 2, text.head_size // 2)).transpose(1, 2).flatten(0, 2)
                    )
                data = tensor.numpy() if tensor.ndim == 1 else tensor.half().numpy()
                ggml_type = GGMLQuantizationType.F32 if tensor.ndim == 1 else GGMLQuantizationType.F16
                writer.add_tensor(gguf_name, np.ascontiguousarray(data), raw_dtype=ggml_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _gguf_tensor_name(name: str) -> str:
    """The GGUF name of a decoder weight; "" for any other."""
    gguf_name_by_key = {
        "model.text_model.embed_tokens.weight": "token_embd.weight",
        "model.text_model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    if name in gguf_name_by_key:
        return gguf_name_by_key[name]
    prefix = "model.text_model.layers."
    if not name.startswith(prefix):
        return ""
    layer_index, _, rest = name.removeprefix(prefix).partition(".")
    return f"blk.{layer_index}.{GGUF_NAME_BY_MODULE[rest.removesuffix('.weight')]}.weight"
