"""`softcam-hub push`: publish a model folder, or a Space, on the Hugging Face Hub."""

import argparse

from ..hub import SPACES, push

HELP = "Publish a model folder with its card, code and pictures on the Hugging Face Hub."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="Model folder, such as RUN/model; with --space the name of a Space.")
    parser.add_argument("repo", help="Repository to push to, such as user/name. It is created if it does not exist.")
    parser.add_argument(
        "--space", action="store_true", help=f"Push a Space of this package instead: {', '.join(SPACES)}."
    )
    parser.add_argument("--private", action="store_true", help="Create the repository as private.")
    parser.add_argument("--branch", metavar="NAME", help="Branch to commit to. It is created if it does not exist.")
    parser.add_argument("--pr", action="store_true", help="Open a pull request instead of committing.")
    parser.add_argument("--message", help="Message of the commit.")
    parser.add_argument("--token", help="Token to use. That of `hf auth login`, or HF_TOKEN, by default.")
    parser.add_argument("--dry_run", "--dry-run", action="store_true", help="Check and list all files, send nothing.")


def run(arguments: argparse.Namespace) -> None:
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
