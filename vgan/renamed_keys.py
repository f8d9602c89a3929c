"""Names that configuration keys had in settings version 1, and their present names.

Datasets, runs and checkpoints written with the old names are read with `upgrade`. Digests of settings are computed over
the old names (`downgrade`), so that work committed before the change, its clip ids and its shards stay valid.
"""

from __future__ import annotations

from typing import Any

SETTINGS_VERSION = 2  # of the keys in manifest.json, run.json and state.json; files without a version have 1

SECTIONS = {"gates": "filters", "screen": "prescreen"}
KEYS = {
    # training
    "pieces": "gradient_accumulation_steps",
    "max_norm": "max_grad_norm",
    "compiled": "compile",
    "resize_every_s": "elastic_check_interval_s",
    "hang_timeout_s": "step_timeout_s",
    "checkpoints_kept": "keep_latest_k",
    "keep_best": "best_metric",
    "scenes": "scene_categories",
    "scene_threshold": "min_scene_probability",
    "model.kind": "model.architecture",
    "model.base": "model.base_width",
    "model.future": "model.future_encoder",
    "objective.flip": "objective.horizontal_flip",
    "objective.match_weight": "objective.nearest_match_weight",
    "objective.frame_loss": "objective.first_frame_loss",
    "objective.frame_weight": "objective.first_frame_weight",
    "objective.learning_rate_ratio": "objective.discriminator_lr_ratio",
    # from video to clips
    "decode.size": "decode.short_side",
    "decode.time_factor": "decode.timeout_per_video_second",
    "shots.ratio": "shots.difference_ratio",
    "shots.history": "shots.history_frames",
    "shots.max_likeness": "shots.max_block_similarity",
    "screen.max_frozen": "prescreen.max_frozen_fraction",
    "stabilize.ratio": "stabilize.lowe_ratio",
    "stabilize.num_features": "stabilize.num_keypoints",
    "gates.off": "filters.disabled",
    "gates.max_scale_step": "filters.max_zoom_step",
    "gates.max_photometric": "filters.max_photometric_error",
    "gates.max_filled": "filters.max_filled_fraction",
    "gates.max_per_source": "filters.max_clips_per_video",
    "gates.duplicate_bits": "filters.max_duplicate_distance_bits",
    "scene.frames": "scene.frames_per_group",
    "scene.stretch_s": "scene.group_duration_s",
    "scene.keep": "scene.keep_categories",
    "scene.threshold": "scene.min_probability",
    # studies
    "plan.per_cell": "plan.trials_per_cell",
    "plan.per_rater": "plan.trials_per_rater",
    # fine-tuning
    "inits": "initializations",
    "others": "extra_checkpoints",
    "choose": "validation",
    "fold": "validation_fold",
    "test_clips": "clips_per_test_video",
    "allow_leak": "allow_test_leakage",
    "finetune.logistic_penalty": "finetune.l2_penalty",
}
# Keys of single jobs that nothing stored: named in the message about an unknown key.
JOB_KEYS = {
    "num": ("num_clips",),
    "frames": ("num_frames",),
    "repeats": ("bootstrap_samples",),
    "training": ("training_data",),
    "training_clips": ("max_training_clips",),
    "report": ("model_card",),
    "transfer": ("sweep_results",),
    "samples": ("sample_datasets",),
    "replace": ("overwrite",),
    "reason": ("retry",),
    "per_cell": ("trials_per_cell",),
    "per_rater": ("trials_per_rater",),
    "bad_share": ("max_error_rate",),
    "media": ("media_url",),
    "first": ("first_rater",),
    "db": ("database_url",),
    "measured": ("calibrate_from",),
    "rates": ("rates_file",),
    "side": ("subset",),
    "deleted": ("exclude",),
}


def new_name(key: str) -> str:
    """Return the present name of a dotted key; the key itself if it was not renamed."""
    section, dot, name = key.partition(".")
    return KEYS.get(key) or (JOB_KEYS[key][0] if key in JOB_KEYS else f"{SECTIONS.get(section, section)}{dot}{name}")


def upgrade(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings with present names, whatever version they were stored with.

    Args:
        settings: nested settings of any version.
        prefix: "model." for the settings of that section alone.
    """
    return {
        _rename(f"{prefix}{key}"): upgrade(value, f"{prefix}{key}.") if isinstance(value, dict) else value
        for key, value in settings.items()
    }


def downgrade(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings with the names of version 1; the inverse of `upgrade`."""
    return {
        _OLD_NAMES.get(f"{prefix}{key}", key).rpartition(".")[2]: downgrade(value, f"{prefix}{key}.")
        if isinstance(value, dict)
        else value
        for key, value in settings.items()
    }


def _rename(key: str) -> str:
    return (KEYS.get(key) or SECTIONS.get(key, key)).rpartition(".")[2]


_OLD_NAMES = {new: old for old, new in (KEYS | SECTIONS).items()}
