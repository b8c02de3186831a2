"""Engines of the house and what they share: devices, placement, loading, trials."""
