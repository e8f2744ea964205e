"""Options of every command line of this project: full names, in two spellings, and answers to mistakes."""

import argparse
import ast
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from softcam_hub import cli
from softcam_hub.arguments import ArgumentParser, add_fields
from softcam_hub.training.parsing import make_parser, parse

ROOT = Path(__file__).parents[1]
SCRIPTS = [
    file
    for pattern in ("softcam_hub/**/*.py", "tools/*.py", "benchmarks/**/*.py", "*.py")
    for file in ROOT.glob(pattern)
    if file != ROOT / "softcam_hub" / "arguments.py"
]


def abbreviations(parser):
    """Every option with its last letter dropped, unless another option has that name."""
    known = {option for action in parser._actions for option in action.option_strings}
    return sorted({option[:-1] for option in known if len(option) > 4} - known)


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_a_command_takes_no_abbreviated_option(command, capsys):
    parser = cli.make_parser(command)
    short = abbreviations(parser)
    assert short, "every command has an option to abbreviate"
    for option in short:
        with pytest.raises(SystemExit):
            parser.parse_args([option])
        said = capsys.readouterr().err
        assert said.startswith(f"usage: softcam-hub {command} ")
        assert f"unknown option {option!r}: did you mean --" in said


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_names_of_options_have_dashes_and_are_accepted_with_underscores(command):
    actions = [action for action in cli.make_parser(command)._actions if action.option_strings]
    assert not [option for action in actions for option in action.option_strings if "_" in option]
    parser = ArgumentParser()
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("words", nargs="*")
    for words in (["--batch-size", "3"], ["--batch_size", "3"], ["--batch_size=3"]):
        assert parser.parse_args([*words, "--", "--a_b"]) == argparse.Namespace(batch_size=3, words=["--a_b"])


@dataclass
class Settings:
    """Fields of every type that settings have."""

    count: int = field(default=3, metadata={"help": "Number."})
    rate: float | None = field(default=None, metadata={"help": "Rate in %%."})
    schedule: Literal["cosine", "step"] | None = field(default="cosine", metadata={"help": "Course."})
    compile_network: bool = field(default=False, metadata={"help": "Compile."})
    cache: bool = field(default=True, metadata={"help": "Keep."})


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", {}),
        ("--rate=-1e-3 --schedule step", {"rate": -0.001, "schedule": "step"}),
        ("--compile-network --no-cache", {"compile_network": True, "cache": False}),
        ("--compile_network=False --cache yes", {"compile_network": False, "cache": True}),
        ("--schedule cosin", "'cosin' is not a choice: did you mean cosine?"),
        ("--schedule x", "'x' is not a choice: expected one of cosine, step"),
        ("--cache perhaps", "'perhaps' is neither true nor false"),
        ("--count many", "invalid int value: 'many'"),
        ("--cont 3", "unknown option '--cont': did you mean --count?"),
    ],
)
def test_options_of_a_configuration(words, expected):
    parser = ArgumentParser(exit_on_error=False)
    add_fields(parser, Settings)
    if isinstance(expected, dict):
        assert vars(parser.parse_args(words.split())) == expected
        return
    with pytest.raises(ValueError, match=re.escape(expected)):
        parser.parse_args(words.split())


def test_help_shows_choices_and_defaults():
    parser = ArgumentParser()
    add_fields(parser, Settings)
    text = " ".join(parser.format_help().split())
    for line in ("--count N Number. [3]", "--rate X Rate in %.", "Course. [cosine] One of cosine, step."):
        assert line in text


@pytest.mark.parametrize("option", abbreviations(make_parser()))
def test_training_takes_no_abbreviated_option(option):
    with pytest.raises(ValueError, match="unknown option"):
        parse([option, "1"])


def test_an_abbreviated_output_starts_no_benchmark(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["benchmark", "--out", str(tmp_path / "results")])
    assert stop.value.code == 2
    assert "unknown option '--out': did you mean --output?" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def argument_parsers(file):
    """The calls in a file that make a parser of the standard library or of transformers."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
            ("argparse.ArgumentParser", "HfArgumentParser")
        ):
            yield node


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_parser_refuses_abbreviations(file):
    for call in argument_parsers(file):
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert given.get("allow_abbrev") == "False", f"line {call.lineno}: use softcam_hub.arguments.ArgumentParser"
