"""`softcam-hub` as a process: what it answers without torch, timm and transformers, its exit codes, and pipes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from softcam_hub.cli import COMMANDS

ROOT = Path(__file__).parents[1]
SLOW_IMPORTS = {"torch", "timm", "transformers", "datasets", "accelerate", "matplotlib", "gradio", "huggingface_hub"}


def start(*words, **options):
    """Run the program, and return its result, its messages, and the packages that it imported."""
    command = [sys.executable, "-X", "importtime", "-m", "softcam_hub", *words]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}, **options
    )
    lines = done.stderr.splitlines()
    imports = [line for line in lines if line.startswith("import time:")]
    packages = {line.rpartition("|")[2].strip().partition(".")[0] for line in imports}
    assert "softcam_hub" in packages
    return done, "\n".join(line for line in lines if line not in imports), packages


ANSWERS = {
    "--help": (0, "", "commands:\n  list "),
    "--version": (0, "", "softcam-hub 0.1.0"),
    "": (2, "", "usage: softcam-hub COMMAND"),
    "list": (0, "", "\nresnet18 "),
    "list cape_vgg11 --json": (0, "", '"head": "vgg"'),
    "list resnt18": (1, "softcam-hub: error: no architecture matches 'resnt18': did you mean resnet18?", ""),
    "trian": (2, "'trian' is not a choice: did you mean train?", ""),
    "--versoin": (2, "unknown option '--versoin': did you mean --version?", ""),
    "explain": (2, "softcam-hub explain: error: the following arguments are required: IMAGE, --output", ""),
    "explain x.png": (2, "usage: softcam-hub explain", ""),
    "explain x.png --output out --top-k many": (2, "argument --top-k: invalid int value: 'many'", ""),
    "explain x.png --output out --top-k 0": (1, "--top-k must be at least 1, got 0", ""),
    "explain x.png --output out --batch_size": (2, "argument --batch-size: expected one argument", ""),
    "explain nowhere/x.png out.png --out out": (2, "unknown option '--out': did you mean --output?", ""),
    "benchmark": (1, "output is missing", ""),
    "benchmark --output out --limit 0": (1, "limit must be at least 1, got 0", ""),
    "benchmark --output out --mesures table": (2, "unknown option '--mesures': did you mean --measures?", ""),
    "benchmark --output out --measures tabel": (1, "unknown measure 'tabel': did you mean table?", ""),
    "compare nowhere cape cam": (1, "there is no nowhere: name the folder of a benchmark", ""),
    "compare out cape": (2, "softcam-hub compare: error: the following arguments are required: B", ""),
    "train --epocs 3": (
        2,
        "softcam-hub train: error: unknown option '--epocs': did you mean --epochs?; see --help",
        "",
    ),
    "train --epochs many": (2, "usage: softcam-hub train [--recipe NAME] [--SETTING VALUE ...]", ""),
    "train --epochs 0": (1, "epochs must be at least 1, got 0", ""),
    "train --mode postfit": (2, "argument --mode: 'postfit' is not a choice: did you mean post-fit?", ""),
    "train --recipe lesions-cap": (1, "no recipe 'lesions-cap': did you mean lesions-cape", ""),
    "train --recipe nowhere.yaml": (1, "there is no file nowhere.yaml: expected a recipe", ""),
    "train --resume --overwrite": (1, "give one of them", ""),
    "accuracy runs/x --ouput out": (2, "unknown option '--ouput': did you mean --output?", ""),
    "push runs/x": (2, "softcam-hub push: error: the following arguments are required", ""),
    "export --output nowhere/model.onnx": (1, "there is no folder nowhere to write model.onnx to", ""),
    "demo --port 99999": (1, "port must be from 1 to 65535, got 99999", ""),
}


@pytest.mark.parametrize("line", ANSWERS)
def test_answers_that_need_no_model_import_nothing_slow(line, tmp_path):
    code, message, printed = ANSWERS[line]
    done, said, packages = start(*line.split(), cwd=tmp_path)
    assert done.returncode == code
    assert message in said
    assert printed in done.stdout
    assert "Traceback" not in said
    assert not packages & SLOW_IMPORTS
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command):
    done, _, packages = start(command, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: softcam-hub {command}")
    assert not packages & SLOW_IMPORTS
    explanations = re.findall(r"^  --[^\n]*?(?:\n {20,}|  +)(\S[^\n]*)", done.stdout, re.MULTILINE)
    assert explanations
    assert [text for text in explanations if text[0].islower() and not text.startswith(("cape_", "show this"))] == []


def test_the_reader_of_a_list_may_leave(tmp_path):
    line = f"{sys.executable} -m softcam_hub list | head -1"
    cut = subprocess.run(
        line, shell=True, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert cut.returncode == 0  # of head
    assert len(cut.stdout.splitlines()) == 1
    assert not cut.stderr


@pytest.mark.slow
def test_other_programs_register_the_models_at_once():
    program = "import sys, softcam_hub, timm; assert timm.is_model('cape_resnet18'); print(softcam_hub.push)"
    for words in (
        ["-c", program],
        ["-c", "from softcam_hub.cli import main; import timm; timm.list_models('cape_vgg11')[0]"],
    ):
        done = subprocess.run(
            [sys.executable, *words], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_program_has_the_public_names_too():
    program = "import sys; sys.argv = ['softcam-hub']; import softcam_hub; print('torch' in sys.modules)"
    program += "; from softcam_hub import *; import timm; print(timm.is_model('cape_resnet18'), build)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.stdout.startswith("False\nTrue <function build"), done.stderr
