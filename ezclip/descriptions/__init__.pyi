from .language_models import Endpoint as Endpoint, TransformersModel as TransformersModel
from .questions import KINDS as KINDS, TEAR_KINDS as TEAR_KINDS, Kind as Kind, Question as Question
