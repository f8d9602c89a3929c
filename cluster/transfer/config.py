"""Settings of a label-fraction sweep."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.observability.tracking_config import TrackingConfig
from cluster.transfer.initializations import INITS
from vgan.models.config import ModelConfig
from vgan.options import check_choice, check_name, option, section
from vgan.presets import FINETUNE_PRESETS
from vgan.transfer.config import FinetuneConfig
from vgan.transfer.label_subsets import FRACTIONS
from vgan.video.config import ClipSpec, FilterConfig, PrescreenConfig, StabilizeConfig, VideoConfig


def labeled_video_config() -> VideoConfig:
    """Return settings that give one clip per video and reject no labeled video for its content.

    The test protocol counts every video. A clip whose camera motion cannot be estimated is kept without stabilization,
    as the original code did for UCF101.
    """
    return VideoConfig(
        clip=ClipSpec(max_per_video=1),
        prescreen=PrescreenConfig(min_contrast=0, max_frozen_fraction=0, min_activity=0),
        stabilize=StabilizeConfig(keep_failed=True),
        filters=FilterConfig(disabled=["still", "restless", "near_duplicate"]),
    )


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Settings of a sweep over label fractions."""

    ucf101: str = option("", "folder that contains UCF-101/ and ucfTrainTestlist/ (required)", "required")
    checkpoint: str = option(
        "",
        "trained GAN: run folder, checkpoint, exported folder or .t7 file; random initializations use its architecture",
        "common",
    )
    extra_checkpoints: dict[str, str] = option(
        {}, "further checkpoints, by name of their initialization: 'extra_checkpoints={longer: out/runs/longer}'"
    )
    out: str = option("out/finetune", "folder for the labeled clips and the results", "common")
    preset: str = option(
        "modern",
        "fine-tuning settings: modern, chosen on held-out groups, or reference, those of the published code "
        "(1,000 steps of 256 clips)",
    )
    name: str = option(
        "sweep", "name of the sweep; the same name resumes it, also with more fractions or seeds", "common"
    )
    dataset: str = option("ucf101", "name of the labeled dataset in metric names")
    initializations: list[str] = option(
        ["vgan", "logistic", "random"],
        "initial weights to compare; " + "; ".join(f"{name}: {text}" for name, text in INITS.items()),
        "common",
    )
    fractions: list[float] = option(
        list(FRACTIONS),
        "shares of each class's training clips, in (0, 1]; smaller subsets are nested in larger ones",
        "common",
    )
    seeds: list[int] = option(
        [0, 1], "random seeds of label subsets, new weights, batch order and augmentation; one run per seed", "common"
    )
    splits: list[int] = option([1], "numbers of the official train/test splits, 1 to 3", "common")
    clips_per_test_video: int = option(
        1, "clips per test video: 1, from its first frames, or more, evenly spaced; e.g. 10", "common"
    )
    validation: bool = option(
        False, "test on groups held out from the training list instead of the test list, to tune settings", "common"
    )
    validation_fold: int = option(
        0, "with validation=true: 0 or more; each fold holds out another fifth of the groups, drawn at random"
    )
    allow_test_leakage: bool = option(
        False, "continue if the checkpoint's training dataset contains test videos or is unknown; figures state it"
    )
    seed: int = option(0, "random seed of the order in which clips are packed into shards")
    workers: int = option(
        1, "Ray Train workers per run that share each batch, for large batches; above 1, one run at a time"
    )
    cpus: float = option(1.0, "CPU cores per run, or per worker if workers is above 1; as many runs in parallel as fit")
    gpus: float = option(
        0.0, "GPUs per run, e.g. 0.25 for four runs on one GPU; 0: CPU only; if workers is above 1, one GPU per worker"
    )
    address: str = option(
        "", "address of a Ray cluster; empty: the cluster this job was submitted to, otherwise a local one"
    )
    finetune: FinetuneConfig = section(FinetuneConfig, "optimization")
    model: ModelConfig = section(ModelConfig, "the network if no checkpoint is given")
    video: VideoConfig = section(labeled_video_config, "video to clips")
    tracking: TrackingConfig = section(TrackingConfig, "MLflow")

    def __post_init__(self) -> None:
        check_choice("preset", self.preset, tuple(FINETUNE_PRESETS))
        for init in self.initializations:
            check_choice("initializations", init, tuple(INITS))
        if taken := sorted(set(self.extra_checkpoints) & set(INITS)):
            raise ValueError(
                f"names in extra_checkpoints must differ from the built-in initializations, got {taken[0]!r}"
            )
        for name in self.extra_checkpoints:
            check_name(name)
        if self.clips_per_test_video < 1 or self.validation_fold < 0:
            got = f"got {self.clips_per_test_video} and {self.validation_fold}"
            raise ValueError(f"clips_per_test_video must be at least 1 and validation_fold at least 0, {got}")
        if self.validation_fold and not self.validation:
            raise ValueError(f"validation_fold={self.validation_fold} needs validation=true")
        if self.workers < 1 or self.finetune.batch_size < 2 * self.workers:  # batch norm needs two clips
            got = f"got {self.workers} and {self.finetune.batch_size}"
            raise ValueError(f"workers must be at least 1 and finetune.batch_size at least twice that, {got}")
        if self.cpus <= 0 or self.gpus < 0:
            raise ValueError(f"cpus must be above 0 and gpus 0 or more, got {self.cpus} and {self.gpus}")
        if any(not 0 < f <= 1 for f in self.fractions):
            raise ValueError(f"fractions must be above 0 and at most 1, got {self.fractions}")
        if any(s not in (1, 2, 3) for s in self.splits):
            raise ValueError(f"splits must be among 1, 2, 3, got {self.splits}")
        for key in ("initializations", "fractions", "seeds", "splits"):
            if len(set(getattr(self, key))) < len(getattr(self, key)):
                raise ValueError(f"{key} must not contain a value twice, got {getattr(self, key)}")
        if not (self.initializations and self.fractions and self.seeds and self.splits):
            raise ValueError("initializations, fractions, seeds and splits must each contain at least one value")
        check_name(self.name)
