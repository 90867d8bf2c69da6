"""The training module: a Megatron-core TransformerBlock whose attention is Memory Sparse Attention.

Both streams run through the block as one [Nd+Na, 1, d] tensor; attention alone looks at the split.
Tensor parallelism shards heads, FFN and vocabulary; the router's vectors are gathered before
scoring, because the sum over heads must finish before the maximum over tokens (SPEC section 2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

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
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlock
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from msa_train.model.attention import (
    Gate,
    HeadGroup,
    Projections,
    Router,
    plain_layer,
    router_layer,
)
from msa_train.model.batch import IGNORE, Layout, MemoryBatch
from msa_train.model.config import ModelConfig
from msa_train.model.losses import router_loss_sum
from msa_train.model.norm import RMSNorm
from msa_train.model.rope import rotary_tables, rotate
from msa_train.model.router import Routing
from msa_train.model.weights import Read, megatron_shard


@dataclass
class TwoStreams(PackedSeqParams):
    """What every layer needs of the batch; passes through the block as its packed_seq_params."""

    layout: Layout = None
    cos: Tensor = None
    sin: Tensor = None
    routings: dict[int, Routing] = field(default_factory=dict)  # filled by the router layers


@dataclass
class Losses:
    """Sums of one micro-batch; the trainer divides by global counts (SPEC section 3)."""

    lm: Tensor  # sum over labelled tokens
    router: Tensor  # sum over contexts with a positive, averaged over the loss layers
    routings: dict[int, Routing]


class MemoryAttention(SelfAttention):
    """Self-attention over both streams; in a router layer with the router's projections."""

    def __init__(self, *args, model: ModelConfig, **kwargs):
        super().__init__(*args, **kwargs)
        self.model = model
        self.number = self.layer_number - 1
        self.routes = self.number in model.router_layers
        self.group = HeadGroup(
            model.heads,
            tensor_parallel.gather_from_tensor_model_parallel_region,
            tensor_parallel.copy_to_tensor_model_parallel_region,
        )
        if self.routes and model.router.decouple:
            self.router_q = self._router_projection(model.heads)
            self.router_k = self._router_projection(model.kv_heads)
        if self.routes and model.router.gate != "none":
            self.router_gate = torch.nn.Parameter(torch.empty(1))
            self.router_threshold = torch.nn.Parameter(torch.empty(1))

    def _router_projection(self, heads: int) -> ColumnParallelLinear:
        return ColumnParallelLinear(
            self.config.hidden_size,
            heads * self.model.head_dim,
            config=self.config,
            init_method=self.config.init_method,
            bias=False,
        )

    def project(self, h: Tensor, streams: TwoStreams) -> Projections:
        """Normed states [N, 1, d] -> this rank's heads."""
        q, k, v = (x.squeeze(1) for x in self.get_query_key_value_tensors(h))
        cos, sin = streams.cos, streams.sin
        return Projections(rotate(q, cos, sin), rotate(k, cos, sin), v)

    def forward(self, hidden_states: Tensor, streams: TwoStreams, contexts_only: bool) -> Tensor:
        """[N, 1, d] -> [N, 1, d], or the contexts' [Na, 1, d] with `contexts_only`."""
        projections = self.project(hidden_states, streams)
        if self.routes:
            attended, routing, _ = router_layer(
                hidden_states.squeeze(1),
                projections,
                streams.layout,
                self._router(),
                contexts_only,
            )
            streams.routings.setdefault(self.number, routing)  # once: recomputation comes again
        else:
            attended = plain_layer(projections, streams.layout)
        return self.linear_proj(attended.flatten(1)[:, None])[0]

    def _router(self) -> Router:
        gate = queries = keys = None
        if self.model.router.gate != "none":
            gate = Gate(self.router_gate, self.router_threshold)
        if self.model.router.decouple:
            queries, keys = (
                partial(self._heads, layer) for layer in (self.router_q, self.router_k)
            )
        return Router(self.model.router, self.group, gate, queries, keys)

    def _heads(self, layer: ColumnParallelLinear, h: Tensor) -> Tensor:
        """[T, d] -> [T, this rank's heads, D]."""
        return layer(h[:, None])[0].squeeze(1).unflatten(1, (-1, self.model.head_dim))


class MemoryLayer(TransformerLayer):
    """A pre-norm layer that drops the documents' states where nothing reads them any more."""

    def __init__(self, *args, recompute: bool, **kwargs):
        super().__init__(*args, **kwargs)
        self.recompute = recompute

    def forward(
        self, hidden_states: Tensor, packed_seq_params: TwoStreams, **_: object
    ) -> tuple[Tensor, None]:
        if self.recompute and self.training:
            run = checkpoint(self._run, hidden_states, packed_seq_params, use_reentrant=False)
        else:
            run = self._run(hidden_states, packed_seq_params)
        return run, None

    def _run(self, x: Tensor, streams: TwoStreams) -> Tensor:
        last = self.layer_number == self.config.num_layers and not streams.layout.keep_documents
        attended = self.self_attention(
            self.input_layernorm(x), streams, last and self.self_attention.routes
        )
        x = x[len(x) - len(attended) :] + attended
        return x + self.mlp(self.pre_mlp_layernorm(x))[0]


