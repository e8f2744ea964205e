"""Publish a model folder, or one of our Spaces, on the Hugging Face Hub in one commit.

- Everything is checked before anything is sent, and the commit is atomic: an interrupted push changes
  nothing.
- The code of `models/` and a card are added if the folder lacks them, and local paths are removed from the
  published records.
- ONNX files in the subfolder `onnx/` go along. Other subfolders, pickled files, and the state of an optimizer or of
  `Trainer` stay behind, and the result lists them.
"""

from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from huggingface_hub import ModelCard
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..models.configuration import EvidenceConfig
from .cards import (
    PLACEHOLDER_REPO,
    check_card,
    load_model_record,
    published_records,
    published_results,
    read_model_config,
    render_trained_card,
)
from .commit import Destination, RepoFiles, commit_files, find_stale_weights

ONNX_FOLDER = "onnx"
"""Subfolder of a model folder where transformers.js and optimum look for ONNX files, such as `onnx/model.onnx`."""

ONNX_SUFFIXES = (".onnx", ".onnx.data")
"""Ends of the names of ONNX files, and of the weights that `export_onnx` writes beside large ones."""

PUBLISHED_SUFFIXES = (
    *(".json", ".jsonl", ".md", ".py", ".safetensors", ".txt", ".yaml"),
    *(".jpeg", ".jpg", ".png", ".webp"),
    *ONNX_SUFFIXES,
)
"""Ends of the names of the files that are published; others stay behind."""

TRAINER_STATE = ("trainer_state.json", "optimizer.safetensors")
"""Files of a training checkpoint that would be published by their suffix. The first one holds local paths."""

PACKAGE = Path(__file__).parents[1]
CODE = PACKAGE / "models"


@dataclass(frozen=True)
class Space:
    """A folder of the package that can be pushed as a Space.

    Args:
        folder: Folder to push. Its README calls the Space `<user>/<name of the folder>`.
        evaluated: The Space is an `evaluate` module, which is found by the name of its repository.
        with_package: Push our package too, for the Space to import.
    """

    folder: Path
    evaluated: bool = False
    with_package: bool = False


SPACES = {
    "scores": Space(PACKAGE / "explanation_scores", evaluated=True),
    "demo": Space(PACKAGE / "hub" / "spaces" / "demo", with_package=True),
}
"""Name of a Space for `push` -> the Space."""

PAGE, PAGE_MARK = "index.html", '<meta name="generator" content="softcam_hub">'
"""File by which the folder of an exported web page is known, and what it holds."""

PAGE_FILES = (
    *(PAGE, "README.md", "explain.js", "model.onnx"),
    *("runtime/ort.wasm.min.mjs", "runtime/ort-wasm-simd-threaded.mjs", "runtime/ort-wasm-simd-threaded.wasm"),
)
"""Files of an exported web page. Nothing else in its folder is published, replaced or deleted."""


@dataclass(frozen=True)
class PushResult:
    """Files that a push sent to the Hub, or would send.

    Args:
        repo_id: Repository of the push.
        files: Path in the repository -> size in bytes.
        left_out: Files and subfolders of the model folder that are not published.
        url: Address of the commit or pull request; None after a dry run, and if nothing had changed.
        deleted: Names of older weight files that the commit deleted; None if a dry run could not ask the Hub.
    """

    repo_id: str
    files: dict[str, int]
    left_out: list[str] = field(default_factory=list)
    url: str | None = None
    deleted: list[str] | None = None

    def describe(self) -> str:
        """List the files with their sizes, those left out, and the deleted weights, one in a line."""
        lines = [f"{size:>12,}  {name}" for name, size in self.files.items()]
        lines.append(f"{sum(self.files.values()):>12,}  bytes in {len(self.files)} files")
        lines += [f"{'left out':>12}  {name}" for name in self.left_out]
        if self.deleted is None:
            lines.append(f"the Hub does not say which older weights in {self.repo_id} would be deleted")
        else:
            lines += [f"{'delete':>12}  {name}, weights under another name" for name in self.deleted]
        return "\n".join(lines)


