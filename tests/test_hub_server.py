"""The hub must treat a real client as huggingface.co does, or the suites that rely on it prove nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from helpers.hub_server import HubServer
from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

FILES = {"README.md": b"# Tiny\n", "nested/notes.txt": b"\x00\xff", "model.safetensors": b"weights" * 999}
LOAD_FROM_HUB = """
import sys, timm, torch
from pathlib import Path
from safetensors.torch import load_file
loaded = timm.create_model("hf-hub:someone/tiny", pretrained=True).state_dict()
saved = load_file(Path(sys.argv[1]) / "model.safetensors")
assert loaded.keys() == saved.keys() and all(torch.equal(loaded[name], saved[name]) for name in saved)
"""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with HubServer(token="hf_test") as server:
        yield server


@pytest.fixture
def api(hub: HubServer) -> HfApi:
    return HfApi(endpoint=hub.url, token="hf_test")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for path, content in FILES.items():
        (tmp_path / "folder" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / path).write_bytes(content)
    return tmp_path / "folder"


def read(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def status(error: pytest.ExceptionInfo[HfHubHTTPError]) -> int:
    return error.value.response.status_code


@pytest.mark.parametrize("repo_type", ["model", "dataset", "space"])
def test_pushed_folder_comes_back(
    hub: HubServer,
    api: HfApi,
    folder: Path,
    tmp_path: Path,
    repo_type: str,
) -> None:
    sdk = "static" if repo_type == "space" else None
    made = api.create_repo("me/it", repo_type=repo_type, space_sdk=sdk)
    pushed = api.upload_folder(repo_id="me/it", folder_path=folder, repo_type=repo_type)
    assert (made.repo_id, made.repo_type) == ("me/it", repo_type)
    assert hub.files("me/it", repo_type=repo_type) == FILES
    assert [path for method, path in hub.requests if method == "PUT" and path.startswith("/lfs/")]
    snapshot = Path(api.snapshot_download("me/it", repo_type=repo_type, cache_dir=tmp_path / "cache"))
    assert read(snapshot) == FILES
    assert snapshot.name == pushed.oid == api.repo_info("me/it", repo_type=repo_type).sha
    assert sorted(api.list_repo_files("me/it", repo_type=repo_type)) == sorted(FILES)


def test_second_push_sends_only_what_changed(hub: HubServer, api: HfApi, folder: Path) -> None:
    hub.add_repo("me/it", FILES)
    api.upload_folder(repo_id="me/it", folder_path=folder)
    assert not [path for method, path in hub.requests if "/commit/" in path]
    (folder / "README.md").write_bytes(b"# Better\n")
    api.upload_folder(repo_id="me/it", folder_path=folder, delete_patterns="nested/*")
    assert hub.files("me/it") == {**FILES, "README.md": b"# Better\n"}
    assert not [path for method, path in hub.requests if method == "PUT"]
    api.delete_folder("nested", "me/it")
    api.delete_file("model.safetensors", "me/it")
    assert hub.files("me/it") == {"README.md": b"# Better\n"}


def test_branch_and_tag_keep_their_commits(hub: HubServer, api: HfApi, tmp_path: Path) -> None:
    first = hub.add_repo("me/it", {"a.txt": b"one"})
    api.create_tag("me/it", tag="v1")
    api.create_branch("me/it", branch="dev/next")
    to_a = {"path_in_repo": "a.txt", "repo_id": "me/it"}
    second = api.upload_file(path_or_fileobj=b"two", revision="dev/next", **to_a)
    refs = api.list_repo_refs("me/it")
    assert [(ref.name, ref.target_commit) for ref in refs.tags] == [("v1", first)]
    assert {ref.name: ref.target_commit for ref in refs.branches} == {"main": first, "dev/next": second.oid}
    for revision, content in {"v1": b"one", "main": b"one", "dev/next": b"two", second.oid: b"two"}.items():
        file = api.hf_hub_download("me/it", "a.txt", revision=revision, cache_dir=tmp_path)
        assert Path(file).read_bytes() == hub.files("me/it", revision)["a.txt"] == content
    with pytest.raises(RevisionNotFoundError):
        api.upload_file(path_or_fileobj=b"two", revision="v1", **to_a)
    for create in (
        lambda: api.create_tag("me/it", tag="v1"),
        lambda: api.create_branch("me/it", branch="main"),
    ):
        with pytest.raises(HfHubHTTPError) as error:
            create()
        assert status(error) == 409


def test_pull_request_leaves_main_alone(hub: HubServer, api: HfApi) -> None:
    hub.add_repo("me/it", {"a.txt": b"one"})
    to_b = {"path_in_repo": "b.txt", "repo_id": "me/it"}
    for number in (1, 2):
        made = api.upload_file(path_or_fileobj=b"%d" % number, create_pr=True, **to_b)
        assert (made.pr_revision, made.pr_num) == (f"refs/pr/{number}", number)
        assert hub.files("me/it", f"refs/pr/{number}") == {"a.txt": b"one", "b.txt": b"%d" % number}
    api.upload_file(path_or_fileobj=b"3", revision="refs/pr/2", **to_b)
    assert hub.files("me/it", "refs/pr/2")["b.txt"] == b"3"
    assert hub.files("me/it") == {"a.txt": b"one"}


def test_what_is_missing_raises_its_own_error(hub: HubServer, api: HfApi, tmp_path: Path) -> None:
    hub.add_repo("me/it", {"a.txt": b"one"})
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("me/other")
    with pytest.raises(RepositoryNotFoundError):
        api.hf_hub_download("me/it", "a.txt", repo_type="dataset", cache_dir=tmp_path)
    with pytest.raises(RevisionNotFoundError):
        api.hf_hub_download("me/it", "a.txt", revision="v9", cache_dir=tmp_path)
    with pytest.raises(EntryNotFoundError):
        api.hf_hub_download("me/it", "b.txt", cache_dir=tmp_path)
    with pytest.raises(EntryNotFoundError):
        api.delete_file("b.txt", "me/it")
    assert api.file_exists("me/it", "a.txt")
    assert not api.file_exists("me/it", "b.txt")
    assert api.repo_exists("me/it")
    assert not api.repo_exists("me/other")


def test_wrong_token_is_refused(hub: HubServer, api: HfApi) -> None:
    hub.add_repo("me/it", {"a.txt": b"one"})
    for token in ("hf_wrong", False):
        intruder = HfApi(endpoint=hub.url, token=token)
        for write in (
            lambda api: api.create_repo("me/new"),
            lambda api: api.create_tag("me/it", tag="v1"),
            lambda api: api.upload_file(path_or_fileobj=b"2", path_in_repo="a.txt", repo_id="me/it"),
            lambda api: api.delete_repo("me/it"),
        ):
            with pytest.raises(HfHubHTTPError) as error:
                write(intruder)
            assert status(error) == 401
    assert httpx2.put(f"{hub.url}/lfs/{'0' * 64}", content=b"unannounced").status_code == 403
    assert hub.files("me/it") == {"a.txt": b"one"}
    assert not api.repo_exists("me/new")
    assert api.whoami()["name"] == "tester"


def test_private_repo_is_read_with_the_token_only(hub: HubServer, api: HfApi, tmp_path: Path) -> None:
    api.create_repo("me/it", private=True)
    api.upload_file(path_or_fileobj=b"one", path_in_repo="a.txt", repo_id="me/it")
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download("me/it", "a.txt", endpoint=hub.url, token=False, cache_dir=tmp_path)
    file = hf_hub_download("me/it", "a.txt", endpoint=hub.url, token="hf_test", cache_dir=tmp_path)
    assert Path(file).read_bytes() == b"one"
    assert api.model_info("me/it").private


def test_existing_name(hub: HubServer, api: HfApi) -> None:
    hub.add_repo("tester/it", {"a.txt": b"one"})
    with pytest.raises(HfHubHTTPError) as error:
        api.create_repo("it")
    assert status(error) == 409
    assert api.create_repo("it", exist_ok=True).repo_id == "tester/it"
    assert hub.files("tester/it") == {"a.txt": b"one"}
    api.create_repo("it", repo_type="dataset")
    api.delete_repo("tester/it")
    assert not api.repo_exists("tester/it")
    assert api.repo_exists("tester/it", repo_type="dataset")


@pytest.mark.parametrize("refused", [("PUT", "/lfs/"), ("POST", "/commit/"), ("POST", "/preupload/")])
def test_broken_upload_changes_nothing(hub: HubServer, api: HfApi, folder: Path, refused: tuple) -> None:
    sha = hub.add_repo("me/it", {"README.md": b"old"})
    hub.fail_next(*refused, status=403)
    with pytest.raises((HfHubHTTPError, RuntimeError)):
        api.upload_folder(repo_id="me/it", folder_path=folder)
    assert hub.files("me/it") == {"README.md": b"old"}
    assert api.model_info("me/it").sha == sha
    api.upload_folder(repo_id="me/it", folder_path=folder)
    assert hub.files("me/it") == FILES


def test_commit_is_whole_or_not_at_all(hub: HubServer) -> None:
    hub.add_repo("me/it", {"a.txt": b"one"})
    lines = (
        b'{"key": "header", "value": {"summary": "half"}}',
        b'{"key": "file", "value": {"path": "b.txt", "content": "Mg=="}}',
        b'{"key": "lfsFile", "value": {"path": "c.safetensors", "oid": "never uploaded"}}',
    )
    url, headers = f"{hub.url}/api/models/me/it/commit/main", {"Authorization": "Bearer hf_test"}
    assert httpx2.post(url, content=b"\n".join(lines), headers=headers).status_code == 400
    assert hub.files("me/it") == {"a.txt": b"one"}
    assert httpx2.post(url, content=b"\n".join(lines[:2]), headers=headers).status_code == 200
    assert hub.files("me/it") == {"a.txt": b"one", "b.txt": b"2"}


def test_stale_parent_is_refused(hub: HubServer, api: HfApi) -> None:
    first = hub.add_repo("me/it", {"a.txt": b"one"})
    upload = {"path_in_repo": "a.txt", "repo_id": "me/it", "parent_commit": first}
    api.upload_file(path_or_fileobj=b"two", **upload)
    with pytest.raises(HfHubHTTPError) as error:
        api.upload_file(path_or_fileobj=b"three", **upload)
    assert status(error) == 412
    assert hub.files("me/it") == {"a.txt": b"two"}


def test_ranges(hub: HubServer) -> None:
    hub.add_repo("me/it", {"a.txt": b"0123456789"})
    url = f"{hub.url}/me/it/resolve/main/a.txt"
    for asked, answer in {
        "bytes=4-": (206, b"456789"),
        "bytes=2-3": (206, b"23"),
        "bytes=10-": (416, b""),
    }.items():
        response = httpx2.get(url, headers={"Range": asked})
        assert (response.status_code, response.content) == answer
    whole = httpx2.head(url)
    assert (whole.headers["Content-Length"], whole.content) == ("10", b"")


@pytest.mark.slow
def test_timm_loads_a_model(hub: HubServer, tmp_path: Path) -> None:
    import timm
    from timm.models import save_for_hf

    save_for_hf(timm.create_model("test_resnet"), str(tmp_path / "saved"), safe_serialization=True)
    hub.add_repo("someone/tiny", read(tmp_path / "saved"))
    command = [sys.executable, "-c", LOAD_FROM_HUB, str(tmp_path / "saved")]
    subprocess.run(command, env={**os.environ, **hub.env(tmp_path / "home")}, check=True)
    assert ("GET", "/someone/tiny/resolve/main/model.safetensors") in hub.requests
