"""Job that lists videos into a sources manifest."""

from __future__ import annotations

from cluster.sources.config import AcquireConfig
from jobs import cli

ABOUT = """List videos into a sources manifest, the input of `jobs.prepare`. Give exactly one origin.

  python -m jobs.acquire folder=/videos out=out/sources.parquet
  python -m jobs.acquire folder=s3://bucket/videos/*.mp4 out=s3://bucket/sources.parquet
  python -m jobs.acquire urls=list.csv licenses=[by,cc0] out=out/sources.parquet
  python -m jobs.acquire flickr.tags=[beach,golf] flickr.words=words.txt licenses=[by,cc0] out=out/flickr.parquet
  python -m jobs.acquire yfcc.metadata=/y/yfcc100m_dataset.bz2 yfcc.hashes=/y/yfcc100m_hash.bz2 licenses=[by]
  python -m jobs.acquire tinyvideo=/tinyvideo/golf.txt out=out/golf.parquet
  python -m jobs.acquire ucf101=/data/ucf101 split=1 out=out/ucf101.parquet

Flickr needs an API key in the environment variable FLICKR_API_KEY. After an interruption, run it again to resume.
"""


def main(config: AcquireConfig) -> None:
    """List videos into a sources manifest."""
    from cluster.sources.acquire import acquire  # heavy, after the arguments are checked

    acquire(config)


if __name__ == "__main__":
    raise SystemExit(cli.run(main, AcquireConfig, ABOUT))
