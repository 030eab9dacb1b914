"""Reason codes are stable: the code, the table in `bnfold.report` and the documentation name the same ones."""

from __future__ import annotations

import re

from conftest import REPO

from bnfold.report import REASONS

BUILT_FROM_PARTS = {"two-scales", "two-shifts", "scale-in-the-way", "shift-in-the-way"}


def test_the_source_uses_the_codes_of_the_table_and_no_others() -> None:
    source = "\n".join(path.read_text() for path in (REPO / "bnfold" / "fold").rglob("*.py"))
    assert set(re.findall(r'Refusal\(\s*"([a-z0-9-]+)"', source)) <= set(REASONS)
    assert {code for code in REASONS if f'"{code}"' not in source} == BUILT_FROM_PARTS


def test_the_documentation_explains_every_code() -> None:
    text = (REPO / "docs" / "reasons.md").read_text()
    assert re.findall(r"^\| `([a-z0-9-]+)` \|", text, re.MULTILINE) == list(REASONS)
