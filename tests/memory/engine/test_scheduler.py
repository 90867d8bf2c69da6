"""Requests side by side: the same answers as alone, and what goes wrong with one stays its own."""

from collections import defaultdict
from dataclasses import replace

import pytest

from data_pipeline.protocol import END_OF_RETRIEVE, IM_END, REF_END
from msa_train.errors import BankError, ConfigError, RankError
from msa_train.memory.engine import scheduler as scheduling
from msa_train.memory.engine.engine import MemoryEngine
from msa_train.memory.engine.events import Evidence, Failed, Finished, Routed, TextPiece
from msa_train.memory.engine.interleave import InterleaveLimits, Request
from msa_train.memory.engine.sampling import Sampling
from msa_train.memory.engine.scheduler import Scheduler
from msa_train.memory.engine.sequence import Sequence
from tests.memory.building import encode_in_memory
from tests.memory.engine.writing import writes
from tests.memory.tiny import tiny_documents, tiny_model, tiny_tokenizer

QUESTIONS = ["What is the code of the harbour?", "Who sleeps standing?", "?", "東京", "Rain? " * 9]
SHORT = InterleaveLimits(rounds=2, retrieval_characters=30, answer_tokens=9)
MODEL, TOKENIZER = tiny_model(), tiny_tokenizer()


@pytest.fixture(scope="module")
def views():
    return [encode_in_memory(MODEL, TOKENIZER, tiny_documents()[:count]) for count in (7, 2)]


def scheduler_of(**settings):
    return Scheduler(MODEL, TOKENIZER, **{"slots": 3, "slot_tokens": 2000} | settings)


def run(scheduler, requests=()):
    """Events by ticket, until nothing is left to do."""
    events = defaultdict(list)
    for request in requests:
        scheduler.submit(request)
    for _ in range(10_000):
        if not scheduler.busy:
            return events
        for ticket, event in scheduler.step():
            assert not events[ticket] or not isinstance(events[ticket][-1], Finished | Failed)
            events[ticket].append(event)
    raise AssertionError("it never ends")


def told(events):
    """What of an answer does not depend on time."""
    answer = events[-1].answer
    voted = [[number for number, _ in each.chosen.voted] for each in answer.rounds]
    return answer.text, answer.evidence, answer.forced, voted


def crowd(views):
    """All kinds of requests, of both views."""
    kinds = [
        {"mode": "generate"},
        {"mode": "router"},
        {"mode": "memory"},
        {"sampling": Sampling(1.0, 0.9, 5)},
        {"mode": "memory", "sampling": Sampling(2.0, 1.0, 6)},
        {"mode": "memory", "instructions": "Answer briefly."},
        {"mode": "memory", "earlier": (("user", "Hi"), ("assistant", "Cranes?"))},
    ]
    return [
        Request(**{"question": question, "view": views[i % 2], "limits": SHORT} | kind)
        for i, question in enumerate(QUESTIONS)
        for kind in kinds[: 7 if i < 3 else 2]
    ]


def test_answers_are_the_same_alone_and_in_a_crowd(views):
    requests = crowd(views)
    alone = [told(run(scheduler_of(slots=1), [request])[0]) for request in requests]
    for settings in ({"slots": 5, "prefill_tokens": 100}, {"slots": 64, "together": True}):
        together = run(scheduler_of(**settings), requests)
        assert [told(together[ticket]) for ticket in range(len(requests))] == alone, settings
    assert len({text for text, *_ in alone}) > len(requests) / 2  # or equality would say nothing
    assert (
        told(run(scheduler_of(), [replace(requests[3], sampling=Sampling(1.0, 0.9, 7))])[0])[0]
        != (alone[3][0])
    )


def test_late_requests_join_while_others_are_served(views):
    requests = crowd(views)[:8]
    alone = [told(run(scheduler_of(), [request])[0]) for request in requests]
    scheduler, events = scheduler_of(), defaultdict(list)
    for request in requests:
        scheduler.submit(request)
        for _ in range(3):
            for ticket, event in scheduler.step():
                events[ticket].append(event)
    for ticket, more in run(scheduler).items():
        events[ticket] += more
    assert [told(events[ticket]) for ticket in range(8)] == alone


def test_routing_for_a_batch_is_one_search(views, monkeypatch):
    searches = []
    search = type(views[0]).search
    monkeypatch.setattr(
        type(views[0]), "search", lambda self, *a: searches.append(a[0]) or search(self, *a)
    )
    scheduler = scheduler_of(slots=64)
    for request in [Request(q, view, "memory", SHORT) for q in QUESTIONS for view in views]:
        scheduler.submit(request)
    scheduler.step()
    assert sorted(searches) == sorted(2 * MODEL.config.router_layers)  # once per view


