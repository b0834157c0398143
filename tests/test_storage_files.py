"""Listing a folder that others write to at the same time."""

from pathlib import Path

import pyarrow.fs as fs

from quire.storage import Storage


class ComesMeanwhile:
    """A file system that cannot list a folder the first time: it is made just then."""

    def __init__(self, folder: Path):
        self.folder, self.local = folder, fs.LocalFileSystem()

    def get_file_info(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        if self.folder.exists():
            return self.local.get_file_info(selector)
        self.folder.mkdir()
        (self.folder / "pg1.json").write_text("{}")
        raise FileNotFoundError(f"Cannot list directory {self.folder}")


def test_a_folder_that_is_made_while_it_is_listed_is_no_error(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    assert storage.files("records") == []
    storage.__dict__["_opened"] = (ComesMeanwhile(tmp_path / "records"), str(tmp_path))
    assert storage.files("records") == ["pg1.json"]
