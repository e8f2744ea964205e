"""A Hugging Face Hub over HTTP on 127.0.0.1, for pushes and pulls of models, datasets and Spaces.

A test starts `HubServer`, points a client at its `url` and reads back with `files` what arrived. Content travels
inline or by git LFS, never by Xet: clients need HF_HUB_DISABLE_XET=1, which `env` sets.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from helpers.hub_api import LFS_SUFFIX, Files, Hub, HubError, Reply, Repo, Request, check_token, find_route

DROPPED = 0
"""As the status of a failure: the connection ends without an answer."""


class _Handler(BaseHTTPRequestHandler):
    server: _HttpServer

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        reply = self.server.answer(self.command, self.path, self.headers, body)
        if reply.status == DROPPED:
            self.close_connection = True
            return
        self.send_response(reply.status)
        for name, value in {**reply.headers, "Content-Length": str(len(reply.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve
    # HTTP/1.1 would keep connections open in a client's pool after the server is gone.
    protocol_version = "HTTP/1.0"

    def log_message(self, *args: object) -> None:
        """Keeps the access log out of a test's output."""


class _HttpServer(ThreadingHTTPServer):
    # A snapshot download connects for many files at once, and a full queue costs a second's wait.
    request_queue_size = 64

    def __init__(self, answer: Callable[[str, str, Mapping[str, str], bytes], Reply]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = answer


class HubServer:
    """The hub as a context manager, with what a test needs to fill it, break it and look inside."""

    def __init__(self, token: str = "hf_test", user: str = "tester") -> None:
        self._http = _HttpServer(self._answer)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self.requests: list[tuple[str, str]] = []
        self._hub = Hub(token, user, self.url)
        self._failures: list[tuple[str, str, int]] = []
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,))

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def add_repo(self, repo_id: str, files: Files, repo_type: str = "model", private: bool = False) -> str:
        """Adds a repo whose main branch holds `files`; returns the sha of that commit."""
        repo = Repo(repo_type, repo_id, private)
        sha = repo.commit("refs/heads/main", "", "initial commit", dict(files))
        if self._hub.repos.setdefault((repo_type, repo_id), repo) is not repo:
            raise ValueError(f"There is a {repo_type} repo {repo_id} already")
        large = (content for path, content in files.items() if path.endswith(LFS_SUFFIX))
        self._hub.lfs_objects |= {hashlib.sha256(content).hexdigest(): content for content in large}
        return sha

    def files(self, repo_id: str, revision: str = "main", repo_type: str = "model") -> Files:
        return dict(self._hub.repo(repo_type, repo_id).at(revision).files)

    def fail_next(self, method: str, path_substring: str, status: int = 500, times: int = 1) -> None:
        """Refuses the next `times` matching requests, which then change nothing.

        After 408, 429 and 5xx the client asks up to five times again, with growing pauses, except when it
        creates a repo, a ref or a commit: elsewhere 403 is the status that fails at once. DROPPED ends the
        connection instead.
        """
        self._failures += [(method, path_substring, status)] * times

    def env(self, home: Path) -> dict[str, str]:
        """What to lay over `os.environ` for a client process that keeps its caches under `home`."""
        disabled = ("XET", "TELEMETRY", "PROGRESS_BARS", "UPDATE_CHECK")
        return {
            **{f"HF_HUB_DISABLE_{what}": "1" for what in disabled},
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": self._hub.token,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_HUB_OFFLINE": "0",
            "TORCH_HOME": str(home / "torch"),
            "no_proxy": "127.0.0.1",
        }

    def _answer(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Reply:
        path, query = urlsplit(target).path, parse_qs(urlsplit(target).query)
        with self._lock:
            try:
                self._record(method, unquote(path))
                route, parts = find_route(method, path)
                check_token(self._hub.token, route, headers)
                answer = route.handler(self._hub, Request(parts, query, headers, body))
            except HubError as refusal:
                return refusal.reply
            except (KeyError, ValueError) as error:
                return HubError(400, f"Malformed request: {error!r}").reply
        return answer if isinstance(answer, Reply) else Reply(200, json.dumps(answer).encode())

    def _record(self, method: str, path: str) -> None:
        self.requests.append((method, path))
        for failure in self._failures:
            if failure[0] == method and failure[1] in path:
                self._failures.remove(failure)
                raise HubError(failure[2], "A failure that the test asked for")
