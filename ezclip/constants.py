"""File names and values that several rooms share."""

# Written by evaluation
EVAL_RESULTS_NAME = "eval_results.json"
EVAL_SETTINGS_NAME = "eval_settings.json"
PREDICTIONS_NAME = "predictions.jsonl"
PROTOCOL_RESULTS_NAME = "protocol_results.json"
EXPERIMENT_RESULTS_NAME = "results.json"
VIDEO_EMBEDS_NAME = "video_embeds.safetensors"

# Written by training
TRAIN_RESULTS_NAME = "train_results.json"
TRAINER_STATE_NAME = "trainer_state.json"
CHECKPOINT_SETTINGS_NAME = "settings.json"

FIT_RESULTS_NAME = "fit_results.json"  # written by --do_fit
ENGINE_RECORD_NAME = "engine.json"  # written beside an export for an engine
MERGE_NAME = "merge.json"  # written beside a merged model

UNKNOWN_LABEL = -1  # the label of a video whose class is not known
# What runs the work of a command
EXECUTORS = ("accelerate", "ray")
EXECUTOR_HELP = (
    "accelerate: this process and those of a launcher. ray: workers of Ray Data, on the cluster of RAY_ADDRESS or "
    "this machine. The files are the same."
)
