"""The dataset formats, a module each: its constant `READER` says how paths are recognised and opened."""
