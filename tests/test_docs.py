"""The documents against the code: links to tests, fields of reports, codes of warnings."""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path

import pytest

from fastpack import model

ROOT = Path(__file__).resolve().parent.parent


def functions(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


def test_every_row_of_the_relocation_table_has_tests_named_after_it() -> None:
    rows = re.findall(r"^\| (\d+a?) \|(.*)\|$", (ROOT / "docs/relocation.md").read_text(), re.MULTILINE)
    assert [number for number, _ in rows] == [*"12345", "6", "6a", "7", "8", "8a", "9", *map(str, range(10, 19))]
    for number, text in rows:
        links = re.findall(r"\[(test_\w+)\]\((\.\./tests/\w+\.py)\)", text)
        assert links, f"row {number} has no test"
        for name, path in links:
            assert name.startswith(f"test_row_{number}_"), name
            assert name in functions((ROOT / "docs" / path).resolve()), name


REPORTS = {
    "pack": model.PackReport, "unpack": model.UnpackReport, "relocate": model.RelocateReport,
    "verify": model.VerifyReport, "inspect": model.InspectReport, "ls": model.ListReport, "cat": model.CatReport,
    "status": model.StatusReport, "bench": model.BenchReport, "diff": model.DiffReport,
    "delta": model.DeltaReport, "apply": model.ApplyReport, "cache": model.CacheReport,
}  # fmt: skip


@pytest.mark.parametrize("command", REPORTS)
def test_every_field_of_a_report_is_documented(command: str) -> None:
    text = (ROOT / "docs/json.md").read_text()
    block = re.search(rf"^- `{command}`: (.*?)(?=^- `|^## )", text, re.MULTILINE | re.DOTALL)
    assert block is not None
    documented = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]*)`", block[1]))))
    fields = {field.name for field in dataclasses.fields(REPORTS[command])} - {"warnings"}
    assert fields <= documented, fields - documented


def test_every_code_of_a_warning_is_documented() -> None:
    used = set()
    for path in (ROOT / "fastpack").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id == "Warned"
                and node.args
            ):
                used.add(ast.literal_eval(node.args[0]))
    text = (ROOT / "docs/json.md").read_text().split("## Codes of warnings")[1]
    assert used == set(re.findall(r"`([\w-]+)`", text))
