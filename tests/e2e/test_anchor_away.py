"""Anchors that are not there, or never answer: recording goes on, and the receiver stops."""

import asyncio
import json
import os
import time

import pytest
from faults.feeding import ORIGIN, Feeder, check, ready, site

from authz.anchors import folder, notes_in
from authz.ledger import Checkpoint, open_note
from authz.serve import anchors
from authz.trust import load_trust


def hang(directory):
    """Make each file of a small size one that blocks whoever opens it, as a dead share would."""
    place = folder(directory, ORIGIN)
    place.mkdir(parents=True)
    for size in range(1, 60):
        os.mkfifo(place / f"{size:016}")
    return place


def test_recording_goes_on(tmp_path, database):
    """Beside one directory that is not mounted and one that never answers, a third has the log's
    checkpoints; all is recorded, and the receiver stops as it should."""
    good, dead = tmp_path / "good", tmp_path / "dead"
    good.mkdir()
    hang(dead)
    places = json.dumps([str(tmp_path / "not-mounted"), str(dead), str(good)])
    settings = {"AUTHZ_RECEIVER__ANCHORS": places, "AUTHZ_RECEIVER__ANCHOR_SECONDS": "0.2"}

    async def run():
        with site(tmp_path, database, **settings) as receiver:
            receiver.start()
            await ready(receiver)
            async with Feeder(tmp_path / "writer", receiver.address) as feeder:
                await feeder.feed(0.5)
                await feeder.settle()
                count = await asyncio.to_thread(check, receiver, feeder)
            begun = time.monotonic()
            status = receiver.stop()
            return status, time.monotonic() - begun, count.wrong, receiver

    status, seconds, wrong, receiver = asyncio.run(run())
    assert (status, wrong) == (0, [])
    assert seconds < 20, "it does not wait for what never answers"
    assert not (tmp_path / "not-mounted").exists()
    [log] = load_trust(receiver.data_dir / "trust.yaml")
    sizes = [Checkpoint.parse(open_note(note, log.keys)[0]).size for note in notes_in(good, ORIGIN)]
    newest = Checkpoint.parse((receiver.data_dir / "checkpoint").read_text())
    assert max(sizes) == newest.size, "the last checkpoint is anchored when the receiver stops"


def test_one_that_never_answers_is_asked_once(tmp_path, monkeypatch):
    """While one attempt is stuck no second one is made; once it comes through, it goes on."""
    place = hang(tmp_path)
    monkeypatch.setattr(anchors, "_DIRECTORY_SECONDS", 0.2)

    async def run():
        directory = anchors._Directory("dead", path=tmp_path)
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await directory.put(ORIGIN, 5, "note")
        with (place / f"{5:016}").open("w") as unblocked:  # there is one reader
            unblocked.write("something else")
        while not directory.writing.done():
            await asyncio.sleep(0.01)
        assert (place / f"{5:016}.1").read_text() == "note"
        await directory.put(ORIGIN, 100, "next")
        assert (place / f"{100:016}").read_text() == "next"

    asyncio.run(run())
