"""Sweeps on Ray Tune: a distribution over the overrides of a trainer."""
