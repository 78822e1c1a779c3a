"""Data for the step: sources, splits, views, and the pipelines that draw batches on the device."""
