"""A small dataset: ten cities, each on its river."""

from data_pipeline.dataset import Passage, Question

CITIES = ["Rome", "Oslo", "Cairo", "Lima", "Quito", "Hanoi", "Dakar", "Sofia", "Tunis", "Minsk"]
RIVERS = ["Tiber", "Aker", "Niles", "Rimac", "Machangara", "Hongs", "Senegal", "Iskar", "Medjerda",
          "Svislach"]  # fmt: skip


def passages():
    for i, (city, river) in enumerate(zip(CITIES, RIVERS, strict=True)):
        filler = f"People of {city} walk along its banks every day. " * (i % 3)
        yield Passage(f"c{i}", city, f"{city} is a city. It lies on the {river}. {filler}".strip())
    yield Passage("twin", "", "A text without a title that also says Tiber, by the way it goes.")


def questions():
    for i, city in enumerate(CITIES):
        yield "train", Question(f"q{i}", f"On which river lies {city}?", (RIVERS[i],), (f"c{i}",))
    both = Question("hop", "Rome, then Oslo?", ("Aker",), ("c0", "c1"), (("c1",), ("c0",)), ("c5",))
    yield "dev", both
