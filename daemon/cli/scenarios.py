"""`dreamd scenarios`: write packs, look at them, import data."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import typer

from daemon.cli import sources
from daemon.cli.options import AsJson, ConfigFile, Overrides, RunName, StateDir, load
from daemon.cli.output import echo, print_json, print_table
from daemon.domain.errors import PackError, PermissionDeniedError, UsageError
from daemon.domain.records import Scenario

_TRIALS = 12
"""Expansions of each template whose target `check` judges."""

PackArgument = Annotated[str, typer.Argument(metavar="PACK", help="A pack file, or the name of a built-in pack.")]
PackArguments = Annotated[
    list[str] | None,
    typer.Argument(metavar="[PACK]...", help="Pack files or built-in packs; none: those of the configuration."),
]


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="Write, check and preview scenario packs; import data of your own.", no_args_is_help=True)
    group.command("init")(init)
    group.command("check")(check)
    group.command("preview")(preview)
    group.command("stats")(stats)
    sources.register(group)
    app.add_typer(group, name="scenarios")


def init(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The pack file to write, such as mine.yaml.")],
) -> None:
    """Write a commented starter pack, which is valid as it is."""
    from daemon.scenarios.pack import STARTER

    name = re.sub(r"[^a-z0-9_]+", "_", file.stem.lower()).strip("_")
    name = name if name[:1].isalpha() else f"pack_{name}".rstrip("_")
    text = STARTER.read_text(encoding="utf-8").replace("pack: NAME", f"pack: {name}", 1)
    try:
        with file.open("x", encoding="utf-8") as opened:
            opened.write(text)
    except FileExistsError:
        raise UsageError(f"{file}: exists already; name another file") from None
    except OSError as error:
        raise PermissionDeniedError(f"{file}: cannot be written: {error.strerror}") from None
    echo(f"{file}: pack {name} written")
    echo(f"next: edit it, then dreamd scenarios check {file}")


def check(
    packs: PackArguments = None,
    config: ConfigFile = None,
    set_: Overrides = None,
    state_dir: StateDir = None,
    run: RunName = None,
) -> None:
    """Validate packs; exits 78 and names file, line and fix of every problem."""
    problems = []
    for name in packs or _configured(config, set_, state_dir, run):
        try:
            pack = _load(name)
        except PackError as error:
            problems.append(str(error))
            continue
        wrong = _wrong_targets(name, pack)
        problems += wrong
        if wrong:
            continue
        families = {template.family for template in pack.templates}
        echo(f"ok: {name}: pack {pack.name}, {len(pack.templates)} templates, {len(families)} families")
    if problems:
        raise PackError("\n".join(problems))


def preview(
    pack: PackArgument,
    template: Annotated[str | None, typer.Option("--template", metavar="ID", help="Only this template.")] = None,
    count: Annotated[int, typer.Option("--count", min=1, max=100, help="Expansions of each template.")] = 1,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Another seed, other expansions.")] = 0,
    answer: Annotated[
        list[str] | None,
        typer.Option(
            "--answer", metavar="TEXT", help="Judge this answer; may be repeated. None: the target is judged."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show real expansions, with the judge applied to the answers given."""
    from daemon.preferences.rules import Tools, judge_text
    from daemon.preferences.sandbox import Sandbox
    from daemon.scenarios.draw import generator

    loaded = _load(pack)
    chosen = [found for found in loaded.templates if template in (None, found.id)]
    if not chosen:
        raise UsageError(f"{pack} has no template {template!r}; it has {', '.join(t.id for t in loaded.templates)}")
    tools = Tools(sandbox=Sandbox.find(timeout_s=5.0, memory_mib=256))
    shown = []
    for found in chosen:
        rng = generator("preview", seed, loaded.name, found.id)
        for _ in range(count):
            scenario = loaded.expand(found, rng)
            texts = answer or [scenario.target or ""]
            verdicts = [(text, judge_text(scenario.rule, text, tools=tools)) for text in texts]
            judged = [{"answer": text, "passed": said.passed, "reason": said.reason} for text, said in verdicts]
            shown.append({**_expansion(scenario), "held_out": found.held_out, "answers": judged})
    if as_json:
        print_json(shown)
        return
    for item in shown:
        _print_expansion(item)


