"""The table of trainers: the name of each, which `trainer=` chooses, and its settings."""

from fsae.training.pam_settings import PamSettings
from fsae.training.settings import AdamSettings, FitSettings, TrainerSettings

CHOICES: dict[str, type[TrainerSettings]] = {
    "adam": AdamSettings,
    "fit": FitSettings,
    "pam": PamSettings,
}
