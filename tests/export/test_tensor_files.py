from pathlib import Path

import numpy as np
import pytest
import torch

from fsae.export.tensor_files import read_npz, read_safetensors, read_state_dict


class Touch:
    """An object whose pickle makes a file when it is opened."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_in_a_pickle_does_not_run(tmp_path):
    torch.save({"weight": torch.zeros(2), "more": Touch(tmp_path / "ran")}, tmp_path / "ae.pt")
    with pytest.raises(ValueError, match=r"ae.pt is truncated or damaged, or holds more than tensors.*can run code"):
        read_state_dict(tmp_path / "ae.pt")
    assert not (tmp_path / "ran").exists()


def test_code_in_an_array_does_not_run(tmp_path):
    np.savez(tmp_path / "params.npz", W_enc=np.array([Touch(tmp_path / "ran")], dtype=object))
    with pytest.raises(ValueError, match=r"params.npz .* holds more than numbers"):
        read_npz(tmp_path / "params.npz")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kept", [0, 10, 300])
def test_a_truncated_state_dict(tmp_path, kept):
    torch.save({"weight": torch.randn(100)}, tmp_path / "ae.pt")
    (tmp_path / "ae.pt").write_bytes((tmp_path / "ae.pt").read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"ae.pt is truncated or damaged"):
        read_state_dict(tmp_path / "ae.pt")


def test_a_state_dict_in_the_old_layout_of_torch_is_read(tmp_path):
    torch.save({"weight": torch.ones(3)}, tmp_path / "ae.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(read_state_dict(tmp_path / "ae.pt")["weight"], torch.ones(3))


def test_a_tensor_alone_is_no_dictionary(tmp_path):
    torch.save(torch.ones(3), tmp_path / "ae.pt")
    with pytest.raises(ValueError, match=r"ae.pt holds Tensor, not tensors by name"):
        read_state_dict(tmp_path / "ae.pt")


def test_a_file_of_something_else(tmp_path):
    (tmp_path / "a").write_text("<html>not found</html>")
    for read in (read_safetensors, read_npz, read_state_dict):
        with pytest.raises(ValueError, match="a is truncated or damaged"):
            read(tmp_path / "a")
