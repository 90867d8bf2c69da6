from dataclasses import replace

from msa_train.evaluation.asking import LIMITS


def test_a_perfect_writer_gets_everything_right(oracle, asker, needles, memory, tokenizer):
    queries = needles.queries[:6]
    oracle(queries, tokenizer)
    view = memory.view()
    texts, alone = asker.with_texts(view, queries), asker.from_memory(view, queries)
    voted = asker.with_voted_texts(view, queries)
    for name in ("ids_precision", "ids_recall", "answer_text", "answer_text_f1"):
        assert texts[name].tolist() == [1] * 6, name
    assert alone["answer_memory"].tolist() == [1] * 6
    assert voted["answer_voted_text"].tolist() == [1] * 6


def test_voted_texts_are_those_of_the_router(oracle, asker, needles, memory, tokenizer):
    queries = needles.queries[:3]
    oracle(queries, tokenizer)
    view = memory.view()
    voted = asker._engine(view).route([query.question for query in queries])
    for answer, chosen in zip(asker._ask(view, queries, "router"), voted, strict=True):
        best = [number for number, _ in chosen.voted[: LIMITS.documents]]
        assert sorted(answer.rounds[0].evidence) == sorted(best)


def test_ids_of_no_document_cost_precision(oracle, asker, needles, memory, tokenizer):
    query = needles.queries[0]
    stranger = max(memory.numbers) + 1
    oracle([replace(query, positives=(*query.positives, stranger))], tokenizer)
    columns = asker.with_texts(memory.view(), [query])
    n = len(query.positives)
    assert columns["ids_precision"].tolist() == [n / (n + 1)]
    assert columns["ids_recall"].tolist() == [1]
