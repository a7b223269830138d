"""Population-based training: what may change, who copied whom, and how it is told."""
