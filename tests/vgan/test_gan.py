"""One step of adversarial training with local engines: who moves, when, and on what."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from vgan import gan
from vgan.config import ModelConfig
from vgan.losses import discriminator_loss, generator_loss
from vgan.models.discriminator import FAKE, REAL, Discriminator
from vgan.models.generator import TwoStreamGenerator

MODEL = ModelConfig(base=2, z_size=6, num_frames=16, size=32)


def engine(module: nn.Module) -> gan.LocalEngine:
    return gan.LocalEngine(module, torch.optim.Adam(module.parameters(), lr=1e-2, betas=(0.5, 0.999)))


@pytest.fixture
def pair() -> tuple[gan.LocalEngine, gan.LocalEngine]:
    torch.manual_seed(0)
    return engine(TwoStreamGenerator(MODEL)), engine(Discriminator(MODEL))


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(4, 3, 16, 32, 32, generator=generator) * 2 - 1, torch.randn(4, 6, generator=generator)


def parameters(side: gan.LocalEngine) -> Tensor:
    return torch.cat([p.detach().flatten() for p in side.module.parameters()])


Pair = tuple[gan.LocalEngine, gan.LocalEngine]
Batch = tuple[Tensor, Tensor]


def test_update_discriminator_moves_d_alone(pair: Pair, batch: Batch) -> None:
    G, D = pair
    g, d = parameters(G), parameters(D)
    gan.update_discriminator(D, batch[0], G.module(batch[1]).video.detach())
    assert torch.equal(parameters(G), g)
    assert not torch.equal(parameters(D), d)
    assert all(p.grad is None for p in G.module.parameters())


def test_update_generator_moves_g_alone_and_leaves_no_gradient_in_d(pair: Pair, batch: Batch) -> None:
    G, D = pair
    g, d = parameters(G), parameters(D)
    gan.update_generator(G, D, G.module(batch[1]), mask_weight=0.1)
    assert not torch.equal(parameters(G), g)
    assert torch.equal(parameters(D), d)
    assert all(p.grad is None for p in D.module.parameters())
    assert all(p.requires_grad for p in D.module.parameters())


def test_update_after_a_whole_step_leaves_no_gradient_in_d(pair: Pair, batch: Batch) -> None:
    gan.update(*pair, *batch, mask_weight=0.1)
    assert all(p.grad is None or not p.grad.any() for p in pair[1].module.parameters())


def test_frozen_gives_gradients_back_after_an_error() -> None:
    layer = nn.Linear(2, 2)

    def fail() -> None:
        with gan.frozen(layer):
            assert not any(p.requires_grad for p in layer.parameters())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert all(p.requires_grad for p in layer.parameters())


def test_update_is_d_first_then_g_against_the_updated_d_on_the_same_fakes(pair: Pair, batch: Batch) -> None:
    (G, D), (real, z) = copy.deepcopy(pair), batch
    G.optimizer, D.optimizer = (torch.optim.Adam(e.module.parameters(), 1e-2, (0.5, 0.999)) for e in (G, D))
    metrics = gan.update(*pair, real, z, mask_weight=0.1)

    fake, _, mask, _ = G.module(z)
    d_loss = discriminator_loss(D.module(real), D.module(fake.detach()))
    d_loss.backward()
    D.optimizer.step()
    g_loss = generator_loss(D.module(fake))
    (g_loss + 0.1 * mask.mean()).backward()
    G.optimizer.step()

    assert torch.equal(parameters(pair[1]), parameters(D))
    assert torch.equal(parameters(pair[0]), parameters(G))
    expected = {"loss/discriminator": d_loss, "loss/generator": g_loss, "mask/mean": mask.mean()}
    assert {k: float(metrics[k]) for k in expected} == pytest.approx({k: v.item() for k, v in expected.items()})


def test_update_draws_once_and_keeps_real_and_fake_statistics_apart(pair: Pair, batch: Batch) -> None:
    gan.update(*pair, *batch, mask_weight=0.1)
    passes = [{int(v) for k, v in e.module.state_dict().items() if k.endswith("num_batches_tracked")} for e in pair]
    assert passes == [{1}, {3}]  # D: real, fake, and the fakes again for G's loss


def test_update_metrics_are_detached_scalars(pair: Pair, batch: Batch) -> None:
    metrics = gan.update(*pair, *batch, mask_weight=0.1)
    assert set(metrics) == {
        "loss/discriminator",
        "loss/generator",
        "mask/mean",
        "discriminator/accuracy_real",
        "discriminator/accuracy_fake",
    }
    assert all(v.shape == () and not v.requires_grad and v.isfinite() for v in metrics.values())


def test_update_discriminator_accuracy_counts_clips_on_the_right_side() -> None:
    class Brightness(nn.Module):
        """Calls bright clips real."""

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, video: Tensor) -> Tensor:
            logits = [torch.zeros(len(video)), torch.zeros(len(video))]
            logits[REAL], logits[FAKE] = self.scale * video.flatten(1).mean(1), -self.scale * video.flatten(1).mean(1)
            return torch.stack(logits, 1)

    def clips(*levels: float) -> Tensor:
        return torch.tensor(levels).reshape(-1, 1, 1, 1, 1).expand(-1, 3, 2, 4, 4)

    metrics = gan.update_discriminator(engine(Brightness()), clips(0.5, 0.5, 0.5, -0.5), clips(-0.5, 0.5))
    assert float(metrics["discriminator/accuracy_real"]) == 0.75
    assert float(metrics["discriminator/accuracy_fake"]) == 0.5


def test_mask_weight_pulls_the_mask_down(pair: Pair, batch: Batch) -> None:
    other = copy.deepcopy(pair[0])
    other.optimizer = torch.optim.Adam(other.module.parameters(), lr=1e-2, betas=(0.5, 0.999))
    for weight, G in ((0.0, pair[0]), (100.0, other)):
        D = copy.deepcopy(pair[1])
        for _ in range(5):
            gan.update_generator(G, D, G.module(batch[1]), weight)
    means = [float(G.module(batch[1]).mask.mean()) for G in (pair[0], other)]
    assert means[1] < means[0] - 0.05


def test_update_average_decays_parameters_and_copies_buffers() -> None:
    average, network = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    nn.init.constant_(average.weight, 1.0)
    nn.init.constant_(network.weight, 3.0)
    network.running_mean.fill_(7.0)
    network.num_batches_tracked.fill_(5)
    gan.update_average(average, network, decay=0.75)
    gan.update_average(average, network, decay=0.75)
    assert average.weight.tolist() == pytest.approx([3 - 2 * 0.75**2] * 2)
    assert average.running_mean.tolist() == [7.0, 7.0]
    assert int(average.num_batches_tracked) == 5
    assert network.weight.tolist() == [3.0, 3.0]
