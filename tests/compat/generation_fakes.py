"""A tiny language model of transformers, and the same model behind our `generate`: one's logits are the other's."""

import torch

from idefics.compat.generation import GenerationMixin
from idefics.compat.generation_config import GenerationConfig
from idefics.compat.kv_cache import KeyValueCache
from idefics.compat.modeling_outputs import CausalLMOutputWithPast
from idefics.compat.padded_attention import LayerKV

VOCAB_SIZE = 24


def make_reference_llama(transformers, **special_ids):
    """Flat enough for beams to cross and for draws to differ, with stop ids in reach."""
    config = transformers.LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.35,
        attn_implementation="eager",
        **{"bos_token_id": None, "eos_token_id": None, "pad_token_id": None, **special_ids},
    )
    torch.manual_seed(2)
    return transformers.LlamaForCausalLM(config).eval()


class WrappedReferenceModel(GenerationMixin):
    """The reference's forward pass behind our `generate`. Counts its calls and the rows of each."""

    def __init__(self, model, cache):
        self.model, self.cache_class, self.calls = model, cache, []
        self.generation_config = GenerationConfig.from_model_config(model.config.to_dict())

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        pixel_values=None,
        image_attention_mask=None,
        labels=None,
        use_cache=True,
        logits_to_keep=0,
        return_dict=True,
        **kwargs,
    ):
        new_inputs = input_ids if inputs_embeds is None else inputs_embeds
        image_mask_shape = None if image_attention_mask is None else tuple(image_attention_mask.shape)
        self.calls.append((tuple(new_inputs.shape[:2]), pixel_values is not None, image_mask_shape))
        past = None
        if past_key_values is not None:
            past = self.cache_class([(layer.keys, layer.values) for layer in past_key_values.layers])
        if position_ids is None:
            position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, -new_inputs.shape[1] :]
        assert position_ids.shape == new_inputs.shape[:2]
        out = self.model(
            input_ids=input_ids,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )
        cache = None
        if use_cache:
            cache = KeyValueCache([LayerKV(layer.keys, layer.values) for layer in out.past_key_values.layers])
        return CausalLMOutputWithPast(
            logits=out.logits,
            past_key_values=cache,
            attentions=out.attentions,
            hidden_states=out.hidden_states,
        )

    __call__ = forward


class TableModel(GenerationMixin):
    """Speaks by a table, without transformers: `logits[last id]` are those of the next."""

    def __init__(self, logits, **settings):
        self.logits = torch.as_tensor(logits, dtype=torch.float32)
        self.generation_config = GenerationConfig(**settings)

    def forward(self, input_ids=None, attention_mask=None, past_key_values=None, use_cache=True, **kwargs):
        length = 0 if past_key_values is None else past_key_values.get_seq_length()
        keys = torch.zeros(len(input_ids), 1, length + input_ids.shape[1], 1)
        cache = KeyValueCache([LayerKV(keys, keys)]) if use_cache else None
        return CausalLMOutputWithPast(logits=self.logits[input_ids[:, -1:]], past_key_values=cache)

    __call__ = forward


def make_chain_table(*ids, vocabulary=VOCAB_SIZE):
    """A table in which each id is followed by the next one, the last by itself."""
    table = torch.zeros(vocabulary, vocabulary)
    for id, following in zip(ids, [*ids[1:], ids[-1]], strict=True):
        table[id, following] = 10
    return table


def make_random_prompts(rows=3, length=6, *, padding=0, seed=0):
    """Ids without the special ones, rows padded on the left by 0, 1, 2, ... where `padding` is asked for."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, VOCAB_SIZE, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    if padding:
        for row in range(rows):
            ids[row, :row], mask[row, :row] = 0, 0
    return ids, mask
