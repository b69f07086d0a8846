"""Encoders that hold encoders: several scales, tiles, slices, several towers, one per kind of image."""
