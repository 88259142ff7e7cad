"""The commands that run networks: predict, verify, bench, info, view, doctor."""
