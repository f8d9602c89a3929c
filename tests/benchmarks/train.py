"""Every figure of training in one run: `make bench-train`. Prints tables; asserts nothing.

First what a step costs, against a plain port written the way public ones are; then what is learned from the same work
by each method, on the same clips and seeds.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import learning
import torch
from timing import seconds
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from vgan.allocator import keep_freed_memory
from vgan.models.config import ModelConfig
from vgan.models.factory import make_networks
from vgan.models.layers import use_channels_last
from vgan.training.config import ObjectiveConfig
from vgan.training.engine import LocalEngine, make_optimizer
from vgan.training.gan_step import StepRandomness, train_step

BATCH, REPEATS = 8, 5
METHODS = ("plain", "plain bf16", "ours fp32", "ours bf16")
OPTIONAL = ("contiguous", "compiled", "returning")  # of ours in bf16: what was tried beside it
BASES = (64, 32, 16, 8)


class PlainGenerator(nn.Module):
    """The two-stream generator as ports write it: heads apart, mask and background repeated to full size."""

    def __init__(self, base: int) -> None:
        super().__init__()
        w = [8 * base, 4 * base, 2 * base, base]

        def block3(i: int, o: int, *how: object) -> list[nn.Module]:
            return [nn.ConvTranspose3d(i, o, *how), nn.BatchNorm3d(o), nn.ReLU(True)]  # type: ignore[arg-type]

        def block2(i: int, o: int, *how: object) -> list[nn.Module]:
            return [nn.ConvTranspose2d(i, o, *how), nn.BatchNorm2d(o), nn.ReLU(True)]  # type: ignore[arg-type]

        pairs = list(pairwise(w))
        self.video = nn.Sequential(*block3(100, w[0], (2, 4, 4)), *(m for i, o in pairs for m in block3(i, o, 4, 2, 1)))
        self.rgb = nn.Sequential(nn.ConvTranspose3d(base, 3, 4, 2, 1), nn.Tanh())
        self.mask = nn.Sequential(nn.ConvTranspose3d(base, 1, 4, 2, 1), nn.Sigmoid())
        self.static = nn.Sequential(
            *block2(100, w[0], 4),
            *(m for i, o in pairs for m in block2(i, o, 4, 2, 1)),
            nn.ConvTranspose2d(base, 3, 4, 2, 1),
            nn.Tanh(),
        )

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Clips and masks from noise (B, 100)."""
        x = self.video(z.view(-1, 100, 1, 1, 1))
        mask = self.mask(x)
        wide = mask.repeat(1, 3, 1, 1, 1)
        background = self.static(z.view(-1, 100, 1, 1)).unsqueeze(2).repeat(1, 1, 32, 1, 1)
        return wide * self.rgb(x) + (1 - wide) * background, mask


class PlainDiscriminator(nn.Module):
    """Five convolutions, as the layer table."""

    def __init__(self, base: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv3d(3, base, 4, 2, 1), nn.LeakyReLU(0.2, True)]
        for i, o in ((base, 2 * base), (2 * base, 4 * base), (4 * base, 8 * base)):
            layers += [nn.Conv3d(i, o, 4, 2, 1), nn.BatchNorm3d(o), nn.LeakyReLU(0.2, True)]
        self.main = nn.Sequential(*layers, nn.Conv3d(8 * base, 2, (2, 4, 4)))

    def forward(self, video: Tensor) -> Tensor:
        """Logits (B, 2)."""
        return self.main(video).view(-1, 2)


def plain_step(base: int, real: Tensor, precision: str = "fp32") -> Callable[[], object]:
    """One step of the plain port: every call of D keeps its full graph, and G's step fills D's gradients too."""
    G, D = PlainGenerator(base), PlainDiscriminator(base)
    adams = [torch.optim.Adam(net.parameters(), 2e-4, (0.5, 0.999)) for net in (G, D)]
    ones, zeros = torch.ones(len(real), dtype=torch.long), torch.zeros(len(real), dtype=torch.long)

    @torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    def step() -> None:
        D.zero_grad()
        F.cross_entropy(D(real), ones).backward()
        video, mask = G(torch.randn(len(real), 100))
        F.cross_entropy(D(video.detach()), zeros).backward()
        adams[1].step()
        G.zero_grad()
        (F.cross_entropy(D(video), ones) + 0.1 * mask.abs().mean()).backward()
        adams[0].step()

    return step


