"""A minimal EDF file (Kemp et al. 1992): header, then records of one second of 16-bit samples; or BDF, of 24 bits."""

from pathlib import Path

import numpy as np


def write_edf(path: Path, signal: np.ndarray, rate: int, names: list[str], scale: float = 500.0) -> None:
    """Write (channels, samples) microvolts within plus or minus `scale`, whole seconds only; EDF or BDF by its name."""
    channels, samples = signal.shape
    records = samples // rate
    biosemi = path.suffix == ".bdf"
    size = 3 if biosemi else 2
    least = -(2 ** (8 * size - 1))

    def fields(width: int, *values: object) -> bytes:
        return b"".join(str(value)[:width].ljust(width).encode("ascii") for value in values)

    header = (
        (b"\xffBIOSEMI" if biosemi else fields(8, 0))
        + fields(80, "X X X X", "Startdate 01-JAN-2020 X X X")
        + fields(8, "01.01.20", "00.00.00")
    )
    header += (
        fields(8, 256 * (1 + channels))
        + fields(44, "24BIT" if biosemi else "")
        + fields(8, records, 1)
        + fields(4, channels)
    )
    header += fields(16, *names) + fields(80, *[""] * channels) + fields(8, *["uV"] * channels)
    header += fields(8, *[-scale] * channels) + fields(8, *[scale] * channels)
    header += fields(8, *[least] * channels) + fields(8, *[-least - 1] * channels)
    header += fields(80, *[""] * channels) + fields(8, *[rate] * channels) + fields(32, *[""] * channels)
    numbers = np.round((signal + scale) / (2 * scale) * (-2 * least - 1) + least).astype("<i4")
    data = numbers[:, : records * rate].reshape(channels, records, rate).swapaxes(0, 1)
    data = np.ascontiguousarray(data).view(np.uint8).reshape(-1, 4)[:, :size].tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + data)
