"""The update pair under DeepSpeed on two ranks against a plain account of data parallelism, saving, and bf16.

The reference is one process that holds both ranks' replicas and averages their gradients by hand. One full batch would
not do, because in train mode batch norm has each rank's own statistics. Adam's epsilon is 1e-3 on both sides: with 1e-8
it hides a wrong scale of the gradients, and turns those of pure rounding noise (biases in front of a batch norm) into
steps of +-lr.

The wrong update rules below are what makes the comparison worth its time: measured under ZeRO-1, two backward passes in
D's step and an unfrozen D in G's step train on without complaint and end up elsewhere.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from cluster import engines
from vgan import gan
from vgan.config import ModelConfig, ObjectiveConfig
from vgan.losses import discriminator_loss, generator_loss, mask_prior
from vgan.models.discriminator import FAKE, REAL, Discriminator
from vgan.models.generator import TwoStreamGenerator

MODEL = ModelConfig(base=4, num_frames=16, size=32)
OBJECTIVE = ObjectiveConfig(learning_rate=3e-3)  # large enough that a wrong gradient shows after four steps
ADAM_EPS = 1e-3
RANKS, PER_RANK, STEPS, MASK_WEIGHT = 2, 4, 4, 0.1

States = list[dict[str, Tensor]]  # both networks' tensors by name, a rank each
Found = list[dict[Any, Any]]  # what `rank_main` kept, a rank each
Rule = Callable[[Any, Any, Tensor, Tensor], object]


def exact(G: Any, D: Any, real: Tensor, z: Tensor) -> dict[str, Tensor]:
    return gan.update({"generator": G, "discriminator": D}, real, draws(z), MODEL, OBJECTIVE).metrics


def draws(z: Tensor) -> gan.Draws:
    return gan.Draws(z, *(torch.zeros(len(z), n) for n in (1, 7, 7)))  # nothing is mirrored or augmented


def two_backward_passes(G: Any, D: Any, real: Tensor, z: Tensor) -> None:
    """Wrong under ZeRO-1: the second pass overwrites the reduced gradient of the first."""
    streams = G.module(z)
    for clips, target in ((real, REAL), (streams.video.detach(), FAKE)):
        D.backward(F.cross_entropy(D.module(clips), torch.full((len(clips),), target)))
    D.step()
    gan.update_generator(G, D, streams, streams.video, OBJECTIVE, mask_weight=MASK_WEIGHT)


def unfrozen_discriminator(G: Any, D: Any, real: Tensor, z: Tensor) -> None:
    """Wrong: G's gradient stays in D and is added to D's next step."""
    streams = G.module(z)
    gan.update_discriminator(D, real, streams.video.detach(), OBJECTIVE)
    G.backward(generator_loss(D.module(streams.video)) + MASK_WEIGHT * mask_prior(streams.mask))
    G.step()


RULES: tuple[Rule, ...] = (exact, two_backward_passes, unfrozen_discriminator)


def batch(step: int) -> tuple[Tensor, Tensor]:
    """Clips (8, 3, 16, 32, 32) in [-1, 1] and noise (8, 100) of a step, for all ranks."""
    generator = torch.Generator().manual_seed(step)
    shape = (RANKS * PER_RANK, 3, MODEL.num_frames, MODEL.size, MODEL.size)
    return torch.rand(shape, generator=generator) * 2 - 1, torch.randn(shape[0], MODEL.z_size, generator=generator)


def snapshot(networks: dict[str, nn.Module]) -> dict[str, Tensor]:
    return {f"{name}.{k}": v.clone() for name, net in networks.items() for k, v in net.state_dict().items()}


def trained(nets: engines.Engines) -> dict[str, nn.Module]:
    return {name: engine.module for name, engine in nets.by_name.items()}


def farthest(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The largest difference between any two values."""
    assert a.keys() == b.keys()
    return max(float((a[k].double() - b[k].double()).abs().max()) for k in a)


