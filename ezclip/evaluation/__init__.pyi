from .comparison import compare_ranks as compare_ranks, read_ranks as read_ranks
from .metrics import TopKAccuracy as TopKAccuracy, mean_per_class as mean_per_class
from .predictions import Predictions as Predictions, predict as predict
from .protocols import Experiment as Experiment, summarize as summarize
from .sharded_prediction import predict_shards as predict_shards
from .statistics import (
    accuracy_interval as accuracy_interval,
    holm as holm,
    mcnemar as mcnemar,
    mean_per_class_interval as mean_per_class_interval,
)
