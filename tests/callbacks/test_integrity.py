"""Any changed byte is detected, and a search for the newest checkpoint skips other files."""

import os
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import keras
import pytest
import xxhash
from processes import ROOT
from small import fit, small_model

from callbacks import GlobalStepCheckpoint, InputError, latest_checkpoint, restore
from callbacks.__main__ import main
from callbacks.disk import files


def flip(path, place, bit=0):
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1 << bit
    path.write_bytes(raw)


def assert_passed_over(directory, newer, older, why):
    with pytest.warns(UserWarning, match=rf"Skipped {newer}.*{why}"):
        assert latest_checkpoint(directory).path == str(older)


def test_the_checksum_covers_every_byte_of_a_file(trained, tmp_path):
    source = min(trained.iterdir(), key=lambda path: len(path.name))
    whole = source.read_bytes()
    path = tmp_path / source.name
    path.write_bytes(whole)
    with open(path, "r+b", buffering=0) as file:
        for place, byte in enumerate(whole):
            os.pwrite(file.fileno(), bytes([byte ^ 1 << place % 8]), place)
            with pytest.raises(files.Corrupt):
                files.verify(path)
            os.pwrite(file.fileno(), bytes([byte]), place)
    files.verify(path)


def test_a_file_ends_with_its_counters_its_size_and_the_xxh3_of_everything_before_it(trained):
    for path in trained.iterdir():
        content, batch = path.read_bytes(), int(path.name[1:].split(".")[0])
        magic, *numbers = struct.unpack(">8s5Q", content[-64:-16])
        assert magic == b"GSTEP\x00\x00\x02"
        assert numbers == [batch, batch, 1, 4 * batch, len(content) - 64]
        assert content[-16:] == xxhash.xxh3_128_digest(content[:-16])


def with_trailer(content, batch):
    """Returns the file with another batch in its trailer, and a matching checksum."""
    changed = content[:-56] + struct.pack(">Q", batch) + content[-48:-16]
    return changed + xxhash.xxh3_128_digest(changed)


def test_a_trailer_that_contradicts_the_header_is_detected(copies):
    """Its checksum is right, because the whole file was written that way."""
    directory, older, newer = copies
    assert with_trailer(newer.read_bytes(), 10) == newer.read_bytes()
    lying = newer.with_name(newer.name.replace("10", "11"))
    lying.write_bytes(with_trailer(newer.read_bytes(), 11))
    newer.unlink()
    files.verify(lying)
    assert_passed_over(directory, lying, older, "its trailer and its header contain different counters")
    assert main(["verify", str(directory)]) == 1


@pytest.mark.parametrize("replacements", [1, 3])
def test_a_file_that_a_save_replaces_while_it_is_read_is_read_again(tmp_path, monkeypatch, replacements):
    path, verify = tmp_path / "m.weights.h5", files.verify
    for epochs in (1, 2):
        fit(small_model(), GlobalStepCheckpoint(tmp_path / str(epochs) / path.name), epochs=epochs)
    shutil.copy(tmp_path / "1" / path.name, path)
    to_come = [2, 1, 2][:replacements]

    def replaced_after_its_checksum(read):
        trailer = verify(read)
        if to_come:
            shutil.copy(tmp_path / str(to_come.pop(0)) / path.name, tmp_path / "hidden")
            os.replace(tmp_path / "hidden", path)
        return trailer

    monkeypatch.setattr(files, "verify", replaced_after_its_checksum)
    assert latest_checkpoint(path).batch == 20
    assert not to_come


def test_the_checksum_is_no_signature_and_the_readme_says_so():
    """Anyone who changes a file can compute its checksum again, like `with_trailer`."""
    readme = (ROOT / "callbacks" / "README.md").read_text()
    assert "not a signature" in " ".join(readme.split())


@pytest.mark.timeout(300)
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["a FIFO", "a directory"])
def test_a_path_that_is_not_a_regular_file_is_skipped(copies, capsys, make):
    """Nothing writes to the FIFO, so a reader that opens it blocks."""
    directory, older, newer = copies
    newer.unlink()
    make(newer)
    assert_passed_over(directory, newer, older, "it is not a regular file")
    template = str(directory / older.name.replace("b5", "b{batch}"))
    assert_passed_over(template, newer, older, "it is not a regular file")
    with pytest.raises(files.Corrupt):
        files.read_trailer(newer)
    assert main(["list", str(directory)]) == 0
    assert main(["verify", str(directory)]) == 1
    assert f"{newer}: it is not a regular file" in capsys.readouterr().out
    with pytest.raises(InputError, match="it is not a regular file"):
        fit(small_model(), GlobalStepCheckpoint(template, resume=str(newer)))


@pytest.mark.timeout(300)
def test_training_resumes_beside_a_fifo_and_replaces_it(copies):
    directory, older, newer = copies
    newer.unlink()
    os.mkfifo(newer)
    checkpoint = GlobalStepCheckpoint(str(directory / older.name.replace("b5", "b{batch}")), save_freq=5, keep_last=5, resume=True)
    fit(small_model(), checkpoint)
    assert checkpoint.resumed_from.batch == 5
    assert files.verify(newer).batch == 10


@pytest.mark.parametrize(
    "damage, why",
    [
        (lambda path: flip(path, 1000), "checksum"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "trailer"),
        (lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]), "trailer"),
        (lambda path: path.write_bytes(b""), "0 bytes"),
        (lambda path: path.write_bytes(path.read_bytes()[1000:]), "bytes before its trailer"),
        (lambda path: path.write_bytes(b"x" * 5000), "not written by GlobalStepCheckpoint"),
    ],
    ids=["one bit", "last byte gone", "half", "empty", "beginning gone", "foreign"],
)
def test_a_corrupt_newest_file_is_skipped_and_named(copies, damage, why):
    directory, older, newer = copies
    damage(newer)
    assert_passed_over(directory, newer, older, why)


