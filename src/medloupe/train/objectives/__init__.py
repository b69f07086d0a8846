"""What a stage minimises. Adding one is one file here and one line in `ObjectiveConfig.table`."""
