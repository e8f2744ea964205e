"""docs/expectations.md names a test that exists for everything that it promises."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "expectations.md").read_text(encoding="utf-8")
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| You expect")]


def functions_of(file):
    return {node.name for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("row", ROWS)
def test_every_promise_names_a_test_that_exists(row):
    cells = [cell.strip() for cell in row.strip("|").split(" | ")]
    assert len(cells) == 3, "a row is an expectation, an answer and a test"
    if cells[2] == "-":
        return
    name, test = re.fullmatch(r"`(test_\w+\.py)::(test_\w+)`", cells[2]).groups()
    assert test in functions_of(ROOT / "tests" / name), f"tests/{name} has no {test}"


SECTIONS = re.findall("^## (.*)$", PAGE, re.MULTILINE)


@pytest.mark.parametrize("section", SECTIONS)
def test_every_section_is_a_table(section):
    assert f"## {section}\n\n| You expect | Here | Test |\n" in PAGE


@pytest.mark.parametrize("library", ["timm", "transformers", "pytorch-grad-cam", "torch-cam", "captum", "Quantus"])
def test_every_library_has_a_table(library):
    assert f"Users of {library}" in SECTIONS
