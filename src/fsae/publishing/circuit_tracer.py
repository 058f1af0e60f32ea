"""circuit-tracer's folder of per-layer transcoders, which its attribution graphs are made with.

config.yaml              the language model, and the hooks of a block that transcoders read and write
layer_{i}.safetensors    the transcoder of each layer
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save_file

from fsae.export.releases.circuit_tracer import CONFIG, TRANSCODERS, layer_file, transcoder_tensors
from fsae.files import share_as_folder
from fsae.language_models.shape import shape_of
from fsae.language_models.sites import Site, SiteName
from fsae.outputs.sweep_folder import read_sweep
from fsae.publishing.new_folder import new_folder
from fsae.surface.dictionary import Dictionary, load

# What an MLP reads, and vectors of the residual stream from which it is computed.
_INPUTS = (SiteName.mlp_in, SiteName.resid_mid, SiteName.resid_pre)


def write_circuit_tracer(folders: Iterable[Path], folder: Path, member: int | None = None) -> int:
    """Write a folder of transcoders, one for each layer of a language model.

    Args:
        folders: of runs, each of which trained a transcoder of one layer, or of sweeps over layers.
        folder: the new folder; an earlier export there is replaced.
        member: of populations.

    Returns:
        The number of layers.

    Raises:
        ValueError: a run has no transcoder that circuit-tracer can hold, two are of one layer, a layer has none, they
            do not fit together, or something else is in the folder.
        OSError: no space is left; an earlier export is untouched.
    """
    found: dict[int, _Transcoder] = {}
    with new_folder(folder, layer_file(0)) as unfinished:
        for run in _runs(folders):
            dictionary = load(run, member=member)
            each = _transcoder(run, dictionary)
            if each.layer in found:
                raise ValueError(
                    f"{found[each.layer].run} and {run} are both of layer {each.layer}, and circuit-tracer takes one "
                    "transcoder per layer; name the runs of one choice instead of their sweep"
                )
            _check_alike(next(iter(found.values()), each), each)
            found[each.layer] = each
            save_file(transcoder_tensors(dictionary.autoencoder, run), unfinished / layer_file(each.layer))
        _check_layers(found)
        config = found[0].config | {"scan": folder.resolve().name}
        (unfinished / CONFIG).write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        for path in unfinished.iterdir():
            share_as_folder(path)
    return len(found)


@dataclass(frozen=True)
class _Transcoder:
    """Facts about a transcoder, which is not kept in memory.

    Attributes:
        run: the folder of its run.
        layer: whose MLP it stands for.
        d_sae: its latents.
        skip: whether it has a linear path.
        num_layers: of the language model; None if that is unknown.
        config: the content of config.yaml, without a name.
    """

    run: Path
    layer: int
    d_sae: int
    skip: bool
    num_layers: int | None
    config: dict[str, Any]


def _runs(folders: Iterable[Path]) -> Iterator[Path]:
    """Yield the runs in these folders; those of a sweep are all of its jobs."""
    for folder in folders:
        if (folder / "sweep.json").exists():
            yield from (job.folder for job in read_sweep(folder).all_jobs())
        else:
            yield folder


def _transcoder(run: Path, dictionary: Dictionary) -> _Transcoder:
    read, written = dictionary.site, dictionary.written_site
    if read is None or written is None or not _of_an_mlp(read, written):
        sites = "no language model" if read is None else f"{read}" if read == written else f"{read} -> {written}"
        raise ValueError(
            f"{run} has a dictionary of {sites}, and circuit-tracer takes those that write mlp_out of a layer and read "
            f"{', '.join(name.value for name in _INPUTS)} of the same layer; train with layout=transcoder"
        )
    settings, provenance = dictionary.settings, dictionary.provenance
    shape = None if settings is None or settings.model is None else shape_of(settings.model)
    named = {"model_name": provenance.model_name, "model_note": provenance.model_note}
    return _Transcoder(
        run=run,
        layer=read.layer,
        d_sae=dictionary.d_sae,
        skip=dictionary.autoencoder.ends.skip,
        num_layers=None if shape is None else shape.num_layers,
        config={
            "model_kind": TRANSCODERS,
            **{key: value for key, value in named.items() if value is not None},
            "feature_input_hook": _hook_in_block(read),
            "feature_output_hook": _hook_in_block(written),
        },
    )


def _of_an_mlp(read: Site, written: Site) -> bool:
    return read.name in _INPUTS and written.name is SiteName.mlp_out and read.layer == written.layer


def _hook_in_block(site: Site) -> str:
    """Return the name of a site's hook within its block.

    circuit-tracer opens the language model with its norms as they are, and puts a hook `mlp.hook_in` before each MLP:
    it gives the vectors of `mlp_in`, after the norm and its weight, so that nothing has to be folded.
    """
    return site.hook_name.removeprefix(f"blocks.{site.layer}.")


def _check_alike(first: _Transcoder, other: _Transcoder) -> None:
    same = {
        "language model or sites": first.config == other.config,
        "number of latents": first.d_sae == other.d_sae,
        "linear path": first.skip == other.skip,
    }
    if differing := [name for name, equal in same.items() if not equal]:
        raise ValueError(
            f"{first.run} and {other.run} differ in their {' and '.join(differing)}; all transcoders of a folder of "
            "circuit-tracer are alike in these"
        )


def _check_layers(found: dict[int, _Transcoder]) -> None:
    if not found:
        raise ValueError("the sweep has no run yet; finish it with fsae.resume")
    needed = next(iter(found.values())).num_layers or max(found) + 1
    if missing := sorted(set(range(needed)) - set(found)):
        raise ValueError(
            f"there is no transcoder of layer {', '.join(map(str, missing))}, and circuit-tracer needs one for each of "
            f"the {needed} layers; train them, as in -m layout=transcoder site.layer='range(0,{needed})'"
        )
