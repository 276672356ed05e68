"""What the server can be told. The flags of `idefics serve` and the list in docs/server.md are made of `Settings`.

Knows no HTTP, and imports nothing that the base installation lacks until a setting is read.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from ipaddress import ip_address
from pathlib import Path
from typing import Any, get_args, get_type_hints

from idefics.catalog import DEFAULT_MODEL
from idefics.config import KernelMode
from idefics.errors import BadSetting, MissingExtra
from idefics.host_memory import parse_memory_size
from idefics.processing import url_policy
from idefics.validation import validate_choice

ENVIRONMENT_PREFIX = "IDEFICS_"  # of the environment's names
ORIGIN_PATTERN = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[^\s:/?#@*\[\]]+)(:\d{1,5})?/?")
DEFAULT_PORT_PATTERN = re.compile(
    r"^(http://.*(?=:80$)|https://.*(?=:443$)):\d+$"
)  # which browsers leave out


def _setting(
    section: str, default: Any, help: str, low: float = 0, high: float = 0, **field_kwargs: Any
) -> Any:
    """A field; `low` and `high` bound a number."""
    return field(
        default=default, metadata={"section": section, "help": help, "range": (low, high)}, **field_kwargs
    )


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that the server can be told, checked.

    Raises:
        BadSetting: a value is out of range, or an address other than this machine's is to be served without a key.
    """

    model: str = _setting(
        "Model", DEFAULT_MODEL, "Short name (`idefics models` lists them), folder or hub id."
    )
    name: str | None = _setting(
        "Model", None, "Model name that clients use; unset: the last part of --model."
    )
    revision: str | None = _setting("Model", None, "Branch, tag or commit on the hub.")
    device: str = _setting("Model", "auto", "auto, cpu, cuda, cuda:1 or mps.")
    dtype: str = _setting("Model", "auto", "auto, float32, bfloat16 or float16.")
    threads: int | None = _setting("Model", None, "Number of CPU threads.", 1, 1024)
    quantize: str | None = _setting("Model", None, "Quantize the weights: int8, int4, fp8, nf4 or fp4.")
    kv_cache: str | None = _setting(
        "Model", None, "Memory for keys and values, such as 1GB, or a share of what is free, such as 0.3."
    )
    batch_rows: int | None = _setting("Model", None, "Prompts that are answered side by side.", 1, 1024)
    kernels: str = _setting(
        "Model", "auto", "What computes: auto (by the kind of processor), autotune or reference."
    )
    offline: bool = _setting("Model", False, "Never use the network for models.")
    host: str = _setting("Address", "127.0.0.1", "Address to listen on.")
    port: int = _setting("Address", 8000, "Port to listen on; 0 takes a free one.", 0, 65535)
    ui: bool = _setting("Address", False, "Serve the web page too, at /.")
    api_key: str | None = _setting(
        "Access",
        None,
        "Key that clients must send as bearer token. Other users of this machine can see flags: prefer the file.",
        repr=False,
    )
    api_key_file: Path | None = _setting("Access", None, "File of such keys, one per line.")  # noqa: RUF009
    insecure: bool = _setting("Access", False, "Serve other machines without a key.")
    allowed_hosts: str | None = _setting(
        "Access",
        None,
        "Names by which the server may be called, with commas between; localhost always. Unset: any, where it has a "
        "key or serves other machines.",
    )
    allowed_origins: str | None = _setting(
        "Access",
        None,
        "Origins of web pages elsewhere that may ask the server (CORS), such as https://app.example.com, with commas "
        "between; * for all, only with a key.",
    )
    remote_images: str = _setting(
        "Access",
        "off",
        "Addresses of pictures that are fetched: off, public, or a list of public hosts with commas between.",
    )
    requests_at_once: int = _setting(
        "Limits", 256, "Requests waiting or running; more are refused.", 1, 100_000
    )
    tokens_at_once: int = _setting(
        "Limits", 250_000, "Tokens in their prompts and answers.", 1, 1_000_000_000
    )
    pictures_at_once: int = _setting("Limits", 128, "Pictures in their prompts.", 1, 100_000)
    megabytes_at_once: int = _setting("Limits", 512, "Size of all requests together, in MB.", 1, 1_000_000)
    fetched_at_once: int = _setting(
        "Limits", 16, "Pictures fetched from other machines at the same time.", 1, 1024
    )
    decoded_at_once: int = _setting("Limits", 2, "Pictures decoded at the same time.", 1, 64)
    body_megabytes: int = _setting("Limits", 20, "Largest request, in MB.", 1, 1024)
    drain: float = _setting(
        "Limits", 30.0, "Seconds that running answers may take after SIGTERM or Ctrl-C.", 0, 86_400
    )

    def __post_init__(self) -> None:
        for setting in fields(self):
            (low, high), value = setting.metadata["range"], getattr(self, setting.name)
            if high and value is not None and not low <= value <= high:
                raise BadSetting(f"{setting.name} is {value!r}; give a number from {low} to {high}")
        parse_memory_size("kv_cache", self.kv_cache)
        validate_choice("kernels", self.kernels, get_args(KernelMode))
        url_policy.parse_allowed_hosts(self.remote_images)
        if self.remote_images == "any":
            raise BadSetting(
                "remote_images is 'any', and clients would reach this machine's own network: give off, public, or "
                "hosts with commas between them; pictures of this network can be sent as data URIs"
            )
        self.allowed_host_names()
        if "*" in self.allowed_origin_set() and not self.has_key:
            raise BadSetting(
                "allowed_origins is *, and there is no key: every web page could ask; list the origins, or give "
                "--api-key-file"
            )
        if not (is_loopback_host(self.host) or self.insecure or self.has_key):
            raise BadSetting(
                f"host is {self.host}, which other machines reach, and there is no key: give --api-key-file (or "
                f"{ENVIRONMENT_PREFIX}API_KEY), or say --insecure if everyone may ask"
            )

    @property
    def has_key(self) -> bool:
        """Whether clients must send a key."""
        return bool(self.api_key or self.api_key_file)

    def api_keys(self) -> tuple[bytes, ...]:
        """The keys that open the server; none where it is open.

        Raises:
            BadSetting: the file of keys cannot be read, or holds none.
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

    def allowed_host_names(self) -> tuple[str, ...]:
        """The names that `allowed_hosts` lists.

        Raises:
            BadSetting: one of them is no name.
        """
        names = tuple(name.strip().lower() for name in (self.allowed_hosts or "").split(",") if name.strip())
        for name in names:
            if re.search(r"[\s:/*\[\]]", name):
                raise BadSetting(
                    f"allowed_hosts has {name!r}; give names as clients call them, without scheme and port, such as "
                    "box,idefics.example.com"
                )
        return names

    def allowed_origin_set(self) -> frozenset[str]:
        """The origins that `allowed_origins` lists, as browsers spell them: in lower case, without the usual port.

        Raises:
            BadSetting: one of them is no origin.
        """
        origins = [one.strip().lower() for one in (self.allowed_origins or "").split(",") if one.strip()]
        for one in origins:
            if one != "*" and not ORIGIN_PATTERN.fullmatch(one):
                raise BadSetting(
                    f"allowed_origins has {one!r}; give origins as browsers send them, scheme and host and any port, "
                    "such as https://app.example.com or http://localhost:3000"
                )
        return frozenset(DEFAULT_PORT_PATTERN.sub(r"\1", one.removesuffix("/")) for one in origins)

    @property
    def served_model_name(self) -> str:
        """What clients call the model. Of a path only the last part is told."""
        return self.name or Path(self.model).name or self.model


def is_loopback_host(host: str) -> bool:
    """Whether an address is one of this machine alone."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_settings(values: Mapping[str, Any], config_file: Path | None = None) -> Settings:
    """What is given, else what the environment says (`IDEFICS_PORT`), else a TOML file (`port = 8000`), else defaults.

    Raises:
        BadSetting: a value cannot be, a name is unknown, or the file cannot be read; the message says which.
        MissingExtra: the extra is not installed.
    """
    try:
        from pydantic import ValidationError, create_model
        from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, TomlConfigSettingsSource
    except ModuleNotFoundError:
        raise MissingExtra("idefics serve", "serve") from None

    class Sources(BaseSettings, env_prefix=ENVIRONMENT_PREFIX, env_ignore_empty=True, extra="forbid"):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            *sources: PydanticBaseSettingsSource,
            **named: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return (
                named["init_settings"],
                named["env_settings"],
                TomlConfigSettingsSource(settings_cls, config_file),
            )

    hints = get_type_hints(Settings)
    fields_by_name: dict[str, Any] = {one.name: (hints[one.name], one.default) for one in fields(Settings)}
    reader = create_model("Reader", __base__=Sources, **fields_by_name)
    if config_file is not None and not config_file.is_file():
        raise BadSetting(f"{config_file}: no such file")
    try:
        return Settings(**dict(reader(**values)))
    except ValidationError as error:
        raise BadSetting("; ".join(_describe_setting_error(one) for one in error.errors())) from None
    except (tomllib.TOMLDecodeError, OSError, UnicodeDecodeError) as error:
        raise BadSetting(f"{config_file} cannot be read: {error}") from None


def _describe_setting_error(error: Mapping[str, Any]) -> str:
    """What pydantic says of one value, for people."""
    name = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        return f"there is no setting {name!r}; docs/server.md lists all"
    return f"{name} is {error['input']!r}: {error['msg'][:1].lower()}{error['msg'][1:]}"
