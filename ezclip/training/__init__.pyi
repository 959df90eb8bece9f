from .checkpoints import Checkpoints as Checkpoints
from .gradient_cache import backward as backward
from .log import TrainingLog as TrainingLog, parse_trackers as parse_trackers
from .loop import TrainingResult as TrainingResult, check_training as check_training, train as train
from .recipe import TrainingRecipe as TrainingRecipe
from .stop_signals import StopSignals as StopSignals, TrainingStopped as TrainingStopped
