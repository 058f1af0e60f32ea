"""The table of sources: the name of each and its settings. `source=` chooses a YAML file of `conf/source`.

Only `vectors` has no such file: a Python caller hands them over, by `fsae.train`.
"""

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
