"""config.json of the checkpoints on the hub: the fields they have, those they leave out, and those that mean nothing.

`REAL` has them at their real size, by the catalog's short names. `TINY_*` are the same layouts at toy size.
"""


def idefics1(width, inner, layers, heads, epsilon, additional):
    """The nested layout, as the four released checkpoints have it."""
    return {
        "_name_or_path": "None",
        "additional_vocab_size": additional,
        "alpha_initializer": "zeros",
        "alpha_type": "float",
        "alphas_initializer_range": 0.0,
        "architectures": ["IdeficsForVisionText2Text"],
        "bos_token_id": 1,
        "cross_layer_activation_function": "swiglu",
        "cross_layer_interval": 4,
        "dropout": 0.0,
        "eos_token_id": 2,
        "ffn_dim": inner,
        "freeze_lm_head": False,
        "freeze_text_layers": False,
        "freeze_text_module_exceptions": [],
        "freeze_vision_layers": False,
        "freeze_vision_module_exceptions": [],
        "hidden_act": "silu",
        "hidden_size": width,
        "initializer_range": 0.02,
        "intermediate_size": inner,
        "max_new_tokens": 100,
        "max_position_embeddings": 2048,
        "max_sequence_length": 2048,
        "model_type": "idefics",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "pad_token_id": 0,
        "perceiver_config": {
            "attention_dropout": 0.0,
            "model_type": "idefics",
            "qk_layer_norms_perceiver": True,
            "resampler_depth": 6,
            "resampler_head_dim": 96,
            "resampler_n_heads": 16,
            "resampler_n_latents": 64,
            "use_resampler": False,  # the one at the top decides
        },
        "qk_layer_norms": True,
        "rms_norm_eps": epsilon,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.32.0.dev0",
        "use_cache": True,
        "use_resampler": True,
        "vision_config": {
            "attention_dropout": 0.0,
            "embed_dim": 1280,
            "hidden_act": "gelu",
            "image_size": 224,
            "initializer_factor": 1.0,
            "initializer_range": 0.02,
            "intermediate_size": 5120,
            "layer_norm_eps": 1e-05,
            "model_type": "idefics",
            "num_attention_heads": 16,
            "num_channels": 3,
            "num_hidden_layers": 32,
            "patch_size": 14,
            "vision_model_name": "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        },
        "vocab_size": 32000,
        "word_embed_proj_dim": width,
    }


# Left behind by the training code; none of it means anything to the model.
DEAD = {
    "_flash_attn_2_enabled": True,
    "_name_or_path": "None",
    "architectures": ["VLlama3ForCausalLM"],
    "is_llama_config": True,
    "neftune_noise_alpha": 0.0,
    "perceiver_config": {
        "_attn_implementation_autoset": False,
        "model_type": "vllama3",
        "resampler_depth": 6,
    },
    "qk_layer_norms": False,
    "rope_interleaved": False,
    "use_resampler": False,
}
SO400M = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "model_type": "idefics3",
    "num_attention_heads": 16,
    "num_hidden_layers": 27,
    "patch_size": 14,
}
LLAMA31 = {
    "factor": 8.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}


def idefics3(text, vision, scale_factor, image_token, *, model_type="idefics3", dtype="bfloat16"):
    """Idefics3 and both generations of SmolVLM: `text` and `vision` hold what the file does, defaults left out."""
    return {
        "architectures": ["Idefics3ForConditionalGeneration"],
        "image_token_id": image_token,
        "model_type": model_type,
        "pad_token_id": 128002,
        "scale_factor": scale_factor,
        "text_config": {**DEAD, "model_type": "llama", "rms_norm_eps": 1e-05, "torch_dtype": dtype, **text},
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        "transformers_version": "4.46.0",
        "use_cache": False,
        "vision_config": {"model_type": "idefics3", **vision},
    }


def small(width, inner, heads, kv_heads, **layers):
    """SmolVLM 256M and 500M; the latter leaves the number of layers out."""
    sizes = {
        "head_dim": 64,
        "hidden_size": width,
        "intermediate_size": inner,
        "max_position_embeddings": 8192,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "pixel_shuffle_factor": 4,
        "rope_theta": 100000,
        "vocab_size": 49280,
    }
    vision = {
        "hidden_size": 768,
        "image_size": 512,
        "max_image_size": {"longest_edge": 512},
        "num_attention_heads": 12,
        "patch_size": 16,
        "size": {"longest_edge": 2048},
        "use_base_siglip": True,
    }
    return sizes | layers, vision


def large(vocabulary, positions):
    """SmolVLM 2.2B: the numbers of heads are left out."""
    text = {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "max_position_embeddings": positions,
        "num_hidden_layers": 24,
        "rope_theta": 273768.0,
        "vocab_size": vocabulary,
    }
    return text, {**SO400M, "image_size": 384, "size": {"longest_edge": 1920}}