class MSAModel(MegatronModule):
    """Embedding, TransformerBlock and head; `forward` gives the two loss sums of a batch."""

    def __init__(self, model: ModelConfig, recompute: bool = False):
        config = _transformer_config(model)
        super().__init__(config)
        self.model = model
        self.embedding = VocabParallelEmbedding(
            model.vocab_size, model.hidden, init_method=config.init_method, config=config
        )
        self.decoder = TransformerBlock(config, _layer_spec(model, recompute), post_process=True)
        if not model.tie_embeddings:
            self.output = ColumnParallelLinear(
                model.hidden, model.vocab_size, config=config, init_method=config.init_method,
                bias=False,
            )  # fmt: skip

    def load_published(self, read: Read) -> None:
        """Fill every parameter with this rank's part of the published weights that `read` gives."""
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                part = megatron_shard(name, read, self.model, tensor_rank(), tensor_size())
                parameter.copy_(part)
                # Every matrix is sharded; gradient norms count a replicated weight once. Megatron
                # sets this while it initialises, which is not done here.
                parameter.tensor_model_parallel = parameter.dim() >= 2

    def hidden_states(self, batch: MemoryBatch) -> tuple[Tensor, TwoStreams]:
        """Final states [Na, d] ([Nd+Na, d] with document labels) and what was routed."""
        layout = Layout.of(batch, self.model.router.chunk_size)
        cos, sin = rotary_tables(layout.positions, self.model.head_dim, self.model.rope_theta)
        streams = TwoStreams(layout=layout, cos=cos, sin=sin)
        x = self.embedding(torch.cat([batch.doc_tokens, batch.tokens])[None]).transpose(0, 1)
        x = self.decoder(x.contiguous(), attention_mask=None, packed_seq_params=streams)
        return x.squeeze(1), streams

    def forward(self, batch: MemoryBatch) -> Losses:
        hidden, streams = self.hidden_states(batch)
        labels = batch.labels
        if batch.doc_labels is not None:
            labels = torch.cat([batch.doc_labels, labels])
        asked = labels != IGNORE
        hidden = hidden[len(hidden) - len(labels) :][asked]
        lm = self._token_loss_sum(hidden, labels[asked])
        return Losses(lm, self._router_loss_sum(batch, streams), streams.routings)

    def _token_loss_sum(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy under a vocabulary split over tensor-parallel ranks."""
        hidden = tensor_parallel.copy_to_tensor_model_parallel_region(hidden)
        head = self.embedding if self.model.tie_embeddings else self.output
        logits = F.linear(hidden, head.weight).float()
        losses = tensor_parallel.vocab_parallel_cross_entropy(logits[:, None], labels[:, None])
        return losses.sum()

    def _router_loss_sum(self, batch: MemoryBatch, streams: TwoStreams) -> Tensor:
        losses = [
            router_loss_sum(
                streams.routings[layer].document_scores,
                batch.positives,
                batch.masked,
                self.model.router,
            )
            for layer in self.model.loss_layers
        ]
        return torch.stack(losses).mean() if losses else streams.cos.new_zeros(())

    def partial_gradient_parameters(self) -> list[torch.nn.Parameter]:
        """Replicated parameters used on sharded heads: each rank has a part of their gradient."""
        return [
            weight
            for layer in self.decoder.layers
            for weight in (
                layer.self_attention.q_layernorm.weight,
                layer.self_attention.k_layernorm.weight,
            )
        ]


def _layer_spec(model: ModelConfig, recompute: bool) -> ModuleSpec:
    spec = get_gpt_layer_local_spec(qk_layernorm=True, normalization="RMSNorm")
    for submodules, names in (
        (spec.submodules, ("input_layernorm", "pre_mlp_layernorm")),
        (spec.submodules.self_attention.submodules, ("q_layernorm", "k_layernorm")),
    ):
        for name in names:
            setattr(submodules, name, _MegatronNorm)
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


def _transformer_config(model: ModelConfig) -> TransformerConfig:
    return TransformerConfig(
        num_layers=model.layers,
        hidden_size=model.hidden,
        num_attention_heads=model.heads,
        num_query_groups=model.kv_heads,
        kv_channels=model.head_dim,
        ffn_hidden_size=model.ffn,
        normalization="RMSNorm",
        qk_layernorm=True,
        layernorm_epsilon=model.norm_eps,
        add_bias_linear=False,
        gated_linear_unit=True,
        activation_func=F.silu,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        tensor_model_parallel_size=tensor_size(),
        use_cpu_initialization=True,
        perform_initialization=False,  # load_published fills every parameter
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
    )


def initial_reader(model: ModelConfig, seed: int) -> Callable[[str], Tensor]:
    """The weights of a fresh model, for load_published: the same under any number of ranks."""
    from msa_train.model.weights import initial_weight

    return lambda name: initial_weight(name, model, seed)
