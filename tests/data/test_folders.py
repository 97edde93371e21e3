import os

import pytest

from medfinetune.data.folders import walk
from medfinetune.data.sources import chen, knee, pad_ufes, report_folder
from medfinetune.errors import InputError


@pytest.mark.parametrize("module", [chen, knee, pad_ufes, report_folder])
def test_every_source_walks_by_it(module):
    assert module.walk is walk


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "open" / "closed").mkdir(parents=True)
    assert [names for _, names, _ in walk(tmp_path)] == [["open"], ["closed"], []]
    # Permissions do not hold against root, whom tests may run as.
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=r"open/closed: cannot be read: Permission denied"):
        list(walk(tmp_path))
