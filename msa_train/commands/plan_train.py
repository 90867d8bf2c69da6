"""`msa plan train`: what a run would take on given cards, and which layouts are fastest."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from msa_train.commands.flags import add_flags, from_flags
from msa_train.commands.output import add_json, config_arguments, print_json
from msa_train.hardware import Cluster, gb, parse_bandwidth, parse_bytes, parse_cluster, parse_count
from msa_train.training.planner.plan import Assumed, Ranking, StagePlan, TrainingPlan
from msa_train.training.planner.simulation import Pieces, Simulation
from msa_train.training.planner.sizes import Given

if TYPE_CHECKING:
    from rich.table import Table

_PHASES = {"held": "all the time", "backward": "forward, backward", "update": "update"}
_DAY = 86_400


def register(actions: argparse._SubParsersAction) -> None:
    parser = actions.add_parser(
        "train", help="bytes, traffic, arithmetic, days and money of a training run"
    )
    parser.add_argument(
        "config", nargs="+", metavar="CONFIG",
        help="YAML of a run, see configs/; of several, a later file's settings win",
    )  # fmt: skip
    parser.add_argument(
        "--gpus", required=True, help="such as 64xH100-80GB or 8x48GB@864GB/s@362TFLOPS"
    )
    parser.add_argument("--per-node", type=int, metavar="N", help="cards of a machine (default 8)")
    parser.add_argument("--link", help="of a card within its machine, such as 450GB/s")
    parser.add_argument("--network", help="of a card to other machines, such as 50GB/s")
    parser.add_argument("--host-ram", help="of each machine, such as 2TB, for what is offloaded")
    parser.add_argument("--tokens", help="memory tokens of the run, such as 158.95B")
    parser.add_argument(
        "--layouts", type=int, default=10, metavar="N",
        help="how many of the fastest layouts are shown (default 10)",
    )  # fmt: skip
    add_flags(parser, Assumed)
    add_flags(parser, Given)
    drawn = parser.add_argument_group("--simulate")
    drawn.add_argument(
        "--simulate", action="store_true",
        help="draw steps of the settings' own layout: unequal samples, latency, saving, deaths",
    )  # fmt: skip
    add_flags(drawn, Pieces)
    add_json(parser)
    parser.set_defaults(run=_train, takes_overrides=True)
    parser.epilog = "Any setting can be overridden: --training.zero_stage 2 --stages '[...]'"


def _train(options: argparse.Namespace) -> int:
    from msa_train.config import load_config
    from msa_train.errors import ConfigError
    from msa_train.training.planner.layout import Layout
    from msa_train.training.planner.plan import plan, ranked
    from msa_train.training.planner.simulation import simulate
    from msa_train.training.planner.sizes import stage_sizes

    if options.layouts < 0:
        raise ConfigError(f"layouts is {options.layouts}: give 0 or more")
    config, cluster = load_config(config_arguments(options)), _cluster(options)
    tokens = None if options.tokens is None else parse_count(options.tokens, "tokens")
    host = None if options.host_ram is None else parse_bytes(options.host_ram, "host-ram")
    assumed = from_flags(Assumed, options, host_ram=host)
    stages, notes = stage_sizes(config, from_flags(Given, options))
    pieces = from_flags(Pieces, options)
    if pieces != Pieces() and not options.simulate:
        raise ConfigError("only --simulate draws steps from such numbers: give it, too")
    found, drawn, why = None, None, ""
    try:
        own = Layout.of(config, cluster.cards)
        found = plan(config, own, cluster, stages, assumed)
    except ConfigError as error:
        why = str(error)
    if options.simulate and found is not None:
        drawn = simulate(found, config, pieces)
    ranking = ranked(config, cluster, stages, assumed)
    if options.json:
        _print_json(found, drawn, why, ranking, tokens, notes, options.layouts)
    else:
        _print(found, drawn, why, ranking, tokens, notes, options.layouts)
    return 0 if found is not None and found.lacking is None else ConfigError.exit_code


def _cluster(options: argparse.Namespace) -> Cluster:
    speeds = (
        None if text is None else parse_bandwidth(text, name)
        for name, text in (("link", options.link), ("network", options.network))
    )
    return parse_cluster(options.gpus, options.per_node, *speeds)


def _print_json(
    found: TrainingPlan | None, drawn: Simulation | None, why: str, ranking: Ranking,
    tokens: int | None, notes: list[str], shown: int,
) -> None:  # fmt: skip
    ranks = [
        {
            "layout": vars(each.layout),
            "step_s": each.longest.seconds,
            "days": each.seconds(tokens) / _DAY,
            "money": each.money(tokens),
            "need": each.need,
            "model_utilisation": each.model_utilisation,
        }
        for each in ranking.plans[:shown]
    ]
    refused = {why: len(which) for why, which in ranking.refused.items()}
    plan = None if found is None else found.to_json(tokens)
    simulation = None if drawn is None else drawn.to_json()
    print_json(
        {"plan": plan, "simulation": simulation, "impossible": why or None, "layouts": ranks,
         "refused": refused, "assumed": notes}
    )  # fmt: skip


def _print(
    found: TrainingPlan | None, drawn: Simulation | None, why: str, ranking: Ranking,
    tokens: int | None, notes: list[str], shown: int,
) -> None:  # fmt: skip
    from rich.console import Console

    console = Console(width=110, highlight=False)
    if found is None:
        console.print(f"The settings' own layout is impossible: {why}")
    else:
        for each in _own(found, tokens):
            console.print(each)
    if drawn is not None:
        for each in _drawn(drawn):
            console.print(each)
    console.print(_fastest(ranking, tokens, shown))
    for reason, which in ranking.refused.items():
        console.print(f"Refused, {len(which)} layouts ({which[0].words()}, ...): {reason}")
    planned = [each for each in (found, *ranking.plans[:shown]) if each is not None]
    for note in dict.fromkeys([*notes, *(note for each in planned for note in each.notes)]):
        console.print(f"Assumed: {note}")
    console.print("All of it is arithmetic, at the assumed utilisation: no GPU has measured it.")


def _own(found: TrainingPlan, tokens: int | None) -> Iterator[Table | str]:
    cluster, layout = found.cluster, found.layout
    parts = ", ".join(f"{part} {count:,}" for part, count in found.parameters.items())
    yield f"{sum(found.parameters.values()):,} parameters: {parts}"
    network = f", {gb(cluster.network)}/s between machines" if cluster.nodes > 1 else ""
    yield (
        f"{cluster.cards} x {cluster.card.name} ({cluster.card.source}) in {cluster.nodes} "
        f"machine{'s' * (cluster.nodes > 1)}; a card sends {gb(cluster.link)}/s within one{network}"
    )
    yield f"The settings' layout: {layout.words()}, {layout.replicas} groups read samples"
    yield _bytes(found)
    yield _sent(found.longest, cluster)
    yield _arithmetic(found.longest)
    yield _stages(found)
    yield _total(found, tokens)


def _table(*columns: str, title: str | None = None) -> Table:
    from rich.table import Table

    table = Table(*columns, title=title, title_justify="left")
    return table


def _right(table: Table, first: int) -> Table:
    for column in table.columns[first:]:
        column.justify = "right"
    return table


def _bytes(found: TrainingPlan) -> Table:
    from msa_train.hardware import RESERVE

    stage = found.fullest
    title = f"Bytes of a rank in stage {stage.stage.name}, its fullest"
    table = _right(_table("when", "what", "bytes", title=title), 2)
    for phase, words in _PHASES.items():
        rows = [each for each in stage.bytes if each.phase == phase and each.place == "device"]
        for each in rows:
            table.add_row(words, each.what, gb(each.bytes))
        if rows:
            table.add_row(words, "together", gb(sum(each.bytes for each in rows)), style="bold")
            table.add_section()
    table.add_row("all the time", "reserve: context, workspaces, buffers of NCCL", gb(RESERVE))
    places = {"host": "host memory", "writer": "host, of one rank", "nvme": "nvme files"}
    for place, words in places.items():
        for each in stage.bytes:
            if each.place == place:
                table.add_row(words, each.what, gb(each.bytes))
    if found.host_need:
        ranks = f"memory of each machine, {found.cluster.per_node} ranks"
        table.add_row("all the time", ranks, gb(found.host_need))
    verdict = "fits" if found.lacking is None else "DOES NOT FIT"
    have = gb(found.cluster.card.bytes)
    table.add_row("at most", f"of {have}: {verdict}", gb(found.need), style="bold")
    return table


def _sent(stage: StagePlan, cluster: Cluster) -> Table:
    title = f"Sent in a step of stage {stage.stage.name}, the longest, by each rank"
    table = _right(_table("what", "how", "ranks", "tensors", "sent", "seconds", title=title), 2)
    for each in stage.traffic:
        seconds = f"{each.seconds(cluster):.3f}" + (" hidden" if each.hidden else "")
        table.add_row(
            each.kind, each.operation, str(each.ranks), gb(each.payload), gb(each.sent), seconds
        )
    if not stage.traffic:
        table.add_row("nothing", "", "", "", "", "")
    return table


def _arithmetic(stage: StagePlan) -> str:
    work, names = stage.work, ("documents", "contexts", "recompute", "cache")
    each = ", ".join(f"{name} {getattr(work, name) / 1e12:,.1f}" for name in names)
    return (
        f"A step of a rank: {work.total / 1e12:,.1f} TFLOP ({each}); "
        f"attention and routing are {work.attention / work.total:.1%} of it"
    )


def _stages(found: TrainingPlan) -> Table:
    columns = "steps", "memory tokens", "step s", "arithmetic", "update", "waiting", "days"
    table = _right(_table("stage", *columns), 1)
    for each in found.stages:
        times = each.seconds, each.computing, each.updating, each.sending
        table.add_row(
            each.stage.name, f"{each.stage.steps:,}", f"{each.tokens * each.stage.steps:,}",
            *(f"{time:.3f}" for time in times), f"{each.total / _DAY:,.2f}",
        )  # fmt: skip
    return table


def _total(found: TrainingPlan, tokens: int | None) -> str:
    money = found.money(tokens)
    cost = "" if money is None else f", {money:,.0f} at the given price"
    return (
        f"{found.tokens if tokens is None else tokens:,} memory tokens: "
        f"{found.seconds(tokens) / _DAY:,.2f} days{cost} "
        f"(utilisation {found.assumed.utilisation:.0%} assumed while it computes; "
        f"{found.model_utilisation:.1%} of the peak are useful)"
    )


def _drawn(found: Simulation) -> Iterator[Table | str]:
    title = f"A drawn step of stage {found.stage}"
    table = _right(_table("what", "seconds", "share", title=title), 1)
    for what, seconds in found.parts.items():
        table.add_row(what, f"{seconds:.4f}", f"{seconds / found.total:.1%}")
    table.add_row("together", f"{found.total:.4f}", "", style="bold")
    yield table
    yield (
        f"90 % of the steps take {found.step_low:.3f} to {found.step_high:.3f} s; goodput "
        f"{found.goodput:.1%} (of 90 % of the runs {found.goodput_low:.1%} to "
        f"{found.goodput_high:.1%}); what breaks first: {found.first}"
    )
    for each in found.assumed:
        yield f"Assumed: {each}"


def _fastest(ranking: Ranking, tokens: int | None, shown: int) -> Table | str:
    if not ranking.plans:
        return "No layout of these cards fits."
    title = f"The fastest of {len(ranking.plans)} layouts that fit"
    columns = "TP", "documents", "ZeRO", "recompute", "cache", "step s", "days", "money", "bytes"
    table = _right(_table(*columns, title=title), 4)
    for each in ranking.plans[:shown]:
        layout, money = each.layout, each.money(tokens)
        tensor = f"{layout.tensor}{' + SP' * layout.sequence}"
        table.add_row(
            tensor, f"{layout.documents}{', sharded' * layout.sharded}", str(layout.zero),
            layout.recompute,
            "none" if layout.cache is None else f"{layout.cache:,}", f"{each.longest.seconds:.3f}",
            f"{each.seconds(tokens) / _DAY:,.2f}", "" if money is None else f"{money:,.0f}",
            gb(each.need),
        )  # fmt: skip
    return table
