"""The calls of the Hugging Face Hub's API that pushes and pulls make, on repos in memory; `hub_server` serves them.

A repo that a client creates has one empty commit, and dates are constant, so that a test sees only what was pushed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import unquote

Files = dict[str, bytes]
Json = dict[str, Any]
LFS_SUFFIX = ".safetensors"
EVERY_DATE = "2024-01-01T00:00:00.000Z"


class Reply(NamedTuple):
    status: int
    body: bytes = b""
    headers: Mapping[str, str] = {}


class HubError(Exception):
    """A refusal; the client picks its exception class by `code`."""

    def __init__(self, status: int, message: str, code: str = "", **fields: str) -> None:
        super().__init__(message)
        headers = {"X-Error-Message": message.encode("ascii", "replace").decode(), "X-Error-Code": code}
        self.reply = Reply(status, json.dumps({"error": message, **fields}).encode(), headers)


class Request(NamedTuple):
    path_parts: dict[str, str]
    query: dict[str, list[str]]
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Json:
        return json.loads(self.body)


class Commit(NamedTuple):
    sha: str
    files: Files


@dataclass
class Repo:
    kind: str
    id: str
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    sha_by_ref: dict[str, str] = field(default_factory=dict)

    @property
    def web_path(self) -> str:
        return self.id if self.kind == "model" else f"{self.kind}s/{self.id}"

    def ref(self, revision: str) -> str | None:
        names = (f"refs/heads/{revision}", f"refs/tags/{revision}", revision)
        return next((name for name in names if name in self.sha_by_ref), None)

    def at(self, revision: str) -> Commit:
        sha = self.sha_by_ref.get(self.ref(revision) or "", revision)
        if sha not in self.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[sha]

    def commit(self, ref: str, parent: str, title: str, files: Files) -> str:
        tree = sorted((path, hashlib.sha256(content).hexdigest()) for path, content in files.items())
        sha = hashlib.sha1(json.dumps([parent, title, tree]).encode()).hexdigest()
        self.commits[sha] = Commit(sha, files)
        self.sha_by_ref[ref] = sha
        return sha

    def add_ref(self, ref: str, revision: str) -> None:
        if ref in self.sha_by_ref:
            raise HubError(409, f"Reference already exists: {ref}")
        self.sha_by_ref[ref] = self.at(revision).sha

    def commit_target(self, revision: str, parent: str, create_pr: bool) -> tuple[str, Commit]:
        """The ref that a commit is to move, and the commit that it builds on."""
        ref, head = self.ref(revision), self.at(revision)
        if ref is None or ref.startswith("refs/tags/"):
            raise HubError(404, f"Not a branch: {revision}", "RevisionNotFound")
        if create_pr:
            number = 1 + sum(name.startswith("refs/pr/") for name in self.sha_by_ref)
            return f"refs/pr/{number}", self.at(parent or head.sha)
        if not head.sha.startswith(parent):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        return ref, head


def git_sha(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def content_sha(path: str, content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if path.endswith(LFS_SUFFIX) else git_sha(content)


def tree_entry(path: str, content: bytes) -> Json:
    sha = content_sha(path, content)
    entry = {"type": "file", "path": path, "size": len(content), "oid": sha}
    if path.endswith(LFS_SUFFIX):
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha}\nsize {len(content)}\n"
        lfs = {"oid": sha, "size": len(content), "pointerSize": len(pointer)}
        entry |= {"oid": git_sha(pointer.encode()), "lfs": lfs}
    return entry


def is_private(body: Json) -> bool:
    """Tell whether a repository is to be private; clients before huggingface_hub 2 say it in other words."""
    return body.get("visibility") == "private" or bool(body.get("private"))


def delete_where(files: Files, doomed: Callable[[str], bool]) -> None:
    paths = [path for path in files if doomed(path)]
    if not paths:
        raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
    for path in paths:
        del files[path]


def part_of(content: bytes, byte_range: str, headers: Mapping[str, str]) -> Reply:
    """Answers "bytes=5-" and "bytes=5-9"; any other range gets the whole content, as HTTP permits."""
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", byte_range)
    if not match:
        return Reply(200, content, headers)
    start, size = int(match[1]), len(content)
    stop = min(int(match[2] or size) + 1, size)
    if start >= stop:
        return Reply(416, b"", {**headers, "Content-Range": f"bytes */{size}"})
    return Reply(206, content[start:stop], {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{size}"})


class Hub:
    """The repos, and one method per API call."""

    def __init__(self, token: str, user: str, url: str) -> None:
        self.token, self.user, self.url = token, user, url
        self.repos: dict[tuple[str, str], Repo] = {}
        self.lfs_objects: dict[str, bytes] = {}
        self.lfs_expected: set[str] = set()

    def repo(self, kind: str, repo_id: str) -> Repo:
        if (kind, repo_id) not in self.repos:
            raise HubError(404, "Repository not found", "RepoNotFound")
        return self.repos[kind, repo_id]

    def asked_repo(self, request: Request) -> Repo:
        repo = self.repo(request.path_parts.get("kind", "model"), request.path_parts["repo"])
        if repo.private and "Authorization" not in request.headers:
            raise HubError(401, "Invalid username or password.", "RepoNotFound")
        return repo

    def asked_commit(self, request: Request) -> Commit:
        return self.asked_repo(request).at(request.path_parts.get("rev", "main"))

    def named_in_body(self, request: Request) -> tuple[str, str]:
        asked = request.json()
        return asked.get("type", "model"), f"{asked['organization'] or self.user}/{asked['name']}"

    def whoami(self, request: Request) -> Json:
        access = {"accessToken": {"displayName": "tests", "role": "write"}}
        return {"type": "user", "name": self.user, "fullname": self.user, "orgs": [], "auth": access}

    def validate_yaml(self, request: Request) -> Json:
        return {"errors": [], "warnings": []}

    def create_repo(self, request: Request) -> Json:
        repo = Repo(*self.named_in_body(request), private=is_private(request.json()))
        url = f"{self.url}/{repo.web_path}"
        if (repo.kind, repo.id) in self.repos:
            # With exist_ok=True the client takes the url out of the refusal.
            raise HubError(409, f"You already created this {repo.kind} repo", url=url)
        repo.commit("refs/heads/main", "", "initial commit", {})
        self.repos[repo.kind, repo.id] = repo
        return {"url": url}

    def delete_repo(self, request: Request) -> Json:
        repo = self.repo(*self.named_in_body(request))
        del self.repos[repo.kind, repo.id]
        return {}

    def repo_info(self, request: Request) -> Json:
        repo, commit = self.asked_repo(request), self.asked_commit(request)
        siblings = [{"rfilename": path} for path in sorted(commit.files)]
        info = {"id": repo.id, "sha": commit.sha, "private": repo.private, "gated": False, "tags": []}
        return {**info, "createdAt": EVERY_DATE, "lastModified": EVERY_DATE, "siblings": siblings}

    def tree(self, request: Request) -> list[Json]:
        """A folder, one folder deep or all of it."""
        top = f"{request.path_parts['folder']}/" if request.path_parts.get("folder") else ""
        files = {path: content for path, content in self.asked_commit(request).files.items() if path.startswith(top)}
        if top and not files:
            raise HubError(404, "no such folder", "EntryNotFound")
        folders = {path.rsplit("/", depth)[0] for path in files for depth in range(1, path.count("/") + 1)}
        below = sorted(path for path in folders if path.startswith(top))
        entries = [{"type": "directory", "path": path, "oid": "0", "size": 0} for path in below]
        entries += [tree_entry(*file) for file in sorted(files.items())]
        deep = request.query.get("recursive") == ["true"]
        return [entry for entry in entries if deep or "/" not in entry["path"].removeprefix(top)]

    def refs(self, request: Request) -> dict[str, list[Json]]:
        groups = {"heads": "branches", "tags": "tags", "pr": "pullRequests", "convert": "converts"}
        answer: dict[str, list[Json]] = {group: [] for group in groups.values()}
        for ref, sha in self.asked_repo(request).sha_by_ref.items():
            _, group, name = ref.split("/", 2)
            name = ref if group == "pr" else name
            answer[groups[group]].append({"name": name, "ref": ref, "targetCommit": sha})
        return answer

    def create_branch(self, request: Request) -> Json:
        start = request.json().get("startingPoint", "main")
        self.asked_repo(request).add_ref(f"refs/heads/{request.path_parts['branch']}", start)
        return {}

    def create_tag(self, request: Request) -> Json:
        self.asked_repo(request).add_ref(f"refs/tags/{request.json()['tag']}", request.path_parts["rev"])
        return {}

    def preupload(self, request: Request) -> Json:
        answers, present = [], self.asked_commit(request).files
        for path in (file["path"] for file in request.json()["files"]):
            mode = "lfs" if path.endswith(LFS_SUFFIX) else "regular"
            # By this oid the client leaves unchanged files out of its commit.
            oid = content_sha(path, present[path]) if path in present else None
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": answers}

    def lfs_batch(self, request: Request) -> Json:
        self.asked_repo(request)
        objects = request.json()["objects"]
        for answer in objects:
            # An answer without actions tells the client that the object is here already.
            if answer["oid"] not in self.lfs_objects:
                answer["actions"] = {"upload": {"href": f"{self.url}/lfs/{answer['oid']}"}}
                self.lfs_expected.add(answer["oid"])
        return {"transfer": "basic", "objects": objects}

    def lfs_put(self, request: Request) -> Json:
        oid = request.path_parts["oid"]
        # The client sends no token here: the right to write comes from the batch call.
        if oid not in self.lfs_expected:
            raise HubError(403, "No batch call announced this object")
        if hashlib.sha256(request.body).hexdigest() != oid:
            raise HubError(400, "The content does not have the announced sha256")
        self.lfs_objects[oid] = request.body
        return {}

    def commit(self, request: Request) -> Json:
        repo, create_pr = self.asked_repo(request), "create_pr" in request.query
        header, *operations = (json.loads(line) for line in request.body.splitlines())
        parent = header["value"].get("parentCommit", "")
        ref, base = repo.commit_target(request.path_parts["rev"], parent, create_pr)
        files = dict(base.files)
        for operation in operations:
            self.apply(operation["key"], operation["value"], files)
        sha = repo.commit(ref, base.sha, header["value"]["summary"], files)
        web = f"{self.url}/{repo.web_path}"
        pull_request = {"pullRequestUrl": f"{web}/discussions/{ref.split('/')[-1]}"} if create_pr else {}
        return {"commitOid": sha, "commitUrl": f"{web}/commit/{sha}", **pull_request}

    def apply(self, operation: str, value: Json, files: Files) -> None:
        path = value["path"]
        if operation == "file":
            files[path] = base64.b64decode(value["content"], validate=True)
        elif operation == "lfsFile" and value["oid"] in self.lfs_objects:
            files[path] = self.lfs_objects[value["oid"]]
        elif operation == "deletedFile":
            delete_where(files, lambda name: name == path)
        elif operation == "deletedFolder":
            delete_where(files, lambda name: name.startswith(path.rstrip("/") + "/"))
        else:
            raise HubError(400, f"{operation} of {path}: unknown, or its LFS object was never uploaded")

    def resolve(self, request: Request) -> Reply:
        commit, path = self.asked_commit(request), request.path_parts["file"]
        headers = {"X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
        if path not in commit.files:
            missing = HubError(404, "Entry not found", "EntryNotFound").reply
            # With its sha the client remembers that this commit lacks the file.
            return missing._replace(headers={**missing.headers, **headers})
        content = commit.files[path]
        headers["ETag"] = f'"{content_sha(path, content)}"'
        return part_of(content, request.headers.get("Range", ""), headers)


class Route(NamedTuple):
    methods: str
    pattern: str
    handler: Callable[[Hub, Request], Any]
    needs_token: bool = False


REPO = r"(?P<repo>[^/]+(?:/[^/]+)??)"
API = rf"/api/(?P<kind>model|dataset|space)s/{REPO}"
WEB = rf"/(?:(?P<kind>dataset|space)s/)?{REPO}"
REV = r"(?P<rev>[^/]+)"
# Patterns meet the path still percent-encoded, where a revision such as refs/pr/1 is one segment.
ROUTES = (
    Route("GET", r"/api/whoami-v2", Hub.whoami, needs_token=True),
    Route("POST", r"/api/validate-yaml", Hub.validate_yaml),
    Route("POST", r"/api/repos/create", Hub.create_repo, needs_token=True),
    Route("DELETE", r"/api/repos/delete", Hub.delete_repo, needs_token=True),
    Route("POST", rf"{API}/branch/(?P<branch>[^/]+)", Hub.create_branch, needs_token=True),
    Route("POST", rf"{API}/tag/{REV}", Hub.create_tag, needs_token=True),
    Route("POST", rf"{API}/preupload/{REV}", Hub.preupload, needs_token=True),
    Route("POST", rf"{WEB}\.git/info/lfs/objects/batch", Hub.lfs_batch, needs_token=True),
    Route("PUT", r"/lfs/(?P<oid>\w+)", Hub.lfs_put),
    Route("POST", rf"{API}/commit/{REV}", Hub.commit, needs_token=True),
    Route("GET", rf"{API}/refs", Hub.refs),
    Route("GET", rf"{API}/tree/{REV}(?:/(?P<folder>.+))?", Hub.tree),
    Route("GET", rf"{API}(?:/revision/{REV})?", Hub.repo_info),
    Route("GET HEAD", rf"{WEB}/resolve/{REV}/(?P<file>.+)", Hub.resolve),
)


def find_route(method: str, path: str) -> tuple[Route, dict[str, str]]:
    for route in ROUTES:
        if method in route.methods.split() and (match := re.fullmatch(route.pattern, path)):
            return route, {name: unquote(part) for name, part in match.groupdict().items() if part}
    raise HubError(404, f"This hub has no {method} {path}")


def check_token(token: str, route: Route, headers: Mapping[str, str]) -> None:
    given = headers.get("Authorization")
    if given not in (None, f"Bearer {token}"):
        raise HubError(401, "Invalid credentials in Authorization header")
    if route.needs_token and given is None:
        raise HubError(401, "Invalid username or password.")
