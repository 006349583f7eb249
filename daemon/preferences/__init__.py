"""Judges and pairing: which answers are right, and which two make an example."""

from daemon.preferences.contrast import ContrastJudge
from daemon.preferences.judging import Judges
from daemon.preferences.model_judge import EndpointJudge, LocalModelJudge, ModelJudge
from daemon.preferences.pairing import JudgedPreferences
from daemon.preferences.rules import RuleVerdict, judge_text

__all__ = [
    "ContrastJudge",
    "EndpointJudge",
    "JudgedPreferences",
    "Judges",
    "LocalModelJudge",
    "ModelJudge",
    "RuleVerdict",
    "judge_text",
]
