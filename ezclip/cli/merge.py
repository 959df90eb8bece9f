"""Interpolate between the weights of a model and of what was tuned from it (WiSE-FT).

    ezclip merge openai/clip-vit-base-patch16 actionclip --alpha 0.5 --output_dir merged
    ezclip merge openai/clip-vit-base-patch16 actionclip --alpha 0.25 0.5 0.75 --output_dir merged \\
        --validation_dir videos/test

Each weight becomes (1 - alpha) * BASE + alpha * TUNED. A weight that only TUNED has, such as an adapter, counts as 0
in BASE. One alpha writes its model to --output_dir, several write to folders in it (alpha_0.25, …).

With labelled videos, the merged models and both ends are evaluated and compared as by `ezclip compare`, into
`comparison/`. Choose alpha on other classes than those that you report.
"""

import dataclasses
from pathlib import Path

from ruamel.yaml import YAML
from safetensors import SafetensorError

from ezclip.cli.arguments import DataArguments
from ezclip.cli.compare_options import check_source, make_parser, read_arguments
from ezclip.cli.setup import running
from ezclip.constants import MERGE_NAME
from ezclip.errors import ModelError
from ezclip.hub.model_card import CardFacts, make_card
from ezclip.systems.loading import load_model, load_processor
from ezclip.systems.merging import find_changed_weights, merge_models
from ezclip.utils.digests import digest_tensors
from ezclip.utils.files import read_json, replacing, write_json
from ezclip.utils.messages import say
from ezclip.utils.settings import check_unchanged


CARD_NAME = "README.md"


def main(argv: list[str] | None = None):
    """Run `ezclip merge`; exit with a message if the options or a model cannot be used."""
    parser = make_parser("merge", "BASE TUNED --alpha ALPHA ... --output_dir FOLDER", __doc__)
    parser.add_argument("base", metavar="BASE", help="the model that training started from: a folder or a Hub name")
    parser.add_argument("tuned", metavar="TUNED", help="the trained model")
    help = "shares of TUNED, from 0 (BASE as it is) to 1 (TUNED as it is)"
    parser.add_argument("--alpha", type=float, nargs="+", required=True, help=help)
    values, data_args, args = read_arguments(parser, argv)
    if wrong := [alpha for alpha in values["alpha"] if not 0 <= alpha <= 1]:
        parser.error(f"--alpha must be in [0, 1], got {wrong[0]:g}.")
    is_evaluated = data_args != DataArguments()
    if is_evaluated:
        check_source(parser, data_args)
    output_dir, alphas = Path(values["output_dir"]), sorted(set(values["alpha"]))
    folders = {alpha: output_dir / _name(alpha) if len(alphas) > 1 else output_dir for alpha in alphas}
    with running("merge", args) as accelerator:
        if accelerator.is_main_process:
            write_merged(values["base"], values["tuned"], folders, args.overwrite_output_dir)
        if is_evaluated:
            from ezclip.cli.compare import compare_systems  # needs scipy

            systems = {**folders, 0.0: values["base"], 1.0: values["tuned"]}
            path = output_dir / "systems.yaml"
            if accelerator.is_main_process:
                content = {_name(alpha): {"model_name_or_path": str(name)} for alpha, name in sorted(systems.items())}
                with replacing(path) as temporary:
                    YAML().dump(content, temporary)
            accelerator.wait_for_everyone()
            args = dataclasses.replace(args, output_dir=str(output_dir / "comparison"))
            compare_systems(str(path), data_args, args, 0, accelerator)


def write_merged(base_name: str, tuned_name: str, folders: dict[float, Path], overwrite: bool = False):
    """
    Write merged models with their processors and cards, and keep those that an earlier run wrote.

    Args:
        base_name (`str`), tuned_name (`str`):
            Folders, or names on the Hub.
        folders (`dict[float, Path]`):
            Folder of each alpha. A model at alpha 0 has the processor of the base, others that of the tuned model.
        overwrite (`bool`, *optional*, defaults to `False`):
            Whether to replace other models in the folders.

    Raises:
        [`ModelError`]: if a model cannot be loaded, the two do not fit or are the same, or a folder holds another
        model or cannot be written. [`DataError`]: if a folder holds a model that was merged from others.
    """
    base, tuned = load_model(base_name), load_model(tuned_name)
    processors = load_processor(base_name), load_processor(tuned_name)
    vocabularies = [processor.tokenizer.get_vocab() for processor in processors]
    if vocabularies[0] != vocabularies[1]:
        raise ModelError(
            f"The tokenizers of {base_name} and {tuned_name} differ, so their token embeddings cannot be merged. Give "
            "the model that training started from, and then the trained one."
        )
    changed, added = find_changed_weights(base, tuned)
    if not changed and not added:
        raise ModelError(
            f"{base_name} and {tuned_name} must be two models, got the same weights. Give the model that training "
            "started from, and then the trained one."
        )
    say(f"{len(changed)} weights of {base_name} were trained, and {tuned_name} adds {len(added)}.")
    if added and not changed:
        say("Its backbone is frozen: alpha scales only what it adds (prompts, adapters, temporal head).")
    ends = {
        end: {"name": Path(name).name if Path(name).is_dir() else name, "weights": digest_tensors(model.state_dict())}
        for end, name, model in (("base", base_name, base), ("tuned", tuned_name, tuned))
    }
    for alpha, folder in folders.items():
        if folder.resolve() in (Path(base_name).resolve(), Path(tuned_name).resolve()):
            raise ModelError(f"--output_dir {folder} is one of the models to merge. Give another.")
        record, written, card = {"alpha": alpha, **ends}, folder / MERGE_NAME, folder / CARD_NAME
        if written.is_file() and not overwrite:
            check_unchanged(folder, read_json(written, "Give --overwrite_output_dir."), record)
            if card.is_file():  # it is written last
                say(f"{folder} is finished; it is not merged again.")
                continue
        elif (folder / "config.json").is_file() and not overwrite:
            raise ModelError(f"{folder} holds another model. Give --overwrite_output_dir, or another --output_dir.")
        model, processor = merge_models(base, tuned, alpha), processors[alpha > 0]
        try:
            card.unlink(missing_ok=True)
            write_json(written, record)
            model.save_pretrained(folder)
            processor.save_pretrained(folder)
            make_card(folder, model, processor, CardFacts(str(folder))).save(card)
        except (OSError, SafetensorError) as error:
            raise ModelError(
                f"--output_dir {folder} cannot be written ({error}). It is incomplete. Give another folder."
            ) from error
        say(f"{folder}: alpha {alpha:.15g}")


def _name(alpha: float) -> str:
    return f"alpha_{alpha:.15g}"
