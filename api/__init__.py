"""The HTTP door: writes job files into the inbox, reads the record, never runs a model.

Knows the watcher's parts, never its loop; a crash loses no request that was answered.
"""