IDEFICS3_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rope_scaling": LLAMA31,
    "rope_theta": 500000.0,
    "vocab_size": 128259,
}

REAL = {
    "9b": idefics1(4096, 11008, 32, 32, 1e-6, 2),
    "9b-instruct": idefics1(4096, 11008, 32, 32, 1e-6, 3),
    "80b": idefics1(8192, 22016, 80, 64, 1e-5, 2),
    "80b-instruct": idefics1(8192, 22016, 80, 64, 1e-5, 3),
    "idefics3-8b": idefics3(IDEFICS3_8B, {**SO400M, "image_size": 364}, 2, 128257),
    "smolvlm-256m": idefics3(*small(576, 1536, 9, 3, num_hidden_layers=30), 4, 49190),
    "smolvlm-500m": idefics3(*small(960, 2560, 15, 5), 4, 49190),
    "smolvlm-2.2b": idefics3(*large(49155, 16384), 3, 49153),
    "smolvlm2-256m": idefics3(
        *small(576, 1536, 9, 3, num_hidden_layers=30), 4, 49190, model_type="smolvlm", dtype="float32"
    ),
    "smolvlm2-500m": idefics3(*small(960, 2560, 15, 5), 4, 49190, model_type="smolvlm", dtype="float32"),
    "smolvlm2-2.2b": idefics3(*large(49280, 8192), 3, 49190, model_type="smolvlm", dtype="float32"),
}

TINY_NESTED = {
    **idefics1(32, 48, 4, 2, 1e-6, 3),
    "vocab_size": 20,
    "vision_config": {
        **REAL["9b"]["vision_config"],
        "embed_dim": 16,
        "image_size": 28,
        "intermediate_size": 24,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
    },
}
# As transformers 4.3x saved a fine-tune: what equals a class default is left out of the nested parts.
TINY_DIFFERENCES = {
    **TINY_NESTED,
    "perceiver_config": {"qk_layer_norms_perceiver": True},
    "vision_config": {"embed_dim": 16, "image_size": 28},
}
# As the first revisions had it, and the tiny random checkpoints that tests everywhere use.
TINY_FLAT = {
    **{key: value for key, value in TINY_NESTED.items() if key not in ("vision_config", "perceiver_config")},
    "alpha_type": "vector",
    "architectures": ["IdeficsForCausalLM"],
    "qk_layer_norms_perceiver": True,
    "resampler_depth": 2,
    "resampler_head_dim": 8,
    "resampler_n_heads": 2,
    "resampler_n_latents": 5,
    "vision_embed_dim": 16,
    "vision_image_size": 28,
    "vision_intermediate_size": 24,
    "vision_model_name": "hf-internal-testing/tiny-random-clip",
    "vision_num_attention_heads": 2,
    "vision_num_hidden_layers": 2,
    "vision_patch_size": 7,
}
TINY_VISION = {"hidden_size": 24, "image_size": 28, "num_attention_heads": 2, "patch_size": 7}
# No number of layers in either part, as in SmolVLM-500M.
TINY_SMOLVLM = idefics3(
    {
        "head_dim": 4,
        "hidden_size": 12,
        "intermediate_size": 20,
        "max_position_embeddings": 64,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "rope_theta": 100000,
        "vocab_size": 30,
    },
    TINY_VISION,
    4,
    29,
)
# No numbers of heads, as in SmolVLM-Instruct.
TINY_SMOLVLM_LARGE = idefics3(
    {
        "hidden_size": 64,
        "intermediate_size": 20,
        "num_hidden_layers": 2,
        "rope_theta": 273768.0,
        "vocab_size": 30,
    },
    {**TINY_VISION, "intermediate_size": 24, "num_hidden_layers": 2},
    2,
    29,
)
TINY_IDEFICS3 = idefics3(
    {
        "hidden_size": 32,
        "intermediate_size": 20,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rope_scaling": LLAMA31,
        "rope_theta": 500000.0,
        "vocab_size": 30,
    },
    {**TINY_VISION, "intermediate_size": 24, "num_hidden_layers": 2},
    2,
    28,
)
TINY = {
    "idefics1 nested": TINY_NESTED,
    "idefics1 differences": TINY_DIFFERENCES,
    "idefics1 flat": TINY_FLAT,
    "smolvlm 500m": TINY_SMOLVLM,
    "smolvlm 2.2b": TINY_SMOLVLM_LARGE,
    "smolvlm2": {**TINY_SMOLVLM_LARGE, "model_type": "smolvlm"},
    "idefics3": TINY_IDEFICS3,
    "idefics3 tied": {**TINY_IDEFICS3, "tie_word_embeddings": True},
}
