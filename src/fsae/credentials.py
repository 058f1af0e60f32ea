"""Passwords and tokens: kept in the environment, taken out of what is written down, and hidden in what is said.

An address with a password (http://user:password@host) is used and never recorded. What is recorded is the same address
without it; whoever opens the store later finds the password in MLFLOW_TRACKING_URI, where a command puts what it was
given and what processes it starts inherit.
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
# As parts of an address: the name and password before the host, a parameter after the path.
# A slash is lost where an address was taken for a path.
_USERINFO = re.compile(
    r"(?P<scheme>[A-Za-z][\w+.\-]+)(?P<slashes>://?)(?P<user>[^\s/@:'\"]*)(?P<password>:[^\s/'\"]*)?@"
)
_QUERY = re.compile(rf"(?P<name>[?&;#](?:{_PARAMETER})=)(?P<value>[^&;\s'\"]+)", re.IGNORECASE)
_ODBC = re.compile(r"(?:pwd|password)\s*=\s*\{?([^;}]+)", re.IGNORECASE)
# Variables of the environment that hold a secret, and, in a command, one that is set to a literal.
_SECRET_VARIABLE = re.compile(r"(?:PASSWORD|PASSWD|PASSPHRASE|_PWD|TOKEN|SECRET|_KEY|CREDENTIALS?)$")
_ASSIGNMENT = re.compile(
    r"\b[A-Z][A-Z0-9_]*(?:PASSWORD|PASSWD|PASSPHRASE|_PWD|TOKEN|SECRET|_KEY)['\"]?\s*[=:]\s*[^\s$'\"]"
)
# Shorter ones would be found in words that have nothing to do with them.
_SHORTEST = 4

_seen: set[str] = set()


def split_address(uri: str) -> tuple[str, tuple[str, ...]]:
    """An address fit to be shown and written down, and the secrets it held, as they stood in it.

    A server's address loses its user, its query and its fragment too, any of which may be a token; a database's keeps
    them, but for parameters that are known to hold a secret.

    Raises:
        ValueError: where the password ends cannot be told.
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
        # No port: a profile's token, as in databricks://profile:token, or what was meant to stand before a host.
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
    # A file's name may have a #.
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
    """The address fit to be shown and written down."""
    try:
        return split_address(uri)[0]
    except ValueError:
        return f"{uri.partition('://')[0]}://{HIDDEN}"


def with_password(uri: str) -> str:
    """The address as a client needs it: with the name and password that MLFLOW_TRACKING_URI has for it."""
    inherited = os.environ.get(VARIABLE, "")
    return inherited if without_password(inherited).rstrip("/") == uri.rstrip("/") else uri


def for_client(uri: str) -> str:
    """The address as clients of all kinds read it: http://TOKEN@host means the user TOKEN and an empty password."""
    found = _USERINFO.match(uri)
    if found is None:
        return uri
    user, password = found["user"], (found["password"] or ":")[1:]
    if found["scheme"].lower() in ("http", "https"):
        # Their client sends Latin-1 where servers expect UTF-8.
        user, password = (quote(unquote(part).encode().decode("latin-1"), safe="") for part in (user, password))
    elif not password:
        return uri
    # Some end a password at its first @.
    return f"{found['scheme']}://{user}:{password.replace('@', '%40')}@{uri[found.end() :]}"


def keep(uri: str, origin: str) -> str:
    """The address without its password, which goes into the environment, for this process and those it starts.

    Raises:
        ValueError: where the password ends cannot be told.
    """
    try:
        bare, secrets = split_address(uri)
    except ValueError as error:
        raise ValueError(f"{origin}={without_password(uri)}: {error}") from None
    if secrets:
        os.environ[VARIABLE] = uri
    return bare


def without_passwords(overrides: Sequence[str]) -> list[str]:
    """A command's arguments as they may be written down; the password of its `tracking.uri` goes into the environment.

    Raises:
        ValueError: a secret stands where it cannot be taken out.
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
            f"{SETTING}={concealed(text)}: one sweep has one store where there is a password; start a sweep for each"
        )
    bare = keep(text, SETTING)
    return bare if re.fullmatch(r"[\w:/.\-+%@?|]+", bare) else "'" + bare.replace("'", "\\'") + "'"


def holds_secret(text: str) -> bool:
    """Whether a password or a token stands in the text, as far as its form tells."""
    if _hide_forms(text) != text:
        return True
    # A server's address with a query or a fragment, and one with something else than a port behind its colon.
    if re.fullmatch(r"[^\s/]*https?://[^\s?#$]*[?#][^\s$]*", text, re.IGNORECASE):
        return True
    if re.match(r"[\w+.\-]+://[^\s/?#@:$]*:(?!\d*(?:[/?#]|$))[^\s/?#@$]+(?:[/?#]|$)", text):
        return True
    # An address that has no scheme, or in which the password ends where it cannot be told.
    address = re.fullmatch(r"[\w+.\-]*(?::/?/?)?[^\s/@]*:[^\s@]*@[^\s@]+", text)
    return address is not None and not text.startswith("sqlite")


def refuse_secret(text: str, origin: str) -> None:
    """Raise ValueError where a password or a token stands in a setting; `origin` is the setting's name."""
    if _hide_forms(text) != text or _ASSIGNMENT.search(text):
        raise ValueError(
            f"{origin} holds a password or a token, which would be written down with the settings: only {SETTING} may; "
            "export it as a variable of the environment instead (one of Hydra's own settings may name that, as in "
            "hydra.sweeper.storage='${oc.env:STORAGE}')"
        )


def concealed(text: str) -> str:
    """The text without passwords and tokens: those of addresses in it, and wherever they stand those of the environment
    and those that an address had which this process has seen, as they are and as they are encoded."""
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
    """Keep in mind what to hide; a password that stands in the public part of its address too gives nothing away."""
    forms = {form for secret in secrets for form in _forms(secret)}
    if secrets and pair:
        user, _, password = pair.partition(":")
        forms.add(_base64(f"{unquote(user)}:{unquote(password)}"))
    _seen.update(form for form in forms if form not in public)


def _forms(secret: str) -> Iterator[str]:
    """A secret as it may turn up: decoded, encoded, in Python's and in JSON's quotes, and cut where an address is."""
    for text in {secret, unquote(secret), unquote_plus(secret)}:
        pieces = re.split(r"[@:/?#\[\]]", text)
        encoded = (quote(text), quote(text, safe=""), quote_plus(text), _base64(text))
        for form in (text, repr(text)[1:-1], json.dumps(text)[1:-1], *encoded, *pieces):
            if len(form) >= _SHORTEST:
                yield form


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _known() -> list[str]:
    """What to hide, the longest first: a shorter one may be a part of it."""
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
