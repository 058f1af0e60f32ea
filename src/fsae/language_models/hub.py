"""The model hub and its data sets: is a name there, may we read it, and one clear answer within seconds if not."""

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path

# A request may take this long once connected; the whole question, name resolution included, twice as long.
REQUEST_SECONDS = 5.0
QUESTION_SECONDS = 10.0

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


class RepoKind(Enum):
    """What a hub repository holds."""

    model = "model"
    dataset = "dataset"


def hub_endpoint() -> str:
    """The hub's address; HF_ENDPOINT names a mirror."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def is_hub_name(path: str) -> bool:
    """Whether `path` could name a hub repository: `name` or `owner/name`, and nothing else."""
    return _HUB_NAME.fullmatch(path) is not None and not path.startswith((".", "~"))


def local_model_folder(path: str, setting: str = "model.path") -> Path | None:
    """The folder `path` names, or None where it is a hub name instead.

    A folder of that name wins over the hub, as it does in transformers.

    Args:
        setting: what gave the path; a tokenizer's folder (`model.tokenizer`) need not hold a model.

    Raises:
        ValueError: it is neither, or the folder holds no model.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        if setting == "model.path" and not (folder / "config.json").is_file():
            raise ValueError(
                f"model.path: the folder {folder} holds no config.json, so it is not a model in Hugging Face's layout; "
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
    """Where this machine keeps `filename` of a hub model, or None when it was never downloaded. Asks nobody."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, filename, revision=revision)
    return Path(found) if isinstance(found, str) else None


def require_repo(repo: str, *, revision: str | None, kind: RepoKind, setting: str | None = None) -> bool:
    """Make sure that a hub repository can be opened, before a library with long retries tries it.

    Args:
        setting: what named it; `model.path` or `dataset.path` where nothing else is said.

    Returns:
        Whether the hub answers. False where it does not but the model is in the cache: open it within `offline()`.

    Raises:
        ValueError: hub unreachable and nothing cached, gated or private without access, no such repository or revision.
    """
    setting = setting or f"{kind.value}.path"
    told_offline = is_offline()
    refusal = "HF_HUB_OFFLINE is set" if told_offline else _ask(repo, revision, kind, setting)
    if refusal is None:
        return True
    if kind is RepoKind.model and cached_file(repo, "config.json", revision=revision) is not None:
        return False
    kept = "is not in the local cache" if kind is RepoKind.model else "is not on this machine"
    remedy = "unset it" if told_offline else "check the network, the proxy or HF_ENDPOINT"
    instead = (
        "or use a model that needs no hub (model=smollm2_135m_instruct_q4_1, model=gemma3_270m_q4_k_m) or a folder "
        "(model.path=/a/folder)"
        if kind is RepoKind.model
        else "or use text on this machine (dataset=python_source) or a copy in the hub's layout (dataset.path=/folder)"
    )
    raise ValueError(f"{setting}: {repo} {kept} and {hub_endpoint()} cannot be asked ({refusal}); {remedy}, {instead}")


def resolved_revision(repo: str, *, revision: str | None, kind: RepoKind) -> str:
    """The commit that a hub repository's name and revision stand for now; offline, the one that is in the cache.

    Raises:
        ValueError: as `require_repo`.
    """
    if require_repo(repo, revision=revision, kind=kind):
        from huggingface_hub import HfApi

        found = HfApi().repo_info(repo, revision=revision, repo_type=kind.value, timeout=REQUEST_SECONDS).sha
        assert found is not None
        return found
    config_json = cached_file(repo, "config.json", revision=revision)
    assert config_json is not None, "require_repo let only a cached model through"
    return config_json.parent.name


def is_offline() -> bool:
    """Whether Hugging Face's libraries are told not to use the network."""
    from huggingface_hub import constants

    return constants.is_offline_mode()


@contextmanager
def offline() -> Iterator[None]:
    """Hugging Face's libraries open models from the cache alone within this block, and may ask the hub after it.

    No longer than that: a later job of the same process may find the hub in better health.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    setattr(constants, "HF_HUB_OFFLINE", True)  # noqa: B010 - the stub calls it final
    try:
        yield
    finally:
        setattr(constants, "HF_HUB_OFFLINE", before)  # noqa: B010


def _ask(repo: str, revision: str | None, kind: RepoKind, setting: str) -> str | None:
    """None when the repository can be read, a reason when the hub gives no answer.

    Raises:
        ValueError: it answers no.
    """
    answers: list[str | ValueError | None] = []

    def question():
        try:
            answers.append(_request(repo, revision, kind, setting))
        except ValueError as refused:
            answers.append(refused)

    # Resolving a name has no time limit of its own, so the question is left behind when it takes too long.
    thread = threading.Thread(target=question, daemon=True)
    thread.start()
    thread.join(QUESTION_SECONDS)
    if not answers:
        return f"no answer within {QUESTION_SECONDS:.0f} s"
    if isinstance(answers[0], ValueError):
        raise answers[0]
    return answers[0]


def _request(repo: str, revision: str | None, kind: RepoKind, setting: str) -> str | None:
    from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    def head(filename: str):
        url = hf_hub_url(repo, filename, repo_type=kind.value, revision=revision)
        get_hf_file_metadata(url, timeout=REQUEST_SECONDS)

    page = f"{hub_endpoint()}/{'datasets/' if kind is RepoKind.dataset else ''}{repo}"
    try:
        if kind is RepoKind.model:
            head("config.json")
        else:
            info = HfApi().dataset_info(repo, revision=revision, timeout=REQUEST_SECONDS)
            # Anyone may list a gated data set; only reading one of its files tells whether we may.
            data = [file.rfilename for file in info.siblings or [] if not file.rfilename.startswith(("README", "."))]
            if info.gated and data:
                head(data[0])
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
        # Whatever HTTP client the hub's library uses: anything but an answer means that it could not be asked.
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no details'}"
    return None