# ---- one process -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference() -> States:
    """Both replicas after four steps: D on real and fake, then G against the new D, gradients averaged each time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the ranks: sums in the same order
    torch.manual_seed(0)
    G, D = TwoStreamGenerator(MODEL), Discriminator(MODEL)
    replicas = [copy.deepcopy((G, D)) for _ in range(RANKS)]
    adams = [[torch.optim.Adam(net.parameters(), 3e-3, (0.5, 0.999), ADAM_EPS) for net in r] for r in replicas]
    for step in range(STEPS):
        halves = list(zip(*(whole.chunk(RANKS) for whole in batch(step)), strict=True))
        drawn = [g(z) for (g, _), (_, z) in zip(replicas, halves, strict=True)]
        losses = [
            discriminator_loss(d(real), d(streams.video.detach()))
            for (_, d), (real, _), streams in zip(replicas, halves, drawn, strict=True)
        ]
        step_on_mean(losses, [d for _, d in replicas], [adam for _, adam in adams])
        losses = [
            generator_loss(d(streams.video)) + MASK_WEIGHT * mask_prior(streams.mask)
            for (_, d), streams in zip(replicas, drawn, strict=True)
        ]
        step_on_mean(losses, [g for g, _ in replicas], [adam for adam, _ in adams])
    torch.set_num_threads(threads)
    return [snapshot(dict(zip(("generator", "discriminator"), replica, strict=True))) for replica in replicas]


def step_on_mean(losses: list[Tensor], networks: list[nn.Module], adams: list[torch.optim.Adam]) -> None:
    """One step of every replica on the mean of their gradients."""
    gradients = [torch.autograd.grad(loss, list(n.parameters())) for loss, n in zip(losses, networks, strict=True)]
    means = [sum(parts) / RANKS for parts in zip(*gradients, strict=True)]
    for network, adam in zip(networks, adams, strict=True):
        for parameter, mean in zip(network.parameters(), means, strict=True):
            parameter.grad = mean.clone()
        adam.step()


# ---- two ranks ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What each rank found; one pair of processes does all the work, because each imports for seconds."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(rank_main, (folder,), nprocs=RANKS)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(RANKS)]


def rank_main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS)}
    engines.prepare_ops()
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", timedelta(seconds=60), rank=rank, world_size=RANKS)
    found: dict[Any, Any] = {"mean": engines.mean_over_ranks({"rank": torch.tensor(rank), "one": torch.ones(1)})}
    for stage in (0, 1):
        for rule in RULES:
            nets = make(stage)
            train(nets, rule, range(STEPS), rank)
            found[stage, rule.__name__] = snapshot(trained(nets))
        found[stage, "resume"] = resume(stage, rank, folder / f"zero{stage}")
    found["buffers"] = buffers(rank)
    found["bf16"] = bf16(rank)
    torch.save(found, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


def make(stage: int, seed: int = 0, precision: str = "fp32") -> engines.Engines:
    torch.manual_seed(seed)
    nets = engines.make_engines(MODEL, OBJECTIVE, batch_size=PER_RANK, zero_stage=stage, precision=precision)
    for engine in nets.by_name.values():
        for group in engine.optimizer.param_groups:
            group["eps"] = ADAM_EPS
    return nets


def train(nets: engines.Engines, rule: Rule, steps: range, rank: int) -> object:
    result = None
    for step in steps:
        real, z = (whole.chunk(RANKS)[rank] for whole in batch(step))
        result = rule(nets.by_name["generator"], nets.by_name["discriminator"], real, z)
    return result


def resume(stage: int, rank: int, folder: Path) -> dict[str, dict[str, Tensor]]:
    """Three steps in one go, and two, a checkpoint and one in engines that began elsewhere. Batch norm trains."""
    nets = make(stage)
    train(nets, exact, range(2), rank)
    engines.save_engines(nets, folder)
    found = {"saved": snapshot(trained(nets))}
    train(nets, exact, range(2, 3), rank)
    found["uninterrupted"] = snapshot(trained(nets))
    dist.barrier()  # both ranks have written
    fresh = make(stage, seed=1)
    found["fresh"] = snapshot(trained(fresh))
    engines.load_engines(fresh, folder)
    found["loaded"] = snapshot(trained(fresh))
    train(fresh, exact, range(2, 3), rank)
    return found | {"resumed": snapshot(trained(fresh))}


def buffers(rank: int) -> dict[str, dict[str, Tensor]]:
    nets = make(0)
    train(nets, exact, range(1), rank)
    before = snapshot(trained(nets))
    engines.average_buffers(list(trained(nets).values()))
    return {"before": before, "after": snapshot(trained(nets))}


def bf16(rank: int) -> dict[str, Any]:
    nets = make(1, precision="bf16")
    metrics = train(nets, exact, range(2), rank)
    logits = nets.by_name["discriminator"].module(batch(0)[0][:PER_RANK])
    return {"state": snapshot(trained(nets)), "metrics": metrics, "logits": str(logits.dtype)}


# ---- tests -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.parametrize("rank", [0, 1])
def test_update_on_two_ranks_equals_replicas_with_averaged_gradients(
    ranks: Found, reference: States, rank: int, stage: int
) -> None:
    assert farthest(ranks[rank][stage, "exact"], reference[rank]) < 1e-6  # measured: 0


def test_update_two_backward_passes_of_d_are_wrong_under_zero_1(ranks: Found, reference: States) -> None:
    assert farthest(ranks[0][0, "two_backward_passes"], reference[0]) < 1e-4  # right without sharding, but for rounding
    assert farthest(ranks[0][1, "two_backward_passes"], reference[0]) > 1e-3  # measured: 7e-2


@pytest.mark.parametrize("stage", [0, 1])
def test_update_unfrozen_d_in_the_step_of_g_is_wrong(ranks: Found, reference: States, stage: int) -> None:
    assert farthest(ranks[0][stage, "unfrozen_discriminator"], reference[0]) > 1e-3  # measured: 6e-2


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("stage", [0, 1])
def test_load_engines_restores_parameters_and_adam_bit_for_bit(ranks: Found, stage: int, rank: int) -> None:
    found = ranks[rank][stage, "resume"]
    assert farthest(found["fresh"], found["saved"]) > 1e-3  # there was something to restore
    parameters = {k for k in found["saved"] if "running" not in k}  # those are each rank's own until averaged
    for a, b in (("loaded", "saved"), ("resumed", "uninterrupted")):
        assert farthest(*({k: found[name][k] for k in parameters} for name in (a, b))) == 0


def test_average_buffers_gives_every_rank_the_mean_and_leaves_parameters(ranks: Found) -> None:
    (before0, before1), (after0, after1) = ([r["buffers"][when] for r in ranks] for when in ("before", "after"))
    statistics = [k for k in before0 if k.endswith(("running_mean", "running_var"))]
    assert max(float((before0[k] - before1[k]).abs().max()) for k in statistics) > 1e-4
    assert farthest(after0, after1) == 0
    for key, value in after0.items():
        expected = (before0[key] + before1[key]) / 2 if key in statistics else before0[key]
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-8)


def test_mean_over_ranks_averages_each_metric(ranks: Found) -> None:
    assert [r["mean"] for r in ranks] == [{"rank": 0.5, "one": 1.0}] * 2


def test_make_engines_bf16_computes_in_bf16_and_keeps_fp32_state(ranks: Found) -> None:
    for found in (r["bf16"] for r in ranks):
        assert found["logits"] == "torch.bfloat16"
        floats = [v for k, v in found["state"].items() if not k.endswith("num_batches_tracked")]
        assert {v.dtype for v in floats} == {torch.float32}
        assert all(bool(v.isfinite().all()) for v in (*floats, *found["metrics"].values()))
