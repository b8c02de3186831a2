"""SteadyDiffusion's engine room: everything there is to know about jobs.

jobs.py       the nouns: JobRequest, Job, Batch, the states
jobfile.py    bytes of a job file -> JobRequests, or an error a person can act on
inbox.py      the folder as an interface: submit, wait, claim, archive, refuse, recover
store.py      the record: one method per transition
outputs.py    the only writer of pictures
engine.py     what an engine is
zimage.py     Z-Image on diffusers: load, generate
worker.py     the child process that owns the device
executor.py   who runs engines
service.py    the story, told in intake.py, dispatch.py and finish.py
publish.py    how a file appears: whole or not at all
model.py      which model, where it lies, what it allows
config.py errors.py cli.py
"""
