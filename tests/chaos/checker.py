"""Did a run keep its invariants? Says so from its rows and files alone, and shares no code with dreamd.

    PYTHONPATH=tests python -m chaos.checker --database sqlite:///PATH --state STATE_DIR

Run it after a clean stop. It prints what it compared, how often, and every violation; exit code 1 if there is one.
Nothing that it imports is dreamd's: plain SQL, BLAKE3, JSON and NumPy.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from chaos import invariants, lineage, upkeep
from chaos.findings import Findings
from chaos.recorded import read_recorded

CLAIMS_LOG = "claims.log"


def check(url: str, state: Path, run_name: str = "default", mirror: Path | None = None) -> Findings:
    """Everything, after a clean stop; `mirror` is the folder of the run's mirror, if it has one."""
    findings, root = Findings(), state / "checkpoints"
    recorded = read_recorded(url, run_name)
    invariants.never_repeated(recorded, findings)
    invariants.claims_log(recorded, root / CLAIMS_LOG, findings)
    lineage.kept_are_whole(recorded, root, findings)
    upkeep.nothing_was_found_damaged(recorded, findings)
    if mirror is not None:
        upkeep.mirror_is_whole(recorded, mirror, findings)
        upkeep.mirrored_claims(mirror, root / CLAIMS_LOG, findings)
    lineage.descends_from_base(recorded, root, findings)
    lineage.batches_are_claims(recorded, findings)
    lineage.head_moved_as_decided(recorded, findings)
    invariants.every_cycle_ends(recorded, findings)
    return findings


def check_head(url: str, state: Path, run_name: str = "default") -> list[str]:
    """I2 at this instant, whatever the run was doing when it died: what is wrong with the head."""
    recorded = read_recorded(url, run_name, ("checkpoints",))
    return lineage.head_is_whole(recorded, state / "checkpoints")


def main() -> int:
    parser = argparse.ArgumentParser(prog="chaos.checker", description=__doc__)
    parser.add_argument("--database", required=True, help="sqlite:///PATH or postgresql://USER@HOST/NAME")
    parser.add_argument("--state", type=Path, required=True, help="the run's state directory")
    parser.add_argument("--mirror", type=Path, help="the folder of its mirror")
    parser.add_argument("--run", default="default", help="its name in the database")
    options = parser.parse_args()
    findings = check(options.database, options.state, options.run, options.mirror)
    print(findings.report())
    return 1 if findings.violations else 0


if __name__ == "__main__":
    sys.exit(main())
