"""Commit files to a repository on the Hub in one step, and say what to do when the Hub refuses.

- An existing repository is never made private or public: a push that asks for a private repository is refused
  if a public one exists.
- The commit names the commit that it builds on, so that it cannot overwrite what others commit meanwhile.
- The commit also deletes weight files that an earlier push left under other names, because `from_pretrained`
  and timm would find them. Nothing else is deleted, and nothing in Spaces.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError

RepoFiles = dict[str, Path | bytes]
"""Path in the repository -> the file to upload, or its content."""

WEIGHTS = re.compile(r"(model(-\d+-of-\d+)?\.safetensors|pytorch_model(-\d+-of-\d+)?\.bin)(\.index\.json)?")
"""Names at the root of a model repository under which libraries look for weights."""

REPO_TYPES = ("model", "dataset", "space")

TRANSIENT = (408, 412, 429)
"""HTTP statuses below 500 after which the same push may succeed: timeout, commit by others, busy Hub."""


@dataclass(frozen=True)
class Destination:
    """Repository and branch of a push. The fields are arguments of `hub.push`."""

    repo_id: str
    repo_type: str
    private: bool | None = None
    revision: str | None = None
    create_pr: bool = False

    @property
    def repo(self) -> dict[str, str]:
        """The arguments by which methods of `HfApi` find the repository."""
        return {"repo_id": self.repo_id, "repo_type": self.repo_type}

    @property
    def branch(self) -> str:
        return self.revision or "main"

    def __str__(self) -> str:
        return f"{self.repo_type} repository {self.repo_id}"


def commit_files(
    files: RepoFiles, destination: Destination, message: str, token: str | None
) -> tuple[str | None, list[str]]:
    """Commit files, and delete weights under other names with the same commit.

    Args:
        files: Files of the commit.
        destination: Repository and branch to commit to; both are created if they do not exist.
        message: Commit message.
        token: Access token; by default the one of `hf auth login`, or HF_TOKEN.

    Returns:
        Address of the commit or pull request (None if the repository held the same files already), and the
        names of the deleted files.
    """
    token = token or get_token()
    if not token:
        raise PermissionError(
            "no access token was found, and the Hub accepts no files without one: run `hf auth login`, set "
            "HF_TOKEN, or pass a token with the right to write"
        )
    api = HfApi(token=token)
    with _errors_explained(api, destination):
        _create_missing(api, destination)
        parent = api.repo_info(**destination.repo, revision=destination.branch).sha
        stale = _list_stale_weights(api, destination, parent, files)
    operations = [CommitOperationAdd(name, content) for name, content in files.items()]
    operations += [CommitOperationDelete(name) for name in stale]
    with _errors_explained(api, destination, parent):
        commit = api.create_commit(
            **destination.repo,
            operations=operations,
            commit_message=message,
            revision=destination.branch,
            create_pr=destination.create_pr,
            parent_commit=parent,
        )
    return None if commit.oid == parent else commit.pr_url or commit.commit_url, stale


def find_stale_weights(files: RepoFiles, destination: Destination, token: str | None) -> list[str] | None:
    """List the weights that a push would delete, or return None if the Hub does not answer."""
    api = HfApi(token=token)
    for revision in dict.fromkeys([destination.branch, "main"]):  # a new branch begins as a copy of main
        try:
            return _list_stale_weights(api, destination, revision, files)
        except Exception as error:  # the Hub's client raises many types
            http = _http_error(error)
            if http is None or http.response.status_code != 404:
                return None
    return []


def _list_stale_weights(api: HfApi, destination: Destination, revision: str, files: RepoFiles) -> list[str]:
    if destination.repo_type != "model":
        return []
    names = api.list_repo_files(**destination.repo, revision=revision)
    return [name for name in names if WEIGHTS.fullmatch(name) and name not in files]


def _create_missing(api: HfApi, destination: Destination) -> None:
    """Create the repository and the branch if they do not exist."""
    existing = _find_repo(api, destination.repo_id, destination.repo_type)
    if existing is None:
        if destination.create_pr:
            raise FileNotFoundError(
                f"there is no {destination}{_describe_namesake(api, destination)}: a pull request needs an "
                "existing repository; push without a pull request first"
            )
        space_sdk = "gradio" if destination.repo_type == "space" else None
        api.create_repo(**destination.repo, private=destination.private, space_sdk=space_sdk)
    elif destination.private and not existing.private:
        raise FileExistsError(
            f"the {destination} exists and is public: choose another name, make it private on the Hub, or "
            "push without asking for a private repository"
        )
    if destination.branch != "main" and not destination.branch.startswith("refs/pr/"):
        api.create_branch(**destination.repo, branch=destination.branch, exist_ok=True)


def _find_repo(api: HfApi, repo_id: str, repo_type: str) -> Any:
    """Return what the Hub says about a repository, or None if there is none."""
    try:
        return api.repo_info(repo_id, repo_type=repo_type)
    except HfHubHTTPError as error:
        if error.response.status_code == 404:
            return None
        raise


def _describe_namesake(api: HfApi, destination: Destination) -> str:
    """Mention a repository of the same name and another type."""
    for repo_type in REPO_TYPES:
        if repo_type != destination.repo_type and _find_repo(api, destination.repo_id, repo_type):
            return f" ({destination.repo_id} is a {repo_type})"
    return ""


@contextmanager
def _errors_explained(api: HfApi, destination: Destination, parent: str | None = None) -> Iterator[None]:
    """Replace the errors of the Hub's client, which have many types, by ones that say what to do.

    Args:
        api: Client of the Hub.
        destination: Repository and branch of the push.
        parent: Last commit before the push, or None as long as nothing has been sent.
    """
    try:
        yield
    except (FileExistsError, FileNotFoundError):
        raise
    except Exception as error:
        http = _http_error(error)
        status = http and http.response.status_code
        error_type, advice = _advise(status, destination)
        said = (http and http.server_message) or str(error) or type(error).__name__
        reason = advice or " ".join(said.split())
        if parent is None:
            message = f"{destination} could not be prepared, and nothing was sent: {reason}"
        else:
            outcome = _describe_outcome(api, destination, parent, status)
            message = f"the push to {destination} was interrupted: {reason.rstrip('.')}. {outcome}"
        raise error_type(message) from error


def _http_error(error: BaseException | None) -> HfHubHTTPError | None:
    """Return the answer of the Hub behind an error, if there is one."""
    while error is not None and not isinstance(error, HfHubHTTPError):
        error = error.__cause__
    return error


def _advise(status: int | None, destination: Destination) -> tuple[type[OSError], str]:
    """Return the type of error and the advice for an HTTP status, if the status alone says what to do."""
    owner, repo_id = destination.repo_id.partition("/")[0], destination.repo_id
    refusals = {
        401: (PermissionError, "the Hub does not accept the token; create a new one, and log in"),
        403: (PermissionError, f"the token may not write to repositories of {owner}; use one that may"),
        404: (FileNotFoundError, f"the Hub has no revision {repo_id}@{destination.branch} for this token"),
        409: (FileExistsError, f"{repo_id} belongs to a repository that this token cannot see; choose another"),
        412: (ConnectionError, "somebody has committed meanwhile; look at their commit and push again"),
    }
    return refusals.get(status, (ConnectionError, ""))


def _describe_outcome(api: HfApi, destination: Destination, parent: str, status: int | None) -> str:
    """Say what an interrupted push has left behind, as far as the Hub can be asked, and what to do."""
    target = f"{destination.repo_id}@{destination.branch}"
    try:
        unchanged = api.repo_info(**destination.repo, revision=destination.branch).sha == parent
    except Exception:  # for example the one that interrupted the push
        unchanged = False
    if not unchanged:
        return f"Look at {target} before you push again: it may have changed"
    is_final = status is not None and 400 <= status < 500 and status not in TRANSIENT
    return f"{target} is as it was before" + ("" if is_final else "; push again")
