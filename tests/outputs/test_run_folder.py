import json
from pathlib import Path

import pytest

from fsae.outputs import run_folder
from fsae.outputs.run_folder import RunFolder, write_json


def test_a_failed_write_keeps_the_earlier_file_and_leaves_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = RunFolder(tmp_path).results
    write_json(path, {"eval/fvu": 0.1})

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_folder.os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        write_json(path, {"eval/fvu": 0.2})
    assert json.loads(path.read_text()) == {"eval/fvu": 0.1}
    assert list(tmp_path.iterdir()) == [path]
