"""The CLI classes: everything `fit`, `validate`, `test` and `predict` do before and after the Trainer."""
