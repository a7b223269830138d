"""How far a model sees: error against horizon, baselines, figures, tables."""
