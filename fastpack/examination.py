"""What the planning pass found out about the files of an environment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from fastpack._place_py import Stated
from fastpack.listing import Files
from fastpack.model import PLACEHOLDER, Kind, Verdict
from fastpack.relocation import AS_IT_IS, ArchiveForm, Prefixes


class Examined(NamedTuple):
    """What the planning pass found out about a regular file."""

    verdict: Verdict
    form: ArchiveForm = AS_IT_IS
    placeholder: bytes = PLACEHOLDER
    archived: Stated | None = None  # sha256 and size of the archive form, where the form is not the disk's
    on_disk: Stated | None = None
    not_relocated: str = ""  # why, if it names the prefix and stays as it is
    pyc_header: bytes = b""  # of a .pyc, where it was read
    understood: bool = True  # whether the file names in a .pyc could be found


UNTOUCHED = Examined(Verdict.UNMANAGED)


@dataclass(slots=True)
class Examination:
    """The planning pass's results, by path."""

    prefixes: Prefixes
    listed: Files
    excluded: Mapping[str, str]  # by the filters: path -> why
    files: dict[str, Examined] = field(default_factory=dict)  # but for those that are `UNTOUCHED`
    pyc: dict[str, str] = field(default_factory=dict)  # path -> PycAction
    forced_mtimes: dict[str, int] = field(default_factory=dict)  # source -> what its proven .pyc says
    pyc_counts: Counter[str] = field(default_factory=Counter)

    def of(self, path: str) -> Examined | None:
        """The result for a file; None if there is no file of that path, or it is excluded."""
        found = self.files.get(path)
        if found is None and path in self.listed and path not in self.excluded:
            return UNTOUCHED if self.listed[path].kind is Kind.FILE else None
        return found
