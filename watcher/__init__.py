"""SteadyDiffusion's engine room: everything there is to know about jobs.

Read in this order. A part in brackets is made of the files named after it; nobody else knows them.

jobs.py       the nouns: JobRequest, Job, Batch, the states
service.py    the story, told in intake.py, dispatch.py and finish.py
jobfile.py    bytes of a job file -> JobRequests, or an error a person can act on
              (sheets.py rows.py planner.py tables.py fields.py hints.py naming.py problems.py
              expand.py batchline.py strictyaml.py strictjson.py)
inbox.py      the folder as an interface: wait, claim, archive, refuse, recover
              (bell.py arrivals.py claims.py shelves.py lease.py home.py)
submit.py     everybody's way into the inbox; lock.py: one watcher a root
store.py      the record: one method per transition
              (batches.py views.py record.py imagenames.py entries.py database.py schema.py)
outputs.py    the only writer of pictures; recipe.py: what is written inside them
executor.py   who runs engines; worker.py: the child process that owns the device; wire.py
engine.py     what an engine is; zimage.py: Z-Image on diffusers; plan.py: what fits the device
model.py      which model, what it allows; weights.py, convert.py: getting it onto this machine
publish.py    how a file appears: whole or not at all
live.py trouble.py window.py log.py     the pulse, what is wrong now, when bulk may run, the log
config.py errors.py                     every setting; everything that can go wrong
cli.py commands/                        the command `steady`
"""
