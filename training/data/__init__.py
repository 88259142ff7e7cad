"""Labelled data as training reads it: scans, samples, batches, their way to the device."""
