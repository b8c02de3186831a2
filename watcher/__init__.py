"""SteadyDiffusion's engine room: everything there is to know about jobs.

Read in this order. A folder is a part with a front door (its ``__init__.py``); what lies
inside is its own business.

jobs.py       the nouns: JobRequest, Job, Batch, the states
service.py    the story, told in intake/, dispatch.py and finish.py
jobfile/      bytes of a job file -> JobRequests, or an error a person can act on
inbox/        the folder as an interface: submit, wait, claim, archive, refuse, recover
lock.py       one watcher a root; standby.py: waiting to be the one; layout.py: may it live here;
              moved.py: what lies where a setting led before
store/        the record: one method per transition
outputs.py    the only writer of pictures; recipe.py: what is written inside them
imagefile.py  the outside of a picture file: format, size, texts, without decoding it
executor/     who runs engines; worker.py: the child process that owns the device; wire.py
engine.py     what an engine is; zimage/: Z-Image on diffusers; plan.py: what fits the device;
              shortage.py: which errors mean what
model/        which model, what it allows, and getting it onto this machine
suffixes.py   which files people may drop, and what is said about others
publish.py    how a file appears: whole or not at all; folder.py: is this folder still ours
results.py    a finished batch's result files; resume.py: what of it is there already
submission.py  bytes and a name -> read, and put into the inbox: for every way in
wildcards.py  word lists of the root; pace.py: every estimate of time
sheet.py      many pictures in one; prune.py: what is old, tidied away
notify.py     telling others that a batch is done, from the record's outbox
live.py trouble.py window.py log.py     the pulse, what is wrong now, when bulk may run, the log; clock.py
config.py errors.py                     every setting; everything that can go wrong
cli.py commands/                        the command `steady`
"""
