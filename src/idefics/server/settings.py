"""Settings of the server: flags of `idefics serve`, environment variables, a TOML file.

The flags and the tables in docs/server.md are generated from `Settings`. The module can be imported without the extra.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from ipaddress import ip_address
from pathlib import Path
from typing import Any, get_args, get_type_hints

from idefics.catalog import DEFAULT_MODEL
from idefics.config import KernelMode
from idefics.errors import BadSetting, MissingExtra
from idefics.host_memory import parse_bytes_or_share
from idefics.lazy import cached_property
from idefics.processing import url_policy
from idefics.server.list_settings import parse_adapters, parse_host_names, parse_origins, parse_servers
from idefics.validation import validate_choice

ENVIRONMENT_PREFIX = "IDEFICS_"  # of environment variables


def _setting(
    section: str,
    default: Any,
    help: str,
    low: float = 0,
    high: float = 0,
    metavar: str | None = None,
    **field_kwargs: Any,
) -> Any:
    """Declares a field of `Settings`.

    Args:
        section: its section in the documentation.
        default: its value where nothing sets it.
        help: its description.
        low, high: bounds of a number, both included; 0 and 0: no bounds.
        metavar: what stands for its value in the help; None: chosen by its type.
        field_kwargs: further arguments of pydantic's `Field`.
    """
    metadata = {"section": section, "help": help, "range": (low, high), "metavar": metavar}
    return field(default=default, metadata=metadata, **field_kwargs)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of the server, validated.

    Raises:
        BadSetting: a value is not allowed, or the server could be reached from other machines without a key.
    """

    model: str = _setting(
        "Model", DEFAULT_MODEL, "Short name (`idefics models` lists them), folder or hub id."
    )
    name: str | None = _setting(
        "Model", None, "Model name that clients use; unset: the last part of --model."
    )
    revision: str | None = _setting("Model", None, "Branch, tag or commit on the hub.")
    adapter: str | None = _setting(
        "Model", None, "Folder or hub id of an adapter (LoRA), merged into the model.", metavar="PATH"
    )
    adapters: str | None = _setting(
        "Model", None, "Adapters that share the model, each a model: name=PATH,name=PATH.", metavar="NAMES"
    )
    device: str = _setting("Model", "auto", "auto, cpu, cuda, cuda:1 or mps.")
    dtype: str = _setting("Model", "auto", "auto, float32, bfloat16 or float16.")
    threads: int | None = _setting("Model", None, "Number of CPU threads.", 1, 1024)
    quantize: str | None = _setting("Model", None, "Quantize the weights: int8, int4, fp8, nf4 or fp4.")
    kv_cache: str | None = _setting(
        "Model", None, "Memory for the KV cache, such as 1GB, or a share of the free memory, such as 0.3."
    )
    batch_rows: int | None = _setting("Model", None, "Largest number of sequences in a batch.", 1, 1024)
    kernels: str = _setting(
        "Model", "auto", "Kernels: auto (by the kind of processor), autotune or reference."
    )
    offline: bool = _setting("Model", False, "Never use the network for models.")
    feature_cache: bool = _setting(
        "Model", False, "Keep encoded pictures in files of the user's cache folder, for the next start."
    )
    host: str = _setting("Address", "127.0.0.1", "Address to listen on.")
    port: int = _setting("Address", 8000, "Port to listen on; 0 takes a free one.", 0, 65535)
    ui: bool = _setting("Address", False, "Serve the web page too, at /.")
    api_key: str | None = _setting(
        "Access",
        None,
        "Key that clients must send as a bearer token. Other users of this machine can see flags: prefer the file.",
        repr=False,
    )
    api_key_file: Path | None = _setting("Access", None, "File with such keys, one per line.")  # noqa: RUF009
    insecure: bool = _setting("Access", False, "Allow requests from other machines without a key.")
    allowed_hosts: str | None = _setting(
        "Access",
        None,
        "Host names that requests may be addressed to, separated by commas; localhost is always allowed. Unset: all, "
        "if the server has a key or listens on an address that other machines reach.",
    )
    allowed_origins: str | None = _setting(
        "Access",
        None,
        "Origins of web pages that may send cross-origin requests (CORS), such as https://app.example.com, separated "
        "by commas; * for all, only with a key.",
    )
    compare_with: str | None = _setting(
        "Access",
        None,
        "Addresses of other servers, separated by commas, with which the page may compare answers (http://box:8000).",
        metavar="URLS",
    )
    remote_images: str = _setting(
        "Access",
        "off",
        "Where pictures may be fetched from: off, public, or a list of public hosts separated by commas.",
    )
    requests_at_once: int = _setting(
        "Limits", 256, "Requests waiting or running; further ones are refused.", 1, 100_000
    )
    tokens_at_once: int = _setting(
        "Limits", 250_000, "Tokens of the prompts and answers of all requests.", 1, 1_000_000_000
    )
    pictures_at_once: int = _setting("Limits", 128, "Pictures of all requests.", 1, 100_000)
    megabytes_at_once: int = _setting(
        "Limits", 512, "Size of the bodies of all requests, in MB.", 1, 1_000_000
    )
    fetched_at_once: int = _setting("Limits", 16, "Pictures fetched at the same time.", 1, 1024)
    decoded_at_once: int = _setting("Limits", 2, "Pictures decoded at the same time.", 1, 64)
    body_megabytes: int = _setting("Limits", 20, "Largest body of a request, in MB.", 1, 1024)
    drain: float = _setting(
        "Limits", 30.0, "Seconds for requests to finish after SIGTERM or Ctrl-C.", 0, 86_400
    )
    ray: str | None = _setting(
        "Ray",
        None,
        "Serve with replicas on a Ray cluster: auto (the cluster that this machine is a node of), HOST:PORT of its "
        "head node, or local (this machine). The limits hold for each replica.",
        metavar="ADDRESS",
    )
    replicas: int | None = _setting(
        "Ray", None, "Number of replicas; unset: as many as there are GPUs, else nodes.", 1, 10_000
    )
    num_gpus: float | None = _setting("Ray", None, "GPUs of each replica, such as 1 or 0.5.", 0, 1024, "X")
    num_cpus: float | None = _setting("Ray", None, "CPUs of each replica.", 0, 1024, "X")
    batches: Path | None = _setting(  # noqa: RUF009
        "Batches",
        None,
        "Folder for clients' files and batches (/v1/files, /v1/batches); unset: there are none.",
    )

    def __post_init__(self) -> None:
        for setting in fields(self):
            (low, high), value = setting.metadata["range"], getattr(self, setting.name)
            if high and value is not None and not low <= value <= high:
                raise BadSetting(f"{setting.name} is {value!r}; give a number from {low} to {high}")
        parse_bytes_or_share("kv_cache", self.kv_cache)
        self.adapter_by_name  # noqa: B018  # checks it
        validate_choice("kernels", self.kernels, get_args(KernelMode))
        url_policy.parse_allowed_hosts(self.remote_images)
        if self.remote_images == "any":
            raise BadSetting(
                "remote_images is 'any', which would let clients reach this machine's own network: give off, public, "
                "or hosts separated by commas; pictures of this network can be sent as data URIs"
            )
        parse_host_names(self.allowed_hosts)
        self.compared_servers  # noqa: B018  # checks them
        if "*" in parse_origins(self.allowed_origins) and not self.has_key:
            raise BadSetting(
                "allowed_origins is * without a key, which would let every web page use the server: list the origins, "
                "or give --api-key-file"
            )
        if not (is_loopback_host(self.host) or self.insecure or self.has_key):
            raise BadSetting(
                f"host is {self.host}, which other machines can reach, and there is no key: give --api-key-file (or "
                f"{ENVIRONMENT_PREFIX}API_KEY), or --insecure to allow requests without a key"
            )

    @property
    def has_key(self) -> bool:
        """Whether clients must send an API key."""
        return bool(self.api_key or self.api_key_file)

    @cached_property
    def api_keys(self) -> tuple[bytes, ...]:
        """The keys, one of which a client must send; empty if no key is required. Reads `api_key_file` once.

        Raises:
            BadSetting: the file of keys cannot be read, or all keys are blank.
        """
        lines = [] if self.api_key is None else [self.api_key]
        if self.api_key_file is not None:
            try:
                lines += self.api_key_file.read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise BadSetting(
                    f"{self.api_key_file}: the file of keys cannot be read ({type(error).__name__})"
                ) from None
        keys = tuple(line.strip().encode() for line in lines if line.strip())
        if not keys and (self.api_key is not None or self.api_key_file is not None):
            raise BadSetting("the API key is blank: give at least one character, or leave it out")
        return keys

    @cached_property
    def compared_servers(self) -> list[str]:
        """The addresses that `compare_with` lists; raises BadSetting if it is wrong."""
        return parse_servers(self.compare_with)

    @property
    def served_model_name(self) -> str:
        """The name of the model in requests and answers: by default the last part of its path or id."""
        return self.name or Path(self.model).name or self.model

    @cached_property
    def adapter_by_name(self) -> dict[str, str]:
        """The adapters that `adapters` names; raises BadSetting if it is wrong."""
        return parse_adapters(self.adapters, self.served_model_name)


