"""The weights of the best evaluation of a training, with a record of where they come from."""

import json
import shutil
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import SAFE_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import TrainerState

from ezclip.errors import DataError
from ezclip.training.checkpoints import load_trained, raise_on_all_ranks, trained_weights
from ezclip.training.recipe import TrainingRecipe
from ezclip.utils.digests import digest_tensors
from ezclip.utils.earlier_results import EarlierResults
from ezclip.utils.files import flush, replacing
from modeling_ezclip import EZClipModel


RECORD_KEY = "ezclip_best_model"


class BestModel:
    """
    The file `best_model/model.safetensors` of an output folder.

    Its metadata names the training, the step, the metric and its value, and has a digest of the weights, so that
    weights of another training, another step or a damaged file are never loaded.

    Args:
        accelerator (`Accelerator`):
            The accelerator. The main process writes.
        output_dir (`str` or `Path`):
            The output folder.
        training (`str`):
            Digest of everything that determines the training.
        recipe ([`TrainingRecipe`]):
            Names the metric that chooses, the higher the better, and says what the best is for.
        earlier ([`EarlierResults`]):
            Results that the first new file replaces.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        output_dir: str | Path,
        training: str,
        recipe: TrainingRecipe,
        earlier: EarlierResults,
    ):
        self.earlier = earlier
        self.accelerator, self.training, self.recipe = accelerator, training, recipe
        self.metric = recipe.metric_for_best_model
        self.output_dir = Path(output_dir)
        self.path = _path(self.output_dir)

    def keep(self, model: EZClipModel, metrics: dict, state: TrainerState):
        """
        Write the weights if their metric is the best so far, and note it in the state of the training.

        Raises:
            [`DataError`]: if the recipe needs the metric and there is none, or the file cannot be written.
        """
        value = metrics.get(self.metric)
        if value is None and self.recipe.needs_best:
            raise DataError(
                f"The evaluation at step {state.global_step} has no {self.metric}, which --metric_for_best_model asks "
                f"for; it has {', '.join(sorted(metrics))}. Check that its videos can be read: `ezclip check`."
            )
        if value is None:
            return
        if state.best_metric is not None and value <= state.best_metric:
            return
        state.best_metric, state.best_global_step = value, state.global_step
        state.best_model_checkpoint = str(self.path.parent)
        with raise_on_all_ranks(self.accelerator, self.path.parent):
            self.earlier.remove()
            if self.accelerator.is_main_process:
                weights = trained_weights(model)
                record = {"training": self.training, "step": state.global_step, "metric": self.metric, "value": value}
                record["digest"] = digest_tensors(weights)
                with replacing(self.path) as partial:
                    save_file(weights, partial, metadata={RECORD_KEY: json.dumps(record)})
                    flush(partial)

    def resume(self, state: TrainerState, checkpoint: Path):
        """
        Check the file when a training resumes, and copy it from the folder of the checkpoint if it is elsewhere.

        Raises:
            [`DataError`]: if the recipe loads the best weights at the end, and neither folder has them.
        """
        if state.best_global_step is None or not self.recipe.load_best_model_at_end:
            return
        problems = [self._problem(self.output_dir, state), self._problem(checkpoint.parent, state)]
        if all(problems):
            raise DataError(
                f"The best weights of step {state.best_global_step} cannot be used: {problems[1]} Resume from an "
                "earlier checkpoint, or leave --load_best_model_at_end out."
            )
        with raise_on_all_ranks(self.accelerator, self.path):
            if problems[0] and self.accelerator.is_main_process:
                with replacing(self.path) as partial:
                    shutil.copyfile(_path(checkpoint.parent), partial)
        state.best_model_checkpoint = str(self.path.parent)

    def load(self, model: EZClipModel, state: TrainerState):
        """
        Load the best weights into the model.

        Raises:
            [`DataError`]: if they are damaged or of another training. The last weights are then kept in `last_model`.
        """
        problem = self._problem(self.output_dir, state)
        if problem is None:
            return load_trained(model, self.path)
        last = self.output_dir / "last_model" / SAFE_WEIGHTS_NAME
        with raise_on_all_ranks(self.accelerator, last):
            if self.accelerator.is_main_process:
                with replacing(last) as partial:
                    save_file(trained_weights(model), partial)
        raise DataError(
            f"The best weights cannot be loaded: {problem} The trained weights of the last step are in {last}."
        )

    def _problem(self, folder: Path, state: TrainerState) -> str | None:
        """Return why the file in a folder is not the best model of this training, or None."""
        path = _path(folder)
        try:
            with safe_open(path, framework="pt") as file:
                record = json.loads((file.metadata() or {})[RECORD_KEY])
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if record["digest"] != digest_tensors(weights):
                return f"{path} is damaged."
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            return f"{path} is missing or damaged ({error})."
        if record["training"] != self.training or record["metric"] != self.metric:
            return f"{path} is of another training."
        # A run that was killed after its last checkpoint may have gone further.
        if record["step"] < state.best_global_step:
            return f"{path} is of step {record['step']}, not of step {state.best_global_step}."
        return None


def _path(folder: Path) -> Path:
    return folder / "best_model" / SAFE_WEIGHTS_NAME
