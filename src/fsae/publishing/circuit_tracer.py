"""circuit-tracer's folders, which its attribution graphs are made with.

config.yaml              the language model, and the hooks of a block that transcoders read and write
layer_{i}.safetensors    the transcoder of each layer

A cross-layer transcoder has `W_enc_{i}.safetensors` and `W_dec_{i}.safetensors` per layer instead.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fsae.export.dictionary_files import is_dictionary
from fsae.export.releases.circuit_tracer import (
    CONFIG,
    CROSS_LAYER,
    TRANSCODERS,
    crosses_layers,
    encoder_file,
    files_of,
    layer_file,
)
from fsae.export.tensor_files import write_safetensors
from fsae.files import share_as_folder
from fsae.language_models.shape import shape_of
from fsae.language_models.sites import Site, SiteName
from fsae.outputs.run_folder import RunFolder
from fsae.outputs.sweep_folder import JobState, read_sweep
from fsae.publishing.new_folder import new_folder
from fsae.surface.dictionary import Dictionary, load

# What an MLP reads, and vectors of the residual stream from which it is computed.
_INPUTS = (SiteName.mlp_in, SiteName.resid_mid, SiteName.resid_pre)


def write_circuit_tracer(folders: Iterable[Path], folder: Path, member: int | None = None) -> int:
    """Write a folder with transcoders of all layers of a language model.

    Args:
        folders: of runs whose transcoders are of different layers, or of sweeps over layers; or of one run with a
            cross-layer transcoder.
        folder: the new folder; an earlier export there is replaced.
        member: of populations.

    Returns:
        The number of layers.

    Raises:
        ValueError: a run has no transcoder that circuit-tracer can hold, two are of one layer, a layer has none, they
            do not fit together, or something else is in the folder.
        OSError: no space is left; an earlier export is untouched.
    """
    runs = [run for folder in folders for run in _runs(folder)]
    crossing = crosses_layers(load(runs[0], member=member).autoencoder.ends)
    if crossing and len(runs) > 1:
        raise ValueError(
            f"{runs[0]} has a cross-layer transcoder, and {len(runs)} runs are named; its latents write all later "
            "layers, so one run must have all layers: name it alone"
        )
    found: dict[int, _Transcoder] = {}
    with new_folder(folder, encoder_file(0) if crossing else layer_file(0)) as unfinished:
        for run in runs:
            dictionary = load(run, member=member)
            each = _transcoder(run, dictionary)
            _check_alike(next(iter(found.values()), each), each)
            for layer in each.layers:
                if layer in found:
                    raise ValueError(
                        f"{found[layer].run} and {run} are both of layer {layer}, and circuit-tracer takes one "
                        "transcoder per layer; name the runs of one choice instead of their sweep"
                    )
                found[layer] = each
            for name, tensors in files_of(dictionary.autoencoder, each.layers, run).items():
                write_safetensors(tensors, unfinished / name)
        _check_layers(found, crossing)
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
        layers: whose MLPs it stands for.
        d_layer: its latents per layer.
        skip: whether it has a linear path.
        num_layers: of the language model; None if that is unknown.
        config: the content of config.yaml, without a name.
    """

    run: Path
    layers: list[int]
    d_layer: int
    skip: bool
    num_layers: int | None
    config: dict[str, Any]


def _runs(folder: Path) -> list[Path]:
    """Return the folders of a sweep's jobs, or the folder itself, if it is none of a sweep.

    Raises:
        ValueError: a job of the sweep has no dictionary, or there is no job.
    """
    if not (folder / "sweep.json").exists():
        return [folder]
    jobs = read_sweep(folder).all_jobs()
    missing: dict[JobState, list[str]] = {}
    for job in jobs:
        if not is_dictionary(job.folder) and not RunFolder(job.folder).sae.is_dir():
            missing.setdefault(job.state(), []).append(job.name or job.folder.name)
    if missing or not jobs:
        listed = "; ".join(f"{', '.join(names)} ({state.value})" for state, names in missing.items())
        wait = "wait for the active ones, " if any(state.is_active for state in missing) else ""
        raise ValueError(
            f"{folder} has no dictionary of {listed or 'any job'}, and circuit-tracer needs one for each layer; {wait}"
            f"finish the sweep with python -m fsae.resume {folder}, and publish it again"
        )
    return [job.folder for job in jobs]


def _transcoder(run: Path, dictionary: Dictionary) -> _Transcoder:
    settings, provenance, ends = dictionary.settings, dictionary.provenance, dictionary.autoencoder.ends
    read = [Site.of_hook(name) for name in provenance.hooks_in]
    written = [Site.of_hook(name) for name in provenance.hooks_out]
    layers = [site.layer for site in read]
    if not read or read == written or layers != [site.layer for site in written] or not _of_mlps(read, written):
        sites = " + ".join(map(str, read)) or "no language model"
        raise ValueError(
            f"{run} has a dictionary of {sites}{'' if read == written else f' -> {written[0]}'}, and circuit-tracer "
            f"takes those that write mlp_out of a layer and read {', '.join(name.value for name in _INPUTS)} of the "
            "same layer; train with layout=transcoder"
        )
    shape = None if settings is None or settings.model is None else shape_of(settings.model)
    named = {"model_name": provenance.model_name, "model_note": provenance.model_note}
    return _Transcoder(
        run=run,
        layers=layers,
        d_layer=dictionary.d_sae // len(layers),
        skip=ends.skip,
        num_layers=None if shape is None else shape.num_layers,
        config={
            "model_kind": CROSS_LAYER if crosses_layers(ends) else TRANSCODERS,
            **{key: value for key, value in named.items() if value is not None},
            "feature_input_hook": _hook_in_block(read[0]),
            "feature_output_hook": _hook_in_block(written[0]),
        },
    )


def _of_mlps(read: list[Site], written: list[Site]) -> bool:
    return (
        read[0].name in _INPUTS
        and all(site.name is read[0].name for site in read)
        and all(site.name is SiteName.mlp_out for site in written)
    )


def _hook_in_block(site: Site) -> str:
    """Return the name of a site's hook within its block.

    circuit-tracer opens the language model with its norms as they are, and puts a hook `mlp.hook_in` before each MLP:
    it gives the vectors of `mlp_in`, after the norm and its weight, so that nothing has to be folded.
    """
    return site.hook_name.removeprefix(f"blocks.{site.layer}.")


def _check_alike(first: _Transcoder, other: _Transcoder) -> None:
    same = {
        "language model, sites or layout": first.config == other.config,
        "number of latents": first.d_layer == other.d_layer,
        "linear path": first.skip == other.skip,
    }
    if differing := [name for name, equal in same.items() if not equal]:
        raise ValueError(
            f"{first.run} and {other.run} differ in their {' and '.join(differing)}; all transcoders of a folder of "
            "circuit-tracer are alike in these"
        )


def _check_layers(found: dict[int, _Transcoder], crossing: bool) -> None:
    needed = next(iter(found.values())).num_layers or max(found) + 1
    if missing := sorted(set(range(needed)) - set(found)):
        every = ",".join(map(str, range(needed)))
        command = (
            f"layout=cross_layer_transcoder site.layer=[{every}]"
            if crossing
            else f"-m layout=transcoder 'site.layer=range(0,{needed})'"
        )
        raise ValueError(
            f"there is no transcoder of layer {', '.join(map(str, missing))}, and circuit-tracer needs one for each of "
            f"the {needed} layers; train them, as in {command}"
        )
