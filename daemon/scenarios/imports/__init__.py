"""The user's own data as scenarios: conversation logs with corrections, and replay against forgetting."""

from daemon.scenarios.imports.clean import special_tokens
from daemon.scenarios.imports.limits import Limits
from daemon.scenarios.imports.reader import ImportedReader, ReadResult
from daemon.scenarios.imports.scan import ScanReport, scan

__all__ = ["ImportedReader", "Limits", "ReadResult", "ScanReport", "scan", "special_tokens"]
