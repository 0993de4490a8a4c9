"""What writers leave where a disk is full or a folder read-only."""

import pathlib
import tempfile

import pytest
import write_faults
from long_tests import long

pytestmark = [
    pytest.mark.one_backend("files are written alike; models' own are tested on each"),
    pytest.mark.slow("trains tiny models"),
]


@pytest.fixture
def root():
    """A folder that other users may enter, as one of them is to fail."""
    with tempfile.TemporaryDirectory() as folder:
        pathlib.Path(folder).chmod(0o755)
        yield pathlib.Path(folder)


@pytest.mark.parametrize(
    "writer",
    [
        *("latent shards", "ReferenceStatistics"),
        *long("two writers are tested", "SampleGrid", "TerminateOnNonFinite"),
    ],
)
def test_a_writer_leaves_whole_files_or_those_of_before(root, writer):
    size, count, wrong = write_faults.check(writer, root)
    assert (size > 200, count, wrong) == (True, 8, [])


def test_it_sees_a_writer_that_does_not(root, monkeypatch):
    def write(model, folder):
        (folder / "x").write_bytes(bytes(10_000))

    monkeypatch.setitem(write_faults.WRITERS, "plain", write)
    _, _, wrong = write_faults.check("plain", root)
    assert "room for 50%: left ['x']" in wrong
