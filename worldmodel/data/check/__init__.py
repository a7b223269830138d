"""Looks for the known faults of recorded datasets; `findings.check_episodes` runs all checks."""
