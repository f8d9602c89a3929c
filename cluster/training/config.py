"""Settings of a training run."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass

from cluster.observability.tracking_config import TrackingConfig
from vgan.models.config import ModelConfig
from vgan.options import check_choice, check_name, option, section
from vgan.presets import PRESETS
from vgan.training.config import ObjectiveConfig

# Values of options that did not exist yet when older runs were started.
DEFAULTS = {
    "model": asdict(ModelConfig()),
    "objective": asdict(ObjectiveConfig()),
    "max_grad_norm": 0.0,
    "loss_scale": 0.0,
    "scene_categories": [],
    "min_scene_probability": 0.2,
    "min_quality": 0.0,
}
PINNED = (  # options that must stay the same when a run is resumed
    *("model", "objective", "batch_size", "seed", "zero_stage", "precision", "ema_decay", "max_grad_norm"),
    *("loss_scale", "scene_categories", "min_scene_probability", "min_quality"),
)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of a training run."""

    data: str = option("", "URL of a prepared dataset's folder", "required")
    scene_categories: list[str] = option([], "scene categories of the clips to train on; empty: all clips")
    min_scene_probability: float = option(0.2, "minimum probability of one of scene_categories, 0..1")
    min_quality: float = option(
        0.0, "minimum quality of a clip by its stored scores, 0..1; 0.5 are the bounds of filters.preset=strict; 0: all"
    )
    out: str = option("out/runs", "URL of the folder of runs", "common")
    name: str = option("gan", "name of the run; an existing name resumes its run", "common")
    steps: int = option(1000, "total training steps of both networks, counted from the start of the run", "common")
    batch_size: int = option(64, "clips per step, summed over all workers", "common")
    workers: str = option(
        "1",
        "Ray Train workers (data parallel): a number, or a range such as 1-8 for as many as the cluster has room for",
        "common",
    )
    elastic_check_interval_s: float = option(
        60.0,
        "with a range of workers: seconds between checks for room for more; growing resumes at the last checkpoint",
    )
    step_timeout_s: int = option(
        600,
        "maximum seconds of a step, or of reading or writing a checkpoint, before a worker counts as failed",
    )
    use_gpu: bool = option(False, "train on one GPU per worker; false: on one CPU core per worker", "common")
    gradient_accumulation_steps: int = option(
        1, "gradient accumulation steps per batch and worker; more need less memory"
    )
    zero_stage: int = option(0, "DeepSpeed ZeRO stage; 0: nothing is sharded; 1: optimizer state; 2: gradients too")
    precision: str = option("fp32", "fp32, or autocast to bf16, or to fp16 for GPUs without bf16", "common")
    loss_scale: float = option(0.0, "factor of the losses at precision=fp16; 0: adjusted during training")
    compile: bool = option(False, "compile each network with torch.compile; no gain on CPUs")
    max_grad_norm: float = option(0.0, "maximum gradient norm per network; 0 disables clipping")
    ema_decay: float = option(0.999, "decay per step of the generator's moving average; smaller in the first steps")
    checkpoint_every: int = option(
        200, "steps between checkpoints; the last step and a graceful shutdown write one too", "common"
    )
    keep_latest_k: int = option(
        3, "number of newest checkpoints to keep; at least 2 leave one if the newest is damaged"
    )
    best_metric: str = option(
        "",
        "metric, e.g. loss/reconstruction; the checkpoint with its lowest mean is kept too; empty: none",
    )
    log_every: int = option(10, "steps between progress lines and metrics")
    sample_every: int = option(200, "steps between sample grids in MLflow")
    max_failures: int = option(2, "maximum worker failures without a new checkpoint between them; more end the run")
    seed: int = option(0, "seed of weights, noise and the order of clips")
    address: str = option("", "address of the Ray cluster; empty: the one this job was submitted to, else a local one")
    preset: str = option(
        "paper",
        "defaults of model.* and objective.*: paper, reference (published code) or stable (spectral norm, hinge loss)",
        "common",
    )
    model: ModelConfig = section(ModelConfig, "architecture and size of the networks")
    objective: ObjectiveConfig = section(ObjectiveConfig, "losses and optimizer")
    tracking: TrackingConfig = section(TrackingConfig, "MLflow tracking")

    def __post_init__(self) -> None:
        check_choice("preset", self.preset, tuple(PRESETS))
        check_choice("precision", self.precision, ("fp32", "bf16", "fp16"))
        if not 0 <= self.min_scene_probability <= 1:
            raise ValueError(f"min_scene_probability must be in 0..1, got {self.min_scene_probability}")
        if not 0 <= self.min_quality <= 1:
            raise ValueError(f"min_quality must be in 0..1, got {self.min_quality}")
        if self.loss_scale < 0 or (self.loss_scale and self.precision != "fp16"):
            raise ValueError(f"loss_scale must be 0 or more, and 0 unless precision=fp16, got {self.loss_scale}")
        if self.zero_stage not in (0, 1, 2):
            raise ValueError(f"zero_stage must be 0, 1 or 2, got {self.zero_stage}")
        max_workers = self.worker_range[1]
        if self.batch_size < max_workers * max(self.gradient_accumulation_steps, 1):
            min_batch = f"workers={max_workers} times gradient_accumulation_steps={self.gradient_accumulation_steps}"
            raise ValueError(f"batch_size={self.batch_size} must be at least {min_batch}: each needs a clip")
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
            raise ValueError(
                "compile=true and objective.r1_weight exclude each other: compiled networks have no second gradient"
            )
        if self.use_gpu and max_workers > 1 and self.objective.r1_weight and self.model.discriminator_norm == "batch":
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
        """Minimum and maximum number of workers."""
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", str(self.workers))
        min_, max_ = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= min_ <= max_:
            raise ValueError(f"workers must be a number or a range like 1-8, got {self.workers!r}")
        return min_, max_
