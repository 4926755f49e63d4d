"""Files of strangers: what reads other files or claims more than it holds is one sentence, and no dataset."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from toy_datasets import import_rows

from storage.errors import BadInput
from storage.store import Store

ROWS = 8
SECRET = np.arange(ROWS, dtype=np.float32)
HDF5_TYPES: dict[str, tuple[Any, str]] = {
    "object references": (h5py.ref_dtype, "references"),
    "region references": (h5py.regionref_dtype, "references"),
    "lists of numbers": (h5py.vlen_dtype(np.int32), "lists of different lengths"),
    "lists of references": (h5py.vlen_dtype(h5py.ref_dtype), "lists of different lengths|references"),
    "texts": (h5py.string_dtype(), "texts"),
    "records": ([("a", "f4")], "records"),
    "raw bytes": ("V8", "raw bytes"),
    "arrays in cells": (np.dtype(("f4", (3,))), "raw bytes"),
    "complex numbers": ("c8", "complex"),
    "long doubles": ("longdouble", "float128"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a file of another user beside a dataset that is sound but for what a test changes."""
    monkeypatch.chdir(tmp_path)
    SECRET.tofile("secret.bin")
    with h5py.File("secret.h5", "w") as file:
        file["x"] = SECRET
    return tmp_path


def d4rl(path: Path, change: Callable[[Any], None]) -> Path:
    """A sound file of D4RL in which something is put in place of `observations`."""
    with h5py.File(path, "w") as file:
        for name in ("actions", "rewards"):
            file[name] = np.zeros(ROWS, np.float32)
        file["terminals"] = np.arange(ROWS) == ROWS - 1
        change(file)
    return path


def external(file: Any) -> None:
    file.create_dataset("observations", shape=(ROWS,), dtype="f4", external=[("secret.bin", 0, 4 * ROWS)])


def virtual(file: Any) -> None:
    layout = h5py.VirtualLayout(shape=(ROWS,), dtype="f4")
    layout[:] = h5py.VirtualSource("secret.h5", "x", shape=(ROWS,))
    file.create_virtual_dataset("observations", layout)


def virtual_of_itself(file: Any) -> None:
    layout = h5py.VirtualLayout(shape=(ROWS,), dtype="f4")
    layout[:] = h5py.VirtualSource(".", "observations", shape=(ROWS,))
    file.create_virtual_dataset("observations", layout)


def link(file: Any) -> None:
    file["observations"] = h5py.ExternalLink("secret.h5", "x")


def hidden_link(file: Any) -> None:
    file["inside/x"] = h5py.ExternalLink("secret.h5", "x")
    file["observations"] = h5py.SoftLink("/inside/x")


def cycle(file: Any) -> None:
    file["observations"] = h5py.SoftLink("/observations")


def nothing(file: Any) -> None:
    file["observations"] = h5py.SoftLink("/nothing")


def other_names(name: str) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        file["observations"] = SECRET
        if name in file:
            del file[name]
        file[name] = h5py.ExternalLink("secret.h5", "x")

    return change


def dump(file: Any) -> None:
    file["num_episodes"] = 1
    for name in ("actions_0", "rewards_0"):
        file[name] = np.zeros(ROWS, np.float32)
    file["terminated_0"] = True
    file["observations_0"] = h5py.ExternalLink("secret.h5", "x")


def made(**options: Any) -> Callable[[Any], None]:
    return lambda file: file.create_dataset("observations", **options)


def unknown_filter(file: Any) -> None:
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_chunk((ROWS,))
    plan.set_filter(32_015, h5py.h5z.FLAG_OPTIONAL)  # zstd, from a plugin that nobody has to have
    space = h5py.h5s.create_simple((ROWS,))
    h5py.h5d.create(file.id, b"observations", h5py.h5t.IEEE_F32LE, space, dcpl=plan)