def test_a_long_queue_of_prompts_does_not_hold_up_those_who_write(views, monkeypatch):
    sizes, prefill = [], scheduling.prefill_encoded
    monkeypatch.setattr(
        scheduling,
        "prefill_encoded",
        lambda model, memory, contexts: (
            sizes.append(sum(len(c.tokens) for c in contexts)) or prefill(model, memory, contexts)
        ),
    )
    scheduler = scheduler_of(slots=64, prefill_tokens=300)
    first = scheduler.submit(Request(QUESTIONS[0], views[0], "memory", SHORT))
    scheduler.step()
    wrote = scheduler._sequences[first]._detokenizer.tokens
    for _ in range(20):
        scheduler.submit(Request(QUESTIONS[0], views[0], "memory", SHORT))
    for steps in range(1, 6):
        before = len(sizes)
        scheduler.step()
        assert sum(sizes[before:]) <= 300 and len(sizes) > before
        assert scheduler._sequences[first]._detokenizer.tokens == wrote + steps
    run(scheduler)


class Damaged:
    def best(self, *_):
        raise BankError("layer-2.k was changed")

    def __getitem__(self, number):
        raise BankError(f"the text of {number} was changed")


@pytest.mark.parametrize("damage", [{"searcher": Damaged()}, {"documents": Damaged()}])
def test_an_error_fails_only_the_requests_that_it_concerns(views, damage):
    damaged = replace(views[0], **damage)
    requests = crowd(views)[:6]
    alone = [told(run(scheduler_of(), [request])[0]) for request in requests]
    asked = [*requests, Request("?", damaged, "router", SHORT), Request("x", damaged, "router")]
    events = run(scheduler_of(slots=64), asked)
    assert [told(events[ticket]) for ticket in range(6)] == alone
    for ticket in (6, 7):
        assert isinstance(events[ticket][-1], Failed)
        assert isinstance(events[ticket][-1].error, BankError)


class PartlyDamaged:
    """A searcher of a memory of which one question, the longest, reads what was changed on disk."""

    def __init__(self, searcher, error):
        self._searcher, self._error, self.searches = searcher, error, 0

    def __getattr__(self, name):
        return getattr(self._searcher, name)

    def best(self, layer, query, query_cu, *given):
        self.searches += 1
        if int(query_cu.diff().max()) > 300:
            raise self._error
        return self._searcher.best(layer, query, query_cu, *given)


def test_a_document_that_was_changed_fails_only_who_reads_it(views):
    long = "Rain? " * 40
    requests = [Request(q, views[0], "memory", SHORT) for q in (*QUESTIONS[:4], long)]
    alone = [told(run(scheduler_of(), [request])[0]) for request in requests[:4]]
    searcher = PartlyDamaged(views[0].searcher, BankError("K of document 7 was changed"))
    damaged = replace(views[0], searcher=searcher)
    events = run(scheduler_of(slots=64), [replace(each, view=damaged) for each in requests])
    assert [told(events[ticket]) for ticket in range(4)] == alone
    assert [type(each) for each in events[4]] == [Failed]


def test_a_rank_that_is_late_is_waited_for_once(views):
    error = RankError("rank 1 did not answer within 60 s")
    searcher = PartlyDamaged(views[0].searcher, error)
    view = replace(views[0], searcher=searcher)
    asked = [Request(q, view, "memory", SHORT) for q in ("Rain?", "Rain? " * 40, "?")]
    events = run(scheduler_of(slots=64), asked)
    assert [[type(each) for each in events[ticket]] for ticket in range(3)] == [[Failed]] * 3
    assert searcher.searches == 1


def test_a_context_that_is_too_long_fails_alone_and_says_so(views, monkeypatch):
    long = Request("Rain? " * 200, views[0], "memory", SHORT)
    grows = Request("Rain?", views[0], limits=InterleaveLimits(retrieval_characters=1000))
    fits = Request("Rain?", views[0], "memory", SHORT)
    writes(monkeypatch, lambda each, token: 40 if each.request is grows else token)
    events = run(scheduler_of(slot_tokens=200), [long, fits, grows])
    expected = run(scheduler_of(), [fits])[0]
    assert told(events[1]) == told(expected)
    for ticket in (0, 2):
        error = events[ticket][-1].error
        assert isinstance(error, ConfigError) and "room for 200 (slot_tokens)" in str(error)
    assert isinstance(events[2][0], Routed)  # it wrote until there was no room


