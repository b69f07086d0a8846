"""What is measured while training, beside the loss: work, peak, memory, spikes."""
