"""Every Triton kernel compiled for a GPU that need not be there, with the options of a launch."""

import triton
from msa_kernels.gpu import attend, attend_backward, norm_rope, pool, quantise, scatter, scores
from msa_kernels.gpu.launch import _TILES, shrunk
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

LIMIT = {80: 163 << 10, 90: 227 << 10}  # bytes of shared memory that a block may take
_GENERATION = {80: "ampere", 90: "hopper"}
_FLOAT = {"scales", "norms", "lse", "delta", "best_out", "weights", "bias", "d_bias", "cos", "sin",
          "d_weights", "squares", "lengths"}  # fmt: skip
_STATES = {"x0", "x1", "x2", "out0", "out1", "out2", "grad0", "grad1", "grad2", "dx0", "dx1",
           "dx2", "unit", "query", "keys", "source", "out", "q", "k", "v", "pooled_k", "pooled_v",
           "grad", "dq", "dk", "dv", "q_out", "k_out", "q_weight", "k_weight", "q_grad",
           "k_grad", "values", "rest", "a", "b"}  # fmt: skip
_NUMBERS = {"features", "width", "blocks", "contexts", "documents", "heads", "kv_heads",
            "head_dim", "count", "tokens", "q_heads", "k_heads", "half", "chunks",
            "token_bits"}  # fmt: skip
_REAL = {"scale", "eps", "largest"}
_SCORE = {"PLACE": True, "SPLIT": False, "HEAD": 0}
_NARROW = {"PLACE": False, "SPLIT": True, "HEAD": 128}
_ATTEND = {"BIAS": True, "D": 128}
_FLOAT32 = dict.fromkeys(_STATES, "*fp32")

# name: (kernel, operation whose tiles it takes, constants, types that differ)
_KERNELS = {
    "mean_forward": (pool.mean_forward, None, {"NORM": True, "ROWS": 16, "BLOCK": 128}, {}),
    "mean_backward": (pool.mean_backward, None, {"NORM": True, "ROWS": 16, "BLOCK": 128}, {}),
    "document_maxima": (scores.document_maxima, "score", _SCORE, {}),
    "document_maxima_split": (
        scores.document_maxima, "score", {**_SCORE, "SPLIT": True}, {},
    ),
    "document_maxima_float32": (scores.document_maxima, "score", {**_SCORE, "V": 32}, _FLOAT32),
    "document_maxima_int8": (scores.document_maxima, "score", _NARROW, {"keys": "*i8"}),
    "document_maxima_fp8": (scores.document_maxima, "score", _NARROW, {"keys": "*fp8e4nv"}),
    "entry_maxima": (scores.entry_maxima, "score", {"SPLIT": False}, {}),
    "sum_runs": (scatter.sum_runs, None, {"WEIGHTED": True, "V": 128}, {}),
    "sum_hits": (scatter.sum_hits, None, {"ROWS": 32, "ENTRIES": 32, "V": 128}, {}),
    "attend_forward": (attend.attend_forward, "attend", _ATTEND, {}),
    "query_gradient": (attend_backward.query_gradient, "attend_backward", _ATTEND, {}),
    "token_gradient": (attend_backward.token_gradient, "attend_backward", {"D": 128}, {}),
    "entry_gradient": (
        attend_backward.entry_gradient, "attend_backward", _ATTEND, {"dk": "*fp32", "dv": "*fp32"},
    ),
    "attend_forward_float32": (attend.attend_forward, "attend", _ATTEND, _FLOAT32),
    "attend_forward_wide": (attend.attend_forward, "attend", {**_ATTEND, "D": 256}, {}),
    "query_gradient_float32": (
        attend_backward.query_gradient, "attend_backward", _ATTEND, _FLOAT32,
    ),
    "token_gradient_float32": (
        attend_backward.token_gradient, "attend_backward", {"D": 128}, _FLOAT32,
    ),
    "entry_gradient_float32": (
        attend_backward.entry_gradient, "attend_backward", _ATTEND, _FLOAT32,
    ),
    "entry_gradient_wide": (
        attend_backward.entry_gradient, "attend_backward", {**_ATTEND, "D": 256},
        {"dk": "*fp32", "dv": "*fp32"},
    ),
    "row_products": (attend_backward.row_products, None, {"D": 128, "M": 64}, {}),
    "norm_rope_forward": (norm_rope.norm_rope_forward, None, {"ROWS": 32, "HALF": 64}, {}),
    "norm_rope_backward": (norm_rope.norm_rope_backward, None, {"ROWS": 32, "HALF": 64}, {}),
    "quantise_heads": (
        quantise.quantise_heads, None, {"WHOLE": True, "CHUNKS": 32, "D": 128}, {"values": "*i8"},
    ),
}  # fmt: skip
# Triton has no e4m3 before Ada: torch runs there.
CASES = [(name, at) for name in _KERNELS for at in LIMIT if not (at == 80 and "fp8" in name)]


def shared_bytes(name: str, capability: int) -> int:
    """Compiles; returns the shared memory that a block takes."""
    kernel, operation, constants, types = _KERNELS[name]
    sizes, warps, stages = _TILES[_GENERATION[capability]][operation or "score"]
    if "D" in constants and operation:
        sizes = shrunk(sizes, constants["D"], 4 if types == _FLOAT32 else 2)
    constants = {**(sizes if operation else {}), **constants}
    signature = {n: "constexpr" if n in constants else _type(n, types) for n in kernel.arg_names}
    compiled = triton.compile(
        ASTSource(kernel, signature, constants, _divisible(kernel, signature)),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": warps, "num_stages": stages},
    )
    return compiled.metadata.shared


def _divisible(kernel, signature: dict[str, str]) -> dict:
    """What a launch of usual sizes says of its arguments: pointers and widths in sixteens."""
    lengths = kernel.do_not_specialize or ()
    usual = [n for n, kind in signature.items() if kind[0] == "*" or kind == "i32"]
    places = [kernel.arg_names.index(n) for n in usual if n not in (*lengths, "kv_heads")]
    return {(place,): [["tt.divisibility", 16]] for place in places}


def _type(name: str, types: dict[str, str]) -> str:
    if name in types:
        return types[name]
    for names, kind in ((_FLOAT, "*fp32"), (_STATES, "*bf16"), (_NUMBERS, "i32"), (_REAL, "fp32")):
        if name in names:
            return kind
    return "*i64"
