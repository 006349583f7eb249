"""Find keys, tokens, passwords and e-mail addresses in text, without asking any service whether they are real.

detect-secrets' pattern plugins are asked for their matches only (`analyze_string`): its own scan would run each
plugin's `verify`, which sends what was found to the service it belongs to. Its entropy plugins are left out: they
take every hash in a git log and half of all code for a secret.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from typing import Any

WINDOW = 4096
"""Characters searched at once: some of the library's patterns take quadratic time on long lines."""
_OVERLAP = 512

_PLUGINS = (
    ("artifactory", "ArtifactoryDetector"),
    ("aws", "AWSKeyDetector"),
    ("azure_storage_key", "AzureStorageKeyDetector"),
    ("basic_auth", "BasicAuthDetector"),
    ("cloudant", "CloudantDetector"),
    ("discord", "DiscordBotTokenDetector"),
    ("github_token", "GitHubTokenDetector"),
    ("gitlab_token", "GitLabTokenDetector"),
    ("ibm_cos_hmac", "IbmCosHmacDetector"),
    ("jwt", "JwtTokenDetector"),
    ("mailchimp", "MailchimpDetector"),
    ("private_key", "PrivateKeyDetector"),
    ("pypi_token", "PypiTokenDetector"),
    ("sendgrid", "SendGridDetector"),
    ("slack", "SlackDetector"),
    ("softlayer", "SoftlayerDetector"),
    ("square_oauth", "SquareOAuthDetector"),
    ("stripe", "StripeDetector"),
    ("twilio", "TwilioKeyDetector"),
)

