"""The table of sources: the name of each, which `source=` chooses, and its settings."""

from fsae.sources.eeg import EEGSettings
from fsae.sources.mnist import MNISTSettings
from fsae.sources.open_activations import ActivationSourceSettings
from fsae.sources.source import SourceSettings
from fsae.sources.synthetic.grouped import GroupedFeaturesSettings
from fsae.sources.synthetic.hierarchical import HierarchicalFeaturesSettings
from fsae.sources.synthetic.sparse_sources import SparseSourcesSettings
from fsae.sources.toy_clusters import ToyClustersSettings
from fsae.sources.vectors import VectorsSettings

CHOICES: dict[str, type[SourceSettings]] = {
    "activations": ActivationSourceSettings,
    "grouped_features": GroupedFeaturesSettings,
    "sparse_sources": SparseSourcesSettings,
    "hierarchical_features": HierarchicalFeaturesSettings,
    "eeg": EEGSettings,
    "mnist": MNISTSettings,
    "toy_clusters": ToyClustersSettings,
    "vectors": VectorsSettings,
}
