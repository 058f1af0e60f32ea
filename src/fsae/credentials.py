"""Passwords and tokens: kept in the environment, removed from what is stored, and hidden in what is printed.

An address with a password (http://user:password@host) is used and never stored. What is stored is the same address
without it; a later command that opens the tracking server finds the password in MLFLOW_TRACKING_URI. A command puts
the password that it is given there, and the processes that it starts inherit it.
"""

import base64
import json
import os
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from urllib.parse import quote, quote_plus, unquote, unquote_plus

VARIABLE = "MLFLOW_TRACKING_URI"
HIDDEN = "***"
SETTING = "tracking.uri"

_PARAMETER = (
    r"[\w.\-]*(?:password|passwd|passphrase|passwort|pwd|token|secret|credentials?|api_?key|access_?key|signature|"
    r"odbc_connect)|pass|passcode|pw|auth|authorization|bearer|jwt|key|sas|sig"
)
# Parts of an address: the name and password before the host, and a parameter after the path.
# An address that was taken for a path has lost a slash.
_USERINFO = re.compile(
    r"(?P<scheme>[A-Za-z][\w+.\-]+)(?P<slashes>://?)(?P<user>[^\s/@:'\"]*)(?P<password>:[^\s/'\"]*)?@"
)
_QUERY = re.compile(rf"(?P<name>[?&;#](?:{_PARAMETER})=)(?P<value>[^&;\s'\"]+)", re.IGNORECASE)
_ODBC = re.compile(r"(?:pwd|password)\s*=\s*\{?([^;}]+)", re.IGNORECASE)
# Environment variables that hold a secret, and an assignment of a literal to one inside a command.
_SECRET_VARIABLE = re.compile(r"(?:PASSWORD|PASSWD|PASSPHRASE|_PWD|TOKEN|SECRET|_KEY|CREDENTIALS?)$")
_ASSIGNMENT = re.compile(
    r"\b[A-Z][A-Z0-9_]*(?:PASSWORD|PASSWD|PASSPHRASE|_PWD|TOKEN|SECRET|_KEY)['\"]?\s*[=:]\s*[^\s$'\"]"
)
# Shorter secrets would match parts of unrelated words.
_SHORTEST = 4

_seen: set[str] = set()


def split_address(uri: str) -> tuple[str, tuple[str, ...]]:
    """Return an address that may be shown and stored, and the secrets it held, as written in it.

    A server's address also loses its user, its query and its fragment, since each may be a token; a database's address
    loses only parameters that are known to hold a secret.

    Raises:
        ValueError: the end of the password cannot be determined.
    """
    scheme, mark, rest = uri.partition("://")
    if not mark:
        hidden, at, host = uri.rpartition("@")
        return (f"{HIDDEN}@{host}", (hidden,)) if at else (uri, ())
    server = scheme.lower().endswith(("http", "https"))
    end = re.search(r"[/?#]", rest)
    authority, tail = (rest[: end.start()], rest[end.start() :]) if end else (rest, "")
    userinfo, at, host = authority.rpartition("@")
    port = authority.rpartition(":")[2] if ":" in authority.rpartition("]")[2] else ""
    if port and not at and not port.isdecimal() and "@" not in tail:
        # Not a port: a profile's token, as in databricks://profile:token, or a user and password without a host.
        userinfo, host = authority, authority.removesuffix(f":{port}")
    path = tail.partition("?")[0]
    wrong = server or "@" in path or (port and not at and not port.isdecimal())
    if wrong and "@" in tail and scheme.partition("+")[0] != "sqlite":
        _remember("", *re.split("[@:]", rest.rpartition("@")[0]))
        raise ValueError(
            "the user or the password holds a character that has a meaning in an address; write it in percent-"
            "encoding: / is %2F, ? is %3F, # is %23, @ is %40, : is %3A"
        )
    user, _, password = userinfo.partition(":")
    secrets = [part for part in (password or (user if server else ""),) if part]
    address = f"{scheme}://" + (f"{user}@" if at and not server else "") + host
    # A file's name may contain a #.
    query = re.search(r"\?.*" if scheme.startswith("sqlite") else "[?#].*", tail)
    path = tail[: query.start()] if query else tail
    kept = ""
    for parameter in re.findall("[?#&;][^?#&;]*", query[0]) if query else []:
        if _QUERY.fullmatch(parameter):
            value = parameter.partition("=")[2]
            secrets += _ODBC.findall(unquote_plus(value)) if "odbc" in parameter.lower() else [value]
        elif server:
            secrets += [parameter[1:]] if parameter[1:] else []
        else:
            kept += parameter if kept or parameter[0] == "#" else f"?{parameter[1:]}"
    bare = address + path + (kept if kept != "?" else "")
    _remember(bare, *secrets, pair=userinfo)
    return bare, tuple(secrets)


def without_password(uri: str) -> str:
    """Return the address without secrets, which may be shown and stored."""
    try:
        return split_address(uri)[0]
    except ValueError:
        return f"{uri.partition('://')[0]}://{HIDDEN}"


def with_password(uri: str) -> str:
    """Return the address with the name and password that MLFLOW_TRACKING_URI has for it, if any."""
    inherited = os.environ.get(VARIABLE, "")
    return inherited if without_password(inherited).rstrip("/") == uri.rstrip("/") else uri


def for_client(uri: str) -> str:
    """Return the address in a form that every client reads alike: http://TOKEN@host gets an empty password."""
    found = _USERINFO.match(uri)
    if found is None:
        return uri
    user, password = found["user"], (found["password"] or ":")[1:]
    if found["scheme"].lower() in ("http", "https"):
        # MLflow's HTTP client sends Latin-1, but servers expect UTF-8.
        user, password = (quote(unquote(part).encode().decode("latin-1"), safe="") for part in (user, password))
    elif not password:
        return uri
    # Some clients end a password at its first @.
    return f"{found['scheme']}://{user}:{password.replace('@', '%40')}@{uri[found.end() :]}"


