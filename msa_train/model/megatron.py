"""The training module: a Megatron-core TransformerBlock of Memory Sparse Attention layers.

Both streams run through a layer as one [Nd+Na, 1, d] tensor; attention alone looks at the split.
Tensor parallelism shards heads, FFN and vocabulary; the router's vectors are gathered before
scoring, because the sum over heads must finish before the maximum over tokens (SPEC section 2).
With sequence parallelism the same ranks split the states between products (parallel/sequence.py).
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from megatron.core import tensor_parallel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.parallel_state import get_tensor_model_parallel_rank as tensor_rank
from megatron.core.parallel_state import get_tensor_model_parallel_world_size as tensor_size
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, VocabParallelEmbedding
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import (
    TransformerBlock,
    TransformerBlockSubmodules,
)
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer
from msa_kernels import chunk_mean, chunk_offsets
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from msa_train.model.attention import (
    Gate,
    HeadGroup,
    Pooled,
    Projections,
    Router,
    context_layer,
    pool_documents,
    router_layer,
    self_attention,
    self_attention_layer,
)
from msa_train.model.batch import MemoryBatch, PackedDocuments, StreamLayout
from msa_train.model.config import ModelConfig, Recompute
from msa_train.model.key_queue import KeyQueue
from msa_train.model.losses import Losses, router_loss_sum, stale_loss_sum
from msa_train.model.ops import (
    RMSNorm,
    linear_cross_entropy_sum,
    rotary_tables,
    rotate_heads,
    swiglu,
    uses_liger,
)
from msa_train.model.router import Routing
from msa_train.model.sharded import ShardedBank
from msa_train.model.transfer import moved
from msa_train.model.weights import Read, megatron_shard, weight_maps
from msa_train.parallel.documents import DocumentGroup
from msa_train.parallel.sequence import SplitStates, padded


@dataclass
class TwoStreams(PackedSeqParams):
    """What every layer needs of the batch; passes through the block as its packed_seq_params.

    What the router layers do: read documents of the stream ("both"), read `pooled` documents that
    are not in it ("read"), or only pool a stream of documents ("encode"). `pooled` and `routings`
    hold what they pooled and chose. reader_alone: nothing below the layer after the last router
    layer is trained, so gradients go no further. sharded: `pooled` are this rank's documents alone.
    """

    layout: StreamLayout = None
    cos: Tensor = None
    sin: Tensor = None
    work: Literal["both", "read", "encode"] = "both"
    reader_alone: bool = False
    sharded: ShardedBank | None = None
    pooled: dict[int, Pooled] = field(default_factory=dict)
    routings: dict[int, Routing] = field(default_factory=dict)  # filled by the router layers

    def tokens(self, documents: bool = True) -> int:
        """In the stream; documents False: behind the last router layer, where contexts are left."""
        everything = len(self.layout.positions)
        keeps = documents or self.layout.keep_documents
        return everything if keeps else everything - self.layout.doc_token_count


class HeadNorm(torch.nn.Module):
    """Norm and rotation of query and key heads.

    A module of its own, because ZeRO-3 gathers weights for the backward pass where a module's
    output meets it, and pooled states leave the attention by another way than its output.
    """

    def __init__(self, model: ModelConfig):
        super().__init__()
        self.q_weight = torch.nn.Parameter(torch.empty(model.head_dim))
        self.k_weight = torch.nn.Parameter(torch.empty(model.head_dim))
        self.eps = model.norm_eps

    def forward(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        return rotate_heads(q, k, cos, sin, (self.q_weight, self.k_weight), self.eps)


class MemoryAttention(SelfAttention):
    """Self-attention over both streams; in a router layer with the router's projections."""

    def __init__(self, *args, model: ModelConfig, **kwargs):
        super().__init__(*args, **kwargs)
        self.model = model
        self.number = self.layer_number - 1
        self.routes = self.number in model.router_layers
        self.reads = self.number in model.reading_layers
        # Without a norm there is no weight: the rotation alone.
        self.qk_norm = HeadNorm(model) if model.shape.qk_norm else rotate_heads
        self.group = HeadGroup(
            model.router_heads,
            tensor_parallel.gather_from_tensor_model_parallel_region,
            tensor_parallel.copy_to_tensor_model_parallel_region,
        )
        if self.routes and model.router.decouple:
            self.router_q = self._router_projection("router_queries")
            self.router_k = self._router_projection("router_keys")
        if self.reads and model.router.gate != "none":
            self.router_gate = torch.nn.Parameter(torch.empty(1))
            self.router_threshold = torch.nn.Parameter(torch.empty(1))

    def _router_projection(self, size: str) -> ColumnParallelLinear:
        config = copy.copy(self.config)
        config.sequence_parallel = False  # what is projected is on every rank
        return ColumnParallelLinear(
            self.config.hidden_size,
            self.model.sizes[size],
            config=config,
            init_method=self.config.init_method,
            bias=False,
        )

    def project(self, h: Tensor, streams: TwoStreams) -> Projections:
        """Normed states [N, 1, d], this rank's share where they are split -> this rank's heads."""
        count = streams.tokens(documents=self.number <= self.model.last_router_layer)
        q, k, v = (x.squeeze(1)[:count] for x in self.get_query_key_value_tensors(h))
        # The last rows: behind the last router layer the documents are gone.
        cos, sin = (table[len(table) - count :] for table in (streams.cos, streams.sin))
        return Projections(*self.qk_norm(q, k, cos, sin), v)

    def forward(self, hidden_states: Tensor, streams: TwoStreams, last: bool) -> Tensor:
        """[N, 1, d] -> [N, 1, d]; `last`: without the documents, which nothing reads any more."""
        projections = self.project(hidden_states, streams)
        if self.routes:
            attended = self._route(hidden_states.squeeze(1), projections, streams, last)
        else:
            attended = self_attention_layer(projections, streams.layout)
        attended = attended.flatten(1)
        if self.config.sequence_parallel:
            attended = padded(attended)
        return self.linear_proj(attended[:, None])[0]

    def _route(self, own: Tensor, x: Projections, streams: TwoStreams, last: bool) -> Tensor:
        h = SplitStates.of(own) if self.config.sequence_parallel else own
        layout, router, number = streams.layout, self._router(), self.number
        if streams.work == "encode":
            pooled = pool_documents(h, x, layout.doc_cu, router, layout.token_cu)
            streams.pooled.setdefault(number, pooled)  # once: recomputation comes again
            return x.q[:0] if last else self_attention(x, layout.doc_cu)
        if streams.work == "read":
            pooled = streams.pooled[number]
            if router.keys is not None:
                # Of no documents, but in the graph: ZeRO-3 adds the gradients of a later backward
                # to the last step's unless every parameter takes part in the first one.
                none = router.group.gather(router.keys(own[:0]).flatten(1)).to(pooled.key.dtype)
                pooled = replace(pooled, key=torch.cat([pooled.key, none]))
            attended, routing = context_layer(h, x, layout, router, pooled, streams.sharded)
        else:
            attended, routing, pooled = router_layer(h, x, layout, router, contexts_only=last)
            streams.pooled.setdefault(number, pooled)
        streams.routings.setdefault(number, routing)
        return attended

    def _router(self) -> Router:
        gate = queries = keys = None
        if self.reads and self.model.router.gate != "none":
            gate = Gate(self.router_gate, self.router_threshold)
        if self.model.router.decouple:
            queries, keys = (
                partial(self._heads, layer) for layer in (self.router_q, self.router_k)
            )
        key_heads = self.model.router_key_heads // tensor_size()
        mean = SplitStates.chunk_mean if self.config.sequence_parallel else chunk_mean
        given = self.model.router, self.group, gate, queries, keys, key_heads, self.reads, mean
        return Router(*given)

    def _heads(self, layer: ColumnParallelLinear, h: Tensor) -> Tensor:
        """[T, d] -> [T, this rank's heads, D]."""
        return layer(h[:, None])[0].squeeze(1).unflatten(1, (-1, self.model.router_head_dim))


