"""``conda fastpack``: conda finds this module through the entry point ``conda``, and asks it for subcommands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from conda import plugins

from fastpack.conda_cli import main


def _run(arguments: Sequence[str]) -> None:
    main(list(arguments))


@plugins.hookimpl  # type: ignore[untyped-decorator]
def conda_subcommands() -> Iterator[Any]:
    """See conda's manual, "Subcommands"."""
    yield plugins.CondaSubcommand(name="fastpack", summary="Pack an environment into an archive.", action=_run)
