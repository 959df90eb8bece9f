#!/usr/bin/env python
"""Train, evaluate and apply EZ-CLIP.

    accelerate launch run_video_zeroshot.py --demo --output_dir demo
    accelerate launch run_video_zeroshot.py --model_name_or_path MODEL \\
        --do_eval --validation_dir videos --output_dir out
    accelerate launch run_video_zeroshot.py --model_name_or_path openai/clip-vit-base-patch16 \\
        --do_train --train_list train.txt --label_list labels.csv --video_root videos --output_dir out
    accelerate launch run_video_zeroshot.py base_to_novel_ucf101 \\
        --model_name_or_path openai/clip-vit-base-patch16 --list_root EZ-CLIP --video_root UCF-101 --output_dir out
"""

from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import set_seed

from ezclip.cli.arguments import DataArguments, ModelArguments, RunArguments, parse_args
from ezclip.cli.demo import run_demo
from ezclip.cli.experiments import Runner
from ezclip.cli.hub_options import prepare_push, push_trained
from ezclip.cli.plan import describe_plan, load_predict_source, plan_experiments
from ezclip.cli.setup import make_reader, running
from ezclip.constants import PROTOCOL_RESULTS_NAME
from ezclip.errors import DataError
from ezclip.evaluation.protocols import as_markdown, summarize
from ezclip.utils.files import write_json
from ezclip.utils.messages import say
from ezclip.utils.ray_stages import require_ray


def main(argv: list[str] | None = None):
    """Run `ezclip run`; exit with a message if the options, the data or the model cannot be used."""
    model_args, data_args, args = parse_args(argv)
    with running("demo" if args.demo else "run", args) as accelerator:
        set_seed(args.seed)
        if args.demo:
            options = {"num_workers": args.dataloader_num_workers, "num_seeds": args.num_seeds or 1}
            run_demo(str(args.output_dir), accelerator, args.seed, **options, tower=args.tower or "clip")
        else:
            run(model_args, data_args, args, accelerator)


def run(model_args: ModelArguments, data_args: DataArguments, args: RunArguments, accelerator: Accelerator):
    """Train, evaluate, predict, report and push, as far as the options ask for it."""
    output_dir = Path(args.output_dir)

    # 1. Data: find everything that is wrong with it before a model is loaded
    if args.executor == "ray":
        require_ray()
    read = make_reader(data_args)
    with accelerator.main_process_first():
        experiments = plan_experiments(data_args, args)
        source = load_predict_source(data_args) if args.do_predict else None
    class_names = None if source is None else data_args.candidate_labels or source.class_names
    if accelerator.is_main_process:
        say("\n".join(describe_plan(experiments, source, class_names)))
    if args.report:
        try:
            from ezclip.report import write_report
        except ImportError as error:
            raise DataError(f"--report: {error}") from error

    # 2. Hub repository, processor, texts of all classes
    push_options = None
    if args.push_to_hub and accelerator.is_main_process:
        push_options = prepare_push(model_args, data_args, args, len(experiments))
    runner = Runner(model_args, args, read, accelerator)
    runner.check(experiments, class_names)

    # 3. Train and evaluate
    results, model = {}, None
    for experiment in experiments:
        del model  # frees its memory before the next one is loaded
        results[experiment.name], model = runner.run(experiment)
    if args.protocol is not None and accelerator.is_main_process:
        summary = summarize(args.protocol, results)
        write_json(output_dir / PROTOCOL_RESULTS_NAME, summary)
        print(as_markdown(summary))

    # 4. Predict
    if source is not None:
        runner.predict(model, experiments[0], source, class_names)

    # 5. Report
    if args.report and accelerator.is_main_process:
        folders = [output_dir / experiment.name / test for experiment in experiments for test in experiment.tests]
        for folder in folders if args.do_eval else [output_dir]:
            accelerator.print(write_report(folder, video_timeout=data_args.video_timeout))

    # 6. Push: last, so that a failure loses nothing
    if push_options is not None:
        accelerator.print(push_trained(output_dir / experiments[0].name, push_options))


if __name__ == "__main__":
    main()
