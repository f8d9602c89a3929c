"""One training step with local engines: the updated networks, their order and their inputs.

Known mistakes of ports of the published code in their networks and updates, and the test that detects each:

    weights keep PyTorch's initialization, the branch for ours never taken
        models/test_initialization.py  test_network_convolutions_..., test_network_batch_norms_...
    the mask's penalty is a sum over voxels, not a mean
        test_losses.py                 test_mask_prior_of_a_published_mask_is_131072_times_weaker_than_its_l1_norm
    batch norm in train mode while sampling
        models/test_generator.py       test_generator_in_eval_mode_draws_each_clip_regardless_of_the_others
    D and G step on different batches
        here                           test_update_is_the_step_written_out, test_update_draws_once_...
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vgan.models.config import ModelConfig
from vgan.models.discriminator import FAKE, REAL
from vgan.models.factory import make_networks
from vgan.models.generator import GeneratorOutput
from vgan.training.augment import augment
from vgan.training.config import ObjectiveConfig
from vgan.training.engine import LocalEngine, make_optimizer
from vgan.training.gan_step import StepRandomness, train_step, update_discriminator, update_generator
from vgan.training.losses import (
    discriminator_loss,
    frame_loss,
    generator_loss,
    mask_prior,
    nearest_match_loss,
    r1_penalty,
)

Engines = dict[str, LocalEngine]
B = 4


def settings(model: dict[str, Any] | None = None, **objective: Any) -> tuple[ModelConfig, ObjectiveConfig]:
    small = {"base_width": 2, "z_size": 6, "num_frames": 16, "size": 32}
    return ModelConfig(**small | (model or {})), ObjectiveConfig(**{"learning_rate": 1e-2} | objective)


FUTURE, WIDE = {"architecture": "future"}, {"architecture": "future", "future_encoder": "reference"}
CASES = {
    "paper": settings(),
    "one stream": settings({"architecture": "one_stream"}),
    "future, l2": settings(FUTURE),
    "future, l1, flipped": settings(FUTURE, first_frame_loss="l1", first_frame_weight=3.0, horizontal_flip=True),
    "wide future": settings(WIDE, first_frame_loss="l1"),
    "wide future, anchored": settings(WIDE, background_weight=4.0, mask_target=0.2, mask_weight=1.0),
    "hinge": settings(loss="hinge"),
    "r1": settings(r1_weight=2.0),
    "mask target": settings(mask_target=0.7, mask_weight=5.0),  # above the mean of 0.5 that masks start at
    "flip": settings(horizontal_flip=True),
    "matched, flipped": settings(nearest_match_weight=20.0, horizontal_flip=True),
    "one stream, matched": settings({"architecture": "one_stream"}, nearest_match_weight=20.0),
    "future, not matched": settings(FUTURE, nearest_match_weight=20.0),
    "augment": settings(augment=["color", "translation", "cutout"]),
    "augment, r1": settings(augment=["color"], r1_weight=0.5),
    "spectral, two rates": settings({"discriminator_norm": "spectral"}, discriminator_lr_ratio=2.0),
    "resize": settings({"upsample": "resize"}),
}
PAPER = CASES["paper"]


def make(model: ModelConfig, objective: ObjectiveConfig, pieces: int = 1) -> Engines:
    torch.manual_seed(0)
    networks = make_networks(model)
    return {n: LocalEngine(net, make_optimizer(n, net, objective), pieces) for n, net in networks.items()}


def clips(model: ModelConfig = PAPER[0]) -> Tensor:
    shape = (B, 3, model.num_frames, model.size, model.size)
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


def draws(model: ModelConfig = PAPER[0], step: int = 1) -> StepRandomness:
    return StepRandomness.of_step(0, step, B, model.z_size)


def states(engines: Engines) -> dict[str, Tensor]:
    """Return parameters and buffers of every network."""
    return {f"{n}.{k}": v.clone() for n, e in engines.items() for k, v in e.module.state_dict().items()}


def parameters(engine: LocalEngine) -> Tensor:
    return torch.cat([p.detach().flatten() for p in engine.module.parameters()])


def stray(engine: LocalEngine) -> list[str]:
    return [name for name, p in engine.module.named_parameters() if p.grad is not None or not p.requires_grad]


# ---- full step ---------------------------------------------------------------------------------------------------


def step_by_hand(
    engines: Engines, model: ModelConfig, objective: ObjectiveConfig, pieces: int = 1
) -> dict[str, Tensor]:
    """Update D on real and generated clips, then G against the new D on the same clips; return the losses of both.

    Several pieces each have their own batch statistics, and all pieces of D come before all pieces of G.
    """
    G, D, drawn, full = engines["generator"].module, engines["discriminator"].module, draws(model), clips(model)
    if objective.horizontal_flip:
        full = torch.stack([clip.flip(-1) if m else clip for clip, m in zip(full, drawn.mirrored, strict=True)])
    shares = list(zip(full.tensor_split(pieces), (drawn.share(i, pieces) for i in range(pieces)), strict=True))

    def draw(real: Tensor, share: StepRandomness) -> tuple[GeneratorOutput, Tensor]:
        streams = G(real[:, :, 0] if model.architecture == "future" else share.z)
        return streams, augment(streams.video, share.augment_fake, objective.augment)

    recorded, d_loss, d_total = [], [], []
    for real, share in shares:
        recorded.append(draw(real, share))
        shown = augment(real, share.augment_real, objective.augment).clone().requires_grad_()
        real_logits, fake_logits = D(shown), D(recorded[-1][1].detach())
        d_loss.append(discriminator_loss(real_logits, fake_logits, objective.loss))
        penalty = objective.r1_weight * r1_penalty(shown, real_logits) if objective.r1_weight else 0
        d_total.append((d_loss[-1] + penalty) * len(real) / B)
    descend(
        engines["discriminator"], torch.stack(d_total).sum(), objective.learning_rate * objective.discriminator_lr_ratio
    )

    g_loss, g_total = [], []
    for (real, share), generated in zip(shares, recorded, strict=True):
        streams, faked = generated if pieces == 1 else draw(real, share)
        total = generator_loss(D(faked), objective.loss)
        g_loss.append(total)
        anchored = objective.mask_target > 0
        if model.architecture == "two_stream" or (
            model.architecture == "future" and (model.future_encoder == "paper" or anchored)
        ):
            total = total + objective.mask_weight * mask_prior(streams.mask, objective.mask_target)
        if model.architecture != "future" and objective.nearest_match_weight:
            total = total + objective.nearest_match_weight * nearest_match_loss(real, streams.video)
        if model.architecture == "future":
            total = total + objective.first_frame_weight * frame_loss(
                real[:, :, 0], streams.video, objective.first_frame_loss
            )
            if objective.background_weight:
                total = total + objective.background_weight * frame_loss(
                    real[:, :, 0], streams.background, objective.first_frame_loss
                )
        g_total.append(total * len(real) / B)
    descend(engines["generator"], torch.stack(g_total).sum(), objective.learning_rate)
    counts = [len(real) / B for real, _ in shares]
    return {
        name: torch.stack([n * loss.detach() for n, loss in zip(counts, losses, strict=True)]).sum()
        for name, losses in {"loss/discriminator": d_loss, "loss/generator": g_loss}.items()
    }


def descend(engine: LocalEngine, loss: Tensor, rate: float) -> None:
    """Make the first step of Adam on one loss."""
    parameters = list(engine.module.parameters())
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        parameter.grad = gradient
    engine.optimizer = torch.optim.Adam(parameters, rate, (0.5, 0.999), foreach=True)
    engine.optimizer.step()
    engine.module.zero_grad()


def gradients(engine: LocalEngine) -> Tensor:
    """Return the gradient of the first step of Adam, flat."""
    return torch.cat([engine.optimizer.state[p]["exp_avg"].flatten() / 0.5 for p in engine.module.parameters()])


@pytest.mark.parametrize("case", CASES)
def test_update_is_the_step_written_out(case: str) -> None:
    engines, by_hand = make(*CASES[case]), make(*CASES[case])
    metrics = train_step(engines, clips(), draws(), *CASES[case]).metrics
    expected = step_by_hand(by_hand, *CASES[case])
    result, by_hand_result = states(engines), states(by_hand)
    assert [name for name in by_hand_result if not torch.equal(result[name], by_hand_result[name])] == []
    assert {name: metrics[name] for name in expected} == expected


@pytest.mark.parametrize("pieces", [2, 3])
@pytest.mark.parametrize("case", CASES)
def test_update_in_pieces_averages_their_gradients_over_clips(case: str, pieces: int) -> None:
    engines, by_hand = make(*CASES[case], pieces=pieces), make(*CASES[case])
    done = train_step(engines, clips(), draws(), *CASES[case], pieces=pieces)
    expected = step_by_hand(by_hand, *CASES[case], pieces=pieces)
    torch.testing.assert_close({name: done.metrics[name] for name in expected}, expected)
    for name, engine in engines.items():
        result, by_hand_result = gradients(engine), gradients(by_hand[name])
        assert (result - by_hand_result).norm() < 1e-4 * by_hand_result.norm()
    assert len(done.streams.video) == B
    full = train_step(make(*CASES[case]), clips(), draws(), *CASES[case]).metrics
    assert 0.7 < float(done.metrics["gradient/discriminator"] / full["gradient/discriminator"]) < 3.5
    assert {name: stray(engine) for name, engine in engines.items()} == {"generator": [], "discriminator": []}


def test_update_of_an_autoencoder_in_pieces_averages_their_gradients() -> None:
    case = settings({"architecture": "autoencoder"})
    full, pieced = make(*case), make(*case, pieces=2)
    done = train_step(pieced, clips(), draws(), *case, pieces=2)
    A = full["generator"].module
    halves = [torch.autograd.grad(F.mse_loss(A(half).video, half), list(A.parameters())) for half in clips().chunk(2)]
    norms = torch.stack([torch.cat([g.flatten() for g in half]).norm() for half in halves])
    torch.testing.assert_close(done.metrics["gradient/generator"], norms.mean())
    loss = torch.stack([F.mse_loss(A(half).video, half) for half in clips().chunk(2)]).mean()
    descend(full["generator"], loss, case[1].learning_rate)
    assert (gradients(pieced["generator"]) - gradients(full["generator"])).norm() < 1e-6


@pytest.mark.parametrize("case", CASES)
def test_update_leaves_no_gradient_behind_and_every_parameter_free(case: str) -> None:
    engines = make(*CASES[case])
    train_step(engines, clips(), draws(), *CASES[case])
    assert {name: stray(engine) for name, engine in engines.items()} == {"generator": [], "discriminator": []}


@pytest.mark.parametrize("case", ["paper", "one stream", "future, l2", "wide future", "r1", "spectral, two rates"])
def test_update_draws_once_and_shows_d_real_then_fake_then_the_fakes_again(case: str) -> None:
    engines, recorded = make(*CASES[case]), []
    for name, engine in engines.items():
        engine.module.register_forward_pre_hook(
            lambda _, args, name=name: recorded.append((name, args[0].detach().clone()))
        )
    real = clips()
    drawn = train_step(engines, real, draws(), *CASES[case]).streams.video
    assert [name for name, _ in recorded] == ["generator", *3 * ["discriminator"]]
    given = real[:, :, 0] if CASES[case][0].architecture == "future" else draws().z
    for (_, result), expected in zip(recorded, (given, real, drawn, drawn), strict=True):
        assert torch.equal(result, expected)


@pytest.mark.parametrize("case", ["paper", "future, l2", "wide future", "r1"])
def test_update_metrics_are_detached_scalars(case: str) -> None:
    metrics = train_step(make(*CASES[case]), clips(), draws(), *CASES[case]).metrics
    assert set(metrics) == {
        *("loss/discriminator", "loss/generator", "gradient/discriminator", "gradient/generator"),
        *("discriminator/accuracy_real", "discriminator/accuracy_fake", "discriminator/margin"),
        *(["loss/first_frame"] if "future" in case else []),
        *(["loss/r1"] if case == "r1" else []),
    }
    assert all(v.shape == () and not v.requires_grad and v.isfinite() for v in metrics.values())


@pytest.mark.parametrize(
    ("kind", "matters"), [({}, True), (FUTURE, True), (WIDE, False), ({"architecture": "one_stream"}, False)]
)
def test_mask_prior_pulls_where_the_published_code_has_one(kind: dict[str, Any], matters: bool) -> None:
    after = []
    for weight in (0.0, 100.0):
        model, objective = settings(kind, mask_weight=weight)
        engines = make(model, objective)
        for step in range(4):
            streams = train_step(engines, clips(), draws(step=step), model, objective).streams
        after.append(streams)
    assert torch.equal(after[0].video, after[1].video) != matters
    if matters:
        assert float((after[0].mask - after[1].mask).detach().mean()) > 0.05


# ---- each side ---------------------------------------------------------------------------------------------------


def test_update_discriminator_moves_d_alone() -> None:
    engines = make(*PAPER)
    G, D = engines["generator"], engines["discriminator"]
    fake = G.module(draws().z).video.detach()
    g, d = parameters(G), parameters(D)
    update_discriminator(D, clips(), fake, PAPER[1])
    assert torch.equal(parameters(G), g)
    assert not torch.equal(parameters(D), d)
    assert stray(G) == []


def test_update_generator_moves_g_alone() -> None:
    engines = make(*PAPER)
    G, D = engines["generator"], engines["discriminator"]
    g, d = parameters(G), parameters(D)
    streams = G.module(draws().z)
    update_generator(G, D, streams, streams.video, PAPER[1], mask_weight=0.1)
    assert not torch.equal(parameters(G), g)
    assert torch.equal(parameters(D), d)
    assert stray(D) == []


class Brightness(nn.Module):
    """Discriminator that classifies bright clips as real."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, video: Tensor) -> Tensor:
        logits = [torch.zeros(len(video)), torch.zeros(len(video))]
        logits[REAL], logits[FAKE] = self.scale * video.flatten(1).mean(1), -self.scale * video.flatten(1).mean(1)
        return torch.stack(logits, 1)


