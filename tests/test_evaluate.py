import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from mnist_cnn.data.datasets import DataFiles
from mnist_cnn.data.images import Images
from mnist_cnn.errors import CheckpointError, DataError
from mnist_cnn.inference import checkpoint
from mnist_cnn.inference.evaluate import VIEWS, Evaluation, _shifted, evaluate
from mnist_cnn.inference.images import images_for


def evaluation(probabilities: list[list[float]], labels: list[int]) -> Evaluation:
    return Evaluation("made up", "test", ("a", "b", "c"), torch.tensor(probabilities), torch.tensor(labels), 0.0)


EXAMPLE = evaluation(
    [[0.8, 0.1, 0.1], [0.3, 0.6, 0.1], [0.1, 0.9, 0.0], [0.2, 0.7, 0.1], [0.0, 0.0, 1.0]], [0, 0, 0, 1, 2]
)


def test_accuracy_confusion_and_scores_are_those_counted_by_hand() -> None:
    assert EXAMPLE.correct == 3
    assert EXAMPLE.total == 5
    assert EXAMPLE.accuracy == 0.6
    assert EXAMPLE.confusion.tolist() == [[1, 2, 0], [0, 1, 0], [0, 0, 1]]
    a, b, c = EXAMPLE.per_class
    assert [*a[1:]] == pytest.approx([1, 1 / 3, 0.5, 3])
    assert [*b[1:]] == pytest.approx([1 / 3, 1, 0.5, 1])
    assert [*c[1:]] == [1, 1, 1, 1]
    assert EXAMPLE.macro_f1 == pytest.approx(2 / 3)
    assert EXAMPLE.top_confusions() == [("a", "b", 2)]


def test_mistakes_are_sorted_by_confidence() -> None:
    assert [(m.index, m.true, m.predicted) for m in EXAMPLE.mistakes(5)] == [(2, "a", "b"), (1, "a", "b")]
    assert EXAMPLE.mistakes(1)[0].probability == pytest.approx(0.9)


def test_calibration_error_is_the_gap_between_confidence_and_accuracy() -> None:
    certain_but_half_right = evaluation([[0.9, 0.05, 0.05]] * 10, [0] * 5 + [1] * 5)
    assert certain_but_half_right.calibration_error == pytest.approx(0.4)


def test_confusion_and_calibration_error_agree_with_torchmetrics() -> None:
    from torchmetrics.functional.classification import multiclass_calibration_error, multiclass_confusion_matrix

    logits, labels = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0)) * 3, torch.arange(1000) % 3
    probabilities = torch.cat([logits.softmax(1)[:990], torch.eye(3).repeat(4, 1)[:10]])
    found = Evaluation("made up", "test", ("a", "b", "c"), probabilities, labels, 0.0)
    assert torch.equal(found.confusion, multiclass_confusion_matrix(found.predicted, labels, 3))
    theirs = float(multiclass_calibration_error(probabilities, labels, 3, n_bins=15))
    assert found.calibration_error == pytest.approx(theirs, rel=1e-5)


def test_the_scores_of_a_class_without_images_are_zero() -> None:
    assert evaluation([[1.0, 0.0, 0.0]], [0]).per_class[2] == ("c", 0.0, 0.0, 0.0, 0)


def test_loss_is_the_mean_cross_entropy_of_the_logits(digits_run: Path) -> None:
    trained = checkpoint.load(digits_run)
    images = images_for(trained, "train", DataFiles("digits"))
    result = evaluate(trained, images, "digits", "train")
    logits = trained.network(images.images.float() / 255)
    assert result.loss == pytest.approx(float(F.cross_entropy(logits, images.labels)), rel=1e-5)
    torch.testing.assert_close(result.probabilities, logits.softmax(1))
    assert result.total == 1293  # more than a batch


def test_the_splits_are_those_of_training(digits_run: Path) -> None:
    trained = checkpoint.load(digits_run)
    parts = {split: images_for(trained, split, DataFiles("digits")) for split in ("train", "val", "test")}
    assert {split: len(images) for split, images in parts.items()} == {"train": 1293, "val": 144, "test": 360}


def test_images_of_another_shape_are_refused(digits_run: Path) -> None:
    with pytest.raises(DataError, match="3×32×32, the network takes 1×28×28"):
        images_for(checkpoint.load(digits_run), "test", DataFiles("cifar10"))


def test_summary_and_json_agree(digits_run: Path) -> None:
    trained = checkpoint.load(digits_run)
    result = evaluate(trained, Images(torch.zeros(4, 1, 28, 28, dtype=torch.uint8), torch.arange(4)), "made up", "test")
    plain, text = result.to_dict(), result.summary()
    assert f"{plain['accuracy']:.2%}" in text
    assert f"{plain['loss']:.4f}" in text
    assert plain["total"] == sum(map(sum, plain["confusion_matrix"])) == 4
    assert math.isclose(plain["nll"], plain["loss"])


def test_outputs_that_overflow_are_refused_though_the_weights_are_finite(digits_run: Path) -> None:
    trained = checkpoint.load(digits_run)
    images = images_for(trained, "val", DataFiles("digits"))
    for value in trained.network.parameters():
        value.fill_(3e38)
    with pytest.raises(CheckpointError, match=r"^tiny: its outputs are not finite numbers"):
        evaluate(trained, images, "digits", "val")


def test_a_loss_that_overflows_is_refused_too(digits_run: Path) -> None:
    trained = checkpoint.load(digits_run)
    images = images_for(trained, "val", DataFiles("digits"))
    last = trained.network.get_submodule("6_Dense")
    torch.nn.init.zeros_(last.weight)  # type: ignore[arg-type]  # a parameter
    last.bias.copy_(torch.tensor([3e38] + [-3e38] * 9))  # type: ignore[operator]
    with pytest.raises(CheckpointError, match="not finite"):
        evaluate(trained, images, "digits", "val")


def test_test_time_augmentation_averages_the_probabilities_of_shifted_images(digits_run: Path) -> None:
    trained = checkpoint.load(digits_run)
    images = images_for(trained, "test", DataFiles("digits"))
    part = Images(images.images[:50], images.labels[:50])
    rolled = [torch.roll(part.images, view, (2, 3)) for view in VIEWS]  # nothing of these digits lies at the edge
    expected = torch.stack([trained.network(trained.preprocessing(x)).softmax(1) for x in rolled]).mean(0)
    found = evaluate(trained, part, "digits", "test", VIEWS)
    assert len(set(VIEWS)) == 9
    assert torch.allclose(found.probabilities, expected, atol=1e-5)
    assert found.loss == pytest.approx(float(F.nll_loss(expected.log(), part.labels)), rel=1e-4)
    assert torch.equal(_shifted(torch.ones(1, 1, 3, 3), 1, -1)[0, 0], torch.tensor([[0, 0, 0], [1, 1, 0], [1, 1, 0.0]]))
