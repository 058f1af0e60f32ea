"""Passwords and tokens work and are stored nowhere."""

import base64
import traceback
from pathlib import Path
from urllib.parse import quote

import pytest

from fsae.configuration.accept import accept
from fsae.credentials import concealed, for_client, split_address, without_password, without_passwords
from fsae.tracking.mlflow_upload import reason_of
from fsae.tracking.server import open_client, resolve_uri, ui_command
from tests.composition import composed

PASSWORD = "Zebra@Quokka/77 é"
TYPED = quote(PASSWORD, safe="")
TOKEN = "tok-Wombat4711"
HUB_TOKEN = "hf_Axolotl0815"


def shown_secrets(content: bytes) -> list[bytes]:
    """Return the forms of the secrets in the text: as they are, as typed, in pieces, and as HTTP Basic sends them."""
    encoded = [base64.b64encode(text.encode()) for text in (f"me:{PASSWORD}", PASSWORD, f"{TOKEN}:", TOKEN)]
    plain = [b"Zebra", b"Quokka", TYPED.encode(), TOKEN.encode(), b"Wombat", HUB_TOKEN.encode()]
    return [form for form in (*plain, *(text.rstrip(b"=")[:-1] for text in encoded)) if form in content]


def assert_no_secret_shown(*folders: Path, printed: str = "") -> None:
    assert shown_secrets(printed.encode()) == [], printed
    for folder in folders:
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert files
        assert {path: found for path in files if (found := shown_secrets(path.read_bytes()))} == {}


@pytest.mark.parametrize(
    ("uri", "bare", "secrets"),
    [
        ("http://me:pw12@host:5000/a", "http://host:5000/a", ("pw12",)),
        ("http://TOKEN@host", "http://host", ("TOKEN",)),
        ("http://TOKEN:@host", "http://host", ("TOKEN",)),
        ("https://me:p@ss:word@[::1]:5000", "https://[::1]:5000", ("p@ss:word",)),
        ("http://[::1]:5000", "http://[::1]:5000", ()),
        # Nothing of a server's query is kept, whatever its parameters' names.
        ("http://host/?token=abcd&x=1", "http://host/", ("abcd", "x=1")),
        ("http://host/a?q=a;token=abcd", "http://host/a", ("q=a", "abcd")),
        ("http://host/#access_token=abcd", "http://host/", ("abcd",)),
        ("http://host#abcd", "http://host", ("abcd",)),
        ("https://host?bearer=abcd", "https://host", ("abcd",)),
        ("https://host/?mine=abcd", "https://host/", ("mine=abcd",)),
        ("dbx://profile:abcd", "dbx://profile", ("abcd",)),
        ("databricks://profile", "databricks://profile", ()),
        ("postgresql://me@host/db?a=1;password=abcd&b=2", "postgresql://me@host/db?a=1&b=2", ("abcd",)),
        ("postgresql://me@host/db?password=abcd&b=2", "postgresql://me@host/db?b=2", ("abcd",)),
        ("postgresql://me@host/db#password=abcd", "postgresql://me@host/db", ("abcd",)),
        ("postgresql+psycopg2://me:p%40ss@host/db", "postgresql+psycopg2://me@host/db", ("p%40ss",)),
        ("postgresql://me@host/db?sslmode=require", "postgresql://me@host/db?sslmode=require", ()),
        ("postgresql:///db?user=me@host&password=x1", "postgresql:///db?user=me@host", ("x1",)),
        ("mysql://host/db?sslpassword=x1&passwd=x2", "mysql://host/db", ("x1", "x2")),
        ("mssql+pyodbc:///?odbc_connect=DRIVER%3DX%3BPWD%3Dgeheim", "mssql+pyodbc:///", ("geheim",)),
        ("sqlite:////home/me@here/a:b.db?timeout=9", "sqlite:////home/me@here/a:b.db?timeout=9", ()),
        ("me:pw12@host", "***@host", ("me:pw12",)),
    ],
)
def test_split_address_separates_the_secrets(uri: str, bare: str, secrets: tuple[str, ...]) -> None:
    assert split_address(uri) == (bare, secrets)
    assert without_password(bare) == bare


@pytest.mark.parametrize(
    "uri", ["http://me:Zeb/ra@host", "postgresql://me:Zeb?ra@host/db", "postgresql://me:Ze#b@host"]
)
def test_a_password_without_a_clear_end_is_refused_and_not_shown(uri: str) -> None:
    with pytest.raises(ValueError, match=r"tracking\.uri=\w+://\*\*\*: .*percent-encoding: / is %2F") as caught:
        without_passwords(["arch=gated", f"tracking.uri={uri}"])
    assert "Ze" not in str(caught.value)


@pytest.mark.parametrize(
    "override",
    [
        "dataset.path=https://me:Zebra@host/data",
        "hydra.sweeper.storage=postgresql://me:Zebra@host/optuna",
        "dataset.path=https://host/data?token=Zebra",
        "hydra.job.env_set={MLFLOW_TRACKING_PASSWORD: Zebra}",
        "tracking.uri=http://me:Zebra@a,http://me:Zebra@b",
    ],
)
def test_a_secret_in_another_setting_is_refused_and_not_shown(override: str) -> None:
    with pytest.raises(ValueError, match=r"password") as caught:
        without_passwords([override])
    assert "Zebra" not in str(caught.value)
    assert override.partition("=")[0] in str(caught.value)


