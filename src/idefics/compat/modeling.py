"""What all model classes of the guides have in common, around the house's own modules.

Each class is one of the house's models whose `forward` takes what the guides give. Parameters have the released names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from idefics.compat.configuration import PretrainedConfig
from idefics.compat.generation import GenerationMixin
from idefics.compat.generation_config import GenerationConfig
from idefics.compat.loading import Loading
from idefics.compat.outputs import CausalLMOutputWithPast, ModelOutput
from idefics.compat.reading import Pass
from idefics.errors import BadSetting
from idefics.nn.attention import Attn
from idefics.nn.initial import initialise, with_rows
from idefics.nn.kernels import Attending, give_kernel, kernel_called
from idefics.nn.loss import next_token_loss
from idefics.quant import footprint


class Asked(NamedTuple):
    """What one call wants back: its own words, else the config's."""

    use_cache: bool
    output_attentions: bool
    output_hidden_states: bool
    return_dict: bool


class PreTrainedModel(Loading, Attending):
    """The manners of every model class.

    Attributes:
        config: the guides' kind; what the house made of it is `config.settings()`.
        attn_implementation: "sdpa", "eager" or "flash_attention_2".
        base_model_prefix: the attribute under which a model with a head keeps everything else.
    """

    config: PretrainedConfig
    config_class: ClassVar[type[PretrainedConfig]]
    base_model_prefix: ClassVar[str] = "model"

    def _begin(self, config: PretrainedConfig) -> None:
        """The last words of every constructor: first weights, and how attention is computed."""
        self.config = config
        self.generation_config = GenerationConfig.from_model_config(config.to_dict())
        self.name_or_path, self.is_quantized = "", False
        self.set_attn_implementation("sdpa")
        initialise(self, self.deviation)

    def decode(self, x: Tensor, positions: Tensor, attn: Attn) -> Tensor:
        """The house's own `forward`, which the classes override: packed tokens, (N, D) and (N,) -> (N, D)."""
        raise NotImplementedError

    @property
    def deviation(self) -> float:
        """Standard deviation of first weights."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Where the first parameter lies."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the first parameter that is a floating-point number."""
        return next(weight.dtype for weight in self.parameters() if weight.is_floating_point())

    @property
    def base_model(self) -> nn.Module:
        """Everything but the head."""
        return self

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """How many numbers the parameters have, tied ones counted once."""
        embeddings = (
            {
                id(w)
                for m in self.modules()
                if isinstance(m, nn.Embedding)
                for w in m.parameters(recurse=False)
            }
            if exclude_embeddings
            else set()
        )
        return sum(
            weight.numel()
            for weight in self.parameters()
            if id(weight) not in embeddings and (weight.requires_grad or not only_trainable)
        )

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Bytes that it takes, in however many bits weights are kept; of buffers too unless told otherwise."""
        return footprint(self, return_buffers)

    # Attention

    def set_attn_implementation(self, attn_implementation: str) -> None:
        """Chooses how attention is computed.

        Raises:
            BadSetting: no such implementation, or flash attention where it cannot be: it needs a CUDA device of
                compute capability 8.0 (the requirement of FlashAttention-2) and 16-bit weights.
        """
        give_kernel(self, kernel_called(attn_implementation, self.dtype, torch.device("cuda")))
        self.attn_implementation = attn_implementation

    # Embeddings

    def get_input_embeddings(self) -> nn.Embedding:
        raise NotImplementedError

    def get_output_embeddings(self) -> nn.Linear | None:
        """The head; None in a model without one."""
        return None

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        raise NotImplementedError

    def tie_weights(self) -> None:
        """Head and embedding become one, where the config says so."""
        if self.config.tie_word_embeddings and (head := self.get_output_embeddings()) is not None:
            head.weight = self.get_input_embeddings().weight

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> nn.Embedding:
        """Gives the vocabulary another size; ids that stay keep their meaning.

        Args:
            new_num_tokens: of the whole vocabulary, additional tokens included; None: as many as there are.
            pad_to_multiple_of: rounds it up.
            mean_resizing: new rows are the mean of the old ones; else they are drawn as first weights are.

        Returns:
            The input embeddings.
        """
        if new_num_tokens is not None or pad_to_multiple_of is not None:
            step = pad_to_multiple_of or 1
            size = self.vocabulary if new_num_tokens is None else new_num_tokens
            self._resize(-(-size // step) * step, like_mean=mean_resizing)
            self.tie_weights()
        return self.get_input_embeddings()

    @property
    def vocabulary(self) -> int:
        """How many ids there are, those of additional tokens included."""
        return self.get_input_embeddings().num_embeddings

    def _resize(self, size: int, *, like_mean: bool) -> None:
        raise NotImplementedError

    def _resize_table(self, table: nn.Module, rows: int, *, like_mean: bool) -> None:
        """An embedding or a head gets so many rows."""
        weight = cast(Tensor, table.weight)
        table.weight = with_rows(weight, rows, like_mean=like_mean, deviation=self.deviation)
        if isinstance(table, nn.Embedding):
            table.num_embeddings = rows
        else:
            cast(nn.Linear, table).out_features = rows

    def enable_input_require_grads(self) -> None:
        """Embeddings get a gradient though their weights are frozen: adapters with checkpointing need it."""

        def require(module: nn.Module, inputs: Any, output: Tensor) -> None:
            output.requires_grad_(True)

        self._require_grads_hook = self.get_input_embeddings().register_forward_hook(require)

    def disable_input_require_grads(self) -> None:
        """Undoes `enable_input_require_grads`."""
        self._require_grads_hook.remove()

    # Gradient checkpointing

    def _blocks(self) -> Iterator[nn.Module]:
        """The modules whose activations gradient checkpointing computes again: every member of a list of layers."""
        for module in self.modules():
            if isinstance(module, nn.ModuleList):
                yield from (block for block in module if not isinstance(block, nn.ModuleList))

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None
    ) -> None:
        """In training, activations of blocks are computed again instead of kept (arXiv 1604.06174).

        Args:
            gradient_checkpointing_kwargs: for `torch.utils.checkpoint.checkpoint`.
        """
        self.gradient_checkpointing_disable()
        options = {"use_reentrant": False, **(gradient_checkpointing_kwargs or {})}
        for block in self._blocks():
            block.forward = partial(_checkpointed, block, block.forward, options)

    def gradient_checkpointing_disable(self) -> None:
        """Activations are kept again."""
        for block in self._blocks():
            if _is_checkpointed(block):
                block.forward = block.forward.args[1]  # type: ignore

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether `gradient_checkpointing_enable` holds."""
        return any(_is_checkpointed(block) for block in self._blocks())

    # What a call wants

    def _asked(
        self,
        use_cache: bool | None,
        output_attentions: bool | None,
        output_hidden_states: bool | None,
        return_dict: bool | None,
    ) -> Asked:
        config = self.config
        # A cache would keep what checkpointing shall not keep.
        caches = config.use_cache and not (self.training and self.is_gradient_checkpointing)
        return Asked(
            caches if use_cache is None else use_cache,
            config.output_attentions if output_attentions is None else output_attentions,
            config.output_hidden_states if output_hidden_states is None else output_hidden_states,
            config.return_dict if return_dict is None else return_dict,
        )


