"""The small files of every released checkpoint, field for field: what they state, what they leave out, what is dead.

`RELEASED` has them at their real size, by the catalog's short names. `FLAT_CONFIG` and
`CONFIG_WITH_DIFFERENCES_ONLY` are the two older layouts of Idefics's config.json.
`shrink_config` makes a config.json tiny and keeps its set of fields.
Where a file itself could not be seen, its fields are those of its nearest relative.
"""

from dataclasses import dataclass, field

FAKE_IMAGE_TOKEN, IMAGE_TOKEN, END_OF_UTTERANCE = "<fake_token_around_image>", "<image>", "<end_of_utterance>"


@dataclass(frozen=True, kw_only=True)
class ReleasedCheckpoint:
    """The files of one checkpoint other than its weights.

    Attributes:
        config, generation_config, preprocessor, processor, tokenizer: config.json, generation_config.json,
            preprocessor_config.json, processor_config.json and tokenizer_config.json; {} where there is none.
        template: the chat template; "" where no file has one.
        template_in: the file that holds it.
        token_by_id: what the ids in these files stand for.
        spare_tokens: tokens of tokenizer.json that the model has no row for.
        shards: how many files the weights are in.
    """

    config: dict
    generation_config: dict
    preprocessor: dict
    processor: dict = field(default_factory=dict)
    tokenizer: dict
    template: str = ""
    template_in: str = "chat_template.json"
    token_by_id: dict
    spare_tokens: int = 0
    shards: int = 1


# --- Idefics

CLIP_PREPROCESSOR = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_num_channels": 3,
    "image_processor_type": "IdeficsImageProcessor",
    "image_size": 224,
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "processor_class": "IdeficsProcessor",
}


