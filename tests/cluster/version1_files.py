"""Files as settings version 1 wrote them (commit 93e5c99): a dataset's manifest, a run's record, a checkpoint, a model.

Pixels and tensors have kept their formats, so those are written by the present code; the JSON texts hold the old keys.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from cluster.checkpoints.store import write_checkpoint_files
from cluster.dataset.manifest import MANIFEST, Manifest

# The settings of a dataset with clip.stride=16, with the digests that version 1 computed for them.
CONFIG_DIGEST, WORK_DIGEST = "159a3dcc43e2e253", "e71ba9e391fbc7ee"
VIDEO: dict[str, Any] = {
    "clip": {"fps": 25.0, "max_per_video": 100, "num_frames": 32, "size": 64, "stride": 16},
    "decode": {
        "backend": "auto",
        "max_gap_s": 0.2,
        "memory_gb": 4.0,
        "min_fps": 15.0,
        "segment_s": 600.0,
        "size": 128,
        "strip_fps": 25.0,
        "time_factor": 40.0,
        "timeout_s": 60.0,
    },
    "gates": {
        "duplicate_bits": 8,
        "max_dissolve": 1.0,
        "max_drift_px": 12.0,
        "max_filled": 0.5,
        "max_motion": 40.0,
        "max_per_source": 100,
        "max_photometric": 30.0,
        "max_residual_px": 0.95,
        "max_scale_step": 1.1,
        "max_zoom": 2.0,
        "min_inlier_ratio": 0.6,
        "min_motion": 0.05,
        "off": [],
    },
    "screen": {"crop_letterbox": True, "max_frozen": 0.45, "min_activity": 0.05, "min_contrast": 4.0},
    "shots": {"history": 6, "max_likeness": 0.75, "min_difference": 20.0, "ratio": 2.0},
    "stabilize": {
        "keep_failed": False,
        "min_matches": 8,
        "num_features": 60,
        "preset": "paper",
        "ransac_px": 2.0,
        "ratio": 0.7,
        "sift_size": 64,
        "size": 128,
    },
}
MODEL = {
    "base": 2,
    "discriminator_norm": "spectral",
    "future": "paper",
    "kind": "two_stream",
    "num_frames": 16,
    "size": 32,
    "upsample": "resize",
    "z_size": 5,
}
OBJECTIVE = {
    "augment": [],
    "background_weight": 10.0,
    "beta1": 0.5,
    "beta2": 0.999,
    "flip": True,
    "frame_loss": "l2",
    "frame_weight": 10.0,
    "learning_rate": 0.0002,
    "learning_rate_ratio": 1.0,
    "loss": "hinge",
    "mask_target": 0.2,
    "mask_weight": 1.0,
    "match_weight": 0.0,
    "r1_weight": 0.0,
}
RUN = {
    "batch_size": 4,
    "ema_decay": 0.999,
    "loss_scale": 0.0,
    "max_norm": 0.0,
    "model": MODEL,
    "objective": OBJECTIVE,
    "precision": "fp32",
    "scene_threshold": 0.2,
    "scenes": [],
    "seed": 0,
    "zero_stage": 0,
}


def write_dataset_v1(url: str, write_dataset: Callable[..., Manifest]) -> str:
    """Write a small dataset whose manifest is of version 1 and return its digest as version 1 computed it."""
    write_dataset(url, num_clips=12, shard_rows=5)
    path = Path(url) / MANIFEST
    content = json.loads(path.read_text())
    del content["settings_version"]
    video = {**VIDEO, "clip": {**VIDEO["clip"], "num_frames": 16, "size": 32}}
    content["config"] = {"digest": CONFIG_DIGEST, "work_digest": WORK_DIGEST, "seed": 0, "codec": "raw", "video": video}
    identity = {k: v for k, v in content.items() if k not in ("digest", "inputs", "created", "git_commit")}
    canonical = json.dumps(identity, indent=2, sort_keys=True) + "\n"
    content["digest"] = hashlib.sha256(canonical.encode()).hexdigest()
    path.write_text(json.dumps(content))
    return content["digest"]


def write_run_v1(url: str, dataset_digest: str) -> str:
    """Write the record of a run that version 1 started and return its key."""
    key = "gan-0123456789abcdef0123456789abcdef"
    (Path(url) / "run.json").write_text(json.dumps({"key": key, "settings": RUN | {"data": dataset_digest}}))
    return key


def write_checkpoint_v1(folder: Path, networks: dict[str, nn.Module], dataset_url: str, dataset_digest: str) -> None:
    """Write a checkpoint (step 3) whose state.json is of version 1."""
    state = {
        "step": 3,
        "clips_seen": 12,
        "model": MODEL,
        "config": {**RUN, "pieces": 1, "keep_best": ""},
        "dataset_url": dataset_url,
        "dataset_digest": dataset_digest,
        "mlflow_run_id": "0",
        "metrics": {},
    }
    write_checkpoint_files(folder, state, networks)


def write_model_v1(folder: Path) -> None:
    """Write the model.json of an exported model of version 1."""
    (folder / "model.json").write_text(json.dumps({"model": MODEL}, indent=2) + "\n")
