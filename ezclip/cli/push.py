"""Push a converted or trained model to the Hub, with processor, code and a card that fills itself in.

    python scripts/push_to_hub.py --model ezclip-vit-base-patch16 --repo_id me/ezclip-vit-base-patch16
    python scripts/push_to_hub.py --model out --repo_id me/ezclip-adapters --trained_only \\
        --base_model_name_or_path openai/clip-vit-base-patch16 --dataset me/kinetics --license mit
    python scripts/push_to_hub.py --model out --repo_id me/ezclip --dry_run look

The token is the one of `hf auth login`, or HF_TOKEN. A push that was cut off is repeated by the same command.
"""

import argparse
import sys
from pathlib import Path

from ezclip.errors import DataError, ModelError
from ezclip.hub.model_card import CardFacts
from ezclip.hub.push import PushOptions, push
from ezclip.hub.staging import stage


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a converted or trained model")
    parser.add_argument("--repo_id", required=True, help="repository on the Hub, USER/NAME; it is made if need be")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument(
        "--trained_only",
        action="store_true",
        default=None,
        help="push trained weights alone, to be loaded on the base",
    )
    kind.add_argument(
        "--whole",
        dest="trained_only",
        action="store_false",
        help="push base and trained weights in one (default: as the folder holds them)",
    )
    parser.add_argument(
        "--base_model_name_or_path",
        help="name on the Hub of the model that was trained from, for the card and to load trained weights with",
    )
    parser.add_argument("--dataset", nargs="+", default=[], help="names on the Hub of the data sets trained on")
    parser.add_argument("--eval_dataset", help="name on the Hub of the data set that the results in the folder are of")
    parser.add_argument("--license", help="licence of the weights, as the Hub names it: mit, apache-2.0, ...")
    parser.add_argument("--private", action="store_true", help="the repository has to be private")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--revision", help="branch to push to (default: the main one); it is made if need be")
    where.add_argument("--create_pr", action="store_true", help="open a pull request")
    parser.add_argument("--commit_message", help="what the commit is called")
    parser.add_argument(
        "--overwrite_card", action="store_true", help="replace a README.md on the Hub that was written by hand, too"
    )
    parser.add_argument("--dry_run", metavar="FOLDER", help="push nothing; write what would be pushed to this folder")
    args = parser.parse_args(argv)
    facts = CardFacts(
        args.repo_id, args.license, args.base_model_name_or_path, args.dataset, eval_dataset=args.eval_dataset
    )
    options = PushOptions(
        facts,
        args.trained_only,
        args.private,
        args.revision,
        args.create_pr,
        args.commit_message,
        args.overwrite_card,
    )
    try:
        if args.dry_run is None:
            commit = push(args.model, options)
            print(commit.pr_url or commit.commit_url)
            return
        staged = stage(args.model, empty_folder(args.dry_run), facts, args.trained_only)
    except (DataError, ModelError) as error:
        sys.exit(f"push_to_hub.py: {error}")
    print(f"{staged} is what would be pushed to {args.repo_id}:")
    for path in sorted(path for path in staged.rglob("*") if path.is_file()):
        print(f"{path.stat().st_size:>15,}  {path.relative_to(staged)}")


def empty_folder(path: str) -> Path:
    """A folder that is there and has nothing in it."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(f"--dry_run {path} cannot be made ({error.strerror}). Give another folder.") from error
    if any(Path(path).iterdir()):
        raise ModelError(f"--dry_run {path} is not empty, and what is in it would not be pushed. Give another folder.")
    return Path(path)


if __name__ == "__main__":
    main()
