"""Bytes of a rank, part by part, as DeepSpeed and the model's layers allocate them.

N weights of a rank, of which it owns N / n where ZeRO divides them over n data-parallel ranks
(Rajbhandari et al. 2020, section 5); what is held at once beside that is DeepSpeed 0.19's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from msa_train.model.config import ModelConfig
from msa_train.training.activations import Activations
from msa_train.training.planner.layout import Layout
from msa_train.training.planner.sizes import SampleSize
from msa_train.training.planner.weights import RankWeights

Phase = Literal["held", "backward", "update"]
Place = Literal["device", "host", "writer", "nvme"]
# Elements that are reduced at once, beside the gradients, at least those of the largest weight.
# DeepSpeed's ten times as many would be the whole of a small model once more.
BUCKET = 50_000_000
# DeepSpeed's own where a run does not say otherwise: elements of ZeRO-3 that are live at once, and
# that are gathered ahead; elements that stage 0 reduces at once.
LIVE, _AHEAD, _PLAIN_BUCKET = 10**9, 5 * 10**7, 5 * 10**8
# Bytes of a context and document: a router layer's score, and the two places that its gradient goes
# to; what the loss keeps of a layer's scores; the masks of positives and of no negatives.
_SCORE, _PLACES, _LOSS, _MASKS = 4, 16, 8, 2
_SCRATCH = 64 << 20  # of scores that are being computed, at most
# Of a context and document, while the gradient of a layer's scores goes to queries and keys: places
# without those that take no part, sorted, and what is summed by them (kernels' scatter_scores), in
# Triton and in torch.
_SCATTERED = {True: 33, False: 73}


@dataclass(frozen=True)
class RankBytes:
    """A part of what a rank allocates. phase: held all the time, or while gradients are computed,
    or while the weights change. place: memory of the device, of the host, of the host of the rank
    that writes a checkpoint's weights (one of those that have the same), or files."""

    what: str
    phase: Phase
    bytes: int
    place: Place = "device"


def reduce_bucket(numels: Iterable[int]) -> int:
    """Elements of DeepSpeed's reduce bucket for weights of these sizes."""
    return max(BUCKET, *numels)


def needed(found: Sequence[RankBytes], place: Place = "device") -> int:
    """Bytes that must be there: gradients and the update come after one another."""
    sums: Counter[str] = Counter()
    for each in found:
        if each.place == place:
            sums[each.phase] += each.bytes
    return sums["held"] + max(sums["backward"], sums["update"])


def rank_bytes(
    model: ModelConfig,
    layout: Layout,
    weights: RankWeights,
    sample: SampleSize,
    samples: int,
    itemsize: int,
    fused: bool = False,
    async_save: bool = False,
) -> tuple[RankBytes, ...]:
    """weights: of a rank of this layout. sample: a whole one, of which a rank has its share;
    samples: that it reads in a step. itemsize: 2 in bf16, 4 in fp32. fused: as in Activations.
    async_save: as in the settings."""
    states = _States(layout, weights, itemsize, samples)
    share = sample.share(layout.documents)
    passing = _Passing(model, layout, share, sample, itemsize, fused)
    found = [*states.held(), *states.backward(), *passing.kept(), *states.update()]
    if async_save:
        found += states.copied()
    return tuple(each for each in found if each.bytes)


