"""Random-access data sets, and the global batches that `fit` reads from them."""

from recipes.common.data.epochs import EpochData
from recipes.common.data.sources import Arrays, BadSample, Prepare, Source
from recipes.common.data.training import batches_per_epoch, training_data
from recipes.common.data.validation import share_sizes, validation_data

__all__ = [
    "Arrays",
    "BadSample",
    "EpochData",
    "Prepare",
    "Source",
    "batches_per_epoch",
    "share_sizes",
    "training_data",
    "validation_data",
]
