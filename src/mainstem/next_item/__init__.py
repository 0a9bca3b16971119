"""`mainstem evaluate --protocol next-item`: one model, one setting, any data in which users did something in order.

actions.py     what users did, in order, with what the catalogue knows: of a public set, of records, of the log
files.py       the same of one's own file, with a file of items beside it
preset.py      the one setting for all data, and what a configuration changes of it
model.py       the one model as a recommender of the next item: epochs, early stopping, final fit
runs.py        how a training stands, epoch by epoch, and who is told
checkpoints.py a run that was killed goes on after its last epoch
compare.py     the whole evaluation: ours and its peers, seeds, segments
display.py     the training as a bar: epoch, loss, validation, time left

The protocol itself, in arrays, is `mainstem.evaluate.next_item`.
"""

from mainstem.next_item.actions import Actions, of_dataset, of_log
from mainstem.next_item.compare import RULES, Asked, Rules, compare
from mainstem.next_item.display import TrainingDisplay
from mainstem.next_item.files import of_file
from mainstem.next_item.model import SequenceModel
from mainstem.next_item.preset import LARGE, PRESET, configured

__all__ = [
    "LARGE",
    "PRESET",
    "RULES",
    "Actions",
    "Asked",
    "Rules",
    "SequenceModel",
    "TrainingDisplay",
    "compare",
    "configured",
    "of_dataset",
    "of_file",
    "of_log",
]