def test_an_answer_ends_where_its_context_is_full(views, monkeypatch):
    writes(monkeypatch, lambda *_: 40)
    events = run(
        scheduler_of(slot_tokens=200),
        [
            Request("Rain?", views[0], "memory", InterleaveLimits(answer_tokens=n))
            for n in (5, 100_000)
        ],
    )
    short, long = (events[ticket][-1].answer for ticket in (0, 1))
    assert short.forced == ("5 tokens of answer",) and long.forced == ("the context is full",)
    prompt = Sequence(Request("Rain?", views[0], "memory"), TOKENIZER, 999).context()
    assert long.answer_tokens == 200 - len(prompt.tokens) + 1  # the last one is not fed
    assert short.cut and long.cut and long.prompt_tokens == len(prompt.tokens)


def test_cancelled_requests_leave_their_slot_and_are_silent(views):
    scheduler = scheduler_of(slots=2)
    limits = InterleaveLimits(answer_tokens=40)
    tickets = [scheduler.submit(Request(q, views[0], "memory", limits)) for q in QUESTIONS[:4]]
    scheduler.step()
    assert (len(scheduler._rows), scheduler.waiting) == (2, 2)
    scheduler.cancel(tickets[0])  # it writes
    scheduler.cancel(tickets[3])  # it waits
    scheduler.cancel(tickets[3])
    events = run(scheduler)
    assert set(events) == {tickets[1], tickets[2]}
    alone = run(scheduler_of(), [Request(QUESTIONS[2], views[0], "memory", limits)])[0]
    assert told(events[tickets[2]]) == told(alone)
    assert len(scheduler._rows) == 0


def scripted(monkeypatch, *turns):
    """The model writes these turns (text and control tokens), one after another."""
    script = []
    for part in (part for turn in turns for part in turn):
        control = part in (REF_END, IM_END)
        script += [TOKENIZER.control_ids(part)[0]] if control else TOKENIZER.encode_text(part)
    tokens = iter(script)
    writes(monkeypatch, lambda *_: next(tokens))
    return tokens


def test_stop_strings_end_an_answer_and_are_not_shown(views, monkeypatch):
    left = scripted(
        monkeypatch, [END_OF_RETRIEVE], ["The answer to the question is: 47 11. 東京 STOP more"]
    )
    request = Request(QUESTIONS[0], views[0], stop=("STOP", "is: "))
    events = run(scheduler_of(), [request])[0]
    assert events[-1].answer.answer == "47 11. 東京"
    pieces = [e.text for e in events if isinstance(e, TextPiece) and e.stage == "answer"]
    assert (
        "".join(pieces) == events[-1].answer.text == "The answer to the question is: 47 11. 東京 "
    )
    assert events[-1].answer.forced == ()
    assert next(left) is not None  # what follows was not asked for


def test_evidence_that_passes_the_limit_is_left_out_whole(views, monkeypatch):
    documents = tiny_documents()
    sizes = [len(TOKENIZER.encode_text(f"[{d.number}]. {d.text}\n")) for d in documents]
    room = sizes[0] + sizes[3]
    numbers = [documents[place].number for place in (0, 2, 3)]  # the second is too long
    ids = "".join(f"[{number}]" for number in numbers)
    end = [[END_OF_RETRIEVE], ["The answer to the question is: x", IM_END]]
    scripted(monkeypatch, [ids, REF_END], [ids, REF_END], *end)
    limits = InterleaveLimits(evidence_tokens=room)
    events = run(scheduler_of(), [Request("?", views[0], limits=limits)])[0]
    read = [[d.number for d in e.documents] for e in events if isinstance(e, Evidence)]
    assert read == [[numbers[0], numbers[2]], []]  # of all rounds together
    assert events[-1].answer.forced == (
        f"no room for the texts of [{numbers[1]}]",
        f"no room for the texts of {ids}",
    )
    with pytest.raises(ConfigError, match="evidence_tokens is 0"):
        InterleaveLimits(evidence_tokens=0)


def test_the_vote_fills_the_room_with_its_best(views):
    (chosen,) = MemoryEngine(MODEL, TOKENIZER, views[0]).route(QUESTIONS[:1])
    texts = {d.number: d.text for d in tiny_documents()}
    ranked = [number for number, _ in chosen.voted][:4]
    sizes = {n: len(TOKENIZER.encode_text(f"[{n}]. {texts[n]}\n")) for n in ranked}
    limits = InterleaveLimits(evidence_tokens=sizes[ranked[0]], answer_tokens=2)
    events = run(scheduler_of(), [Request(QUESTIONS[0], views[0], "router", limits)])[0]
    assert ranked[0] in events[-1].answer.evidence
    assert sum(sizes[n] for n in events[-1].answer.evidence) <= sizes[ranked[0]]
    assert events[-1].answer.forced[0].startswith("no room for the texts of")


def test_an_error_of_a_decode_step_is_raised(views, monkeypatch):
    scheduler = scheduler_of()
    scheduler.submit(Request("?", views[0], "memory", SHORT))
    monkeypatch.setattr(type(MODEL), "decode", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(scheduler)
