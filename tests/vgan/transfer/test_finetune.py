"""The fine-tuning loop on a network of a few hundred weights."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vgan.transfer.config import FinetuneConfig
from vgan.transfer.finetune import WorkerGroup, batch_order, finetune, prepare_batch, schedule
from vgan.transfer.scores import probabilities
from vgan.video.normalize import normalize_clips

NUM_CLASSES = 3


class TinyClassifier(nn.Module):
    """Classifier of (B, 3, T, H, W) in [-1, 1] to logits (B, 3), with batch norm and dropout."""

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


def colored_clips(num: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw noise clips (num, 4, 8, 8, 3) uint8 whose class is the brightest channel, and labels (num,)."""
    rng = np.random.default_rng(seed)
    labels = np.arange(num) % NUM_CLASSES
    clips = rng.integers(0, 150, (num, 4, 8, 8, 3))
    clips[np.arange(num), ..., labels] += 105
    return torch.from_numpy(clips.astype(np.uint8)), torch.from_numpy(labels.astype(np.int64))


def run(seed: int = 0, iterations: int = 60, model: nn.Module | None = None, **options: Any) -> tuple[float, ...]:
    """Fine-tune a tiny classifier on 24 clips."""
    config = FinetuneConfig(iterations=iterations, batch_size=8, learning_rate=0.01)
    return finetune(model or TinyClassifier(), *colored_clips(24, seed=1), config, seed=seed, **options)


def test_finetune_generalizes_to_unseen_clips() -> None:
    model = TinyClassifier()
    losses = run(model=model)
    assert len(losses) == 60
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])
    clips, labels = colored_clips(14, seed=2)
    assert (probabilities(model, clips, batch_size=5).argmax(axis=1) == labels.numpy()).mean() > 0.9


def test_finetune_same_seed_same_weights_other_seed_others() -> None:
    models = [TinyClassifier() for _ in range(3)]
    first, second, other = (run(seed=s, iterations=6, model=m) for s, m in zip((4, 4, 5), models, strict=True))
    assert first == second
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))
    assert first != other


def test_finetune_restores_the_callers_random_state() -> None:
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
    clips, labels = colored_clips(6, seed=0)
    with pytest.raises(ValueError, match="clips must be"):
        finetune(TinyClassifier(), clips.float(), labels, FinetuneConfig(iterations=1), seed=0)


def test_finetune_cosine_schedule_ends_near_zero() -> None:
    assert [schedule("constant", step, 4) for step in range(1, 5)] == [1.0] * 4
    assert [schedule("cosine", step, 4) for step in (1, 3)] == pytest.approx([1.0, 0.5])
    assert 0 < schedule("cosine", 100, 100) < 1e-3


def test_finetune_augments_clips_by_config_and_draws() -> None:
    (clips, _), draws = colored_clips(4, seed=0), torch.rand(4, 8, generator=torch.Generator().manual_seed(0))
    plain = prepare_batch(clips, draws, FinetuneConfig(flip=False, augment=[]))
    assert torch.equal(plain, normalize_clips(clips))
    mirrored = prepare_batch(clips, draws, FinetuneConfig(flip=True, augment=[]))
    for clip, output, is_mirrored in zip(plain, mirrored, draws[:, 0] < 0.5, strict=True):
        assert torch.equal(output, clip.flip(-1) if is_mirrored else clip)
    moved = [prepare_batch(clips, d, FinetuneConfig(augment=["translation"])) for d in (draws, 1 - draws)]
    assert not torch.equal(*moved)


def test_finetune_keeps_channels_last_with_every_augmentation() -> None:
    (clips, _), draws = colored_clips(4, seed=0), torch.rand(4, 8, generator=torch.Generator().manual_seed(0))
    for policy in ([], ["translation"], ["color", "translation", "cutout"]):
        video = prepare_batch(clips, draws, FinetuneConfig(augment=policy))
        assert video.is_contiguous(memory_format=torch.channels_last_3d)


def test_finetune_with_augmentation_learns_and_is_reproducible() -> None:
    config = FinetuneConfig(
        iterations=60, batch_size=8, learning_rate=0.01, schedule="cosine", flip=True, augment=["translation"]
    )
    losses = [finetune(TinyClassifier(), *colored_clips(24, seed=1), config, seed=0) for _ in range(2)]
    assert losses[0] == losses[1]
    assert np.mean(losses[0][-10:]) < 0.7 * np.mean(losses[0][:10])


def test_finetune_in_bf16_computes_in_it_and_stays_near_fp32() -> None:
    dtypes: list[torch.dtype] = []
    bf16_model = TinyClassifier(dropout=0.0)
    bf16_model.trunk[0].register_forward_hook(lambda _, __, out: dtypes.append(out.dtype))
    models = {"fp32": TinyClassifier(dropout=0.0), "bf16": bf16_model}
    losses = {}
    for precision, model in models.items():
        config = FinetuneConfig(iterations=10, batch_size=8, precision=precision)
        losses[precision] = finetune(model, *colored_clips(24, seed=1), config, seed=0)
    assert set(dtypes) == {torch.bfloat16}
    assert all(p.dtype == torch.float32 for p in bf16_model.parameters())
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02)


def test_finetune_dropout_differs_between_processes() -> None:
    team = [WorkerGroup(rank=rank, size=2) for rank in (0, 1)]
    config = FinetuneConfig(iterations=1, batch_size=2)
    clips, labels = colored_clips(1, seed=1)  # both processes get the same clip
    losses = [finetune(TinyClassifier(), clips, labels, config, seed=0, team=member) for member in team]
    assert losses[0] != losses[1]


def test_finetune_of_three_processes_equals_one_process() -> None:
    def make() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.AdaptiveAvgPool3d(2), nn.Flatten(), nn.Linear(24, 3))

    single, models = make(), [make() for _ in range(3)]
    expected = run(iterations=5, model=single)
    barrier, shared = threading.Barrier(3, timeout=30), dict[int, list[Tensor]]()

    def average(rank: int) -> Callable[[Sequence[Tensor]], None]:
        def mean(tensors: Sequence[Tensor]) -> None:
            shared[rank] = [t.clone() for t in tensors]
            barrier.wait()
            for index, tensor in enumerate(tensors):
                tensor.copy_(torch.stack([shared[r][index] for r in range(3)]).mean(dim=0))
            barrier.wait()

        return mean

    with ThreadPoolExecutor(3) as pool:
        teams = [WorkerGroup(rank=r, size=3, average=average(r)) for r in range(3)]
        losses = list(pool.map(lambda m, t: run(iterations=5, model=m, team=t), models, teams))
    assert losses[0] == losses[1] == losses[2] == pytest.approx(expected, rel=1e-5)
    for model in models:
        for actual, expected_weights in zip(model.parameters(), single.parameters(), strict=True):
            torch.testing.assert_close(actual, expected_weights, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("num_clips", "batch_size"), [(10, 4), (3, 8), (8, 8)])
def test_batch_order_uses_every_clip_equally_often(num_clips: int, batch_size: int) -> None:
    batches = batch_order(num_clips, batch_size, seed=0)
    indices = torch.cat([next(batches) for _ in range(num_clips)])  # num_clips batches are batch_size full passes
    assert torch.equal(torch.bincount(indices), torch.full((num_clips,), batch_size))
    first_pass = indices[:num_clips]
    assert sorted(first_pass.tolist()) == list(range(num_clips))
