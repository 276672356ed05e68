"""Access to the embedding and the head of a model, and resizing of its vocabulary."""

from __future__ import annotations

from typing import Any, ClassVar, cast

from torch import Tensor, nn

from idefics.compat.configuration import PretrainedConfig
from idefics.compat.training import resize_rows
from idefics.models.vision_language_model import ModelBackbone


class EmbeddingAccessMixin(nn.Module):
    """Reads, replaces, ties and resizes the embedding and the head of a model.

    Attributes:
        base_model_prefix: the attribute that holds everything but the head; "" in a model without a head.
    """

    config: PretrainedConfig
    base_model_prefix: ClassVar[str] = "model"

    @property
    def base_model(self) -> ModelBackbone:
        """Everything but the head; in a model without a head, itself."""
        return cast(ModelBackbone, self.get_submodule(self.base_model_prefix))

    @property
    def init_std(self) -> float:
        """Standard deviation of initial weights: `initializer_range` of the decoder's config."""
        std: float = vars(self.config.get_text_config())["initializer_range"]
        return std

    def get_input_embeddings(self) -> nn.Embedding:
        """The embedding of the token ids."""
        embedding: nn.Embedding = self.base_model.decoder.embed_tokens
        return embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replaces the embedding of the token ids by another one."""
        self.base_model.decoder.embed_tokens = value

    def get_output_embeddings(self) -> nn.Linear | None:
        """The head of the model; None in a model without a head."""
        return None

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        """Ties the head to the embedding where the config says so. Arguments of transformers have no effect."""
        if self.config.tie_word_embeddings and (head := self.get_output_embeddings()) is not None:
            head.weight = self.get_input_embeddings().weight

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> nn.Embedding:
        """Resizes the vocabulary; the rows of remaining ids keep their weights.

        Args:
            new_num_tokens: the new size, additional tokens included; None: the present one.
            pad_to_multiple_of: the size is rounded up to a multiple of it.
            mean_resizing: new rows are the mean of the old ones; otherwise they are initialised randomly.

        Returns:
            The embedding.
        """
        if new_num_tokens is not None or pad_to_multiple_of is not None:
            step = pad_to_multiple_of or 1
            size = self.total_vocab_size if new_num_tokens is None else new_num_tokens
            self._resize_vocabulary(-(-size // step) * step, mean_resizing=mean_resizing)
            self.tie_weights()
        return self.get_input_embeddings()

    @property
    def total_vocab_size(self) -> int:
        """The number of tokens, additional ones included."""
        return self.get_input_embeddings().num_embeddings

    def _resize_vocabulary(self, size: int, *, mean_resizing: bool) -> None:
        """Resizes the embedding and the head to `size` tokens, and updates `vocab_size` of the config."""
        for table in (self.get_input_embeddings(), self.get_output_embeddings()):
            if table is not None:
                self._resize_rows(table, size, mean_resizing=mean_resizing)
        self.config.get_text_config().update({"vocab_size": size})

    def _resize_rows(self, table: nn.Module, num_rows: int, *, mean_resizing: bool) -> None:
        """Resizes the weight of an embedding or a head; `mean_resizing` as in `resize_token_embeddings`."""
        weight = cast(Tensor, table.weight)
        table.weight = resize_rows(weight, num_rows, init_with_mean=mean_resizing, std=self.init_std)
        setattr(table, "num_embeddings" if isinstance(table, nn.Embedding) else "out_features", num_rows)

    def enable_input_require_grads(self) -> None:
        """Makes the outputs of a frozen embedding require gradients, as adapters with checkpointing need it."""

        def require(module: nn.Module, inputs: Any, output: Tensor) -> None:
            output.requires_grad_(True)

        self._require_grads_hook = self.get_input_embeddings().register_forward_hook(require)

    def disable_input_require_grads(self) -> None:
        """Reverts `enable_input_require_grads`."""
        self._require_grads_hook.remove()
