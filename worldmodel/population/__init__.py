"""Population-based training: what members vary, who copies whom, and the report."""
