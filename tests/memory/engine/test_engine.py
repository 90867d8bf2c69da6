"""The engine: the training computation through a bank, many questions as one, scripted rounds."""

import pytest
import torch

from data_pipeline.protocol import END_OF_RETRIEVE, IM_END, REF_END, document_pieces, prompt_pieces
from msa_train.errors import ConfigError
from msa_train.memory.bank.build import build_bank
from msa_train.memory.bank.snapshot import BankSnapshot
from msa_train.memory.engine.engine import MemoryEngine
from msa_train.memory.engine.events import Evidence, Finished, Routed, TextPiece
from msa_train.memory.engine.interleave import Interleave, InterleaveLimits, Request
from msa_train.memory.engine.model_runner import ModelRunner, prefill_pieces
from msa_train.memory.search.loader import bank_view
from msa_train.model.batch import IGNORE, MemoryBatch, context_positions
from tests.batches import OWN_ROUTER, VOTING_ROUTER
from tests.memory.building import encode_in_memory
from tests.memory.engine.writing import writes
from tests.memory.tiny import FINGERPRINT, tiny_documents, tiny_model, tiny_tokenizer

QUESTIONS = [
    "What is the code of the harbour?",
    "Who sleeps standing?",
    "?",
    "東京",
    "What said the keeper of the lighthouse about the code, and what of the rain? " * 3,
]
SHORT = InterleaveLimits(rounds=2, retrieval_characters=12, answer_tokens=6)


def view_of(gate="threshold", count=7):
    return encode_in_memory(tiny_model(gate), tiny_tokenizer(), tiny_documents()[:count])


def engine_of(gate="threshold", count=7, **settings):
    return MemoryEngine(tiny_model(gate), tiny_tokenizer(), view_of(gate, count), **settings)


def batch_of(documents, contexts, config):
    """The two-stream batch of training, from the same pieces that the engine is given."""
    tokenizer = tiny_tokenizer()
    stored = [tokenizer.encode_pieces(document_pieces(d.number, d.text)) for d in documents]
    asked = [tokenizer.encode_pieces(pieces) for pieces in contexts]
    flat = [token for each in asked for token in each.tokens]
    nothing = torch.zeros(len(asked), len(documents), dtype=torch.bool)
    return MemoryBatch(
        doc_tokens=torch.tensor([token for each in stored for token in each.tokens]),
        doc_cu=torch.tensor([0, *(len(each.tokens) for each in stored)]).cumsum(0),
        doc_numbers=torch.tensor([document.number for document in documents]),
        doc_ids=torch.arange(len(documents)),
        bank_cu=torch.tensor([0, len(documents)]),
        tokens=torch.tensor(flat),
        ctx_cu=torch.tensor([0, *(len(each.tokens) for each in asked)]).cumsum(0),
        ctx_bank=torch.zeros(len(asked), dtype=torch.int64),
        positions=torch.cat(
            [
                context_positions(len(each.tokens), each.head_length, config.router.top_k)
                for each in asked
            ]
        ),
        is_query=torch.tensor(
            [r.routes(config.router.frame_routes) for each in asked for r in each.roles]
        ),
        memory_from=torch.tensor([each.head_length for each in asked]),
        labels=torch.full((len(flat),), IGNORE),
        positives=nothing,
        masked=nothing,
    )