def is_loopback_host(host: str) -> bool:
    """Whether a host name or address is only reachable from this machine."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_settings(values: Mapping[str, Any], config_file: Path | None = None) -> Settings:
    """Reads each setting from the first source that has it.

    The sources are `values`, the environment (`IDEFICS_PORT`), a TOML file (`port = 8000`), and the defaults.

    Args:
        values: settings by name, as given by flags.
        config_file: the TOML file.

    Raises:
        BadSetting: a value is not allowed, a name is unknown, or the file cannot be read.
        MissingExtra: the extra is not installed.
    """
    try:
        from pydantic import ConfigDict, ValidationError, create_model
    except ModuleNotFoundError:
        raise MissingExtra("the server", "serve") from None

    hints = get_type_hints(Settings)
    fields_by_name: dict[str, Any] = {one.name: (hints[one.name], one.default) for one in fields(Settings)}
    reader = create_model("Reader", __config__=ConfigDict(extra="forbid"), **fields_by_name)
    environment = {
        name: value for name in fields_by_name if (value := os.environ.get(ENVIRONMENT_PREFIX + name.upper()))
    }
    if config_file is not None and not config_file.is_file():
        raise BadSetting(f"{config_file}: no such file")
    try:
        file_values = {} if config_file is None else tomllib.loads(config_file.read_text(encoding="utf-8"))
        return Settings(**dict(reader(**{**file_values, **environment, **values})))
    except ValidationError as error:
        raise BadSetting("; ".join(_describe_setting_error(one) for one in error.errors())) from None
    except (tomllib.TOMLDecodeError, OSError, UnicodeDecodeError) as error:
        raise BadSetting(f"{config_file} cannot be read: {error}") from None


def _describe_setting_error(error: Mapping[str, Any]) -> str:
    """The message for one of pydantic's errors about a setting: its name, its value and what is allowed."""
    name = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        return f"unknown setting {name!r}; docs/server.md lists all"
    return f"{name} is {error['input']!r}: {error['msg'][:1].lower()}{error['msg'][1:]}"