HOSTILE_HDF5: dict[str, tuple[Callable[[Any], None], str]] = {
    "bytes of another file": (external, "'observations' keeps its numbers in another file"),
    "a virtual array": (virtual, "'observations' keeps its numbers in another file"),
    "a virtual array of itself": (virtual_of_itself, "'observations' keeps its numbers in another file"),
    "a link to another file": (link, r"'observations' is a link \(ExternalLink\)"),
    "a link to a link to another file": (hidden_link, r"'observations' is a link \(SoftLink\)"),
    "a link to itself": (cycle, r"'observations' is a link \(SoftLink\)"),
    "a link to nothing": (nothing, r"'observations' is a link \(SoftLink\)"),
    "the next observations of another file": (other_names("next_observations"), "'next_observations' is a link"),
    "the flags of another file": (other_names("timeouts"), "'timeouts' is a link"),
    "the rewards of another file": (other_names("rewards"), "'rewards' is a link"),
    "an episode of another file": (dump, "'observations_0' is a link"),
    "a group": (lambda file: file.create_group("observations"), "'observations' is a group"),
    "a type": (lambda file: file.__setitem__("observations", np.dtype("f4")), "'observations' is a datatype"),
    "a single number": (made(data=1.0), "'observations' has no rows|8 rows"),
    "nothing at all": (made(data=h5py.Empty("f4")), "'observations' is empty"),
    "10^12 rows": (made(shape=(10**12,), dtype="f4", chunks=(1024,)), "'observations' has shape"),
    "10^9 numbers in each row": (made(shape=(ROWS, 10**9), dtype="f4", chunks=(1, 1024)), "'observations' has shape"),
    "numbers that were never written": (made(shape=(ROWS, 100_000_0), dtype="f4", chunks=(1, 1024)), "has shape"),
    "rows that were never written": (made(shape=(50_000_000,), dtype="f4", chunks=(1024,)), "claims 200,000,000 bytes"),
    "a chunk of 4 GB": (made(shape=(ROWS, 2), maxshape=(None, 2), dtype="f4", chunks=(2**28, 2)), "has chunks"),
    "an unknown filter": (unknown_filter, "'observations' is compressed by filter 32015"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE_HDF5)
def test_an_hdf5_file_that_is_not_its_own_content_is_refused_with_the_name_of_the_array(
    store: Store, folder: Path, name: str
) -> None:
    change, message = HOSTILE_HDF5[name]
    with pytest.raises(BadInput, match=message):
        import_rows(store, d4rl(folder / "hostile.h5", change))
    assert list(store.rollouts_dir.iterdir()) == []


@pytest.mark.parametrize("name", HDF5_TYPES)
def test_what_is_no_number_in_an_hdf5_file_is_refused(store: Store, folder: Path, name: str) -> None:
    dtype, message = HDF5_TYPES[name]
    with pytest.raises(BadInput, match=f"'observations' holds .*({message}).*needed"):
        import_rows(store, d4rl(folder / "hostile.h5", made(shape=(ROWS,), dtype=dtype)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"compression": "gzip", "shuffle": True, "fletcher32": True, "chunks": (4,)},
        {"compression": "lzf", "chunks": (4,)},
        {"dtype": ">f4"},
        {"dtype": "f8"},
    ],
)
def test_what_is_packed_or_in_another_byte_order_comes_in(store: Store, folder: Path, options: dict[str, Any]) -> None:
    path = d4rl(folder / "sound.h5", lambda file: file.create_dataset("observations", data=SECRET, **options))
    assert import_rows(store, path).steps == ROWS


@pytest.mark.slow
def test_an_array_that_packs_well_is_no_bomb(store: Store, folder: Path) -> None:
    def constant(file: Any) -> None:
        file.create_dataset("observations", data=np.zeros((ROWS, 100_000)), compression="gzip", chunks=(ROWS, 100_000))

    assert import_rows(store, d4rl(folder / "zeros.h5", constant)).observation_space.size == 100_000