@pytest.mark.parametrize("count", [7, 2, 1])  # fewer documents than top_k = 3
@pytest.mark.parametrize(
    ("gate", "router"),
    [("none", {}), ("threshold", {}), ("threshold", OWN_ROUTER), ("none", VOTING_ROUTER)],
)
def test_reading_a_bank_equals_the_training_computation(tmp_path, gate, router, count):
    """Prefill, then tokens fed unevenly, give the states of the whole two-stream batch."""
    model, tokenizer = tiny_model(gate, **router), tiny_tokenizer()
    documents = tiny_documents()[:count]
    build_bank(tmp_path / "b", model, tokenizer, documents, FINGERPRINT, "float32", 50)
    view = bank_view(BankSnapshot.open(tmp_path / "b", FINGERPRINT), model.config.router)
    prompts = [Interleave(Request(question, view, "memory")).context for question in QUESTIONS]
    with torch.no_grad():
        prefill = prefill_pieces(model, tokenizer, view, prompts)
        batch = ModelRunner(model, len(prompts) + 1, 1024, preallocate=count == 7)
        batch.admit(prefill, range(len(prompts)))
        encoded = [tokenizer.encode_pieces(pieces).tokens for pieces in prompts]
        pace = torch.Generator().manual_seed(count)
        for _ in range(4):
            counts = torch.randint(0, 4, (len(prompts),), generator=pace).tolist()
            more = [torch.randint(5, 300, (n,), generator=pace).tolist() for n in counts]
            batch.feed(more)
            encoded = [old + new for old, new in zip(encoded, more, strict=True)]
        whole = batch_of(documents, prompts, model.config)
        lengths = torch.tensor([len(each) for each in encoded])
        head = tokenizer.encode_pieces(prompts[0]).head_length
        query = whole.is_query.split(whole.ctx_cu.diff().tolist())
        whole = MemoryBatch(
            **{
                **vars(whole),
                "tokens": torch.tensor([token for each in encoded for token in each]),
                "ctx_cu": torch.tensor([0, *lengths.tolist()]).cumsum(0),
                "positions": torch.cat(
                    [context_positions(int(n), head, model.config.router.top_k) for n in lengths]
                ),
                "is_query": torch.cat(
                    [
                        torch.nn.functional.pad(q, (0, int(n) - len(q)))
                        for q, n in zip(query, lengths, strict=True)
                    ]
                ),
                "labels": torch.full((int(lengths.sum()),), IGNORE),
            }
        )
        expected = model(whole)
    last = expected.hidden[whole.ctx_cu[1:] - 1]
    torch.testing.assert_close(batch.last[: batch.count], last, rtol=1e-5, atol=1e-5)
    for layer, reading in prefill.selected.items():
        assert torch.equal(reading.routing.documents, expected.routings[layer].documents)
        assert reading.routing.documents.shape[1] == min(count, 3)


@pytest.mark.parametrize("mode", ["generate", "router", "memory"])
def test_asking_many_equals_asking_each(mode):
    def told(answers):
        return [
            (a.text, a.evidence, a.forced, [[n for n, _ in r.chosen.voted] for r in a.rounds])
            for a in answers
        ]

    single = [engine_of().ask([question], mode, SHORT)[0] for question in QUESTIONS]
    for batch_contexts in (2, 64):
        together = engine_of(batch_contexts=batch_contexts).ask(QUESTIONS, mode, SHORT)
        assert told(together) == told(single)
    assert told(single)[0] != told(single)[1]  # or equality would say nothing


def test_a_request_may_have_turns_instructions_and_stops():
    given = {"instructions": "Be brief.", "earlier": (("user", "Hm"),), "stop": ("e",)}
    view = view_of()
    requests = [Request(QUESTIONS[0], view, "memory", SHORT, **more) for more in ({}, given)]
    engine = MemoryEngine(tiny_model(), tiny_tokenizer(), view)
    plain, full = engine.answer(requests)
    assert plain.ids == engine.ask(QUESTIONS[:1], "memory", SHORT)[0].ids
    (alone,) = engine.answer(requests[1:])
    assert full.ids == alone.ids and full.prompt_tokens > plain.prompt_tokens
    assert engine.answer([]) == []


def test_routing_reports_each_layer_and_the_vote():
    view, config = view_of(), tiny_model().config
    chosen = engine_of().route(QUESTIONS)
    with torch.no_grad():
        prompts = [prompt_pieces(question) for question in QUESTIONS]
        out = tiny_model()(batch_of(tiny_documents(), prompts, config))
    scores = {layer: r.document_scores for layer, r in out.routings.items()}
    for row, each in enumerate(chosen):
        union = set()
        for layer in config.router_layers:
            best = sorted(range(7), key=lambda n: (-float(scores[layer][row, n]), n))[:3]
            assert [number for number, *_ in each.layers[layer]] == view.numbers[best].tolist()
            union.update(best)
        mean = {n: float(sum(s[row, n] for s in scores.values())) / len(scores) for n in union}
        voted = sorted(mean, key=lambda n: (-mean[n], n))
        assert [number for number, _ in each.voted] == view.numbers[voted].tolist()
        assert [score for _, score in each.voted] == pytest.approx([mean[n] for n in voted])


def scripted(monkeypatch, *turns):
    """The model writes these turns (text and control tokens), one after another."""
    tokenizer = tiny_tokenizer()
    script = []
    for turn in turns:
        for part in turn:
            control = part in (REF_END, IM_END)
            script += [tokenizer.control_ids(part)[0]] if control else tokenizer.encode_text(part)
    tokens = iter(script)
    writes(monkeypatch, lambda *_: next(tokens))
    return tokens


