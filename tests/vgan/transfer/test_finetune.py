"""The fine-tuning loop on a network of a few hundred weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vgan.config import FinetuneConfig
from vgan.transfer.finetune import FinetuneResult, batch_order, confusion_matrix, finetune, protocol_name

NUM_CLASSES = 3


class TinyClassifier(nn.Module):
    """(B, 3, T, H, W) in [-1, 1] -> logits (B, 3), with the batch norm and dropout of the real one."""

    def __init__(self, seed: int = 0, dropout: float = 0.3) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.trunk = nn.Sequential(nn.Conv3d(3, 8, 4, 2, 1), nn.BatchNorm3d(8), nn.LeakyReLU(0.2))
            self.head = nn.Sequential(nn.Dropout3d(dropout), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 3))
        self.lowest, self.highest, self.input_shape = 0.0, 0.0, torch.Size()

    def forward(self, clips: Tensor) -> Tensor:
        self.lowest, self.highest = min(self.lowest, float(clips.min())), max(self.highest, float(clips.max()))
        self.input_shape = clips.shape
        logits: Tensor = self.head(self.trunk(clips))
        return logits


def coloured_clips(num: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noise clips (num, 4, 8, 8, 3) uint8 whose class is the channel that is brighter."""
    rng = np.random.default_rng(seed)
    labels = np.arange(num) % NUM_CLASSES
    clips = rng.integers(0, 150, (num, 4, 8, 8, 3))
    clips[np.arange(num), ..., labels] += 105
    return torch.from_numpy(clips.astype(np.uint8)), torch.from_numpy(labels.astype(np.int64))


def run(seed: int = 0, iterations: int = 60, model: nn.Module | None = None, **more: Any) -> FinetuneResult:
    """Fine-tune a tiny classifier on 24 clips and score it on 14 others."""
    config = FinetuneConfig(iterations=iterations, batch_size=8, learning_rate=0.01)
    train, test = coloured_clips(24, seed=1), coloured_clips(14, seed=2)
    return finetune(model or TinyClassifier(), *train, *test, config, seed=seed, protocol="tiny-split1_1clip", **more)


def test_finetune_learns_and_scores_clips_it_has_not_seen() -> None:
    result = run()
    assert result.accuracy > 0.9
    assert np.mean(result.losses[-10:]) < 0.7 * np.mean(result.losses[:10])
    assert result.metrics["accuracy/tiny-split1_1clip"] == result.accuracy


def test_finetune_confusion_rows_are_the_truth_and_agree_with_accuracies() -> None:
    result = run(iterations=3)
    np.testing.assert_array_equal(result.confusion.sum(axis=1), [5, 5, 4])
    np.testing.assert_allclose(result.class_accuracy, np.diag(result.confusion) / [5, 5, 4])
    assert result.accuracy == pytest.approx(np.trace(result.confusion) / 14)


def test_finetune_same_seed_same_weights_other_seed_others() -> None:
    models = [TinyClassifier() for _ in range(3)]
    first, second, other = (run(seed=s, iterations=6, model=m) for s, m in zip((4, 4, 5), models, strict=True))
    assert first.losses == second.losses
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))
    assert first.losses != other.losses


def test_finetune_leaves_the_callers_random_state_alone() -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    run(iterations=2)
    assert torch.equal(torch.rand(3), expected)


def test_finetune_feeds_channels_first_in_model_range() -> None:
    model = TinyClassifier()
    run(iterations=2, model=model)
    assert model.input_shape[1:] == (3, 4, 8, 8)
    assert -1.0 <= model.lowest < -0.95
    assert 0.95 < model.highest <= 1.0


def test_finetune_frozen_trunk_stays_while_its_batch_norm_statistics_move() -> None:
    model = TinyClassifier()
    model.trunk.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run(iterations=3, model=model)
    after = model.state_dict()
    assert torch.equal(after["trunk.0.weight"], before["trunk.0.weight"])
    assert not torch.equal(after["head.3.weight"], before["head.3.weight"])
    assert not torch.equal(after["trunk.1.running_mean"], before["trunk.1.running_mean"])


def test_finetune_non_finite_loss_stops_and_names_the_step() -> None:
    model = TinyClassifier()
    with torch.no_grad():
        model.trunk[0].weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="step 1"):
        run(model=model)


def test_finetune_float_clips_are_refused() -> None:
    clips, labels = coloured_clips(6, seed=0)
    with pytest.raises(ValueError, match="train clips must be"):
        finetune(
            TinyClassifier(), clips.float(), labels, clips, labels, FinetuneConfig(iterations=1), seed=0, protocol="x"
        )


def test_confusion_matrix_does_not_depend_on_batch_size_or_dropout() -> None:
    clips, labels = coloured_clips(10, seed=3)
    model = TinyClassifier(dropout=0.9).train()
    np.testing.assert_array_equal(
        confusion_matrix(model, clips, labels, batch_size=3), confusion_matrix(model, clips, labels, batch_size=10)
    )


def test_confusion_matrix_label_beyond_the_models_classes_is_refused() -> None:
    clips, labels = coloured_clips(4, seed=0)
    with pytest.raises(ValueError, match="3 classes"):
        confusion_matrix(TinyClassifier(), clips, labels + 2, batch_size=4)


@pytest.mark.parametrize(("num_clips", "batch_size"), [(10, 4), (3, 8), (8, 8)])
def test_batch_order_shows_every_clip_equally_often(num_clips: int, batch_size: int) -> None:
    batches = batch_order(num_clips, batch_size, seed=0)
    drawn = torch.cat([next(batches) for _ in range(num_clips)])  # num_clips batches are batch_size whole passes
    assert torch.equal(torch.bincount(drawn), torch.full((num_clips,), batch_size))
    first_pass = drawn[:num_clips]
    assert sorted(first_pass.tolist()) == list(range(num_clips))


def test_protocol_name_tells_data_split_and_clips() -> None:
    assert protocol_name("ucf101", 1) == "ucf101-split1_1clip"
