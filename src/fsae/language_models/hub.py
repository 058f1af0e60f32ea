"""The model hub: checks within seconds whether a repository exists and may be read."""

import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TypeVar

from fsae.errors import first_line

Answer = TypeVar("Answer")

# The time limit of one request after connecting, and of the whole check with name resolution.
REQUEST_SECONDS = 5.0
QUESTION_SECONDS = 10.0

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


class RepoKind(Enum):
    """The kinds of hub repositories."""

    model = "model"
    dataset = "dataset"


def hub_endpoint() -> str:
    """Return the hub's address; HF_ENDPOINT names a mirror."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def is_hub_name(path: str) -> bool:
    """Return whether `path` could name a hub repository: `name` or `owner/name`, and nothing else."""
    return _HUB_NAME.fullmatch(path) is not None and not path.startswith((".", "~"))


def local_model_folder(path: str, setting: str = "model.path") -> Path | None:
    """Return the folder that `path` names, or None if it is a hub name.

    An existing folder takes precedence over a hub repository of the same name, as in transformers.

    Args:
        setting: the setting that holds the path, such as `layout.model.path`; a tokenizer's folder (`model.tokenizer`)
            need not hold a model.

    Raises:
        ValueError: `path` is neither a folder nor a hub name, or the folder holds no model.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        if setting.endswith("model.path") and not (folder / "config.json").is_file():
            raise ValueError(
                f"{setting}: the folder {folder} holds no config.json, so it is not a model in Hugging Face's layout; "
                "give a folder that `save_pretrained` wrote, or a hub name"
            )
        return folder
    if not is_hub_name(path):
        raise ValueError(
            f"{setting}: {path!r} is no folder on this machine (seen from {Path.cwd()}) and no hub name (owner/name); "
            "correct the path"
        )
    return None


def cached_file(repo: str, filename: str, *, revision: str | None) -> Path | None:
    """Return the local copy of `filename` of a hub model, or None if it was never downloaded; makes no request."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, filename, revision=revision)
    return Path(found) if isinstance(found, str) else None


def require_repo(repo: str, *, revision: str | None, kind: RepoKind, setting: str | None = None) -> bool:
    """Check that a hub repository can be opened, before a library with long retries tries it.

    Args:
        setting: the setting that names it; by default `model.path` or `dataset.path`.

    Returns:
        Whether the hub answers. False if it does not but the model is in the cache: open it within `offline()`.

    Raises:
        ValueError: hub unreachable and nothing cached, gated or private without access, no such repository or revision.
    """
    setting = setting or f"{kind.value}.path"
    set_offline = is_offline()
    refusal = "HF_HUB_OFFLINE is set" if set_offline else _ask(repo, revision, kind, setting)
    if refusal is None:
        return True
    if kind is RepoKind.model and cached_file(repo, "config.json", revision=revision) is not None:
        return False
    kept = "is not in the local cache" if kind is RepoKind.model else "is not on this machine"
    remedy = "unset it" if set_offline else "check the network, the proxy or HF_ENDPOINT"
    instead = (
        "or use a model that needs no hub (model=smollm2_135m_instruct_q4_1, model=gemma3_270m_q4_k_m) or a folder "
        "(model.path=/a/folder)"
        if setting == "model.path"
        else "or use text on this machine (dataset=python_source) or a copy in the hub's layout (dataset.path=/folder)"
        if setting == "dataset.path"
        else f"or use a copy ({setting}=/folder)"
    )
    raise ValueError(f"{setting}: {repo} {kept} and {hub_endpoint()} cannot be asked ({refusal}); {remedy}, {instead}")


def resolved_revision(repo: str, *, revision: str | None, kind: RepoKind, setting: str | None = None) -> str:
    """Return the commit that a name and revision resolve to: the hub's current one, or offline the cached one.

    Raises:
        ValueError: as `require_repo`.
    """
    if require_repo(repo, revision=revision, kind=kind, setting=setting):
        from huggingface_hub import HfApi

        found = HfApi().repo_info(repo, revision=revision, repo_type=kind.value, timeout=REQUEST_SECONDS).sha
        assert found is not None
        return found
    config_json = cached_file(repo, "config.json", revision=revision)
    assert config_json is not None, "require_repo accepts only a cached model"
    return config_json.parent.name


def dataset_file(repo: str, filename: str, *, revision: str | None, setting: str) -> Path:
    """Return a file of a hub data set, downloaded unless the cache has it.

    Args:
        setting: the setting that names the repository.

    Raises:
        ValueError: as `require_repo`, or the data set has no such file.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    require_repo(repo, revision=revision, kind=RepoKind.dataset, setting=setting)
    try:
        return Path(hf_hub_download(repo, filename, repo_type=RepoKind.dataset.value, revision=revision))
    except EntryNotFoundError:
        raise ValueError(f"{setting}: the data set {repo} has no file {filename}; name another data set") from None


# The kinds of files that a dictionary is made of; a repository may hold others, and code is never needed.
_DICTIONARY_FILES = (".json", ".yaml", ".safetensors", ".npz", ".pt", ".pth")
# Files of settings that all dictionaries of a folder share.
_SETTINGS_ABOVE = ("config.json", "config.yaml")


