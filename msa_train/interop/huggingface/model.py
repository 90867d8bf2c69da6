"""An export as a model of transformers: our decoder, our KV cache, our memory engine.

`forward`, and `generate` without a memory, are the backbone's. A memory is read by `generate`
alone, in the rounds of SPEC section 4. Nothing is computed a second time here.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from msa_kernels import cumulative
from safetensors import safe_open
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from data_pipeline import files
from data_pipeline.progress import ProgressBar
from data_pipeline.tokenizer import Tokenizer, load_tokenizer
from msa_train.errors import BankError, CheckpointError, ConfigError
from msa_train.interop.backbones.backbone import DTYPES
from msa_train.interop.backbones.weights_file import write_weights
from msa_train.interop.export import FINGERPRINT, WEIGHTS, check_export, seal
from msa_train.interop.huggingface.asking import MemoryGenerateOutput, Settings, output, read_prompt
from msa_train.interop.huggingface.cache import DecoderCache
from msa_train.interop.huggingface.config import MSAConfig
from msa_train.memory.bank.corpus import Splitting
from msa_train.memory.bank.documents import StoredDocument
from msa_train.memory.bank.encode import encode_documents
from msa_train.memory.bank.snapshot import BankSnapshot
from msa_train.memory.engine.engine import MemoryEngine
from msa_train.memory.engine.interleave import InterleaveLimits, Mode, Request
from msa_train.memory.search.in_memory import joined, view_of
from msa_train.memory.search.loader import BankLoader, bank_view
from msa_train.memory.search.settings import TierSettings
from msa_train.memory.search.view import MemoryView
from msa_train.model.batch import positions_within
from msa_train.model.decoder import MSADecoder
from msa_train.model.kv_cache import KVCache
from msa_train.model.weights import weight_shapes

# A bank's folder or an opened one, or the texts themselves.
Memory = str | Path | BankSnapshot | MemoryView | Sequence[str]

_GENERATION = "generation_config.json"
_LIMIT = 1 << 30  # tokens of a row; memory is taken as it is needed
_FIRST_TOKENS = 512
_NOT_GIVEN = ("inputs_embeds", "output_attentions", "output_hidden_states")
_NOT_LOADED = ("quantization_config", "load_in_8bit", "load_in_4bit", "gguf_file", "state_dict",
               "subfolder", "variant", "adapter_kwargs")  # fmt: skip


@dataclass(frozen=True)
class _Origin:
    """The export that a model was loaded from. stamp: of its weights then."""

    folder: Path
    tokenizer: Tokenizer
    fingerprint: dict[str, str]
    stamp: int


@dataclass(frozen=True)
class _Packed:
    """Rows of input_ids without padding. there [batch, columns]; tokens [N]; counts of each row."""

    there: Tensor
    tokens: Tensor
    counts: list[int]
    positions: Tensor | None

    @classmethod
    def of(cls, ids: Tensor, mask: Tensor | None, positions: Tensor | None) -> _Packed:
        if ids.dim() != 2:
            raise ConfigError(f"input_ids have shape {list(ids.shape)}: give [batch, columns]")
        there = torch.ones_like(ids, dtype=torch.bool)
        if mask is not None:
            if mask.dim() != 2 or mask.shape[1] < ids.shape[1]:
                raise ConfigError(
                    f"attention_mask has shape {list(mask.shape)} with input_ids "
                    f"{list(ids.shape)}: give ones and zeros of [batch, columns]"
                )
            there = mask[:, mask.shape[1] - ids.shape[1] :].to(ids.device).bool()
        if positions is not None:
            positions = positions.to(ids.device).expand_as(ids)[there]
        return cls(there, ids[there], there.sum(1).tolist(), positions)

    def cu(self) -> Tensor:
        """[batch+1]. Raises ConfigError for a row that is padding alone."""
        if not all(self.counts):
            raise ConfigError(f"row {self.counts.index(0)} of input_ids has no token")
        return cumulative(torch.tensor(self.counts, device=self.tokens.device))

    def unpacked(self, states: Tensor) -> Tensor:
        """[N, d] -> [batch, columns, d], zeros where there is padding."""
        found = states.new_zeros(*self.there.shape, states.shape[1])
        found[self.there] = states
        return found


class MSAForCausalLM(PreTrainedModel, GenerationMixin):
    """A language model with a memory: an export of `msa export` or `msa import`.

    Weights carry the published names. `memory` (attach_memory, from_pretrained, generate) is a
    bank's folder, an opened bank or view, or a list of texts, which are encoded in place.
    """

    config_class = MSAConfig
    base_model_prefix = "model"
    _is_stateful = True  # transformers then refuses assisted generation, which takes tokens back

    def __init__(self, config: MSAConfig):
        super().__init__(config)
        decoder = MSADecoder(config.decoder_config)
        self.model = decoder.model
        if not decoder.config.tie_embeddings:
            self.lm_head = decoder.lm_head
        self._decoder = (decoder,)  # not a module of its own: its parts are
        self._origin: _Origin | None = None
        self._attached: tuple[MemoryView, int] | None = None
        self.post_init()

    @property
    def decoder(self) -> MSADecoder:
        """Ours, over the same weights."""
        return self._decoder[0]

    @property
    def memory(self) -> MemoryView | None:
        """What is attached."""
        return None if self._attached is None else self._attached[0]

    @property
    def fingerprint(self) -> dict[str, str]:
        """What banks know of the export."""
        return dict(self._export.fingerprint)

    @property
    def _export(self) -> _Origin:
        if self._origin is None:
            raise ConfigError(
                "this model was made from a config: its export has no tokenizer and no "
                "fingerprint; use from_pretrained with a folder of `msa export` or `msa import`"
            )
        return self._origin

    @property
    def _stamp(self) -> int:
        """Changes with every change of a weight in place, as an optimizer makes it."""
        return sum(weight._version for weight in self.parameters())

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # ours is made in forward

    # Loading and saving

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *inputs: Any, memory: Memory | None = None, **settings: Any
    ) -> Any:
        """The model of an export's folder, in evaluation mode, with a memory attached if given.

        settings: as of PreTrainedModel.from_pretrained; dtype is the stored one unless given.
        Raises CheckpointError for a folder that is no whole export, ConfigError for settings that
        would change the weights, BankError for a memory of another model.
        """
        for name in _NOT_LOADED:
            if settings.get(name):
                raise ConfigError(
                    f"from_pretrained: {name} cannot be honoured: a memory belongs to the weights "
                    "of its export, whole and as they are"
                )
        wants_info = settings.pop("output_loading_info", False)
        config, fingerprint = check_export(Path(folder))
        model, info = super().from_pretrained(folder, *inputs, output_loading_info=True, **settings)
        if model.decoder.config != config or any(info.values()):
            raise CheckpointError(f"{folder} was opened with another config than it has: {info}")
        if len({*getattr(model, "hf_device_map", {}).values()}) > 1:
            raise ConfigError("device_map: the decoder runs on one device; give its name")
        model._take(_Origin(Path(folder), load_tokenizer(folder), fingerprint, model._stamp))
        if memory is not None:
            model.attach_memory(memory)
        return (model, info) if wants_info else model

    def _take(self, origin: _Origin) -> None:
        self._origin, own = origin, self.generation_config
        ends = origin.tokenizer.control_ids("<|im_end|>")
        if own.eos_token_id is None and len(ends) == 1:
            own.eos_token_id = ends[0]
        if own.pad_token_id is None:
            own.pad_token_id = origin.tokenizer.pad_id

    def save_pretrained(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        **refused: Any,
    ) -> None:
        """Write an export that opens as this one: weights, config, tokenizer and fingerprint.

        Weights that were not changed are the same file, so banks still open. Others make another
        export, which needs banks of its own. Raises CheckpointError for a folder that holds
        something, ConfigError for what an export has not (several files, uploads).
        """
        for name, value in refused.items():
            if value and (name, value) != ("safe_serialization", True):
                raise ConfigError(f"save_pretrained: {name} cannot be honoured: leave it out")
        if not is_main_process:
            return
        origin, target = self._export, Path(save_directory)
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise CheckpointError(f"{target} exists: remove it, or give another folder")
        weights = self._named_weights(self.state_dict() if state_dict is None else state_dict)
        target.parent.mkdir(parents=True, exist_ok=True)
        with files.whole(target) as folder:
            folder.mkdir()
            self._write(folder, origin, weights)

    def _named_weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        shapes = weight_shapes(self.decoder.config)
        if {name: tuple(weight.shape) for name, weight in state.items()} != shapes:
            wrong = sorted(
                name for name in shapes.keys() | state.keys()
                if name not in state or tuple(state[name].shape) != shapes.get(name)
            )  # fmt: skip
            raise CheckpointError(
                f"these are not the weights of this model's config: {wrong[0]} and "
                f"{len(wrong) - 1} others are missing, unknown or of another shape (merge adapters "
                "first)"
            )
        return {name: state[name].detach().cpu() for name in shapes}

    def _write(self, folder: Path, origin: _Origin, weights: dict[str, Tensor]) -> None:
        for path in origin.folder.iterdir():
            if path.is_file() and path.name not in (WEIGHTS, FINGERPRINT, _GENERATION):
                shutil.copy(path, folder)
        if _holds(origin.folder / WEIGHTS, weights):
            shutil.copy(origin.folder / WEIGHTS, folder)
        else:
            dtypes = {weight.dtype for weight in weights.values()}
            if not dtypes <= set(DTYPES):
                raise CheckpointError(f"weights in {dtypes} cannot be exported: cast the model")
            planned = {name: (w.dtype, tuple(w.shape)) for name, w in weights.items()}
            write_weights(folder / WEIGHTS, planned, weights.items())
        files.replace_file(folder / _GENERATION, self.generation_config.to_json_string())
        fingerprint = seal(folder)
        if any(fingerprint[name] != origin.fingerprint[name] for name in ("config", "tokenizer")):
            raise CheckpointError(
                f"{origin.folder} is another export than the one that was opened: its config or "
                "tokenizer changed meanwhile"
            )

    # The backbone

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: DecoderCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        **others: Any,
    ) -> CausalLMOutputWithPast | tuple:
        """The backbone's logits [batch, columns, vocabulary], which no memory changes.

        attention_mask [batch, columns]: zeros are padding, whose logits mean nothing. cache: what
        an earlier call returned; with one nothing is differentiated. use_cache: by default in
        evaluation mode. Raises ConfigError while a memory is attached: only `generate` reads it.
        """
        cache = others.pop("past_key_values", None) if cache is None else cache
        self._check_forward(input_ids, cache, others)
        packed = _Packed.of(input_ids.to(self.device), attention_mask, position_ids)
        if cache is None:
            hidden, cache = self._begin(
                packed, not self.training if use_cache is None else use_cache
            )
        else:
            hidden = self._continue(packed, cache)
        states = packed.unpacked(hidden)
        if isinstance(logits_to_keep, int):
            states = states[:, -logits_to_keep:] if logits_to_keep else states
        else:
            states = states[:, logits_to_keep]
        logits, loss = self.decoder.logits(states), None
        if labels is not None:
            size = {"vocab_size": self.decoder.config.vocab_size}
            loss = self.loss_function(
                logits=logits, labels=labels.to(logits.device), **size, **others
            )
        found = CausalLMOutputWithPast(loss=loss, logits=logits, cache=cache)
        return found.to_tuple() if return_dict is False else found

    def _check_forward(self, ids: Tensor | None, cache: Any, others: Mapping[str, Any]) -> None:
        if self.memory is not None:
            raise ConfigError(
                "a memory is attached, and forward reads none: generate does; to compute or train "
                "the backbone, detach_memory() first (a model learns to read its memory with "
                "`msa train`)"
            )
        for name in _NOT_GIVEN:
            if others.get(name) is not None and others[name] is not False:
                raise ConfigError(f"forward: {name} cannot be honoured by this decoder")
        if ids is None:
            raise ConfigError("forward: input_ids are missing")
        if cache is not None and not isinstance(cache, DecoderCache):
            raise ConfigError(
                f"forward: cache is a {type(cache).__name__}: give what an earlier call of this "
                "model returned, or none"
            )

    def _begin(self, packed: _Packed, keep: bool) -> tuple[Tensor, DecoderCache | None]:
        """Final states [N, d] of whole sequences, and their cache."""
        cu = packed.cu()
        positions = positions_within(cu) if packed.positions is None else packed.positions
        prefill = self.decoder.prefill_alone(packed.tokens, cu, positions)
        if not keep:
            return prefill.hidden, None
        with torch.no_grad():
            rows = range(len(packed.counts))
            first = max(_FIRST_TOKENS, *packed.counts)
            held = KVCache(self.decoder.config, len(rows), _LIMIT, prefill.hidden.detach(), first)
            held.admit(prefill, rows, rows)
        return prefill.hidden, DecoderCache(held, packed.there.shape[1])

    @torch.no_grad()
    def _continue(self, packed: _Packed, cache: DecoderCache) -> Tensor:
        """Final states [N, d] of more tokens of each row."""
        held, counts = cache.held, packed.counts
        if len(counts) != held.rows:
            raise ConfigError(f"input_ids have {len(counts)} rows, the cache {held.rows}")
        cache.columns += packed.there.shape[1]
        if all(count == 1 for count in counts):
            return self.decoder.decode(packed.tokens, held, held.begin_step([True] * len(counts)))
        rows = [row for row, count in enumerate(counts) if count]
        return self.decoder.extend(packed.tokens, rows, [counts[row] for row in rows], held)

    # Memory

    def attach_memory(self, memory: Memory) -> Self:
        """`generate` reads this memory from now on. Raises as open_memory."""
        self._attached = self.open_memory(memory), self._stamp
        return self

    def detach_memory(self) -> None:
        """`generate` is the backbone's again."""
        self._attached = None

    def open_memory(self, memory: Memory) -> MemoryView:
        """A bank's folder, an opened bank, or texts, ready to be asked any number of times.

        Texts are encoded with the weights as they are now and numbered from 0; those of more than
        2,048 tokens become several documents with the text's place as their id, as `msa memory
        build` splits them. Raises BankError for a bank of another model, or no text; ConfigError
        for anything else.
        """
        router = self.decoder.config.router
        if isinstance(memory, MemoryView):
            config = self.decoder.config
            if (memory.router, memory.head_dim) != (config.router, config.head_dim):
                raise BankError("this view is of a bank of another model: open it with this one")
            return memory
        if isinstance(memory, BankSnapshot):
            self._check_unchanged()
            memory.manifest.check_fingerprint(memory.path, self._export.fingerprint)
        elif isinstance(memory, str | Path):
            self._check_unchanged()
            memory = BankSnapshot.open(memory, self._export.fingerprint)
        else:
            return self._encoded(memory)
        return bank_view(memory, router, BankLoader(TierSettings(), self.device))

    def _check_unchanged(self) -> None:
        if self._stamp != self._export.stamp:
            raise BankError(
                "the weights were changed since they were loaded, so no bank is of this model: "
                "save_pretrained, and build a bank with the new folder, or give texts"
            )

    def _encoded(self, texts: Any) -> MemoryView:
        if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
            raise ConfigError(
                f"memory is a {type(texts).__name__}: give a bank's folder, an opened bank, or a "
                "list of texts"
            )
        tokenizer = self._export.tokenizer
        given = (StoredDocument(place, text, str(place)) for place, text in enumerate(texts))
        documents, batches = Splitting(tokenizer)(given), []
        with ProgressBar("encoding", "documents", None, "tokens") as bar:
            for batch in encode_documents(self.decoder, tokenizer, documents):
                batches.append(batch)
                bar.advance(len(batch.documents), int(batch.tokens.sum()))
        held = [document for batch in batches for document in batch.documents]
        return view_of(held, *joined(batches), self.decoder.config.router)

    def generate(
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        memory: Memory | None = None,
        retrieval: Mode | None = None,
        limits: InterleaveLimits | None = None,
        **settings: Any,
    ) -> Any:
        """As of transformers; with a memory (given or attached), the answers of `msa ask`.

        The prompt is a question, or a conversation by the chat template. retrieval: who names the
        documents to read: generate (default: the model), router (the routers' vote) or memory
        (nobody). max_new_tokens bounds an answer (128 unless given); limits: the other bounds.
        do_sample, temperature, top_p and stop_strings are honoured; what cannot be is refused by
        name (ConfigError). Returns tokens [batch, columns], prompt first, or with
        return_dict_in_generate a MemoryGenerateOutput, which has rounds and sources.
        """
        if memory is None and self.memory is None:
            if retrieval is not None or limits is not None:
                raise ConfigError("generate: retrieval and limits need a memory, and there is none")
            return super().generate(inputs, generation_config, **settings)
        ids = settings.pop("input_ids", None) if inputs is None else inputs
        mask = settings.pop("attention_mask", None)
        if ids is None:
            raise ConfigError("generate with a memory: input_ids, the question, are missing")
        asked = Settings.of(generation_config, self.generation_config, limits, settings)
        view = self._current_view() if memory is None else self.open_memory(memory)
        found = self._answered(ids, mask, view, retrieval or "generate", asked)
        return found if asked.whole else found.sequences

    def _current_view(self) -> MemoryView:
        view, stamp = self._attached
        if stamp != self._stamp:
            raise BankError("the weights were changed since the memory was attached: attach anew")
        return view

    def _answered(
        self, ids: Tensor, mask: Tensor | None, view: MemoryView, mode: Mode, asked: Settings
    ) -> MemoryGenerateOutput:
        tokenizer, packed = self._export.tokenizer, _Packed.of(ids, mask, None)
        requests = []
        for row in packed.tokens.split(packed.counts):
            prompt = read_prompt(tokenizer, row.tolist())
            requests.append(
                Request(
                    prompt.question, view, mode, asked.limits, asked.sampling(),
                    prompt.instructions, prompt.earlier, asked.stops,
                )
            )  # fmt: skip
        answers = MemoryEngine(self.decoder, tokenizer, view).answer(requests)
        return output(ids, answers, view, asked)


def _holds(path: Path, weights: Mapping[str, Tensor]) -> bool:
    """Whether a file's weights are these, bit for bit."""
    with safe_open(path, "pt") as stored:
        return all(
            (old := stored.get_tensor(name)).dtype == weight.dtype and torch.equal(old, weight)
            for name, weight in weights.items()
        )
