from .watching import LiveAnswer as LiveAnswer, watch as watch
