"""What docs/probes.md says is so."""

from __future__ import annotations

import re
from pathlib import Path

from daemon.config.watching import ProbesConfig
from daemon.probes import names
from daemon.probes.suite import load_suite

PAGE = (Path(__file__).parents[3] / "docs" / "probes.md").read_text("utf-8")


def test_the_example_of_the_page_loads(tmp_path: Path) -> None:
    """The suite shown is a suite: one document, two chosen answers, two items of sycophancy, one direction."""
    example = re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert example
    path = tmp_path / "clinic.yaml"
    path.write_text(example.group(1), "utf-8")
    suite = load_suite([path])
    own = [
        [item.item for item in group if item.item.startswith("clinic/")]
        for group in (suite.documents, suite.chosen, suite.sycophancy, suite.directions)
    ]
    assert [len(group) for group in own] == [1, 2, 2, 1]


def test_every_probe_is_in_the_table() -> None:
    """A probe that nobody can read about does not exist; the numbers of items are those of the shipped suite."""
    table = PAGE.partition("## What is measured")[2].partition("*Paired*")[0]
    assert [p for p in (*names.TRAINER, *names.CORE_ENGINE, names.STYLE) if f"`{p}`" not in table] == []
    suite = load_suite()
    rows = {row.split("|")[1].strip(" `"): row.split("|")[6].strip() for row in table.splitlines() if "|" in row}
    assert rows["nll"].startswith(f"{len(suite.documents)} documents")
    assert rows["chosen_logp"].startswith(f"`probes.answer_items` (12) of {len(suite.chosen)}:")
    assert rows["sycophancy"] == f"`probes.answer_items` of {len(suite.sycophancy)}"
    assert rows["direction_influence"] == f"`probes.answer_items` of {len(suite.directions)}"
    assert rows["kl"].startswith(f"{len(suite.kl_items)} of")


def test_the_defaults_of_the_page_are_those_of_the_program() -> None:
    """Each `probes.key` (number) of the page is the default."""
    found = re.findall(r"`probes\.(\w+)` \((\d+(?:\.\d+)?)\)", PAGE)
    assert {key for key, _ in found} == {
        *(
            "nll_documents",
            "answer_items",
            "behaviour_items",
            "capability_items",
            "capability_every",
            "internals_every",
            "budget",
        )
    }
    assert {key: float(value) for key, value in found} == {key: getattr(ProbesConfig(), key) for key, _ in found}
