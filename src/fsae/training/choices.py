"""The table of trainers: the name of each and its settings. `trainer=` chooses a YAML file of `conf/trainer`."""

from fsae.training.pam_settings import PamSettings
from fsae.training.settings import AdamSettings, FitSettings, TrainerSettings

CHOICES: dict[str, type[TrainerSettings]] = {
    "adam": AdamSettings,
    "fit": FitSettings,
    "pam": PamSettings,
}
