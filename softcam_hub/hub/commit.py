"""Commit files to a repository on the Hub in one step, and say what to do when the Hub refuses.

- An existing repository is never made private or public: a push that asks for a private repository is refused
  if a public one exists.
- The commit names the commit that it builds on, so that it cannot overwrite what others commit meanwhile.
- The commit also deletes weight files that an earlier push left under other names, because `from_pretrained`
  and timm would find them. Nothing else is deleted, and nothing in Spaces.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError

RepoFiles = dict[str, Path | bytes]
"""Path in the repository -> the file to upload, or its content."""

WEIGHTS = re.compile(r"(model(-\d+-of-\d+)?\.safetensors|pytorch_model(-\d+-of-\d+)?\.bin)(\.index\.json)?")
"""Names at the root of a model repository under which libraries look for weights."""


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
    try:
        parent = _prepare(api, destination)
        stale = _list_stale_weights(api, destination, parent, files)
    except FileExistsError:
        raise
    except Exception as error:  # the Hub's client raises many types
        raise _explain(error, destination, "could not be prepared, and nothing was sent") from error
    operations = [CommitOperationAdd(name, content) for name, content in files.items()]
    operations += [CommitOperationDelete(name) for name in stale]
    try:
        commit = api.create_commit(
            **destination.repo,
            operations=operations,
            commit_message=message,
            revision=destination.branch,
            create_pr=destination.create_pr,
            parent_commit=parent,
        )
    except Exception as error:
        outcome = "was interrupted; a commit arrives as a whole or not at all"
        raise _explain(error, destination, outcome) from error
    return None if commit.oid == parent else commit.pr_url or commit.commit_url, stale


def find_stale_weights(files: RepoFiles, destination: Destination, token: str | None) -> list[str] | None:
    """List the weights that a push would delete, or return None if the Hub does not answer."""
    api = HfApi(token=token)
    for revision in dict.fromkeys([destination.branch, "main"]):  # a new branch begins as a copy of main
        try:
            return _list_stale_weights(api, destination, revision, files)
        except Exception as error:  # the Hub's client raises many types
            http = _find_answer(error)
            if http is None or http.response.status_code != 404:
                return None
    return []


def _list_stale_weights(api: HfApi, destination: Destination, revision: str, files: RepoFiles) -> list[str]:
    if destination.repo_type != "model":
        return []
    names = api.list_repo_files(**destination.repo, revision=revision)
    return [name for name in names if WEIGHTS.fullmatch(name) and name not in files]


def _prepare(api: HfApi, destination: Destination) -> str:
    """Create the repository and the branch if they do not exist, and return the last commit of the branch.

    A pull request creates neither, because a mistyped name would leave an empty repository behind.
    """
    repo, branch = destination.repo, destination.branch
    if not destination.create_pr:
        if destination.private and api.repo_exists(**repo) and not api.repo_info(**repo).private:
            raise FileExistsError(
                f"the {destination} exists and is public: choose another name, make it private on the Hub, or "
                "push without asking for a private repository"
            )
        space_sdk = "gradio" if destination.repo_type == "space" else None
        api.create_repo(**repo, private=destination.private, space_sdk=space_sdk, exist_ok=True)
        if branch != "main" and not branch.startswith("refs/pr/"):
            api.create_branch(**repo, branch=branch, exist_ok=True)
    return api.repo_info(**repo, revision=branch).sha


def _explain(error: Exception, destination: Destination, outcome: str) -> OSError:
    """Return an error that says what to do in place of one of the Hub's client, which have many types.

    Args:
        error: Error of the client.
        destination: Repository and branch of the push.
        outcome: State that the push has left behind.
    """
    owner, target = destination.repo_id.partition("/")[0], f"{destination.repo_id}@{destination.branch}"
    refusals = {
        401: (PermissionError, "the Hub does not accept the token; create a new one, and log in"),
        403: (PermissionError, f"the token may not write to repositories of {owner}; use one that may"),
        404: (FileNotFoundError, f"the Hub has no {destination.repo_type} {target} that this token can see"),
        412: (ConnectionError, "somebody has committed meanwhile; look at their commit and push again"),
    }
    http = _find_answer(error)
    said = (http and http.server_message) or str(error) or type(error).__name__
    error_type, reason = refusals.get(http and http.response.status_code, (ConnectionError, " ".join(said.split())))
    return error_type(f"the push to the {destination} {outcome}: {reason}")


def _find_answer(error: BaseException | None) -> HfHubHTTPError | None:
    """Return the answer of the Hub behind an error, if there is one."""
    while error is not None and not isinstance(error, HfHubHTTPError):
        error = error.__cause__
    return error
