"""What a training step keeps for its backward pass, and what keeping less costs.

An estimate from the model's shape: which tensors the operations of a layer save, in the order in
which model/megatron.py calls them. Weights, gradients and optimizer state are not in it.
"""

from __future__ import annotations

from dataclasses import dataclass

from msa_train.config import Config
from msa_train.hardware import gb
from msa_train.model.config import ModelConfig, Recompute


@dataclass(frozen=True)
class Activations:
    """Bytes that a model keeps per token.

    itemsize: bytes of a number: 2 in bf16, 4 in fp32. fused: with Liger's norm and gated product;
    without them a norm keeps its input in float32, and silu(gate) is kept beside its product.
    tensor: tensor-parallel ranks, each of which keeps its heads and its part of the feed-forward
    layer, and all of the states between, or (sequence) those of its part of the tokens.
    """

    model: ModelConfig
    itemsize: int = 2
    fused: bool = False
    tensor: int = 1
    sequence: bool = False

    @property
    def _split(self) -> int:
        """Ranks that the states between are divided by."""
        return self.tensor if self.sequence else 1

    @property
    def _norm(self) -> int:
        """Input and output of a norm."""
        each = self.itemsize + (self.itemsize if self.fused else 4)
        return self.model.hidden * each // self._split

    @property
    def attention(self) -> int:
        """Of a layer's norm, projections and attention.

        Queries as projected, copied, rotated, attended and joined; keys projected and rotated;
        values. In float32: sums of the softmax, and lengths of heads.
        """
        model = self.model
        queries, keys = model.sizes["queries"], model.sizes["keys"]
        wide = 4 * (2 * model.heads + model.kv_heads)
        return self._norm + (self.itemsize * (5 * queries + 3 * keys) + wide) // self.tensor

    @property
    def feed_forward(self) -> int:
        """Of a layer's second norm, gate, up and their product."""
        kept = self.itemsize * self.model.ffn * (3 if self.fused else 4)
        return self._norm + kept // self.tensor

    def kept(self, recompute: Recompute, documents: int, contexts: int = 0) -> int:
        """Bytes of a pass over so many tokens, at its largest: what is recomputed is there for one
        layer at a time."""
        state = self.model.hidden * self.itemsize // self._split
        attention, feed_forward, working = {
            "none": (self.attention, self.feed_forward, 0),
            "attention": (state, self.feed_forward, self.attention),
            "layer": (state, 0, self.attention + self.feed_forward),
        }[recompute]
        # Behind the last router layer's attention nothing of a document is needed.
        last = self.model.last_router_layer
        of_document = last * (attention + feed_forward) + attention
        of_context = self.model.layers * (attention + feed_forward)
        return documents * of_document + contexts * of_context + (documents + contexts) * working

    def pooled(self, documents: int) -> int:
        """Bytes of a bank's pooled states and their gradients, which the gradient cache keeps; a
        tensor-parallel rank has its heads of keys and values, and all of the router keys."""
        model, chunks = self.model, -(-documents // self.model.router.chunk_size)
        widths = 2 * model.sizes["keys"] * len(model.reading_layers) // self.tensor
        keys = model.sizes["router_keys"] if model.router.decouple else model.sizes["keys"]
        keys *= len(model.router_layers)
        return 2 * chunks * (self.itemsize * widths + 4 * keys)


def document_cost(model: ModelConfig, recompute: Recompute, cached: bool) -> float:
    """FLOPs of a step per document token and weight (attention's own products left out).

    6 without either: 2 forward, 4 backward. Recomputation is another forward of its part, the
    gradient cache (cached) a whole one.
    """
    attention = 2 * model.hidden * (model.sizes["queries"] + model.sizes["keys"])
    share = {
        "none": 0.0,
        "attention": attention / (attention + 3 * model.hidden * model.ffn),
        "layer": 1.0,
    }
    return 6 + 2 * share[recompute] + 2 * cached


def advice(config: Config, fused: bool = False) -> str | None:
    """Which of recomputation and gradient cache to take, where a run has both and pays for both."""
    training, model = config.training, config.model
    recompute, group = training.recompute, training.gradient_cache_tokens
    if recompute == "none" or group is None:
        return None
    bank = max((stage.data.memory_tokens or 0 for stage in config.stages), default=0)
    bank = bank or 4 * group * training.document_parallel
    own = -(-bank // training.document_parallel)  # that a rank encodes
    if own <= group:  # one group is the plain step
        return None
    kept = Activations(model, 2 if training.precision == "bf16" else 4, fused)
    pooled = kept.pooled(own if training.pooled_states == "sharded" else bank)
    alone = kept.kept(recompute, own)
    grouped = kept.kept("none", group) + pooled
    both = kept.kept(recompute, group) + pooled
    take = (
        "recompute alone (gradient_cache_tokens null)"
        if alone <= grouped
        else "the gradient cache alone (recompute none)"
    )
    costs = (
        document_cost(model, *each)
        for each in ((recompute, True), (recompute, False), ("none", True))
    )
    return (
        "training.recompute is {} and training.gradient_cache_tokens {:,}: a step costs "
        "{:.1f} FLOPs per document token and weight, with recompute alone {:.1f}, with the cache "
        "alone {:.1f}, with neither 6. A bank of {:,} tokens keeps an estimated {} of activations "
        "on a rank with recompute alone, {} with the cache alone, {} with both: where it fits, "
        "take {}"
    ).format(recompute, group, *costs, bank, *map(gb, (alone, grouped, both)), take)
