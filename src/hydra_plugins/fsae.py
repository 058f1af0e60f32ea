"""Our launchers and sweeper where Hydra finds them: it takes plugins from this namespace only."""

from hydra.core.config_store import ConfigStore

from fsae.sweeps import joblib_launcher, packed_launcher, ray_launcher, reevaluation, remaining, slurm_launcher


class JoblibLauncher(joblib_launcher.JoblibLauncher):
    """See `fsae.sweeps.joblib_launcher`."""


class PackedLauncher(packed_launcher.PackedLauncher):
    """See `fsae.sweeps.packed_launcher`."""


class RayLauncher(ray_launcher.RayLauncher):
    """See `fsae.sweeps.ray_launcher`."""


class SlurmLauncher(slurm_launcher.SlurmLauncher):
    """See `fsae.sweeps.slurm_launcher`."""


class RemainingJobs(remaining.RemainingJobs):
    """See `fsae.sweeps.remaining`."""


class Reevaluation(reevaluation.Reevaluation):
    """See `fsae.sweeps.reevaluation`."""


store = ConfigStore.instance()
for name, settings in (
    ("joblib", joblib_launcher.JoblibSettings),
    ("packed", packed_launcher.PackedSettings),
    ("ray", ray_launcher.RaySettings),
    ("slurm", slurm_launcher.SlurmSettings),
):
    store.store(group="hydra/launcher", name=f"fsae_{name}", node=settings)
# Without a schema: the settings of the sweep's own sweeper may be left in it.
store.store(group="hydra/sweeper", name="remaining", node={"_target_": "hydra_plugins.fsae.RemainingJobs"})
again = {"_target_": "hydra_plugins.fsae.Reevaluation", "folders": []}
store.store(group="hydra/sweeper", name="reevaluation", node=again)
