"""Writes one HTML page about how a network reads a picture: preparation, answer, saliency, feature maps, filters."""

import html
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mnist_cnn.errors import one_line
from mnist_cnn.inference.checkpoint import TrainedNetwork
from mnist_cnn.inference.evaluate import logits_of
from mnist_cnn.inference.pictures.placing import Placed
from mnist_cnn.inference.pictures.prepare import Placing, prepare
from mnist_cnn.inference.predict import Digit, how_to_prepare, naming, read_picture
from mnist_cnn.network.arguments import show
from mnist_cnn.report.document import document, figure, image
from mnist_cnn.report.explain import bitmaps, inside
from mnist_cnn.report.explain.steps import MAX_EXPLAINED, preparation, steps

MAX_LAYERS = 24  # whose feature maps are shown
_MAX_CLASSES = 12  # with a bar each; of more classes, the ten most probable ones have one

_STYLE = """
.steps { display: flex; flex-wrap: wrap; gap: 1rem clamp(.6rem, 2vw, 1.25rem); margin: 1rem 0; }
figure { margin: 0; max-width: 100%; }
figcaption { color: var(--muted); font-size: .85rem; line-height: 1.35; margin-top: .4rem; }
.steps figcaption { max-width: clamp(6rem, 27vw, 10rem); }
.steps img { width: auto; max-width: 100%; max-height: 13rem; }
.steps .pixels { width: clamp(6rem, 27vw, 10rem); aspect-ratio: 1; object-fit: contain; background: #000; }
.pixels { image-rendering: pixelated; max-width: none; }
.boxed { position: relative; width: fit-content; }
.boxed img { background: repeating-conic-gradient(#c9ced4 0 25%, #dfe3e8 0 50%) 0 0 / 1rem 1rem; }
.boxed svg { position: absolute; inset: 0; width: 100%; height: 100%; overflow: visible; }
.boxed rect { fill: none; stroke: #d9730d; stroke-width: 2; vector-effect: non-scaling-stroke; }
.boxed text { fill: #d9730d; font-weight: bold; paint-order: stroke; stroke: #fff; stroke-width: .15em; }
.bars { width: 100%; max-width: 26rem; }
.bars th, .bars td { border: 0; padding: .1rem .6rem .1rem 0; font-weight: normal; white-space: nowrap; }
.bars td:nth-child(2) { width: 100%; }
.bars span { display: block; height: .9rem; background: var(--muted); border-radius: 1px; min-width: 1px; }
.bars .best th, .bars .best td { font-weight: bold; }
.bars .best span { background: var(--accent); }
.maps { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); gap: 1.5rem; }
.maps figure { width: auto; }
summary { cursor: pointer; }
summary h2 { display: inline-block; }
h2::first-letter { text-transform: uppercase; }
p { max-width: 44rem; }
"""


class Explained(NamedTuple):
    """The page, and the answer that it explains, in one line."""

    page: str
    answer: str


def explain(trained: TrainedNetwork, file: str, placing: Placing = "auto") -> Explained:
    """Explain the network's answer to a picture file, or with `-` to one on standard input.

    DataError or CheckpointError if `predict` has no answer either.
    """
    shape, how = how_to_prepare(trained, placing)
    with naming(file):
        picture = read_picture(file)
        prepared = prepare(picture, shape, how)
    images = torch.stack([seen.image for line in prepared.seen for seen in line])
    found = iter(logits_of(trained, images).softmax(1).tolist())
    lines = [
        [Digit(dict(zip(trained.classes, next(found), strict=True)), seen.box, seen.image) for seen in line]
        for line in prepared.seen
    ]
    digits = [digit for line in lines for digit in line]
    answer = " and ".join("".join(digit.name for digit in line) for line in lines)
    if len(digits) == 1:
        answer += f", {digits[0].probability:.2%}"
    name = "standard input" if file == "-" else one_line(Path(file).name)
    facts = [
        ("answer", answer),
        ("picture", f"{name}, {show(picture.size)} pixels"),
        ("network", f"{trained.model}, {trained.network.parameter_count:,} parameters, {trained.provenance}"),
        ("trained on", trained.dataset),
    ]
    rows = "".join(f"<tr><th>{key}</th><td>{html.escape(value)}</td></tr>" for key, value in facts)
    body = [
        f'<section><table class="facts">{rows}</table></section>',
        preparation(picture, prepared, how, digits),
        *(
            _one_digit(trained, digits, index, prepared.placed[index] if prepared.placed else None)
            for index in range(min(len(digits), MAX_EXPLAINED))
        ),
        _filters(trained),
    ]
    return Explained(document(f"How {trained.model} reads {name}", "\n".join(body), _STYLE), answer)


