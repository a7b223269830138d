"""Formats that users hold, each read into canonical episodes."""