class _GatedLinear(ColumnParallelLinear):
    """The MLP's first projection: gate and up [..., this rank's F], whose weights lie together.

    On a GPU as two products, because a fused kernel reads whole tensors and would copy halves of
    one; on a CPU one product is faster, and of split tokens one gathers them once.
    """

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        if not x.is_cuda or self.sequence_parallel:
            return super().forward(x)[0].chunk(2, -1)
        x = tensor_parallel.copy_to_tensor_model_parallel_region(x)
        return tuple(F.linear(x, half) for half in self.weight.chunk(2))


class _FusedMLP(MLP):
    """Megatron's gated MLP with the product fused where it can be."""

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.linear_fc2(swiglu(*self.linear_fc1(hidden_states)))


class MemoryLayer(TransformerLayer):
    """A pre-norm layer that drops the documents' states where nothing reads them any more."""

    def __init__(self, *args, recompute: Recompute, **kwargs):
        super().__init__(*args, **kwargs)
        self.recompute = recompute

    def forward(
        self, hidden_states: Tensor, packed_seq_params: TwoStreams, **_: object
    ) -> tuple[Tensor, None]:
        if not len(hidden_states):  # documents alone, behind the last router layer: nothing is left
            return hidden_states, None
        return self._kept("layer", self._run, hidden_states, packed_seq_params), None

    def _kept(
        self, part: Recompute, run: Callable[..., Tensor], x: Tensor, streams: TwoStreams
    ) -> Tensor:
        """run(x, streams), of which x alone is kept where this part is to be recomputed."""
        if self.recompute == part and self.training:
            return checkpoint(run, x, streams, use_reentrant=False)
        return run(x, streams)

    def _run(self, x: Tensor, streams: TwoStreams) -> Tensor:
        own = self.self_attention
        if streams.reader_alone and own.number == own.model.last_router_layer + 1:
            x = x.detach()
        attended = self._kept("attention", self._attend, x, streams)
        if self._drops_documents(streams):
            x = self._contexts(x, streams)
        x = x + attended
        return x + self.mlp(self.pre_mlp_layernorm(x))[0]

    def _attend(self, x: Tensor, streams: TwoStreams) -> Tensor:
        own = self.self_attention
        return own(self.input_layernorm(x), streams, self._drops_documents(streams))

    def _drops_documents(self, streams: TwoStreams) -> bool:
        """Whether nothing reads them any more, once their keys are pooled here."""
        own = self.self_attention
        return own.number == own.model.last_router_layer and not streams.layout.keep_documents

    def _contexts(self, x: Tensor, streams: TwoStreams) -> Tensor:
        """Without the documents; split tokens are split anew, for the contexts lie with the last
        ranks."""
        nd, count = streams.layout.doc_token_count, streams.tokens(documents=False)
        if not self.config.sequence_parallel:
            return x[nd:]
        if not nd or not count:
            return x if count else x[:0]
        return SplitStates.of(x.squeeze(1))[nd:].split_anew(count)[:, None]


