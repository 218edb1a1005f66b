"""Split training images into a part to train on and a part for validation."""

import math

import numpy as np
import torch
from torch import Tensor


def split_indices(labels: Tensor, fraction: float, how: str, seed: int) -> tuple[Tensor, Tensor]:
    """The indices of the training and of the validation part, each in rising order.

    `last`: the last part, of the size that Keras' `validation_split` takes; `random`: as many, drawn by the seed;
    `stratified`: the same, with every class in proportion. With a fraction of 0 all are for training. ValueError where
    too few images are left on one side.
    """
    n = len(labels)
    if not fraction:
        return torch.arange(n), torch.arange(0)
    kept = math.floor(n * (1 - fraction))
    if not 0 < kept < n:
        raise ValueError(f"{fraction}: of {n} images it leaves {kept} for training")
    if how == "last":
        return torch.arange(kept), torch.arange(kept, n)
    if how == "random":
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
        return order[:kept].sort().values, order[kept:].sort().values
    from sklearn.model_selection import train_test_split

    if min(kept, n - kept) < len(labels.bincount().nonzero()):
        raise ValueError(f"{fraction}: too few of {n} images for one of every class on both sides")
    train, val = train_test_split(np.arange(n), test_size=n - kept, stratify=labels.numpy(), random_state=seed)
    return torch.from_numpy(np.sort(train)), torch.from_numpy(np.sort(val))
