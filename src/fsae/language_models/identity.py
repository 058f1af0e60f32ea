"""Which weights a model's settings stand for, known without loading them."""

from hashlib import blake2b
from pathlib import Path

from fsae.language_models.embedded import package_version
from fsae.language_models.hub import RepoKind, local_model_folder, resolved_revision
from fsae.language_models.settings import ModelSettings, Weights


def model_identity(settings: ModelSettings) -> dict[str, str]:
    """What tells these weights from any others: a package's version, a hub commit, or a digest of a folder's listing;
    and whether they are kept at all.

    Raises:
        ValueError: package not installed, no such folder, hub unreachable and nothing cached, no access.
    """
    origin = _origin(settings)
    return origin if settings.weights is Weights.pretrained else origin | {"weights": settings.weights.name}


def _origin(settings: ModelSettings) -> dict[str, str]:
    if settings.package is not None:
        return {"package": settings.package.name, "version": package_version(settings.package)}
    assert settings.path is not None
    folder = local_model_folder(settings.path)
    if folder is not None:
        return folder_identity(folder)
    return {
        "hub": settings.path,
        "revision": resolved_revision(settings.path, revision=settings.revision, kind=RepoKind.model),
    }


def folder_identity(folder: Path) -> dict[str, str]:
    """What tells a folder's files from any others; a folder that is not there has none."""
    return {"files": listing_digest(folder, [path for path in folder.rglob("*") if path.is_file()])}


def listing_digest(root: Path, files: list[Path]) -> str:
    """A digest of files' names below `root`, sizes and times of change: reading them all could take hours."""
    listing = blake2b(digest_size=16)
    for path in sorted(files):
        found = path.stat()
        listing.update(f"{path.relative_to(root)}\0{found.st_size}\0{found.st_mtime_ns}\n".encode())
    return listing.hexdigest()
