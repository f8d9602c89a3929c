"""The objective against equation 1 written out clip by clip in double precision."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vgan.losses import discriminator_loss, generator_loss, mask_prior
from vgan.models.discriminator import FAKE, REAL


def logits(seed: int, num: int = 7) -> Tensor:
    return torch.randn(num, 2, generator=torch.Generator().manual_seed(seed)) * 3


def decided(real: float, fake: float, num: int = 3) -> Tensor:
    """Logits (num, 2) of a discriminator that is sure."""
    row = torch.zeros(2)
    row[REAL], row[FAKE] = real, fake
    return row.repeat(num, 1).requires_grad_()


def probability_real(row: Tensor) -> float:
    e = [math.exp(float(v)) for v in row]
    return e[REAL] / sum(e)


def test_discriminator_loss_is_equation_1_summed_over_real_and_fake() -> None:
    real, fake = logits(0), logits(1)
    on_real = -sum(math.log(probability_real(row)) for row in real) / len(real)
    on_fake = -sum(math.log(1 - probability_real(row)) for row in fake) / len(fake)
    assert float(discriminator_loss(real, fake)) == pytest.approx(on_real + on_fake, rel=1e-6)


def test_generator_loss_is_the_non_saturating_form() -> None:
    fake = logits(2)
    expected = -sum(math.log(probability_real(row)) for row in fake) / len(fake)
    assert float(generator_loss(fake)) == pytest.approx(expected, rel=1e-6)


def test_losses_of_an_undecided_discriminator_are_multiples_of_log_2() -> None:
    even = torch.zeros(4, 2)
    assert float(discriminator_loss(even, even)) == pytest.approx(2 * math.log(2))
    assert float(generator_loss(even)) == pytest.approx(math.log(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_of_a_sure_discriminator_stay_finite_with_useful_gradients(dtype: torch.dtype) -> None:
    sure_real, sure_fake = decided(1e4, -1e4), decided(-1e4, 1e4)
    right = discriminator_loss(sure_real.to(dtype), sure_fake.to(dtype))
    wrong = discriminator_loss(sure_fake.to(dtype), sure_real.to(dtype))
    assert right.item() == 0.0
    assert float(wrong.detach()) == pytest.approx(4e4, rel=0.01)
    assert right.dtype == wrong.dtype == torch.float32
    fooled = generator_loss(sure_fake.to(dtype))
    (gradient,) = torch.autograd.grad(fooled, sure_fake)
    assert float(fooled) == pytest.approx(2e4, rel=0.01)
    assert gradient[:, REAL].tolist() == pytest.approx([-1 / 3] * 3, rel=0.01)  # it does not vanish: the form's point


def test_mask_prior_is_the_mean_and_not_the_sum() -> None:
    mask = torch.rand(2, 1, 4, 8, 8, requires_grad=True)
    value = mask_prior(mask)
    assert float(value) == pytest.approx(sum(mask.flatten().tolist()) / 512, rel=1e-6)
    (gradient,) = torch.autograd.grad(value, mask)
    torch.testing.assert_close(gradient, torch.full_like(mask, 1 / 512))
