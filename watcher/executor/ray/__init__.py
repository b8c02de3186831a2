"""Run workers on the machines of a Ray cluster: one actor for each slot.

Importing this imports no Ray: only cluster.py does, when the configuration asks for it.
"""
