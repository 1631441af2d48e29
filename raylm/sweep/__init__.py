"""Hyper-parameter sweeps over the stages that train: search spaces, Ray Tune, fronts of several objectives."""
