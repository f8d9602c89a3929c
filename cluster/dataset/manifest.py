"""The manifest of a dataset: its shards, settings, counts and digests."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, fields
from typing import Any

import pyarrow as pa

from cluster.storage.files import exists, find_files, json_bytes, read_json, remove_files, remove_tree, write_json
from cluster.storage.urls import filesystem, join_url
from vgan.errors import InputError
from vgan.records import SCHEMA_VERSION, VIDEO_REVISION
from vgan.renamed_keys import SETTINGS_VERSION, downgrade, upgrade
from vgan.video.config import ClipSpec, VideoConfig

MANIFEST = "manifest.json"
REJECTS = "rejects.parquet"
SHARDS = "shards"  # folder with one folder per snapshot
REJECTS_SCHEMA = pa.schema(
    [
        pa.field("source_id", pa.string(), nullable=False),
        pa.field("source_uri", pa.string(), nullable=False),
        pa.field("start_s", pa.float64()),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string()),
    ]
)


def digest_settings(config: VideoConfig) -> dict[str, Any]:
    """Return the settings that identify a dataset, as stored in its manifest.

    Without a scene classifier, the scene settings are left out; with one, its path and GPU share are, because
    `scene.sha256` identifies it.
    """
    content = asdict(config)
    if not config.scene.sha256:
        del content["scene"]
    else:
        del content["scene"]["weights"], content["scene"]["gpus"]
    return content


def config_digest(config: VideoConfig) -> str:
    """Return 16 hex digits that change with any setting that changes the dataset made from the same videos."""
    return _digest(digest_settings(config))


def work_digest(config: VideoConfig) -> str:
    """Return 16 hex digits that change with any setting that requires decoding the same video again.

    The filters and the scene filter are excluded: they are applied to the stored scores. With `stabilize.keep_failed`
    the filters are included, because they are then also applied during decoding. The decoder's time and memory limits
    are excluded, so that a retry may raise them.
    """
    content = digest_settings(config)
    if not config.stabilize.keep_failed:
        del content["filters"]
    for limit in ("timeout_s", "timeout_per_video_second", "memory_gb"):
        del content["decode"][limit]
    for key in ("keep_categories", "min_probability") if "scene" in content else ():
        del content["scene"][key]
    return _digest(content)


def _digest(settings: dict[str, Any]) -> str:
    return hashlib.sha256(json_bytes([SCHEMA_VERSION, VIDEO_REVISION, downgrade(settings)])).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One file of the dataset."""

    path: str  # relative to the dataset's folder
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Description of a dataset. `digest` identifies its content: the same sources and settings give the same digest."""

    clip: ClipSpec
    config: dict[str, Any]
    counts: dict[str, Any]  # of sources, accepted, rejected, windows, clips, rejects by stage and reason
    shards: list[Shard]
    schema_version: int = SCHEMA_VERSION
    settings_version: int = SETTINGS_VERSION  # names of the keys in `config`; see vgan/renamed_keys.py
    digest: str = ""
    inputs: str = ""  # digest of sources, settings and deletion list: an equal one means nothing needs to be done
    created: str = ""
    git_commit: str = ""

    @property
    def video(self) -> VideoConfig:
        """Video settings the clips were made with."""
        stored = upgrade(self.config["video"])
        sections = {f.name: type(getattr(VideoConfig(), f.name)) for f in fields(VideoConfig)}
        return VideoConfig(**{name: section(**stored.get(name, {})) for name, section in sections.items()})

    @property
    def scenes(self) -> list[str]:
        """Scored scene categories; empty without scene scores."""
        return self.config.get("video", {}).get("scene", {}).get("categories", [])

    def content_digest(self) -> str:
        """Return the SHA-256 of the manifest's content, without `digest`, `inputs`, `created` and `git_commit`."""
        excluded = ("digest", "inputs", "created", "git_commit", "settings_version")
        content = {k: v for k, v in asdict(self).items() if k not in excluded}
        for shard in content["shards"]:  # the folder names the snapshot: equal shards may be in another one
            shard["path"] = SHARDS + "/" + shard["path"].rpartition("/")[2]
        if "video" in self.config:
            content["config"] = self.config | {"video": downgrade(self.config["video"])}
        return hashlib.sha256(json_bytes(content)).hexdigest()


def write_manifest(manifest: Manifest, url: str) -> None:
    """Write manifest.json into a dataset's folder atomically; a dataset is finished once it exists."""
    write_json(join_url(url, MANIFEST), asdict(manifest))


def new_snapshot(url: str, inputs: str) -> str:
    """Choose the folder for the shards of a dataset that is packed: named by its inputs, never that of the manifest.

    A killed packing that is repeated writes equal shards into the same folder.

    Args:
        url: url of the dataset's folder.
        inputs: digest of all inputs.

    Returns:
        Path relative to `url`.
    """
    name = f"{SHARDS}/{inputs}"
    path = join_url(url, MANIFEST)
    stored = read_json(path)["shards"] if exists(path) else []
    return f"{name}-again" if any(shard["path"].startswith(f"{name}/") for shard in stored) else name


def remove_old_snapshots(manifest: Manifest, url: str) -> None:
    """Remove all shards from a dataset's folder that its manifest does not list."""
    folder = join_url(url, SHARDS)
    root = filesystem(folder)[1].rstrip("/") + "/"
    stored = {path.removeprefix(root) for path in find_files(folder) or ()}
    listed = {shard.path.removeprefix(f"{SHARDS}/") for shard in manifest.shards}
    current = {path.rpartition("/")[0] for path in listed}
    for snapshot in {path.rpartition("/")[0] for path in stored - listed}:
        if snapshot in current or not snapshot:  # "": datasets of earlier versions have no snapshot folders
            names = [path.rpartition("/")[2] for path in stored - listed if path.rpartition("/")[0] == snapshot]
            remove_files(join_url(folder, snapshot), sorted(names))
        else:
            remove_tree(join_url(folder, snapshot))


def read_manifest(url: str) -> Manifest:
    """Read the manifest of the dataset at a folder's url.

    Raises:
        InputError: no manifest (unfinished or no dataset), or a manifest of another schema version.
    """
    path = join_url(url, MANIFEST)
    if not exists(path):
        raise InputError(
            f"no dataset at {url!r}: {MANIFEST} is missing; create or complete it with `python -m jobs.prepare`"
        )
    value = read_json(path)
    if value.get("schema_version") != SCHEMA_VERSION:
        version = value.get("schema_version")
        raise InputError(f"{path!r} has schema version {version}, this code reads {SCHEMA_VERSION}: prepare it again")
    value = {"settings_version": 1} | value
    return Manifest(**value | {"clip": ClipSpec(**value["clip"]), "shards": [Shard(**s) for s in value["shards"]]})