_NAMES = (
    r"pass(?:word|wd|phrase)|pwd|secret(?:[_-]?key)?|api[_-]?key|access[_-]?(?:key|token)|auth[_-]?token"
    r"|client[_-]?secret|private[_-]?key|token"
)
_OWN: tuple[tuple[str, str], ...] = (
    (
        "e-mail address",
        r"(?<=[\w.%+-])(?<!\bgit)@(?:[\w-]{1,63}\.){1,8}"
        r"(?:(?:com|org|net|edu|gov|info|io|de|uk|fr|eu)(?![^\W_])|(?:[^\W\d_]{2,24}|xn--[\w-]{2,59})(?![^\W\d_]|[(\[]))",
    ),
    ("OpenAI or Anthropic key", r"(?<![\w-])sk-(?=[\w-]*\d)[\w-]{20,}"),
    ("Hugging Face token", r"(?<!\w)(?:hf|api_org)_[A-Za-z0-9]{30,}"),
    ("Google API key", r"(?<![\w-])AIza[\w-]{30,}"),
    ("Google OAuth token", r"(?<![\w-])(?:ya29\.[\w-]{20,}|GOCSPX-[\w-]{20,})"),
    ("GitHub token", r"(?<!\w)(?:github_pat_\w{22,}|gh[pousr]_[A-Za-z0-9]{30,})"),
    ("npm token", r"(?<!\w)npm_[A-Za-z0-9]{36}|_authToken\s*=\s*[\w-]{16,}"),
    ("Telegram token", r"(?<!\w)\d{8,10}:[\w-]{35}(?![\w-])"),
    ("Docker token", r"(?<!\w)dckr_[a-z]{2,4}_[\w-]{20,}"),
    ("Vault token", r"(?<![\w.-])hv[sbr]\.(?=[\w-]*\d)[\w-]{20,}"),
    ("age key", r"(?<!\w)AGE-SECRET-KEY-(?:PQ-)?1[A-Z0-9]{30,}"),
    ("Postman key", r"(?<!\w)PMAK-[0-9a-f]{24}-[0-9a-f]{20,}"),
    ("provider token", r"(?<!\w)(?:gsk|r8|xai|dop_v1|shp(?:at|ss|ca|pa)|lin_api|pplx)[_-](?=\w*\d)\w{24,}"),
    ("private key", r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY"),
    ("authorization header", r"(?i)\b(?:bearer|basic|authorization:\s*\w{1,12})\s+(?=\S*\d)[\w.~+/-]{16,}=*"),
)
# Longer than a window, so searched for in the whole text: one start for each word, nothing read twice.
_JWT = re.compile(r"(?<![\w-])eyJ[\w-]{8,}+\.(?:[\w-]{8,}|\.[\w-]{8,}\.)")
_VALUE = r"""(?:(?P<quote>["'`])(?P<quoted>[^\s"'`]{6,200})(?P=quote)|(?P<bare>[^\s"'`,;<>(){}\[\]]{6,200})(?![(\[]))"""
_ASSIGNMENT = re.compile(
    rf"""(?ix)(?<![a-z0-9])(?:[a-z0-9]{{1,20}}[_-]){{0,4}}(?:{_NAMES})["'`]?\s{{0,3}}(?P<op>:=|=>|=|:|\bis\b)\s{{0,3}}
    {_VALUE}"""
)
# Two words and short names are common in prose, so a bare word after them must look more like a value.
_LABELLED = re.compile(
    rf"""(?ix)
    (?:\b(?:api|access|secret|private)[ ](?:key|token)\s?(?P<op>[:=])\s{{0,3}}(?=["'`]?[\w+/=-]{{16,}}+(?![.:]\w))
    |\b(?:user(?:name)?|login|account)\s?[:=][^\n]{{1,80}}?\bpass\s?[:=]\s{{0,3}}){_VALUE}"""
)
_PLACEHOLDER = re.compile(r"(?i)^[\W_x]*$|your|example|placeholder|change.?me|redacted|\*{3}|\.{3}|^\$|^%|^<|\{")
_MENTION = re.compile(r"(?:[A-Za-z_]\w*\.)+[A-Za-z_]\w*|[A-Za-z_]+[.!?]?")


def find_secret(text: str) -> str | None:
    """The kind of the first secret in `text`, never the secret itself; None: there is none that is known here.

    Args: text: cleaned, so that no pile of combining marks makes normalising slow.
    """
    folded = unicodedata.normalize("NFKC", text)
    if _JWT.search(folded):
        return "JSON Web Token"
    step = WINDOW - _OVERLAP
    for start in range(0, max(len(folded) - _OVERLAP, 1), step):
        found = _find(folded[start : start + WINDOW])
        if found is not None:
            return found
    return None


def _find(text: str) -> str | None:
    for kind, pattern in _own():
        if pattern.search(text):
            return kind
    if any(_is_password(match) for pattern in (_ASSIGNMENT, _LABELLED) for match in pattern.finditer(text)):
        return "password or key in an assignment"
    for plugin in _plugins():
        if any(_believable(plugin.secret_type, match) for match in plugin.analyze_string(text)):
            return str(plugin.secret_type)
    return None


@cache
def _own() -> tuple[tuple[str, re.Pattern[str]], ...]:
    return tuple((kind, re.compile(pattern)) for kind, pattern in _OWN)


@cache
def _plugins() -> tuple[Any, ...]:
    """Imported late: the library brings an HTTP client with it."""
    from importlib import import_module

    return tuple(getattr(import_module(f"detect_secrets.plugins.{module}"), name)() for module, name in _PLUGINS)


def _is_password(match: re.Match[str]) -> bool:
    """Whether what is assigned looks like a value and not like a variable, a type, a placeholder or prose."""
    quoted, bare = match["quoted"], match["bare"]
    value = quoted or bare
    if _PLACEHOLDER.search(value):
        return False
    if quoted is not None and match["op"] in ("=", ":="):
        return len(value) >= 8 or _mixed(value)
    return _mixed(value) and not _MENTION.fullmatch(value)


def _mixed(value: str) -> bool:
    return any(char.isdigit() for char in value) and any(char.isalpha() for char in value)


def _believable(kind: str, value: str) -> bool:
    """Artifactory's pattern also takes words in capitals for keys."""
    return "Artifactory" not in kind or any(char.isdigit() for char in value[4:])
