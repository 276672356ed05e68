"""Every released checkpoint at its real size, on the meta device: its parameters, its weights' names and shapes.

Names and shapes are written down here once more, from the headers of the released files; nothing is taken from the
package or from another library.
"""

import math
import os
import subprocess
import sys

import pytest
import torch

from idefics.catalog import find_entry
from idefics.models import family_for
from models.released import CONFIG_WITH_DIFFERENCES_ONLY, FLAT_CONFIG, RELEASED_BY_NAME


def build_on_meta(raw):
    family = family_for(raw["model_type"])
    with torch.device("meta"):
        return family.build(family.read_config(raw, {}))


def layer_shapes(prefix, count, one):
    """The weights of `count` equal layers."""
    return {f"{prefix}.{n}.{name}": shape for n in range(count) for name, shape in one.items()}


def linear_shapes(name, outer, inner):
    return {f"{name}.weight": (outer, inner), f"{name}.bias": (outer,)}


def norm_shapes(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def vision_shapes(width, inner, count, patches, patch):
    """What the two kinds of vision tower share: patches, positions, layers, the last norm."""
    prefix = "model.vision_model"
    layer = {
        **{k: s for part in "qkv" for k, s in linear_shapes(f"self_attn.{part}_proj", width, width).items()},
        **linear_shapes("self_attn.out_proj", width, width),
        **linear_shapes("mlp.fc1", inner, width),
        **linear_shapes("mlp.fc2", width, inner),
        **norm_shapes("layer_norm1", width),
        **norm_shapes("layer_norm2", width),
    }
    return {
        f"{prefix}.embeddings.patch_embedding.weight": (width, 3, patch, patch),
        f"{prefix}.embeddings.position_embedding.weight": (patches, width),
        **layer_shapes(f"{prefix}.encoder.layers", count, layer),
        **norm_shapes(f"{prefix}.post_layernorm", width),
    }


def mlp_shapes(width, inner):
    return {
        "mlp.gate_proj.weight": (inner, width),
        "mlp.up_proj.weight": (inner, width),
        "mlp.down_proj.weight": (width, inner),
    }


def decoder_shapes(prefix, width, inner, count, keys):
    """A Llama decoder; `keys` is the width of its keys and values."""
    layer = {
        "self_attn.q_proj.weight": (width, width),
        "self_attn.k_proj.weight": (keys, width),
        "self_attn.v_proj.weight": (keys, width),
        "self_attn.o_proj.weight": (width, width),
        **mlp_shapes(width, inner),
        "input_layernorm.weight": (width,),
        "post_attention_layernorm.weight": (width,),
    }
    return {**layer_shapes(f"{prefix}.layers", count, layer), f"{prefix}.norm.weight": (width,)}


def idefics1_shapes(width, inner, count, additional, gate=(1,)):
    head = 128
    block = {
        "alpha_cross_attn": gate,
        "alpha_dense": gate,
        "cross_attn.q_proj.weight": (width, width),
        "cross_attn.k_proj.weight": (width, 1280),
        "cross_attn.v_proj.weight": (width, 1280),
        "cross_attn.o_proj.weight": (width, width),
        "cross_attn.q_layer_norm.weight": (head,),
        "cross_attn.k_layer_norm.weight": (head,),
        **mlp_shapes(width, inner),
        "input_layernorm.weight": (width,),
        "post_attention_layernorm.weight": (width,),
    }
    perceiver = {
        **norm_shapes("0.context_layer_norm", 1280),
        **norm_shapes("0.latents_layer_norm", 1280),
        **norm_shapes("0.q_layer_norm", 96),
        **norm_shapes("0.k_layer_norm", 96),
        **{f"0.{part}_proj.weight": (1536, 1280) for part in "qkv"},
        "0.output_proj.weight": (1280, 1536),
        **norm_shapes("1.ln", 1280),
        "1.fc.weight": (5120, 1280),
        "1.c_proj.weight": (1280, 5120),
    }
    return {
        **vision_shapes(1280, 5120, 32, 257, 14),
        "model.vision_model.embeddings.class_embedding": (1280,),
        **norm_shapes("model.vision_model.pre_layrnorm", 1280),
        "model.perceiver_resampler.latents": (64, 1280),
        **layer_shapes("model.perceiver_resampler.blocks", 6, perceiver),
        **norm_shapes("model.perceiver_resampler.layer_norm", 1280),
        **decoder_shapes("model", width, inner, count, width),
        **layer_shapes("model.gated_cross_attn_layers", count // 4, block),
        "model.embed_tokens.weight": (32000, width),
        "model.embed_tokens.additional_embedding.weight": (additional, width),
        "lm_head.weight": (32000, width),
        "lm_head.additional_fc.weight": (additional, width),
    }


def inline_model_shapes(width, inner, count, keys, vocabulary, vision, connector):
    """Idefics 2 and later."""
    return {
        **vision_shapes(*vision),
        "model.vision_model.embeddings.patch_embedding.bias": (vision[0],),
        **{f"model.connector.{name}": shape for name, shape in connector.items()},
        **decoder_shapes("model.text_model", width, inner, count, keys),
        "model.text_model.embed_tokens.weight": (vocabulary, width),
        "lm_head.weight": (vocabulary, width),
    }


def idefics2_shapes(vocabulary):
    block = {
        "input_latents_norm.weight": (4096,),
        "input_context_norm.weight": (4096,),
        "self_attn.q_proj.weight": (1536, 4096),
        "self_attn.k_proj.weight": (384, 4096),
        "self_attn.v_proj.weight": (384, 4096),
        "self_attn.o_proj.weight": (4096, 1536),
        "post_attention_layernorm.weight": (4096,),
        **mlp_shapes(4096, 16384),
    }
    connector = {
        "modality_projection.gate_proj.weight": (14336, 1152),
        "modality_projection.up_proj.weight": (14336, 1152),
        "modality_projection.down_proj.weight": (4096, 14336),
        "perceiver_resampler.latents": (64, 4096),
        **layer_shapes("perceiver_resampler.layers", 3, block),
        "perceiver_resampler.norm.weight": (4096,),
    }
    return inline_model_shapes(4096, 14336, 32, 1024, vocabulary, (1152, 4304, 27, 4900, 14), connector)


def idefics3_shapes(width, inner, count, keys, vocabulary, vision, factor):
    projection = {"modality_projection.proj.weight": (width, vision[0] * factor**2)}
    return inline_model_shapes(width, inner, count, keys, vocabulary, vision, projection)


B16 = (768, 3072, 12, 1024, 16)
SMOL_256M = idefics3_shapes(576, 1536, 30, 192, 49280, B16, 4)
SMOL_500M = idefics3_shapes(960, 2560, 32, 320, 49280, B16, 4)


def smolvlm_2b_shapes(vocabulary):
    return idefics3_shapes(2048, 8192, 24, 2048, vocabulary, (1152, 4304, 27, 729, 14), 3)


WEIGHT_SHAPES_BY_NAME = {
    "9b": idefics1_shapes(4096, 11008, 32, 2),
    "9b-instruct": idefics1_shapes(4096, 11008, 32, 3),
    "80b": idefics1_shapes(8192, 22016, 80, 2),
    "80b-instruct": idefics1_shapes(8192, 22016, 80, 3),
    "idefics2-8b-base": idefics2_shapes(32002),
    "idefics2-8b": idefics2_shapes(32003),
    "idefics2-8b-chatty": idefics2_shapes(32003),
    "idefics3-8b": idefics3_shapes(4096, 14336, 32, 1024, 128259, (1152, 4304, 27, 676, 14), 2),
    "smolvlm-256m": SMOL_256M,
    "smolvlm-500m": SMOL_500M,
    "smolvlm-2.2b": smolvlm_2b_shapes(49155),
    "smolvlm2-256m": SMOL_256M,
    "smolvlm2-500m": SMOL_500M,
    "smolvlm2-2.2b": smolvlm_2b_shapes(49280),
    "smoldocling-256m": SMOL_256M,
    "granite-docling-258m": idefics3_shapes(576, 1536, 30, 192, 100352, B16, 4),
}
# (parameters, tensors in the files). The tied head of the last is one weight with the embeddings.
SIZE_BY_NAME = {
    "9b": (8_929_679_632, 1015),
    "9b-instruct": (8_929_687_824, 1015),
    "80b": (79_967_843_624, 1603),
    "80b-instruct": (79_967_860_008, 1603),
    "idefics2-8b-base": (8_402_759_920, 763),
    "idefics2-8b": (8_402_768_112, 763),
    "idefics2-8b-chatty": (8_402_768_112, 763),
    "idefics3-8b": (8_462_086_384, 729),
    "smolvlm-256m": (256_484_928, 471),
    "smolvlm-500m": (507_482_304, 489),
    "smolvlm-2.2b": (2_246_272_880, 657),
    "smolvlm2-256m": (256_484_928, 471),
    "smolvlm2-500m": (507_482_304, 489),
    "smolvlm2-2.2b": (2_246_784_880, 657),
    "smoldocling-256m": (256_484_928, 471),
    "granite-docling-258m": (257_517_120, 471),
}


@pytest.mark.parametrize("name", RELEASED_BY_NAME)
def test_parameters_and_weights_are_the_released_ones(name):
    model = build_on_meta(RELEASED_BY_NAME[name].config)
    shapes = {key: tuple(weight.shape) for key, weight in model.state_dict().items()}
    assert shapes == WEIGHT_SHAPES_BY_NAME[name]
    parameters = sum(weight.numel() for weight in model.parameters())
    assert (parameters, len(shapes)) == SIZE_BY_NAME[name]
    assert parameters == find_entry(name).num_parameters
    assert {weight.device.type for weight in model.parameters()} == {"meta"}


def test_what_is_written_down_here_adds_up():
    for name, weights in WEIGHT_SHAPES_BY_NAME.items():
        tied = math.prod(weights["lm_head.weight"]) if name == "granite-docling-258m" else 0
        assert (sum(map(math.prod, weights.values())) - tied, len(weights)) == SIZE_BY_NAME[name]


# Parameters of each part in millions, as the published counts split.
MEGAPARAMETERS_BY_PART = {
    "9b": {
        "model.layers": 6476.3,
        "model.gated_cross_attn_layers": 1434.5,
        "model.vision_model": 630.8,
        "model.perceiver_resampler": 126.0,
        "model.embed_tokens": 131.1,
        "lm_head": 131.1,
    },
    "idefics2-8b": {
        "model.vision_model": 417.8,
        "model.connector": 743.2,
        "model.text_model.layers": 6979.6,
        "model.text_model.embed_tokens": 131.1,
        "lm_head": 131.1,
    },
    "idefics3-8b": {
        "model.vision_model": 412.9,
        "model.connector": 18.9,
        "model.text_model.layers": 6979.6,
        "model.text_model.embed_tokens": 525.3,
        "lm_head": 525.3,
    },
}


@pytest.mark.parametrize(
    ("name", "part"), [(name, part) for name, parts in MEGAPARAMETERS_BY_PART.items() for part in parts]
)
def test_every_part_has_its_size(name, part):
    module = build_on_meta(RELEASED_BY_NAME[name].config).get_submodule(part)
    assert (
        round(sum(weight.numel() for weight in module.parameters()) / 1e6, 1)
        == MEGAPARAMETERS_BY_PART[name][part]
    )


def test_the_older_layouts_of_idefics_are_the_same_models():
    for raw, weights in (
        (CONFIG_WITH_DIFFERENCES_ONLY, WEIGHT_SHAPES_BY_NAME["9b"]),
        (FLAT_CONFIG, idefics1_shapes(8192, 22016, 80, 3, gate=(1, 1, 8192))),
    ):
        assert {
            key: tuple(weight.shape) for key, weight in build_on_meta(raw).state_dict().items()
        } == weights


BUILD_SCRIPT = """
import sys
from idefics import weights
from idefics.models import build_on_meta_device, read_checkpoint
build_on_meta_device(read_checkpoint(weights.find_checkpoint("demo")))
assert "torch._dynamo" not in sys.modules
"""


def test_building_waits_for_no_compiler():
    """Drawing first weights on the meta device would import it: seconds before every first answer."""
    here = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", BUILD_SCRIPT], check=True, env=here)