def our_step(base: int, real: Tensor, precision: str, *more: str) -> Callable[[], object]:
    """One step as jobs.train takes it, on one process."""
    model, objective = ModelConfig(base_width=base), ObjectiveConfig()
    networks = make_networks(model)
    engines = {}
    for name, network in networks.items():
        if precision == "bf16":
            network.forward = torch.autocast("cpu", torch.bfloat16)(network.forward)
            if "contiguous" not in more:
                use_channels_last(network)
        if "compiled" in more:
            network.compile()
        engines[name] = LocalEngine(network, make_optimizer(name, network, objective))
    draws = StepRandomness.of_step(0, 1, len(real), model.z_size)
    return lambda: train_step(engines, real, draws, model, objective)


def make_step(method: str, base: int) -> Callable[[], object]:
    """A ready step of a method, on clips (BATCH, 3, 32, 64, 64)."""
    torch.manual_seed(0)
    real = torch.rand(BATCH, 3, 32, 64, 64) * 2 - 1
    who, *how = method.split()
    return plain_step(base, real, *how) if who == "plain" else our_step(base, real, *how)


def gemm_flops(dtype: torch.dtype, size: int = 4096) -> float:
    """FLOP/s of a large matrix product, the best of five."""
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    a @ b
    return 2 * size**3 / min(seconds(lambda: a @ b) for _ in range(5))


def serve(method: str, base: int, pipe: Connection) -> None:
    """A method in a process of its own: a step's seconds each time it is asked, at last its FLOPs and peak memory."""
    if method.startswith("ours") and "returning" not in method:
        keep_freed_memory()  # as jobs.train's workers do
    step = make_step(method, base)
    while pipe.recv():
        pipe.send(seconds(step))
    line = next(s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith("VmHWM"))
    with FlopCounterMode(display=False) as counter:
        step()
    pipe.send((counter.get_total_flops(), int(line.split()[1]) / 1e6))


def measure(methods: tuple[str, ...], base: int) -> dict[str, tuple[float, int, float]]:
    """Of each method the seconds of its best step, its FLOPs and the GB of its process: every round takes each once."""
    spawn, pipes = multiprocessing.get_context("spawn"), dict[str, Connection]()
    for method in methods:
        pipes[method], end = spawn.Pipe()
        spawn.Process(target=serve, args=(method, base, end), daemon=True).start()

    def ask(method: str, more: bool = True) -> Any:
        pipes[method].send(more)
        return pipes[method].recv()

    rounds = [[ask(method) for method in methods] for _ in range(1 + REPEATS)]  # the first warms up
    best = [min(times) for times in zip(*rounds, strict=True)]
    return {method: (least, *ask(method, more=False)) for method, least in zip(methods, best, strict=True)}


def step_table() -> None:
    """Seconds a step, side by side."""
    peaks = {"fp32": gemm_flops(torch.float32), "bf16": gemm_flops(torch.bfloat16)}
    shown = ", ".join(f"{name} {value / 1e9:.0f}" for name, value in peaks.items())
    print(f"A step of G and D, batch {BATCH}, {torch.get_num_threads()} threads; GEMM of 4096: {shown} GFLOP/s")
    print(f"{'':<31}{'s':>8}{'clips/s':>9}{'ratio':>7}{'GFLOP':>7}{'GFLOP/s':>9}{'of GEMM':>9}{'memory GB':>11}")
    for base in BASES:
        tried = tuple(f"ours bf16 {name}" for name in OPTIONAL if base in (64, 16))
        found = measure(METHODS + tried, base)
        for method, (best, flops, memory) in found.items():
            peak = peaks["bf16" if "bf16" in method else "fp32"]
            print(
                f"base {base:<3} {method:<23}{best:>7.3f}{BATCH / best:>9.1f}{found['plain'][0] / best:>7.2f}"
                f"{flops / 1e9:>7.0f}{flops / best / 1e9:>9.0f}{flops / best / peak:>9.0%}{memory:>11.2f}",
                flush=True,
            )


def main() -> None:
    """Both tables."""
    step_table()
    learning.main()


if __name__ == "__main__":
    main()
