"""An export as a model of transformers: our decoder, our KV cache, our memory engine.

`forward`, and `generate` without a memory, are the backbone's. A memory is read by `generate`
alone, in the rounds of SPEC section 4. Nothing is computed a second time here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from msa_train.errors import BankError, CheckpointError, ConfigError
from msa_train.interop.huggingface.asking import MemoryGenerateOutput, Settings, output, read_prompt
from msa_train.interop.huggingface.cache import DecoderCache
from msa_train.interop.huggingface.config import MSAConfig
from msa_train.interop.huggingface.memories import Memory, is_bank, open_memory
from msa_train.interop.huggingface.origin import Origin
from msa_train.interop.huggingface.rows import PackedRows
from msa_train.memory.engine.engine import MemoryEngine
from msa_train.memory.engine.interleave import InterleaveLimits, Mode, Request, usual_mode
from msa_train.memory.search.view import MemoryView
from msa_train.model.batch import positions_within
from msa_train.model.decoder import MSADecoder
from msa_train.model.kv_cache import KVCache

_LIMIT = 1 << 30  # tokens of a row of the cache; memory is taken as it is needed
_FIRST_TOKENS = 512
_NOT_COMPUTED = ("inputs_embeds", "output_attentions", "output_hidden_states")
_NOT_LOADED = ("quantization_config", "load_in_8bit", "load_in_4bit", "gguf_file", "state_dict",
               "subfolder", "variant")  # fmt: skip


class MSAForCausalLM(PreTrainedModel, GenerationMixin):
    """A language model with a memory: an export of `msa export` or `msa import`.

    Weights carry the published names. A memory (attach_memory, from_pretrained, generate) is a
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
        self._origin: tuple[Origin, int] | None = None  # with the stamp of its weights
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
    def origin(self) -> Origin:
        """The export. Raises ConfigError for a model that was made from a config alone."""
        if self._origin is None:
            raise ConfigError(
                "this model was made from a config, and has no tokenizer and no fingerprint: use "
                "from_pretrained with a folder of `msa export` or `msa import`"
            )
        return self._origin[0]

    @property
    def _stamp(self) -> int:
        """Another number after every change of a weight in place, as an optimizer makes it."""
        return sum(weight._version for weight in self.parameters())

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # ours is made in forward

    # Loading and saving

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *inputs: Any,
        memory: Memory | None = None,
        **settings: Any,
    ) -> Any:
        """The model of an export's folder, with a memory attached if one is given.

        settings: as of PreTrainedModel.from_pretrained; the dtype is the stored one unless given.
        Raises CheckpointError for a folder that is no whole export, ConfigError for settings that
        would change the weights, BankError for a memory of another model.
        """
        for name in _NOT_LOADED:
            if settings.get(name):
                raise ConfigError(
                    f"from_pretrained: {name} cannot be honoured: a memory belongs to the weights "
                    "of its export, whole and as they are"
                )
        asked_for_info = settings.pop("output_loading_info", False)
        folder = Path(pretrained_model_name_or_path)
        origin = Origin.of(folder)
        model, info = super().from_pretrained(folder, *inputs, output_loading_info=True, **settings)
        if model.decoder.config != origin.config or any(info.values()):
            raise CheckpointError(f"{folder} was opened with another config than it has: {info}")
        if len({*getattr(model, "hf_device_map", {}).values()}) > 1:
            raise ConfigError("device_map: the decoder runs on one device, give its name")
        model._begin_as(origin)
        if memory is not None:
            model.attach_memory(memory)
        return (model, info) if asked_for_info else model

    def _begin_as(self, origin: Origin) -> None:
        self._origin, own = (origin, self._stamp), self.generation_config
        if own.eos_token_id is None and (ends := origin.end_tokens):
            own.eos_token_id = ends if len(ends) > 1 else ends[0]
        if own.pad_token_id is None:
            own.pad_token_id = origin.tokenizer.pad_id
        if own.do_sample is None:  # or a pipeline would draw at its own temperature
            own.do_sample = False

    def save_pretrained(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        **others: Any,
    ) -> None:
        """Write an export that opens as this one: weights, config, tokenizer and fingerprint.

        Weights that were not changed, in whatever dtype they are computed, are the same file, so
        banks still open. Others make another export, which needs banks of its own. Raises
        CheckpointError for a folder that holds something, ConfigError for what an export has not
        (several files, an upload).
        """
        for name, value in others.items():
            if value and (name, value) != ("safe_serialization", True):
                raise ConfigError(f"save_pretrained: {name} cannot be honoured: leave it out")
        if is_main_process:
            weights = self.state_dict() if state_dict is None else state_dict
            generation = self.generation_config.to_json_string()
            self.origin.save(Path(save_directory), weights, generation)

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
        """The backbone's logits [batch, columns, vocabulary].

        attention_mask [batch, columns]: zeros are padding, whose logits mean nothing. cache: what
        an earlier call returned; with one nothing is differentiated. use_cache: by default in
        evaluation mode. Raises ConfigError while a memory is attached: only `generate` reads it.
        """
        cache = others.pop("past_key_values", None) if cache is None else cache
        self._check_forward(input_ids, cache, others)
        rows = PackedRows.of(input_ids.to(self.device), attention_mask, position_ids)
        if cache is None:
            hidden, cache = self._begin(rows, not self.training if use_cache is None else use_cache)
        else:
            hidden = self._continue(rows, cache)
        kept = (
            slice(-logits_to_keep or None, None)
            if isinstance(logits_to_keep, int)
            else logits_to_keep
        )
        logits, loss = self.decoder.logits(rows.padded(hidden)[:, kept]), None
        if labels is not None:
            given = {"labels": labels.to(logits.device), "vocab_size": logits.shape[-1], **others}
            loss = self.loss_function(logits=logits, **given)
        found = CausalLMOutputWithPast(loss=loss, logits=logits, cache=cache)
        return found.to_tuple() if return_dict is False else found

    def _check_forward(self, ids: Tensor | None, cache: Any, others: Mapping[str, Any]) -> None:
        if self.memory is not None:
            raise ConfigError(
                "a memory is attached, and forward reads none: generate does; to compute or train "
                "the backbone, detach_memory() first (a model learns to read its memory with "
                "`msa train`)"
            )
        for name in _NOT_COMPUTED:
            if others.get(name) is not None and others[name] is not False:
                raise ConfigError(f"forward: {name} cannot be honoured by this decoder")
        if ids is None:
            raise ConfigError("forward: input_ids are missing")
        if cache is not None and not isinstance(cache, DecoderCache):
            raise ConfigError(
                f"forward: cache is a {type(cache).__name__}: give what an earlier call of this "
                "model returned, or none"
            )

    def _begin(self, rows: PackedRows, keep: bool) -> tuple[Tensor, DecoderCache | None]:
        """Final states [N, d] of whole sequences, and their cache."""
        cu = rows.cu()
        positions = positions_within(cu) if rows.positions is None else rows.positions
        prefill = self.decoder.prefill_alone(rows.tokens, cu, positions)
        if not keep:
            return prefill.hidden, None
        with torch.no_grad():
            every = range(len(rows.counts))
            first, like = max(_FIRST_TOKENS, *rows.counts), prefill.hidden.detach()
            held = KVCache(self.decoder.config, len(every), _LIMIT, like, first)
            held.admit(prefill, every, every)
        return prefill.hidden, DecoderCache(held, rows.there.shape[1])

    @torch.no_grad()
    def _continue(self, rows: PackedRows, cache: DecoderCache) -> Tensor:
        """Final states [N, d] of more tokens of each row."""
        held, counts = cache.held, rows.counts
        if len(counts) != held.rows:
            raise ConfigError(f"input_ids have {len(counts)} rows, the cache {held.rows}")
        cache.columns += rows.there.shape[1]
        if all(count == 1 for count in counts):
            return self.decoder.decode(rows.tokens, held, held.begin_step([True] * len(counts)))
        longer = [row for row, count in enumerate(counts) if count]
        return self.decoder.extend(rows.tokens, longer, [counts[row] for row in longer], held)

    # The memory

    def attach_memory(self, memory: Memory) -> Self:
        """`generate` reads this memory from now on. Raises as open_memory."""
        self._attached = self.open_memory(memory), self._stamp
        return self

    def detach_memory(self) -> None:
        """`generate` is the backbone's again."""
        self._attached = None

    def open_memory(self, memory: Memory) -> MemoryView:
        """A memory ready to be asked any number of times, for attach_memory or generate.

        Texts are encoded with the weights as they are now and numbered from 0. Raises BankError
        for a bank of another model, or no text; ConfigError for what is no memory.
        """
        if self._origin is not None and is_bank(memory) and self._stamp != self._origin[1]:
            raise BankError(
                "the weights were changed since they were loaded, so no bank is of this model: "
                "save_pretrained, and build a bank with the new folder, or give texts"
            )
        return open_memory(memory, self.decoder, self.origin)

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
        documents to read, as in `msa ask`: generate (the model), router (the routers' vote) or
        memory (nobody). max_new_tokens bounds an answer (128 unless given); limits: the
        other bounds. do_sample, temperature, top_p and stop_strings are honoured; what cannot be is
        refused by name (ConfigError). Returns tokens [batch, columns], prompt first, or with
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
        found = self._answered(ids, mask, view, retrieval or usual_mode(self.decoder.config), asked)
        return found if asked.whole else found.sequences

    def _current_view(self) -> MemoryView:
        view, stamp = self._attached
        if stamp != self._stamp:
            raise BankError("the weights were changed since the memory was attached: attach anew")
        return view

    def _answered(
        self, ids: Tensor, mask: Tensor | None, view: MemoryView, mode: Mode, asked: Settings
    ) -> MemoryGenerateOutput:
        tokenizer, rows, requests = self.origin.tokenizer, PackedRows.of(ids, mask), []
        for row in rows.tokens.split(rows.counts):
            prompt = read_prompt(tokenizer, row.tolist())
            requests.append(
                Request(
                    prompt.question, view, mode, asked.limits, asked.sampling(),
                    prompt.instructions, prompt.earlier, asked.stops,
                )
            )  # fmt: skip
        answers = MemoryEngine(self.decoder, tokenizer, view).answer(requests)
        return output(ids, answers, view, asked)
