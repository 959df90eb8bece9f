from .reading import EvaluationRun as EvaluationRun, read_run as read_run
from .writing import write_report as write_report