def test_text_without_a_secret_is_not_changed() -> None:
    plain = ["-m", "suite.samples=5", "tracking.uri=sqlite:////a@b/x.db", "dataset.path=/a:b@c", "+x={TOKENS: 3}"]
    plain += ["hydra.sweeper.storage='${oc.env:STORAGE}'", "tracking.uri=http://host:5000", "dataset.name=a/b@v1"]
    plain += [
        "tracking.uri='http://${oc.env:HOST}:5000/?x=${oc.env:X}'",
        "dataset.path=https://host/data?download=true",
    ]
    assert without_passwords(plain) == plain


def test_with_password_takes_the_password_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://other")
    assert without_passwords([f"++tracking.uri='https://me:{TYPED}@host/x'"]) == ["++tracking.uri=https://host/x"]
    assert resolve_uri("https://host/x", Path()) == f"https://me:{TYPED}@host/x"
    assert resolve_uri("https://host/y", Path()) == "https://host/y"
    for uri, bare in (
        ("http://host/?q=a;mine=Zebra", "http://host/"),
        ("http://host/#Zebra", "http://host/"),
        ("https://host?jwt=Zebra", "https://host"),
    ):
        assert without_passwords([f"tracking.uri={uri}"]) == [f"tracking.uri={bare}"]
        assert resolve_uri(bare, Path()) == uri
        assert "Zebra" not in concealed(f"cannot reach {uri}")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:Zebra@host/db")
    # In a shell with the variable this command opens the database.
    assert '--backend-store-uri "$MLFLOW_TRACKING_URI"' in ui_command(resolve_uri("postgresql://me@host/db", Path()))


def test_for_client_returns_an_unambiguous_address() -> None:
    # requests sends nothing for a user without a colon, and SQLAlchemy ends a password at its first @.
    assert for_client("http://TOKEN@host/a@b") == "http://TOKEN:@host/a@b"
    assert for_client("postgresql://me:p@ss@host/db") == "postgresql://me:p%40ss@host/db"
    # requests sends Latin-1 where servers expect UTF-8, in which an é is "Ã©" read as Latin-1.
    assert for_client("http://me:%C3%A9@host") == f"http://me:{quote('Ã©')}@host"
    for uri in ("http://me:pw@host", "postgresql://me@host/db", "sqlite:////a@b/x.db"):
        assert for_client(uri) == uri


def test_a_settings_file_may_hold_the_tracking_servers_password_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    for name in ("experiment", "run"):
        (tmp_path / name).mkdir()
    mine = tmp_path / "experiment" / "mine.yaml"
    mine.write_text(f"# @package _global_\ntracking:\n  uri: http://me:{TYPED}@host\n")
    settings, origin = accept(composed("experiment=mine", own=tmp_path), tmp_path / "run", [])
    assert (settings.tracking.uri, origin.flat["tracking.uri"]) == ("http://host", "http://host")
    assert shown_secrets(origin.config_yaml.encode()) == []
    assert resolve_uri(settings.tracking.uri, tmp_path) == f"http://me:{TYPED}@host"
    mine.write_text(f"# @package _global_\ndataset:\n  path: https://me:{TYPED}@host\n  text_column: text\n")
    with pytest.raises(ValueError, match=r"dataset\.path holds a password"):
        accept(composed("experiment=mine", "dataset=text_files", own=tmp_path), tmp_path / "run", [])
    assert_no_secret_shown(tmp_path / "run")


@pytest.mark.parametrize(
    "uri",
    [f"http://me:{TYPED}@127.0.0.1:9", f"http://{TOKEN}@127.0.0.1:9", f"postgresql+psycopg2://me:{TYPED}@127.0.0.1:9/a",
     "mysql+none://me:Zebra@Quokka@127.0.0.1:9/a", f"postgresql://127.0.0.1:9/a?password={TYPED}"],
)  # fmt: skip
def test_secrets_are_removed_from_mlflows_errors(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # MLflow would retry an unreachable database for minutes.
    monkeypatch.setattr("mlflow.store.db.utils.MAX_RETRY_COUNT", 1)
    with pytest.raises(Exception) as caught:
        open_client(uri).search_experiments()
    assert shown_secrets(reason_of(caught.value).encode()) == []
    assert shown_secrets(concealed("".join(traceback.format_exception(caught.value))).encode()) == []


def test_concealed_hides_secrets_of_the_environment_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", HUB_TOKEN)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:{TOKEN}@proxy:3128")
    header = base64.b64encode(f"me:{PASSWORD}".encode()).decode()
    text = f"401 for Bearer {HUB_TOKEN}, Basic {header}, {PASSWORD!r}, {TYPED}, via {TOKEN}"
    assert concealed(text) == "401 for Bearer ***, Basic ***, '***', ***, via ***"


def test_a_password_that_occurs_in_the_public_address_is_not_hidden() -> None:
    assert split_address("postgresql://mlflow:mlflow@host/mlflow") == ("postgresql://mlflow@host/mlflow", ("mlflow",))
    assert concealed("in mlflow.db, postgresql://mlflow:mlflow@host") == "in mlflow.db, postgresql://mlflow:***@host"
