"""A directory to which other users and other runs write: nothing of theirs is replaced, followed or shown as it is."""

import errno
import json
import os
import re
import warnings

import pytest
from small import BATCHES, Do, fit, names, small_model

from callbacks import CheckpointWriteError, GlobalStepCheckpoint, InputError, latest_checkpoint
from callbacks.__main__ import main
from callbacks.disk import files, listing
from callbacks.disk.files import temporary_name
from callbacks.disk.lock import Lock, Owner
from callbacks.disk.stored import read_stored
from callbacks.disk.template import Template
from callbacks.resuming import restoring


def save(directory, template="b{batch}.weights.h5", **options):
    """Trains and saves. Returns the callback."""
    checkpoint = GlobalStepCheckpoint(str(directory / template), **options)
    fit(small_model(), checkpoint)
    return checkpoint


@pytest.mark.parametrize("make", ["link", "fifo", "file"])
def test_what_another_user_puts_in_the_place_of_the_hidden_file_is_removed_and_not_written_to(tmp_path, make):
    """The name has the pid, which anybody can read. A write through the link would replace any file of the user who trains."""
    precious, hidden = tmp_path / "precious", tmp_path / "run" / temporary_name("b10.weights.h5")
    precious.write_text("precious")
    checkpoint = GlobalStepCheckpoint(str(tmp_path / "run" / "b{batch}.weights.h5"), save_freq=BATCHES, background=False)

    def put():
        if make == "link":
            hidden.symlink_to(precious)
        elif make == "fifo":
            os.mkfifo(hidden)
        else:
            hidden.write_bytes(bytes(1 << 20))

    fit(small_model(), checkpoint, Do(BATCHES // 2, put))
    assert precious.read_text() == "precious"
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["b10.weights.h5"]
    assert files.verify(str(tmp_path / "run" / "b10.weights.h5")).batch == BATCHES


def test_a_run_that_would_take_the_name_of_another_templates_checkpoint_is_refused_before_its_first_batch(tmp_path):
    """`m_{epoch}` and `m_{batch}` give equal names."""
    fit(small_model(), GlobalStepCheckpoint(str(tmp_path / "m_{epoch}.weights.h5")), epochs=4)
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    assert sorted(before) == [f"m_{epoch}.weights.h5" for epoch in (1, 2, 3, 4)]
    trained = Do(1, lambda: pytest.fail("a batch was trained on"))
    with pytest.raises(InputError) as raised:
        fit(small_model(), trained, GlobalStepCheckpoint(str(tmp_path / "m_{batch}.weights.h5"), save_freq=3))
    assert str(raised.value) == (
        f"{tmp_path}/m_3.weights.h5 is a checkpoint of another template, m_{{epoch}}.weights.h5, and m_{{batch}}.weights.h5 "
        "gives batch 3 the same name. Use another directory or template."
    )
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before


def test_checkpoints_of_another_template_are_no_obstacle_where_no_save_is_planned(tmp_path):
    for template, freq in (("m_{batch}", 4), ("m_{epoch}", "epoch")):
        fit(small_model(), GlobalStepCheckpoint(str(tmp_path / f"{template}.weights.h5"), save_freq=freq))
    assert names(tmp_path) == [f"m_{number}.weights.h5" for number in (1, 10, 4, 8)]


def test_a_fit_that_begins_in_a_later_epoch_plans_only_its_own_batches(tmp_path):
    fit(small_model(), GlobalStepCheckpoint(str(tmp_path / "m_{epoch:02d}.weights.h5"), keep_last=2), batches=8, epochs=25)
    by_batch = GlobalStepCheckpoint(str(tmp_path / "m_{batch:02d}.weights.h5"), save_freq=8)
    fit(small_model(), by_batch, batches=8, epochs=27, initial_epoch=25)
    assert names(tmp_path) == [f"m_{number}.weights.h5" for number in ("08", 16, 24, 25)]


def test_a_second_fit_of_a_model_is_refused_too_before_it_would_take_a_name(tmp_path):
    fit(small_model(), GlobalStepCheckpoint(str(tmp_path / "m_{epoch}.weights.h5"), keep_last=1), batches=1, epochs=12)
    model = small_model()
    fit(model, GlobalStepCheckpoint(str(tmp_path / "m_{batch}.weights.h5"), save_freq=6))
    trained = Do(1, lambda: pytest.fail("a batch was trained on"))
    with pytest.raises(InputError, match="gives batch 12 the same name"):
        fit(model, trained, GlobalStepCheckpoint(str(tmp_path / "m_{batch}.weights.h5"), save_freq=6))


def test_a_save_does_not_replace_a_checkpoint_of_another_template_that_has_come_since(tmp_path):
    fit(small_model(), GlobalStepCheckpoint(str(tmp_path / "m_{epoch}.weights.h5")))
    (tmp_path / "m_1.weights.h5").rename(tmp_path / "hidden")
    content = (tmp_path / "hidden").read_bytes()
    comes = Do(2, lambda: (tmp_path / "hidden").rename(tmp_path / "m_3.weights.h5"))
    checkpoint = GlobalStepCheckpoint(str(tmp_path / "m_{batch}.weights.h5"), save_freq=3, background=False)
    with pytest.raises(CheckpointWriteError) as raised:
        fit(small_model(), comes, checkpoint)
    assert str(raised.value) == (
        f"Could not write the checkpoint {tmp_path}/m_3.weights.h5: another template, m_{{epoch}}.weights.h5, has named a "
        "checkpoint so, which stays. Use another directory. The checkpoints before it are intact."
    )
    assert (tmp_path / "m_3.weights.h5").read_bytes() == content


def test_a_template_without_a_counter_replaces_its_file_whoever_named_it(tmp_path):
    save(tmp_path)
    os.rename(tmp_path / "b10.weights.h5", tmp_path / "last.weights.h5")
    save(tmp_path, "last.weights.h5")
    assert read_stored(str(tmp_path / "last.weights.h5")).template == "last.weights.h5"


@pytest.mark.parametrize("field", ["host", "since", "job"])
@pytest.mark.parametrize("text", ["\x1b[2J", "one\ntwo", "x" * 5000, "\udcff"])
def test_a_lock_whose_texts_would_change_the_terminal_counts_as_none(tmp_path, field, text):
    lock = Lock(str(tmp_path / "b{batch}.keras"), str(tmp_path))
    stranger = vars(Owner.this_process()) | {"boot": "elsewhere", field: text}
    (tmp_path / os.path.basename(lock.path)).write_text(json.dumps(stranger))
    lock.acquire()
    lock.release()


def test_names_of_files_are_shown_without_escape_sequences_and_whatever_their_encoding(trained, tmp_path, capsys):
    source = min(trained.iterdir())
    suffix = source.name.partition(".")[2]
    for name in (b"b\x1b[2J5." + suffix.encode(), b"b\xff5." + suffix.encode(), b"other\n." + suffix.encode()):
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
            file.write(source.read_bytes())
    for command in ("list", "verify"):
        main([command, str(tmp_path)])
        out = capsys.readouterr().out
        out.encode()
        assert "\x1b" not in out
        assert len(out.splitlines()) == 4 + (command == "verify")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        latest_checkpoint(tmp_path)
    assert not any(re.search(r"[\x1b\n]", str(each.message)) for each in caught)


def test_a_search_beside_a_run_that_deletes_old_files_finds_the_new_one(tmp_path, monkeypatch, recwarn):
    save(tmp_path, save_freq=5, keep_last=1)
    hidden = [tmp_path / f".{i}" for i in range(2)]
    for batches, path in zip((11, 12), hidden, strict=True):
        fit(small_model(), GlobalStepCheckpoint(str(tmp_path / "later" / "b{batch}.weights.h5")), batches=batches)
        (tmp_path / "later" / f"b{batches}.weights.h5").rename(path)
    seen, read = [], listing.files.read_trailer

    def read_trailer(path):
        trailer = read(path)
        if len(seen) < 2:  # the run saves the next one and deletes this one
            os.rename(hidden[len(seen)], tmp_path / f"b{11 + len(seen)}.weights.h5")
            os.unlink(path)
            seen.append(path)
        return trailer

    monkeypatch.setattr(listing.files, "read_trailer", read_trailer)
    recwarn.clear()
    assert latest_checkpoint(tmp_path).batch == 12
    assert not recwarn.list


def test_list_and_verify_beside_a_run_leave_out_the_files_that_it_deletes(tmp_path, monkeypatch, capsys):
    save(tmp_path, save_freq=5)
    real = restoring.files.verify

    def verify(path):
        if path.endswith("b5.weights.h5"):
            os.unlink(path)
        return real(path)

    monkeypatch.setattr(restoring.files, "verify", verify)
    assert main(["verify", str(tmp_path)]) == 0
    assert "1 file, intact" in capsys.readouterr().out


def test_a_directory_in_the_place_of_an_unfinished_file_of_a_dead_process_is_left_alone(tmp_path):
    stray = tmp_path / temporary_name("b10.weights.h5").replace(str(os.getpid()), "4194303")
    stray.mkdir()
    save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([stray.name, "b10.weights.h5"])


def test_an_unfinished_file_of_a_run_that_lost_its_lock_must_be_removable(tmp_path):
    """Otherwise that run, if it is alive, might still commit it."""
    fenced = Owner(host="elsewhere", pid=5, started=1, job="", restart=0, since="")
    (tmp_path / f".tmp-5@{fenced.pid_space}@b10.weights.h5").mkdir()
    with pytest.raises(InputError, match=r"The unfinished file .*b10.weights.h5 of an earlier run cannot be removed: "):
        files.sweep(Template(str(tmp_path / "b{batch}.weights.h5")), fenced)


@pytest.mark.parametrize("background", [True, False])
def test_an_older_checkpoint_that_cannot_be_deleted_is_named_as_the_cause(tmp_path, monkeypatch, background):
    """For example, one of another user in a sticky directory."""

    def unlink(path, **options):
        if str(path) == str(tmp_path / "b2.weights.h5"):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(path))
        real(path, **options)

    real = os.unlink
    monkeypatch.setattr(os, "unlink", unlink)
    with pytest.raises(CheckpointWriteError) as raised:
        save(tmp_path, save_freq=2, keep_last=1, background=background)
    said = f"Operation not permitted: the older checkpoint {tmp_path}/b2.weights.h5 cannot be deleted."
    assert said in str(raised.value) and "\n" not in str(raised.value)
    assert {"b2.weights.h5", "b4.weights.h5"} <= set(names(tmp_path))
