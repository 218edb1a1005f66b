"""Separates the ink of a drawing or a photograph from its paper, whatever their brightness."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mnist_cnn.errors import DataError

_LUMA = torch.tensor([0.299, 0.587, 0.114])  # of red, green and blue, ITU-R BT.601


def find_ink(picture: Image.Image) -> Tensor:
    """How much of each pixel of an RGBA picture is ink, (H, W) in [0, 1].

    A transparent margin around an opaque picture is left out; elsewhere transparent pixels are paper. DataError if the
    picture is blank.
    """
    box = picture.getchannel("A").getbbox()
    if box is not None:
        grey, alpha = _grey_and_alpha(picture.crop(box))
        if alpha.mean() > 0.95:
            ink = torch.zeros(picture.height, picture.width)
            try:
                ink[box[1] : box[3], box[0] : box[2]] = _ink(grey)
                return ink
            except DataError:  # all of it is ink, such as a straight stroke on a transparent background
                if alpha.numel() == ink.numel():
                    raise
    return _ink(grey_on_paper(picture))


def grey_on_paper(picture: Image.Image) -> Tensor:
    """The brightness of an RGBA picture, (H, W) in [0, 1], on paper that is black or white, the opposite of the ink."""
    grey, alpha = _grey_and_alpha(picture)
    drawn = (grey * alpha).sum() / alpha.sum().clamp(min=1e-6)
    return grey * alpha + (1 - alpha) * (drawn < 0.5).float()


def light_on_dark(grey: Tensor) -> Tensor:
    """Brightness (H, W), inverted where the pixels near the edge are rather light."""
    return grey if float(grey[_border(grey)].median()) < 0.5 else 1 - grey


def _grey_and_alpha(picture: Image.Image) -> tuple[Tensor, Tensor]:
    values = torch.from_numpy(np.array(picture)).float() / 255
    return values[..., :3] @ _LUMA, values[..., 3]


def _border(grey: Tensor) -> Tensor:
    """(H, W) bool: the pixels near the edge, which are probably paper."""
    border = torch.ones_like(grey, dtype=torch.bool)
    width = max(1, min(grey.shape) // 20)
    border[width:-width, width:-width] = False
    return border


def _ink(grey: Tensor) -> Tensor:
    """(H, W) in [0, 1]: how much a pixel differs from the paper, whose brightness may change across the picture."""
    difference = grey - _paper(grey)
    is_light = difference.clamp(min=0).square().sum() > difference.clamp(max=0).square().sum()
    ink = difference if is_light else -difference
    outliers = min(20, ink.numel() // 400)  # so many pixels may be stronger than full ink
    full = float(ink.flatten().topk(outliers + 1).values[-1])
    if full < 0.08:
        raise DataError("nothing to see: the whole picture is about as bright as its edge.")
    full = float(ink[ink > 0.4 * full].median())  # a pencil's strokes are fainter than their darkest grains
    noise = 1.5 * float(ink[_border(grey)].abs().median())  # the standard deviation of the paper, about
    paper = min(max(4 * noise, 0.1 * full), 0.25 * full)
    clear: Tensor = ((ink - paper) / (full - paper)).clamp(0, 1)
    return clear


def _paper(grey: Tensor) -> Tensor:
    """The brightness of the paper at each pixel, (H, W), fitted to pixels near the edge; 0 if those are all black."""
    border = _border(grey)
    values = grey[border]
    if not values.any():  # as in every image of MNIST; the fit would find nothing else
        return values.new_zeros(())
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, side) for side in grey.shape), indexing="ij")
    plane = torch.stack([torch.ones_like(x), x, y], -1)
    positions = plane[border]
    fitted = torch.linalg.lstsq(positions, values[:, None]).solution
    for _ in range(2):  # these fits leave out what is not paper, such as a stroke that reaches the edge
        distance = (values - (positions @ fitted)[:, 0]).abs()
        paper = distance <= 2 * distance.median() + 0.02
        values, positions = values[paper], positions[paper]
        fitted = torch.linalg.lstsq(positions, values[:, None]).solution
    paper_plane: Tensor = (plane @ fitted)[..., 0]
    return paper_plane
