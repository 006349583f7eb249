"""Judges and pairing: which answers are right, and which two make an example."""

from daemon.preferences.pairing import RulePreferences
from daemon.preferences.rules import RuleVerdict, judge_text

__all__ = ["RulePreferences", "RuleVerdict", "judge_text"]
