from .language_models import Endpoint as Endpoint
from .language_models import TransformersModel as TransformersModel
from .questions import KINDS as KINDS
from .questions import Kind as Kind
from .questions import Question as Question
