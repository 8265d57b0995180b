"""Progress is shown where it helps, and files are whole, or as they were."""

import itertools
import time

import pytest

from keras_powerlaw.progress import Progress, write_atomically


@pytest.fixture
def hours(monkeypatch):
    """An hour goes by between any two looks at the clock."""
    monkeypatch.setattr(time, "monotonic", itertools.count(step=3600).__next__)


def printed(capsys, verbose, total):
    progress = Progress("Spectrum", verbose)
    for done in range(1, 4):
        progress.update(done, total)
    progress.finish()
    return capsys.readouterr().out


class TestProgress:
    @pytest.mark.parametrize(
        "verbose, is_shown", [("auto", False), (0, False), (1, True)]
    )
    def test_of_short_work_is_shown_when_asked_for(self, capsys, verbose, is_shown):
        assert ("Spectrum" in printed(capsys, verbose, 3)) == is_shown

    @pytest.mark.parametrize(
        "verbose, is_shown", [("auto", True), (0, False), (1, True)]
    )
    def test_of_long_work_is_shown_unless_refused(
        self, capsys, hours, verbose, is_shown
    ):
        assert ("Spectrum" in printed(capsys, verbose, 3)) == is_shown

    @pytest.mark.parametrize("total", [3, None])
    def test_ends_with_the_number_of_batches(self, capsys, total):
        assert "3/3" in printed(capsys, 1, total)


class TestFiles:
    @pytest.fixture
    def path(self, tmp_path):
        return tmp_path / "state"

    def test_that_another_process_writes_meanwhile_are_whole(self, path):
        def write(file):
            write_atomically(path, lambda other: other.write(b"other"))
            assert path.read_bytes() == b"other"
            file.write(b"whole")

        write_atomically(path, write)
        assert path.read_bytes() == b"whole"
        assert list(path.parent.iterdir()) == [path]

    def test_are_as_they_were_after_an_interruption(self, path):
        path.write_bytes(b"whole")

        def write(file):
            file.write(b"ha")
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            write_atomically(path, write)
        assert path.read_bytes() == b"whole"
        assert list(path.parent.iterdir()) == [path]
