"""Devices, dtypes and rows per forward pass, also for devices that this machine does not have."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fsae.configuration.accept import accept
from fsae.devices import device_of, dtype_of, rows_at_once
from fsae.language_models.settings import Device, DType, ModelSettings, Package
from fsae.runs.pack import run_pack
from tests.composition import composed


def settings(**changes) -> ModelSettings:
    return ModelSettings(package=Package.tiny, **changes)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch):
    """Pretend that there is a GPU with so many GiB of memory."""

    def present(memory: float, bf16: bool = True) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
        monkeypatch.setattr(
            torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=int(memory * 2**30))
        )

    return present


@pytest.mark.parametrize("tiles", [False, True])
@pytest.mark.parametrize("avx512", [False, True])
def test_a_cpu_with_bfloat16_instructions_runs_in_bfloat16(avx512: bool, tiles: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
    on_cpu = settings(device=Device.cpu)
    assert dtype_of(on_cpu) is (torch.bfloat16 if avx512 or tiles else torch.float32)
    assert dtype_of(settings(device=Device.cpu, dtype=DType.float16)) is torch.float16


@pytest.mark.parametrize("emulated", [False, True])
def test_bfloat16_that_a_cpu_emulates_is_warned_of(
    emulated: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: not emulated)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    words = ["debug=tiny", "model.device=cpu", "model.dtype=bfloat16", "trainer.precision=bf16", "trainer.samples=512"]
    words += ["arch.d_sae=32", "source.tokens=1024", "source.shard_tokens=1024", "eval=[vectors]", "tracking=none"]
    (outcome,) = run_pack([accept(composed(*words, f"paths.outputs={tmp_path}"), tmp_path / "run", words)])
    assert outcome.error is None, outcome.error
    found = [each.getMessage() for each in caplog.records if "forty times" in each.getMessage()]
    assert [(each.split()[0], each.split()[-1]) for each in found] == (
        [("model.dtype", "model.dtype=float32"), ("trainer.precision", "trainer.precision=fp32")] if emulated else []
    )


def test_auto_takes_a_gpu_and_the_dtype_it_supports(gpu):
    gpu(80)
    assert device_of(settings()).type == "cuda"
    assert dtype_of(settings()) is torch.bfloat16
    gpu(16, bf16=False)
    assert dtype_of(settings()) is torch.float32
    assert device_of(settings(device=Device.cpu)).type == "cpu"


def test_rows_fill_a_forward_pass(gpu):
    on_cpu = {"device": Device.cpu}
    assert [rows_at_once(settings(**on_cpu), context) for context in (128, 1000, 4096)] == [8, 1, 1]
    gpu(24)
    assert rows_at_once(settings(), 128) == 24 * 2**30 // 2**22 // 128
    gpu(1000)
    assert rows_at_once(settings(), 1024) == 32
    assert rows_at_once(settings(batch_size=3), 1024) == 3
