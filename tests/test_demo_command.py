"""The demo page as a program: options, ports, Ctrl-C, and the Space with its own copy of the package."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from gradio_client import Client, handle_file
from helpers.demo import draw_picture, expected, text_of
from helpers.warm import warm_python

import softcam_hub
from softcam_hub.cli import main

SPACE = Path(softcam_hub.__file__).parent / "hub" / "spaces" / "demo"


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def test_a_port_in_use_is_refused_before_models_are_loaded(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["demo", "--port", str(port), "--model", "no-such-model"]) == 1
    said = capsys.readouterr().err
    assert f"softcam-hub: error: 127.0.0.1:{port} cannot be listened on (Address already in use)" in said
    assert "choose another --host or --port" in said


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--port", "70000"], "port must be from 1 to 65535, got 70000"),
        (["--model", "no/such/folder"], "there is no model 'no/such/folder'"),
        (["--host", "nowhere.invalid"], "nowhere.invalid cannot be listened on"),
    ],
)
def test_mistakes_on_the_command_line(words, sentence, capsys):
    assert main(["demo", *words]) == 1
    said = capsys.readouterr().err
    assert sentence in said
    assert "Traceback" not in said


def test_requirements_of_the_space_are_those_of_the_package():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 does not read TOML")
    project = tomllib.loads((Path(softcam_hub.__file__).parents[1] / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["demo"]]
    assert (SPACE / "requirements.txt").read_text().split() == wanted


WITHOUT_GRADIO = """
import sys
sys.modules["gradio"] = None
from softcam_hub.evaluation.models import DEFAULT_POST_HOC
from softcam_hub.cli import main
sys.exit(main(["demo"]))
"""


@pytest.mark.slow
def test_without_gradio_there_is_a_hint():
    done = warm_python().run("-c", WITHOUT_GRADIO)
    assert done.returncode == 1
    hint = "softcam-hub: error: the demo page needs an extra package: pip install 'softcam-hub[demo]'\n"
    assert without_torch_log(done.stderr) == hint


def without_torch_log(errors):
    """Remove torch's warnings on importing torchao from the error output of a process."""
    return re.sub(r"^W\d{4} \S+ \d+ \S*torch/.*\n", "", errors, flags=re.MULTILINE)


def started(command, line, **options):
    """Start a process, and wait until it prints a line with these words."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
    said = process.stdout.readline()
    assert line in said, said + process.stderr.read()
    return process, said


@pytest.mark.slow
def test_ctrl_c_ends_the_command_quietly():
    port = free_port()
    process, _ = started(
        [sys.executable, "-m", "softcam_hub", "demo", "--port", str(port)], f"http://127.0.0.1:{port}/"
    )
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=60)
    assert (process.returncode, rest.strip(), without_torch_log(errors)) == (0, "", "")


@pytest.mark.slow
def test_the_space_runs_on_its_own_copy_of_the_package(tmp_path, tmp_path_factory):
    picture = draw_picture(tmp_path_factory.mktemp("pictures"))
    shutil.copytree(SPACE, tmp_path, dirs_exist_ok=True)
    package = Path(softcam_hub.__file__).parent
    shutil.copytree(package, tmp_path / "softcam_hub", ignore=shutil.ignore_patterns("__pycache__"))
    environment = {**os.environ, "GRADIO_SERVER_PORT": str(port := free_port()), "HF_HUB_OFFLINE": "1"}
    code = "import runpy, softcam_hub; print(softcam_hub.__file__, flush=True); runpy.run_path('app.py', run_name='__main__')"
    process, _ = started([sys.executable, "-c", code], str(tmp_path), cwd=tmp_path, env=environment)
    try:
        client = connected(f"http://127.0.0.1:{port}/", process)
        regions = client.predict(handle_file(picture), "cape_lesions", 0.05, api_name="/upload")[9]
        assert expected(picture).regions(0.05).describe() in text_of(regions)
    finally:
        process.terminate()
        process.communicate(timeout=60)


def connected(url, process, seconds=120):
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        try:
            return Client(url, verbose=False, analytics_enabled=False)
        except Exception:  # not there yet, or half there
            time.sleep(0.5)
    raise AssertionError(f"{url} did not answer")
