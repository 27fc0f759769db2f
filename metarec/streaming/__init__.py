"""The prequential protocol: rank the clicks of each period, then let the model have them, period after period.

Source: Gama, Sebastiao and Rodrigues, On Evaluating Stream Learning Algorithms, Machine Learning 2013; for recommenders
Vinagre, Jorge and Gama, Evaluation of Recommender Systems in Streaming Environments, 2014. A model is given clicks only
once all that is asked about their period was ranked, so nothing can look ahead, whatever the model is.
"""

from metarec.streaming.prequential import evaluate_stream
from metarec.streaming.report import StreamReport, plot_stream
from metarec.streaming.steps import counted, frozen, learned, retrained
from metarec.streaming.weights import fit_by_prequential_validation, prequential_scores

__all__ = [
    "StreamReport",
    "counted",
    "evaluate_stream",
    "fit_by_prequential_validation",
    "frozen",
    "learned",
    "plot_stream",
    "prequential_scores",
    "retrained",
]
