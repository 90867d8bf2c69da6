"""What is reported of a routing: the best chunk of a selected document, and its gate."""

import pytest

from data_pipeline.protocol import prompt_pieces
from msa_train.memory.engine.events import Answer, RoundReport, Selection, selections
from msa_train.memory.engine.model_runner import prefill_pieces
from tests.memory.building import encode_in_memory
from tests.memory.tiny import tiny_documents, tiny_model, tiny_tokenizer

QUESTIONS = ["What is the code of the harbour?", "Who sleeps standing?", "?"]


@pytest.mark.parametrize("gate", ["threshold", "none"])
def test_the_best_chunk_and_its_gate(gate):
    """By loops over the chunks that each context reads."""
    model, tokenizer = tiny_model(gate), tiny_tokenizer()
    view = encode_in_memory(model, tokenizer, tiny_documents())
    prompts = [prompt_pieces(question) for question in QUESTIONS]
    prefill = prefill_pieces(model, tokenizer, view, prompts)
    found = selections(prefill.selected, view)
    several = 0
    for layer, chunks in prefill.selected.items():
        start = chunks.routing.index_cu.tolist()
        for context, selection in enumerate(found):
            entry = start[context]
            for each in sorted(selection.layers[layer]):  # chunks are read by ascending number
                place = view.numbers.tolist().index(each.number)
                count = int(view.chunk_counts[place])
                several += count > 1
                assert 0 <= each.chunk < count
                if gate == "none":
                    assert each.gate is None
                else:
                    gates = chunks.bias[entry : entry + count].tolist()
                    assert each.gate == gates[each.chunk] == max(gates)
                entry += count
            assert entry == start[context + 1]
    assert several


def test_an_answer_names_all_its_evidence_ascending():
    rounds = (RoundReport(Selection({}, []), "[7][2]", (2, 7)), RoundReport(Selection({}, [])))
    answer = Answer("?", "generate", "a", "a", (*rounds, *rounds[:1]), (), 0.1, ids=(5, 6))
    assert "ids" not in answer.to_json()
    assert answer.evidence == (2, 7)
    assert answer.to_json()["rounds"][0]["chosen"] == {"layers": {}, "voted": [], "fused": None}
    assert answer.to_json()["evidence"] == (2, 7)
