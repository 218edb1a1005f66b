"""Which of the training images are kept for validation?"""

import math

import numpy as np
import torch
from torch import Tensor

from mnist_cnn.errors import ConfigError


def split_indices(labels: Tensor, fraction: float, how: str, seed: int) -> tuple[Tensor, Tensor]:
    """Cut a training set in two: indices for training and for validation, each in rising order.

    `last`: the last part, of the size that Keras' `validation_split` takes; `random`: of that size, drawn by the seed;
    `stratified`: the same, with every class in proportion. ConfigError where nothing would be left on one side.
    """
    n = len(labels)
    kept = math.floor(n * (1 - fraction))
    if not 0 < kept < n:
        raise ConfigError(f"data.val_fraction={fraction}: of {n} images it leaves {kept} for training.")
    if how == "last":
        return torch.arange(kept), torch.arange(kept, n)
    if how == "random":
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
        return order[:kept].sort().values, order[kept:].sort().values
    from sklearn.model_selection import train_test_split

    if min(kept, n - kept) < len(labels.bincount().nonzero()):
        raise ConfigError(f"data.val_fraction={fraction}: too few of {n} images for one of every class on both sides.")
    train, val = train_test_split(np.arange(n), test_size=n - kept, stratify=labels.numpy(), random_state=seed)
    return torch.from_numpy(np.sort(train)), torch.from_numpy(np.sort(val))
