"""Draw videos from a trained generator."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from cluster import checkpoints, storage
from jobs import command
from vgan.config import check_choice, option
from vgan.models.generator import TwoStreamGenerator
from vgan.video.encode import write_gif, write_mp4
from vgan.video.pixels import batch_from_model_range
from vgan.viz.panels import sample_grid, stream_panels

ABOUT = """Sample a trained generator: one file a clip, a grid of all, and its streams side by side.

  python -m jobs.generate checkpoint=out/runs/gan out=out/samples num=16 format=mp4
"""
WRITERS = {"mp4": write_mp4, "gif": write_gif}
PANEL_ROWS = 4  # clips shown stream by stream


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """What to draw."""

    checkpoint: str = option("", "a run's folder or one of its checkpoints (required)")
    out: str = option("out/samples", "url of the folder for the videos")
    num: int = option(16, "clips to draw")
    format: list[str] = option(["mp4"], "mp4, gif, or both: [mp4,gif]")
    panels: bool = option(True, "also the streams side by side, as the paper's figure 3")
    ema: bool = option(True, "draw from the moving average of the generator")
    fps: float = option(25.0, "frames a second of the files")
    seed: int = option(0, "of the noise")

    def __post_init__(self) -> None:
        for kind in self.format:
            check_choice("format", kind, tuple(WRITERS))
        if not self.format or not 0 < self.fps <= 240:
            raise ValueError(
                f"format must name a kind and fps be above 0, at most 240; got {self.format} and {self.fps}"
            )
        if self.num < 1:
            raise ValueError(f"num must be at least 1, got {self.num}")


def main(config: GenerateConfig) -> None:
    """Sample and write the files."""
    command.require(config, "checkpoint", "out")
    source = checkpoints.open_checkpoint(storage.absolute(config.checkpoint))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    G = TwoStreamGenerator(source.model)
    checkpoints.load_weights(source, "generator_ema" if config.ema else "generator", G)
    out = storage.absolute(config.out)
    storage.make_folder(out)
    streams = draw(G.to(device).eval(), config.num, source.model.z_size, config.seed, device)
    for index, clip in enumerate(streams["composite"]):
        _write(clip, storage.join(out, f"sample-{index:04d}"), config)
    _write(sample_grid(streams["composite"], scale=2), storage.join(out, "grid"), config)
    if config.panels:
        few = {name: clips[:PANEL_ROWS] for name, clips in streams.items()}
        _write(stream_panels(few, scale=2), storage.join(out, "panels"), config)
    command.save(replace(config, checkpoint=source.url), storage.join(out, "settings.yaml"))  # which one it was
    mask = float(np.mean(streams["mask"]))
    print(f"{config.num} clips from step {source.step}, mask mean {mask:.2f} -> {out}")


@torch.no_grad()
def draw(G: TwoStreamGenerator, num: int, z_size: int, seed: int, device: str) -> dict[str, np.ndarray]:
    """Streams of `num` samples by name.

    Returns:
        composite and foreground (N, T, H, W, 3) uint8, background (N, 1, H, W, 3) uint8, mask (N, T, H, W) in [0, 1].
    """
    z = torch.randn(num, z_size, generator=torch.Generator().manual_seed(seed))
    parts: dict[str, list[np.ndarray]] = {"composite": [], "foreground": [], "background": [], "mask": []}
    for batch in z.to(device).split(16):  # 16 clips take about 1 GB at base 64
        s = G(batch)
        parts["mask"].append(s.mask[:, 0].float().cpu().numpy())
        for name, clips in (("composite", s.video), ("foreground", s.foreground), ("background", s.background)):
            parts[name].append(batch_from_model_range(clips).cpu().numpy())
    return {name: np.concatenate(batches) for name, batches in parts.items()}


def _write(frames: np.ndarray, url: str, config: GenerateConfig) -> None:
    """Write frames (T, H, W, 3) uint8 in every format asked for, each with its suffix."""
    for kind in config.format:
        with TemporaryDirectory() as scratch:  # encoders seek, object stores do not
            path = Path(scratch) / f"video.{kind}"
            WRITERS[kind](frames, path, config.fps)
            storage.write_bytes(f"{url}.{kind}", path.read_bytes())


if __name__ == "__main__":
    raise SystemExit(command.run(main, GenerateConfig, ABOUT))
