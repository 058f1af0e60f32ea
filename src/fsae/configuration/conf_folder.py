"""The folder of YAML files: packaged with the code in a wheel, at the repository's top in a source tree."""

from pathlib import Path

import fsae


def conf_folder() -> Path:
    """Return the absolute path of the folder that holds config.yaml."""
    package = Path(fsae.__file__).resolve().parent
    packaged = package / "conf"
    return packaged if packaged.is_dir() else package.parents[1] / "conf"


def choices_of(group: str) -> list[str]:
    """Return the choices of a group, including those in its subfolders, such as "released/gated"."""
    folder = conf_folder() / group
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))
