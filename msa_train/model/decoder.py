"""The serving module: plain torch under the published weight names, the same mathematics.

No Megatron, no DeepSpeed. `forward` runs a whole two-stream batch (tests, conformance); `encode`,
`prefill` and `decode` are its parts when the memory lies in a bank.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from msa_train.errors import CheckpointError
from msa_train.model.attention import (
    Gate,
    HeadGroup,
    Pooled,
    Projections,
    Router,
    SelectedChunks,
    context_with_memory,
    pool_documents,
    router_layer,
    router_query,
    self_attention,
    self_attention_layer,
)
from msa_train.model.batch import MemoryBatch, StreamLayout, positions_within, query_rows
from msa_train.model.config import ModelConfig, RouterConfig
from msa_train.model.kv_cache import KVCache, Prefill, Window
from msa_train.model.ops import RMSNorm, rotary_tables, rotate_heads, swiglu
from msa_train.model.router import Routing, route
from msa_train.model.weights import weight_shapes

# The published code keeps the router loss's temperature (not trained) among the weights.
_NOT_WEIGHTS = {"temperature", "model.temperature"}


@dataclass
class Output:
    """A forward pass over a batch: final states after the last norm, and what was routed."""

    hidden: Tensor  # [Na, d]
    doc_hidden: Tensor | None  # [Nd, d], when the batch asks for it
    routings: dict[int, Routing]
    pooled: dict[int, Pooled]


class Memory(Protocol):
    """Where the contexts of a router layer find their documents."""

    def search(self, layer: int, query: Tensor, query_cu: Tensor) -> tuple[Routing, Tensor, Tensor]:
        """For query vectors [Nq, V] of m contexts: routing, pooled K and V [C, G, D] its
        chunk_index points into."""


class PooledMemory:
    """The plainest Memory: pooled states as one model's pass left them, chunk_cu [n+1]."""

    def __init__(self, pooled: Mapping[int, Pooled], chunk_cu: Tensor, router: RouterConfig):
        self._pooled, self._chunk_cu, self._router = pooled, chunk_cu, router

    def search(self, layer: int, query: Tensor, query_cu: Tensor) -> tuple[Routing, Tensor, Tensor]:
        pooled = self._pooled[layer]
        everything = query_cu.new_tensor([0, len(self._chunk_cu) - 1])
        bank = query_cu.new_zeros(len(query_cu) - 1), everything
        routing = route(query, query_cu, pooled.key, self._chunk_cu, *bank, self._router)
        chunks, place = torch.unique(routing.chunk_index, return_inverse=True)
        return replace(routing, chunk_index=place), pooled.k[chunks], pooled.v[chunks]


# What a layer's tokens attended to: (number of the layer, normed states, their projections).
Attend = Callable[[int, Tensor, Projections], Tensor | None]


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        d, wide, narrow = (config.sizes[name] for name in ("hidden", "queries", "keys"))
        self.head_dim = config.head_dim
        biased = config.shape.qkv_bias
        self.q_proj = nn.Linear(d, wide, bias=biased)
        self.k_proj = nn.Linear(d, narrow, bias=biased)
        self.v_proj = nn.Linear(d, narrow, bias=biased)
        self.o_proj = nn.Linear(wide, d, bias=False)
        self.norm_eps, self.norms_heads = config.norm_eps, config.shape.qk_norm
        if self.norms_heads:
            self.q_norm = RMSNorm(config.head_dim, config.norm_eps)
            self.k_norm = RMSNorm(config.head_dim, config.norm_eps)
        self.routes, self.reads = layer in config.router_layers, layer in config.reading_layers
        self.decoupled = self.routes and config.router.decouple
        if self.decoupled:  # Sequential: the published names end in `.0.weight`
            sizes = config.sizes["router_queries"], config.sizes["router_keys"]
            self.router_q_proj, self.router_k_proj = (
                nn.Sequential(nn.Linear(d, size, bias=False)) for size in sizes
            )
        if self.reads and config.router.gate != "none":
            self.router_gate = nn.Parameter(torch.zeros(1))
            self.router_threshold = nn.Parameter(torch.zeros(1))

    def project(self, h: Tensor, cos: Tensor, sin: Tensor) -> Projections:
        """Normed states [N, d] -> q, k, v."""
        q, k, v = (_heads(p(h), self.head_dim) for p in (self.q_proj, self.k_proj, self.v_proj))
        norms = (self.q_norm.weight, self.k_norm.weight) if self.norms_heads else None
        return Projections(*rotate_heads(q, k, cos, sin, norms, self.norm_eps), v)

    def router(self, config: ModelConfig) -> Router:
        queries = keys = None
        if self.decoupled:
            width = config.router_head_dim
            queries = lambda h: _heads(self.router_q_proj(h), width)  # noqa: E731
            keys = lambda h: _heads(self.router_k_proj(h), width)  # noqa: E731
        group, key_heads = HeadGroup(config.router_heads), config.router_key_heads
        return Router(config.router, group, self.gate, queries, keys, key_heads, self.reads)

    @property
    def gate(self) -> Gate | None:
        if not hasattr(self, "router_gate"):
            return None
        return Gate(self.router_gate, self.router_threshold)


