"""A repository on the Hugging Face hub that files are pushed to."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fsae.credentials import concealed
from fsae.errors import first_line
from fsae.language_models.hub import hub_endpoint, in_time, is_hub_name, is_offline

if TYPE_CHECKING:
    from huggingface_hub import HfApi

CARD = "README.md"
# Below the folder of a push: a file that every push has, and the folder of the pages.
MARK, PAGES = "results.json", "latents"
# The hub writes it into every repository.
_OF_THE_HUB = ".gitattributes"


def push(
    repo: str,
    files: Mapping[str, Path | bytes],
    folder: str,
    message: str,
    *,
    private: bool = False,
    add: bool = False,
) -> str:
    """Push files to a model repository in one commit, and make the repository if there is none.

    Pages of an earlier push that are not among the new ones are deleted. The token is that of HF_TOKEN or of
    `hf auth login`.

    Args:
        repo: `owner/name`.
        files: contents, or files of this machine, by their path in the repository.
        folder: the folder in the repository that belongs to these files. An earlier push of it is known by its MARK.
        message: of the commit.
        private: whether a new repository is private.
        add: whether the repository may hold other files.

    Returns:
        The address of the repository's page.

    Raises:
        ValueError: no valid name or token, no permission, or the repository holds other files.
        ConnectionError: the hub gives no answer.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token

    check_repo(repo)
    endpoint = hub_endpoint()
    if is_offline():
        raise ValueError("HF_HUB_OFFLINE is set, so nothing can be pushed; unset it")
    if get_token() is None:
        raise ValueError(
            f"there is no token for {endpoint}; make one that may write at {endpoint}/settings/tokens and set "
            "HF_TOKEN, or run `hf auth login`"
        )
    api = HfApi(endpoint=endpoint)
    with _explained(repo):
        there = in_time(lambda: _files_of(api, repo))
        if there is None:
            api.create_repo(repo, private=private)
            there = []
        else:
            _refuse_others(repo, there, files, folder, add)
        stale = [path for path in there if path.startswith(f"{folder}/{PAGES}/") and path not in files]
        operations = [CommitOperationAdd(path, content) for path, content in files.items()]
        deletions = [CommitOperationDelete(path, is_folder=False) for path in stale]
        api.create_commit(repo, [*operations, *deletions], commit_message=message)
    return f"{endpoint}/{repo}"


def check_repo(repo: str) -> None:
    """Raise ValueError if no repository on the hub can have this name."""
    if not is_hub_name(repo) or "/" not in repo:
        raise ValueError(f"--repo is {repo!r}; a repository's name is owner/name, of letters, digits, '-', '_' and '.'")


def _files_of(api: "HfApi", repo: str) -> list[str] | None:
    """Return the paths of a repository's files; None if there is no such repository, or none that may be seen."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return [file.rfilename for file in api.model_info(repo).siblings or []]
    except RepositoryNotFoundError:
        return None


def _refuse_others(repo: str, there: Iterable[str], files: Mapping[str, Path | bytes], folder: str, add: bool) -> None:
    """Raise ValueError if a push would mix with files, or replace files, that no earlier push of the folder wrote."""
    within = [path for path in there if path.startswith(f"{folder}/")]
    pushed_before = f"{folder}/{MARK}" in within
    if within and not pushed_before:
        raise ValueError(
            f"{repo} has a folder {folder} that no run was published to ({_some(within)}); name another one with "
            "--folder, or choose another repository"
        )
    own = {_OF_THE_HUB, *within, *(files if pushed_before else ())}
    if not add and (others := [path for path in there if path not in own]):
        raise ValueError(
            f"{repo} exists and holds other files ({_some(others)}); choose another name, or --add to put the folder "
            f"{folder} next to them"
        )


def _some(paths: list[str]) -> str:
    return ", ".join(paths[:3]) + (", ..." if len(paths) > 3 else "")


@contextmanager
def _explained(repo: str) -> Iterator[None]:
    """Raise the hub's refusals as sentences for people."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    tokens = f"{hub_endpoint()}/settings/tokens"
    try:
        yield
    except HFValidationError as error:
        raise ValueError(f"--repo: {first_line(error)}") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status == 401:
            raise ValueError(f"{hub_endpoint()} does not accept the token; make another one at {tokens}") from None
        if status in (403, 404):
            raise ValueError(
                f"the token may not write to {repo}; check the owner's name, and that the token has the permission to "
                f"write there ({tokens})"
            ) from None
        if status < 500:
            raise ValueError(f"{hub_endpoint()} refuses the push: {concealed(_one_line(error))}") from None
        raise ConnectionError(f"{hub_endpoint()} fails ({concealed(_one_line(error))}); try again later") from None
    except ValueError:
        raise
    except Exception as error:
        # The hub's library may use any HTTP client: every other exception means that the hub gave no answer.
        raise ConnectionError(
            f"{hub_endpoint()} cannot be reached ({type(error).__name__}: {concealed(_one_line(error))}); check the "
            "network, the proxy or HF_ENDPOINT"
        ) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
