from .conversion import convert as convert, describe as describe
from .formats import Checkpoint as Checkpoint, read_checkpoint as read_checkpoint
