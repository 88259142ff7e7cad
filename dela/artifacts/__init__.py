"""What describes a network in files: checkpoints, metadata of exported files, sidecars."""
