from .conversion import convert as convert
from .conversion import describe as describe
from .formats import Checkpoint as Checkpoint
from .formats import read_checkpoint as read_checkpoint
