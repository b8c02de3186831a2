"""The folder as an interface: files land, are claimed, and end in ``done/`` or ``refused/``.

    inbox/x.yaml                        somebody's file, or api-<ticket>.json of our own making
    inbox/ink/x.jpg                     the same, below the preset ``ink`` (``hot``)
    inbox/.claimed/<ticket>~x.yaml      ours: the new name is the claim, and carries the id
    inbox/.rows/<ticket>.jsonl      rows of it that cannot be used, written when they are judged
    inbox/done/YYYYMMDD/x~<ticket8>.yaml    all its jobs ended; .result.json beside it
    inbox/refused/x.yaml                nothing of it ran; x.yaml.error.json says why

A job file is always in exactly one of these, and leaves ``inbox/`` before any row of the
record exists. The folder is the truth: events only ring a bell (``bell``), readiness is
judged by looking (``arrivals``), and nothing that matters is kept in memory. All moves stay
inside ``inbox/``, which is therefore one file system; no kill and no power cut between the two
names of a claim can lose the file (``takeover``). Knows nothing of what files mean. What a
crash between two of its steps leaves is found by ``leftovers`` at the next start.

The watcher's side is ``watch.py``; here is what others ask, and it needs no watchdog.
"""

from watcher.inbox.archive import (
    claimed_files as claimed_files,
    done_files as done_files,
    drop_done as drop_done,
    file_of as file_of,
    lies_refused as lies_refused,
    refused_rows as refused_rows,
)
from watcher.inbox.claims import Claim as Claim, open_claim as open_claim
from watcher.inbox.submit import drop_file as drop_file
