"""Measured rates from a file."""

from __future__ import annotations

from dataclasses import asdict

from cluster.planning.config import MeasuredRates
from cluster.storage.files import exists, read_json
from vgan.errors import InputError


def read_rates(url: str) -> MeasuredRates:
    """Read rates from a JSON file; missing ones take the defaults.

    Raises:
        InputError: the file does not exist, is not JSON, has an unknown name, or lacks date or machine.
    """
    if not exists(url):
        raise InputError(f"no rates at {url!r}")
    try:
        values = read_json(url)
        if not isinstance(values, dict) or not {"date", "machine"} <= set(values):
            raise ValueError("rates must be an object with `date` and `machine`, the origin of the measurements")
        return MeasuredRates(**values)
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{url!r} does not hold rates: {error}; names are {', '.join(asdict(MeasuredRates()))}"
        ) from error
