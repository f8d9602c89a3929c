"""What each method learns from the same computation, on the same real clips and seed: distances, statistics, pictures.

Two sets, looked for in ../shared: Weizmann actions (people walking, running, bending, waving before few walls), 28
videos to train on and 8 of other people held out; and four classes of UCF101, stabilized, the training and test videos
of split 1. Every training has one thread and TFLOP of work, by the operations of its very step, so that what else a
machine does counts for nothing and a table can be had again; as many trainings run at once as there are cores.
`python tests/benchmarks/learning.py ablation` takes the preset `stable` apart, on the second set.
"""

from __future__ import annotations

import copy
import functools
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from cluster.training.cost_estimate import estimate_resources
from vgan.allocator import keep_freed_memory
from vgan.metrics.frechet import frechet_distance, protocol_name
from vgan.metrics.i3d import I3D, features, load_i3d
from vgan.metrics.motion import diversity, mask_motion_correlation, motion
from vgan.metrics.nearest_neighbors import block_means, is_memorized, nearest_neighbors
from vgan.models import gaussian_mixture
from vgan.models.config import ModelConfig
from vgan.models.factory import make_networks
from vgan.models.pretrained import GeneratedClips, Model
from vgan.presets import PRESETS
from vgan.records import Clip
from vgan.training.config import ObjectiveConfig
from vgan.training.ema import ema_decay_at, update_ema
from vgan.training.engine import LocalEngine, make_optimizer
from vgan.training.gan_step import StepRandomness, train_step
from vgan.transfer.ucf101 import read_split
from vgan.video.clip_extraction import extract_clips
from vgan.video.config import ClipSpec, VideoConfig
from vgan.video.decoding.decode import frames
from vgan.video.image_strips import read_strip
from vgan.video.normalize import normalize_clips
from vgan.video.quality_filters import first_violation
from vgan.viz.panels import film_strip, sample_grid, stream_panels

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
ACTIONS, UCF101 = SHARED / "weizmann" / "actions", SHARED / "ucf101"
EXTRACTOR = os.environ.get("SCENE_I3D", "")
LENGTH, STRIDE, HELD_OUT = 32, 2, 2  # of actions: frames; frames between clips; videos of each that are held out
VIDEO = VideoConfig(clip=ClipSpec(stride=8))  # of UCF101
JUDGED = 400  # clips in each of the two sets that a distance compares, at most
BASE, BATCH, EMA, RESOLUTION = 16, 16, 0.999, 112
TFLOP = float(os.environ.get("TFLOP", "45"))  # eight minutes of one thread that has bf16 units
OUT = Path(os.environ.get("OUT", "out/bench-train"))
STABLE = PRESETS["stable"]
OTHERS = "real, other videos"
METHODS: dict[str, dict[str, Any]] = {
    "stable, two streams": STABLE,
    "paper, two streams": {},
    "paper, one stream": {"model.architecture": "one_stream"},
    "autoencoder + GMM": {"model.architecture": "autoencoder"},
}


@dataclass(frozen=True)
class Learned:
    """What one training gave."""

    clips: GeneratedClips  # drawn from the moving average
    newest: GeneratedClips  # drawn from the generator itself
    steps: int
    margin: float  # of D's logits, mean over the second half


Sides = tuple[np.ndarray, np.ndarray]  # training and held-out clips, (N, 32, 64, 64, 3) uint8


def read_actions() -> Sides:
    """No person is in both."""
    sides: tuple[list[np.ndarray], list[np.ndarray]] = [], []
    for action in sorted(p for p in ACTIONS.iterdir() if p.is_dir()):
        files = sorted(action.glob("*.jpg"))
        for number, file in enumerate(files):
            frames = read_strip(file.read_bytes())
            side = sides[number >= len(files) - HELD_OUT]
            side += [frames[i : i + LENGTH] for i in range(0, len(frames) - LENGTH + 1, STRIDE)]
    train, held_out = (np.stack(side) for side in sides)
    return train, held_out


def read_ucf101() -> Sides:
    """The clips that prepare would keep of split 1's training and test videos; made once, then read from OUT."""
    kept = OUT / "ucf101.npz"
    if not kept.exists():
        videos = read_split(UCF101, 1).videos
        with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
            clips = dict(zip(videos, pool.map(steady_clips, [video.path for video in videos]), strict=True))
        OUT.mkdir(parents=True, exist_ok=True)
        sides = {side: [c for v in videos if v.side == side for c in clips[v]] for side in ("train", "test")}
        np.savez(kept, **{side: np.stack(found) for side, found in sides.items()})
    with np.load(kept) as found:
        return found["train"], found["test"]


def steady_clips(path: Path) -> list[np.ndarray]:
    """Stabilized clips of a video that pass every gate."""
    found = extract_clips(frames(path, VIDEO.decode), VIDEO)
    return [c.frames for c in found if isinstance(c, Clip) and not first_violation(c.evidence, VIDEO.filters)]


