"""No command line of this project completes abbreviated options."""

import ast
from pathlib import Path

import pytest

from softcam_hub import cli
from softcam_hub.training.parsing import make_parser, parse

ROOT = Path(__file__).parents[1]
SCRIPTS = [
    file
    for pattern in ("softcam_hub/**/*.py", "tools/*.py", "benchmarks/**/*.py", "*.py")
    for file in ROOT.glob(pattern)
    if file != ROOT / "softcam_hub" / "arguments.py"
]


def parser_of(command):
    """The parser of one `softcam-hub` command."""
    actions = cli.make_parser([command])._actions
    return next(action for action in actions if action.choices).choices[command]


def without_required(parser):
    """The same parser, with every argument made optional, so that one option can be parsed alone."""
    for action in parser._actions:
        action.required = False
        action.nargs = "?" if not action.option_strings else action.nargs
    return parser


def abbreviations(parser):
    """Every option with its last letter dropped, unless another option has that name."""
    known = {option for action in parser._actions for option in action.option_strings}
    return sorted({option[:-1] for option in known if len(option) > 4} - known)


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_a_command_takes_no_abbreviated_option(command):
    parser = without_required(parser_of(command))
    short = abbreviations(parser)
    assert short, "every command has an option to abbreviate"
    for option in short:
        assert parser.parse_known_args([option])[1] == [option]


@pytest.mark.parametrize("option", abbreviations(make_parser()))
def test_training_takes_no_abbreviated_option(option):
    with pytest.raises(ValueError, match="unknown option"):
        parse([option, "1"])


def test_an_abbreviated_output_starts_no_benchmark(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["benchmark", "--out", str(tmp_path / "results")])
    assert stop.value.code == 2
    assert "unrecognized arguments: --out" in capsys.readouterr().err
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
