"""Text files, files that are replaced as a whole, and names of folders."""

import pytest

from ezclip.errors import DataError
from ezclip.utils.files import check_folder_names, read_text, replacing


def test_replacing_keeps_the_earlier_file_after_an_error(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with replacing(path) as temporary:
        temporary.write_text("first")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("second")
        raise RuntimeError
    assert path.read_text() == "first" and list(path.parent.iterdir()) == [path]


def test_read_text(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffé\r\n".encode())
    assert read_text(tmp_path / "a.txt") == "é\r\n"
    (tmp_path / "a.txt").write_bytes(b"\xe9")
    with pytest.raises(DataError, match=r"a.txt is not .* byte 0"):
        read_text(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a/b"], "'a/b'"),
        (["a "], "'a '"),
        ([".."], "'..'"),
        (["a\n"], r"'a\\n'"),
        (["é" * 101], "200 bytes"),
        (["Results.json"], "'Results.json'"),
        (["ucf", "UCF"], "'ucf' .* two spellings"),
    ],
)
def test_bad_folder_names(names, message):
    check_folder_names(["ucf 101", "k600"], "run.yaml", reserved=("results.json",))
    with pytest.raises(DataError, match=f"run.yaml: .*{message}"):
        check_folder_names(names, "run.yaml", reserved=("results.json",))