def keep(uri: str, origin: str) -> str:
    """Return the address without its password, which is put into the environment of this process and its children.

    Raises:
        ValueError: the end of the password cannot be determined.
    """
    try:
        bare, secrets = split_address(uri)
    except ValueError as error:
        raise ValueError(f"{origin}={without_password(uri)}: {error}") from None
    if secrets:
        os.environ[VARIABLE] = uri
    return bare


def without_passwords(overrides: Sequence[str]) -> list[str]:
    """Return a command's arguments without secrets; the password of its `tracking.uri` is put into the environment.

    Raises:
        ValueError: an argument holds a secret that cannot be removed.
    """
    kept = []
    for override in overrides:
        key, mark, value = override.partition("=")
        if mark and key.lstrip("+") == SETTING:
            kept.append(f"{key}={_public_value(value)}")
            continue
        refuse_secret(override, key if mark else override.partition(":")[0])
        kept.append(override)
    return kept


def _public_value(value: str) -> str:
    text = value.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        text = text[1:-1].replace(f"\\{text[0]}", text[0])
    if not holds_secret(text):
        return value
    if text.count("://") > 1 or text.startswith(("choice(", "[", "glob(")):
        raise ValueError(
            f"{SETTING}={concealed(text)}: a sweep with a password has one tracking server; start a sweep for each"
        )
    bare = keep(text, SETTING)
    return bare if re.fullmatch(r"[\w:/.\-+%@?|]+", bare) else "'" + bare.replace("'", "\\'") + "'"


def holds_secret(text: str) -> bool:
    """Return whether the text holds a password or a token, judging by its form."""
    if _hide_forms(text) != text:
        return True
    # A server's address with a query or a fragment, and an address with something other than a port after its colon.
    if re.fullmatch(r"[^\s/]*https?://[^\s?#$]*[?#][^\s$]*", text, re.IGNORECASE):
        return True
    if re.match(r"[\w+.\-]+://[^\s/?#@:$]*:(?!\d*(?:[/?#]|$))[^\s/?#@$]+(?:[/?#]|$)", text):
        return True
    # An address without a scheme, or one in which the end of the password cannot be determined.
    address = re.fullmatch(r"[\w+.\-]*(?::/?/?)?[^\s/@]*:[^\s@]*@[^\s@]+", text)
    return address is not None and not text.startswith("sqlite")


def refuse_secret(text: str, origin: str) -> None:
    """Raise ValueError if a setting, named by `origin`, holds a password or a token."""
    if _hide_forms(text) != text or _ASSIGNMENT.search(text):
        raise ValueError(
            f"{origin} holds a password or a token, which would be stored with the settings: only {SETTING} may; "
            "export it as a variable of the environment instead (one of Hydra's own settings may name that, as in "
            "hydra.sweeper.storage='${oc.env:STORAGE}')"
        )


def concealed(text: str) -> str:
    """Return the text without passwords and tokens.

    Hidden are those of addresses in the text, those of the environment, and those of addresses that this process has
    seen; as they are and encoded.
    """
    text = _hide_forms(text)
    for secret in _known():
        text = text.replace(secret, HIDDEN)
    return text


def _hide_forms(text: str) -> str:
    if ":/" in text:
        text = _USERINFO.sub(_hide_userinfo, text)
    if "=" in text:
        text = _QUERY.sub(rf"\g<name>{HIDDEN}", text)
    return text


def _hide_userinfo(found: re.Match[str]) -> str:
    server = found["scheme"].lower().endswith(("http", "https"))
    if found["user"] == HIDDEN or not (server or found["password"]):
        return found[0]
    return found["scheme"] + found["slashes"] + (f"{HIDDEN}@" if server else f"{found['user']}:{HIDDEN}@")


def _remember(public: str, *secrets: str, pair: str = "") -> None:
    """Remember secrets to hide, except those that also occur in the public part of their address."""
    forms = {form for secret in secrets for form in _forms(secret)}
    if secrets and pair:
        user, _, password = pair.partition(":")
        forms.add(_base64(f"{unquote(user)}:{unquote(password)}"))
    _seen.update(form for form in forms if form not in public)


def _forms(secret: str) -> Iterator[str]:
    """Yield the forms of a secret: decoded, encoded, quoted by Python and JSON, and cut at an address's separators."""
    for text in {secret, unquote(secret), unquote_plus(secret)}:
        pieces = re.split(r"[@:/?#\[\]]", text)
        encoded = (quote(text), quote(text, safe=""), quote_plus(text), _base64(text))
        for form in (text, repr(text)[1:-1], json.dumps(text)[1:-1], *encoded, *pieces):
            if len(form) >= _SHORTEST:
                yield form


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _known() -> list[str]:
    """Return all secrets to hide, the longest first, since a shorter one may be a part of it."""
    variables = tuple(
        (name, value) for name, value in os.environ.items() if _SECRET_VARIABLE.search(name) or "://" in value
    )
    user = os.environ.get("MLFLOW_TRACKING_USERNAME", "")
    return sorted(_seen | _of_environment(variables, user), key=len, reverse=True)


@lru_cache(maxsize=4)
def _of_environment(variables: tuple[tuple[str, str], ...], user: str) -> frozenset[str]:
    forms: set[str] = set()
    for _, value in variables:
        if "://" in value:
            without_password(value)
        elif not value.startswith(("/", "~")):
            forms.update(form for form in _forms(value) if len(form) > _SHORTEST)
            forms.add(_base64(f"{user}:{value}"))
    return frozenset(forms)