def downloaded_part(repo: str, part: str, *, revision: str | None = None, caller: str) -> Path:
    """Return the local copy of a dictionary's folder or file in a hub repository, downloaded unless the cache has it.

    Settings in the folders above come along: some projects keep the language model's name there.

    Args:
        part: the folder or file; "." for the repository itself.
        caller: what asks, for messages.

    Raises:
        ValueError: the hub cannot be asked and the cache lacks it, the repository is gated or private without access,
            or there is no such repository, revision or part.
    """
    from huggingface_hub import HfApi, snapshot_download

    parts = [each for each in part.split("/") if each != "."]
    if ".." in parts or part.startswith("/"):
        raise ValueError(f"{caller}: {part!r} is no folder or file within a repository; leave out .. and the first /")
    inner = "/".join(parts)
    patterns = [f"{inner}/*{ending}".lstrip("/") for ending in _DICTIONARY_FILES]
    patterns += [inner] if inner.endswith(_DICTIONARY_FILES) else []
    patterns += ["/".join([*parts[:depth], name]) for depth in range(len(parts)) for name in _SETTINGS_ABOVE]
    folders: list[Path] = []

    def exists() -> None:
        HfApi(endpoint=hub_endpoint()).model_info(repo, revision=revision, timeout=REQUEST_SECONDS)

    def download() -> None:
        wanted = {"revision": revision, "allow_patterns": patterns, "local_files_only": refusal is not None}
        folders.append(Path(snapshot_download(repo, endpoint=hub_endpoint(), **wanted)))

    refusal = "HF_HUB_OFFLINE is set" if is_offline() else _ask(repo, revision, RepoKind.model, caller, exists)
    failure = _answer(repo, revision, RepoKind.model, caller, download)
    if failure is not None:
        raise ValueError(
            f"{caller}: {repo} is not in the local cache and {hub_endpoint()} cannot be asked ({refusal or failure}); "
            "check the network, the proxy or HF_ENDPOINT, or give a folder on this machine"
        )
    found = folders[0] / inner
    if not found.exists():
        raise ValueError(f"{caller}: {repo} has no {part}; {hub_endpoint()}/{repo}/tree/main lists its folders")
    return found


def is_offline() -> bool:
    """Return whether Hugging Face's libraries are set not to use the network."""
    from huggingface_hub import constants

    return constants.is_offline_mode()


@contextmanager
def offline() -> Iterator[None]:
    """Make Hugging Face's libraries open models from the cache alone within this block.

    The setting ends with the block: the hub may answer a later job of the same process.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    setattr(constants, "HF_HUB_OFFLINE", True)  # noqa: B010 - the stub calls it final
    try:
        yield
    finally:
        setattr(constants, "HF_HUB_OFFLINE", before)  # noqa: B010


def _ask(
    repo: str, revision: str | None, kind: RepoKind, setting: str, question: Callable[[], None] | None = None
) -> str | None:
    """Return None if the repository can be read, or the reason if the hub gives no answer in time.

    Args:
        question: asks the hub; by default for a file that shows whether the repository can be read.

    Raises:
        ValueError: the hub says that there is no such repository, or that we may not read it.
    """
    question = question or (lambda: _ask_for_a_file(repo, revision, kind))
    try:
        return in_time(lambda: _answer(repo, revision, kind, setting, question))
    except TimeoutError as error:
        return str(error)


def in_time(question: Callable[[], Answer], seconds: float | None = None) -> Answer:
    """Return the answer to a question that goes over the network.

    Args:
        question: asks and returns the answer; what it raises is raised here.
        seconds: the time limit; None for `QUESTION_SECONDS`.

    Raises:
        TimeoutError: there is no answer in time.
    """
    seconds = QUESTION_SECONDS if seconds is None else seconds
    answers: list[Answer] = []
    failures: list[Exception] = []

    def ask() -> None:
        try:
            answers.append(question())
        except Exception as failure:
            failures.append(failure)

    # Name resolution has no time limit of its own, so the thread is abandoned if it takes too long.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    if failures:
        raise failures[0]
    if not answers:
        raise TimeoutError(f"no answer within {seconds:.0f} s")
    return answers[0]


def _ask_for_a_file(repo: str, revision: str | None, kind: RepoKind) -> None:
    from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url

    def head(filename: str):
        url = hf_hub_url(repo, filename, repo_type=kind.value, revision=revision)
        get_hf_file_metadata(url, timeout=REQUEST_SECONDS)

    if kind is RepoKind.model:
        head("config.json")
        return
    info = HfApi().dataset_info(repo, revision=revision, timeout=REQUEST_SECONDS)
    # Anyone may list a gated data set; only reading one of its files shows whether we may.
    data = [file.rfilename for file in info.siblings or [] if not file.rfilename.startswith(("README", "."))]
    if info.gated and data:
        head(data[0])


def _answer(repo: str, revision: str | None, kind: RepoKind, setting: str, question: Callable[[], None]) -> str | None:
    """Ask; return None if there is an answer, or the reason if there is none.

    Raises:
        ValueError: the answer is a refusal.
    """
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    page = f"{hub_endpoint()}/{'datasets/' if kind is RepoKind.dataset else ''}{repo}"
    try:
        question()
    except LocalEntryNotFoundError as error:
        # It is an EntryNotFoundError, too.
        return first_line(error)
    except GatedRepoError:
        raise ValueError(
            f"{setting}: {repo} is gated; accept its terms at {page} and set HF_TOKEN (or run `hf auth login`) "
            "with an account that has access"
        ) from None
    except RevisionNotFoundError:
        raise ValueError(
            f"{setting}: {repo} has no revision {revision!r}; see {page}/tree for its branches and tags"
        ) from None
    except RepositoryNotFoundError:
        raise ValueError(
            f"{setting}: {hub_endpoint()} has no {kind.value} {repo!r}; check the spelling, or, if it is private, "
            "set HF_TOKEN (or run `hf auth login`)"
        ) from None
    except EntryNotFoundError:
        raise ValueError(f"{setting}: {repo} holds no config.json, so it is not a model; see {page}") from None
    except Exception as error:
        # The hub's library may use any HTTP client: every other exception means that the hub gave no answer.
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no details'}"
    return None
