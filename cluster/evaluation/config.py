"""Settings of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.observability.tracking_config import TrackingConfig
from vgan.options import option, section

EXPERIMENT = "evaluation"
MIXTURE_CLIPS = 10_000  # whose codes the baseline's mixture is fitted to, as by jobs.generate


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What to judge, against what."""

    data: str = option("", "dataset whose real clips are compared with; best one that was not trained on (required)")
    checkpoint: list[str] = option([], "runs' folders, checkpoints, exported models or .t7 files to judge: [one,other]")
    samples: list[str] = option([], "datasets whose clips are judged as if they were drawn")
    out: str = option("out/evaluated", "url of the folder for results.json, table.txt and what is kept between calls")
    num: int = option(256, "clips in each set; distances compare at equal numbers alone, published ones have 2048")
    frames: int = option(0, "frames of each clip that are looked at, its first ones; 0: all")
    reference: str = option("", "name of data= in metric names, e.g. ucf101-split1; empty: its folder and digest")
    extractor: str = option(
        "", "local file of I3D's weights or of a TorchScript program, or pixels; empty: no distances"
    )
    resolution: int = option(224, "pixels a side that the extractor sees; published distances have 224")
    bf16: bool = option(False, "run I3D in bfloat16: about twice as fast, and other numbers")
    repeats: int = option(200, "resamplings behind each distance's 95 % interval")
    training: str = option("", "dataset searched for copies, where a model does not say what it was trained on")
    training_clips: int = option(20_000, "training clips that are searched for copies at most; 0: none")
    ema: bool = option(True, "draw from the moving average of the generator, where there is one")
    seed: int = option(0, "of the noise, of the real clips' choice and of the resampling")
    cache: str = option("", "url of the folder that keeps what was seen of real clips, by digest; empty: below out=")
    report: str = option("", "url of an html file: the models' card")
    transfer: str = option("", "results.json of a sweep of jobs.finetune, whose figure the card shall show")
    cpus: float = option(1.0, "CPU cores a task; as many at once as there is room for")
    gpus: float = option(0.0, "GPUs a task, 0.25 for four on one; 0 computes on CPUs")
    address: str = option("", "Ray cluster; empty: the one this job was submitted to, else a local one")
    tracking: TrackingConfig = section(TrackingConfig, "MLflow")

    def __post_init__(self) -> None:
        if not self.checkpoint and not self.samples and self.data:
            raise ValueError("nothing to judge: give checkpoint= or samples=")
        if self.num < 4 or self.repeats < 2:
            raise ValueError(f"num must be at least 4 and repeats at least 2, got {self.num} and {self.repeats}")
        if self.frames < 0 or self.frames % 8:  # copies are told by blocks of an eighth
            raise ValueError(f"frames must be 0 or a multiple of 8, got {self.frames}")
        if not 32 <= self.resolution <= 1024:
            raise ValueError(f"resolution must be in 32..1024, got {self.resolution}")
        if not 0 <= self.seed < 2**32 or self.training_clips < 0:
            got = f"got {self.seed} and {self.training_clips}"
            raise ValueError(f"seed must be in 0..2^32-1 and training_clips at least 0, {got}")
        if self.cpus <= 0 or self.gpus < 0:
            raise ValueError(f"cpus must be above 0 and gpus 0 or more, got {self.cpus} and {self.gpus}")
