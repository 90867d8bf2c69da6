"""The order in which all ranks together read a shard set: of seed, stages and epochs alone.

Stages come in sequence. What was built for a stage is permuted, in each epoch anew. A mixture is
drawn from what was built for other stages, by source: so weights change and no shard does.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

_MIXTURE = 0x313D  # stream of random numbers of mixtures


@dataclass(frozen=True)
class BuiltReads:
    """A stage of a run that reads what was built for it.

    stage: of the shards. limit: reads of it, at most (None: all of its epochs).
    """

    stage: int
    limit: int | None = None


@dataclass(frozen=True)
class MixtureReads:
    """A stage of a run that reads what was built for others.

    pools: sample numbers of each source, by its name. weights: of the sources. samples: how many
    are read. A source's samples are read once each before one is read again; those that the stages
    before have read least come first.
    """

    pools: Mapping[str, np.ndarray]
    weights: Mapping[str, float]
    samples: int


StageReads = BuiltReads | MixtureReads


class GlobalOrder:
    """The order in which all ranks together read: place in it -> sample.

    parts: how many samples of each stage of the shards came when; each part is permuted by itself,
    after those before it. epochs: of each, which is read `epochs` times, each time in another
    order. reads: what each stage of the run reads (None: each what was built for it).
    """

    def __init__(
        self,
        parts: Sequence[Sequence[int]],
        epochs: Sequence[int],
        seed: int,
        reads: Sequence[StageReads] | None = None,
    ):
        self._parts, self._epochs, self._seed = parts, epochs, seed
        self._reads = reads or [BuiltReads(stage) for stage in range(len(parts))]
        self._samples = tuple(map(sum, parts))
        self._firsts = (0, *accumulate(self._samples))
        self._ends = tuple(accumulate(map(self._count, self._reads)))
        self._now, self._order = (-1, -1), np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, place: int) -> int:
        stage = bisect_right(self._ends, place)
        if stage == len(self._ends):
            raise IndexError(place)
        begin = self._ends[stage - 1] if stage else 0
        epoch, at = divmod(place - begin, self._epoch_samples(stage))
        if (stage, epoch) != self._now:
            self._now, self._order = (stage, epoch), self._ordered(stage, epoch)
        return int(self._order[at])

    def _count(self, reads: StageReads) -> int:
        """How many samples a stage of the run reads."""
        if isinstance(reads, MixtureReads):
            return reads.samples
        count = self._samples[reads.stage] * self._epochs[reads.stage]
        return count if reads.limit is None else min(count, reads.limit)

    def _epoch_samples(self, stage: int) -> int:
        reads = self._reads[stage]
        return reads.samples if isinstance(reads, MixtureReads) else self._samples[reads.stage]

    def _ordered(self, stage: int, epoch: int) -> np.ndarray:
        reads = self._reads[stage]
        if isinstance(reads, MixtureReads):
            return self._drawn(stage, reads)
        first, found = self._firsts[reads.stage], []
        for part, samples in enumerate(self._parts[reads.stage]):
            rng = np.random.default_rng((self._seed, stage, epoch, *[part] * bool(part)))
            found.append(first + rng.permutation(samples))
            first += samples
        return np.concatenate(found)

    def _drawn(self, stage: int, mixture: MixtureReads) -> np.ndarray:
        """The samples of a mixture. A longer one begins with the same."""
        before = self._times_read(stage)
        shares = np.array([mixture.weights[name] for name in mixture.pools])
        rng = np.random.default_rng((self._seed, stage, _MIXTURE))
        sources = rng.choice(len(shares), mixture.samples, p=shares / shares.sum())
        order = np.empty(mixture.samples, dtype=np.int64)
        for source, pool in enumerate(mixture.pools.values()):
            own = np.flatnonzero(sources == source)
            rounds = []
            for number in range(-(-len(own) // len(pool))):
                rng = np.random.default_rng((self._seed, stage, _MIXTURE, source, number))
                permuted = rng.permutation(pool)
                rounds.append(permuted[np.argsort(before[permuted], kind="stable")])
            if rounds:
                order[own] = np.concatenate(rounds)[: len(own)]
        return order

    def _times_read(self, end: int) -> np.ndarray:
        """[samples of the shards] how often the stages before `end` read each."""
        times = np.zeros(self._firsts[-1], dtype=np.int32)
        for stage in range(end):
            count, size = self._count(self._reads[stage]), self._epoch_samples(stage)
            for epoch in range(-(-count // size)):
                order = self._ordered(stage, epoch)[: count - epoch * size]
                times += np.bincount(order, minlength=len(times)).astype(np.int32)
        return times
