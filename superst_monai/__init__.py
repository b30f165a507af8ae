"""Super-resolved spatial gene expression from histology; importing this package loads none of its libraries.

`Slide`, `read_section` and `open_maps` are found here for short, and imported from their own modules on first use.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from superst_monai.data.slide import Slide
    from superst_monai.data.store import read_section
    from superst_monai.inference.maps import open_maps

    __version__: str

__all__ = ["Slide", "__version__", "open_maps", "read_section"]

_HOME = MappingProxyType(
    {
        "Slide": "superst_monai.data.slide",
        "open_maps": "superst_monai.inference.maps",
        "read_section": "superst_monai.data.store",
    }
)


def __getattr__(name: str) -> object:
    """Import a public name from its module when it is first asked for (PEP 562).

    Raises:
        AttributeError: the package has no such name.
    """
    if name == "__version__":
        return version("superst-monai")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; its names are {', '.join(__all__)}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    """Names offered for completion, the lazy ones among them."""
    return sorted({*globals(), *__all__})
