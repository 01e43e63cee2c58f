"""fastpack: pack a conda environment into one archive, and run it on a machine without conda, network or root."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastpack._version import VERSION as __version__
from fastpack.errors import FastpackError

if TYPE_CHECKING:
    from fastpack.api import (
        Environment,
        apply_delta,
        diff,
        disk_usage,
        inspect,
        make_delta,
        pack,
        relocate,
        status,
        unpack,
        verify,
    )

__all__ = [
    "Environment", "FastpackError", "__version__", "apply_delta", "diff", "disk_usage", "inspect", "make_delta", "pack",
    "relocate", "status", "unpack", "verify",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """The API is loaded when it is first used: ``fastpack --version`` and ``unpack`` need no numpy."""
    if name in __all__:
        from fastpack import api  # noqa: PLC0415

        value = getattr(api, name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
