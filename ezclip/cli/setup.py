"""Devices, processes, output folder and reader of a run."""

import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Never

from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from transformers.utils import logging as transformers_logging

from ezclip.cli.arguments import DataArguments, RunArguments
from ezclip.cli.limits import read_limits
from ezclip.data.isolated_reader import IsolatedReader
from ezclip.errors import DataError, ModelError
from ezclip.training.log import parse_trackers
from ezclip.training.stop_signals import TrainingStopped
from ezclip.utils.memory import return_freed_memory
from ezclip.utils.messages import is_first_process, say, wait_for_first_process
from video_ezclip import VideoReadError, require_backend


def make_accelerator(args: RunArguments) -> Accelerator:
    """Return the accelerator of a run: device, processes, precision and trackers. Only the main process logs."""
    trackers = parse_trackers(args.report_to)
    try:
        accelerator = Accelerator(
            cpu=args.use_cpu,
            mixed_precision=args.mixed_precision,
            log_with=trackers or None,
            project_dir=args.output_dir,
            dataloader_config=DataLoaderConfiguration(non_blocking=True),
        )
    except ValueError as error:
        raise ModelError(f"--mixed_precision {args.mixed_precision} cannot be used here: {error}") from error
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ModelError("--mixed_precision fp16 needs a GPU. Give bf16 or no on a CPU.")
    if not accelerator.is_main_process:
        transformers_logging.set_verbosity_error()
        transformers_logging.get_logger("ezclip").setLevel(transformers_logging.ERROR)
        transformers_logging.disable_progress_bar()
    return accelerator


@contextlib.contextmanager
def running(command: str, args: RunArguments) -> Iterator[Accelerator]:
    """Make the output folder, yield the accelerator, and end its trackers; exit with a message for a known error."""
    accelerator = None
    try:
        # An output folder that cannot be written must show before the work.
        try:
            Path(args.output_dir).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=args.output_dir):
                pass
        except OSError as error:
            raise DataError(
                f"--output_dir {args.output_dir} cannot be made or written ({error.strerror}). Give another."
            ) from error
        accelerator = make_accelerator(args)
        return_freed_memory()
        yield accelerator
    except (DataError, ModelError, VideoReadError) as error:
        wait_for_first_process()
        sys.exit(f"ezclip {command}: {error}")
    except TrainingStopped as stopped:
        exit_stopped(f"ezclip {command}: {stopped}", stopped.exit_status)
    except KeyboardInterrupt:
        exit_stopped(f"\nezclip {command}: stopped.", 130)
    except Exception:
        # A process whose peers have ended has an error of the connection, which nobody needs to see.
        wait_for_first_process()
        raise
    finally:
        if accelerator is not None:
            accelerator.end_training()


def exit_stopped(message: str, status: int) -> Never:
    """End a process whose peers got the same signal, with a message of the first one."""
    if is_first_process():
        say(message, file=sys.stderr)
    if "LOCAL_RANK" in os.environ:  # a launcher sends Ctrl-C to processes that the terminal sent it to
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(status)


def make_reader(data_args: DataArguments) -> IsolatedReader:
    """Return the reader of a run's videos. Raise a [`DataError`] if the video backend is not installed."""
    try:
        require_backend(data_args.video_backend)
    except ImportError as error:
        raise DataError(str(error)) from error
    return IsolatedReader(
        data_args.video_timeout,
        backend=data_args.video_backend,
        allow_partial=data_args.allow_partial,
        square_pixels=data_args.square_pixels,
        limits=read_limits(data_args),
    )
