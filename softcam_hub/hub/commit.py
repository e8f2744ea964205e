"""One commit on the Hub: the repo, its branch, the files, and what to say when the Hub refuses.

- An existing repo is never made private or public: a push that asks for private finds a public repo an error.
- The commit names the one it builds on, so that what others commit meanwhile is not overwritten unseen.
- Weights that an earlier push left under other names go with the commit: `from_pretrained` and timm would find them.
  Nothing else is deleted, and nothing in Spaces.
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
"""Path in the repo -> the file, or its content."""

WEIGHTS = re.compile(r"(model(-\d+-of-\d+)?\.safetensors|pytorch_model(-\d+-of-\d+)?\.bin)(\.index\.json)?")
"""Names, at the root of a model repo, under which weights are looked for."""

REPO_TYPES = ("model", "dataset", "space")

TRANSIENT = (408, 412, 429)
"""Refusals after which the same push may pass: a timeout, a commit meanwhile, too many requests."""


@dataclass(frozen=True)
class Destination:
    """Where a push goes; the fields are arguments of `hub.push`."""

    repo_id: str
    kind: str
    private: bool | None = None
    revision: str | None = None
    create_pr: bool = False

    @property
    def named(self) -> dict[str, Any]:
        return {"repo_id": self.repo_id, "repo_type": self.kind}

    @property
    def base(self) -> str:
        return self.revision or "main"


@dataclass(frozen=True)
class Delivered:
    """What a commit did.

    Args:
        url: of the commit or pull request; None where the repo held all of it already.
        deleted: weights under other names.
    """

    url: str | None
    deleted: list[str]


def deliver(files: RepoFiles, target: Destination, message: str, token: str | None) -> Delivered:
    """Commit the files."""
    token = token or get_token()
    if not token:
        raise PermissionError(
            "the Hub takes nothing without a token: run `hf auth login`, set HF_TOKEN, or give one; it needs the right "
            "to write"
        )
    api, what = HfApi(token=token), f"{target.kind} repo {target.repo_id}"
    with _explained(target, f"{what} could not be prepared, and nothing was sent"):
        _prepare(api, target)
        head = api.repo_info(**target.named, revision=target.base).sha
        stale = _stale(api, target, head, files)
    operations = [CommitOperationAdd(name, content) for name, content in files.items()]
    operations += [CommitOperationDelete(name) for name in stale]
    try:
        with _explained(target, f"the push to {what} broke off"):
            options = {"create_pr": target.create_pr, "parent_commit": head, "commit_message": message}
            done = api.create_commit(**target.named, operations=operations, revision=target.base, **options)
    except OSError as error:
        raise type(error)(f"{error}. {_state(api, target, head, _status(error))}") from error.__cause__
    return Delivered(None if done.oid == head else done.pr_url or done.commit_url, stale)


def find_stale(files: RepoFiles, target: Destination, token: str | None) -> list[str] | None:
    """The weights that a push would delete; None where the Hub does not tell."""
    api = HfApi(token=token)
    for revision in dict.fromkeys([target.base, "main"]):  # a branch that is made begins as main
        try:
            return _stale(api, target, revision, files)
        except Exception as error:  # of the Hub's client, of many kinds
            if _status(error) != 404:
                return None
    return []


def _stale(api: HfApi, target: Destination, revision: str, files: RepoFiles) -> list[str]:
    if target.kind != "model":
        return []
    there = api.list_repo_files(**target.named, revision=revision)
    return [name for name in there if WEIGHTS.fullmatch(name) and name not in files]


def _prepare(api: HfApi, target: Destination) -> None:
    """Make the repo and the branch where there are none."""
    existing = _find(api, target.repo_id, target.kind)
    if existing is None:
        if target.create_pr:
            raise FileNotFoundError(f"{_missing(api, target)}: a pull request needs a repo; push without one first")
        space = {"space_sdk": "gradio"} if target.kind == "space" else {}
        api.create_repo(**target.named, private=target.private, **space)
    elif target.private and not existing.private:
        raise FileExistsError(
            f"{target.kind} repo {target.repo_id} exists and is public: choose another name, make it private on the "
            "Hub, or push without asking for private"
        )
    if target.revision not in (None, "main") and not target.revision.startswith("refs/pr/"):
        api.create_branch(**target.named, branch=target.revision, exist_ok=True)


def _find(api: HfApi, repo_id: str, kind: str) -> Any:
    try:
        return api.repo_info(repo_id, repo_type=kind)
    except HfHubHTTPError as error:
        if error.response.status_code == 404:
            return None
        raise


def _missing(api: HfApi, target: Destination) -> str:
    others = [kind for kind in REPO_TYPES if kind != target.kind and _find(api, target.repo_id, kind)]
    beside = f" ({target.repo_id} is a {others[0]})" if others else ""
    return f"there is no {target.kind} repo {target.repo_id}{beside}"


@contextmanager
def _explained(target: Destination, what: str) -> Iterator[None]:
    """Turn the errors of the Hub's client, of many kinds, into ones that say what to do."""
    try:
        yield
    except (FileExistsError, FileNotFoundError):
        raise
    except Exception as error:
        kind, advice = _advice(_status(error), target)
        raise kind(f"{what}: {advice or _reason(error)}") from error


def _advice(status: int | None, target: Destination) -> tuple[type[OSError], str]:
    owner = target.repo_id.partition("/")[0]
    refusals = {
        401: (
            PermissionError,
            "the Hub does not accept the token; make a new one in its settings, and log in",
        ),
        403: (
            PermissionError,
            f"the token may not write to {owner}'s repos; use one of theirs that may",
        ),
        404: (FileNotFoundError, f"the Hub has no repo or revision {target.repo_id}@{target.base} for this token"),
        409: (
            FileExistsError,
            f"{target.repo_id} is taken by a repo that this token does not see; choose another",
        ),
        412: (ConnectionError, "somebody has committed meanwhile; look at their commit and push again"),
    }
    return refusals.get(status, (ConnectionError, ""))


def _status(error: BaseException | None) -> int | None:
    """HTTP status of the refusal behind an error."""
    while error is not None:
        if isinstance(error, HfHubHTTPError):
            return error.response.status_code
        error = error.__cause__
    return None


def _reason(error: BaseException) -> str:
    """In one line: what the Hub said, else what its client did."""
    said, found = None, error
    while found is not None and not said:
        said, found = getattr(found, "server_message", None), found.__cause__
    return " ".join((said or str(error) or type(error).__name__).split()).rstrip(".")


def _state(api: HfApi, target: Destination, head: str, status: int | None) -> str:
    """What a push that broke off has left behind, as far as the Hub can be asked, and what to do."""
    try:
        same = api.repo_info(**target.named, revision=target.base).sha == head
    except Exception:  # whatever broke the push off
        same = None
    if not same:
        return f"Look at {target.repo_id}@{target.base} before you push again: it may have changed"
    refused = status is not None and 400 <= status < 500 and status not in TRANSIENT
    return f"{target.repo_id}@{target.base} is as it was before" + ("" if refused else "; push again")