def push(
    source: str | Path,
    repo_id: str,
    *,
    repo_type: Literal["model", "space"] = "model",
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    message: str | None = None,
    token: str | None = None,
    dry_run: bool = False,
) -> PushResult:
    """Publish a model folder on the Hub: weights, configuration, code, card, pictures and metrics.

    The commit also deletes weight files that an earlier push left at the root of the repository under other
    names. With `repo_type="space"`, one of our Spaces is published instead: the explanation scores as an
    `evaluate` module with a page, or the demo page.

        softcam_hub.push("runs/lesions-cape/model", "you/lesions", dry_run=True).describe()
        softcam_hub.push("demo", "you/demo", repo_type="space")

    Args:
        source: Folder that `save_pretrained`, a training run or `Trainer` wrote. Of its subfolders, the ONNX files of
            `onnx/` are published. For a Space, its name, "scores" or "demo", or the folder of a page that `export_web`
            wrote.
        repo_id: Repository to push to, such as "you/lesions". It is created if it does not exist.
        repo_type: Type of the repository.
        private: Create the repository as private. An existing public repository is refused.
        revision: Branch to commit to; by default "main". It is created if it does not exist.
        create_pr: Open a pull request in an existing repository instead of committing.
        message: Commit message.
        token: Access token; by default the one of `hf auth login`, or HF_TOKEN.
        dry_run: Check everything and ask the Hub what would be deleted, but send nothing.
    """
    check_repo_id(repo_id)
    if repo_type == "space":
        files, content = space_files(str(source), repo_id), source
        left_out = _left_out_of_page(Path(source), files) if _is_exported_page(Path(source)) else []
    elif repo_type == "model":
        files = model_files(Path(source), repo_id)
        left_out = _list_left_out(Path(source), files)
        content = read_model_config(Path(source))["architecture"]
    else:
        raise ValueError(f"repo_type={repo_type!r} is not possible: expected 'model' or 'space'")
    sizes = {name: len(file) if isinstance(file, bytes) else file.stat().st_size for name, file in files.items()}
    destination = Destination(repo_id, repo_type, private, revision, create_pr)
    if dry_run:
        stale = find_stale_weights(files, destination, token)
        return PushResult(repo_id, sizes, left_out, deleted=stale)
    outcome = commit_files(files, destination, message or f"Upload {content}", token)
    return PushResult(repo_id, sizes, left_out, *outcome)