def test_a_file_of_stock_keras_is_skipped(copies):
    directory, older, newer = copies
    if newer.suffix == ".keras":
        small_model().save(newer)
    else:
        small_model().save_weights(newer)
    assert_passed_over(directory, newer, older, "not written by GlobalStepCheckpoint")


def test_a_file_with_a_wrong_name_is_skipped(copies):
    directory, older, newer = copies
    lying = newer.with_name(newer.name.replace("10", "99"))
    newer.rename(lying)
    assert_passed_over(directory, lying, older, "its name does not match its content: it contains batch 10")


def test_a_file_that_cannot_be_opened_is_skipped(copies):
    directory, older, newer = copies
    newer.unlink()
    newer.symlink_to(directory / "nowhere")
    assert_passed_over(directory, newer, older, "No such file")


def test_nothing_is_restored_if_all_files_are_corrupt(copies):
    directory, older, newer = copies
    for path in (older, newer):
        path.write_bytes(b"")
    with pytest.warns(UserWarning, match="Skipped"):
        assert latest_checkpoint(directory) is None
    with pytest.warns(UserWarning, match="Skipped"):
        assert restore(small_model(), directory) is None


def test_a_corrupt_file_is_replaced_when_training_reaches_its_batch_again(copies):
    directory, older, newer = copies
    flip(newer, 1000)
    template = str(directory / older.name.replace("b5", "b{batch}"))
    checkpoint = GlobalStepCheckpoint(template, save_freq=5, resume=True)
    with pytest.warns(UserWarning, match="checksum"):
        fit(small_model(), checkpoint)
    assert checkpoint.resumed_from.batch == 5
    assert latest_checkpoint(template).batch == 10


def test_an_unknown_version_is_named_and_not_reported_as_corrupt(copies, monkeypatch):
    directory, _, _ = copies
    monkeypatch.setattr("callbacks.disk.stored_header.FORMAT", 3)
    with pytest.raises(InputError, match=r"has format 2.*reads formats 1 and 3"):
        latest_checkpoint(directory)


def test_a_checkpoint_of_another_model_changes_nothing(copies):
    _, _, newer = copies
    model = keras.Sequential([keras.Input((7,)), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    before = [value.copy() for value in model.get_weights()]
    with pytest.raises(InputError, match=r"another model: sequential.*/dense.*/kernel has shape \(7, 1\).* here, \(6, 1\)"):
        restore(model, newer)
    assert all((a == b).all() for a, b in zip(before, model.get_weights(), strict=True))


def bytes_read():
    return int(Path("/proc/self/io").read_text().split()[1])


def test_searching_a_thousand_checkpoints_reads_only_their_trailers(trained, tmp_path):
    source = min(trained.iterdir(), key=lambda path: len(path.name))
    body, suffix = source.read_bytes(), "".join(source.suffixes)
    for batch in range(1000):
        (tmp_path / f"b{batch}{suffix}").write_bytes(bytes(10_000) + body[-64:] if batch != 5 else body)
    before = bytes_read()
    with pytest.warns(UserWarning, match="Skipped"):
        assert latest_checkpoint(str(tmp_path / ("b{batch}" + suffix))).batch == 5
    assert bytes_read() - before < 1000 * 1000 + 3 * len(body)


def run_cli(*args):
    done = subprocess.run([sys.executable, "-m", "callbacks", *map(str, args)], cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_the_command_line_lists_and_verifies(copies):
    directory, older, newer = copies
    code, out, _ = run_cli("verify", directory)
    assert code == 0 and "2 files, all intact" in out
    flip(newer, 1000)
    code, out, _ = run_cli("list", directory)
    rows = [line.split() for line in out.splitlines()[1:]]
    assert code == 0
    assert [(row[0], row[1], row[2], row[3], row[-1]) for row in rows] == [
        ("5", "5", "1", "20", str(older)),
        ("10", "10", "1", "40", str(newer)),
    ]
    code, out, _ = run_cli("verify", directory)
    assert code == 1 and "2 files, 1 corrupt" in out and f"{newer}: its checksum" in out
    code, out, errors = run_cli("list", directory / "none_{batch}.keras")
    assert code == 2 and errors.splitlines()[-1].startswith("error: no checkpoints at")


def test_the_command_line_says_that_a_directory_does_not_exist(tmp_path, capsys):
    assert main(["list", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err == f"error: There is no such directory: {tmp_path}/none\n"


@pytest.mark.parametrize("wrong", [[], ["list"], ["show", "run"], ["list", "run", "more"], ["report", "--all", "run"]])
def test_a_wrong_command_line_is_reported_in_one_line(wrong, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(wrong)
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1


def test_the_command_line_finds_the_checkpoints_of_a_runs_directory(copies, tmp_path_factory, capsys):
    directory, older, newer = copies
    run = tmp_path_factory.mktemp("run")
    directory.rename(run / "checkpoints")
    assert main(["list", str(run)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [row[-1] for row in rows] == [str(run / "checkpoints" / path.name) for path in (older, newer)]
    shutil.copy(run / "checkpoints" / older.name, run)
    assert main(["list", str(run)]) == 0
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()[1:]] == [str(run / older.name)]


def test_state_in_an_archive_is_not_executed(trained):
    """Files contain JSON and plain arrays, and nothing in them is unpickled or evaluated."""
    for path in trained.iterdir():
        content = path.read_bytes()
        assert b"pickle" not in content
        if path.suffix == ".keras":
            assert sorted(zipfile.ZipFile(path).namelist()) == [
                "config.json",
                "metadata.json",
                "model.weights.h5",
            ]
