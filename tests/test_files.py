"""Files are written as a whole, by several processes at once as well."""

import pytest

from keras_powerlaw.progress import write_atomically


def test_another_process_writes_the_same_file_meanwhile(tmp_path):
    path = tmp_path / "state"

    def write(file):
        write_atomically(path, lambda other: other.write(b"other"))
        assert path.read_bytes() == b"other"
        file.write(b"whole")

    write_atomically(path, write)
    assert path.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "state"
    path.write_bytes(b"whole")

    def write(file):
        file.write(b"ha")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, write)
    assert path.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [path]
