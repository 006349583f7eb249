"""Which texts hold a secret. Every planted one is put together here, so that no scanner takes this file for a leak."""

from __future__ import annotations

import base64
import json
import socket

import pytest

from daemon.scenarios.imports.secrets import WINDOW, find_secret

HEX32 = "0123456789abcdef" * 2
MIXED36 = "aB3dE5gH7jK9mN1pQ2sT4vW6yZ8bC0dF2gH4"

PLANTED = {
    "e-mail": "write to jane.doe" + "@" + "example.com please",
    "e-mail with a tag": "jane+news" + "@" + "mail.example.co.uk",
    "e-mail in angle brackets": "From: Jane <jane" + "@" + "example.org>",
    "e-mail before a bracket": "jane" + "@" + "example.com(home)",
    "e-mail before a digit": "jane" + "@" + "example.com2",
    "e-mail, wide at sign": "jane" + "\uff20" + "example.org",
    "e-mail, international": "jörg" + "@" + "müller.de",
    "OpenAI": "sk-" + MIXED36,
    "OpenAI project": "key sk-" + "proj-" + MIXED36 + "_x",
    "Anthropic": "sk-" + "ant-api03-" + MIXED36,
    "Hugging Face": "hf" + "_" + "abcdEFGHijklMNOPqrstUVWXyzabCDEFgh",
    "Google": "AIza" + "SyD-" + MIXED36[:31],
    "AWS key id": "AKIA" + "IOSFODNN7EXAMPLE",
    "AWS secret": 'aws_secret_access_key = "' + "wJalrXUtnFEMI/K7MDENG/" + "bPxRfiCYEXAMPLEKEY" + '"',
    "GitHub": "ghp" + "_" + MIXED36,
    "GitHub, fine-grained": "github" + "_pat_" + MIXED36,
    "GitLab": "glpat" + "-" + MIXED36[:20],
    "Slack": "xox" + "b-123456789012-123456789012-" + MIXED36[:24],
    "Stripe": "sk_" + "live_" + MIXED36[:24],
    "SendGrid": "SG." + MIXED36[:22] + "." + (MIXED36 + MIXED36)[:43],
    "Mailchimp": HEX32 + "-us" + "12",
    "Twilio": "AC" + HEX32,
    "Telegram": "the bot is 123456789" + ":" + MIXED36[:35],
    "npm": "npm" + "_" + MIXED36,
    "PyPI": "pypi-" + "AgEIcHlwaS5vcmc" + "A" * 80,
    "JWT": "eyJ" + "hbGciOiJIUzI1NiJ9.eyJ" + "zdWIiOiIxMjM0In0.c2lnbmF0dXJl",
    "private key": "-----BEGIN RSA " + "PRIVATE KEY-----\nMIIE",
    "encrypted private key": "-----BEGIN ENCRYPTED " + "PRIVATE KEY-----",
    "bearer": "Authorization: Bearer " + MIXED36,
    "basic": "authorization: basic " + "dXNlcjpwYXNzMTIzNDU2",
    "URL": "postgres" + "://admin:" + "s3cr3tpw" + "@db.internal/x",
    "password": "password" + "=" + "hunter2x",
    "password in prose": "my password" + " is " + "Tr0ub4dor&3",
    "password in JSON": '{"password"' + ': "' + 'S3cretWord99"}',
    "variable": "DB_PASSWORD" + "=" + "correct4horse",
    "quoted": "api_key" + ' = "' + 'correcthorsebattery"',
    "API key, spelled out": "my API key" + ": " + MIXED36,
    "secret key, quoted": "Secret key" + ' = "' + MIXED36 + '"',
    "login": "user: admin, pass" + ": hunter2x",
    "Docker": "dckr" + "_pat_" + MIXED36[:27],
    "Vault": "hvs" + "." + MIXED36,
    "age": "AGE-SECRET" + "-KEY-1" + "QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L" * 2,
    "Postman": "PMAK" + "-" + HEX32[:24] + "-" + HEX32 + "01",
    "Azure": "AccountKey" + "=" + "a1B2" * 22,
}

