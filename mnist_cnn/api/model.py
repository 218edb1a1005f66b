"""`mnist_cnn.load`: a trained network as an object that predicts and evaluates."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mnist_cnn.data import datasets
from mnist_cnn.data.images import Images
from mnist_cnn.errors import CheckpointError, ConfigError, DataError, did_you_mean
from mnist_cnn.inference import checkpoint
from mnist_cnn.inference.checkpoint import TrainedNetwork
from mnist_cnn.inference.evaluate import Evaluation, evaluate, logits_of
from mnist_cnn.inference.images import images_for
from mnist_cnn.inference.pictures.prepare import Placing
from mnist_cnn.inference.predict import Prediction, predict
from mnist_cnn.network import Network

ArrayLike: TypeAlias = NDArray[Any] | Tensor
_PICTURES = (str, os.PathLike, Image.Image)
Picture: TypeAlias = str | os.PathLike[str] | Image.Image


def load(source: str | os.PathLike[str], *, input_scale: str | None = None) -> "Model":
    """Load a trained network: a run folder, a checkpoint, a name that `mnist-cnn models` lists, or a Keras file.

    For a Keras file (`.keras`, `.h5`, `.hdf5`), `input_scale` says how pixels were scaled for it: `1/255`, `1`,
    `mean-std`, `1/127.5-1` or `normalize`. Without it, this is guessed, and the guess is printed. CheckpointError or
    KerasFileError if the file can't be used.
    """
    path = Path(source)
    if path.suffix in checkpoint.KERAS_SUFFIXES:
        return Model(_import_keras(path, input_scale))
    if input_scale is not None:
        raise CheckpointError(f"{path}: input_scale is for Keras files; a checkpoint knows how its images are scaled.")
    return Model(checkpoint.load(source if isinstance(source, str) else path))


def _import_keras(path: Path, input_scale: str | None) -> TrainedNetwork:
    from mnist_cnn.keras.importer import images_to_guess_on, import_model

    if input_scale is not None:
        return import_model(path, scaling=input_scale).trained
    name, images = images_to_guess_on("data")
    imported = import_model(path, images=images)
    print(f"input_scale={imported.scaling!r}, guessed on images of {name}", file=sys.stderr)
    return imported.trained


@dataclass(frozen=True, repr=False)
class Model:
    """A trained network; `trained` is everything that its checkpoint holds."""

    trained: TrainedNetwork

    @property
    def network(self) -> Network:
        """The torch module, on the CPU in evaluation mode: scaled images (N, C, H, W) → logits (N, classes)."""
        return self.trained.network

    @property
    def classes(self) -> tuple[str, ...]:
        return self.trained.classes

    def __repr__(self) -> str:
        trained = self.trained
        return f"<{trained.model}, {trained.network.parameter_count:,} parameters, {trained.provenance}>"

    @overload
    def predict(self, x: ArrayLike) -> NDArray[np.float32]: ...

    @overload
    def predict(self, x: Picture | Sequence[Picture], placing: Placing = "auto") -> list[Prediction]: ...

    def predict(
        self, x: ArrayLike | Picture | Sequence[Picture], placing: Placing = "auto"
    ) -> NDArray[np.float32] | list[Prediction]:
        """Classify images in an array, or pictures.

        An array or tensor holds images as MNIST has them, light on dark: (N, H, W), (N, H, W, C) or (N, C, H, W), uint8
        or float in [0, 1]. The result is the probability of each class, (N, classes).

        Pictures are paths, folders and PIL images of any size; each digit is cut out and placed as in MNIST, unless
        `placing` is `as-is`. The result is what `mnist-cnn predict` prints: a Prediction for each picture, or for each
        line of digits in it, with `digit` and `probability`, or `error`.

        DataError for an array of another shape or range, or for anything else that is no picture.
        """
        _require_one_of("placing", placing, get_args(Placing))
        if isinstance(x, np.ndarray | Tensor):
            return logits_of(self.trained, _images(x, self.trained)).softmax(1).numpy()
        pictures = [x] if isinstance(x, str | os.PathLike | Image.Image) else x
        if not isinstance(pictures, list | tuple) or not all(isinstance(picture, _PICTURES) for picture in pictures):
            raise DataError("pictures are paths, PIL images, or a list of these; images in arrays are one array.")
        sources = [picture if isinstance(picture, Image.Image) else Path(picture) for picture in pictures]
        return list(predict(self.trained, sources, placing))

    def evaluate(
        self,
        data: str | tuple[ArrayLike, ArrayLike] | None = None,
        *,
        split: Literal["test", "val", "train"] = "test",
        root: str | Path | None = None,
        file: str | Path | None = None,
        mirror: str | None = None,
    ) -> Evaluation:
        """Measure accuracy, loss and more, as `mnist-cnn evaluate` does, on the images of `split`.

        `data` is the name of a data set, by default the one that the network was trained on, or a pair of images and
        their classes, (N, …) as `predict` takes them and (N,). `root` is the folder of the data set's files or, for
        `folder`, of your own pictures; `file` is the .npz file for `npz`; `mirror` is an address to fetch files from,
        for MNIST by default the environment variable MNIST_MIRROR.
        ConfigError if `root` or `file` is missing for your own images; DataError if the images are not available or
        don't suit the network.
        """
        _require_one_of("split", split, ("test", "val", "train"))
        if data is not None and not isinstance(data, str):
            if not isinstance(data, tuple) or len(data) != 2:
                raise DataError("data is the name of a data set, or a pair (images, classes).")
            images, labels = _images(data[0], self.trained), _labels(data[1], len(self.classes))
            if len(images) != len(labels) or not len(labels):
                raise DataError(f"{len(images)} images with {len(labels)} classes: one class for each image is needed.")
            return evaluate(self.trained, Images(images, labels), "arrays", split)
        arguments = {"folder": "root=FOLDER", "npz": "file=FILE.npz", "mirror": "mirror="}
        files = datasets.data_files(data or self.trained.dataset, root, file, mirror, arguments)
        return evaluate(self.trained, images_for(self.trained, split, files), files.name, split)


def _require_one_of(argument: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ConfigError(f"{argument}={value!r}: not one of {', '.join(known)}.{did_you_mean(str(value), known)}")


def _images(x: ArrayLike, trained: TrainedNetwork) -> Tensor:
    """Images (N, C, H, W) with values 0 … 255 from an array that `Model.predict` takes."""
    images = _tensor(x)
    channels, *size = trained.network.input_shape
    if images.dim() == 3 and channels == 1:
        images = images[:, None]
    elif images.dim() == 4 and images.shape[1] != channels and images.shape[3] == channels:
        images = images.permute(0, 3, 1, 2)
    if images.dim() != 4 or images.shape[1] != channels:
        wanted = "(N, H, W), (N, H, W, 1) or (N, 1, H, W)" if channels == 1 else f"(N, H, W, {channels})"
        raise DataError(f"images of shape {tuple(x.shape)}: the network takes {wanted}.")
    if trained.preprocessing.size is None and list(images.shape[2:]) != size:
        have, want = ("×".join(map(str, sides)) for sides in (images.shape[2:], size))
        raise DataError(f"images of {have} pixels: the network takes {want}; PIL images and files may have any size.")
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise DataError(f"images of type {x.dtype}: they must be uint8, or float in [0, 1].")
    if len(images) and not (images.min() >= 0 and images.max() <= 1):  # false for NaN, too
        raise DataError(f"images from {float(images.min()):g} to {float(images.max()):g}: floats must be in [0, 1].")
    return images.float() * 255


def _labels(y: ArrayLike, classes: int) -> Tensor:
    """Classes (N,) int64 from an array of whole numbers."""
    labels = _tensor(y)
    whole = labels.dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    if labels.dim() != 1 or not whole or ((labels < 0) | (labels >= classes)).any():
        raise DataError(f"classes of shape {tuple(y.shape)}: they must be whole numbers (N,) from 0 to {classes - 1}.")
    return labels.long()


def _tensor(x: ArrayLike) -> Tensor:
    if not isinstance(x, np.ndarray | Tensor):
        raise DataError(f"{type(x).__name__}: an array or a tensor is needed.")
    try:
        if isinstance(x, Tensor):
            return x.detach().cpu().to_dense()
        return torch.from_numpy(np.ascontiguousarray(x, x.dtype.newbyteorder("=")))
    except (TypeError, ValueError, RuntimeError) as error:  # such as an array of objects, or a tensor without values
        raise DataError(f"an array of {x.dtype}: it must hold numbers.") from error
