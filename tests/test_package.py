"""What a package index shows of this package, and the versions that it asks for."""

import re
import sys
from pathlib import Path

import yaml

import softcam_hub

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
OLDEST = dict(
    line.split("==")
    for line in (ROOT / ".github" / "oldest.txt").read_text().splitlines()
    if line and not line.startswith("#")
)
"""Package -> the version of the set with which the workflow tests the lower bounds."""


def test_the_long_description_has_absolute_links_to_files_that_exist():
    text = (ROOT / "README.md").read_text()
    for step in PYPROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(step["pattern"], step["replacement"].replace("$HFPR_VERSION", PROJECT["version"]), text)
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert len(targets) == len(re.findall(r"\]\(([^)]+)\)", (ROOT / "README.md").read_text())) > 10
    assert all(target.startswith(("https://", "#")) for target in targets)
    name = PROJECT["urls"]["Repository"].removeprefix("https://github.com/")
    ours = re.compile(rf"https://(?:raw\.githubusercontent\.com/{name}|github\.com/{name}/blob)/v{PROJECT['version']}/")
    paths = [ours.sub("", target).partition("#")[0] for target in targets if ours.match(target)]
    assert "docs/photograph.png" in paths
    assert all((ROOT / path).is_file() for path in paths)
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    assert len(pictures) == 2
    for picture in pictures:
        assert picture.startswith("https://raw.githubusercontent.com/"), "a page around a picture is no picture"


def test_the_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert softcam_hub.__version__ == PROJECT["version"] == citation["version"]


def lower_bounds():
    extras = PROJECT["optional-dependencies"]
    wanted = [*PROJECT["dependencies"], *(line for name, lines in extras.items() if name != "docs" for line in lines)]
    return dict(line.split(">=") for line in wanted if ">=" in line)


def test_the_oldest_set_is_that_of_the_lower_bounds():
    bounds = lower_bounds()
    assert {"torch", "timm", "transformers", "datasets", "accelerate"} <= bounds.keys()
    wrong = {name: (bound, OLDEST.get(name)) for name, bound in bounds.items() if not is_same(OLDEST.get(name), bound)}
    assert not wrong, "bound, and version in .github/oldest.txt"


def is_same(version, bound):
    """Tell whether a version is a bound, of which trailing zeros may be left out."""
    return version is not None and re.sub(r"(\.0)+$", "", version) == re.sub(r"(\.0)+$", "", bound)


def test_the_workflow_tests_the_oldest_set_and_the_newest_one():
    steps = (ROOT / ".github" / "workflows" / "tests.yml").read_text()
    jobs = yaml.safe_load(steps)["jobs"]
    (oldest, newest) = jobs["fast"]["strategy"]["matrix"]["include"]
    assert oldest["constraints"] == "-c .github/oldest.txt"
    assert f">={oldest['python']}" == PROJECT["requires-python"]
    assert not newest["constraints"]
    classifiers = [name.rpartition(" :: ")[2] for name in PROJECT["classifiers"] if "Python :: 3." in name]
    assert (oldest["python"], newest["python"]) == (classifiers[0], classifiers[-1])
