"""Models that are not ours, asked what ours are asked: endpoints, Hugging Face models, and files of
answers that something else wrote."""
