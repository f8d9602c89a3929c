"""Write a sources manifest: one row a video, from a folder or the UCF101 layout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cluster import storage
from cluster.sources import Source, list_folder, write_sources
from jobs import command
from vgan.config import check_choice, option
from vgan.errors import BadInput
from vgan.transfer.ucf101 import read_split

ABOUT = """List videos into a sources manifest, which `jobs.prepare` reads.

  python -m jobs.acquire folder=/videos out=out/sources.parquet
  python -m jobs.acquire folder=s3://bucket/videos out=s3://bucket/sources.parquet
  python -m jobs.acquire ucf101=/data/ucf101 split=1 out=out/ucf101.parquet
"""


@dataclass(frozen=True, kw_only=True)
class AcquireConfig:
    """Exactly one origin, and where the manifest goes."""

    folder: str = option("", "url of a folder; every video below it")
    ucf101: str = option("", "folder that holds UCF-101/ and ucfTrainTestlist/")
    split: int = option(1, "official UCF101 split, 1 to 3")
    side: str = option("", "train or test: that side of the split only")
    limit: int = option(0, "take the first videos only; 0 takes all")
    out: str = option("out/sources.parquet", "url of the manifest")

    def __post_init__(self) -> None:
        check_choice("side", self.side, ("", "train", "test"))
        if self.limit < 0:
            raise ValueError(f"limit must be at least 0, got {self.limit}")


def main(config: AcquireConfig) -> None:
    """List the videos and write the manifest."""
    if bool(config.folder) == bool(config.ucf101):
        raise BadInput("give exactly one of folder= and ucf101=")
    sources = _from_folder(config) if config.folder else _from_ucf101(config)
    sources = sources[: config.limit or None]
    if not sources:
        raise BadInput(f"no video found in {config.folder or config.ucf101!r}")
    out = storage.absolute(config.out)
    storage.make_folder(out.rpartition("/")[0])
    write_sources(sources, out)
    print(f"{len(sources)} videos, {sum(s.bytes or 0 for s in sources) / 1e6:.1f} MB -> {out}")


def _from_folder(config: AcquireConfig) -> list[Source]:
    sources, others = list_folder(storage.absolute(config.folder))
    if others:
        print(f"{others} files passed over: no video suffix, or a name that is not UTF-8")
    return sources


def _from_ucf101(config: AcquireConfig) -> list[Source]:
    split = read_split(Path(config.ucf101).expanduser().absolute(), config.split)
    if split.missing:
        print(f"{len(split.missing)} of {len(split.missing) + len(split.videos)} listed videos are not on disk")
    return [
        Source(
            uri=str(v.path),
            source_id=f"{v.path.parent.name}/{v.path.name}",
            bytes=v.path.stat().st_size,
            label=v.class_name,
            split=v.side,
        )
        for v in split.videos
        if config.side in ("", v.side)
    ]


if __name__ == "__main__":
    raise SystemExit(command.run(main, AcquireConfig, ABOUT))
