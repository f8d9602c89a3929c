"""Settings of a sources manifest, of the services that list videos, and of downloads."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime

from vgan.options import check_choice, option, section

REST = "https://api.flickr.com/services/rest/"
HOURLY = 3600  # API calls per hour and key


@dataclass(frozen=True, kw_only=True)
class FlickrConfig:
    """Flickr search; the API key comes from the environment variable FLICKR_API_KEY."""

    tags: list[str] = option(
        [], "tags to search, of which one must match; an entry ending in .txt: URL of a list, one tag per line"
    )
    words: list[str] = option(
        [], "texts to search in title, description or tags, of which one must match; lists as for tags"
    )
    since: str = option(
        "2008-04-01", "start of the upload period (UTC day, included); there were no videos before April 2008"
    )
    until: str = option(
        "", "end of the upload period (UTC day, excluded); empty: time of the first start of this command"
    )
    height: int = option(360, "minimum short side, pixels; the smallest such file is listed, else the largest")
    calls_per_hour: int = option(3500, "maximum API calls per hour; Flickr's limit is 3,600 per key")
    url: str = option(REST, "URL of the REST API")

    def __post_init__(self) -> None:
        if self.calls_per_hour < 1 or (self.url == REST and self.calls_per_hour > HOURLY):
            raise ValueError(f"flickr.calls_per_hour must be in 1..{HOURLY}, got {self.calls_per_hour}")
        if self.height < 1:
            raise ValueError(f"flickr.height must be at least 1, got {self.height}")
        if not self.url.startswith(("https://", "http://")):
            raise ValueError(f"flickr.url must begin with https:// or http://, got {self.url!r}")
        for name in ("since", "until"):
            unix_time_of_day(f"flickr.{name}", getattr(self, name) or "2008-04-01")


def unix_time_of_day(name: str, text: str) -> int:
    """Return the Unix time at which a day (YYYY-MM-DD) starts in UTC; raise ValueError for other texts."""
    try:
        day = date.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"{name} must be a day like 2012-05-31, got {text!r}") from error
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())


FILES = "https://multimedia-commons.s3-us-west-2.amazonaws.com/data/videos/mp4"


@dataclass(frozen=True, kw_only=True)
class YfccConfig:
    """YFCC100M metadata and the store of its videos."""

    metadata: str = option("", "URL of yfcc100m_dataset, tab-separated, .bz2 or plain")
    hashes: str = option("", "URL of yfcc100m_hash, id and media hash; needed if the metadata has no hashes")
    tags: list[str] = option([], "tags to select videos by, at least one of which must match; empty: all videos")
    files: str = option(FILES, "URL of the folder that stores the videos by hash")


@dataclass(frozen=True, kw_only=True)
class AcquireConfig:
    """Settings of a sources manifest: exactly one origin, selection of videos, URL of the output."""

    folder: str = option("", "URL of a folder, searched recursively, or a glob of videos", "common")
    urls: str = option(
        "", "URL of a list of video URLs: .txt with one per line; .csv or .parquet with a column uri", "common"
    )
    tinyvideo: str = option("", "URL of a list of the original dataset, e.g. golf.txt, with its strips unpacked")
    root: str = option("", "URL of the folder that the paths in tinyvideo= refer to; empty: the folder of the list")
    ucf101: str = option("", "folder with UCF-101/ and ucfTrainTestlist/", "common")
    split: int = option(1, "official UCF101 split, 1 to 3")
    subset: str = option("", "side of the split: train or test; empty: both")
    flickr: FlickrConfig = section(FlickrConfig, "Flickr search")
    yfcc: YfccConfig = section(YfccConfig, "YFCC100M metadata")
    licenses: list[str] = option(
        [], "accepted licenses: codes (by, by-sa, by-2.0, cc0, pdm), names or URLs, or any; empty: no filter", "common"
    )
    exclude: str = option("", "URL of a list of excluded videos, one id, URI or page per line; empty: none")
    limit: int = option(0, "maximum number of videos; 0: no limit", "common")
    out: str = option("out/sources.parquet", "URL of the manifest", "common")

    def __post_init__(self) -> None:
        check_choice("subset", self.subset, ("", "train", "test"))
        if self.limit < 0:
            raise ValueError(f"limit must be at least 0, got {self.limit}")


@dataclass(frozen=True, kw_only=True)
class FetchConfig:
    """Limits on the download of videos. They change no pixel, so a dataset's digests do not contain them."""

    attempts: int = option(3, "maximum attempts per video, with pauses of 2, 4, 8... s between them")
    # A stalled video costs a worker three times this: 96 s with the pauses, where the HTTP client's own limits took
    # 908 s.
    idle_s: float = option(30.0, "maximum time in which an HTTP server sends less than 1 kB per second, seconds")
    # max_gb in this time needs 5.6 MB per second.
    total_s: float = option(1800.0, "maximum time per video, all attempts and pauses included, seconds")
    # One hour at 22 Mbit per second.
    max_gb: float = option(10.0, "maximum size of a video's file, GB (reject reason too_large)")
    max_pause_s: float = option(
        120.0, "maximum pause that an HTTP host may request by Retry-After, seconds; a longer one rejects its videos"
    )
    private_addresses: bool = option(
        False, "permit http urls of hosts with private addresses; without it: reject reason private_address"
    )
    # With a tenth of the hosts dead, more than half of 200 downloads fail once in 1e47 windows.
    max_failed_share: float = option(
        0.5, "maximum share of failed downloads in the window, 0..1; above it the run ends and resumes; 1: no limit"
    )
    window: int = option(200, "number of latest downloads of which the share of failed ones is computed, 20 or more")

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"fetch.attempts must be at least 1, got {self.attempts}")
        for name in ("idle_s", "total_s", "max_gb"):
            if getattr(self, name) <= 0:
                raise ValueError(f"fetch.{name} must be above 0, got {getattr(self, name)}")
        if self.max_pause_s < 0:
            raise ValueError(f"fetch.max_pause_s must be at least 0, got {self.max_pause_s}")
        if not 0 < self.max_failed_share <= 1:
            raise ValueError(f"fetch.max_failed_share must be above 0 and at most 1, got {self.max_failed_share}")
        if self.window < MIN_WINDOW:
            raise ValueError(f"fetch.window must be at least {MIN_WINDOW}, got {self.window}")


MIN_WINDOW = 20  # downloads: of fewer, a share says little
DEFAULT_FETCH = FetchConfig()
OWN_URLS = FetchConfig(private_addresses=True)  # for urls that the user gives one by one
