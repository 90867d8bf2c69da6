import numpy as np
import torch

from data_pipeline.protocol import memory_answer_pieces, prompt_pieces
from msa_train.evaluation.encoded_bank import EncodedBank
from msa_train.memory.engine.engine import MemoryEngine
from msa_train.memory.engine.model_runner import prefill_pieces


def test_a_part_of_the_set_is_the_memory_of_those_documents_alone(
    model, tokenizer, memory, needles
):
    places = np.array([1, 4, 5])
    alone = EncodedBank.encode(model, tokenizer, [needles.documents[place] for place in places])
    question = needles.queries[0].question
    chosen = [
        MemoryEngine(model, tokenizer, view, 4).route([question])[0]
        for view in (memory.view(places), memory.part(places).view(), alone.view())
    ]
    assert [number for number, _ in chosen[0].voted] == [number for number, _ in chosen[2].voted]
    assert [number for number, _ in chosen[1].voted] == [number for number, _ in chosen[2].voted]
    assert {number for number, _ in chosen[0].voted} == {memory.numbers[place] for place in places}


def test_controls_change_what_is_read(model, memory, needles):
    """Nothing is read without documents; a misrouted memory leads elsewhere, equally sharply."""
    query = torch.nn.functional.normalize(torch.randn(3, 16), dim=-1)
    cu = torch.tensor([0, 3])
    layer = model.config.router_layers[0]
    straight, _, _ = memory.view().search(layer, query, cu)
    astray, _, _ = memory.misrouted(0).view().search(layer, query, cu)
    nothing, k, _ = memory.nothing().search(layer, query, cu)
    assert set(straight.documents[0].tolist()) != set(astray.documents[0].tolist())
    assert straight.values[0, 0] == astray.values[0, 0]
    assert nothing.documents.numel() == len(k) == 0


def test_controls_change_what_is_answered(model, tokenizer, memory, needles):
    questions = [query.question for query in needles.queries[:4]]
    views = (memory.view(), memory.misrouted(0).view(), memory.nothing())
    read = []
    for view in views:
        contexts = [[*prompt_pieces(q), *memory_answer_pieces(q)] for q in questions]
        read.append(prefill_pieces(model, tokenizer, view, contexts).last)
    assert not torch.allclose(read[0], read[1], atol=1e-6)
    assert not torch.allclose(read[0], read[2], atol=1e-6)
