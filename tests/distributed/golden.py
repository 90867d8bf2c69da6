"""Five steps of a tiny model on random tokens: numbers that only a change of training changes."""

import torch


def train_five_steps() -> list[list[float]]:
    """[LM loss, router loss, gradient norm] of each step."""
    from msa_train.config import TrainingConfig
    from msa_train.model.megatron import MSAModel
    from msa_train.model.weights import initial_reader
    from msa_train.parallel import groups
    from msa_train.training.engine import Engine
    from tests.batches import random_batch, tiny_config

    torch.set_num_threads(1)
    groups.start(tensor_parallel=1, timeout_s=60)
    model = tiny_config("threshold")
    module = MSAModel(model)
    module.load_published(initial_reader(model, 0))
    engine = Engine(module, TrainingConfig(clip=1.0))
    found = []
    for step in range(5):
        banks, contexts = [[4, 9, 1, 13, 6, 8], [7, 2]], [(0, 9), (1, 6), (0, 12)]
        batch = random_batch(banks, contexts, model, seed=step)
        losses = engine(batch)
        lm = losses.lm / batch.label_count
        router = losses.router / batch.routed_context_count
        engine.backward(lm + 0.1 * router)
        engine.set_learning_rate(1e-2)
        engine.step()
        found.append([float(lm), float(router), engine.gradient_norm()])
    return found
