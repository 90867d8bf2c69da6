"""The training module: a Megatron-core TransformerBlock of Memory Sparse Attention layers.

Tensor parallelism shards heads, FFN and vocabulary (see megatron_layers.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from megatron.core import tensor_parallel
from megatron.core.parallel_state import get_tensor_model_parallel_rank as tensor_rank
from megatron.core.parallel_state import get_tensor_model_parallel_world_size as tensor_size
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, VocabParallelEmbedding
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_block import TransformerBlock
from torch import Tensor

from msa_train.model.attention import Pooled
from msa_train.model.batch import IGNORE, MemoryBatch, PackedDocuments, StreamLayout
from msa_train.model.config import ModelConfig
from msa_train.model.key_queue import KeyQueue
from msa_train.model.losses import router_loss_sum, stale_loss_sum
from msa_train.model.megatron_layers import TwoStreams, layer_spec, transformer_config
from msa_train.model.ops import linear_cross_entropy_sum, rotary_tables, uses_liger
from msa_train.model.router import Routing
from msa_train.model.weights import Read, megatron_shard, weight_maps


@dataclass
class Losses:
    """Sums of one micro-batch; the trainer divides by global counts (SPEC section 3)."""

    lm: Tensor  # sum over labelled tokens
    router: Tensor  # sum over contexts with a positive, averaged over the loss layers
    routings: dict[int, Routing]


class MSAModel(MegatronModule):
    """Embedding, TransformerBlock and head; `forward` gives the two loss sums of a batch."""

    def __init__(self, model: ModelConfig, recompute: bool = False):
        config = transformer_config(model)
        super().__init__(config)
        self.model = model
        self.queue = KeyQueue(model.loss_layers)
        self.embedding = VocabParallelEmbedding(
            model.vocab_size, model.hidden, init_method=config.init_method, config=config
        )
        self.decoder = TransformerBlock(config, layer_spec(model, recompute), post_process=True)
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
        """Losses of a batch; with `memory` its documents are not encoded, but read from there.

        Of documents alone: what `encode` gives (everything goes through `forward`, because ZeRO-3
        fetches parameters there, and looks for tensors in what it takes and returns).
        """
        if isinstance(batch, PackedDocuments):
            return self.encode(batch)
        if memory is None:
            hidden, streams = self.hidden_states(batch)
        else:
            assert batch.doc_labels is None, "final states of documents need their tokens"
            layout = StreamLayout.of(batch, self.model.router.chunk_size, stored=True)
            states = (Pooled(*memory[i : i + 3]) for i in range(0, len(memory), 3))
            pooled = dict(zip(self.model.router_layers, states, strict=True))
            streams = self._streams(layout, "read", pooled)
            hidden = self._run(batch.tokens, streams)
        labels = batch.labels
        if batch.doc_labels is not None:
            labels = torch.cat([batch.doc_labels, labels])
        asked = labels != IGNORE
        hidden = hidden[len(hidden) - len(labels) :][asked]
        lm = self._token_loss_sum(hidden, labels[asked])
        return Losses(lm, self._router_loss_sum(batch, streams), streams.routings)

    def _streams(
        self, layout: StreamLayout, work: str = "both", pooled: dict[int, Pooled] | None = None
    ) -> TwoStreams:
        cos, sin = rotary_tables(layout.positions, self.model.head_dim, self.model.rope_theta)
        return TwoStreams(layout=layout, cos=cos, sin=sin, work=work, pooled=pooled or {})

    def _run(self, tokens: Tensor, streams: TwoStreams) -> Tensor:
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

    def _router_loss_sum(self, batch: MemoryBatch, streams: TwoStreams) -> Tensor:
        layers, training = self.model.loss_layers, torch.is_grad_enabled()
        losses = [
            router_loss_sum(
                streams.routings[layer].document_scores,
                batch.positives,
                batch.masked,
                self.model.router,
            )
            for layer in layers
        ]
        if training and len(self.queue):
            losses = [
                loss + self._stale_loss_sum(layer, batch, streams)
                for layer, loss in zip(layers, losses, strict=True)
            ]
        if training:
            keys = {layer: streams.pooled[layer].key for layer in layers}
            self.queue.add(keys, streams.layout.chunk_cu.diff(), batch.doc_ids)
        return torch.stack(losses).mean() if losses else streams.cos.new_zeros(())

    def _stale_loss_sum(self, layer: int, batch: MemoryBatch, streams: TwoStreams) -> Tensor:
        """The queue's part of a layer's router loss; it trains the queries alone."""
        routing, layout = streams.routings[layer], streams.layout
        scores = self.model.router.scoring.document_scores(
            routing.query, routing.query_cu, streams.pooled[layer].key.detach(), layout.chunk_cu,
            layout.ctx_bank, layout.bank_cu,
        )  # fmt: skip
        stale = self.queue.scores(layer, routing, batch.doc_ids, self.model.router)
        return stale_loss_sum(scores, stale, batch.positives, self.model.router)

    def partial_gradient_parameters(self) -> list[torch.nn.Parameter]:
        """Replicated parameters used on sharded heads: each rank has a part of their gradient."""
        return [
            weight
            for layer in self.decoder.layers
            if self.model.shape.qk_norm
            for weight in layer.self_attention.qk_norm.parameters()
        ]