READERS = {"weizmann28": read_actions, "ucf101-partial-split1": read_ucf101}  # by the name of the reference set


@functools.cache
def read(data: str) -> Sides:
    """A set's clips, read once a process."""
    return READERS[data]()


def configs(settings: dict[str, Any]) -> tuple[ModelConfig, ObjectiveConfig]:
    """Model and objective of dotted settings."""
    parts: dict[str, dict[str, Any]] = {"model": {"base_width": BASE}, "objective": {}}
    for key, value in settings.items():
        group, _, name = key.partition(".")
        parts[group][name] = value
    return ModelConfig(**parts["model"]), ObjectiveConfig(**parts["objective"])


def train(settings: dict[str, Any], clips: np.ndarray, num: int, seed: int = 0) -> Learned:
    """Train for TFLOP of work, then draw `num` clips."""
    model, objective = configs(settings)
    size = estimate_resources(model, objective, batch_size=BATCH, clips=len(clips), zero_stage=0, precision="bf16")
    steps = round(TFLOP * 1e12 / (size.flop * BATCH))
    torch.manual_seed(seed)
    networks = make_networks(model)
    average = copy.deepcopy(networks["generator"]).requires_grad_(False)
    engines = {}
    for name, network in networks.items():
        network.forward = torch.autocast("cpu", torch.bfloat16)(network.forward)
        engines[name] = LocalEngine(network, make_optimizer(name, network, objective))
    rng, order, margins = np.random.default_rng(seed), np.empty(0, int), [0.0]
    for step in range(1, steps + 1):
        if len(order) < BATCH:
            order = np.concatenate([order, rng.permutation(len(clips))])
        real, order = normalize_clips(torch.from_numpy(clips[order[:BATCH]])), order[BATCH:]
        done = train_step(engines, real, StepRandomness.of_step(seed, step, BATCH, model.z_size), model, objective)
        update_ema(average, networks["generator"], ema_decay_at(EMA, step))
        if "discriminator/margin" in done.metrics:
            margins.append(float(done.metrics["discriminator/margin"]))
    drawn = [draw(network, model, clips, num) for network in (average, networks["generator"])]
    return Learned(*drawn, steps, float(np.mean(margins[len(margins) // 2 :])))


def draw(generator: nn.Module, config: ModelConfig, clips: np.ndarray, num: int) -> GeneratedClips:
    """`num` clips; an autoencoder's from a mixture over the codes of its training clips."""
    model = Model(config, generator.eval())
    if config.architecture == "autoencoder":
        model = Model(config, generator, mixture=gaussian_mixture.fit_mixture(model.encode(clips), seed=0))
    return model.sample(num, seed=1)


# ---- one method, in a process of its own -------------------------------------------------------------------------


def learn(name: str, settings: dict[str, Any], data: str, seed: int, newest: bool = False) -> str:
    """Train a method; its lines of the table, and pictures in OUT."""
    torch.set_num_threads(1)
    keep_freed_memory()
    real, held_out = read(data)
    found = train(settings, real, num_judged(held_out), seed)
    save_pictures(f"{data}/{name}", found.clips)
    margin = "-" if found.margin == 0 else f"{found.margin:.1f}"
    lines = [line(name, found.clips, data, f"{found.steps}", margin)]
    if newest:
        lines.append(line("  the same without moving average", found.newest, data, "", ""))
    return "\n".join(lines)


def look(name: str, data: str) -> str:
    """A line for real clips: held out, or those that the reference set leaves out of the training videos."""
    torch.set_num_threads(1)
    real, held_out = read(data)
    clips = spread(held_out if name == OTHERS else real[1::2], num_judged(held_out))
    return line(name, GeneratedClips(clips, None, None, None), data)


def line(name: str, clips: GeneratedClips, data: str, steps: str = "-", margin: str = "-") -> str:
    """One line of the table."""
    masks, (real, _) = clips.mask, read(data)
    mean = "-" if masks is None else f"{masks.mean():.2f}"
    follows = "-" if masks is None else f"{np.nanmean(mask_motion_correlation(masks, clips.video)):.2f}"
    spread, moved = diversity(clips.video) / diversity(real), motion(clips.video).mean() / motion(real).mean()
    cells = f"{distance(clips.video, data):>9}{copied(clips.video, data):>8.0%}{spread:>10.2f}{moved:>8.2f}{mean:>6}"
    cells += f"{follows:>9}{margin:>8}{steps:>7}"
    return f"{name:<36}{cells}"


def num_judged(held_out: np.ndarray) -> int:
    """Clips on each side of a distance."""
    return min(JUDGED, len(held_out))


def distance(drawn: np.ndarray, data: str) -> str:
    """Fréchet distance from as many training clips, evenly spread."""
    return f"{frechet_distance(known(data, len(drawn)), judged(drawn)):.0f}" if EXTRACTOR else "-"


def copied(drawn: np.ndarray, data: str) -> float:
    """Share of clips that are nearer to a training clip than 19 in 20 held-out ones are: redrawn from memory."""
    train, held_out = read(data)
    known = block_means(train)
    return float(
        is_memorized(*(nearest_neighbors(block_means(clips), known).distance for clips in (drawn, held_out))).mean()
    )


@functools.cache
def known(data: str, num: int) -> np.ndarray:
    """What the extractor sees in `num` training clips."""
    return judged(spread(read(data)[0][::2], num))


def judged(clips: np.ndarray) -> np.ndarray:
    """What the extractor sees in clips (N, T, H, W, 3) uint8."""
    return features(extractor(), clips, resolution=RESOLUTION, bf16=True)


@functools.cache
def extractor() -> I3D:
    """The network, read once a process."""
    return load_i3d(Path(EXTRACTOR))


def spread(clips: np.ndarray, num: int) -> np.ndarray:
    """`num` of the clips, evenly spread."""
    return clips[np.linspace(0, len(clips) - 1, num).round().astype(int)]


def save_pictures(name: str, clips: GeneratedClips) -> None:
    """Film strips, a grid and, of two streams, the panels of the paper's figure 3."""
    folder = OUT / "".join(c if c.isalnum() or c == "/" else "-" for c in name)
    folder.mkdir(parents=True, exist_ok=True)
    strips = np.concatenate([film_strip(clip) for clip in clips.video[:8]])
    Image.fromarray(strips).save(folder / "strips.png")
    Image.fromarray(sample_grid(clips.video[:36], scale=2)[LENGTH // 2]).save(folder / "grid.png")
    if clips.mask is not None:
        parts = dict(zip(("composite", "foreground", "mask", "background"), (c[:6] for c in clips), strict=True))
        Image.fromarray(stream_panels(parts, scale=2)[LENGTH // 2]).save(folder / "panels.png")


# ---- tables ------------------------------------------------------------------------------------------------------


def compare(
    methods: dict[str, dict[str, Any]], data: str, seeds: tuple[int, ...] = (0,), newest: tuple[str, ...] = ()
) -> None:
    """Train each and print the table; real clips head it. Of those in `newest`, also what no moving average gives."""
    if not SHARED.is_dir():
        print(f"\nno clips at {SHARED}: the table of what is learned is left out")
        return
    real, held_out = read(data)
    kind = {"extractor": "i3d400", "resolution": RESOLUTION, "reference": data, "num_frames": LENGTH}
    protocol = protocol_name("fvd", num=num_judged(held_out), **kind) if EXTRACTOR else "left out: set SCENE_I3D"
    print(f"\nLearning: {TFLOP:g} TFLOP each, base {BASE}, batch {BATCH}, bf16, {len(real)} clips")
    print(f"distance: {protocol} (vgan/metrics/i3d_weights.py says where the extractor comes from)")
    print("diversity, motion: over those of real clips; follows: correlation of mask with motion in drawn clips")
    print("copies: clips nearer to a training clip, coarsely, than 19 in 20 held-out clips are")
    print(
        f"{'':<36}{'distance':>9}{'copies':>8}{'diversity':>10}{'motion':>8}{'mask':>6}{'follows':>9}{'margin':>8}{'steps':>7}"
    )
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        jobs = [pool.submit(look, name, data) for name in (OTHERS, "real, same videos")]
        for name, settings in methods.items():
            for seed in seeds:
                label = name if len(seeds) == 1 else f"{name}, seed {seed}"
                jobs.append(pool.submit(learn, label, settings, data, seed, name in newest))
        for job in jobs:
            print(job.result(), flush=True)
    print(f"pictures: {OUT / data}")


INGREDIENTS = {
    "spectral norm": ("model.discriminator_norm",),
    "resize-convolutions": ("model.upsample",),
    "hinge loss": ("objective.loss",),
    "an anchored mask": ("objective.mask_weight", "objective.mask_target"),
    "mirrored clips": ("objective.horizontal_flip",),
}
LEFT_OUT: dict[str, dict[str, Any]] = {
    "a larger step": {"objective.learning_rate": 4e-4},
    "two time scales": {"objective.discriminator_lr_ratio": 2.0},  # https://arxiv.org/abs/1706.08500
    "translation (DiffAugment)": {"objective.augment": ["translation"]},
    "matching": {"objective.nearest_match_weight": 10.0},
}


def ablation() -> None:
    """The preset `stable` without each of its ingredients, and with each that was left out of it."""
    variants = {"stable": STABLE}
    for name, keys in INGREDIENTS.items():
        variants[f"without {name}"] = {key: value for key, value in STABLE.items() if key not in keys}
    for name, settings in LEFT_OUT.items():
        variants[f"with {name}"] = STABLE | settings
    compare(variants, "ucf101-partial-split1", newest=("stable",))


def main() -> None:
    """The table of methods on each set."""
    for data in READERS:
        compare(METHODS, data)


if __name__ == "__main__":
    ablation() if sys.argv[1:] == ["ablation"] else main()
