"""`softcam-hub push`: publish a model folder, or a Space, on the Hugging Face Hub."""

import argparse

from ..hub import SPACES, push, push_space

HELP = "publish a model folder with its card, code and pictures on the Hugging Face Hub"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="a model folder, such as RUN/model; with --space the name of a Space")
    parser.add_argument("repo", help="where to: user/name; made if there is none")
    parser.add_argument("--space", action="store_true", help=f"push a Space of ours instead: {', '.join(SPACES)}")
    parser.add_argument("--private", action="store_true", help="make the repo a private one")
    parser.add_argument("--branch", metavar="NAME", help="commit to this branch, made if there is none")
    parser.add_argument("--pr", action="store_true", help="open a pull request instead of committing")
    parser.add_argument("--message", help="of the commit")
    parser.add_argument("--token", help="by default that of `hf auth login`, or HF_TOKEN")
    parser.add_argument("--dry_run", "--dry-run", action="store_true", help="check and list, send nothing")


def run(arguments: argparse.Namespace) -> None:
    send = push_space if arguments.space else push
    done = send(
        arguments.folder,
        arguments.repo,
        private=True if arguments.private else None,
        revision=arguments.branch,
        create_pr=arguments.pr,
        message=arguments.message,
        token=arguments.token,
        dry_run=arguments.dry_run,
    )
    print(done.describe())
    if arguments.dry_run:
        print(f"nothing was sent to {done.repo_id}")
    else:
        print(done.url or f"{done.repo_id} holds all of this already")
