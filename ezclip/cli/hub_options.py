"""Push the model of a training run to the Hub."""

from pathlib import Path

from checkpoint_ezclip import TrainedCheckpoint
from ezclip.cli.arguments import DataArguments, ModelArguments, RunArguments
from ezclip.cli.plan import one_source
from ezclip.errors import DataError, ModelError
from ezclip.hub.model_card import CardFacts, is_hub_name
from ezclip.hub.push import PushOptions, create_repository, push
from ezclip.hub.staging import check_base


def prepare_push(
    model_args: ModelArguments, data_args: DataArguments, args: RunArguments, num_experiments: int
) -> PushOptions:
    """
    Make the repository before training, and return the options of the push after it.

    Raise a [`DataError`] if the run trains several models, and a [`ModelError`] if the repository cannot be made or
    another machine could not load the pushed model.
    """
    if num_experiments > 1:
        raise DataError(
            f"--push_to_hub must push one model, got {num_experiments}. Leave it out, and push one with `ezclip push`."
        )
    start, repo_id = model_args.model_name_or_path, args.hub_model_id or Path(args.output_dir).absolute().name
    if args.save_trained_only:
        try:
            source = TrainedCheckpoint.find(start)
        except (OSError, ValueError) as error:
            raise ModelError(f"{start} cannot be loaded: {error}") from error
        check_base(
            start if source is None else source.base,
            f"The model in {args.output_dir}",
            "Leave out --save_trained_only, or start from a name on the Hub (--model_name_or_path).",
        )
    facts = CardFacts(repo_id, base_model=None if Path(start).is_dir() else start)
    facts.check()
    facts.repo_id = create_repository(repo_id, args.hub_private_repo)
    dataset = data_args.dataset_name
    if dataset is not None and not Path(dataset).exists() and is_hub_name(dataset):
        if one_source(data_args, "train_dir", "train_list") == "dataset_name":
            facts.train_datasets = [dataset]
        if args.do_eval and one_source(data_args, "validation_dir", "validation_list") == "dataset_name":
            facts.eval_dataset = dataset
    return PushOptions(facts, private=args.hub_private_repo)


def push_trained(folder: Path, options: PushOptions) -> str:
    """Push a trained model and return the address of the commit. An error names the command that repeats the push."""
    try:
        return push(folder, options).commit_url
    except ModelError as error:
        raise ModelError(
            f"{error}\nThe model is in {folder}, and everything else is done. To push it: "
            f"ezclip push --model {folder} --repo_id {options.facts.repo_id}"
        ) from error