def make_idefics(width, inner, layers, heads, epsilon, additional, *, shards):
    """Idefics: the nested layout of config.json; no chat template, no processor_config.json."""
    config = {
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
    special = [FAKE_IMAGE_TOKEN, IMAGE_TOKEN, END_OF_UTTERANCE][:additional]
    return ReleasedCheckpoint(
        config=config,
        generation_config={
            "_from_model_config": True,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        },
        preprocessor=CLIP_PREPROCESSOR,
        tokenizer={
            "additional_special_tokens": special,
            "bos_token": "<s>",
            "clean_up_tokenization_spaces": False,
            "eos_token": "</s>",
            "model_max_length": 2048,
            "pad_token": "<unk>",
            "processor_class": "IdeficsProcessor",
            "tokenizer_class": "LlamaTokenizer",
            "unk_token": "<unk>",
        },
        token_by_id={0: "<unk>", 1: "<s>", 2: "</s>"} | dict(enumerate(special, 32000)),
        shards=shards,
    )


# --- Idefics 2 and later


def make_chat_template(start="", *, video=False):
    """The chat template of the later families; the first word of a picture's turn stands right behind the colon."""
    video_part = "{% elif line['type'] == 'video' %}{{ '<video>' }}" if video else ""
    return (
        start + "{% for message in messages %}{{message['role'] | capitalize}}"
        "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
        "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
        "{% elif line['type'] == 'image' %}{{ '<image>' }}" + video_part + "{% endif %}{% endfor %}"
        "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
    )


def make_preprocessor_config(kind, size, **more):
    """preprocessor_config.json: everything is said."""
    return {
        "do_convert_rgb": True,
        "do_image_splitting": True,
        "do_normalize": True,
        "do_pad": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": f"{kind}ImageProcessor",
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": f"{kind}Processor",
        "rescale_factor": 0.00392156862745098,
        "size": size,
        **more,
    }


def make_idefics2(vocabulary, *, instruct=True):
    """Idefics 2: config.json states sizes of the tower and little else; the rest is class defaults."""
    perceiver = {"model_type": "idefics2"}
    text = {
        "max_position_embeddings": 32768,
        "model_type": "mistral",
        "pad_token_id": 0,
        "rms_norm_eps": 1e-05,
        "vocab_size": vocabulary,
    }
    ends = (
        {"bad_words_ids": [[32000], [32001]], "eos_token_id": [2, 32002]} if instruct else {"eos_token_id": 2}
    )
    splits = {"do_image_splitting": instruct}
    return ReleasedCheckpoint(
        config={
            "architectures": ["Idefics2ForConditionalGeneration"],
            "image_token_id": 32001,
            "model_type": "idefics2",
            "perceiver_config": perceiver if instruct else {**perceiver, "qk_layer_norms": False},
            "text_config": text,
            "tie_word_embeddings": False,
            "torch_dtype": "float32",
            "transformers_version": "4.40.0",
            "vision_config": {
                "hidden_size": 1152,
                "image_size": 980,
                "intermediate_size": 4304,
                "model_type": "idefics2",
                "num_attention_heads": 16,
                "num_hidden_layers": 27,
                "patch_size": 14,
            },
        },
        generation_config={"_from_model_config": True, "bos_token_id": 1, "pad_token_id": 0, **ends},
        preprocessor=make_preprocessor_config(
            "Idefics2", {"longest_edge": 980, "shortest_edge": 378}, resample=2, **splits
        ),
        processor={"image_seq_len": 64, "processor_class": "Idefics2Processor"},
        tokenizer={
            "additional_special_tokens": [FAKE_IMAGE_TOKEN, IMAGE_TOKEN, END_OF_UTTERANCE],
            "bos_token": "<s>",
            "clean_up_tokenization_spaces": False,
            "eos_token": "</s>",
            "legacy": False,
            "model_max_length": 1e30,
            "pad_token": "<unk>",
            "processor_class": "Idefics2Processor",
            "tokenizer_class": "LlamaTokenizer",
            "unk_token": "<unk>",
        },
        template=make_chat_template() if instruct else "",
        template_in="processor_config.json",
        token_by_id={
            0: "<unk>",
            1: "<s>",
            2: "</s>",
            32000: FAKE_IMAGE_TOKEN,
            32001: IMAGE_TOKEN,
            32002: END_OF_UTTERANCE,
        },
        spare_tokens=32003 - vocabulary,  # the base's tokenizer has a turn end that its model has no row for
        shards=7,
    )


# What the training code left behind; none of it means anything to the model.
UNUSED_IDEFICS3_FIELDS = {
    "_flash_attn_2_enabled": True,
    "_name_or_path": "None",
    "architectures": ["VLlama3ForCausalLM"],
    "is_llama_config": True,
    "neftune_noise_alpha": 0.0,
    "perceiver_config": {
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "model_type": "vllama3",
        "num_key_value_heads": 1,
        "qk_layer_norms_perceiver": False,
        "resampler_depth": 6,
        "resampler_head_dim": 96,
        "resampler_n_heads": 16,
        "resampler_n_latents": 64,
        "tie_word_embeddings": True,
        "transformers_version": "4.46.0",
    },
    "qk_layer_norms": False,
    "rope_interleaved": False,
    "use_resampler": False,
}
SIGLIP_SO400M_CONFIG = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_attention_heads": 16,
    "num_hidden_layers": 27,
    "patch_size": 14,
}
# SigLIP-B leaves out its 12 layers, inner width 3072, epsilon and activation.
SIGLIP_BASE_CONFIG = {"hidden_size": 768, "num_attention_heads": 12, "patch_size": 16}


