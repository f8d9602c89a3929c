"""Terms of the objective, compared with the paper's equations written out in double precision."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vgan.models.discriminator import FAKE, REAL
from vgan.training.losses import (
    discriminator_loss,
    frame_loss,
    generator_loss,
    logit_margin,
    mask_prior,
    nearest_match_loss,
    r1_penalty,
    reconstruction_loss,
)


def logits(seed: int, num: int = 7) -> Tensor:
    return torch.randn(num, 2, generator=torch.Generator().manual_seed(seed)) * 3


def decided(real: float, fake: float, num: int = 3) -> Tensor:
    """Return logits (num, 2) of a discriminator with large margins."""
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
    assert float(fooled.detach()) == pytest.approx(2e4, rel=0.01)
    assert gradient[:, REAL].tolist() == pytest.approx(
        [-1 / 3] * 3, rel=0.01
    )  # the non-saturating gradient does not vanish


def test_margin_is_how_much_rather_real_than_fake() -> None:
    assert logit_margin(decided(5.0, 3.0)).tolist() == [2.0, 2.0, 2.0]


def test_softmax_losses_equal_torchs_cross_entropy_of_two_logits_with_its_gradients() -> None:
    real, fake = logits(0).requires_grad_(), logits(1).requires_grad_()
    ones_real, ones_fake = torch.full((7,), REAL), torch.full((7,), FAKE)
    pairs = [
        (discriminator_loss(real, fake), F.cross_entropy(real, ones_real) + F.cross_entropy(fake, ones_fake)),
        (generator_loss(fake), F.cross_entropy(fake, ones_real)),
    ]
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs)
        for tensor in (real, fake):
            mine, other = (torch.autograd.grad(loss, tensor, allow_unused=True)[0] for loss in (ours, theirs))
            assert (mine is None) == (other is None)
            if mine is not None:
                torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("sure", [1e4, -1e4])
def test_softmax_losses_at_extreme_margins_have_finite_values_and_the_limits_gradients(sure: float) -> None:
    row = decided(sure, 0.0, 1)
    # D's loss on a fake, and G's, are softplus of +-margin: beyond rounding, a line of slope 1 or nothing at all.
    for loss, sign in ((discriminator_loss(decided(1e4, 0.0, 1), row), 1), (generator_loss(row), -1)):
        (gradient,) = torch.autograd.grad(loss, row)
        slope = float(sign * sure > 0)
        assert float(loss.detach()) == slope * 1e4
        assert gradient[0, REAL] == sign * slope
        assert gradient[0, FAKE] == -sign * slope


def test_hinge_losses_are_linear_within_the_margin_and_flat_beyond() -> None:
    def rows(*margins: float) -> Tensor:
        return torch.cat([decided(m, 0.0, 1) for m in margins])

    real, fake = rows(-2.0, 0.5, 3.0), rows(-3.0, -0.5, 2.0)
    # on real max(0, 1 - margin): 3, 0.5, 0; on drawn clips max(0, 1 + margin): 0, 0.5, 3
    assert float(discriminator_loss(real, fake, "hinge").detach()) == pytest.approx(3.5 / 3 + 3.5 / 3)
    assert float(generator_loss(fake, "hinge").detach()) == pytest.approx(1.5 / 3)  # -(-3 - 0.5 + 2) / 3


def test_mask_prior_is_the_mean_and_not_the_sum() -> None:
    mask = torch.rand(2, 1, 4, 8, 8, requires_grad=True)
    value = mask_prior(mask)
    assert float(value.detach()) == pytest.approx(sum(mask.flatten().tolist()) / 512, rel=1e-6)
    (gradient,) = torch.autograd.grad(value, mask)
    torch.testing.assert_close(gradient, torch.full_like(mask, 1 / 512))


def test_mask_prior_of_a_published_mask_is_131072_times_weaker_than_its_l1_norm() -> None:
    mask = torch.rand(2, 1, 32, 64, 64)
    norms = [float(clip.abs().sum()) for clip in mask]
    assert float(mask_prior(mask)) == pytest.approx(sum(norms) / 2 / 131_072, rel=1e-5)


def test_mask_prior_with_a_target_anchors_each_clip_and_not_their_mean() -> None:
    mask = torch.stack([torch.full((1, 2, 4, 4), level) for level in (0.1, 0.3, 0.8)])
    assert float(mask_prior(mask, target=0.3)) == pytest.approx((0.2 + 0.0 + 0.5) / 3)
    mask.requires_grad_()
    (gradient,) = torch.autograd.grad(mask_prior(mask, target=0.4), mask)
    signs = [-1, -1, 1]  # up to the target, and down to it
    assert [float(g.sum()) for g in gradient] == pytest.approx([sign / 3 for sign in signs])


@pytest.mark.parametrize(("norm", "expected"), [("l1", (0.5 + 1.5 + 0) / 3), ("l2", (0.25 + 2.25 + 0) / 3)])
def test_frame_loss_is_a_mean_over_pixels_of_the_first_frame_alone(norm: str, expected: float) -> None:
    image, video = torch.zeros(2, 3, 4, 5), torch.full((2, 3, 6, 4, 5), 9.0)
    for colour, level in enumerate((0.5, -1.5, 0.0)):
        video[:, colour, 0] = level
    assert float(frame_loss(image, video, norm)) == pytest.approx(expected)


def test_reconstruction_loss_is_the_mean_squared_error_of_the_whole_clip() -> None:
    video, redrawn = torch.zeros(1, 3, 2, 2, 2), torch.zeros(1, 3, 2, 2, 2)
    redrawn[0, 0, 1] = 3.0  # four of 24 voxels
    assert float(reconstruction_loss(video, redrawn)) == pytest.approx(4 * 9 / 24)


def level(*values: float) -> Tensor:
    """Return clips of one color each."""
    return torch.tensor(values).reshape(-1, 1, 1, 1, 1).expand(-1, 3, 8, 8, 8).clone()


def test_match_loss_is_the_error_of_each_real_clip_to_the_drawn_clip_nearest_it() -> None:
    real, drawn = level(0.0, 0.9, 1.0), level(-0.5, 0.4, 0.8)
    assert float(nearest_match_loss(real, drawn)) == pytest.approx((0.4**2 + 0.1**2 + 0.2**2) / 3)


def test_match_loss_pulls_only_what_is_nearest_to_a_real_clip() -> None:
    drawn = level(-0.5, 0.4, 0.8).requires_grad_()
    (gradient,) = torch.autograd.grad(nearest_match_loss(level(0.9, 1.0), drawn), drawn)
    assert gradient[:2].abs().sum() == 0
    assert (gradient[2] < 0).all()  # down the gradient is up to the real ones


def test_match_loss_judges_nearness_by_the_means_of_blocks() -> None:
    checks = (torch.arange(16) % 2 * 2.0 - 1).expand(1, 3, 16, 16, 16)  # gray on average
    real, drawn = torch.zeros(1, 3, 16, 16, 16), torch.cat([checks, torch.full_like(checks, 0.5)])
    assert float(nearest_match_loss(real, drawn)) == pytest.approx(1.0)  # of the checks, though the flat clip's is 0.25


def test_r1_penalty_of_a_linear_discriminator_is_the_squared_distance_of_its_two_weights() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(2, 3 * 2 * 4 * 4, generator=generator)
    real = torch.randn(5, 3, 2, 4, 4, generator=generator, requires_grad=True)
    expected = float((weights[REAL] - weights[FAKE]).square().sum())
    assert float(r1_penalty(real, real.flatten(1) @ weights.T).detach()) == pytest.approx(expected, rel=1e-5)


def test_r1_penalty_is_a_mean_over_clips_that_d_can_learn_from() -> None:
    steepness = torch.tensor(2.0, requires_grad=True)
    real = torch.tensor([1.0, 3.0]).reshape(2, 1, 1, 1, 1).expand(2, 3, 2, 4, 4).contiguous().requires_grad_()
    score = steepness * real.square().sum(dim=(1, 2, 3, 4)) / 2
    logits = [torch.zeros(2), torch.zeros(2)]
    logits[REAL] = score
    penalty = r1_penalty(real, torch.stack(logits, 1))  # its gradient is steepness * clip; a clip has 96 voxels
    assert float(penalty.detach()) == pytest.approx(4 * 96 * (1 + 9) / 2)
    (gradient,) = torch.autograd.grad(penalty, steepness)
    assert float(gradient) == pytest.approx(2 * 2 * 96 * (1 + 9) / 2)


def test_r1_penalty_equals_finite_differences() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Sequential(torch.nn.Conv3d(3, 4, 2), torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.Linear(4, 2))
    layer = layer.double()
    real = torch.randn(1, 3, 2, 2, 2, dtype=torch.double)
    squares = 0.0
    for i in range(real.numel()):
        nudge = torch.zeros(real.numel(), dtype=torch.double)
        nudge[i] = 1e-3  # margins are float32: smaller steps would drown
        up, down = (float(logit_margin(layer(real + s * nudge.view_as(real))).detach()) for s in (1, -1))
        squares += ((up - down) / 2e-3) ** 2
    real.requires_grad_()
    assert float(r1_penalty(real, layer(real)).detach()) == pytest.approx(squares, rel=1e-2)
