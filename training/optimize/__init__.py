"""What turns losses into better weights: the network in training, losses, schedules, adapters."""
