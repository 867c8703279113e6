"""Sets of indexes as spans: a log's records are many, and what is said of them lies together."""

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_FORM = re.compile(r"([0-9]{1,16})(?:-([0-9]{1,16}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Spans:
    """Which indexes: `pairs` are (first, end), in order, none empty, none touching the next."""

    pairs: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, pairs: Iterable[tuple[int, int]]) -> "Spans":
        """From any (first, end), in any order, overlapping or not."""
        kept: list[tuple[int, int]] = []
        for first, end in sorted(pairs):
            if first >= end:
                continue
            if kept and first <= kept[-1][1]:
                kept[-1] = kept[-1][0], max(end, kept[-1][1])
            else:
                kept.append((first, end))
        return cls(tuple(kept))

    @classmethod
    def parse(cls, text: str) -> "Spans":
        """From ``0,5-9`` (both ends are in it), as `str` writes it. Raises `ValueError`."""
        pairs = []
        for part in text.split(",") if text else ():
            form = _FORM.fullmatch(part)
            if form is None:
                raise ValueError("not indexes, such as 0,5-9")
            pairs.append((int(form[1]), int(form[2] or form[1]) + 1))
        spans = cls.of(pairs)
        if str(spans) != text:
            raise ValueError("indexes out of order")
        return spans

    def __str__(self) -> str:
        return ",".join(
            str(first) if end == first + 1 else f"{first}-{end - 1}" for first, end in self.pairs
        )

    def __len__(self) -> int:
        return sum(end - first for first, end in self.pairs)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self.pairs)

    def __contains__(self, index: object) -> bool:
        assert isinstance(index, int)
        place = bisect_right(self.pairs, index, key=lambda pair: pair[0])
        return place > 0 and index < self.pairs[place - 1][1]

    def __or__(self, other: "Spans") -> "Spans":
        return Spans.of((*self.pairs, *other.pairs))

    def __sub__(self, other: "Spans") -> "Spans":
        left: list[tuple[int, int]] = []
        taken = iter(other.pairs)
        begin, stop = next(taken, (0, 0))
        for first, end in self.pairs:
            while first < end:
                while stop and stop <= first:
                    begin, stop = next(taken, (0, 0))
                if not stop or begin >= end:
                    left.append((first, end))
                    break
                if begin > first:
                    left.append((first, begin))
                first = stop  # noqa: PLW2901 - what is before is done
        return Spans(tuple(left))

    @property
    def end(self) -> int:
        """The first index after all of them."""
        return self.pairs[-1][1] if self.pairs else 0

    def within(self, first: int, end: int) -> "Spans":
        """Those from `first` up to `end`."""
        cut = ((max(first, a), min(end, b)) for a, b in self.pairs)
        return Spans(tuple(pair for pair in cut if pair[0] < pair[1]))

    def parts(self, longest: int) -> Iterator["Spans"]:
        """The same in parts, in order, none of which is longer than `longest` as text (where a
        span alone is not)."""
        part: list[tuple[int, int]] = []
        length = 0
        for pair in self.pairs:
            size = len(str(Spans((pair,)))) + 1
            if part and length + size > longest:
                yield Spans(tuple(part))
                part, length = [], 0
            part.append(pair)
            length += size
        if part:
            yield Spans(tuple(part))
