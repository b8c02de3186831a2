"""What `steady` can do, one module for each kind of command.

desk.py       what every command is given: root, settings, record, two ways to speak
show.py       a job in words and as JSON
bar.py        how far something is, on a terminal
fields.py     the fields of a job as options
services.py   serve, watch, api, mcp: the processes; open: the page
submit.py     submit: a prompt or files into the inbox
waiting.py    submit --wait and follow: what changes, until it is done
ask.py        list, status, cancel, retry, pause, resume
batches.py    export, prune: taking a batch along, tidying old ones away
models.py     model pull, list, verify, convert; lora list
setup.py      init
doctor/       doctor: what is wrong, and the command that mends it

Nothing heavy is imported before a command runs: `steady --help` must answer at once.
"""
