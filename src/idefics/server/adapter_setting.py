"""The setting `adapters` of the server: names of models, and the adapters that answer under them."""

from __future__ import annotations

from idefics.errors import BadSetting

EXAMPLE = "flags=./flags-adapter,plants=owner/plants-adapter"


def parse_adapters(text: str | None, model_name: str) -> dict[str, str]:
    """The folders or hub ids of adapters by the names that clients use.

    Args:
        text: "name=path,name=path"; None: there are none.
        model_name: the name of the model without an adapter.

    Raises:
        BadSetting: a name or a path is missing, or a name is there twice.
    """
    adapters: dict[str, str] = {}
    for part in (text or "").split(",") if text is not None else ():
        name, _, path = (one.strip() for one in part.partition("="))
        if not name or not path:
            raise BadSetting(f"adapters has {part!r}; give names and folders or hub ids, such as {EXAMPLE}")
        if name == model_name:
            raise BadSetting(
                f"adapters has {name!r}, which is the name of the model itself: give another, or --name for the model"
            )
        if name in adapters:
            raise BadSetting(f"adapters has {name!r} twice: give each adapter a name of its own")
        adapters[name] = path
    return adapters
