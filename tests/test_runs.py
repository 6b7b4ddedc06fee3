"""What is read back from a run's folder."""

import pytest

from pacecore.errors import PacecoreError
from pacecore.runs import NoResults, read_run


def test_folders_without_results(tmp_path):
    with pytest.raises(PacecoreError, match="nothing: no such run folder"):
        read_run(tmp_path / "nothing")
    with pytest.raises(NoResults, match=r"holds no summary\.json, test\.json or"):
        read_run(tmp_path)
    for name, text in (("retrieve-a", '{"top1": 1}'), ("test", '["a"]'), ("summary", "{")):
        (tmp_path / f"{name}.json").write_text(text)
        with pytest.raises(PacecoreError, match=rf"{name}\.json: not a record of pacecore"):
            read_run(tmp_path)
