"""The combinations that the publication allows, each as small as it can be."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product


def published_config(tie: bool = False, layers: int = 4, heads=(4, 2, 8), **msa) -> dict:
    """A tiny config.json; `msa` overrides keys of msa_config, None removes one."""
    routing = {
        "router_layer_idx": "2,3",
        "aux_loss": True,
        "lmloss_weigth": 1.0,
        "auxloss_weight": 0.1,
        "recloss_weight": 0.0,
        "ansloss_weight": 1.0,
        "aux_loss_method": "INFONCE_DECOUPLE",
        "decouple_router": True,
        "rewrite_position": True,
        "top_k_docs": 2,
        "pooling_kernel_size": 4,
        "infonce_loss_temp": 0.1,
        "head_reduce_method": "mean",
        "query_reduce_method": "max",
        "chunk_reduce_method": "max",
        "decouple_pooling_mode": "mean",
    } | msa
    return {
        "hidden_size": 24,
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "head_dim": heads[2],
        "vocab_size": 128,
        "intermediate_size": 40,
        "rope_theta": 5000000.0,
        "rms_norm_eps": 1e-06,
        "tie_word_embeddings": tie,
        "hidden_act": "silu",
        "attention_bias": False,
        "msa_config": {key: value for key, value in routing.items() if value is not None},
    }


@dataclass(frozen=True)
class Sample:
    """Document lengths, their numbers (1.. when empty), the positive ones, and the prompt."""

    docs: tuple[int, ...]
    positives: tuple[int, ...]
    question: int = 5
    response: int = 4
    numbers: tuple[int, ...] = ()

    @property
    def numbered(self) -> tuple[int, ...]:
        return self.numbers or tuple(range(1, len(self.docs) + 1))


RAGGED = (
    Sample((7, 3, 10, 1), (2,), question=6),
    Sample((5, 9, 4), (1,), question=4, response=6),
)


@dataclass(frozen=True)
class Training:
    name: str
    config: dict = field(default_factory=published_config)
    samples: tuple[Sample, ...] = RAGGED
    left_padded: bool = False
    label_all: bool = False
    temperature: float | None = None  # of the checkpoint; None: the config's
    seed: int = 1


@dataclass(frozen=True)
class Serving:
    name: str
    config: dict = field(default_factory=published_config)
    blocks: tuple[tuple[int, ...], ...] = ((9, 5, 14, 6, 2),)  # text lengths of each document
    questions: tuple[int, ...] = (8, 13)
    steps: int = 3
    seed: int = 2


def _reductions(**config) -> list[tuple[str, dict]]:
    """Every way of reducing scores, going through both losses and both kinds of router."""
    ways = product(("mean", "max"), ("max", "mean", "last"), ("max", "mean"))
    kinds = [(m, d) for m in ("INFONCE", "INFONCE_DECOUPLE") for d in (True, False)]
    out = []
    for i, (head, query, chunk) in enumerate(ways):
        method, decouple = kinds[(i + i // 4) % 4]  # so that no reduction meets one kind only
        msa = {
            "head_reduce_method": head,
            "query_reduce_method": query,
            "chunk_reduce_method": chunk,
            "aux_loss_method": method,
            "decouple_router": decouple,
            "router_layer_idx": "1",
        }
        kind = f"{method.lower()}_{'own' if decouple else 'coupled'}"
        name = f"{head}_{query}_{chunk}_{kind}"
        out.append((name, published_config(layers=2, **msa, **config)))
    return out


def _one(name: str, samples: tuple[Sample, ...] = RAGGED, **config) -> Training:
    return Training(name, published_config(**config), samples)


NO_POSITIVE = (Sample((7, 3, 10, 1), ()), RAGGED[1])
EVERY_POSITIVE = (Sample((7, 3, 10, 1), (1, 2, 3, 4)), RAGGED[1])
TRAINING = [
    Training("published"),
    Training("left_padded", left_padded=True),
    Training("labels_everywhere", label_all=True),
    _one("all_layers", router_layer_idx="all", aux_loss_method="INFONCE"),
    _one("odd_number_of_layers", router_layer_idx="all", layers=5),
    _one("lower_and_upper_layer", router_layer_idx="1,3"),
    _one("lower_layers_without_loss", router_layer_idx="0,1"),
    _one("layers_out_of_order", router_layer_idx="3,2"),
    _one("coupled_infonce", decouple_router=False, aux_loss_method="INFONCE"),
    _one("coupled_all_layers", decouple_router=False, router_layer_idx="all"),
    Training(
        "chunks_of_64",
        published_config(pooling_kernel_size=64),
        (Sample((64, 128, 70), (3,)), Sample((65,), (1,))),
        left_padded=True,
        label_all=True,
    ),
    _one(
        "fewer_documents_than_k",
        (Sample((4, 3), (1,)), Sample((9,), (1,)), Sample((3, 4, 5, 6, 7, 8), (1, 4, 6))),
        top_k_docs=4,
    ),
    _one(
        "several_positives_infonce",
        (Sample((7, 3, 10, 1), (2, 4)), RAGGED[1]),
        aux_loss_method="INFONCE",
    ),
    _one("several_positives_decoupled", (Sample((7, 3, 10, 1), (2, 4)), RAGGED[1])),
    _one("every_document_positive", EVERY_POSITIVE),
    _one("every_document_positive_infonce", EVERY_POSITIVE, aux_loss_method="INFONCE"),
    _one("sample_without_positive", NO_POSITIVE),
    _one("sample_without_positive_infonce", NO_POSITIVE, aux_loss_method="INFONCE"),
    _one(
        "document_numbers_with_gaps",
        (
            Sample((7, 3, 10, 1), (5,), numbers=(2, 3, 5, 9)),
            Sample((5, 9, 4), (7,), numbers=(1, 7, 8)),
        ),
    ),
    _one("single_tokens", (Sample((1,), (1,), 1, 1), Sample((2, 1, 1), (1,), 1, 1))),
    _one("tied_gqa_4", tie=True, heads=(4, 1, 8)),
    _one("gqa_1", heads=(4, 4, 8)),
    _one("doc_top_k", top_k_docs=None, doc_top_k=3),
    _one("temperature_above_its_clamp", infonce_loss_temp=0.9),
    _one("temperature_below_its_clamp", infonce_loss_temp=0.0005),
    Training("temperature_of_the_checkpoint", temperature=0.3),
    *(Training(name, config, left_padded=True) for name, config in _reductions()),
]

# As published, `last` finds the last question token of unpadded prompts only: one prompt each.
SERVING = [
    Serving("serving_published"),
    Serving("serving_infonce", published_config(aux_loss_method="INFONCE")),
    Serving("serving_coupled", published_config(decouple_router=False)),
    Serving(
        "serving_blocks_all_layers",
        published_config(router_layer_idx="all"),
        ((9, 5), (14,), (6, 2, 3, 7, 1), (30,)),
    ),
    Serving(
        "serving_blocks_infonce",
        published_config(router_layer_idx="1,2", aux_loss_method="INFONCE"),
        ((9, 5), (14,), (6, 2)),
    ),
    Serving("serving_lower_layers", published_config(router_layer_idx="0,1")),
    Serving("serving_doc_top_k", published_config(top_k_docs=None, doc_top_k=3)),
    Serving("serving_every_document", published_config(top_k_docs=5)),
    Serving("serving_gqa_1", published_config(heads=(4, 4, 8))),
    Serving("serving_tied_gqa_4", published_config(tie=True, heads=(4, 1, 8)), questions=(1, 4, 6)),
    Serving(
        "serving_chunks_of_64", published_config(pooling_kernel_size=64), ((60, 130, 20), (64,))
    ),
    *(Serving(f"serving_{name}", config, questions=(7,)) for name, config in _reductions()),
]
