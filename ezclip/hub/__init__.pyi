from .model_card import CardFacts as CardFacts
from .model_card import make_card as make_card
from .push import PushOptions as PushOptions
from .push import push as push
from .staging import stage as stage