def test_rounds_as_the_paper_has_them(monkeypatch):
    left = scripted(
        monkeypatch,
        ["[41][2][9]", REF_END],
        ["[17]", REF_END],
        [END_OF_RETRIEVE],
        ["The answer to the question is: ça 東京", IM_END],
    )
    events = list(engine_of().stream(QUESTIONS[0]))
    assert next(left, None) is None
    answer = events[-1].answer
    assert answer.answer == "ça 東京"
    assert [each.evidence for each in answer.rounds] == [(2, 41), (17,), ()]
    assert [each.written for each in answer.rounds] == ["[41][2][9]", "[17]", ""]
    assert answer.evidence == (2, 17, 41)
    assert answer.forced == ()
    assert tiny_tokenizer().decode(answer.ids) == answer.text + IM_END
    kinds = [type(event) for event in events if not isinstance(event, TextPiece)]
    assert kinds == [Routed, Evidence, Routed, Evidence, Routed, Finished]
    pieces = [event for event in events if isinstance(event, TextPiece)]
    assert "".join(p.text for p in pieces if p.stage == "answer") == answer.text
    ids = "[41][2][9][17]" + END_OF_RETRIEVE
    assert "".join(p.text for p in pieces if p.stage == "ids") == ids
    assert not any("\ufffd" in piece.text for piece in pieces)  # characters come whole
    assert answer.to_json()["rounds"][0]["chosen"]["voted"]


def test_the_answer_is_written_on_the_context_as_it_stands(monkeypatch):
    """After <End-of-Retrieve> the request is fed without routing again: states as one prefill."""
    scripted(monkeypatch, [END_OF_RETRIEVE], ["4711", IM_END])
    fed, last = [], {}
    feed = ModelRunner.feed

    def watched(self, tokens):
        feed(self, tokens)
        fed.extend(tokens[0])
        last["state"] = self.last[:1].clone()

    monkeypatch.setattr(ModelRunner, "feed", watched)
    (answer,) = engine_of().ask(QUESTIONS[:1])
    assert len(answer.rounds) == 1
    tokenizer, view = tiny_tokenizer(), view_of()
    prompt = Interleave(Request(QUESTIONS[0], view, "memory")).context
    whole = tokenizer.encode_pieces(prompt).tokens + tokenizer.encode_text("4711")
    assert whole[-len(fed) :] == fed
    alone = ModelRunner(tiny_model(), 1, 1024)
    alone.admit(prefill_pieces(tiny_model(), tokenizer, view, [prompt]), [0])
    feed(alone, [tokenizer.encode_text("4711")])
    torch.testing.assert_close(alone.last, last["state"], rtol=1e-5, atol=1e-5)


def test_the_router_reads_the_voted_documents():
    (answer,) = engine_of().ask(
        QUESTIONS[:1], "router", InterleaveLimits(documents=2, answer_tokens=3)
    )
    (chosen,) = engine_of().route(QUESTIONS[:1])
    best = sorted(number for number, _ in chosen.voted[:2])
    assert list(answer.evidence) == best
    assert answer.rounds[0].written == "".join(f"[{number}]" for number in best)
    assert len(answer.rounds) == 2


def test_a_ranking_takes_the_place_of_the_vote():
    limits = InterleaveLimits(documents=2, answer_tokens=3)
    voted = engine_of().ask(QUESTIONS, "router", limits)
    rankings = [[number for number, _ in each.voted] for each in engine_of().route(QUESTIONS)]

    def asked(mode, *rankings):
        given = zip(QUESTIONS, rankings, strict=False)
        return [Request(q, view_of(), mode, limits, ranking=tuple(row)) for q, row in given]

    found = engine_of().answer(asked("router", *rankings))
    for answer, expected in zip(found, voted, strict=True):
        assert (answer.text, answer.evidence) == (expected.text, expected.evidence)
        assert len(answer.rounds) == 1  # nothing was routed to find them
        assert answer.rounds[0].chosen == expected.rounds[1].chosen
    (alone,) = engine_of().answer(asked("router", []))
    assert alone.evidence == ()
    with pytest.raises(ConfigError, match="only router reads a ranking"):
        asked("memory", [2])


def test_an_untrained_model_ends_by_force():
    for answer in engine_of().ask(QUESTIONS, limits=SHORT):
        assert answer.forced
        assert len(answer.rounds) <= SHORT.rounds + 1
