"""Models on several devices: what goes where, and that they compute there what they compute on one."""

from itertools import chain

import pytest
import torch

from fake_devices import CPU, FIRST, SECOND, FakeDevices, place_on
from idefics.config import EngineConfig, QuantizationConfig, Sampling
from idefics.engine.engine import Engine
from idefics.engine.reference import ReferenceModel
from idefics.engine.request import Request
from idefics.errors import BadSetting
from idefics.nn.decoder import DecoderLayer
from idefics.placement.assignment import assign_devices, install_device_hooks, named_no_split_modules
from idefics.placement.devices import (
    DeviceMap,
    first_accelerator_or_cpu,
    get_available_device,
    resolve_device,
)
from idefics.quant import quantizers_by_name
from idefics.weights.streaming_loader import device_of
from models import tiny

CONFIG_BY_FAMILY = {"idefics": tiny.IDEFICS1, "idefics2": tiny.IDEFICS2, "idefics3": tiny.IDEFICS3}
families = pytest.mark.parametrize("family", CONFIG_BY_FAMILY)


def make_model(family, **changes):
    torch.manual_seed(0)
    return tiny.make_random_model(tiny.merge_config(CONFIG_BY_FAMILY[family], **changes))


def place_model(model, where):
    """The model, whose weights say that they lie where the map says."""
    for name, weight in model.named_parameters():
        place_on(weight, device_of(name, where))
    with FakeDevices():
        install_device_hooks(model)
    return model


