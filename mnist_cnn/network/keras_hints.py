"""Hints for Keras layers and arguments that are settings of train.py here."""

# Keras' augmentation layers, and the settings of the group `augmentation` that do the same.
_AUGMENTATION = {
    "RandomElasticTransform": "augmentation.elastic=1",
    "RandomErasing": "augmentation.erasing=0.25",
    "RandomRotation": "augmentation.rotation=10",
    "RandomShear": "augmentation.shear=0.1",
    "RandomTranslation": "augmentation.shift=2",
    "RandomZoom": "augmentation.scale=0.1",
}
_WEIGHT_DECAY = "optimizer=adamw optimizer.weight_decay=0.01"


def layer_hint(kind: str) -> str:
    """A sentence, with a space before it, on a layer of Keras that is none here; empty for any other name."""
    if kind.startswith("Random") or kind == "RandAugment":
        setting = _AUGMENTATION.get(kind, "augmentation=affine")
        return f" Augmentation is a group of settings here, not a layer: {setting}."
    if kind in ("Input", "InputLayer"):
        return " The images decide the shape of the input; leave this layer out."
    return ""


def argument_hint(argument: str) -> str:
    """The same for an argument of Keras that no layer has here."""
    if argument == "activity_regularizer":
        return f" Outputs are not penalised here; against overfitting there are Dropout and {_WEIGHT_DECAY}."
    if argument.endswith("_regularizer"):
        return f" Weight decay is the optimiser's, and acts on all weights: {_WEIGHT_DECAY}."
    if argument.endswith("_constraint"):
        return f" Weights are not constrained here; the optimiser's weight decay keeps them small: {_WEIGHT_DECAY}."
    if argument in ("batch_input_shape", "batch_shape", "input_dim", "input_shape"):
        return " The images decide the shape of the input; leave this argument out."
    return ""
