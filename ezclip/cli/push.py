"""Push a converted or trained model to the Hub, with its processor, code and a card that fills itself in.

    ezclip push --model ezclip-vit-base-patch16 --repo_id me/ezclip-vit-base-patch16
    ezclip push --model out --repo_id me/ezclip-adapters --trained_only \\
        --base_model_name_or_path openai/clip-vit-base-patch16 --dataset me/kinetics --license mit
    ezclip push --model out --repo_id me/ezclip --dry_run look

The token is that of `hf auth login`, or HF_TOKEN. Repeat the same command after an interruption.
"""

import sys
from pathlib import Path

from ezclip.cli.parser import Parser
from ezclip.errors import DataError, ModelError
from ezclip.hub.messages import without_token
from ezclip.hub.model_card import CardFacts
from ezclip.hub.push import PushOptions, push
from ezclip.hub.staging import stage
from ezclip.utils.messages import say


def main(argv: list[str] | None = None):
    """Run `ezclip push` with the options `argv`, by default those of the process."""
    parser = Parser(prog="ezclip push", description=__doc__)
    parser.add_argument("--model", required=True, help="folder of a converted or trained model")
    parser.add_argument(
        "--repo_id", required=True, help="repository on the Hub, USER/NAME; created if it does not exist"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--trained_only",
        action="store_true",
        default=None,
        help="push the trained weights alone; loading them also fetches the base",
    )
    form.add_argument(
        "--whole",
        dest="trained_only",
        action="store_false",
        help="push base and trained weights together (default: the form of the folder)",
    )
    parser.add_argument(
        "--base_model_name_or_path",
        help="name on the Hub of the model that training started from, for the card and to load trained weights",
    )
    parser.add_argument("--dataset", nargs="+", default=[], help="names on the Hub of the training data sets")
    parser.add_argument("--eval_dataset", help="name on the Hub of the data set of the results in the folder")
    parser.add_argument("--license", help="licence of the weights, as the Hub names it: mit, apache-2.0, ...")
    parser.add_argument("--private", action="store_true", help="require a private repository")
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--revision", help="branch to push to (default: main); created if it does not exist")
    target.add_argument("--create_pr", action="store_true", help="open a pull request")
    parser.add_argument("--commit_message", help="title of the commit")
    parser.add_argument(
        "--overwrite_card", action="store_true", help="replace a README.md on the Hub even if a person wrote it"
    )
    parser.add_argument("--dry_run", metavar="FOLDER", help="push nothing; write the files of the push to this folder")
    args = parser.parse_args(argv)
    facts = CardFacts(args.repo_id, args.license, args.base_model_name_or_path, args.dataset, args.eval_dataset)
    try:
        if args.dry_run is None:
            names = ("trained_only", "private", "revision", "create_pr", "commit_message", "overwrite_card")
            commit = push(args.model, PushOptions(facts, **{name: getattr(args, name) for name in names}))
            say(without_token(commit.pr_url or commit.commit_url))
            return
        staged = stage(args.model, _make_empty_folder(args.dry_run), facts, args.trained_only)
    except (DataError, ModelError) as error:
        sys.exit(f"ezclip push: {error}")
    say(f"{staged} holds the files for {args.repo_id}:")
    for path in sorted(path for path in staged.rglob("*") if path.is_file()):
        say(f"{path.stat().st_size:>15,}  {path.relative_to(staged)}")


def _make_empty_folder(path: str) -> Path:
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(f"--dry_run {path} cannot be created ({error.strerror}). Give another folder.") from error
    if any(Path(path).iterdir()):
        raise ModelError(f"--dry_run must be an empty folder, got {path} with files in it. Give another folder.")
    return Path(path)
