"""Episodes on disk, and the way from there to a batch: store -> episodes -> lanes -> segments."""
