"""Rows kept as columns: a row becomes an object when it is looked at, so that millions take little memory."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import TypeVar, overload

T = TypeVar("T")
BLOCK = 1024  # rows that are objects at a time


class Rows(Sequence[T]):
    """A sequence whose objects are made from columns on demand. Equal to any sequence of equal objects."""

    @abstractmethod
    def block(self, start: int, end: int) -> list[T]:
        """The objects of rows start..end, end excluded."""

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        places = range(len(self))[index]
        if isinstance(places, int):
            return self.block(places, places + 1)[0]
        if places.step == 1:
            return self.block(places.start, max(places.start, places.stop))
        return [self[place] for place in places]

    def __iter__(self) -> Iterator[T]:
        for start in range(0, len(self), BLOCK):
            yield from self.block(start, min(start + BLOCK, len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(self) != len(other):
            return False
        return all(one == another for one, another in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]
