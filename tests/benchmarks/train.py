"""Every figure of training in one run: `make bench-train`. Prints tables; asserts nothing.

First what a step costs, against a plain port written the way public ones are; then what is learned from the same work
by each method, on the same clips and seeds.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import learning
import torch
from timing import seconds
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from vgan import gan
from vgan.config import ModelConfig, ObjectiveConfig
from vgan.memory import keep_freed_memory
from vgan.models import make_networks
from vgan.models.layers import lay_weights_out

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
    model, objective = ModelConfig(base=base), ObjectiveConfig()
    networks = make_networks(model)
    engines = {}
    for name, network in networks.items():
        if precision == "bf16":
            network.forward = torch.autocast("cpu", torch.bfloat16)(network.forward)
            if "contiguous" not in more:
                lay_weights_out(network)
        if "compiled" in more:
            network.compile()
        engines[name] = gan.LocalEngine(network, gan.make_optimizer(name, network, objective))
    draws = gan.Draws.of_step(0, 1, len(real), model.z_size)
    return lambda: gan.update(engines, real, draws, model, objective)


def make_step(method: str, base: int) -> Callable[[], object]:
    """A ready step of a method, on clips (BATCH, 3, 32, 64, 64)."""
    torch.manual_seed(0)
    real = torch.rand(BATCH, 3, 32, 64, 64) * 2 - 1
    who, *how = method.split()
    return plain_step(base, real, *how) if who == "plain" else our_step(base, real, *how)


def timed(method: str, step: Callable[[], object]) -> float:
    """Seconds of a step, with freed memory kept as in jobs.train's workers, or returned as usual."""
    keep_freed_memory(method.startswith("ours") and "returning" not in method)
    return seconds(step)


def gemm_flops(dtype: torch.dtype, size: int = 4096) -> float:
    """FLOP/s of a large matrix product, the best of five."""
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    a @ b
    return 2 * size**3 / min(seconds(lambda: a @ b) for _ in range(5))


def peak_memory_gb(method: str, base: int) -> float:
    """Peak memory of a process that takes two steps."""
    command = [sys.executable, __file__, "memory", method, str(base)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def memory_main(method: str, base: int) -> None:
    """What `peak_memory_gb` runs."""
    step = make_step(method, base)
    timed(method, step)
    timed(method, step)
    line = next(s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith("VmHWM"))
    print(int(line.split()[1]) / 1e6)


def step_table() -> None:
    """Seconds a step, side by side: every repeat takes each method once, and the best of each counts."""
    peaks = {"fp32": gemm_flops(torch.float32), "bf16": gemm_flops(torch.bfloat16)}
    shown = ", ".join(f"{name} {value / 1e9:.0f}" for name, value in peaks.items())
    print(f"A step of G and D, batch {BATCH}, {torch.get_num_threads()} threads; GEMM of 4096: {shown} GFLOP/s")
    print(f"{'':<31}{'s':>8}{'clips/s':>9}{'ratio':>7}{'GFLOP':>7}{'GFLOP/s':>9}{'of GEMM':>9}{'memory GB':>11}")
    for base in BASES:
        tried = tuple(f"ours bf16 {name}" for name in OPTIONAL if base in (64, 16))
        steps = {method: make_step(method, base) for method in METHODS + tried}
        best = {method: timed(method, step) for method, step in steps.items()}
        for _ in range(REPEATS):
            best = {m: min(best[m], timed(m, step)) for m, step in steps.items()}
        for method, step in steps.items():
            with FlopCounterMode(display=False) as counter:
                step()
            rate = counter.get_total_flops() / best[method]
            peak = peaks["bf16" if "bf16" in method else "fp32"]
            memory = peak_memory_gb(method, base) if base in (64, 16) else float("nan")
            print(
                f"base {base:<3} {method:<23}{best[method]:>7.3f}{BATCH / best[method]:>9.1f}"
                f"{best['plain'] / best[method]:>7.2f}{counter.get_total_flops() / 1e9:>7.0f}{rate / 1e9:>9.0f}"
                f"{rate / peak:>9.0%}{memory:>11.2f}",
                flush=True,
            )


def main() -> None:
    """Both tables."""
    step_table()
    learning.main()


if __name__ == "__main__":
    if sys.argv[1:2] == ["memory"]:
        memory_main(sys.argv[2], int(sys.argv[3]))
    else:
        main()