def stats(
    packs: PackArguments = None,
    config: ConfigFile = None,
    set_: Overrides = None,
    state_dir: StateDir = None,
    run: RunName = None,
    as_json: AsJson = False,
) -> None:
    """How many distinct scenarios packs can give, by pack, side and family; `~` marks estimates of large ones."""
    from daemon.scenarios.count import count_distinct

    rows: dict[tuple[str, str, str], dict[str, Any]] = defaultdict(
        lambda: {"templates": 0, "held_out": 0, "constraints": 1, "distinct": 0, "exact": True}
    )
    for name in packs or _configured(config, set_, state_dir, run):
        pack = _load(name)
        for template in pack.templates:
            row = rows[pack.name, template.side.value, template.family]
            if template.held_out:
                row["held_out"] += 1
                continue
            found = count_distinct(pack, template)
            row["templates"] += 1
            row["constraints"] = max(row["constraints"], template.constraints)
            row["distinct"] += found.number
            row["exact"] = row["exact"] and found.exact
    listed = [{"pack": p, "side": s, "family": f, **row} for (p, s, f), row in sorted(rows.items())]
    if as_json:
        print_json(listed)
    else:
        _print_counts(listed)


def _configured(config: Path | None, set_: list[str] | None, state_dir: Path | None, run: str | None) -> list[str]:
    scenarios = load(config, set_, state_dir, run).config.scenarios
    return [*scenarios.builtin, *map(str, scenarios.packs)]


def _load(name: str) -> Any:
    from daemon.scenarios.pack import BUILTIN, load_builtin, load_pack

    builtin = sorted(path.stem for path in BUILTIN.glob("*.yaml"))
    if name in builtin:
        return load_builtin(name)
    if not Path(name).exists():
        raise UsageError(f"{name}: no such file, and no built-in pack; the built-in ones are {', '.join(builtin)}")
    return load_pack(Path(name))


def _wrong_targets(name: str, pack: Any) -> list[str]:
    """A line for each template with a target that fails the template's own rule, on trial expansions."""
    from daemon.preferences.rules import judge_text
    from daemon.scenarios.draw import generator

    found = []
    for template in pack.templates:
        rng = generator("check", pack.name, template.id)
        for _ in range(_TRIALS):
            scenario = pack.expand(template, rng)
            verdict = judge_text(scenario.rule, scenario.target or "")
            if scenario.rule and verdict.passed is False:
                found.append(
                    f"{name}: template {template.id!r}: target {scenario.target!r} fails its own rule: "
                    f"{verdict.reason}; put one of the two right (such a target is never trained)"
                )
                break
    return found


def _expansion(scenario: Scenario) -> dict[str, Any]:
    """What a pack's author wants to see of an expansion."""
    return {
        "template": scenario.template,
        "side": scenario.side.value,
        "family": scenario.family,
        "constraints": scenario.num_constraints,
        "messages": [{"role": message.role, "content": message.content} for message in scenario.messages],
        "guidance": scenario.guidance,
        "target": scenario.target,
        "rule": list(scenario.rule),
    }


def _print_counts(rows: list[dict[str, Any]]) -> None:
    keys = ("pack", "side", "family", "templates", "held_out", "constraints")
    columns = [key.replace("_", " ") for key in keys]
    print_table([*columns, "distinct scenarios"], ([*(row[key] for key in keys), _number(row)] for row in rows))
    sides = sorted({row["side"] for row in rows})
    by_side = {side: sum(row["distinct"] for row in rows if row["side"] == side) for side in sides}
    counted = ", ".join(f"{number:,} {side}" for side, number in by_side.items())
    families = sum(row["templates"] > 0 for row in rows)
    echo(f"{families} families, {sum(by_side.values()):,} distinct scenarios to train on: {counted}")
    held_out = {side: sum(row["held_out"] for row in rows if row["side"] == side) for side in sides}
    probes = ", ".join(f"{number} {side}" for side, number in held_out.items() if number)
    echo(f"templates held out for probes: {probes or 'none'}")


def _number(row: dict[str, Any]) -> str:
    return f"{'' if row['exact'] else '~'}{row['distinct']:,}"


def _print_expansion(item: dict[str, Any]) -> None:
    held_out = ", held out" if item["held_out"] else ""
    echo(f"--- {item['template']} ({item['side']}, {item['family']}, constraints {item['constraints']}{held_out})")
    for message in item["messages"]:
        echo(f"{message['role']:>9}: {message['content']}")
    if item["guidance"] is not None:
        echo(f" guidance: {item['guidance']}")
    echo(f"   target: {item['target']}")
    for judged in item["answers"]:
        verdict = {True: "passes", False: "fails", None: "not judged"}[judged["passed"]]
        echo(f"  {verdict:>10}: {judged['answer']!r}" + (f" ({judged['reason']})" if judged["reason"] else ""))
    echo("")
