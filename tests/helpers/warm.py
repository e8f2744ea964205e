"""A Python that has imported the packages of others already, and runs every program in a fork of itself.

Importing torch, timm and transformers takes nine seconds, which a program of few seconds would spend again each time.

- The packages of others alone are imported beforehand. A program imports ours itself, as in a fresh process.
- Environment variables that packages read when they are imported, such as those of a Hub, belong to the server.
- A program ends as in a process of its own: with its exit status, its traceback and its exit handlers.
"""

import atexit
import json
import os
import runpy
import subprocess
import sys
import tempfile
import types
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
IMPORTS = ("torch", "timm", "transformers", "datasets", "evaluate", "accelerate", "matplotlib.pyplot")
FROM_TRANSFORMERS = ("AutoImageProcessor", "AutoModelForImageClassification", "Trainer", "pipeline")


class WarmPython:
    """A Python that runs programs in forks of itself, and is ended as a context manager.

    Args:
        environment: Variables to lay over those of this process.
    """

    def __init__(self, **environment: str) -> None:
        variables = {**os.environ, **environment}
        folders = [str(ROOT), variables.get("PYTHONPATH", "")]
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, folders))
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.server = subprocess.Popen([sys.executable, __file__], env=variables, **pipes)

    def run(self, *words: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
        """Run `python WORDS` in a folder, and return its status and what it printed.

        Args:
            words: `-c` and a program, `-m` and the name of a module, or a file; then the arguments of the program.
            cwd: Working directory.
        """
        with tempfile.TemporaryDirectory() as place:
            printed = [Path(place) / name for name in ("stdout", "stderr")]
            job = {"words": [str(word) for word in words], "cwd": str(cwd), "printed": [str(file) for file in printed]}
            self.server.stdin.write(json.dumps(job) + "\n")
            self.server.stdin.flush()
            status = self.server.stdout.readline()
            assert status, "the server has ended"
            return subprocess.CompletedProcess(
                job["words"], int(status), *(file.read_text(encoding="utf-8") for file in printed)
            )

    def __enter__(self) -> "WarmPython":
        return self

    def __exit__(self, *_) -> None:
        self.server.stdin.close()  # the server ends with its input
        self.server.wait()
        self.server.stdout.close()


@cache
def warm_python() -> WarmPython:
    """Return a server that all tests of this process share. It ends with this process."""
    python = WarmPython()
    atexit.register(python.__exit__)
    return python


def _serve() -> None:
    """Read jobs from the input, and write the exit status of each to the output."""
    for name in IMPORTS:
        __import__(name)
    for name in FROM_TRANSFORMERS:
        getattr(sys.modules["transformers"], name)
    if "softcam_hub" in sys.modules:
        sys.exit("another package has imported softcam_hub")
    while line := sys.stdin.readline():
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            _become(**json.loads(line))
            return
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(status, flush=True)


def _become(words: list[str], cwd: str, printed: list[str]) -> None:
    """Run a program in this process, which is to end with it."""
    os.chdir(cwd)
    read = os.open(os.devnull, os.O_RDONLY)
    written = [os.open(path, os.O_WRONLY | os.O_CREAT) for path in printed]
    for number, descriptor in enumerate([read, *written]):
        os.dup2(descriptor, number)
        os.close(descriptor)
    how, *rest = words
    if how == "-m":
        sys.path.insert(0, cwd)
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif how == "-c":
        sys.path.insert(0, "")
        sys.argv = ["-c", *rest[1:]]
        sys.modules["__main__"] = module = types.ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), module.__dict__)
    else:
        sys.path.insert(0, str(Path(how).resolve().parent))
        sys.argv = words
        runpy.run_path(how, run_name="__main__")


if __name__ == "__main__":
    del sys.path[0]  # the folder of this file
    _serve()
