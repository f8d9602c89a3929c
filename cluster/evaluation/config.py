"""Settings of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.observability.tracking_config import TrackingConfig
from cluster.storage.media_formats import FORMATS
from vgan.models.config import NETWORKS_WITH_UNITS
from vgan.options import check_choice, option, section

EXPERIMENT = "evaluation"
MIXTURE_CLIPS = 10_000  # clips whose codes the baseline's mixture is fitted to, as in jobs.generate


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Settings of an evaluation: models, reference set, protocol and resources."""

    data: str = option("", "reference dataset of real clips, preferably not used for training", "required")
    checkpoint: list[str] = option(
        [], "run folders, checkpoints, exported models or .t7 files to evaluate: [one,other]", "common"
    )
    sample_datasets: list[str] = option([], "datasets whose clips are evaluated like generated ones", "common")
    out: str = option("out/evaluated", "URL of the folder for results.json, table.txt and the cache", "common")
    num_clips: int = option(
        256, "clips per set; distances are comparable only at equal numbers, published ones use 2048", "common"
    )
    num_frames: int = option(0, "number of frames used of each clip, from its start; 0: all")
    reference: str = option("", "name of data= in metric names, e.g. ucf101-split1; empty: its folder name and digest")
    extractor: str = option(
        "", "local file of I3D weights or of a TorchScript program, or pixels; empty: no distances", "common"
    )
    resolution: int = option(224, "side of the extractor's input, pixels; published distances use 224")
    bf16: bool = option(False, "run I3D in bfloat16: about twice as fast, with different values")
    bootstrap_samples: int = option(200, "resamples for the 95 % interval of each distance")
    training_data: str = option(
        "", "dataset searched for copies of a model without a recorded training set; empty: none"
    )
    max_training_clips: int = option(20_000, "maximum number of training clips searched for copies; 0: no search")
    ema: bool = option(True, "use the moving average of the generator's weights, if available")
    seed: int = option(0, "seed of the noise, of the selection of real clips and of the resampling")
    cache: str = option("", "URL of the cache folder for statistics of real clips, by digest; empty: out=/cache")
    model_card: str = option("", "URL of an HTML file for the model card; empty: none", "common")
    sweep_results: str = option(
        "", "results.json of a sweep of jobs.finetune whose figure the card includes; empty: none"
    )
    cpus: float = option(1.0, "CPU cores per task; as many tasks run at once as fit")
    gpus: float = option(0.0, "GPUs per task, 0.25 for four tasks per GPU; 0: compute on CPUs")
    address: str = option("", "address of the Ray cluster; empty: the one this job was submitted to, else a local one")
    tracking: TrackingConfig = section(TrackingConfig, "MLflow tracking")

    def __post_init__(self) -> None:
        if not self.checkpoint and not self.sample_datasets and self.data:
            raise ValueError("nothing to evaluate: give checkpoint= or sample_datasets=")
        if self.num_clips < 4 or self.bootstrap_samples < 2:
            raise ValueError(
                f"num_clips must be at least 4 and bootstrap_samples at least 2; "
                f"got {self.num_clips} and {self.bootstrap_samples}"
            )
        if self.num_frames < 0 or self.num_frames % 8:  # the search for copies averages blocks of 1/8 of the frames
            raise ValueError(f"num_frames must be 0 or a multiple of 8, got {self.num_frames}")
        if not 32 <= self.resolution <= 1024:
            raise ValueError(f"resolution must be in 32..1024, got {self.resolution}")
        if not 0 <= self.seed < 2**32 or self.max_training_clips < 0:
            values = f"got {self.seed} and {self.max_training_clips}"
            raise ValueError(f"seed must be in 0..2^32-1 and max_training_clips at least 0, {values}")
        if self.cpus <= 0 or self.gpus < 0:
            raise ValueError(f"cpus must be above 0 and gpus 0 or more, got {self.cpus} and {self.gpus}")


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """Settings of the inspection of hidden units: network, layer and dataset."""

    data: str = option("", "URL of the dataset to search for clips", "required")
    checkpoint: str = option("", "URL of a run, a checkpoint, an exported model or a .t7 file", "required")
    out: str = option("out/units", "URL of the folder for the pictures", "common")
    network: str = option("discriminator", f"network with the units: one of {', '.join(NETWORKS_WITH_UNITS)}", "common")
    layer: int = option(3, "number of the convolution, starting at 1", "common")
    units: list[int] = option([], "numbers of the units; empty: those whose peaks exceed other clips most", "common")
    num_units: int = option(12, "number of units, if units= is empty", "common")
    top: int = option(8, "clips per unit, at most one per video", "common")
    format: list[str] = option(["png", "gif"], f"file formats per unit: any of {', '.join(FORMATS)}", "common")
    cpus: float = option(1.0, "CPU cores per task")
    address: str = option("", "address of the Ray cluster; empty: the one this job was submitted to, else a local one")

    def __post_init__(self) -> None:
        check_choice("network", self.network, NETWORKS_WITH_UNITS)
        for format_ in self.format:
            check_choice("format", format_, FORMATS)
        if self.num_units < 1 or self.top < 1 or self.cpus <= 0:
            got = f"got {self.num_units}, {self.top} and {self.cpus}"
            raise ValueError(f"num_units and top must be at least 1 and cpus above 0, {got}")
