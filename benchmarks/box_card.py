"""The text of a model card: YAML for programs, and the same facts in Markdown for people."""

import msgspec

from mnist_cnn.inference.box import Card, percent


def text_of(card: Card) -> str:
    """A card as it is written: YAML, and the same in Markdown."""
    validation = "no images were kept for it" if card.validation_accuracy is None else percent(card.validation_accuracy)
    versions = ", ".join(f"{name} {version}" for name, version in card.versions.items())
    seeds = f"seeds {', '.join(map(str, card.seeds))}" if len(card.seeds) > 1 else f"seed {card.seeds[0]}"
    commands = "\n".join(card.commands)
    return f"""\
---
{msgspec.yaml.encode(card).decode()}---
# {card.name}

For {card.purpose}.

| | |
|---|---|
| test accuracy | {percent(card.test_accuracy)} of `{card.dataset}` |
| test accuracy of the recipe | {card.test_accuracy_of_seeds} ({seeds}) |
| validation accuracy | {validation} |
| on corrupted test images | {card.corrupted_accuracy or "not measured"} |
| parameters | {card.parameters:,} |
| file | {card.bytes:,} bytes, weights in {card.weights} |
| SHA-256 | `{card.sha256}` |

## How it was trained

```
{commands}
```

The recipe is `{card.recipe}`, the seed {card.seed}: {card.chosen}. The weights are those of epoch {card.epoch}.
The test images chose nothing. Versions: {versions}. Built on {card.built}.

## Use and limits

```
mnist-cnn predict {card.name} PICTURE
mnist-cnn evaluate {card.name}
python train.py model.init_from={card.name}
```

It takes images of single handwritten digits, 0 to 9, which `mnist-cnn predict` cuts out of a picture. MNIST's digits
were written by employees of the US Census Bureau and by American students; other hands, with a long upstroke in the 1
or a bar in the 7, may be recognised less often. Any picture gets a digit, also one of a letter, and a high probability
is no proof. Do not let it decide alone where a wrong digit does harm.

Licence: {card.licence}, as the package. It was trained on MNIST (Y. LeCun, C. Cortes, C. J. C. Burges).
"""
