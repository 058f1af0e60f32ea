"""A real Slurm, Ray and PostgreSQL on loopback; their tests are skipped if missing, unless FSAE_REQUIRE_CLUSTER=1."""

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest
from filelock import FileLock

HERE = Path(__file__).parent


def lacking(reason: str) -> NoReturn:
    """Skip the test, or fail it if everything is required."""
    if os.environ.get("FSAE_REQUIRE_CLUSTER") == "1":
        pytest.fail(f"FSAE_REQUIRE_CLUSTER=1, but {reason}")
    pytest.skip(f"{reason}; `make test-cluster` brings it")


def installed(package: str, command: str) -> None:
    """Check for a command of a Debian package, and install it if it is required and this is root."""
    # Two processes of tests must not install at the same time.
    with FileLock(Path(tempfile.gettempdir()) / "fsae-apt.lock"):
        if shutil.which(command):
            return
        if os.geteuid() != 0 or shutil.which("apt-get") is None or os.environ.get("FSAE_REQUIRE_CLUSTER") != "1":
            lacking(f"there is no {command} (Debian's {package})")
        subprocess.run(["apt-get", "update", "-qq"], check=True)
        subprocess.run(
            ["apt-get", "install", "-y", "-qq", "--no-install-recommends", package],
            check=True,
            env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
            stdout=subprocess.DEVNULL,
        )


@contextmanager
def open_folder(name: str) -> Iterator[Path]:
    """Make a folder that every user can reach, unlike those of pytest's, and remove it afterwards."""
    with tempfile.TemporaryDirectory(prefix=f"fsae-{name}-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture(scope="session")
def slurm() -> Iterator[dict[str, str]]:
    """A Slurm of one node with the partitions main, low and high; yields the environment of its clients."""
    if os.geteuid() != 0:
        lacking("starting a Slurm takes root")
    for package, command in (("slurmctld", "slurmctld"), ("slurmd", "slurmd"), ("slurm-client", "sbatch")):
        installed(package, command)
    installed("munge", "munged")
    # munged refuses a socket in a folder that others cannot reach.
    with open_folder("slurm") as folder, pytest.MonkeyPatch.context() as patch:
        environment = {"FSAE_SLURM_FOLDER": str(folder), "SLURM_CONF": str(folder / "slurm.conf")}
        for name, value in environment.items():
            patch.setenv(name, value)
        try:
            subprocess.run([str(HERE / "slurm.sh"), "up"], check=True)
            yield {"SLURM_CONF": environment["SLURM_CONF"]}
        finally:
            subprocess.run([str(HERE / "slurm.sh"), "down"], check=True)


@pytest.fixture(scope="session")
def in_namespace() -> list[str]:
    """The prefix of a command that gives it loopback and no other network; Ray listens on every address."""
    if importlib.util.find_spec("ray") is None:
        lacking("Ray is not installed (the extra `ray`)")
    inside = ["unshare", "--net", "bash", "-c", 'ip link set lo up && exec "$@"', "--"]
    if shutil.which("unshare") is None or subprocess.run([*inside, "true"], capture_output=True).returncode != 0:
        lacking("a network namespace cannot be made here (unshare --net, ip)")
    return inside


@pytest.fixture
def postgres() -> Iterator[str]:
    """An empty database of a PostgreSQL that listens only on a socket file; yields its address."""
    if os.geteuid() != 0:
        lacking("running PostgreSQL as its own user takes root")
    if importlib.util.find_spec("psycopg2") is None:
        lacking("psycopg2 is not installed (the extra `postgres`)")
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not binaries:
        installed("postgresql", "pg_ctlcluster")
        binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    with open_folder("postgres") as folder:
        shutil.chown(folder, "postgres", "postgres")

        def as_postgres(program: str, *arguments: str) -> None:
            command = ["runuser", "-u", "postgres", "--", str(binaries[-1] / program), *arguments]
            subprocess.run(command, check=True, stdout=sys.stderr, cwd=folder)

        as_postgres("initdb", "--pgdata=data", "--auth=trust", "--no-sync")
        options = f"--options=-k {folder} -c listen_addresses="
        as_postgres("pg_ctl", "start", "--wait", "--pgdata=data", "--log=log", options)
        try:
            as_postgres("createdb", f"--host={folder}", "mlflow")
            yield f"postgresql+psycopg2://postgres@/mlflow?host={folder}"
        finally:
            as_postgres("pg_ctl", "stop", "--mode=immediate", "--pgdata=data")