HARMLESS = {
    "prose": "The basic idea is simple: I bear a token of thanks, and the secret is that there is none.",
    "talk of passwords": "My password is too short. The password: it must have 8 characters! What is an API key?",
    "long words": "basic internationalization, basic incomprehensibilities",
    "times and prices": "At 10:45 we sold 3 @ 4.50 each; ratio 1:2, version 2.0.1, ISBN 978-3-16-148410-0.",
    "git log": "commit 9fceb02d0ae598e95dc970b74767f19372d61af8\nMerge: 1a2b3c4 5d6e7f8\n    Fix the parser",
    "UUID": "id 123e4567-e89b-12d3-a456-426614174000 of 00000000-0000-0000-0000-000000000000",
    "SHA-256": "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "base64": "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk",
    "Python": 'password = input("Password: ")\ntoken = tokens[index]\nsecret: str = environ["SECRET"]\n@app.route("/")',
    "keyword arguments": "connect(user=user, password=password, api_key=settings.api_key2, token=None)",
    "calls": "password = generate_password2(12)\nfor token in tokens: count += token == stop_token1",
    "matrices": "scores = (queries@keys.transpose(1, 2)) @ values",
    "ssh remote": "git clone git@github.com:owner/name.git",
    "handles": "thanks @jane and @joe; see https://example.com/@jane/123",
    "placeholders": 'password = "your_password_here"; api_key="<API_KEY>"; token=${TOKEN1}; secret="********"',
    "CSS and hex": "color: #a1b2c3; --token: 12px; background: url(img/sk-icon-large.png)",
    "capitals": "APERIODICALLY APARTMENTALIZED we met in an APARTMENT",
    "slugs": "see /posts/sk-how-to-write-a-very-long-title-with-many-words",
    "spelled out": "API key: see section 4.2. The API key is base64-encoded. Access token: string, 64 characters",
    "paths": "secret key: config/settings/api_v2.json, private key: https://example.com/keys/2024-01-02/x",
    "test report": "--- PASS: TestUserLogin2 (0.00s)\npass: test_user_login2\nPASS: gcc.c-torture/20000112-1.c",
    "statement": "class User: pass\nuser: User2 = None\nfirst pass: tokenize42, second pass: parse",
    "labels": "password: 'Must have 8 characters'; passphrase = \"Enter your words\"",
    "prefixes": "hvs.example.com, PMAK-, AGE-SECRET-KEY-1..., dckr_pat_, eyJhbGciOi..., eyJhbGciOiJIUzI1NiJ9.<payload>",
    "empty": "",
}


@pytest.mark.parametrize("text", PLANTED.values(), ids=PLANTED)
def test_planted_secret_is_found(text: str) -> None:
    """Each kind is found where it stands alone and in the middle of prose, and is named without a part of it."""
    for place in (text, f"Before it.\n{text}\nand after it."):
        found = find_secret(place)
        assert found is not None
        assert not any(len(word) > 6 and any(map(str.isdigit, word)) for word in found.split())


@pytest.mark.parametrize("text", HARMLESS.values(), ids=HARMLESS)
def test_harmless_text_is_kept(text: str) -> None:
    """Prose, code, hashes, ids and placeholders are no secrets."""
    assert find_secret(text) is None


@pytest.mark.parametrize("offset", range(WINDOW - 60, WINDOW + 1, 7))
def test_secret_across_windows_is_found(offset: int) -> None:
    """Long text is searched in overlapping windows, so no position hides a secret."""
    assert find_secret("word " * (offset // 5) + " " * (offset % 5) + PLANTED["GitHub"] + " word" * 2000)


@pytest.mark.parametrize("offset", range(0, WINDOW, 512))
def test_token_longer_than_the_overlap_is_found(offset: int) -> None:
    """A JSON Web Token with long claims is found wherever the windows cut it."""
    claims = {"sub": "1234", "groups": [f"group-{number}" for number in range(80)]}
    parts = (base64.urlsafe_b64encode(json.dumps(part).encode()).decode() for part in ({"alg": "RS256"}, claims))
    token = ".".join(part.rstrip("=") for part in parts) + "." + MIXED36 * 10
    assert len(token) > 1600
    assert find_secret("x " * (offset // 2) + token + " word" * 2000) == "JSON Web Token"


def test_nothing_is_asked_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found keys are never sent anywhere to be verified."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert all(find_secret(text) for text in PLANTED.values())
