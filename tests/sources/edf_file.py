"""A minimal EDF file (Kemp et al. 1992): header, then records of one second of 16-bit samples."""

from pathlib import Path

import numpy as np


def write_edf(path: Path, signal: np.ndarray, rate: int, names: list[str], scale: float = 500.0) -> None:
    """Write (channels, samples) microvolts within plus or minus `scale`; whole seconds only."""
    channels, samples = signal.shape
    records = samples // rate

    def fields(width: int, *values: object) -> bytes:
        return b"".join(str(value)[:width].ljust(width).encode("ascii") for value in values)

    header = fields(8, 0) + fields(80, "X X X X", "Startdate 01-JAN-2020 X X X") + fields(8, "01.01.20", "00.00.00")
    header += fields(8, 256 * (1 + channels)) + fields(44, "") + fields(8, records, 1) + fields(4, channels)
    header += fields(16, *names) + fields(80, *[""] * channels) + fields(8, *["uV"] * channels)
    header += fields(8, *[-scale] * channels) + fields(8, *[scale] * channels)
    header += fields(8, *[-32768] * channels) + fields(8, *[32767] * channels)
    header += fields(80, *[""] * channels) + fields(8, *[rate] * channels) + fields(32, *[""] * channels)
    numbers = np.round((signal + scale) / (2 * scale) * 65535 - 32768).astype("<i2")
    data = numbers[:, : records * rate].reshape(channels, records, rate).swapaxes(0, 1).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + data)
