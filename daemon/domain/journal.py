"""The lines of the claims journal: `run NAME` first, then `CYCLE KIND HASH` for each claim."""

from __future__ import annotations

import re

OWNER = re.compile(rb"run ([!-~]{1,64})\n")
LINE = re.compile(rb"([1-9][0-9]{0,9}) (scenario|example) ([!-~]{1,64})\n")
LONGEST_LINE = 128
"""Bytes; no line is longer."""
