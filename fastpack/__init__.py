"""fastpack: pack a conda environment into one archive, and run it on a machine without conda, network or root."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastpack._version import VERSION as __version__
from fastpack.errors import FastpackError

if TYPE_CHECKING:
    from fastpack.api import Environment, pack, relocate, unpack

__all__ = ["Environment", "FastpackError", "__version__", "pack", "relocate", "unpack"]


def __getattr__(name: str) -> Any:
    """The API is loaded when it is first used: ``fastpack --version`` and ``unpack`` need no numpy."""
    if name in ("Environment", "pack", "relocate", "unpack"):
        from fastpack import api  # noqa: PLC0415

        value = getattr(api, name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
