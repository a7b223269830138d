"""LightningModules and the LightningDataModule that feeds them."""