class ModelWithHead(PreTrainedModel, GenerationMixin):
    """A model that speaks: logits, a loss, and `generate`."""

    lm_head: nn.Linear
    output_class: ClassVar[type[CausalLMOutputWithPast]]

    @property
    def base_model(self) -> nn.Module:
        return self.get_submodule(self.base_model_prefix)

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.lm_head = new_embeddings

    def can_generate(self) -> bool:
        return True

    def _answer(
        self,
        read: Pass,
        asked: Asked,
        image_hidden_states: Tensor | None,
        labels: Tensor | None,
        attention_mask: Tensor | None,
        logits_to_keep: int,
    ) -> Any:
        """Head and loss. Of `logits_to_keep` last tokens, or of all where it is 0."""
        if labels is not None and logits_to_keep:
            raise BadSetting(
                f"logits_to_keep is {logits_to_keep}, but labels need the logits of all tokens: give 0"
            )
        logits = self.lm_head(read.hidden[:, -logits_to_keep:])
        out = self.output_class(
            loss=None if labels is None else next_token_loss(logits, labels, attention_mask),
            logits=logits,
            past_key_values=read.cache,
            hidden_states=read.states,
            attentions=read.weights,
            image_hidden_states=image_hidden_states,
        )
        return told(out, asked)


def told(out: ModelOutput, asked: Asked) -> Any:
    """The output as the caller wants it: by names, or the tuple of what is there."""
    return out if asked.return_dict else out.to_tuple()


def _checkpointed(
    block: nn.Module, forward: Callable[..., Any], options: dict[str, Any], *inputs: Any
) -> Any:
    if block.training and torch.is_grad_enabled():
        return checkpoint(forward, *inputs, **options)
    return forward(*inputs)


def _is_checkpointed(block: nn.Module) -> bool:
    return isinstance(block.forward, partial) and block.forward.func is _checkpointed
