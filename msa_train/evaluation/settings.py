"""Settings of evaluations that have flags of their own."""

from __future__ import annotations

import re
from dataclasses import dataclass

from data_pipeline.errors import check_least
from msa_train.errors import ConfigError
from msa_train.memory.search.settings import flag

ROWS = "oracle,router_1,router_3,router_5,bm25_1,bm25_3,bm25_5,absent_3,none"
_SEARCHES = ("router", "bm25", "hybrid", "absent")
_ROW = re.compile(rf"({'|'.join(_SEARCHES)})_([1-9]\d?)|oracle|none")


@dataclass(frozen=True)
class ReadingTest:
    """What is asked.

    rows: oracle (the right passages), none, or SEARCH_K: the first K of the router, of bm25, of
    both (hybrid), or those of the router that hold no answer (absent). questions: of each corpus,
    at most, drawn by seed. answer_tokens: of an answer, at most. batch: questions at once in each
    of `workers` processes (None: one per core).
    """

    rows: str = flag(
        ROWS,
        "over which passages: oracle, none, or router_K, bm25_K, hybrid_K, absent_K (the router's "
        "first K that do not hold the answer)",
        metavar="LIST",
    )
    questions: int = flag(200, "of each corpus, at most, drawn by the seed")
    answer_tokens: int = flag(32, "of an answer, at most")
    batch: int = flag(16, "questions at once in each process")
    workers: int | None = flag(None, "processes (default: one per core)")
    seed: int = flag(0, "of the draw of questions, and of the intervals")

    def __post_init__(self) -> None:
        given = ("workers",) if self.workers is not None else ()
        check_least(1, self, "", "questions", "answer_tokens", "batch", *given, error=ConfigError)
        check_least(0, self, "", "seed", error=ConfigError)
        for name in self.row_names:
            if _ROW.fullmatch(name) is None:
                raise ConfigError(
                    f"rows holds {name!r}: give oracle, none, or one of "
                    f"{', '.join(_SEARCHES)} with a number up to 99, such as router_3"
                )

    @property
    def row_names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name.strip() for name in self.rows.split(",")))
