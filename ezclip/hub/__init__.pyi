from .model_card import CardFacts as CardFacts, make_card as make_card
from .push import PushOptions as PushOptions, push as push
from .staging import stage as stage
