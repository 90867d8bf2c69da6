"""The serving module: plain torch under the published weight names, the same mathematics.

No Megatron, no DeepSpeed. `forward` runs a whole two-stream batch (tests, conformance); `encode`,
`prefill` and `decode` are its parts when the memory lies in a bank.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from msa_kernels import document_attention, norm_rope
from torch import Tensor, nn

from msa_train.errors import CheckpointError
from msa_train.model.attention import (
    Gate,
    HeadGroup,
    Pooled,
    Projections,
    Router,
    plain_layer,
    pool_documents,
    read_memory,
    reading,
    router_layer,
    router_query,
)
from msa_train.model.batch import MemoryBatch, StreamLayout, positions_within, query_rows
from msa_train.model.config import ModelConfig
from msa_train.model.kv_cache import KVCache, Prefill, Window
from msa_train.model.liger import swiglu
from msa_train.model.norm import RMSNorm
from msa_train.model.rope import rotary_tables
from msa_train.model.router import Routing
from msa_train.model.weights import weight_shapes

# The published code keeps the router loss's temperature (not trained) among the weights.
_NOT_WEIGHTS = {"temperature", "model.temperature"}


@dataclass
class Output:
    """A forward pass over a batch: final states after the last norm, and what was routed."""

    hidden: Tensor  # [Na, d]
    doc_hidden: Tensor | None  # [Nd, d], when the batch asks for it
    routings: dict[int, Routing] = field(default_factory=dict)
    pooled: dict[int, Pooled] = field(default_factory=dict)
    inputs: list[Tensor] = field(default_factory=list)  # [Nd+Na, d] into each layer


class Memory(Protocol):
    """Where the contexts of a router layer find their documents."""

    def search(self, layer: int, query: Tensor, query_cu: Tensor) -> tuple[Routing, Tensor, Tensor]:
        """For query vectors [Nq, V] of m contexts: routing, pooled K and V [C, G, D] its
        chunk_index points into."""


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        d, wide, narrow = (
            config.hidden,
            config.heads * config.head_dim,
            config.kv_heads * config.head_dim,
        )
        self.head_dim = config.head_dim
        self.q_proj = nn.Linear(d, wide, bias=False)
        self.k_proj = nn.Linear(d, narrow, bias=False)
        self.v_proj = nn.Linear(d, narrow, bias=False)
        self.o_proj = nn.Linear(wide, d, bias=False)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps)
        self.routes = layer in config.router_layers
        self.decoupled = self.routes and config.router.decouple
        if self.decoupled:  # Sequential: the published names end in `.0.weight`
            self.router_q_proj = nn.Sequential(nn.Linear(d, wide, bias=False))
            self.router_k_proj = nn.Sequential(nn.Linear(d, narrow, bias=False))
        if self.routes and config.router.gate != "none":
            self.router_gate = nn.Parameter(torch.zeros(1))
            self.router_threshold = nn.Parameter(torch.zeros(1))

    def project(self, h: Tensor, cos: Tensor, sin: Tensor) -> Projections:
        """Normed states [N, d] -> q, k, v."""
        q, k, v = (self._heads(p(h)) for p in (self.q_proj, self.k_proj, self.v_proj))
        weights = self.q_norm.weight, self.k_norm.weight
        return Projections(*norm_rope(q, k, *weights, cos, sin, self.q_norm.eps), v)

    def router(self, config: ModelConfig) -> Router:
        queries = keys = None
        if self.decoupled:
            queries = lambda h: self._heads(self.router_q_proj(h))  # noqa: E731
            keys = lambda h: self._heads(self.router_k_proj(h))  # noqa: E731
        return Router(config.router, HeadGroup(config.heads), self.gate, queries, keys)

    @property
    def gate(self) -> Gate | None:
        if not hasattr(self, "router_gate"):
            return None
        return Gate(self.router_gate, self.router_threshold)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (-1, self.head_dim))


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

    def load_published(self, weights: dict[str, Tensor]) -> MSADecoder:
        """Takes weights under the published names. Raises CheckpointError, naming what is wrong."""
        shapes = weight_shapes(self.config)
        weights = {name: w for name, w in weights.items() if name not in _NOT_WEIGHTS}
        if self.config.tie_embeddings:
            weights.pop("lm_head.weight", None)
        missing = sorted(shapes.keys() - weights.keys())
        unknown = sorted(weights.keys() - shapes.keys())
        wrong = [
            f"{name} is {tuple(w.shape)}, expected {shapes[name]}"
            for name, w in weights.items()
            if name in shapes and tuple(w.shape) != shapes[name]
        ]
        if missing or unknown or wrong:
            raise CheckpointError(
                f"weights do not fit the config: missing {missing[:4]} ({len(missing)} in all), "
                f"unknown {unknown[:4]} ({len(unknown)} in all), of another shape {wrong[:4]}"
            )
        self.load_state_dict(weights)
        return self

    def logits(self, hidden: Tensor) -> Tensor:
        """[T, vocabulary] from final states [T, d]."""
        head = self.model.embed_tokens if self.config.tie_embeddings else self.lm_head
        return F.linear(hidden, head.weight)

    def forward(self, batch: MemoryBatch) -> Output:
        """Both streams of a batch at once: the training computation without Megatron."""
        layout = StreamLayout.of(batch, self.config.router.chunk_size)
        nd = layout.doc_token_count
        x = self.model.embed_tokens(torch.cat([batch.doc_tokens, batch.tokens]))
        cos, sin = self._tables(layout.positions)
        out = Output(x, None)
        for number, layer in enumerate(self.model.layers):
            out.inputs.append(x)
            h = layer.input_layernorm(x)
            projections = layer.self_attn.project(h, cos, sin)
            last = number == self.config.layers - 1 and not layout.keep_documents
            if layer.self_attn.routes:
                router = layer.self_attn.router(self.config)
                attended, out.routings[number], out.pooled[number] = router_layer(
                    h, projections, layout, router, contexts_only=last
                )
            else:
                attended = plain_layer(projections, layout)
            x = layer.finish(x[len(x) - len(attended) :], attended)
        x = self.model.norm(x)
        out.hidden = x[len(x) - len(batch.tokens) :]
        out.doc_hidden = x[:nd] if layout.keep_documents else None
        return out

    def encode(self, doc_tokens: Tensor, doc_cu: Tensor) -> dict[int, Pooled]:
        """Packed documents [Nd] -> what the memory keeps of them, per router layer."""
        x = self.model.embed_tokens(doc_tokens)
        cos, sin = self._tables(positions_within(doc_cu))
        pooled = {}
        for number, layer in enumerate(self.model.layers):
            h = layer.input_layernorm(x)
            p = layer.self_attn.project(h, cos, sin)
            if layer.self_attn.routes:
                router = layer.self_attn.router(self.config)
                pooled[number] = pool_documents(h, p, doc_cu, router)
            if number == self.config.layers - 1:
                break  # nothing reads a document's state after its last pooled keys
            scale = self.config.head_dim**-0.5
            x = layer.finish(x, document_attention(p.q, p.k, p.v, doc_cu, scale))
        return pooled

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
        keys, values, readings = [], [], {}
        x = self.model.embed_tokens(tokens)
        cos, sin = self._tables(positions)
        for number, layer in enumerate(self.model.layers):
            h = layer.input_layernorm(x)
            p = layer.self_attn.project(h, cos, sin)
            if layer.self_attn.routes:
                router = layer.self_attn.router(self.config)
                query = router_query(h, p, rows, query_cu, router)
                routing, k, v = memory.search(number, *query)
                readings[number] = reading(routing, k, v, router)
                attended = read_memory(p.q, p.k, p.v, ctx_cu, ctx_cu, memory_from, readings[number])
            else:
                attended = document_attention(p.q, p.k, p.v, ctx_cu, self.config.head_dim**-0.5)
            keys.append(p.k)
            values.append(p.v)
            x = layer.finish(x, attended)
        following = positions[ctx_cu[1:] - 1] + 1
        return Prefill(self.model.norm(x), ctx_cu, following, keys, values, readings)

    def decode(self, tokens: Tensor, slots: KVCache, window: Window) -> Tensor:
        """One token [b] of each of the first rows -> final states [b, d]; no new routing.

        window: of KVCache.begin, which says who is fed; the others' states are of no use.
        """
        count = len(tokens)
        row = torch.arange(count, device=tokens.device)
        place = slots.length[:count].clone()
        slots.open(row, place)
        x = self.model.embed_tokens(tokens)
        cos, sin = self._tables(slots.position[:count])
        for number, layer in enumerate(self.model.layers):
            p = layer.self_attn.project(layer.input_layernorm(x), cos, sin)
            slots.write(number, row, place, p.k, p.v)
            x = layer.finish(x, slots.read(number, p.q, window))
        slots.end(count)
        return self.model.norm(x)

    def extend(self, tokens: Tensor, rows: list[int], counts: list[int], slots: KVCache) -> Tensor:
        """Several tokens at once, packed [T], counts of each row -> final states [T, d]."""
        starts = torch.tensor([slots.lengths[row] for row in rows]).repeat_interleave(
            torch.tensor(counts)
        )
        cu = F.pad(torch.tensor(counts).cumsum(0), (1, 0))
        offset = positions_within(cu).to(tokens.device)
        row = torch.tensor(rows).repeat_interleave(cu.diff()).to(tokens.device)
        place, positions = starts.to(tokens.device) + offset, slots.position[row] + offset
        slots.extend(rows, counts)
        slots.open(row, place)
        x = self.model.embed_tokens(tokens)
        cos, sin = self._tables(positions)
        for number, layer in enumerate(self.model.layers):
            p = layer.self_attn.project(layer.input_layernorm(x), cos, sin)
            slots.write(number, row, place, p.k, p.v)
            parts = zip(rows, p.q.split(counts), strict=True)
            attended = [slots.read_several(number, q, each) for each, q in parts]
            x = layer.finish(x, torch.cat(attended))
        return self.model.norm(x)

    def gates(self) -> Iterator[tuple[int, float]]:
        for number, layer in enumerate(self.model.layers):
            if layer.self_attn.gate is not None:
                yield number, float(layer.self_attn.gate.sharpness.detach())

    def _tables(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        return rotary_tables(positions, self.config.head_dim, self.config.rope_theta)
