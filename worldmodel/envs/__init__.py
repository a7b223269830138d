"""Simulators: making them, acting in them, recording what they do. No model in here."""