def layer_spec(model: ModelConfig, recompute: Recompute) -> ModuleSpec:
    spec = get_gpt_layer_local_spec(normalization="RMSNorm")
    spec.submodules.input_layernorm = spec.submodules.pre_mlp_layernorm = _MegatronNorm
    spec.submodules.mlp.module = _FusedMLP
    spec.submodules.mlp.submodules.linear_fc1 = _GatedLinear
    # Which Megatron does not know, and warns of in every layer.
    logging.getLogger(TransformerLayer.__module__).setLevel(logging.ERROR)
    attention = spec.submodules.self_attention
    attention.module = MemoryAttention
    attention.params = {**attention.params, "model": model}
    attention.submodules.core_attention = IdentityOp  # what it does is in msa_train.model.attention
    spec.module = MemoryLayer
    spec.params = {"recompute": recompute}
    return spec


class _MegatronNorm(RMSNorm):
    """RMSNorm as Megatron builds one."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float, **_: object):
        super().__init__(hidden_size, eps)


def transformer_config(model: ModelConfig, sequence_parallel: bool = False) -> TransformerConfig:
    return TransformerConfig(
        num_layers=model.layers,
        hidden_size=model.hidden,
        num_attention_heads=model.heads,
        num_query_groups=model.kv_heads,
        kv_channels=model.head_dim,
        ffn_hidden_size=model.ffn,
        normalization="RMSNorm",
        layernorm_epsilon=model.norm_eps,
        add_bias_linear=False,
        add_qkv_bias=model.shape.qkv_bias,
        gated_linear_unit=True,
        activation_func=F.silu,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        tensor_model_parallel_size=tensor_size(),
        sequence_parallel=sequence_parallel,
        use_cpu_initialization=True,
        perform_initialization=False,  # load_published fills every parameter
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
    )


class MSAModel(MegatronModule):
    """Embedding, TransformerBlock and head; `forward` gives the two loss sums of a batch.

    sequence_parallel: tensor-parallel ranks, two or more, split the tokens between the products.
    """

    def __init__(
        self, model: ModelConfig, recompute: Recompute = "none", sequence_parallel: bool = False
    ):
        config = transformer_config(model, sequence_parallel)
        super().__init__(config)
        self.model = model
        self.queue = KeyQueue(model.loss_layers)
        self.reader_alone = False  # what follows the last router layer is all that trains
        self.shards: DocumentGroup | None = None  # ranks that keep pooled states of a batch apart
        self.embedding = VocabParallelEmbedding(
            model.vocab_size, model.hidden, init_method=config.init_method, config=config,
            reduce_scatter_embeddings=sequence_parallel,
        )  # fmt: skip
        layers = [layer_spec(model, recompute)] * model.layers
        self.decoder = TransformerBlock(
            config, TransformerBlockSubmodules(layers, _MegatronNorm), post_process=True
        )
        # Or the block would draw from a random state of CUDA that nothing here has or needs.
        self.decoder.config = copy.copy(config)
        self.decoder.config.sequence_parallel = False
        if not model.tie_embeddings:
            self.output = ColumnParallelLinear(
                model.hidden, model.vocab_size, config=config, init_method=config.init_method,
                bias=False,
            )  # fmt: skip

    def load_published(self, read: Read) -> None:
        """Fill every parameter with this rank's part of the published weights that `read` gives."""
        maps = {each.megatron: each for each in weight_maps(self.model)}
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                part = megatron_shard(maps[name], read, self.model, tensor_rank(), tensor_size())
                parameter.copy_(part)
                # Gradient norms count a replicated weight once. Megatron sets this while it
                # initialises, which is not done here.
                parameter.tensor_model_parallel = maps[name].split != "whole"

    def hidden_states(self, batch: MemoryBatch) -> tuple[Tensor, TwoStreams]:
        """Final states [Na, d] ([Nd+Na, d] with document labels) and what was routed."""
        hidden, streams = self._states(batch)
        if self.config.sequence_parallel:
            hidden = tensor_parallel.gather_from_sequence_parallel_region(hidden, False)
        return hidden[: streams.tokens(documents=False)], streams

    def _states(self, batch: MemoryBatch) -> tuple[Tensor, TwoStreams]:
        """The same, of the final states this rank's share where they are split."""
        streams = self._streams(StreamLayout.of(batch, self.model.router.chunk_size))
        return self._run(torch.cat([batch.doc_tokens, batch.tokens]), streams), streams

    def encode(self, documents: PackedDocuments) -> tuple[Tensor, ...]:
        """Pooled memory of the documents: k, v and router key of each router layer, [C, ...]."""
        streams = self._streams(documents.layout(self.model.router.chunk_size), "encode")
        self._run(documents.tokens, streams)
        layers = (streams.pooled[number] for number in self.model.router_layers)
        return tuple(state for pooled in layers for state in (pooled.k, pooled.v, pooled.key))

    def forward(
        self, batch: MemoryBatch | PackedDocuments, memory: tuple[Tensor, ...] | None = None
    ) -> Losses | tuple[Tensor, ...]:
        """Losses of a batch; with `memory` its documents are not encoded, but read from there (with
        `shards`: those of this rank).

        Of documents alone: what `encode` gives (everything goes through `forward`, because ZeRO-3
        fetches parameters there, and looks for tensors in what it takes and returns).
        """
        if isinstance(batch, PackedDocuments):
            return self.encode(batch)
        if memory is None:
            hidden, streams = self._states(batch)
        else:
            assert batch.doc_labels is None, "final states of documents need their tokens"
            layout = StreamLayout.of(batch, self.model.router.chunk_size, stored=True)
            states = (Pooled(*memory[i : i + 3]) for i in range(0, len(memory), 3))
            pooled = dict(zip(self.model.router_layers, states, strict=True))
            streams = self._streams(layout, "read", pooled)
            if self.shards is not None:
                streams.sharded = ShardedBank.of(batch, self.model.router, self.shards)
            hidden = self._run(batch.tokens, streams)
        labels, pairs = batch.all_labels, batch.on_host.positives.nonzero(as_tuple=True)
        labelled, *pairs = moved([batch.labelled_rows, *pairs], hidden.device)
        states = SplitStates.of(hidden) if self.config.sequence_parallel else hidden
        lm = self._token_loss_sum(states[labelled], labels[labelled])
        return Losses(lm, self._router_loss_sum(batch, pairs, streams), streams.routings)

    def _streams(
        self, layout: StreamLayout, work: str = "both", pooled: dict[int, Pooled] | None = None
    ) -> TwoStreams:
        model = self.model
        cos, sin = rotary_tables(
            layout.positions, model.head_dim, model.rope_theta, model.rope_scaling
        )
        return TwoStreams(
            layout=layout, cos=cos, sin=sin, work=work, reader_alone=self.reader_alone,
            pooled=pooled or {},
        )  # fmt: skip

    def _run(self, tokens: Tensor, streams: TwoStreams) -> Tensor:
        if self.config.sequence_parallel:
            x = self.embedding(padded(tokens)[None])
        else:
            x = self.embedding(tokens[None]).transpose(0, 1).contiguous()
        return self.decoder(x, attention_mask=None, packed_seq_params=streams).squeeze(1)

    def _token_loss_sum(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy, also under a vocabulary split over tensor-parallel ranks."""
        head = self.embedding if self.model.tie_embeddings else self.output
        if uses_liger(hidden) and tensor_size() == 1:
            return linear_cross_entropy_sum(hidden, head.weight, labels)
        hidden = tensor_parallel.copy_to_tensor_model_parallel_region(hidden)
        logits = F.linear(hidden, head.weight)
        logits = logits.float() if logits.dtype != torch.float64 else logits
        losses = tensor_parallel.vocab_parallel_cross_entropy(logits[:, None], labels[:, None])
        return losses.sum()

    def _router_loss_sum(
        self, batch: MemoryBatch, pairs: list[Tensor], streams: TwoStreams
    ) -> Tensor:
        """pairs: context and document of each positive."""
        layers, training, losses = self.model.loss_layers, torch.is_grad_enabled(), []
        for layer in layers:
            scores = streams.routings[layer].document_scores
            given = batch.positives, batch.masked, self.model.router, pairs
            loss = router_loss_sum(scores, *given)
            if training and len(self.queue):
                loss = loss + self._stale_loss_sum(layer, batch, pairs, streams)
            losses.append(loss)
        if training:
            keys = {layer: streams.pooled[layer].key for layer in layers}
            host = batch.on_host
            chunks = chunk_offsets(host.doc_cu, self.model.router.chunk_size).diff()
            self.queue.add(keys, chunks, host.doc_ids)
        return torch.stack(losses).mean() if losses else streams.cos.new_zeros(())

    def _stale_loss_sum(
        self, layer: int, batch: MemoryBatch, pairs: list[Tensor], streams: TwoStreams
    ) -> Tensor:
        """The queue's part of a layer's router loss; it trains the queries alone."""
        routing, layout = streams.routings[layer], streams.layout
        scores = self.model.router.scoring.document_scores(
            routing.query, routing.query_cu, streams.pooled[layer].key.detach(), layout.chunk_cu,
            layout.ctx_bank, layout.bank_cu,
        )  # fmt: skip
        stale = self.queue.scores(layer, routing, batch.on_host.doc_ids, self.model.router)
        return stale_loss_sum(scores, stale, batch.positives, self.model.router, pairs)

    def partial_gradient_parameters(self) -> list[torch.nn.Parameter]:
        """Replicated parameters of which each tensor-parallel rank has a part of the gradient: used
        on sharded heads, or on split tokens."""
        modules = [
            layer.self_attention.qk_norm
            for layer in self.decoder.layers
            if self.model.shape.qk_norm
        ]
        if self.config.sequence_parallel:
            modules += [self.decoder.final_layernorm]
            for layer in self.decoder.layers:
                modules += [layer.input_layernorm, layer.pre_mlp_layernorm]
        return [weight for module in modules for weight in module.parameters()]
