"""Lightning callbacks: what happens in every epoch, which checkpoints are kept, and what ends a run early."""

from mnist_cnn.training.callbacks.averaging import AveragedWeights, DropoutSchedule
from mnist_cnn.training.callbacks.checkpoints import BestAndLast
from mnist_cnn.training.callbacks.epochs import METRICS, EpochState, EpochWatch, FirstBatch, History, Progress
from mnist_cnn.training.callbacks.stopping import EndedEarly, Finite, StopRequest, callbacks_of

__all__ = [
    "METRICS",
    "AveragedWeights",
    "BestAndLast",
    "DropoutSchedule",
    "EndedEarly",
    "EpochState",
    "EpochWatch",
    "Finite",
    "FirstBatch",
    "History",
    "Progress",
    "StopRequest",
    "callbacks_of",
]
