"""The HTTP door: writes job files into the inbox, reads the record, never runs a model."""
