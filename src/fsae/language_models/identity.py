"""Identifiers of a model's weights, known without loading them."""

from hashlib import blake2b
from pathlib import Path

from fsae.language_models.hub import RepoKind, local_model_folder, resolved_revision
from fsae.language_models.packaged import PACKAGED, package_version
from fsae.language_models.settings import ModelSettings, Weights


def model_identity(settings: ModelSettings) -> dict[str, str]:
    """Return what distinguishes these weights from all others: a package's version, a hub commit, or a digest of a
    folder's listing; whether the weights are a control's, and their seed; and the tokenizer, if it is another model's.

    Raises:
        ValueError: package not installed, no such folder, hub unreachable and nothing cached, no access.
    """
    if settings.package is not None:
        version = package_version(settings.package, settings.setting("package"))
        origin = {"package": settings.package.name, "version": version}
    else:
        assert settings.path is not None
        origin = _origin(settings.path, settings.revision, settings.setting("path"))
    if settings.weights is not Weights.pretrained:
        origin |= {"weights": settings.weights.name, "weights_seed": str(settings.weights_seed)}
    if settings.tokenizer is not None:
        of_tokenizer = _origin(settings.tokenizer, None, settings.setting("tokenizer"))
        origin |= {f"tokenizer_{key}": value for key, value in of_tokenizer.items()}
    return origin


def _origin(path: str, revision: str | None, setting: str) -> dict[str, str]:
    folder = local_model_folder(path, setting)
    if folder is not None:
        return folder_identity(folder)
    return {"hub": path, "revision": resolved_revision(path, revision=revision, kind=RepoKind.model, setting=setting)}


def folder_identity(folder: Path) -> dict[str, str]:
    """Return a digest of the folder's files that differs for other files; a missing folder counts as an empty one."""
    return {"files": listing_digest(folder, [path for path in folder.rglob("*") if path.is_file()])}


def published_as(settings: ModelSettings) -> tuple[str, str | None]:
    """Return the name under which other libraries open the model, and the differences of its weights.

    The name is a hub name if there is one, else the given folder: the name in a folder's config.json is the name of
    the model that it was trained from.
    """
    notes = []
    if settings.package is None:
        assert settings.path is not None
        name = settings.path
    else:
        packaged = PACKAGED[settings.package]
        name = packaged.hub_name or settings.package.name
        if packaged.quantisation is not None:
            notes.append(
                f"weights quantised to {packaged.quantisation} and expanded again ({packaged.distribution} "
                f"{package_version(settings.package, settings.setting('package'))})"
            )
    if settings.revision is not None:
        notes.append(f"revision {settings.revision}")
    if settings.weights is Weights.random:
        notes.append(f"random weights, freshly initialised (seed {settings.weights_seed})")
    if settings.weights is Weights.permuted:
        notes.append(f"rows of every weight matrix permuted (seed {settings.weights_seed})")
    if settings.tokenizer is not None:
        notes.append(f"tokenizer of {settings.tokenizer}")
    return name, "; ".join(notes) or None


def hub_name(settings: ModelSettings) -> str | None:
    """Return the hub's name of the model with these weights, or with the same weights before quantisation; None if the
    hub has none."""
    if settings.package is not None:
        return PACKAGED[settings.package].hub_name
    assert settings.path is not None
    return settings.path if local_model_folder(settings.path) is None else None


def listing_digest(root: Path, files: list[Path]) -> str:
    """Return a digest of the files' names below `root`, sizes and modification times; reading them could take hours."""
    listing = blake2b(digest_size=16)
    for path in sorted(files):
        found = path.stat()
        listing.update(f"{path.relative_to(root)}\0{found.st_size}\0{found.st_mtime_ns}\n".encode())
    return listing.hexdigest()