def test_update_discriminator_accuracy_and_margin_are_of_the_clips_it_learned_from() -> None:
    def bright(*levels: float) -> Tensor:
        return torch.tensor(levels).reshape(-1, 1, 1, 1, 1).expand(-1, 3, 2, 4, 4).contiguous()

    D = Brightness()
    engine = LocalEngine(D, torch.optim.Adam(D.parameters()))
    metrics = update_discriminator(engine, bright(0.5, 0.5, 0.5, -0.5), bright(-0.5, 0.5), PAPER[1])
    assert float(metrics["discriminator/accuracy_real"]) == 0.75
    assert float(metrics["discriminator/accuracy_fake"]) == 0.5
    assert float(metrics["discriminator/margin"]) == 0.5  # mean margins: 2 * 0.25 on real, 0 on drawn clips


# ---- the autoencoder ---------------------------------------------------------------------------------------------


def test_update_autoencoder_is_a_step_down_the_mean_squared_error() -> None:
    model, objective = settings({"architecture": "autoencoder"})
    engines, by_hand = make(model, objective), make(model, objective)
    step = train_step(engines, clips(), draws(), model, objective)
    A = by_hand["generator"].module
    error = (A(clips()).video - clips()).square().mean()
    descend(by_hand["generator"], error, 1e-2)
    assert float(step.metrics["loss/reconstruction"]) == pytest.approx(float(error.detach()))
    torch.testing.assert_close(parameters(engines["generator"]), parameters(by_hand["generator"]))
    assert step.streams.video.shape == clips().shape


def test_update_autoencoder_learns_to_redraw() -> None:
    model, objective = settings({"architecture": "autoencoder", "base_width": 4}, horizontal_flip=True)
    engines = make(model, objective)
    levels = torch.tensor([-0.8, -0.2, 0.3, 0.9]).reshape(B, 1, 1, 1, 1).expand(B, 3, 16, 32, 32).contiguous()
    errors = [
        float(train_step(engines, levels, draws(step=step), model, objective).metrics["loss/reconstruction"])
        for step in range(40)
    ]
    assert errors[-1] < 0.1 * errors[0]
