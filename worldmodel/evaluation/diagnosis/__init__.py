"""What a recurrent model suffers from: measurements on a few real batches, one file a group, and what they mean."""
