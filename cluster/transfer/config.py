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
    """One clip a video, kept even where its camera cannot be followed, as the original did for UCF101.

    A labelled video is never turned away for what it shows: the protocol counts it.
    """
    return VideoConfig(
        clip=ClipSpec(max_per_video=1),
        prescreen=PrescreenConfig(min_contrast=0, max_frozen_fraction=0, min_activity=0),
        stabilize=StabilizeConfig(keep_failed=True),
        filters=FilterConfig(disabled=["still", "restless", "near_duplicate"]),
    )


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """One sweep over label fractions."""

    ucf101: str = option("", "folder that holds UCF-101/ and ucfTrainTestlist/ (required)", "required")
    checkpoint: str = option(
        "",
        "a GAN: its run's folder, a checkpoint, an exported folder, a .t7 file; random inits take its size",
        "common",
    )
    extra_checkpoints: dict[str, str] = option(
        {}, "more checkpoints, each an init of its name: 'extra_checkpoints={longer: out/runs/longer}'"
    )
    out: str = option("out/finetune", "folder for the labelled clips and the results", "common")
    preset: str = option(
        "modern",
        "modern: settings chosen on held-out groups; reference: the published code's, 1,000 steps of 256 clips",
    )
    name: str = option(
        "sweep", "name of the sweep; the same name continues, with more fractions or seeds too", "common"
    )
    dataset: str = option("ucf101", "name of the labelled set in metric names")
    initializations: list[str] = option(
        ["vgan", "logistic", "random"], "; ".join(f"{name}: {text}" for name, text in INITS.items()), "common"
    )
    fractions: list[float] = option(list(FRACTIONS), "shares of each class's training clips, nested", "common")
    seeds: list[int] = option([0, 1], "each draws its own subsets, order and head", "common")
    splits: list[int] = option([1], "official splits, 1 to 3", "common")
    clips_per_test_video: int = option(
        1, "of each test video: 1, its first frames, or more, evenly spread; e.g. 10", "common"
    )
    validation: bool = option(False, "test on groups held out from the training list, to choose settings by", "common")
    validation_fold: int = option(
        0, "with choose, which groups: 0, 1, ... each hold out another fifth, drawn at random"
    )
    allow_test_leakage: bool = option(False, "go on where the checkpoint has seen test videos, or that cannot be told")
    seed: int = option(0, "of the clips' packing order")
    workers: int = option(1, "Ray Train workers a run that share each batch, for large ones; runs then take turns")
    cpus: float = option(1.0, "CPU cores a run (and worker); as many runs at once as there is room for")
    gpus: float = option(
        0.0, "GPUs a run, 0.25 for four on one; 0 computes on CPUs; of several workers each has a whole one"
    )
    address: str = option("", "Ray cluster; empty: the one this job was submitted to, else a local one")
    finetune: FinetuneConfig = section(FinetuneConfig, "optimization")
    model: ModelConfig = section(ModelConfig, "the network where no checkpoint is given")
    video: VideoConfig = section(labeled_video_config, "video to clips")
    tracking: TrackingConfig = section(TrackingConfig, "MLflow")

    def __post_init__(self) -> None:
        check_choice("preset", self.preset, tuple(FINETUNE_PRESETS))
        for init in self.initializations:
            check_choice("initializations", init, tuple(INITS))
        if taken := sorted(set(self.extra_checkpoints) & set(INITS)):
            raise ValueError(f"extra_checkpoints must have names of their own, got {taken[0]}")
        for name in self.extra_checkpoints:
            check_name(name)
        if self.clips_per_test_video < 1 or self.validation_fold < 0:
            got = f"got {self.clips_per_test_video} and {self.validation_fold}"
            raise ValueError(f"clips_per_test_video must be at least 1 and fold at least 0, {got}")
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
                raise ValueError(f"{key} must name each value once, got {getattr(self, key)}")
        if not (self.initializations and self.fractions and self.seeds and self.splits):
            raise ValueError("inits, fractions, seeds and splits must each name at least one value")
        check_name(self.name)
