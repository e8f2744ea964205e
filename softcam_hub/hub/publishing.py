"""Publish a model folder, or one of our Spaces, on the Hugging Face Hub in one commit.

- Everything is checked before anything is sent, and the commit is atomic: an interrupted push changes
  nothing.
- The code of `models/` and a card are added if the folder lacks them. Pickled files are refused, and local
  paths are removed from the published records.
"""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..files import is_draft
from .cards import (
    PLACEHOLDER_REPO,
    check_card,
    load_model_record,
    published_records,
    read_model_config,
    render_trained_card,
)
from .commit import Destination, RepoFiles, commit_files, find_stale_weights

PUBLISHED_SUFFIXES = (
    *(".json", ".jsonl", ".md", ".onnx", ".py", ".safetensors", ".txt", ".yaml"),
    *(".jpeg", ".jpg", ".png", ".webp"),
)
"""Suffixes of the files that are published; others stay behind."""

PICKLE_SUFFIXES = (".bin", ".ckpt", ".h5", ".joblib", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth")
"""Suffixes of files that can run code when they are read."""

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
"""Name of a Space for `push_space` -> the Space."""


@dataclass(frozen=True)
class PushResult:
    """Files that a push sent to the Hub, or would send.

    Args:
        repo_id: Repository of the push.
        files: Path in the repository -> size in bytes.
        url: Address of the commit or pull request; None after a dry run, and if nothing had changed.
        deleted: Names of older weight files that the commit deleted; None if a dry run could not ask the Hub.
    """

    repo_id: str
    files: dict[str, int]
    url: str | None = None
    deleted: list[str] | None = None

    def describe(self) -> str:
        """List the files with their sizes, and the deleted weights, one in a line."""
        lines = [f"{size:>12,}  {name}" for name, size in self.files.items()]
        lines.append(f"{sum(self.files.values()):>12,}  bytes in {len(self.files)} files")
        if self.deleted is None:
            lines.append(f"the Hub does not say which older weights in {self.repo_id} would be deleted")
        else:
            lines += [f"{'delete':>12}  {name}, weights under another name" for name in self.deleted]
        return "\n".join(lines)


def push(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    message: str | None = None,
    token: str | None = None,
    dry_run: bool = False,
) -> PushResult:
    """Publish a model folder on the Hub: weights, configuration, code, card, pictures and metrics.

    The commit also deletes weight files that an earlier push left at the root of the repository under other
    names.

        softcam_hub.push("runs/lesions-cape/model", "you/lesions", dry_run=True).describe()

    Args:
        folder: Folder that `save_pretrained` or a training run wrote. Its subfolders are not published.
        repo_id: Repository to push to, such as "you/lesions". It is created if it does not exist.
        private: Create the repository as private. An existing public repository is refused.
        revision: Branch to commit to; by default "main". It is created if it does not exist.
        create_pr: Open a pull request instead of committing.
        message: Commit message.
        token: Access token; by default the one of `hf auth login`, or HF_TOKEN.
        dry_run: Check everything and ask the Hub what would be deleted, but send nothing.
    """
    check_repo_id(repo_id)
    folder = Path(folder)
    files = model_files(folder, repo_id)
    destination = Destination(repo_id, "model", private, revision, create_pr)
    message = message or f"Upload {read_model_config(folder)['architecture']}"
    return _push(files, destination, message, token, dry_run)


def push_space(
    name: str,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    message: str | None = None,
    token: str | None = None,
    dry_run: bool = False,
) -> PushResult:
    """Publish a Space: the explanation scores as an `evaluate` module with a page, or the demo page.

    Args:
        name: Name of the Space, "scores" or "demo".
        repo_id: Repository to push to, such as "you/explanation_scores". It is created if it does not exist.
        private: Create the repository as private. An existing public repository is refused.
        revision: Branch to commit to; by default "main". It is created if it does not exist.
        create_pr: Open a pull request instead of committing.
        message: Commit message.
        token: Access token; by default the one of `hf auth login`, or HF_TOKEN.
        dry_run: List the files, but send nothing.
    """
    check_repo_id(repo_id)
    files = space_files(name, repo_id)
    destination = Destination(repo_id, "space", private, revision, create_pr)
    return _push(files, destination, message or f"Upload {name}", token, dry_run)


def _push(files: RepoFiles, destination: Destination, message: str, token: str | None, dry_run: bool) -> PushResult:
    sizes = {}
    for name, file in files.items():
        sizes[name] = len(file) if isinstance(file, bytes) else file.stat().st_size
    if dry_run:
        return PushResult(destination.repo_id, sizes, deleted=find_stale_weights(files, destination, token))
    return PushResult(destination.repo_id, sizes, *commit_files(files, destination, message, token))


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
    if "AutoModelForImageClassification" not in config.get("auto_map", {}):
        raise ValueError(
            f"transformers could not load {folder} from the Hub, because its config.json names no code: the "
            "folder was not written by save_pretrained of our models. Load it with our class and save it "
            "again"
        )
    candidates = sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    pickled = [file.name for file in candidates if file.suffix in PICKLE_SUFFIXES]
    if pickled:
        raise ValueError(
            f"{folder} holds {', '.join(pickled)}: pickled files can run code when they are read, and are "
            "not published. Delete them, or save the model again with save_pretrained"
        )
    if not any(file.suffix == ".safetensors" for file in candidates):
        raise FileNotFoundError(f"{folder} holds no weights: expected the model.safetensors of save_pretrained")
    files: RepoFiles = {file.name: file for file in candidates if _is_published(file)}
    files |= published_records(folder)
    for code in sorted(CODE.glob("*.py")):
        if code.name != "__init__.py":
            files.setdefault(code.name, code)
    files["README.md"] = _finish_card(folder, repo_id, set(files)).encode()
    return dict(sorted(files.items()))


def _finish_card(folder: Path, repo_id: str, present: set[str]) -> str:
    """Return the card of a model folder with the name of its repository, and check it."""
    file = folder / "README.md"
    card = file.read_text(encoding="utf-8") if file.exists() else None
    card = (card or render_trained_card(load_model_record(folder))).replace(PLACEHOLDER_REPO, repo_id)
    try:
        check_card(card, present=present)
    except ValueError as error:
        raise ValueError(f"README.md of {folder}: {error}. `softcam-hub card` writes a new card") from error
    return card


def space_files(name: str, repo_id: str) -> RepoFiles:
    """Collect everything that the repository of a Space will hold.

    Args:
        name: Name of the Space.
        repo_id: Repository that the README names.
    """
    if name not in SPACES:
        raise ValueError(f"there is no Space {name!r}: expected one of {', '.join(SPACES)}")
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


def _is_published(file: Path) -> bool:
    return file.suffix in PUBLISHED_SUFFIXES and not is_draft(file)