def make_idefics3(
    text,
    tower,
    *,
    side,
    longest,
    factor,
    image,
    sequence,
    generation,
    tokens,
    kind="Idefics3",
    dtype="bfloat16",
    **more,
):
    """Idefics 3 and SmolVLM: `text` and `tower` hold what the file states, class defaults left out."""
    model_type = {"Idefics3": "idefics3", "SmolVLM": "smolvlm"}[kind]
    sizes = {"max_image_size": {"longest_edge": side}, "size": {"longest_edge": longest}}
    video = {"video_sampling": {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": side}}}
    named = {content: id for id, content in tokens.items()}
    return ReleasedCheckpoint(
        config={
            "architectures": [f"{kind}ForConditionalGeneration"],
            "image_token_id": image,
            "model_type": model_type,
            "pad_token_id": 128002,
            "scale_factor": factor,
            "text_config": {"model_type": "llama", "rms_norm_eps": 1e-05, "torch_dtype": "bfloat16", **text},
            "tie_word_embeddings": False,
            "torch_dtype": dtype,
            "transformers_version": "4.46.0" if kind == "Idefics3" else "4.47.1",
            "use_cache": False,
            "vision_config": {
                "image_size": side,
                "model_type": "idefics3" if kind == "Idefics3" else "smolvlm_vision",
                **sizes,
                "tie_word_embeddings": False,
                **tower,
            },
        },
        generation_config={"_from_model_config": True, **generation},
        preprocessor=make_preprocessor_config(
            kind, resample=1, **sizes, **(video if kind == "SmolVLM" else {})
        ),
        processor={"image_seq_len": sequence, "processor_class": f"{kind}Processor"},
        tokenizer={
            "additional_special_tokens": [
                FAKE_IMAGE_TOKEN,
                IMAGE_TOKEN,
                *([END_OF_UTTERANCE] if END_OF_UTTERANCE in named else []),
            ],
            "bos_token": tokens[generation["bos_token_id"]],
            "clean_up_tokenization_spaces": False,
            "model_max_length": text["max_position_embeddings"],
            "processor_class": f"{kind}Processor",
            "tokenizer_class": "PreTrainedTokenizerFast",
            "truncation_side": "left",
        },
        token_by_id=tokens,
        **more,
    )


SMOL_GENERATION = {"bos_token_id": 0, "eos_token_id": 49279, "pad_token_id": 2}
SMOL_TOKENS = {
    0: "<|endoftext|>",
    1: "<|im_start|>",
    2: "<|im_end|>",
    49152: "<global-img>",
    **{49153 + 6 * r + c: f"<row_{r + 1}_col_{c + 1}>" for r in range(6) for c in range(6)},
    49189: FAKE_IMAGE_TOKEN,
    49190: IMAGE_TOKEN,
    49279: END_OF_UTTERANCE,
}


def make_small_smolvlm(width, inner, heads, kv_heads, *, kind="Idefics3", dtype="bfloat16", **layers):
    """SmolVLM 256M and 500M of both generations; the latter leaves its 32 layers out."""
    text = {
        **UNUSED_IDEFICS3_FIELDS,
        "head_dim": 64,
        "hidden_size": width,
        "intermediate_size": inner,
        "max_position_embeddings": 8192,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "pad_token_id": 2,
        "pixel_shuffle_factor": 4,
        "rope_theta": 100000,
        "vocab_size": 49280,
        **layers,
    }
    return make_idefics3(
        text,
        {**SIGLIP_BASE_CONFIG, "use_base_siglip": False},
        side=512,
        longest=2048,
        factor=4,
        image=49190,
        sequence=64,
        generation=SMOL_GENERATION,
        tokens=SMOL_TOKENS,
        kind=kind,
        dtype=dtype,
        template=make_chat_template("<|im_start|>", video=kind == "SmolVLM"),
    )


def make_large_smolvlm(
    vocabulary, positions, image, generation, tokens, *, kind="Idefics3", dtype="bfloat16", shards=1
):
    """SmolVLM 2.2B of both generations: the 32 heads are left out."""
    text = {
        **UNUSED_IDEFICS3_FIELDS,
        "head_dim": 64,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "max_position_embeddings": positions,
        "num_hidden_layers": 24,
        "pad_token_id": 2,
        "pixel_shuffle_factor": 3,
        "rope_theta": 273768.0,
        "vocab_size": vocabulary,
    }
    return make_idefics3(
        text,
        {**SIGLIP_SO400M_CONFIG, "use_base_siglip": False},
        side=384,
        longest=1536,
        factor=3,
        image=image,
        sequence=81,
        generation=generation,
        tokens=tokens,
        kind=kind,
        dtype=dtype,
        template=make_chat_template("<|im_start|>", video=kind == "SmolVLM"),
        shards=shards,
    )


LLAMA31_CONFIG = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "pad_token_id": 128002,
    "rope_scaling": {
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "vocab_size": 128259,
}
LLAMA31_TOKENS = {
    128000: "<|begin_of_text|>",
    128001: "<|end_of_text|>",
    128002: "<|reserved_special_token_0|>",
    128008: "<|eom_id|>",
    128009: "<|eot_id|>",
    128256: FAKE_IMAGE_TOKEN,
    128257: IMAGE_TOKEN,
    128258: END_OF_UTTERANCE,
}
GRANITE_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 100264,
    "eos_token_id": 100257,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "max_position_embeddings": 8192,
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "pad_token_id": 100257,
    "rope_scaling": None,
    "rope_theta": 100000.0,
    "tie_word_embeddings": True,
    "use_cache": False,
    "vocab_size": 100352,
}
GRANITE_TEMPLATE = (
    "{% for message in messages %}{{ '<|start_of_role|>' + message['role'] + '<|end_of_role|>' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% elif part['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}{{ '<|end_of_text|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}"
)


def make_granite_docling():
    """A successor with another vocabulary and tied tables."""
    released = make_idefics3(
        GRANITE_CONFIG,
        SIGLIP_BASE_CONFIG,
        side=512,
        longest=2048,
        factor=4,
        image=100270,
        sequence=64,
        generation={"bos_token_id": 100264, "eos_token_id": 100257, "pad_token_id": 100257},
        tokens={
            100257: "<|end_of_text|>",
            100264: "<|start_of_role|>",
            100265: "<|end_of_role|>",
            100270: IMAGE_TOKEN,
        },
        template=GRANITE_TEMPLATE,
        template_in="chat_template.jinja",
    )
    released.config.update(pad_token_id=100257, tie_word_embeddings=True)
    return released


LARGE_TOKENS = {
    0: "<|endoftext|>",
    1: "<|im_start|>",
    2: "<|im_end|>",
    49152: FAKE_IMAGE_TOKEN,
    49153: IMAGE_TOKEN,
    49154: END_OF_UTTERANCE,
}
LARGE_GENERATION = {"bos_token_id": 0, "eos_token_id": 49154, "pad_token_id": 2}

RELEASED_BY_NAME = {
    "9b": make_idefics(4096, 11008, 32, 32, 1e-6, 2, shards=2),
    "9b-instruct": make_idefics(4096, 11008, 32, 32, 1e-6, 3, shards=2),
    "80b": make_idefics(8192, 22016, 80, 64, 1e-5, 2, shards=17),
    "80b-instruct": make_idefics(8192, 22016, 80, 64, 1e-5, 3, shards=17),
    "idefics2-8b-base": make_idefics2(32002, instruct=False),
    "idefics2-8b": make_idefics2(32003),
    "idefics2-8b-chatty": make_idefics2(32003),
    "idefics3-8b": make_idefics3(
        LLAMA31_CONFIG,
        SIGLIP_SO400M_CONFIG,
        side=364,
        longest=1456,
        factor=2,
        image=128257,
        sequence=169,
        generation={
            "bos_token_id": 128000,
            "eos_token_id": [128001, 128008, 128009, 128258],
            "pad_token_id": 128002,
        },
        tokens=LLAMA31_TOKENS,
        template=make_chat_template("<|begin_of_text|>"),
        shards=4,
    ),
    "smolvlm-256m": make_small_smolvlm(576, 1536, 9, 3, num_hidden_layers=30),
    "smolvlm-500m": make_small_smolvlm(960, 2560, 15, 5),
    "smolvlm-2.2b": make_large_smolvlm(49155, 16384, 49153, LARGE_GENERATION, LARGE_TOKENS),
    "smolvlm2-256m": make_small_smolvlm(
        576, 1536, 9, 3, num_hidden_layers=30, kind="SmolVLM", dtype="float32"
    ),
    "smolvlm2-500m": make_small_smolvlm(960, 2560, 15, 5, kind="SmolVLM", dtype="float32"),
    "smolvlm2-2.2b": make_large_smolvlm(
        49280, 8192, 49190, SMOL_GENERATION, SMOL_TOKENS, kind="SmolVLM", dtype="float32", shards=2
    ),
    "smoldocling-256m": make_small_smolvlm(576, 1536, 9, 3, num_hidden_layers=30),
    "granite-docling-258m": make_granite_docling(),
}

# --- The older layouts of Idefics's config.json

NESTED_CONFIG_KEYS = ("vision_config", "perceiver_config")
# transformers 4.3x wrote only what differs from the class: 9b's perceiver in one field, its tower's width in another.
CONFIG_WITH_DIFFERENCES_ONLY = {
    **RELEASED_BY_NAME["9b"].config,
    "perceiver_config": {"qk_layer_norms_perceiver": True},
    "vision_config": {"embed_dim": 1280},
}
# As the first revisions had it, and the tiny random checkpoints that tests everywhere use.
FLAT_CONFIG = {
    **{
        key: value
        for key, value in RELEASED_BY_NAME["80b-instruct"].config.items()
        if key not in NESTED_CONFIG_KEYS
    },
    "alpha_type": "vector",
    "architectures": ["IdeficsForCausalLM"],
    "qk_layer_norms_perceiver": True,
    "resampler_depth": 6,
    "resampler_head_dim": 96,
    "resampler_n_heads": 16,
    "resampler_n_latents": 64,
    "vision_embed_dim": 1280,
    "vision_image_size": 224,
    "vision_intermediate_size": 5120,
    "vision_model_name": "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    "vision_num_attention_heads": 16,
    "vision_num_hidden_layers": 32,
    "vision_patch_size": 14,
}
del FLAT_CONFIG["max_position_embeddings"]  # there it is max_sequence_length

# --- Tiny ones

TINY_VISION_SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "patch_size": 7,
}
TINY_TEXT_SIZES = {
    "hidden_size": 64,
    "intermediate_size": 40,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
}
TINY_PERCEIVER_SIZES = {
    "resampler_depth": 2,
    "resampler_head_dim": 8,
    "resampler_n_heads": 2,
    "resampler_n_latents": 5,
}
TINY_IDEFICS_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "ffn_dim": 48,
    "num_attention_heads": 2,
    "num_hidden_layers": 4,
    "perceiver_config": TINY_PERCEIVER_SIZES,
    "vision_config": {**TINY_VISION_SIZES, "embed_dim": 16, "image_size": 28},
    "word_embed_proj_dim": 32,
    **TINY_PERCEIVER_SIZES,
    **{
        f"vision_{key}": size
        for key, size in (TINY_VISION_SIZES | {"embed_dim": 16, "image_size": 28}).items()
    },
}
IMAGE_SIZE_BY_SCALE_FACTOR = {
    2: 28,
    3: 44,
    4: 28,
}  # pixel-shuffle factor -> side; 44 is no multiple of the patch, as 384 is none of 14


