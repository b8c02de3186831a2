"""SteadyDiffusion's engine room: everything there is to know about jobs.

Read in this order. A folder is a part with a front door (its ``__init__.py``); what lies
inside is its own business.

jobs.py       the nouns: JobRequest, Job, Batch, the states; upscaling.py: how much larger;
              modelnames.py: what models and LoRAs are called; limits.py: what jobs may be
service.py    the story, told in intake/, dispatch.py and finish.py; parts.py: what they share;
              checkpoints.py: the steps of the protocol by name
jobfile/      bytes of a job file -> JobRequests, or an error a person can act on
inbox/        the folder as an interface: submit, wait, claim, archive, refuse, recover
root.py       may we work here: the layout, one watcher by lock, standbys that wait for it;
              moved.py: what lies where a setting led before
store/        the record: one method per transition; upkeep.py: what is done for it beside
pictures/     the only writer of pictures; the recipe inside them; formats without decoding; contact sheet
executor/     who runs engines; worker.py: the child process that owns the device;
              orders.py: its end of the socket; wire.py: what is said over it
engine.py     what an engine is; engines/: Z-Image on diffusers, servers of OpenAI's API, devices, placement;
              shortage.py: which errors mean what
retouch.py    what is done to a picture around any engine: mask, enlarging, tiles
models/       which model, what it allows, and getting it onto this machine;
              modelstate.py: what is known of them while the watcher works
suffixes.py   which files people may drop, and what is said about others
publish.py    how a file appears: whole or not at all; folder.py: is this folder still ours
results.py    a finished batch's result files; refused.py: rows that could not be used; needs.py: what
              needs a person
inputs.py     pictures that jobs start from, by sha256; finder.py: by name; chosen.py: the new jobs
              that chosen ones become
submission.py  bytes and a name -> read, and put into the inbox: for every way in
wildcards.py  word lists of the root; pace.py: every estimate of time; heat.py: of the card
describe.py   a job and a batch as plain data, for every answer and file that tells of one
prune.py      what is old, tidied away
notify/       telling others, from the record's outbox; webhooks.py: how one is signed and posted;
              addresses.py: whose addresses are allowed
previews.py   half-made pictures, for those who look
live.py log.py            the pulse and what is wrong now; the log and the clock
config.py errors.py           every setting (configfile.py: as it was written); everything that can go
              wrong
cli.py commands/                        the command `steady`
program.py    the installed version; how processes of ours are started
"""