def _one_digit(trained: TrainedNetwork, digits: Sequence[Digit], index: int, placed: Placed | None) -> str:
    """How one digit was prepared, the answer, its saliency maps and its feature maps."""
    digit = digits[index]
    x = trained.preprocessing(digit.image[None])
    heading = f"Digit {index + 1} of {len(digits)}: {{}}" if len(digits) > 1 else "{}"
    maps = list(islice(inside.feature_maps(trained.network, x), MAX_LAYERS + 1))
    return f"""<section><h2>{heading.format("what the network gets")}</h2>
<div class="steps">{"".join(steps(trained, digit, placed))}</div>
<p><small>The values of the pixels, 0 to 255, are scaled by {html.escape(trained.preprocessing.formula())}.</small></p>
</section>
<div class="pair">
<section><h2>{heading.format("the answer")}</h2>{_bars(digit)}</section>
<section><h2>{heading.format("what would change the answer")}</h2>{_saliency(trained, digit, x)}</section>
</div>
<section><details{"" if index else " open"}><summary><h2>{heading.format("feature maps")}</h2></summary>
{_maps(maps)}</details></section>"""


def _bars(digit: Digit) -> str:
    shown = list(digit.probabilities.items())
    note = ""
    if len(shown) > _MAX_CLASSES:
        note = f"<p><small>The ten most probable of {len(shown)} classes.</small></p>"
        shown = sorted(shown, key=lambda item: -item[1])[:10]
    rows = "".join(
        f"<tr{' class=best' if name == digit.name else ''}><th>{html.escape(name)}</th>"
        f'<td><span style="width:{100 * probability:.2f}%"></span></td><td>{probability:.2%}</td></tr>'
        for name, probability in shown
    )
    return f'<table class="bars">{rows}</table>{note}'


def _saliency(trained: TrainedNetwork, digit: Digit, x: Tensor) -> str:
    names = sorted(digit.probabilities, key=lambda name: -digit.probabilities[name])[:2]
    maps = torch.stack([inside.saliency(trained.network, x, trained.classes.index(name)) for name in names])
    if not maps.isfinite().all() or not maps.any():
        return "<p>The gradient of the scores is zero or not finite everywhere, so there is nothing to show.</p>"
    figures = [figure(image(bitmaps.pixels(digit.image), "the image", "pixels"), "the image")]
    most = float(maps.abs().max())
    for name, values, rank in zip(names, maps, ("the answer", "the runner-up"), strict=True):
        shown = image(bitmaps.signed(values[None], 1, most), f"saliency map of class {name}", "pixels")
        figures.append(figure(shown, f"class {html.escape(name)}, {rank}"))
    return f"""<div class="steps">{"".join(figures)}</div>
<p><small>Blue to white: a brighter pixel would raise the score (the logit) of the class. Orange: it would lower it.
Black: no effect. Both maps have one scale. The method is SmoothGrad (Smilkov et al. 2017): the gradient of the score by
the pixels (Simonyan et al. 2013), averaged over {inside.COPIES} copies of the image with noise. It shows what small
changes of single pixels would do, not how much each part of the image contributed to the answer.</small></p>"""


def _maps(found: Sequence[inside.FeatureMaps]) -> str:
    if not found:
        return "<p>This network has no convolution or pooling, so it has no feature maps.</p>"
    more = f" The first {MAX_LAYERS} layers are shown." if len(found) > MAX_LAYERS else ""
    return f"""<p><small>What each convolution and pooling gives for this image, after its normalisation and
activation; at most {inside.MAX_MAPS} maps a layer. Black is 0, white the layer&rsquo;s largest value, orange
negative.{more}</small></p>
<div class="maps">{"".join(map(_layer, found[:MAX_LAYERS]))}</div>"""


def _layer(found: inside.FeatureMaps) -> str:
    channels, height, width = found.shape
    count = f"the first {len(found.maps)} of {channels} maps" if channels > len(found.maps) else f"{channels} maps"
    reduced = ", shown smaller" if found.maps.shape[1:] != found.shape[1:] else ""
    shown = image(bitmaps.signed(found.maps.nan_to_num(), 8), f"feature maps of {found.layers}", "pixels")
    return figure(shown, f"{html.escape(found.layers)}<br>{count} of {width}×{height}{reduced}")


def _filters(trained: TrainedNetwork) -> str:
    filters = inside.first_filters(trained.network)
    if filters is None:
        return (
            "<section><h2>First-layer filters</h2><p>The first layer with weights is neither a convolution nor a dense "
            "layer on the pixels, so it has no filters that are images.</p></section>"
        )
    most = inside.MAX_MAPS
    weights = filters.weights[:most]
    count = f"the first {most} of {len(filters.weights)}" if len(filters.weights) > most else f"all {len(weights)}"
    if weights.shape[1] == 3:
        png, colours = (
            bitmaps.coloured(weights, 8),
            "Grey is 0; each filter is shown in the colours that it answers to.",
        )
    else:
        png, colours = bitmaps.signed(weights[:, 0], 8), "Black is 0, blue to white is positive, orange negative."
    size = f"{weights.shape[3]}×{weights.shape[2]}"
    caption = f"{html.escape(filters.layer)}: {count} filters of {size} pixels"
    return f"""<section><h2>First-layer filters</h2>
<p><small>The weights that the network has learnt for its first layer, the same for every picture. {colours}</small></p>
<div class="maps">{figure(image(png, "the filters of the first layer", "pixels"), caption)}</div></section>"""
