"""Publishing on the Hugging Face Hub: a model folder, or a Space of ours, in one commit.

- Everything is checked before anything is sent, and the commit is atomic: a push that breaks off changes nothing.
- Where the folder lacks them, the code of `models/` and the card go along. Pickles never do, nor local paths.
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
from .commit import Destination, RepoFiles, deliver, find_stale

PUBLISHED_SUFFIXES = (
    *(".json", ".jsonl", ".md", ".onnx", ".py", ".safetensors", ".txt", ".yaml"),
    *(".jpeg", ".jpg", ".png", ".webp"),
)
"""What a repo of ours is made of."""

PICKLE_SUFFIXES = (".bin", ".ckpt", ".h5", ".joblib", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth")
"""What runs code when it is read, or can."""

PACKAGE = Path(__file__).parents[1]
CODE = PACKAGE / "models"


@dataclass(frozen=True)
class Space:
    """A folder that is pushed as a Space; its README names itself `<user>/<name of the folder>`.

    Args:
        folder: what is pushed.
        evaluated: whether it is an `evaluate` module, which is found by the name of the repo.
        with_package: whether our package goes along, for it to import.
    """

    folder: Path
    evaluated: bool = False
    with_package: bool = False


SPACES = {
    "scores": Space(PACKAGE / "explanation_scores", evaluated=True),
    "demo": Space(PACKAGE / "hub" / "spaces" / "demo", with_package=True),
}
"""The Spaces that can be pushed, by name."""


@dataclass(frozen=True)
class PushResult:
    """What went to the Hub, or would go.

    Args:
        repo_id: where.
        files: path in the repo -> bytes.
        url: of the commit, or of the pull request; None on a dry run, and where the repo held all of it already.
        deleted: weights that lay in the repo under other names, where they would be found beside the new ones; None
            where a dry run could not ask the Hub.
    """

    repo_id: str
    files: dict[str, int]
    url: str | None = None
    deleted: list[str] | None = None

    def describe(self) -> str:
        lines = [f"{size:>12,}  {name}" for name, size in self.files.items()]
        lines.append(f"{sum(self.files.values()):>12,}  bytes in {len(self.files)} files")
        if self.deleted is None:
            lines.append(f"the Hub does not tell whether {self.repo_id} holds weights that would be deleted")
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
    """Publish a model folder: weights, configuration, code, card, pictures, metrics.

    Weights that an earlier push left at the root of the repo under other names are deleted with the same commit.

        softcam_hub.push("runs/lesions-cape/model", "you/lesions", dry_run=True).describe()

    Args:
        folder: what `save_pretrained` or a training run wrote; its subfolders stay behind.
        repo_id: `user/name`; the repo is made if there is none.
        private: of a repo that is made; an existing public one is refused.
        revision: a branch, which is made if there is none.
        create_pr: open a pull request instead of committing.
        message: of the commit.
        token: by default that of `hf auth login`, or HF_TOKEN.
        dry_run: check everything, ask the Hub what would be deleted, and send nothing.
    """
    check_repo_id(repo_id)
    files = model_files(Path(folder), repo_id)
    target = Destination(repo_id, "model", private, revision, create_pr)
    return _deliver(
        files, target, message or f"Upload {read_model_config(Path(folder))['architecture']}", token, dry_run
    )


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
    """Publish a Space: `scores`, the page and `evaluate` module of the explanation scores. Arguments as of `push`."""
    check_repo_id(repo_id)
    files = space_files(name, repo_id)
    target = Destination(repo_id, "space", private, revision, create_pr)
    return _deliver(files, target, message or f"Upload {name}", token, dry_run)


def _deliver(files: RepoFiles, target: Destination, message: str, token: str | None, dry_run: bool) -> PushResult:
    sizes = {name: len(made) if isinstance(made, bytes) else made.stat().st_size for name, made in files.items()}
    if dry_run:
        return PushResult(target.repo_id, sizes, deleted=find_stale(files, target, token))
    done = deliver(files, target, message, token)
    return PushResult(target.repo_id, sizes, done.url, done.deleted)


def check_repo_id(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} is no name of a repo: {error}") from error
    if repo_id.count("/") != 1 or repo_id == PLACEHOLDER_REPO:
        raise ValueError(f"{repo_id!r} is no name of a repo: expected your user or organisation, a slash and a name")


def model_files(folder: Path, repo_id: str) -> RepoFiles:
    """Everything that a model's repo holds, checked."""
    config = read_model_config(folder)
    if "AutoModelForImageClassification" not in config.get("auto_map", {}):
        raise ValueError(
            f"{folder} was not written by save_pretrained of our models (its config.json names no code), so that "
            "transformers could not load it from the Hub: load it with our class and save it again"
        )
    found = sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    pickled = [file.name for file in found if file.suffix in PICKLE_SUFFIXES]
    if pickled:
        raise ValueError(
            f"{folder} holds {', '.join(pickled)}: pickled files can run code when they are read, and are not "
            "published. Delete them, or save the model anew with save_pretrained"
        )
    if not any(file.suffix == ".safetensors" for file in found):
        raise FileNotFoundError(f"{folder} holds no weights: expected model.safetensors, which save_pretrained writes")
    files: RepoFiles = {file.name: file for file in found if file.suffix in PUBLISHED_SUFFIXES}
    files |= published_records(folder)
    for code in sorted(CODE.glob("*.py")):
        if code.name != "__init__.py":
            files.setdefault(code.name, code)
    files["README.md"] = _card(folder, repo_id, set(files)).encode()
    return dict(sorted(files.items()))


def _card(folder: Path, repo_id: str, present: set[str]) -> str:
    file = folder / "README.md"
    card = file.read_text(encoding="utf-8") if file.exists() else render_trained_card(load_model_record(folder))
    card = card.replace(PLACEHOLDER_REPO, repo_id)
    try:
        check_card(card, present=present)
    except ValueError as error:
        raise ValueError(f"README.md of {folder}: {error}. `softcam-hub card` writes a card anew") from error
    return card


def space_files(name: str, repo_id: str) -> RepoFiles:
    """Everything that a Space's repo holds."""
    if name not in SPACES:
        raise ValueError(f"there is no Space {name!r}: expected one of {', '.join(SPACES)}")
    folder, (user, own) = SPACES[name].folder, repo_id.split("/")
    if SPACES[name].evaluated and own != folder.name:
        raise ValueError(f"evaluate.load({repo_id!r}) would look for {own}.py: name the Space {user}/{folder.name}")
    files: RepoFiles = {
        file.name: file for file in sorted(folder.iterdir()) if file.suffix in PUBLISHED_SUFFIXES and not is_draft(file)
    }
    if SPACES[name].with_package:
        ours = (file for file in sorted(PACKAGE.rglob("*")) if file.suffix in PUBLISHED_SUFFIXES and not is_draft(file))
        files |= {str(PurePosixPath(PACKAGE.name, file.relative_to(PACKAGE))): file for file in ours}
    files["README.md"] = (
        (folder / "README.md").read_text(encoding="utf-8").replace(f"<user>/{folder.name}", repo_id).encode()
    )
    return files
