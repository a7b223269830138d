"""What acts: planners, policies with memory, policies trained in imagination, and checkpoints that act."""
