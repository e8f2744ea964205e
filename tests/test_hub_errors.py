"""Pushes that the Hub refuses, or that are interrupted: the repository stays as it was, and the error says what to do."""

import pytest
from helpers.hub_server import DROPPED, HubServer
from helpers.pushing import REPO, writes
from huggingface_hub import HfApi, constants

from softcam_hub.hub import push


def test_a_wrong_token_is_refused(hub, folder):
    hub.add_repo(REPO, {"notes.txt": b"mine"})
    for repo in (REPO, "tester/new"):
        with pytest.raises(PermissionError, match="does not accept the token"):
            push(folder, repo, token="hf_wrong")
    assert hub.files(REPO) == {"notes.txt": b"mine"}


def test_a_name_that_belongs_to_others_is_refused(hub, folder):
    hub.fail_next("POST", "/api/repos/create", 403)
    with pytest.raises(PermissionError, match="may not write to repositories of tester"):
        push(folder, REPO)
    assert not any("/commit/" in path or "/lfs/" in path for path in writes(hub))


def test_a_pull_request_in_a_repository_that_does_not_exist_is_refused(hub, folder):
    hub.add_repo(REPO, {"data.csv": b"1"}, repo_type="dataset")
    with pytest.raises(FileNotFoundError, match="nothing was sent: the Hub has no model tester/tiny@main"):
        push(folder, REPO, create_pr=True)
    assert writes(hub) == []


BREAKS = {
    "weights refused": ("PUT", "/lfs/", 403),
    "commit refused": ("POST", "/commit/", 403),
    "commit fails": ("POST", "/commit/", 500),
    "connection lost": ("POST", "/commit/", DROPPED),
    "before the weights": ("POST", "/preupload/", 403),
}


def test_what_the_hub_says_of_a_bad_request_is_passed_on(hub, folder):
    hub.fail_next("POST", "/commit/", 400)
    with pytest.raises(ConnectionError, match="was interrupted; .*: A failure that the test asked for") as refusal:
        push(folder, REPO)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("case", BREAKS)
def test_a_push_that_breaks_off_leaves_the_repo_as_it_was(case, hub, folder):
    before = hub.add_repo(REPO, {"README.md": b"old", "model-00001-of-00002.safetensors": b"old"})
    hub.fail_next(*BREAKS[case])
    with pytest.raises(OSError, match="was interrupted; a commit arrives as a whole or not at all: ") as refusal:
        push(folder, REPO)
    assert "\n" not in str(refusal.value)
    assert hub.files(REPO) == {"README.md": b"old", "model-00001-of-00002.safetensors": b"old"}
    assert HfApi(endpoint=hub.url).repo_info(REPO).sha == before
    push(folder, REPO)
    assert "model.safetensors" in hub.files(REPO)


def test_a_new_repo_stays_empty_when_its_first_push_breaks_off(hub, folder):
    hub.fail_next("POST", "/commit/", 500)
    with pytest.raises(ConnectionError, match="as a whole or not at all"):
        push(folder, REPO)
    assert hub.files(REPO) == {}


def test_an_unreachable_hub_is_named(folder, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the Hub's client waits between its attempts
    with HubServer() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    with pytest.raises(ConnectionError, match="could not be prepared, and nothing was sent"):
        push(folder, REPO, token="hf_test")
    done = push(folder, REPO, dry_run=True)
    assert done.deleted is None
    assert "the Hub does not say" in done.describe()


def test_what_others_committed_meanwhile_is_not_overwritten(hub, folder, monkeypatch):
    hub.add_repo(REPO, {"notes.txt": b"mine"})
    listed = HfApi.list_repo_files

    def and_then_somebody_commits(api, *args, **kwargs):
        found = listed(api, *args, **kwargs)
        api.upload_file(path_or_fileobj=b"theirs", path_in_repo="notes.txt", repo_id=REPO)
        return found

    monkeypatch.setattr(HfApi, "list_repo_files", and_then_somebody_commits)
    with pytest.raises(ConnectionError, match="somebody has committed meanwhile"):
        push(folder, REPO)
    assert hub.files(REPO) == {"notes.txt": b"theirs"}
