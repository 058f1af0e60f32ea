"""The table of architectures: the name of each and its settings. `arch=` chooses a YAML file of `conf/arch`."""

from fsae.autoencoders.abs_topk import AbsTopKSettings
from fsae.autoencoders.batch_topk import BatchTopKSettings
from fsae.autoencoders.gated import GatedSettings
from fsae.autoencoders.group_topk import GroupMaxSettings, GroupTopKSettings
from fsae.autoencoders.jumprelu import JumpReLUSettings
from fsae.autoencoders.lista import ListaSettings
from fsae.autoencoders.local_pca import KMeansSettings, LocalPCASettings
from fsae.autoencoders.mlp_encoder import MLPEncoderSettings
from fsae.autoencoders.pca import PCASettings
from fsae.autoencoders.pursuit import MatchingPursuitSettings, OMPSettings
from fsae.autoencoders.settings import AutoencoderSettings
from fsae.autoencoders.signed_gated import SignedGatedSettings
from fsae.autoencoders.standard import StandardSettings
from fsae.autoencoders.top_afa import TopAFASettings
from fsae.autoencoders.topk import TopKSettings

CHOICES: dict[str, type[AutoencoderSettings]] = {
    "standard": StandardSettings,
    "gated": GatedSettings,
    "jumprelu": JumpReLUSettings,
    "topk": TopKSettings,
    "batch_topk": BatchTopKSettings,
    "abs_topk": AbsTopKSettings,
    "group_topk": GroupTopKSettings,
    "groupmax": GroupMaxSettings,
    "top_afa": TopAFASettings,
    "signed_gated": SignedGatedSettings,
    "lista": ListaSettings,
    "mlp_encoder": MLPEncoderSettings,
    "matching_pursuit": MatchingPursuitSettings,
    "omp": OMPSettings,
    "kmeans": KMeansSettings,
    "local_pca": LocalPCASettings,
    "pca": PCASettings,
}
