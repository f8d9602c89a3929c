"""Lazily materialized sequences: rows stored as columns become objects on access, so that millions fit in memory."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import TypeVar, overload

T = TypeVar("T")
BLOCK = 1024  # rows per block of objects while iterating


class LazyRows(Sequence[T]):
    """Sequence whose objects are created from columns on access; equal to any sequence of equal objects."""

    @abstractmethod
    def block(self, start: int, end: int) -> list[T]:
        """Create the objects of rows start..end, end excluded."""

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        positions = range(len(self))[index]
        if isinstance(positions, int):
            return self.block(positions, positions + 1)[0]
        if positions.step == 1:
            return self.block(positions.start, max(positions.start, positions.stop))
        return [self[position] for position in positions]

    def __iter__(self) -> Iterator[T]:
        for start in range(0, len(self), BLOCK):
            yield from self.block(start, min(start + BLOCK, len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(self) != len(other):
            return False
        return all(one == another for one, another in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]
