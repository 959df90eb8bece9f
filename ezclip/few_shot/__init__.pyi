from .fitting import choose_clip_weight as choose_clip_weight, fit_class_bank as fit_class_bank
from .shots import Shots as Shots, embed_shots as embed_shots
