"""Download the test suites of the installed timm and transformers, and what they need to run, into one folder."""

import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

HELPERS = ("parameterized", "pytest-timeout")
"""Packages that the suites import or that their marks belong to; they stay out of the environment."""

MISSING_MODULES = {
    "__init__.py": "",
    "exporters/__init__.py": "",
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/__init__.py": "",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "utils/__init__.py": "",
    "utils/test_configuration_utils.py": (
        "config_common_kwargs = {\n"
        "    'return_dict': False,\n"
        "    'output_hidden_states': True,\n"
        "    'dtype': 'float16',\n"
        "    'chunk_size_feed_forward': 5,\n"
        "    'architectures': ['AnyModel'],\n"
        "    'id2label': {0: 'cat', 1: 'dog'},\n"
        "    'label2id': {'cat': 0, 'dog': 1},\n"
        "    'problem_type': 'single_label_classification',\n"
        "}\n"
    ),
}
"""Modules that the shared tests of transformers import, but that its source distribution leaves out.

The mixins for text generation and for export are left empty. The common settings are our own choice of values.
"""


def download(folder: Path) -> dict[str, Path]:
    """Return the unpacked source distributions, by name of the package; downloads only what is not there yet.

    Args:
        folder: Folder for everything that is downloaded.
    """
    sources = {package: _source(package, folder) for package in ("timm", "transformers")}
    for name, text in MISSING_MODULES.items():
        file = sources["transformers"] / "tests" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
    packages = folder / "packages"
    if not packages.exists():
        _pip("install", "--no-deps", "--target", str(packages), *HELPERS)
    return sources


def _source(package: str, folder: Path) -> Path:
    """Return the folder of the package's source distribution, in the version that is installed."""
    name = f"{package}-{version(package)}"
    if not (folder / name).exists():
        requirement = f"{package}=={version(package)}"
        _pip("download", "--no-deps", "--no-binary", package, "--dest", str(folder), requirement)
        with tarfile.open(folder / f"{name}.tar.gz") as archive:
            archive.extractall(folder, filter="data")
    return folder / name


def _pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments], check=True)
