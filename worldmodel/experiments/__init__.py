"""The CLI classes: what `fit`, `validate`, `test` and `predict` do before and after the Trainer."""