@dataclass(frozen=True)
class _States:
    """Weights, gradients and the optimizer's states under a ZeRO stage."""

    layout: Layout
    weights: RankWeights
    itemsize: int
    samples: int

    @property
    def _own(self) -> int:
        """Elements whose states this rank has."""
        return -(-self.weights.learning // self.layout.owners)

    @property
    def _away(self) -> Place:
        """Where the optimizer's states are."""
        if self.layout.offload == "none":
            return "device"
        return "host" if self.layout.files is None else "nvme"

    @property
    def _bucket(self) -> int:
        """Bytes of the reduce bucket."""
        return reduce_bucket([self.weights.largest]) * self.itemsize

    @property
    def _reduced(self) -> int:
        """Bytes of what is copied out of the bucket to be reduced: what there is, at most all."""
        return min(self._bucket, self.weights.learning * self.itemsize)

    @property
    def _often(self) -> bool:
        """Whether gradients of several backward passes are added up."""
        layout = self.layout
        return self.samples > 1 or layout.cache is not None or layout.documents > 1

    def held(self) -> list[RankBytes]:
        layout, size, place = self.layout, self.itemsize, self._away
        memory: Place = "device" if place == "device" else "host"
        rows, weights = [], self.weights.all
        if layout.zero == 3:
            weights = -(-self.weights.all // layout.data)
            rows = [
                RankBytes("weights that stay whole", "held", self.weights.whole * size),
                RankBytes("gradients, own", "held", self._own * size, memory),
                RankBytes("reduce bucket", "held", self._bucket),
            ]
        if layout.files is not None:
            longest = min(layout.files.elements, round(self._own * self.weights.largest_group))
            buffers = layout.files.count * longest * 4
            rows.append(RankBytes("buffers of files", "held", buffers, "host"))
        away = layout.zero == 3 and layout.offload == "parameters"
        first = RankBytes("weights", "held", weights * size, "host" if away else "device")
        masters = self._own * 4 if layout.zero else 0
        moments = RankBytes("optimizer: two moments", "held", self._own * 8, place)
        return [first, *rows, RankBytes("master weights", "held", masters, place), moments]

    def copied(self) -> list[RankBytes]:
        """What a checkpoint's copy holds until it is written: what the rank owns, and where the
        weights are written those by name, in full precision, and all that ranks have alike."""
        weights, *_, masters, moments = self.held()
        owned, alike = masters.bytes + moments.bytes, weights.bytes
        if self.layout.zero == 0:
            owned, alike = 0, alike + owned
        if self.layout.zero == 3:
            owned, alike = owned + alike, 0
        named = alike + self.weights.all * 4
        return [
            RankBytes("copy of a checkpoint", "held", owned, "host"),
            RankBytes("copy of a checkpoint's weights", "held", named, "writer"),
        ]

    def backward(self) -> list[RankBytes]:
        stage, size, learning = self.layout.zero, self.itemsize, self.weights.learning
        if stage < 2:
            # A first backward pass frees activations about as fast as it makes gradients.
            grown = learning if self._often else self.weights.head
            rows = [RankBytes("gradients", "backward", grown * size)]
            return rows + [RankBytes("reduce bucket", "backward", self._bucket)] * bool(stage)
        if stage == 2:
            times = 1 + self._often
            own = RankBytes("gradients, own", "backward", times * self._own * size)
            kept = 0 if self.layout.offload != "none" else own.bytes
            return [
                RankBytes(own.what, own.phase, kept),
                RankBytes("reduce bucket, and its copy", "backward", self._bucket + self._reduced),
            ]
        apart = self.weights.all - self.weights.whole
        live, ahead = min(LIVE, apart) * size, min(_AHEAD, apart) * size
        return [
            RankBytes("weights gathered", "backward", live),
            RankBytes("weights gathered ahead", "backward", ahead),
        ]

    def update(self) -> list[RankBytes]:
        stage, size, own = self.layout.zero, self.itemsize, self._own
        if self.layout.offload != "none":
            return self._sent_away()
        if stage == 0:
            copy = min(self.weights.learning, _PLAIN_BUCKET) * size
            whole = RankBytes("gradients", "update", self.weights.learning * size)
            return [whole, RankBytes("gradients being reduced", "update", copy)]
        group = round(own * self.weights.largest_group)
        flat = RankBytes("gradients made one", "update", group * size)
        wide = RankBytes("gradients in float32", "update", group * 4 if size < 4 else 0)
        if stage == 3:
            return [flat, wide]
        parts = RankBytes("gradients, own", "update", own * size)
        if stage == 2:
            return [parts, flat, wide]
        reducing = self.weights.learning * size + self._bucket + self._reduced
        if reducing > flat.bytes + wide.bytes:
            return [RankBytes("gradients, and being reduced", "update", reducing), parts]
        return [parts, flat, wide]

    def _sent_away(self) -> list[RankBytes]:
        """Gradients of an offloaded optimizer, and what DeepSpeed copies through."""
        stage, size, own = self.layout.zero, self.itemsize, self._own
        rows = [RankBytes("gradients in float32", "held", own * 4, self._away)]
        if self.layout.files is not None:
            rows.append(RankBytes("gradients on the way to files", "update", own * 4))
        if stage == 2 and self._often:
            rows.append(RankBytes("gradients that are added up", "held", own * size, "host"))
        if stage < 3:
            gradient = "held", self.weights.largest * size
            rows += [
                RankBytes("weights on the way back", "held", own * size, "host"),
                RankBytes("largest gradient, on its way", *gradient, "host"),
                RankBytes("largest gradient, on its way", *gradient),
            ]
        return rows


@dataclass(frozen=True)
class _Passing:
    """What the streams keep for the backward pass. own: the rank's share of a sample, whose bank
    is that of `sample`."""

    model: ModelConfig
    layout: Layout
    own: SampleSize
    sample: SampleSize
    itemsize: int
    fused: bool

    def kept(self) -> list[RankBytes]:
        layout, own, model = self.layout, self.own, self.model
        kept = Activations(model, self.itemsize, self.fused, layout.tensor, layout.sequence)
        tokens = own.document_tokens
        passes = layout.passes(tokens)
        documents = min(tokens, layout.cache or tokens)
        pooled, pairs = self._pooled(passes.groups > 0), own.contexts * self.sample.documents
        of_documents = ("activations of documents", kept.kept(layout.recompute, documents))
        rows = [
            ("activations of contexts", kept.kept(layout.recompute, 0, own.context_tokens)),
            ("pooled states and their gradients", pooled),
            ("router scores", pairs * self._pair),
            ("router scores being computed", self._computed),
            ("gradient of a layer's router scores", pairs * _SCATTERED[self.fused]),
            ("logits", self._logits()),
        ]
        if passes.twice:  # contexts are done before the documents are encoded once more
            then = [of_documents, ("gradients of pooled states", pooled // 2)]
            rows = max(rows, then, key=lambda each: sum(size for _, size in each))
        else:
            rows.insert(0, of_documents)
        if layout.sequence:  # in one buffer, which all products share
            stream = documents + (0 if passes.groups else own.context_tokens)
            rows.append(("tokens of all ranks", stream * model.hidden * self.itemsize))
        return [RankBytes(what, "backward", size) for what, size in rows]

    @property
    def _chunk(self) -> int:
        return self.model.router.chunk_size

    @property
    def _pair(self) -> int:
        """Bytes of a context and a document; places are there for a layer at a time, where they
        are recomputed."""
        routers, losses = len(self.model.router_layers), len(self.model.loss_layers)
        placed = routers if self.layout.recompute == "none" else 1
        return _SCORE * routers + _PLACES * placed + _LOSS * losses + _MASKS

    @property
    def _computed(self) -> int:
        """Nothing under ZeRO-1 and 2, whose larger reduce bucket is not there yet at that time."""
        if self.layout.zero in (1, 2):
            return 0
        return min(_SCRATCH, 3 * 4 * self.own.query_tokens * self.sample.chunks(self._chunk))

    def _pooled(self, apart: bool) -> int:
        """Of the whole bank on every rank that shares it, or of its own documents. apart: its
        documents are not encoded in one pass with the contexts."""
        chunks = self.sample.chunks(self._chunk) * self._chunk
        kept = Activations(self.model, self.itemsize, tensor=self.layout.tensor)
        held = kept.pooled(chunks) // (self.layout.documents if self.layout.sharded else 1)
        # In one pass gradients are there for a layer at a time.
        return held if apart else held // 2

    def _logits(self) -> int:
        """Of tokens that are written: narrow, in float32, and their probabilities."""
        if self.fused and self.layout.tensor == 1:
            return self.model.vocab_size * self.model.hidden * 4  # the head's gradient alone
        vocabulary = self.model.vocab_size // self.layout.tensor
        return self.own.labels * vocabulary * (self.itemsize * (self.itemsize < 4) + 4 + 4)
