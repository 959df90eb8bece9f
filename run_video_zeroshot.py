#!/usr/bin/env python
"""Train, evaluate and apply EZ-CLIP.

    accelerate launch run_video_zeroshot.py --demo --output_dir demo
    accelerate launch run_video_zeroshot.py --model_name_or_path MODEL \\
        --do_eval --validation_dir videos --output_dir out
    accelerate launch run_video_zeroshot.py --model_name_or_path openai/clip-vit-base-patch16 \\
        --do_train --train_list train.txt --label_list labels.csv --video_root videos --output_dir out
    accelerate launch run_video_zeroshot.py configs/base_to_novel_ucf101.yaml \\
        --list_root EZ-CLIP --video_root UCF-101 --output_dir out
"""

import sys
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import set_seed

from ezclip.cli.arguments import DataArguments, ModelArguments, RunArguments, parse_args
from ezclip.cli.demo import run_demo
from ezclip.cli.experiments import Runner
from ezclip.cli.hub_options import prepare_push
from ezclip.cli.plan import load_predict_source, make_plan
from ezclip.cli.setup import make_accelerator, make_output_dir
from ezclip.constants import PROTOCOL_RESULTS_NAME
from ezclip.data.dataset import digest
from ezclip.errors import DataError, ModelError
from ezclip.evaluation.protocols import as_markdown, summarize
from ezclip.evaluation.sharded_prediction import predict_shards
from ezclip.hub.push import push
from ezclip.training.stop_signals import TrainingStopped
from ezclip.utils.files import write_json
from ezclip.utils.memory import return_freed_memory
from video_ezclip import VideoReadError, require_backend


def main(argv: list[str] | None = None):
    model_args, data_args, args = parse_args(argv)
    accelerator = None
    try:
        output_dir = make_output_dir(args.output_dir)
        accelerator = make_accelerator(args)
        set_seed(args.seed)
        return_freed_memory()
        if args.demo:
            run_demo(
                output_dir,
                accelerator,
                seed=args.seed,
                num_workers=args.dataloader_num_workers,
                num_seeds=args.num_seeds or 1,
            )
        else:
            run(model_args, data_args, args, accelerator)
    except (DataError, ModelError, VideoReadError) as error:
        sys.exit(f"run_video_zeroshot.py: {error}")
    except TrainingStopped as stopped:
        print(f"run_video_zeroshot.py: {stopped}", file=sys.stderr)
        sys.exit(stopped.exit_status)
    finally:
        if accelerator is not None:
            accelerator.end_training()


def run(model_args: ModelArguments, data_args: DataArguments, args: RunArguments, accelerator: Accelerator):
    output_dir = Path(args.output_dir)

    # 1. Data: everything that can be wrong with it is found before a model is loaded
    try:
        require_backend(data_args.video_backend)
    except ImportError as error:
        raise DataError(str(error)) from error
    with accelerator.main_process_first():
        plan = make_plan(data_args, args)
        source = load_predict_source(data_args) if args.do_predict else None

    if args.report:
        try:
            from ezclip.report import write_report
        except ImportError as error:
            raise DataError(f"--report: {error}") from error

    # 2. The repository to push to, which might not be to be had; processor, and the texts of all classes
    push_options = None
    if args.push_to_hub and accelerator.is_main_process:
        push_options = prepare_push(model_args, data_args, args, plan)
    runner = Runner(model_args, data_args, args, plan, accelerator)
    class_names = None if source is None else data_args.candidate_labels or source.class_names
    runner.check(class_names)

    # 3. Train and evaluate
    results, model = {}, None
    for experiment in plan.experiments:
        del model  # before there is another
        results[experiment.name], model = runner.run(experiment)
    if args.protocol is not None and accelerator.is_main_process:
        summary = summarize(args.protocol, results)
        write_json(output_dir / PROTOCOL_RESULTS_NAME, summary)
        print(as_markdown(summary))

    # 4. Predict
    if source is not None:
        texts = plan.train_texts
        model.to(accelerator.device).eval()
        counts = predict_shards(
            model,
            texts.bank(model, runner.processor, class_names),
            source,
            runner.processor,
            output_dir,
            {
                "templates": texts.templates,
                "include_label": texts.include_label,
                "input_conditioning": texts.input_conditioning,
                "prompts": digest(texts.prompts(runner.processor, class_names)),
                "sampling": runner.processor.sampling,
                "tokenizer_name": model_args.tokenizer_name,
                "image_processor": runner.processor.image_processor.to_dict(),
                "video_backend": data_args.video_backend,
                "allow_partial": data_args.allow_partial,
            },
            accelerator,
            batch_size=args.per_device_eval_batch_size,
            num_workers=args.dataloader_num_workers,
            ensemble=runner.ensemble,
            top_k=args.top_k,
            strict=args.strict,
            num_clips=data_args.num_clips,
            num_crops=data_args.num_crops,
            read=runner.read,
        )
        accelerator.print(
            f"{counts.num_videos} videos: {output_dir / 'predictions.jsonl'}; {counts.num_bad_videos} could not be "
            f"read, {counts.num_partial_videos} were read in part."
        )

    # 5. Report
    if args.report and accelerator.is_main_process:
        folders = [output_dir / experiment.name / test for experiment in plan.experiments for test in experiment.tests]
        for folder in folders if args.do_eval else [output_dir]:
            accelerator.print(write_report(folder, video_timeout=data_args.video_timeout))

    # 6. Push, last of all: whatever comes of it, all else is done
    if push_options is not None:
        folder = output_dir / plan.experiments[0].name
        try:
            commit = push(folder, push_options)
        except ModelError as error:
            repo_id = push_options.facts.repo_id
            raise ModelError(
                f"{error}\nThe model is in {folder}, and all else is done. To push it: python scripts/push_to_hub.py "
                f"--model {folder} --repo_id {repo_id}"
            ) from error
        accelerator.print(commit.commit_url)


if __name__ == "__main__":
    main()
