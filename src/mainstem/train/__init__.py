"""Examples -> steps -> snapshots.

towers.py     the two-tower model with its table: one definition of its keys, for training and serving
retrieval.py  trains the towers on the log's positives (sampled softmax, logQ)
ranking.py    trains the ranking network on replayed or joined examples (listwise softmax, calibrated)
threads.py    how many threads torch uses in a stage
trainer.py    the run: time split, checkpoints, early stopping, the published snapshot
"""

from mainstem.train.ranking import RankingFit, fit_ranker
from mainstem.train.retrieval import RetrievalTrainer
from mainstem.train.towers import Towers
from mainstem.train.trainer import Trainer, TrainingReport

__all__ = ["RankingFit", "RetrievalTrainer", "Towers", "Trainer", "TrainingReport", "fit_ranker"]
