"""Embeddings and head of a model: how they are read and replaced, and how the vocabulary gets another size."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from idefics.compat.configuration import PretrainedConfig
from idefics.compat.training import resize_rows


class EmbeddingAccessMixin(nn.Module):
    """The tables of a model's tokens."""

    config: PretrainedConfig

    @property
    def init_std(self) -> float:
        """Standard deviation of first weights."""
        raise NotImplementedError

    def get_input_embeddings(self) -> nn.Embedding:
        """The table of tokens."""
        raise NotImplementedError

    def get_output_embeddings(self) -> nn.Linear | None:
        """The head; None in a model without one."""
        return None

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replaces the table of tokens."""
        raise NotImplementedError

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        """Head and embedding become one, where the config says so. Arguments of transformers are of no effect."""
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
            size = self.total_vocab_size if new_num_tokens is None else new_num_tokens
            self._resize_vocabulary(-(-size // step) * step, mean_resizing=mean_resizing)
            self.tie_weights()
        return self.get_input_embeddings()

    @property
    def total_vocab_size(self) -> int:
        """How many ids there are, those of additional tokens included."""
        return self.get_input_embeddings().num_embeddings

    def _resize_vocabulary(self, size: int, *, mean_resizing: bool) -> None:
        raise NotImplementedError

    def _resize_rows(self, table: nn.Module, num_rows: int, *, mean_resizing: bool) -> None:
        """An embedding or a head gets so many rows."""
        weight = cast(Tensor, table.weight)
        table.weight = resize_rows(weight, num_rows, init_with_mean=mean_resizing, std=self.init_std)
        if isinstance(table, nn.Embedding):
            table.num_embeddings = num_rows
        else:
            cast(nn.Linear, table).out_features = num_rows

    def enable_input_require_grads(self) -> None:
        """Embeddings get a gradient though their weights are frozen: adapters with checkpointing need it."""

        def require(module: nn.Module, inputs: Any, output: Tensor) -> None:
            output.requires_grad_(True)

        self._require_grads_hook = self.get_input_embeddings().register_forward_hook(require)

    def disable_input_require_grads(self) -> None:
        """Undoes `enable_input_require_grads`."""
        self._require_grads_hook.remove()
