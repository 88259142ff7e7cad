"""What turns losses into better weights: losses, schedules, averages, adapters."""
