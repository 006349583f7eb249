"""Measurements that people run by hand: the step against TRL's, and the curves of a run."""
