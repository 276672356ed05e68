"""Adapters of peft in a model: adding, loading, activating and saving them. peft is imported when it is used."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from idefics.compat.pretrained import read_json_object
from idefics.errors import BadSetting, MissingExtra, UnsupportedModel
from idefics.weights.adapter_config import ADAPTER_CONFIG
from idefics.weights.adapter_files import KEY_PREFIX, write_adapter_weights

if TYPE_CHECKING:
    from peft import PeftConfig


class PeftAdapterMixin(nn.Module):
    """Gives a model transformers' methods for adapters (LoRA and others of peft).

    Attributes:
        peft_config: configs of the adapters by name.
        missing_keys: names of weights that the files of the checkpoint lacked.
    """

    name_or_path: str  # where the model was loaded from; "" where it was not
    peft_config: dict[str, PeftConfig]
    _hf_peft_config_loaded = False  # read by transformers' Trainer
    missing_keys: Sequence[str] = ()

    def add_adapter(self, adapter_config: PeftConfig, adapter_name: str | None = None) -> None:
        """Adds a new adapter and activates it; all other weights are frozen.

        Raises:
            BadSetting: there is an adapter of this name, or `adapter_config` is not a config of peft.
            MissingExtra: peft is not installed.
        """
        peft = _import_peft()
        name = adapter_name or "default"
        if not isinstance(adapter_config, peft.PeftConfig):
            raise BadSetting(
                f"adapter_config is of type {type(adapter_config).__name__}; give a config of peft, such as LoraConfig"
            )
        if name in self._adapter_configs():
            raise BadSetting(f"there is an adapter {name!r} already: give another adapter_name")
        adapter_config.base_model_name_or_path = self.name_or_path or None
        peft.inject_adapter_in_model(adapter_config, self, name)
        self._hf_peft_config_loaded = True
        self.set_adapter(name)

    def load_adapter(
        self,
        peft_model_id: str | PathLike[str] | None = None,
        adapter_name: str | None = None,
        *,
        peft_config: PeftConfig | None = None,
        adapter_state_dict: dict[str, Tensor] | None = None,
        is_trainable: bool = False,
    ) -> None:
        """Adds a trained adapter and activates it.

        Args:
            peft_model_id: a folder with adapter_config.json and its weights, or a hub id.
            adapter_name: None: "default".
            peft_config, adapter_state_dict: in place of the folder.
            is_trainable: False freezes the adapter.

        Raises:
            BadSetting: neither a folder nor a config with weights is given.
            UnsupportedModel: the weights do not fit this model.
            MissingExtra: peft is not installed.
        """
        peft = _import_peft()
        name = adapter_name or "default"
        if peft_model_id is None and (peft_config is None or adapter_state_dict is None):
            raise BadSetting("no adapter is given: give its folder, or peft_config and adapter_state_dict")
        config = peft_config or peft.PeftConfig.from_pretrained(str(peft_model_id))
        weights = adapter_state_dict
        if weights is None:
            weights = peft.load_peft_weights(str(peft_model_id), device="cpu")
        config.inference_mode = not is_trainable
        self.add_adapter(config, name)
        weights_by_key = {key.removeprefix(KEY_PREFIX): value for key, value in weights.items()}
        result = peft.set_peft_model_state_dict(self, weights_by_key, name)
        missing = [key for key in result.missing_keys if "lora_" in key and f".{name}." in key]
        if result.unexpected_keys or missing:
            raise UnsupportedModel(
                f"{peft_model_id or 'the adapter'} is not an adapter of this model: "
                f"{len(result.unexpected_keys)} weights are unused and {len(missing)} missing "
                f"({', '.join([*result.unexpected_keys, *missing][:3])}): give the model that it was trained on"
            )
        if not is_trainable:
            for key, weight in self.named_parameters():
                if f".{name}." in key:
                    weight.requires_grad_(False)
        self.eval()

    def set_adapter(self, adapter_name: str | list[str]) -> None:
        """Activates one adapter or several, and deactivates the others.

        Raises:
            BadSetting: there is no adapter of this name.
        """
        self._existing_adapter_names(adapter_name)
        for layer in self._adapter_layers():
            layer.enable_adapters(True)
            layer.set_adapter(adapter_name)

    def active_adapters(self) -> list[str]:
        """The names of the active adapters. Raises BadSetting where the model has none."""
        active = self._adapter_layers()[0].active_adapter
        return [active] if isinstance(active, str) else list(active)

    def disable_adapters(self) -> None:
        """Disables all adapters. Raises BadSetting where the model has none."""
        for layer in self._adapter_layers():
            layer.enable_adapters(False)

    def enable_adapters(self) -> None:
        """Undoes `disable_adapters`. Raises BadSetting where the model has none."""
        for layer in self._adapter_layers():
            layer.enable_adapters(True)

    def delete_adapter(self, adapter_names: str | list[str]) -> None:
        """Removes adapters from the model. Raises BadSetting where it does not have them."""
        for name in self._existing_adapter_names(adapter_names):
            for layer in self._adapter_layers():
                layer.delete_adapter(name)
            del self.peft_config[name]
        self._hf_peft_config_loaded = bool(self.peft_config)

    def get_adapter_state_dict(
        self, adapter_name: str | None = None, state_dict: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """The weights of an adapter by name. Raises BadSetting where the model has none.

        Args:
            adapter_name: None: the active adapter.
            state_dict: in place of the model's own.
        """
        name = adapter_name or self.active_adapters()[0]
        weights: dict[str, Tensor] = _import_peft().get_peft_model_state_dict(
            self, state_dict, adapter_name=name
        )
        return weights

    def _save_adapter(self, folder: Path, state_dict: dict[str, Tensor] | None) -> None:
        """Writes the active adapter into a folder as peft does; `state_dict` is in place of the model's own."""
        name = self.active_adapters()[0]
        folder.mkdir(parents=True, exist_ok=True)
        write_adapter_weights(folder, self.get_adapter_state_dict(name, state_dict))
        self.peft_config[name].save_pretrained(str(folder))

    def _adapter_layers(self) -> list[Any]:
        """The layers that hold the adapters. Raises BadSetting where the model has no adapter."""
        if not self._hf_peft_config_loaded:
            raise BadSetting("the model has no adapter: call add_adapter or load_adapter first")
        layer_class = _import_peft().tuners.tuners_utils.BaseTunerLayer
        return [module for module in self.modules() if isinstance(module, layer_class)]

    def _existing_adapter_names(self, names: str | list[str]) -> list[str]:
        """One or several names as a list. Raises BadSetting unless the model has adapters of all these names."""
        names = [names] if isinstance(names, str) else names
        if unknown := [name for name in names if name not in self._adapter_configs()]:
            raise BadSetting(
                f"there is no adapter {unknown[0]!r}; the model has {', '.join(self._adapter_configs()) or 'none'}"
            )
        return names

    def _adapter_configs(self) -> dict[str, PeftConfig]:
        """The configs of the model's adapters by name; empty if no adapter was added."""
        return self.peft_config if self._hf_peft_config_loaded else {}


def adapter_base_model(folder: str | PathLike[str]) -> str | None:
    """The base model of the adapter in a folder; None where its config names none, or the folder holds a checkpoint."""
    path = Path(folder)
    if not (path / ADAPTER_CONFIG).is_file() or (path / "config.json").is_file():
        return None
    base = read_json_object(path / ADAPTER_CONFIG).get("base_model_name_or_path")
    return None if not base else str(base)


def _import_peft() -> Any:
    """The module peft; raises MissingExtra if it is not installed."""
    try:
        import peft
    except ImportError:
        raise MissingExtra("an adapter", "peft") from None
    return peft
