"""Settings of a training run."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass

from cluster.observability.tracking_config import TrackingConfig
from vgan.models.config import ModelConfig
from vgan.options import check_choice, check_name, option, section
from vgan.presets import PRESETS
from vgan.training.config import ObjectiveConfig

# What runs that began before an option was there have been trained with.
DEFAULTS = {
    "model": asdict(ModelConfig()),
    "objective": asdict(ObjectiveConfig()),
    "max_grad_norm": 0.0,
    "loss_scale": 0.0,
    "scene_categories": [],
    "min_scene_probability": 0.2,
}
PINNED = (
    *("model", "objective", "batch_size", "seed", "zero_stage", "precision", "ema_decay", "max_grad_norm"),
    *("loss_scale", "scene_categories", "min_scene_probability"),
)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run."""

    data: str = option("", "url of a prepared dataset's folder (required)", "required")
    scene_categories: list[str] = option(
        [], "train on clips of these scene categories of the dataset only; empty: on all"
    )
    min_scene_probability: float = option(0.2, "of scene_categories=: probability that one of them must reach, 0..1")
    out: str = option("out/runs", "url of the folder that holds runs", "common")
    name: str = option("gan", "name of the run; the same name in the same folder continues", "common")
    steps: int = option(1000, "steps of both networks to reach, counted from the run's start", "common")
    batch_size: int = option(64, "clips a step over all workers, whatever their number", "common")
    workers: str = option(
        "1",
        "Ray Train workers, each with a copy of both networks: 2, or 1-8 for as many of these as there is room for",
        "common",
    )
    elastic_check_interval_s: float = option(
        60.0, "of workers=1-8, seconds between looks for room; growing goes back to the last checkpoint"
    )
    step_timeout_s: int = option(
        600,
        "seconds a step, or a checkpoint that is fetched or waited for, may take before a worker counts as failed",
    )
    use_gpu: bool = option(False, "one GPU a worker; otherwise one CPU core", "common")
    gradient_accumulation_steps: int = option(
        1, "each worker takes its clips in so many pieces, one after the other, for less memory (gradient accumulation)"
    )
    zero_stage: int = option(0, "DeepSpeed ZeRO: 0 nothing sharded; 1 optimizer state sharded; 2 gradients as well")
    precision: str = option("fp32", "fp32, or autocast: bf16, or fp16 for GPUs that know no bf16", "common")
    loss_scale: float = option(0.0, "of precision=fp16: what losses are multiplied with; 0 finds it as it goes")
    compile: bool = option(False, "torch.compile each network; on CPUs it gains nothing")
    max_grad_norm: float = option(0.0, "a network's gradient that is longer is scaled down to this norm; 0 leaves it")
    ema_decay: float = option(0.999, "decay a step of the generator's moving average; smaller in the first steps")
    checkpoint_every: int = option(
        200, "steps between checkpoints; the last step and a request to stop make one too", "common"
    )
    keep_latest_k: int = option(3, "newest checkpoints kept; below 2 there is none before a damaged one")
    best_metric: str = option(
        "", "metric whose lowest value keeps its checkpoint too, e.g. loss/reconstruction; means since the one before"
    )
    log_every: int = option(10, "steps between progress lines and metrics")
    sample_every: int = option(200, "steps between sample grids in MLflow")
    max_failures: int = option(2, "worker failures without a new checkpoint after which the run gives up")
    seed: int = option(0, "of weights, noise and the order of clips")
    address: str = option("", "Ray cluster; empty: the one this job was submitted to, else a local one")
    preset: str = option(
        "paper", "model.* and objective.* of a name: paper, reference (its code) or stable (trains well)", "common"
    )
    model: ModelConfig = section(ModelConfig, "the networks")
    objective: ObjectiveConfig = section(ObjectiveConfig, "losses and optimizer")
    tracking: TrackingConfig = section(TrackingConfig, "MLflow")

    def __post_init__(self) -> None:
        check_choice("preset", self.preset, tuple(PRESETS))
        check_choice("precision", self.precision, ("fp32", "bf16", "fp16"))
        if not 0 <= self.min_scene_probability <= 1:
            raise ValueError(f"min_scene_probability must be in 0..1, got {self.min_scene_probability}")
        if self.loss_scale < 0 or (self.loss_scale and self.precision != "fp16"):
            raise ValueError(f"loss_scale must be 0 or more, and 0 unless precision=fp16, got {self.loss_scale}")
        if self.zero_stage not in (0, 1, 2):
            raise ValueError(f"zero_stage must be 0, 1 or 2, got {self.zero_stage}")
        most = self.worker_range[1]
        if self.batch_size < most * max(self.gradient_accumulation_steps, 1):
            least = f"workers={most} times gradient_accumulation_steps={self.gradient_accumulation_steps}"
            raise ValueError(f"batch_size={self.batch_size} must be at least {least}: each needs a clip")
        for key in (
            "steps",
            "batch_size",
            "gradient_accumulation_steps",
            "checkpoint_every",
            "keep_latest_k",
            "log_every",
            "sample_every",
            "step_timeout_s",
        ):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} must be at least 1, got {getattr(self, key)}")
        if self.compile and self.objective.r1_weight:
            raise ValueError("compile=true and objective.r1_weight exclude each other: compiled code has one gradient")
        if self.use_gpu and most > 1 and self.objective.r1_weight and self.model.discriminator_norm == "batch":
            raise ValueError(
                "objective.r1_weight on several GPUs needs model.discriminator_norm=spectral: "
                "batch norm over workers has no second gradient"
            )
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be at least 0 and below 1, got {self.ema_decay}")
        if self.max_grad_norm < 0 or self.max_failures < 0 or self.elastic_check_interval_s <= 0:
            got = f"got {self.max_grad_norm}, {self.max_failures} and {self.elastic_check_interval_s}"
            raise ValueError(
                f"max_grad_norm and max_failures must be 0 or more, elastic_check_interval_s above 0; {got}"
            )
        check_name(self.name)

    @property
    def worker_range(self) -> tuple[int, int]:
        """Fewest and most workers."""
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", str(self.workers))
        least, most = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
        if not 1 <= least <= most:
            raise ValueError(f"workers must be a number or a range like 1-8, got {self.workers!r}")
        return least, most