def _heads(x: Tensor, width: int) -> Tensor:
    """[T, heads*width] -> [T, heads, width]"""
    return x.unflatten(1, (-1, width))


class MLP(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden, config.ffn, bias=False)
        self.up_proj = nn.Linear(config.hidden, config.ffn, bias=False)
        self.down_proj = nn.Linear(config.ffn, config.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))


class Layer(nn.Module):
    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden, config.norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden, config.norm_eps)
        self.mlp = MLP(config)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.self_attn.o_proj(attended.flatten(1))
        return x + self.mlp(self.post_attention_layernorm(x))


class Backbone(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden)
        self.layers = nn.ModuleList(Layer(config, layer) for layer in range(config.layers))
        self.norm = RMSNorm(config.hidden, config.norm_eps)


class MSADecoder(nn.Module):
    """A Memory Sparse Attention model for serving; weights carry the published names."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.model = Backbone(config)
        if not config.tie_embeddings:
            self.lm_head = nn.Linear(config.hidden, config.vocab_size, bias=False)

    @classmethod
    def empty(cls, config: ModelConfig, device: torch.device, dtype: torch.dtype) -> MSADecoder:
        """One whose weights have their place and dtype, but no values yet: nothing is drawn, and no
        copy of the whole model in another dtype is made on the way."""
        with torch.device("meta"):
            model = cls(config).to(dtype)
        return model.to_empty(device=device)

    def load_published(self, weights: Mapping[str, Tensor]) -> MSADecoder:
        """Takes weights under the published names, each once: they may be read as they are asked
        for. Raises CheckpointError, naming what is wrong."""
        shapes, places = weight_shapes(self.config), self.state_dict()
        names = weights.keys() - _NOT_WEIGHTS
        if self.config.tie_embeddings:
            names -= {"lm_head.weight"}
        missing, unknown, wrong = sorted(shapes.keys() - names), sorted(names - shapes.keys()), []
        for name in [name for name in shapes if name in names]:
            weight = weights[name]
            if tuple(weight.shape) == shapes[name]:
                places[name].copy_(weight)
            else:
                wrong.append(f"{name} is {tuple(weight.shape)}, expected {shapes[name]}")
        if missing or unknown or wrong:
            raise CheckpointError(
                f"weights do not fit the config: missing {missing[:4]} ({len(missing)} in all), "
                f"unknown {unknown[:4]} ({len(unknown)} in all), of another shape {wrong[:4]}"
            )
        return self

    @property
    def device(self) -> torch.device:
        return self.model.embed_tokens.weight.device

    def logits(self, hidden: Tensor) -> Tensor:
        """[T, vocabulary] from final states [T, d]."""
        head = self.model.embed_tokens if self.config.tie_embeddings else self.lm_head
        return F.linear(hidden, head.weight)

    def run(self, tokens: Tensor, positions: Tensor, attend: Attend) -> Tensor | None:
        """Packed tokens [N] through the layers -> final states after the last norm.

        attend(layer, h, projections) says what every token attended to, given normed states h: all
        N of them, or the last n, and the first ones go no further; None ends the run.
        """
        x = self.model.embed_tokens(tokens)
        config = self.config
        tables = rotary_tables(positions, config.head_dim, config.rope_theta, config.rope_scaling)
        for number, layer in enumerate(self.model.layers):
            h = layer.input_layernorm(x)
            cos, sin = (table[len(table) - len(x) :] for table in tables)
            attended = attend(number, h, layer.self_attn.project(h, cos, sin))
            if attended is None:
                return None
            x = layer.finish(x[len(x) - len(attended) :], attended)
        return self.model.norm(x)

    def router(self, layer: int) -> Router | None:
        """Of a router layer; None for any other."""
        attention = self.model.layers[layer].self_attn
        return attention.router(self.config) if attention.routes else None

    def forward(self, batch: MemoryBatch) -> Output:
        """Both streams of a batch at once: the training computation without Megatron."""
        layout = StreamLayout.of(batch, self.config.router.chunk_size)
        routings, pooled = {}, {}

        def attend(layer: int, h: Tensor, x: Projections) -> Tensor:
            router = self.router(layer)
            if router is None:
                return self_attention_layer(x, layout)
            last = layer == self.config.last_router_layer and not layout.keep_documents
            attended, routings[layer], pooled[layer] = router_layer(h, x, layout, router, last)
            return attended

        x = self.run(torch.cat([batch.doc_tokens, batch.tokens]), layout.positions, attend)
        documents = x[: layout.doc_token_count] if layout.keep_documents else None
        return Output(x[len(x) - len(batch.tokens) :], documents, routings, pooled)

    def encode(
        self, doc_tokens: Tensor, doc_cu: Tensor, token_cu: Tensor | None = None
    ) -> dict[int, Pooled]:
        """Packed documents [Nd] -> what the memory keeps of them, per router layer. token_cu [C+1]:
        tokens of their chunks, cumulative, where it is known: a device would be waited for."""
        pooled, positions = {}, positions_within(doc_cu, len(doc_tokens))

        def attend(layer: int, h: Tensor, x: Projections) -> Tensor | None:
            if (router := self.router(layer)) is not None:
                pooled[layer] = pool_documents(h, x, doc_cu, router, token_cu)
            # Nothing reads a document's state after its last pooled keys.
            return None if layer == self.config.last_router_layer else self_attention(x, doc_cu)

        self.run(doc_tokens, positions, attend)
        return pooled

    def observe(
        self,
        tokens: Tensor,
        positions: Tensor,
        cu: Tensor,
        layers: Collection[int],
        take: Callable[[Tensor], Tensor],
    ) -> dict[int, Tensor]:
        """take(normed states [N, d]) of some layers, of packed sequences that see no memory."""
        taken = {}

        def attend(layer: int, h: Tensor, x: Projections) -> Tensor | None:
            if layer in layers:
                taken[layer] = take(h)
            return None if layer == max(layers) else self_attention(x, cu)

        self.run(tokens, positions, attend)
        return taken

    def prefill(
        self,
        tokens: Tensor,
        ctx_cu: Tensor,
        positions: Tensor,
        is_query: Tensor,
        memory_from: Tensor,
        memory: Memory,
    ) -> Prefill:
        """Contexts [Na] against a memory: final states, keys and values, and what each reads.

        Every context searches the whole memory, once per router layer (SPEC section 2).
        """
        rows, query_cu = query_rows(is_query, ctx_cu)
        keys, values, selected = [], [], {}

        def attend(layer: int, h: Tensor, x: Projections) -> Tensor:
            keys.append(x.k)
            values.append(x.v)
            router = self.router(layer)
            if router is None:
                return self_attention(x, ctx_cu)
            query = router_query(h, x, rows, query_cu, router)
            selected[layer] = SelectedChunks.of(*memory.search(layer, *query), router)
            return context_with_memory(x, ctx_cu, memory_from, selected[layer])

        hidden = self.run(tokens, positions, attend)
        following = positions[ctx_cu[1:] - 1] + 1
        return Prefill(hidden, ctx_cu, following, keys, values, selected)

    def prefill_alone(self, tokens: Tensor, ctx_cu: Tensor, positions: Tensor) -> Prefill:
        """Contexts [Na] that see no memory and route nothing: what the backbone computes."""
        keys, values = [], []

        def attend(_: int, __: Tensor, x: Projections) -> Tensor:
            keys.append(x.k)
            values.append(x.v)
            return self_attention(x, ctx_cu)

        hidden = self.run(tokens, positions, attend)
        return Prefill(hidden, ctx_cu, positions[ctx_cu[1:] - 1] + 1, keys, values, {})

    def decode(self, tokens: Tensor, cache: KVCache, window: Window) -> Tensor:
        """One token [b] of each of the first rows -> final states [b, d]; no new routing.

        window: of KVCache.begin_step, which says whose token counts; the others' states are of no
        use.
        """
        count = len(tokens)
        row = torch.arange(count, device=tokens.device)
        place = cache.length[:count].clone()
        cache.unmask(row, place)

        def attend(layer: int, h: Tensor, x: Projections) -> Tensor:
            cache.write(layer, row, place, x.k, x.v)
            return cache.attend(layer, x.q, window)

        hidden = self.run(tokens, cache.position[:count], attend)
        cache.end_step(count)
        return hidden

    def extend(self, tokens: Tensor, rows: list[int], counts: list[int], cache: KVCache) -> Tensor:
        """Several tokens at once, packed [T], counts of each row -> final states [T, d]."""
        row, place, positions = cache.begin_several(rows, counts)
        cache.unmask(row, place)

        def attend(layer: int, h: Tensor, x: Projections) -> Tensor:
            cache.write(layer, row, place, x.k, x.v)
            parts = zip(rows, x.q.split(counts), strict=True)
            return torch.cat([cache.attend_several(layer, q, each) for each, q in parts])

        return self.run(tokens, positions, attend)

    def gates(self) -> Iterator[tuple[int, float]]:
        for number, layer in enumerate(self.model.layers):
            if layer.self_attn.gate is not None:
                yield number, float(layer.self_attn.gate.sharpness.detach())
