"""The starter model: a tiny Z-Image trained from nothing on drawn scenes.

`world` draws the scenes and words their captions, `train` makes the model folder `model/` from
them, `score` measures what the folder draws. Nothing here is imported by the service.
"""
