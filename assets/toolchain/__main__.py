"""``python -m assets.toolchain doctor``: what this machine can build, and what is missing for the rest."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys

from assets.toolchain import parse_targets
from assets.toolchain.doctor import Machine, diagnose, report
from runtime.contract.errors import PipelineError
from runtime.contract.release import TARGETS


def main(argv: list[str] | None = None, machine: Machine | None = None) -> int:
    """Print the diagnosis; 0 where nothing is missing for the targets, 1 else, 2 where one is unknown."""
    parser = argparse.ArgumentParser(prog="python -m assets.toolchain", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    doctor = verbs.add_parser("doctor", help="look at what is installed for each target")
    doctor.add_argument("--targets", default=",".join(TARGETS), help="comma-separated (default: all)")
    doctor.add_argument(
        "--dfc-python",
        default=os.environ.get("HAILO_DFC_PYTHON", ""),
        help="the Python that has Hailo's Dataflow Compiler (default: HAILO_DFC_PYTHON)",
    )
    doctor.add_argument("--json", action="store_true", help="for programs")
    arguments = parser.parse_args(argv)
    try:
        targets = parse_targets(arguments.targets)
    except PipelineError as error:
        print(f"doctor: {error}", file=sys.stderr)
        return 2
    diagnoses = [diagnose(target, arguments.dfc_python, machine) for target in targets]
    if arguments.json:
        print(json.dumps([{**dataclasses.asdict(d), "can_build": d.can_build} for d in diagnoses], indent=1))
    else:
        print(report(diagnoses))
    return 0 if all(diagnosis.can_build for diagnosis in diagnoses) else 1


if __name__ == "__main__":
    sys.exit(main())
