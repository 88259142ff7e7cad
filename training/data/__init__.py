"""Labelled data as training reads it: scans, samples, batches, made ahead of their step."""
