from .comparison import compare_ranks as compare_ranks
from .comparison import read_ranks as read_ranks
from .metrics import TopKAccuracy as TopKAccuracy
from .metrics import mean_per_class as mean_per_class
from .predictions import Predictions as Predictions
from .predictions import predict as predict
from .protocols import Experiment as Experiment
from .protocols import summarize as summarize
from .sharded_prediction import predict_shards as predict_shards
from .statistics import (
    accuracy_interval as accuracy_interval,
)
from .statistics import (
    holm as holm,
)
from .statistics import (
    mcnemar as mcnemar,
)
from .statistics import (
    mean_per_class_interval as mean_per_class_interval,
)
