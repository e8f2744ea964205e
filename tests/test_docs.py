"""Every Python block of the pages in `docs/` runs as it stands, page by page, in a fresh process in an empty folder.

A page's blocks run one after another, as a reader would type them. A new page needs no line here.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^```python\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
PAGES = {page.name: page.read_text() for page in sorted((ROOT / "docs").glob("*.md"))}
BLOCKS = {name: FENCE.findall(text) for name, text in PAGES.items() if FENCE.search(text)}


def test_pages_have_blocks():
    assert "clients.md" in BLOCKS


@pytest.mark.slow
@pytest.mark.parametrize("page", BLOCKS)
def test_the_blocks_of_a_page_run_one_after_another(page, tmp_path):
    (tmp_path / "page.py").write_text("\n".join(BLOCKS[page]))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "page.py"], capture_output=True, text=True, check=False, env=environment, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES)
def test_links_name_files_that_exist(page):
    for target in re.findall(r"\]\(([^)#]+)\)", PAGES[page]):
        if "://" not in target:
            assert (ROOT / "docs" / target).exists(), f"{page} links to {target}, which does not exist"
