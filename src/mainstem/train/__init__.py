"""Examples -> steps -> deltas and snapshots; from a whole log, or from the log as it grows.

towers.py        the one model with its table: one definition of its keys, for training and serving
networks.py      new networks as configured, and those of a snapshot
canvases.py      which requests, of which canvases, a positive is the right answer to
words.py         what entities say of themselves and what is searched for, as keys
texts.py         their texts, and queries, as vectors of a pretrained encoder
interactions.py  positives with their users' histories, from a whole log
histories.py     the same, online
history_bytes.py what they keep of events, byte by byte
numbering.py     small numbers for the entities in them
item_weights.py  weights between items, from a whole log
neighbourhoods.py  the same where a source reads them: made, kept beside a snapshot, loaded
population.py    how often entities are taken: Q of the logQ correction
negatives.py     what each positive is told from: all that was taken, or a drawn mixture with log Q
retrieval.py     a step of the towers (full or sampled softmax), and epochs of them
ranking.py       trains the ranking network on replayed or joined examples, and calibrates it
ranking_loss.py  what it minimises: an order loss of binary heads, the own loss of the others
meetings.py      which candidates meet which histories, for a ranking network that reads them
wide.py          which crosses candidates are of, and the table of what each weighs, for one that remembers them
ranking_online.py  a step of it on slates whose labels became known, and the level of binary heads
trainer.py       the run over a whole log: time split, checkpoints, early stopping, the published snapshot
online.py        learns from log records in order, one micro-batch at a time
stream.py        the trainer beside the server: tails the log, publishes deltas
recovery.py      where it goes on after a start, a kill or a refusal
guard.py         what must be true of an update before it is published
canaries.py      fixed questions whose answers must not turn over at once
published.py     a learner's whole state as a snapshot, and back
catalogs.py      the catalogue as of a snapshot, kept beside it
rebuilt.py       models rebuilt from the whole history, brought up to date beside the one in use
threads.py       how many threads torch uses in a stage
"""

from mainstem.train.networks import kinds_read, new_ranker, new_tables, new_towers, new_wide, restore
from mainstem.train.online import OnlineLearner
from mainstem.train.ranking import RankingFit, fit_ranker
from mainstem.train.ranking_online import RankingLearner
from mainstem.train.retrieval import RetrievalTrainer
from mainstem.train.stream import OnlineTrainer
from mainstem.train.towers import Towers
from mainstem.train.trainer import Trainer, TrainingReport
from mainstem.train.wide import Wide

__all__ = [
    "OnlineLearner",
    "OnlineTrainer",
    "RankingFit",
    "RankingLearner",
    "RetrievalTrainer",
    "Towers",
    "Trainer",
    "TrainingReport",
    "Wide",
    "fit_ranker",
    "kinds_read",
    "new_ranker",
    "new_tables",
    "new_towers",
    "new_wide",
    "restore",
]
