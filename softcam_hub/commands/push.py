"""`softcam-hub push`: publish a model folder, or a Space, on the Hugging Face Hub."""

import argparse

HELP = "Publish a model folder with its card, code and pictures on the Hugging Face Hub."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to its parser."""
    parser.add_argument(
        "folder",
        help="Model folder, such as RUN/model; with --space the name of a Space, or the folder of a web page.",
    )
    parser.add_argument("repo", help="Repository, such as user/name. It is created if it does not exist.")
    parser.add_argument(
        "--space",
        action="store_true",
        help="Push a Space in place of a model: one of this package, or a page.",
    )
    parser.add_argument("--private", action="store_true", help="Create the repository as private.")
    parser.add_argument("--branch", metavar="NAME", help="Branch of the commit. It is created if it does not exist.")
    parser.add_argument("--pr", action="store_true", help="Open a pull request instead of committing.")
    parser.add_argument("--message", help="Message of the commit.")
    parser.add_argument(
        "--token",
        help="Access token of the Hub. By default, the token of `hf auth login`, or of the variable HF_TOKEN.",
    )
    parser.add_argument("--dry-run", action="store_true", help="Check and list all files, but send nothing.")


def run(arguments: argparse.Namespace) -> None:
    """Push, and print what was sent."""
    from ..hub import push

    result = push(
        arguments.folder,
        arguments.repo,
        repo_type="space" if arguments.space else "model",
        private=True if arguments.private else None,
        revision=arguments.branch,
        create_pr=arguments.pr,
        message=arguments.message,
        token=arguments.token,
        dry_run=arguments.dry_run,
    )
    print(result.describe())
    if arguments.dry_run:
        print(f"nothing was sent to {result.repo_id}")
    else:
        print(result.url or f"{result.repo_id} holds all of this already")