def check_repo_id(repo_id: str) -> None:
    """Refuse anything but the name of a repository with its owner."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} is not the name of a repository: {error}") from error
    if repo_id.count("/") != 1 or repo_id == PLACEHOLDER_REPO:
        raise ValueError(
            f"{repo_id!r} is not the name of a repository: expected your user or organisation, a slash, a name"
        )


def model_files(folder: Path, repo_id: str) -> RepoFiles:
    """Collect and check everything that the repository of a model will hold.

    Args:
        folder: Model folder.
        repo_id: Repository that the card names.
    """
    config = read_model_config(folder)
    # the code of a registered head is that of its user
    brings_code = config.get("model_type") != EvidenceConfig.model_type
    if brings_code and "AutoModelForImageClassification" not in config.get("auto_map", {}):
        raise ValueError(
            f"transformers could not load {folder} from the Hub, because its config.json names no code: the "
            "folder was not written by save_pretrained of our models. Load it with our class and save it "
            "again"
        )
    files: RepoFiles = {file.name: file for file in sorted(folder.iterdir()) if _is_published(file)}
    if not any(name.endswith(".safetensors") for name in files):
        raise FileNotFoundError(f"{folder} holds no weights: expected the model.safetensors of save_pretrained")
    files |= {**dict(published_records(folder)), **dict(published_results(folder)), **_onnx_files(folder)}
    for code in sorted(CODE.glob("*.py")) if brings_code else ():
        if code.name != "__init__.py":
            files.setdefault(code.name, code)
    files["README.md"] = _finish_card(folder, repo_id, set(files)).encode()
    return dict(sorted(files.items()))


def _onnx_files(folder: Path) -> RepoFiles:
    """Return the ONNX files in the subfolder of a model folder, and the weights beside large ones."""
    exports = folder / ONNX_FOLDER
    files = sorted(exports.iterdir()) if exports.is_dir() else []
    return {
        f"{ONNX_FOLDER}/{file.name}": file
        for file in files
        if _is_published(file) and file.name.endswith(ONNX_SUFFIXES)
    }


def _list_left_out(folder: Path, files: RepoFiles) -> list[str]:
    """List what the folder holds beside its published files, without hidden entries."""
    entries = sorted(folder.iterdir())
    if any(name.startswith(f"{ONNX_FOLDER}/") for name in files):
        exports = folder / ONNX_FOLDER
        entries = [path for path in entries if path != exports] + sorted(exports.iterdir())
    left_out = [path for path in entries if not path.name.startswith(".") and _name_in(folder, path) not in files]
    return [f"{_name_in(folder, path)}/" if path.is_dir() else _name_in(folder, path) for path in left_out]


def _name_in(folder: Path, path: Path) -> str:
    """Return the name that a path below a model folder has in a repository."""
    return path.relative_to(folder).as_posix()


def _finish_card(folder: Path, repo_id: str, present: set[str]) -> str:
    """Return the card of a model folder with the name of its repository, and check it.

    The card that `Trainer` generates is replaced by ours: it names no license and has gaps.
    """
    file = folder / "README.md"
    card = file.read_text(encoding="utf-8") if file.exists() else ""
    data: Any = ModelCard(card, ignore_metadata_errors=True).data
    if not card or "generated_from_trainer" in (data.tags or []):
        card = render_trained_card(load_model_record(folder))
    card = card.replace(PLACEHOLDER_REPO, repo_id)
    try:
        check_card(card, present=present)
    except ValueError as error:
        raise ValueError(f"README.md of {folder}: {error}. `softcam-hub card` writes a new card") from error
    return card


def space_files(name: str, repo_id: str) -> RepoFiles:
    """Collect everything that the repository of a Space will hold.

    Args:
        name: Name of the Space, or folder of an exported web page.
        repo_id: Repository that the README names.
    """
    if _is_exported_page(Path(name)):
        return {file: Path(name) / file for file in sorted(PAGE_FILES) if (Path(name) / file).is_file()}
    if name not in SPACES:
        raise ValueError(
            f"there is no Space {name!r}: expected {', '.join(SPACES)}, or a folder that export --format web wrote"
        )
    space, (user, repo_name) = SPACES[name], repo_id.split("/")
    if space.evaluated and repo_name != space.folder.name:
        raise ValueError(
            f"evaluate.load({repo_id!r}) would look for {repo_name}.py: name the Space {user}/{space.folder.name}"
        )
    files: RepoFiles = {file.name: file for file in sorted(space.folder.iterdir()) if _is_published(file)}
    if space.with_package:
        for file in sorted(PACKAGE.rglob("*")):
            if _is_published(file):
                files[str(PurePosixPath(PACKAGE.name, file.relative_to(PACKAGE)))] = file
    readme = (space.folder / "README.md").read_text(encoding="utf-8")
    files["README.md"] = readme.replace(f"<user>/{space.folder.name}", repo_id).encode()
    return files


def _is_exported_page(folder: Path) -> bool:
    page = folder / PAGE
    return page.is_file() and PAGE_MARK in page.read_text(encoding="utf-8", errors="replace")


def _left_out_of_page(folder: Path, files: RepoFiles) -> list[str]:
    """List the visible entries of the folder of a page that are no part of it."""
    own = {name.partition("/")[0] for name in files}
    return [path.name for path in sorted(folder.iterdir()) if not path.name.startswith(".") and path.name not in own]


def _is_published(file: Path) -> bool:
    is_visible = file.is_file() and not file.name.startswith(".")  # names of drafts begin with a dot
    return is_visible and file.name.endswith(PUBLISHED_SUFFIXES) and file.name not in TRAINER_STATE