def shrink_config(raw, vocabulary=30):
    """A tiny config.json: the sizes that `raw` states are small, and what it leaves out stays left out.

    But for Idefics 2's decoder, whose class defaults are 8B's, and the side of pictures: small ones are put in.
    """
    if raw["model_type"] == "idefics":
        vision = (
            {"vision_config": {"image_size": 224, **raw["vision_config"]}} if "vision_config" in raw else {}
        )
        return _with_sizes(raw | vision, TINY_IDEFICS_SIZES) | {"vocab_size": vocabulary}
    text = (
        TINY_TEXT_SIZES if "num_attention_heads" in raw["text_config"] else TINY_TEXT_SIZES | {"head_dim": 2}
    )
    if raw["model_type"] == "idefics2":
        raw = {**raw, "text_config": raw["text_config"] | TINY_TEXT_SIZES}
        return _with_sizes(
            raw,
            {
                "text_config": {"vocab_size": vocabulary},
                "vision_config": {**TINY_VISION_SIZES, "image_size": 56},
            },
        )
    side = IMAGE_SIZE_BY_SCALE_FACTOR[raw["scale_factor"]]
    sizes = {
        "text_config": {"head_dim": 16, "pad_token_id": 2, **text, "vocab_size": vocabulary},
        "vision_config": {**TINY_VISION_SIZES, "image_size": side, **small_tile_settings(side)},
        "vocab_size": vocabulary,
    }
    return _with_sizes(raw, sizes)


def small_tile_settings(side):
    """Two tiles a side, in the words of the preprocessor."""
    return {"max_image_size": {"longest_edge": side}, "size": {"longest_edge": 2 * side}}


def _with_sizes(raw, sizes):
    return {
        key: _with_sizes(value, sizes.get(key, {})) if isinstance(value, dict) else sizes.get(key, value)
        for key, value in raw.items()
    }