def split_decoder_map(model, *, second=SECOND, rest=FIRST):
    """The later half of the decoder on a device of its own."""
    names = [name for name, _ in named_no_split_modules(model)]
    layers = [name for name in names if ".layers." in name]
    gates = [name for name in names if "gated" in name]
    later = layers[len(layers) // 2 :] + gates[len(gates) // 2 :]
    return {"": rest, **dict.fromkeys(later, second)}


@torch.inference_mode()
def run_model(model):
    """All that the engine does with a model: two prompts, a second token after each, endings; the slow twin's too."""
    prompts = [tiny.make_random_prompt(model, "tt1tt"), tiny.make_random_prompt(model, "1tttttt1t")]
    with FakeDevices():
        engine = Engine(model, EngineConfig(cache_pages=20))
        engine._thread.ensure_running = lambda: (
            None
        )  # steps are taken here: another thread would not know these devices
        asked = [Request(prompt, Sampling(max_new_tokens=2, logprobs=True)) for prompt in prompts]
        asked.append(Request(prompts[1], continuations=((4, 5), (6,), (7, 8, 9))))
        handles = [engine.submit(request) for request in asked]
        while engine.is_busy:
            engine.step()
        found = [handle.result() for handle in handles]
        numbers = [
            torch.tensor([*one.ids, *one.logprobs, *chain(*one.continuation_logprobs)]) for one in found
        ]
        slow = model.logits(ReferenceModel(model, prompts[0]).hidden_states())
    return engine, [*numbers, slow]


@families
@pytest.mark.parametrize(
    "where",
    [
        lambda model: split_decoder_map(model),
        lambda model: split_decoder_map(model, second=CPU),
        lambda model: split_decoder_map(model, second=FIRST, rest=CPU),
        lambda model: {"": SECOND, "model": FIRST},
        lambda model: {"": FIRST, "model.vision_model": CPU, "lm_head": CPU},
    ],
    ids=["two GPUs", "spilled layers", "all but layers spilled", "head apart", "both ends spilled"],
)
def test_what_is_computed_is_the_same(family, where):
    _, expected = run_model(make_model(family))
    _, found = run_model(place_model(model := make_model(family), where(model)))
    for want, got in zip(expected, found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@families
def test_a_cache_lies_where_its_layer_lies(family):
    model = make_model(family)
    engine, _ = run_model(place_model(model, split_decoder_map(model)))
    with FakeDevices():
        found = [keys.device for keys in engine.kv_cache.keys]
        assert found == sorted(found, key=str) and set(found) == {FIRST, SECOND}
        memories = [layer for kept in engine.encoder_cache.image_by_key.values() for layer in kept.cross_kv]
        assert {memory.keys.device for memory in memories} in (set(), {FIRST, SECOND})


def test_what_spills_computes_on_the_gpu_and_stays_in_memory():
    model = make_model("idefics3")
    layer = model.model.text_model.layers[1].mlp.gate_proj
    seen = []
    layer.register_forward_hook(
        lambda module, inputs, out: seen.append((inputs[0].device, module.weight.device))
    )
    weight = layer.weight
    run_model(place_model(model, split_decoder_map(model, second=CPU)))
    assert set(seen) == {(FIRST, FIRST)}
    assert layer.weight is weight and dict(layer.named_parameters()) == {"weight": weight}


def test_a_loan_ends_when_a_module_fails():
    model = make_model("idefics3")
    place_model(model, {"": FIRST, "lm_head": CPU})
    weight = model.lm_head.weight
    with pytest.raises(RuntimeError), FakeDevices():
        model.logits(torch.ones(2, 3))
    assert model.lm_head.weight is weight


def test_gradients_find_what_spilled():
    model = make_model("idefics3")
    place_model(model, {"": FIRST, "lm_head": CPU})
    with FakeDevices():
        model.logits(place_on(torch.ones(1, 48), FIRST)).sum().backward()
    assert model.lm_head.weight.grad is not None


def test_one_device_has_no_hooks():
    model = place_model(make_model("idefics3"), {"": FIRST})
    assert not any(module._forward_pre_hooks for module in model.modules())


@families
def test_blocks_are_all_of_a_model_and_never_overlap(family):
    model = make_model(family)
    found = [name for name, _ in named_no_split_modules(model)]
    assert {id(w) for _, block in named_no_split_modules(model) for w in block.parameters()} == {
        id(w) for w in model.parameters()
    }
    assert not any(a != b and a.startswith(f"{b}.") for a in found for b in found)
    assert all(name in found for name, module in model.named_modules() if isinstance(module, DecoderLayer))


def bytes_by_device(model, where):
    total = {}
    for name, weight in model.named_parameters():
        device = device_of(name, where)
        total[device] = total.get(device, 0) + weight.nbytes
    return total


def fit_to_memory(model, max_memory, way="auto", dtype=torch.float32, bits=None):
    return assign_devices(
        model, DeviceMap(device_map=way, max_memory=max_memory), dtype=dtype, bits_by_name=bits or {}
    )


@families
@pytest.mark.parametrize("way", ["auto", "balanced", "balanced_low_0", "sequential"])
def test_layers_fill_gpus_and_spill(family, way):
    deep = {"num_hidden_layers": 12}
    model = make_model(family, **(deep if family == "idefics" else {"text_config": deep}))
    whole = sum(weight.nbytes for weight in model.parameters())
    room = {0: whole // 2, 1: whole // 4, "cpu": whole}
    where = fit_to_memory(model, room, way)
    used = bytes_by_device(model, where)
    assert set(used) == {FIRST, SECOND, CPU}
    assert sum(used.values()) == whole
    assert all(used[device] <= room[key] for device, key in ((FIRST, 0), (SECOND, 1), (CPU, "cpu")))
    for name, block in named_no_split_modules(model):
        assert len({device_of(f"{name}.{inner}", where) for inner, _ in block.named_parameters()}) <= 1
    _, expected = run_model(model)
    _, found = run_model(place_model(model, where))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_gpus_share_evenly():
    model = make_model("idefics3", text_config={"num_hidden_layers": 24})
    used = bytes_by_device(model, fit_to_memory(model, {0: 10**9, 1: 10**9, "cpu": 10**9}))
    assert set(used) == {FIRST, SECOND}
    assert max(used.values()) < 1.3 * min(used.values())


def test_fewer_bits_need_less_memory():
    model = make_model("idefics3", text_config={"num_hidden_layers": 24})
    whole = sum(weight.nbytes for weight in model.parameters())
    room = {0: whole // 2, "cpu": whole}
    bits = dict.fromkeys(quantizers_by_name(model, QuantizationConfig(kind="int8")), 8)
    assert CPU in set(fit_to_memory(model, room).values())
    assert set(fit_to_memory(model, room, dtype=torch.bfloat16).values()) == {FIRST}
    assert set(fit_to_memory(model, room, bits=bits).values()) == {FIRST}


def test_tied_weights_stay_on_one_device():
    model = make_model("idefics3", tie_word_embeddings=True, text_config={"num_hidden_layers": 8})
    whole = sum(weight.nbytes for weight in model.parameters())
    where = fit_to_memory(model, {0: whole // 2, 1: whole})
    assert device_of("lm_head", where) == device_of("model.text_model.embed_tokens", where)
    assert len(set(where.values())) == 2
    _, expected = run_model(model)
    _, found = run_model(place_model(model, where))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_what_fits_nowhere_is_refused():
    with pytest.raises(
        BadSetting, match=r"does not fit into memory \(1e-06 GB on cpu\).*nf4.*max_memory"
    ) as caught:
        fit_to_memory(make_model("idefics3"), {"cpu": 1000})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("device_map", "said"),
    [
        ({"lm_head": CPU}, r"leaves out model\.vision_model"),
        ({"": CPU, "model.text_model.layers.0.mlp": CPU}, r"names 'model\.text_model\.layers\.0\.mlp'"),
        ({"": CPU, "nonsense": CPU}, r"names 'nonsense'.*give lm_head, model\.connector.*layers\.n"),
        ({"": "disk"}, "device is 'disk'"),
        ({"": 7}, "device is 7"),
    ],
)
def test_maps_that_cannot_be_are_refused(device_map, said):
    with pytest.raises(BadSetting, match=said):
        assign_devices(
            make_model("idefics3"), DeviceMap(device_map=device_map), dtype=torch.float32, bits_by_name={}
        )


def test_a_map_of_ones_own():
    model = make_model("idefics3")
    given = {"model": CPU, "model.text_model.layers": "cpu", "lm_head": "cpu"}
    assert assign_devices(
        model, DeviceMap(device_map=given), dtype=torch.float32, bits_by_name={}
    ) == dict.fromkeys(given, CPU)


@pytest.mark.parametrize(("gpus", "names"), [(0, "auto, cpu"), (2, "auto, cpu, cuda:0, cuda:1")])
def test_a_refused_device_names_the_devices_that_there_are(monkeypatch, gpus, names):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(BadSetting) as refused:
        get_available_device("tpu")
    assert str(refused.value) == f"device is 'tpu', which this machine does not have: give one of {names}"


def test_what_the_caller_wants():
    assert resolve_device("cpu", None, None) == resolve_device("auto", "cpu", None) == CPU
    assert resolve_device("auto", "auto", {"cpu": 1}) == DeviceMap(device_map="auto", max_memory={"cpu": 1})
    assert resolve_device("auto", {"": "cpu"}, None).main_device == CPU
    for given, said in (
        (("cpu", "auto", None), "one of the two"),
        (("auto", None, {"cpu": 1}), 'give device_map="auto"'),
        (("auto", {"": "cpu"}, {"cpu": 1}), 'give device_map="auto"'),
        (("auto", "everywhere", None), "device is 'everywhere'"),
        ((9, None, None), "device is 9"),
    ):
        with pytest.raises(BadSetting, match=said):
            resolve_device(*given)


def test_auto_is_some_device():
    assert isinstance(get_available_device("auto"), torch.device)
    assert isinstance(DeviceMap(device_map="auto").main_device, torch.device)


def test_sizes_that_cannot_be_read_are_refused():
    with pytest.raises(BadSetting, match=r"max_memory is \{'cpu': 'much'\}"):
        fit_to_memory(make_model("idefics3"), {"cpu": "much"})


def test_the_main_device_is_the_first_that_is_no_cpu():
    cpu, *gpus = map(torch.device, ("cpu", "cuda:1", "cuda:0"))
    assert first_accelerator_or_cpu([cpu, *gpus]) == gpus[0]
    assert first_accelerator_or_cpu([cpu]) == cpu
